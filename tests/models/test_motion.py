"""Motion modules against diffusers' AnimateDiffTransformer3D, and as AnimateDiff's own code normalises them."""

from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from diffusers.models.embeddings import SinusoidalPositionalEmbedding
from diffusers.models.unets.unet_motion_model import AnimateDiffTransformer3D
from einops import rearrange
from models.references import randomise
from parts import relative_error
from torch import Tensor, nn

from gen1_core.models.motion import MotionConfig, MotionModule, positions

WIDTH = 32
CONFIG = MotionConfig(frames=6, heads=4, norm_num_groups=8, joint_norm=True)


class EachFrame(nn.Module):
    """A group norm that sees every frame of "b c f h w" alone, as in AnimateDiff's own code."""

    def __init__(self, norm: nn.Module):
        super().__init__()
        self.norm = norm

    def forward(self, x: Tensor) -> Tensor:
        each = self.norm(rearrange(x, "b c f h w -> (b f) c h w"))
        return rearrange(each, "(b f) c h w -> b c f h w", f=x.shape[2])


def reference(config: MotionConfig) -> AnimateDiffTransformer3D:
    module = AnimateDiffTransformer3D(
        num_attention_heads=config.heads,
        attention_head_dim=WIDTH // config.heads,
        in_channels=WIDTH,
        norm_num_groups=config.norm_num_groups,
        double_self_attention=config.attentions == 2,
        positional_embeddings="sinusoidal",
        num_positional_embeddings=config.frames,
    )
    randomise(module)
    return module.eval()


def pair(config: MotionConfig) -> tuple[MotionModule, AnimateDiffTransformer3D]:
    theirs = reference(config)
    ours = MotionModule(WIDTH, config).eval()
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours, theirs


def clip(frames: int, batch: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(batch * frames, WIDTH, 5, 3, generator=generator)


@torch.no_grad()
@pytest.mark.parametrize("attentions", [1, 2])
@pytest.mark.parametrize("frames", [2, 6])
def test_equals_diffusers(attentions: int, frames: int) -> None:
    ours, theirs = pair(replace(CONFIG, attentions=attentions))
    x = clip(frames)
    assert relative_error(ours(x, frames), theirs(x, num_frames=frames)) <= 1e-5
    assert relative_error(ours(x, frames), x) > 0.01


@torch.no_grad()
def test_each_frame_is_normalised_alone_as_in_animatediff() -> None:
    ours, theirs = pair(replace(CONFIG, joint_norm=False))
    # Frames of different brightness, else both norms would be the same.
    x = clip(6) * torch.linspace(0.2, 3, 12)[:, None, None, None]
    joint = theirs(x, num_frames=6)
    theirs.norm = EachFrame(theirs.norm)
    assert relative_error(ours(x, 6), theirs(x, num_frames=6)) <= 1e-5
    assert relative_error(ours(x, 6), joint) > 0.01


@torch.no_grad()
@pytest.mark.parametrize(
    "part", ["proj_in", "transformer_blocks.0.attn1.to_v", "transformer_blocks.0.attn2.to_v", "transformer_blocks.0.ff"]
)
def test_every_part_counts(part: str) -> None:
    ours, _ = pair(CONFIG)
    before = ours(clip(6), 6)
    for parameter in ours.get_submodule(part).parameters():
        parameter.zero_()
    assert relative_error(ours(clip(6), 6), before) > 0.01


@torch.no_grad()
def test_positions_tell_the_order() -> None:
    ours, _ = pair(replace(CONFIG, joint_norm=False))
    x = rearrange(clip(6), "(b f) c h w -> b f c h w", f=6)
    ahead = ours(rearrange(x, "b f c h w -> (b f) c h w"), 6)
    back = ours(rearrange(x.flip(1), "b f c h w -> (b f) c h w"), 6)
    back = rearrange(rearrange(back, "(b f) c h w -> b f c h w", f=6).flip(1), "b f c h w -> (b f) c h w")
    assert relative_error(back, ahead) > 0.01


def test_positions_are_those_of_diffusers() -> None:
    torch.testing.assert_close(positions(64, 320), SinusoidalPositionalEmbedding(320, 64).pe, rtol=0, atol=0)


@torch.no_grad()
def test_a_new_one_changes_nothing_and_learns() -> None:
    module = MotionModule(WIDTH, CONFIG)
    torch.testing.assert_close(module(clip(6), 6), clip(6), rtol=0, atol=0)
    with torch.enable_grad():
        (module(clip(6), 6) - 1).square().mean().backward()
    assert module.proj_out.weight.grad is not None and module.proj_out.weight.grad.any()


def test_layers_come_from_the_given_namespace() -> None:
    class Marked:
        """What a layer of the namespace is known by."""

    layers = ("Linear", "Conv2d", "GroupNorm", "LayerNorm", "Embedding")
    ops = SimpleNamespace(**{name: type(name, (getattr(nn, name), Marked), {}) for name in layers})
    for module in MotionModule(WIDTH, CONFIG, ops=ops).modules():
        assert isinstance(module, Marked) or not list(module.parameters(recurse=False)), module


@torch.no_grad()
def test_bfloat16_in_bfloat16_out() -> None:
    ours, _ = pair(CONFIG)
    exact = ours(clip(6), 6)
    rough = ours.to(torch.bfloat16)(clip(6).to(torch.bfloat16), 6)
    assert rough.dtype == torch.bfloat16
    assert relative_error(rough.float(), exact) < 0.05


@pytest.mark.parametrize("wrong", [{"frames": 0}, {"attentions": 3}, {"heads": 0}, {"norm_num_groups": 0}])
def test_config_refuses_what_cannot_be_built(wrong: dict) -> None:
    with pytest.raises(ValueError, match="one or two attentions"):
        MotionConfig(**wrong)
