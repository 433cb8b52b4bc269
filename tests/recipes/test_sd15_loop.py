"""The whole sampling loop of a composed model against diffusers' AnimateDiff ControlNet pipeline, run as it is."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import (
    AnimateDiffControlNetPipeline,
    AutoencoderKL,
    ControlNetModel,
    DDIMScheduler,
    DPMSolverMultistepScheduler,
    UNetMotionModel,
)
from diffusers.models.controlnets.multicontrolnet import MultiControlNetModel
from einops import rearrange
from models.references import adapter, image_unet, randomise, set_scales
from parts import relative_error, tiny_gen1
from PIL import Image

from gen1_core.checkpoints.adapters import adapter_file, attention_for_unet, nested, read_adapter
from gen1_core.checkpoints.control import controlnet_from
from gen1_core.checkpoints.files import load_module
from gen1_core.content.encoder import Content
from gen1_core.diffusion.condition import PictureTokens
from gen1_core.diffusion.noise import FrameNoise
from gen1_core.gen1 import EditOptions, Gen1
from gen1_core.models.adapter import ImageProjectionConfig, build_projection
from gen1_core.models.control import ControlNet
from gen1_core.models.motion import MotionConfig
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig
from gen1_core.pipeline import generate
from gen1_core.presets import COMPOSITIONS
from gen1_core.structure.estimator import Structure

pytestmark = pytest.mark.filterwarnings("ignore:.*__array__:DeprecationWarning")

SMALL = UNetConfig(
    in_channels=4, block_out_channels=(32, 64, 64), attention=(True, True, False), layers_per_block=1, temporal=False
)
SMALL = replace(
    SMALL, cross_attention_dim=24, picture_adapters=1, motion=MotionConfig(frames=8, middle=True, joint_norm=True)
)
FULL = UNetConfig(in_channels=4, temporal=False, picture_adapters=1, motion=MotionConfig(middle=True, joint_norm=True))
FRAMES, SIDE, STEPS, WIDTH = 5, 64, 4, 20
SCALE, STRENGTH, PICTURE = 5.0, 0.7, 0.6
SD = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "linear"}


def scheduler_of(sampler: str) -> DDIMScheduler | DPMSolverMultistepScheduler:
    if sampler == "ddim":
        return DDIMScheduler(clip_sample=False, steps_offset=1, timestep_spacing="trailing", **SD)
    return DPMSolverMultistepScheduler(final_sigmas_type="zero", timestep_spacing="trailing", **SD)


def control(config: UNetConfig, hint: int, seed: int) -> ControlNetModel:
    kinds = ["CrossAttn" if attends else "" for attends in config.attention]
    theirs = ControlNetModel(
        in_channels=4,
        down_block_types=tuple(f"{kind}DownBlock2D" for kind in kinds),
        block_out_channels=config.block_out_channels,
        layers_per_block=config.layers_per_block,
        attention_head_dim=8,
        cross_attention_dim=config.cross_attention_dim,
        conditioning_embedding_out_channels=(hint, 8, 16, 16),
    ).eval()
    randomise(theirs, seed)
    return theirs


def pipeline(config: UNetConfig, scheduler: object, controls: list[ControlNetModel]) -> AnimateDiffControlNetPipeline:
    """Theirs: real classes, random weights in every parameter."""
    image, motion = image_unet(config), adapter(config, config.motion or MotionConfig())
    randomise(image, 1)
    randomise(motion, 2)
    unet = UNetMotionModel.from_unet2d(image, motion).eval()
    vae = AutoencoderKL(block_out_channels=(8, 8, 8, 8), down_block_types=("DownEncoderBlock2D",) * 4,
                        up_block_types=("UpDecoderBlock2D",) * 4, norm_num_groups=4)  # fmt: skip
    controlnet = controls[0] if len(controls) == 1 else MultiControlNetModel(controls)
    pipe = AnimateDiffControlNetPipeline(vae, None, None, unet, None, controlnet, scheduler)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def picture_file(config: UNetConfig, seed: int = 3) -> dict[str, torch.Tensor]:
    """An IP-Adapter file: an embedding of 20 numbers to 4 tokens, and what the cross-attentions read them with."""
    generator = torch.Generator().manual_seed(seed)
    with torch.device("meta"):
        names = SpaceTimeUNet(config).state_dict()
    inside = {
        name: torch.randn(value.shape, generator=generator) * 0.2 for name, value in names.items() if "_ip." in name
    }
    sizes = ImageProjectionConfig(input_width=WIDTH, context_width=config.cross_attention_dim, tokens=4)
    projection = randomise(build_projection(sizes), seed)
    return adapter_file(projection.state_dict(), inside, config=sizes, unet=config, index=0)


def ours_of(config: UNetConfig, theirs: AnimateDiffControlNetPipeline, file: dict[str, torch.Tensor]) -> Gen1:
    """The same weights through our loaders."""
    cpu, kept, path = torch.device("cpu"), torch.float32, Path("weights")
    motion = {name: value for name, value in theirs.unet.state_dict().items() if "_ip." not in name}
    motion = {name: value for name, value in motion.items() if not name.startswith("encoder_hid_proj.")}
    tensors = {**motion, **attention_for_unet(read_adapter(file, path=path), config, index=0, path=path)}
    unet = load_module(lambda: SpaceTimeUNet(config), tensors, device=cpu, dtype=kept, path=path, copy=False)
    nets = theirs.controlnet.nets if isinstance(theirs.controlnet, MultiControlNetModel) else [theirs.controlnet]
    loaded = [controlnet_from(net.state_dict(), path, unet={}) for net in nets]
    controls = tuple(
        load_module(lambda c=sizes: ControlNet(c), state, device=cpu, dtype=kept, path=path, copy=False)
        for state, sizes in loaded
    )
    plan = COMPOSITIONS["animatediff"]
    return replace(tiny_gen1(), unet=unet, controls=controls, diffusion=plan.diffusion, defaults=plan.options)


@pytest.mark.slow
@pytest.mark.parametrize("networks", [1, 2])
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_the_loop_equals_the_pipeline_of_diffusers(sampler: str, networks: int) -> None:
    assert loop_error(SMALL, sampler, networks) <= 1e-4


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("sampler", ["ddim", "dpmpp_2m"])
def test_the_loop_of_real_size_equals_the_pipeline_of_diffusers(sampler: str) -> None:
    """SD 1.5, a motion module with a middle, a ControlNet and an IP-Adapter at their true sizes."""
    assert loop_error(FULL, sampler, 1) <= 1e-4


def loop_error(config: UNetConfig, sampler: str, networks: int) -> float:
    """How far our loop ends from theirs; and, before that, every part must count."""
    hints = [control(config, 8 + 8 * n, 4 + n) for n in range(networks)]
    theirs, file = pipeline(config, scheduler_of(sampler), hints), picture_file(config)
    theirs.unet._load_ip_adapter_weights([nested(file)], low_cpu_mem_usage=False)
    set_scales(theirs.unet, [[PICTURE] * sum(config.cross_attentions)])
    ours = ours_of(config, theirs, file)
    generator = torch.Generator().manual_seed(5)
    text, null = (torch.randn(1, 7, config.cross_attention_dim, generator=generator) for _ in range(2))
    embedding = torch.randn(1, 1, WIDTH, generator=generator)
    depths = torch.randint(0, 256, (networks, 1, 1, FRAMES, SIDE, SIDE), generator=generator) / 255
    noise = FrameNoise(seed=6, channels=4, height=SIDE // 8, width=SIDE // 8, first=0, count=FRAMES)

    pictures = [[as_picture(frame) for frame in depth[0, 0]] for depth in depths]
    expected: Any = theirs(
        prompt_embeds=text,
        negative_prompt_embeds=null,
        ip_adapter_image_embeds=[torch.cat([torch.zeros_like(embedding), embedding])],
        conditioning_frames=pictures if networks > 1 else pictures[0],
        controlnet_conditioning_scale=[STRENGTH] * networks if networks > 1 else STRENGTH,
        num_frames=FRAMES,
        height=SIDE,
        width=SIDE,
        num_inference_steps=STEPS,
        guidance_scale=SCALE,
        latents=noise.initial(),
        output_type="latent",
    )

    seen = theirs.unet.encoder_hid_proj([torch.cat([torch.zeros_like(embedding), embedding])])[0].detach()
    tokens = rearrange(seen, "two 1 k d -> two 1 1 k d")
    content = Content(
        tokens=text[:, None],
        null=null[:, None],
        kind="clip_text",
        pictures=(PictureTokens(tokens=tokens[1], null=tokens[0], scales=(PICTURE,)),),
    )
    options = EditOptions(
        steps=STEPS, sampler=sampler, spacing="trailing", content_scale=SCALE, window=8, overlap=2, seed=6
    )
    structures = [Structure(depth=depth, strength=STRENGTH) for depth in depths]
    hints = structures if networks > 1 else []
    result = generate(ours, structures[0], content, options, hints=hints)
    without_control = replace(ours, controls=())
    silent = replace(content, pictures=(replace(content.pictures[0], scales=(0.0,)),))
    still = replace(options, temporal_scale=0.0, content_scale=0.0)
    for changed in (
        generate(without_control, structures[0], content, options),
        generate(ours, structures[0], silent, options, hints=hints),
        generate(ours, structures[0], content, still, hints=hints),
    ):
        assert relative_error(changed, result) > 0.01
    return relative_error(result, expected.frames)


def as_picture(depth: torch.Tensor) -> Image.Image:
    """A frame of depth as the picture that the pipeline is given."""
    grey = (depth * 255).round().to(torch.uint8).numpy()
    return Image.fromarray(np.repeat(grey[..., None], 3, axis=2))
