"""What does it cost to load an SD 1.5 checkpoint of 4 GB? Time and peak memory, ours beside diffusers.

Run: python benchmarks/loading.py [--folder /tmp] (writes a file of random weights there, with the keys, shapes and size
of v1-5-pruned-emaonly.safetensors, and deletes it). Each way is a process of its own, one after the other, and loads
U-Net and autoencoder from the same file, which by then lies in the system's cache. The peak is of all memory that the
process holds, mapped pages of the file too, above what it held after its imports; "used" is the peak after every weight
has been read once, which a mapped file only then costs. Unix only: Windows does not tell a process its peak.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

ROOT = Path(__file__).resolve().parents[1]
TYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
LIMIT = 1.15
CPU = torch.device("cpu")


def peak_mb() -> float:
    """The most memory this process has held so far.

    Linux says it for the program alone; getrusage there counts what the parent held when it forked, too.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        line = next(line for line in status.read_text(encoding="utf-8").splitlines() if line.startswith("VmHWM:"))
        return int(line.split()[1]) / 2**10
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def make(path: Path, dtype: str) -> None:
    """The checkpoint: true keys, shapes and size, and noise for values (no two pages of it alike in a row)."""
    sys.path.insert(0, str(ROOT / "tests"))
    from checkpoints.layouts import layout, write_empty  # pyright: ignore[reportMissingImports]

    file = layout("sd15_single_file")
    write_empty(path, replace(file, dtypes={key: dtype if one == "F32" else one for key, one in file.dtypes.items()}))
    size = path.stat().st_size
    noise = torch.randn(2**22, generator=torch.Generator().manual_seed(0)) * 0.02
    block = (noise.half() if dtype == "F16" else noise).numpy().tobytes()
    with path.open("r+b") as weights:
        weights.seek(8 + int.from_bytes(weights.read(8), "little"))
        while (left := size - weights.tell()) > 0:
            weights.write(block[:left])


def configs(folder: Path) -> None:
    """The configs that diffusers would fetch from the hub: its defaults are SD 1.5's but for these."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    sizes: dict[str, Any] = {
        "down_block_types": ("DownEncoderBlock2D",) * 4,
        "up_block_types": ("UpDecoderBlock2D",) * 4,
        "block_out_channels": (128, 256, 512, 512),
        "layers_per_block": 2,
    }
    with torch.device("meta"):
        UNet2DConditionModel(cross_attention_dim=768).save_config(folder / "unet")
        AutoencoderKL(**sizes).save_config(folder / "vae")


def ours(dtype: str, *, copy: bool, small: bool = False) -> Callable[[Path], list[nn.Module]]:
    """Our way; ``dtype`` "" keeps the file's own, ``small`` stores the U-Net's matrices in 8 bits."""
    from gen1_core.checkpoints.files import dtype_of, load_module, read_file
    from gen1_core.checkpoints.ldm import unet_from
    from gen1_core.checkpoints.vae import autoencoder_from
    from gen1_core.models.autoencoder import Autoencoder
    from gen1_core.models.storage import FP8_OPS
    from gen1_core.models.unet import SpaceTimeUNet

    def load(path: Path) -> list[nn.Module]:
        tensors = read_file(path).tensors
        own = TYPES[dtype] if dtype else dtype_of(tensors)
        unet, unet_config = unet_from(tensors, path)
        vae, vae_config = autoencoder_from(tensors, path)
        return [
            load_module(
                lambda: SpaceTimeUNet(unet_config, ops=FP8_OPS if small else nn),
                unet,
                device=CPU,
                dtype=own,
                path=path,
                copy=copy,
            ),
            load_module(lambda: Autoencoder(vae_config), vae, device=CPU, dtype=own, path=path, copy=copy),
        ]

    return load


def theirs(dtype: str) -> Callable[[Path], list[nn.Module]]:
    """The single-file loader of diffusers."""
    from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
    from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel

    def load(path: Path) -> list[nn.Module]:
        classes = {"unet": UNet2DConditionModel, "vae": AutoencoderKL}
        return [
            cls.from_single_file(str(path), config=str(path.parent / part), torch_dtype=TYPES[dtype])
            for part, cls in classes.items()
        ]

    return load


WAYS = {
    "ours, as it is, mapped": lambda: ours("", copy=False),
    "ours, as it is, copied": lambda: ours("", copy=True),
    "ours, float16": lambda: ours("float16", copy=False),
    "ours, bfloat16": lambda: ours("bfloat16", copy=False),
    "ours, float16 with 8 bits": lambda: ours("float16", copy=False, small=True),
    "diffusers, float32": lambda: theirs("float32"),
    "diffusers, float16": lambda: theirs("float16"),
}


def measure(way: str, path: Path) -> dict[str, float]:
    """Time and peaks of one way, in this process."""
    load = WAYS[way]()
    before = peak_mb()
    start = time.perf_counter()
    modules = load(path)
    seconds = time.perf_counter() - start
    loaded = peak_mb() - before
    start = time.perf_counter()
    with torch.no_grad():
        for module in modules:
            for parameter in module.parameters():
                parameter.float().sum()
    used = time.perf_counter() - start
    weights = sum(p.numel() * p.element_size() for module in modules for p in module.parameters()) / 2**20
    return {"seconds": seconds, "loaded": loaded, "touch": used, "used": peak_mb() - before, "weights": weights}


def main() -> None:
    """Measures every way on a file of each type and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()))
    parser.add_argument("--one", nargs=2, metavar=("WAY", "FILE"), help=argparse.SUPPRESS)
    parser.add_argument("--make", type=Path, metavar="FILE", help="only write the float32 file")
    arguments = parser.parse_args()
    if arguments.make:
        make(arguments.make, "F32")
        return
    if arguments.one:
        print(json.dumps(measure(arguments.one[0], Path(arguments.one[1]))))
        return
    for dtype in ("F32", "F16"):
        with tempfile.TemporaryDirectory(dir=arguments.folder) as folder:
            path = Path(folder) / "sd15.safetensors"
            make(path, dtype)
            configs(path.parent)
            size = path.stat().st_size / 2**20
            print(f"{dtype} file of {size:.0f} MB\n{'':27}     s   peak   used  weights  used/file")
            for way in WAYS:
                command = [sys.executable, __file__, "--one", way, str(path)]
                found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
                print(
                    f"{way:27}{found['seconds']:6.1f}{found['loaded']:7.0f}{found['used']:7.0f}{found['weights']:9.0f}"
                    f"{found['used'] / size:11.2f}",
                    flush=True,
                )
                if "as it is, mapped" in way and found["used"] > LIMIT * size:
                    raise SystemExit(f"the peak is over {LIMIT} of the file")


if __name__ == "__main__":
    main()
