"""Public networks as diffusers builds them, in the sizes of one of our configs, and with random weights."""

from collections.abc import Sequence

import torch
from diffusers import MotionAdapter, UNet2DConditionModel, UNetMotionModel
from diffusers.models.attention_processor import IPAdapterAttnProcessor2_0
from einops import rearrange, repeat
from torch import Tensor, nn

from gen1_core.models.motion import MotionConfig
from gen1_core.models.unet import UNetConfig


def image_unet(config: UNetConfig) -> UNet2DConditionModel:
    """The image model of these sizes."""
    kinds = ["CrossAttn" if attends else "" for attends in config.attention]
    unclip = {"class_embed_type": "projection", "projection_class_embeddings_input_dim": config.class_embedding_width}
    return UNet2DConditionModel(
        in_channels=config.in_channels,
        out_channels=config.out_channels,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        up_block_types=tuple(f"{kind}UpBlock2D" for kind in reversed(kinds)),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=config.num_attention_heads,
        cross_attention_dim=config.cross_attention_dim,
        norm_num_groups=config.norm_num_groups,
        use_linear_projection=config.use_linear_projection,
        **(unclip if config.class_embedding_width else {}),
    ).eval()


def adapter(config: UNetConfig, motion: MotionConfig) -> MotionAdapter:
    """The motion modules alone."""
    return MotionAdapter(
        block_out_channels=config.block_out_channels,
        motion_layers_per_block=config.layers_per_block,
        motion_num_attention_heads=motion.heads,
        motion_norm_num_groups=motion.norm_num_groups,
        motion_max_seq_length=motion.frames,
        use_motion_mid_block=motion.middle,
    ).eval()


def motion_unet(image: UNet2DConditionModel, modules: MotionAdapter, *, load_weights: bool) -> UNetMotionModel:
    """Both together, as its pipelines do it; without weights where they are to be assigned."""
    model = UNetMotionModel.from_unet2d(image, modules, load_weights=load_weights)
    assert isinstance(model, UNetMotionModel)
    return model


def randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    """Matrices keep the variance, scales of norms lie around one, nothing is zero."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.empty_like(parameter).normal_(generator=generator)
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        spread = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.2
        with torch.no_grad():
            parameter.copy_(centre + spread * noise)
    return module


def inputs(config: UNetConfig, *, frames: int, size: int = 8, tokens: int = 5, batch: int = 2) -> tuple[Tensor, ...]:
    """Noisy latents, timesteps and content, always the same."""
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, config.in_channels, frames, size, size, generator=generator)
    content = torch.randn(batch, 1, tokens, config.cross_attention_dim, generator=generator)
    return x, torch.linspace(37, 961, batch), content


def run_image(theirs: UNet2DConditionModel, x: Tensor, timestep: Tensor, content: Tensor, **more: object) -> Tensor:
    """The image model with frames as its batch."""
    frames = x.shape[2]
    out = theirs(
        rearrange(x, "b c f h w -> (b f) c h w"),
        repeat(timestep, "b -> (b f)", f=frames),
        repeat(content, "b g n d -> (b g f) n d", f=frames // content.shape[1]),
        **more,
    ).sample
    return rearrange(out, "(b f) c h w -> b c f h w", f=frames)


def run_motion(theirs: UNetMotionModel, x: Tensor, timestep: Tensor, content: Tensor, **more: object) -> Tensor:
    """The video model, which wants its content once per frame, as its pipeline gives it."""
    per_frame = repeat(content, "b g n d -> (b g f) n d", f=x.shape[2] // content.shape[1])
    return theirs(x, timestep, per_frame, **more).sample


def set_scales(theirs: UNet2DConditionModel | UNetMotionModel, scales: Sequence[Sequence[float]]) -> None:
    """One scale per IP-Adapter and cross-attention, in the order of the file: down, up, middle."""
    processors = [each for each in theirs.attn_processors.values() if isinstance(each, IPAdapterAttnProcessor2_0)]
    for processor, each in zip(processors, zip(*scales, strict=True), strict=True):
        processor.scale = list(each)
