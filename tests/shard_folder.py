"""A folder of prepared shards whose values say where they come from."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from gen1_core.training.prepare.files import ShardWriter, finish_index, whole, write_json
from gen1_core.training.shards import FORMAT, shard_path

SIZES = [(9, 32, 48)] * 4 + [(9, 32, 32)] * 4 + [(1, 32, 48)] * 2


def write_folder(folder: Path, *, width: int = 16, channels: int = 4, first: int = 0) -> Path:
    """Ten samples of two looks, whose values say number (from ``first``), look and frame; two of them are pictures."""
    folder.mkdir(exist_ok=True)
    write_json(folder / "prepare.json", {"format": FORMAT, "config": {}, "weights": {"autoencoder": "one"}})
    save_file({"32x48": torch.full((4, 4, 6), -3.0), "32x32": torch.full((4, 4, 4), -3.0)}, folder / "flat.safetensors")
    path = shard_path(folder, 0)
    with whole(path) as stream:
        writer = ShardWriter(stream)
        for number, (frames, height, wide) in enumerate(SIZES, first):
            h, w, f = height // 8, wide // 8, torch.arange(float(frames))
            look = torch.arange(2.0)[:, None]
            value = (100 * number + 10 * look + f)[:, None, :, None, None]
            tensors = {
                "rgb": value.expand(2, channels, frames, h, w).half().contiguous(),
                "depth": (value + 0.5).expand(2, channels, frames, h, w).half().contiguous(),
                "images": value[:, 0, :, 0].expand(2, frames, width).half().contiguous(),
                "texts": torch.zeros(2, 0, width).half(),
            }
            about = {"kind": "video", "source": f"clip{number}", "first": 0, "stride": 2, "frames": frames}
            about |= {"height": height, "width": wide, "levels": (0, 3), "captions": [[], []], "looks": ["", ""]}
            writer.add(f"{number:08d}", tensors, {**about, "family": ""})
        writer.close()
    finish_index(path, writer.samples, [], identity="x")
    return folder
