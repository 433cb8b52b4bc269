"""Where the demo's time goes: seconds and share of every stage, and the FLOPs and bytes of one denoising step.

Run: python benchmarks/demo_stages.py [--threads 2] [--steps 12] [--model tiny]
"""

import argparse
import platform
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from gen1_core import describe, load_gen1, open_video, write_video
from gen1_core.frames import decode, encode_source, read_depth, size_for
from gen1_core.gen1 import Gen1
from gen1_core.models.unet import SpaceTimeUNet
from gen1_core.pipeline import generate
from gen1_core.presets import DEMO_CLIP
from gen1_core.structure.estimator import Structure


class ByteCounter(TorchDispatchMode):
    """Adds up what every operator reads and writes, as if nothing were fused or cached."""

    def __init__(self) -> None:
        super().__init__()
        self.total = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        is_view = func._schema.returns and func._schema.returns[0].alias_info is not None
        if not is_view:
            tensors = [leaf for leaf in tree_leaves((args, kwargs, out)) if isinstance(leaf, torch.Tensor)]
            self.total += sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        return out


def step_cost(gen1: Gen1, *, frames: int, height: int, width: int) -> tuple[float, float]:
    """GFLOP and GB of one call of the U-Net for one window and one condition, counted without running it."""
    with torch.device("meta"):
        unet = SpaceTimeUNet(gen1.unet.config)
        x = torch.empty(1, gen1.unet.config.in_channels, frames, height, width)
        timestep, content = torch.empty(1), torch.empty(1, 1, 1, gen1.unet.config.cross_attention_dim)
        with torch.no_grad(), FlopCounterMode(display=False) as flops, ByteCounter() as moved:
            unet(x, timestep, content)
    return flops.get_total_flops() / 1e9, moved.total / 1e9


def main() -> None:
    """Runs the stages one by one on the demo clip and prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=0, help="0: the model's default")
    parser.add_argument("--model", default="tiny")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)

    seconds: dict[str, float] = {}

    def timed(stage, work):
        started = time.perf_counter()
        result = work()
        seconds[stage] = time.perf_counter() - started
        return result

    gen1 = timed("load", lambda: load_gen1(arguments.model))
    options = replace(gen1.defaults, passes=1, steps=arguments.steps or gen1.defaults.steps)
    clip = open_video(DEMO_CLIP)
    timed("read", lambda: sum(len(chunk) for chunk in clip))
    size = size_for(gen1, clip)
    depth, _ = timed("depth", lambda: read_depth(gen1, clip))
    timed("encode", lambda: encode_source(gen1, clip, chunk=options.chunk))
    content = timed("content", lambda: describe(gen1, prompt="a pencil sketch on white paper"))
    latents = timed("sample", lambda: generate(gen1, Structure(depth=depth), content, options))
    frames = timed("decode", lambda: list(decode(gen1, latents, clip, chunk=options.chunk)))
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "out.mp4"
        timed("write", lambda: write_video(out, iter(frames), frame_rate=clip.frame_rate, audio_from=DEMO_CLIP))

    print(f"{platform.processor() or platform.machine()}, {arguments.threads} threads, torch {torch.__version__}")
    print(f"{clip.num_frames} frames of {clip.width}x{clip.height}, edited at {size}, {options.steps} steps")
    print("reading is timed apart, and once more inside depth and encode\n")
    total = sum(seconds.values())
    for stage, spent in seconds.items():
        print(f"{stage:8} {spent:7.2f} s {100 * spent / total:5.1f} %")
    print(f"{'all':8} {total:7.2f} s")
    window = min(gen1.unet.config.frames, clip.num_frames)
    gflop, gigabytes = step_cost(gen1, frames=window, height=size.padded_height // 8, width=size.padded_width // 8)
    print(f"\none U-Net call, {window} frames, one condition: {gflop:.2f} GFLOP, {gigabytes:.3f} GB moved (unfused)")
    print("a step with content guidance makes two such calls for every window")


if __name__ == "__main__":
    main()
