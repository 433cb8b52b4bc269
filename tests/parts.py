"""A whole Gen-1 at the smallest size, with random weights in every parameter: real classes, nothing trained."""

from pathlib import Path

import torch
from torch import nn

from gen1_core.checkpoints.files import save_file
from gen1_core.content.clip import EmbeddedClip
from gen1_core.content.describe import PriorDescriber
from gen1_core.content.encoder import ContentEncoder
from gen1_core.content.tokenizer import Tokenizer
from gen1_core.gen1 import Diffusion, EditOptions, Gen1
from gen1_core.loading import as_metadata
from gen1_core.models.autoencoder import Autoencoder, AutoencoderConfig
from gen1_core.models.clip import CLIP, CLIPConfig
from gen1_core.models.depth import DepthNet, DepthNetConfig
from gen1_core.models.prior import Prior, PriorConfig
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig
from gen1_core.structure.estimator import network_estimator

UNET = UNetConfig(
    block_out_channels=(16, 32),
    layers_per_block=1,
    attention=(True, True),
    num_attention_heads=2,
    cross_attention_dim=16,
    norm_num_groups=4,
    frames=4,
)
DEPTH = DepthNetConfig(channels=(4, 8), norm_num_groups=2, train_size=32)
AUTOENCODER = AutoencoderConfig(
    block_out_channels=(8, 8, 16, 16), layers_per_block=1, norm_num_groups=4, latent_scale=0.5
)


def randomised(module: nn.Module, seed: int = 0, scale: float = 0.2) -> nn.Module:
    """Every parameter random and none zero: a freshly initialised zero layer would prove nothing."""
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in module.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        fan_in = parameter[0].numel() if parameter.dim() > 1 else 1
        centre = 1.0 if "norm" in name and name.endswith("weight") else 0.0
        parameter.data = centre + noise * (fan_in**-0.5 if parameter.dim() > 1 else scale)
    return module.eval()


def relative_error(ours: torch.Tensor, reference: torch.Tensor) -> float:
    """Norm of the difference over norm of the reference: 1e-5 is rounding in float32, one forward pass."""
    return ((ours - reference).norm() / reference.norm()).item()


def tiny_gen1(seed: int = 0, *, working_size: int = 32) -> Gen1:
    """Random weights everywhere; what it makes means nothing, but every wire of the real thing is there."""
    torch.manual_seed(seed)
    tokenizer = Tokenizer.embedded(context_length=8)
    clip = CLIP(
        CLIPConfig(
            embed_dim=16,
            image_size=32,
            patch_size=16,
            vision_width=16,
            vision_layers=1,
            vision_heads=2,
            text_width=16,
            text_layers=1,
            text_heads=2,
            context_length=8,
            vocab_size=tokenizer.vocab_size,
        )
    )
    depth = DepthNet(DEPTH)
    prior = Prior(PriorConfig(dim=16, width=16, depth=1, heads=2))
    return Gen1(
        unet=randomised(SpaceTimeUNet(UNET), seed),
        autoencoder=randomised(Autoencoder(AUTOENCODER), seed + 1),
        depth=network_estimator(randomised(depth, seed + 2)),
        describer=PriorDescriber(
            encoder=EmbeddedClip(randomised(clip, seed + 3), tokenizer), prior=randomised(prior, seed + 4)
        ),
        diffusion=Diffusion(working_size=working_size),
        defaults=EditOptions(steps=2, content_scale=2.0, sampler="euler", overlap=2, passes=1),
    )


def encoder_of(gen1: Gen1) -> ContentEncoder:
    """The encoder of a model that draws its content with a prior."""
    assert isinstance(gen1.describer, PriorDescriber)
    return gen1.describer.encoder


def write_model(gen1: Gen1, folder: Path) -> Path:
    """The parts as the five files of a model folder, as training exports them."""
    folder.mkdir(parents=True, exist_ok=True)
    assert isinstance(gen1.describer, PriorDescriber) and isinstance(gen1.describer.encoder, EmbeddedClip)
    depth = randomised(DepthNet(DEPTH), 2)
    modules = {
        "unet": gen1.unet,
        "autoencoder": gen1.autoencoder,
        "depth": depth,
        "clip": gen1.describer.encoder.clip,
        "prior": gen1.describer.prior,
    }
    for part, module in modules.items():
        metadata = as_metadata(gen1.diffusion, gen1.defaults) if part == "unet" else {}
        path = folder / f"{part}.safetensors"
        save_file(path, module.state_dict(), kind=part, config=module.config, metadata=metadata)
    return folder
