"""The embedded model on an accelerator: the CPU's picture in float32, a close one in bfloat16."""

from dataclasses import replace

import pytest
import torch

from gen1_core.frames import read_depth
from gen1_core.loading import load_gen1
from gen1_core.pipeline import describe, edit, generate
from gen1_core.presets import DEMO_CLIP
from gen1_core.structure.estimator import Structure
from gen1_core.video.clip import MemoryClip
from gen1_core.video.read import open_video

pytestmark = pytest.mark.gpu


@pytest.fixture(autouse=True)
def no_tf32(monkeypatch):
    """TF32 convolutions, PyTorch's default, are about 1e-3 off; here the question is whether the code agrees."""
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    monkeypatch.setattr(torch.backends.cuda.matmul, "allow_tf32", False)


def latents(device: str, dtype: torch.dtype, depth: torch.Tensor) -> torch.Tensor:
    gen1 = load_gen1("tiny", device=device, dtype=dtype)
    content = describe(load_gen1("tiny"), prompt="a pencil sketch on white paper")
    options = replace(gen1.defaults, steps=6, temporal_scale=1.25, passes=2)
    return generate(gen1, Structure(depth=depth.to(device)), content, options).cpu()


@pytest.fixture(scope="module")
def depth() -> torch.Tensor:
    depth, _ = read_depth(load_gen1("tiny"), open_video(DEMO_CLIP, end_s=0.32))
    return depth


def test_float32_equals_the_cpu(depth):
    cpu = latents("cpu", torch.float32, depth)
    gpu = latents("cuda", torch.float32, depth)
    assert (gpu - cpu).norm() <= 1e-4 * cpu.norm()


def test_bfloat16_is_close(depth):
    exact, rounded = (latents("cuda", dtype, depth) for dtype in (torch.float32, torch.bfloat16))
    autoencoder = load_gen1("tiny").autoencoder
    pictures = [autoencoder.decode(x[0].movedim(1, 0)).clamp(-1, 1) for x in (exact, rounded)]
    error = (pictures[0] - pictures[1]).square().mean()
    assert 10 * torch.log10(4 / error) >= 40


def test_a_masked_edit_from_the_source_keeps_what_is_black():
    gen1 = load_gen1("tiny", device="cuda")
    clip = MemoryClip(torch.cat(list(open_video(DEMO_CLIP, end_s=0.16, max_size=160))))
    black = MemoryClip(torch.zeros_like(clip.frames[:1]))
    options = replace(gen1.defaults, strength=0.5, sampler="euler_ancestral")
    frames = torch.cat(list(edit(gen1, clip, describe(gen1, prompt="snow and ice"), options, mask=black)))
    torch.testing.assert_close(frames, clip.frames, rtol=0, atol=0)
