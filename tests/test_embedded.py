"""The embedded model on the demo clip: it needs nothing but torch, and every slider does what its help says."""

import hashlib
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts import encoder_of

from gen1_core.frames import read_depth
from gen1_core.gen1 import Gen1
from gen1_core.loading import PARTS, load_gen1
from gen1_core.metrics import depth_error, frame_consistency
from gen1_core.pipeline import describe, edit
from gen1_core.presets import ASSETS, DEMO_CLIP, MODELS
from gen1_core.tensors import Bytes, to_float
from gen1_core.video.clip import MemoryClip
from gen1_core.video.read import open_video

PROMPT, OTHER = "glowing lava at night", "a pencil sketch on white paper"


@pytest.fixture(scope="module")
def gen1() -> Gen1:
    return load_gen1("tiny")


@pytest.fixture(scope="module")
def clip() -> MemoryClip:
    """Eight frames, one window."""
    return MemoryClip(torch.cat(list(open_video(DEMO_CLIP, start_s=0.8, stride=2, max_size=192)))[:8])


@pytest.fixture(scope="module")
def depth(gen1, clip) -> torch.Tensor:
    return read_depth(gen1, clip)[0]


@pytest.fixture(scope="module")
def base(gen1, clip, depth) -> Bytes:
    return result(gen1, clip, depth)


def result(gen1: Gen1, clip: MemoryClip, depth: torch.Tensor, prompt: str = PROMPT, **sliders) -> Bytes:
    options = replace(gen1.defaults, passes=1, **{"steps": 6, **sliders})
    return torch.cat(list(edit(gen1, clip, describe(gen1, prompt=prompt), options, depth=depth)))


def distance(a: Bytes, b: Bytes) -> float:
    return (a.float() - b.float()).abs().mean().item()


def follows(gen1: Gen1, frames: Bytes, prompt: str = PROMPT) -> float:
    """How near the frames are to what the prior makes of the prompt."""
    content = describe(gen1, prompt=prompt).tokens[0, 0]
    return torch.cosine_similarity(encoder_of(gen1).encode_images(to_float(frames)), content).mean().item()


def change(frames: Bytes) -> float:
    """Mean change from frame to frame."""
    return (frames[1:].float() - frames[:-1].float()).abs().mean().item()


def shape_error(gen1: Gen1, frames: Bytes, depth: torch.Tensor) -> float:
    return depth_error(read_depth(gen1, MemoryClip(frames))[0], depth)


def test_two_prompts_differ_more_than_two_seeds(gen1, clip, depth, base):
    prompts = distance(base, result(gen1, clip, depth, OTHER))
    seeds = distance(base, result(gen1, clip, depth, seed=1))
    assert prompts > 1.5 * seeds > 0


def test_the_prompt_is_nearer_to_its_own_edit(gen1, clip, depth, base):
    other = result(gen1, clip, depth, OTHER)
    assert follows(gen1, base) > follows(gen1, other) + 0.2
    assert follows(gen1, base) > follows(gen1, clip.frames) + 0.2


def test_the_shapes_stay(gen1, depth, base):
    """Against the depth of a clip that has nothing to do with it: the same one, mirrored."""
    assert shape_error(gen1, base, depth) < 0.8 * shape_error(gen1, base, depth.flip(-1))


def test_more_blur_level_keeps_less_of_the_shapes(gen1, clip, depth, base):
    assert shape_error(gen1, result(gen1, clip, depth, blur_level=7), depth) > shape_error(gen1, base, depth)


def test_less_structure_strength_keeps_less_of_the_shapes(gen1, clip, depth, base):
    weak = result(gen1, clip, depth, structure_strength=0.0)
    assert shape_error(gen1, weak, depth) > shape_error(gen1, base, depth)


def test_more_structure_scale_draws_the_shapes(gen1, clip, depth, base):
    """The default is above 1, where it is off."""
    assert gen1.defaults.structure_scale > 1
    assert shape_error(gen1, result(gen1, clip, depth, structure_scale=1.0), depth) > shape_error(gen1, base, depth)


def test_more_content_scale_follows_the_prompt_more(gen1, clip, depth, base):
    none = result(gen1, clip, depth, content_scale=0.0)
    assert follows(gen1, base) > follows(gen1, none) + 0.05


def test_more_temporal_scale_is_smoother(gen1, clip, depth):
    changes = [change(result(gen1, clip, depth, temporal_scale=scale)) for scale in (0.0, 1.0, 1.5)]
    assert changes[0] > changes[1] > changes[2]


def test_less_strength_stays_nearer_to_the_source(gen1, clip, depth, base):
    gentle = result(gen1, clip, depth, strength=0.3, steps=10)
    assert distance(gentle, clip.frames) < distance(base, clip.frames)


def test_frames_hold_together(gen1, base):
    embeddings = encoder_of(gen1).encode_images(to_float(base))
    assert frame_consistency(embeddings) > 0.9


def test_a_prompt_of_unknown_words_warns(gen1, caplog):
    describe(gen1, prompt="a house made of marble")
    assert not caplog.records
    describe(gen1, prompt="quarterly bookkeeping spreadsheet")
    assert any("bookkeeping" in record.getMessage() for record in caplog.records)


@pytest.mark.slow
def test_it_runs_where_open_clip_timm_and_transformers_cannot_be_imported(tmp_path):
    code = f"""
import sys
for name in ("open_clip", "timm", "transformers", "torchvision", "torchaudio"):
    sys.modules[name] = None
from gen1_core.cli import main
sys.exit(main(["edit", {str(DEMO_CLIP)!r}, "-o", {str(tmp_path / "out.mp4")!r}, "--prompt", "gold", "--end", "0.1",
               "--steps", "1", "--max-size", "96", "--device", "cpu"]))
"""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.mp4").stat().st_size > 0


def test_the_weights_are_small_and_listed_with_their_hashes():
    readme = (ASSETS / "README.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"`([\w/.]+)` \| .*?`([0-9a-f]{64})`", readme))
    files = [path for path in ASSETS.rglob("*") if path.is_file() and path.name != "README.md"]
    assert {path.relative_to(ASSETS).as_posix() for path in files} == set(listed)
    for path in files:
        assert hashlib.sha256(path.read_bytes()).hexdigest() == listed[path.relative_to(ASSETS).as_posix()], path
    weights = [Path(MODELS["tiny"]) / f"{part}.safetensors" for part in PARTS]
    assert sum(path.stat().st_size for path in weights) <= 32e6
    assert max(path.stat().st_size for path in weights) <= 16 * 2**20
