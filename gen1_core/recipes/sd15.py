"""Public weights as one Gen-1: Stable Diffusion, a motion module, control networks, IP-Adapters, each from its file.

    checkpoint (any SD 1.5 finetune) --> U-Net, autoencoder, text encoder
    motion module -------------------> temporal layers (without them: mu^pi of Eq. 8)
    ControlNet or T2I adapter -------> structure
    IP-Adapter and CLIP vision ------> content from a picture, beside the prompt
    LoRA ----------------------------> merged into U-Net and text encoder
    depth network -------------------> structure of the clip

``read`` looks at every file and refuses what does not belong together before anything is converted; ``compose`` builds.
What the composition samples with by itself is in ``presets.COMPOSITIONS``.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoints.adapters import Adapter, attention_for_unet, read_adapter, read_statistics, statistics_of
from ..checkpoints.clip import text_tower_from, vision_from
from ..checkpoints.control import check_control, controlnet_from, t2i_adapter_from, tiny_autoencoder_from
from ..checkpoints.depth import depth_network, load_depth_network
from ..checkpoints.files import load_module, read_file
from ..checkpoints.formats import folder_parts, identify_path
from ..checkpoints.ldm import prediction_of, split_checkpoint, unet_from
from ..checkpoints.lora import load_lora, merge
from ..checkpoints.motion import LCM_FRAMES, betas_of, motion_from, with_motion
from ..checkpoints.vae import autoencoder_from
from ..content.describe import PublicDescriber
from ..content.picture import PictureEncoder, UnclipEncoder
from ..content.text import sd_text_encoder
from ..diffusion.prediction import Prediction
from ..gen1 import Gen1, beside_channels
from ..loading import load_gen1
from ..models.adapter import TOWERS, block_scales, build_projection, require_tower
from ..models.autoencoder import Autoencoder, FrameCodec
from ..models.clip import CLIPConfig, TextTower, VisionTransformer
from ..models.control import ControlNet, ControlNetConfig, T2IAdapter, T2IAdapterConfig
from ..models.storage import FP8_OPS
from ..models.taesd import TinyAutoencoder
from ..models.unet import SpaceTimeUNet, UNetConfig
from ..presets import COMPOSITIONS
from ..structure.dpt import dpt_estimator
from ..structure.estimator import DepthEstimator
from .sd15_files import PublicFiles, check_kinds, without_folders

logger = logging.getLogger(__name__)

Tensors = Mapping[str, Tensor]

IN_FOLDERS = {
    "unet": "unet",
    "vae": "vae",
    "text_encoder": "text",
    "image_encoder": "vision",
    "depth_estimator": "depth",
    "image_normalizer": "statistics",
}
"""The parts of a checkpoint by the folders that diffusers keeps them in."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Everything read and checked, nothing built: tensors under our names (mapped, not copied), and their configs."""

    files: PublicFiles
    composition: str
    prediction: Prediction
    unet: UNetConfig
    text: CLIPConfig
    parts: Mapping[str, Tensors]
    adapters: tuple[Adapter, ...]
    controls: tuple[tuple[Tensors, ControlNetConfig | T2IAdapterConfig, Path], ...]


def read(files: PublicFiles, *, prediction: Prediction | None = None) -> Plan:
    """Read all files and refuse, before any heavy work, what does not belong together.

    ``prediction`` overrules what the checkpoint seems to predict, for finetunes that do not tell; None keeps that.

    Raises ValueError for files of another kind than the one asked for, or of another family than the checkpoint.
    """
    files = without_folders(files)
    check_kinds(files)
    parts = read_checkpoint(files.checkpoint)
    unet, config = unet_from(parts.pop("unet"), files.checkpoint)
    known = prediction_of(unet, config)
    composition = composition_of(config, known)
    if files.motion is not None:
        unet, config, composition = add_motion(unet, config, files.motion)
    adapters = tuple(read_adapter(read_file(path).tensors, path=path) for path in files.ip_adapters)
    config = replace(config, picture_adapters=len(adapters))
    for index, (adapter, path) in enumerate(zip(adapters, files.ip_adapters, strict=True)):
        unet = {**unet, **attention_for_unet(adapter, config, index=index, path=path)}
    controls = tuple(read_control(path, unet, config) for path in files.controls)
    require_parts(files, parts, config)
    require_vision(files, parts, config, adapters)
    text, text_config = text_of(files, parts, config)
    for path, weight in files.loras:
        lora = load_lora(path)
        if lora.unet or not lora.text:
            unet = merge(unet, lora, weight=weight, part="unet")
        if lora.text:
            text = merge(text, lora, weight=weight, part="text")
    return Plan(
        files=files,
        composition=composition,
        prediction=prediction or known,
        unet=config,
        text=text_config,
        parts={**parts, "unet": unet, "text": text},
        adapters=adapters,
        controls=controls,
    )


def composition_of(config: UNetConfig, prediction: Prediction) -> str:
    """Which of ``presets.COMPOSITIONS`` a checkpoint alone is."""
    if config.class_embedding_width:
        return "unclip"
    if beside_channels(config) > 0:
        return "sd2_depth"
    if not config.use_linear_projection:
        return "image"
    return "sd2_768" if prediction == "v" else "sd2"


def compose(
    plan: Plan, *, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, fp8: bool = False
) -> Gen1:
    """Build the model of a plan. With ``fp8`` the U-Net's and the control networks' matrices are stored in 8 bits.

    Depth stays in float32, and so do the states that the text encoder and the vision tower give.
    """
    place, files = torch.device(device), plan.files
    ops = FP8_OPS if fp8 else nn

    def module(build: Callable[[], nn.Module], tensors: Tensors, path: Path) -> Any:
        return load_module(build, tensors, device=place, dtype=dtype, path=path, copy=False)

    unet = module(lambda: SpaceTimeUNet(plan.unet, ops=ops), plan.parts["unet"], files.checkpoint)
    controls = [module(lambda c=config: control_of(c, ops), tensors, path) for tensors, config, path in plan.controls]
    known = COMPOSITIONS[plan.composition]
    schedule = replace(known.diffusion.schedule, betas=betas_of(plan.unet))
    return Gen1(
        unet=unet,
        autoencoder=load_autoencoder(plan, module),
        depth=load_depth(plan, place),
        describer=PublicDescriber(
            text=sd_text_encoder(module(lambda: TextTower(plan.text), plan.parts["text"], files.checkpoint)),
            adapters=tuple(load_adapters(plan, module)),
            unclip=tuple(load_unclip(plan, module)),
        ),
        diffusion=replace(known.diffusion, prediction=plan.prediction, schedule=schedule),
        defaults=known.options,
        controls=tuple(controls),
    )


Module = Callable[[Callable[[], nn.Module], Tensors, Path], Any]


def read_checkpoint(path: Path) -> dict[str, Tensors]:
    """The parts of a checkpoint by name ("unet", "vae", "text", ...): a single file, a U-Net alone, or a folder."""
    if path.is_dir():
        found = {IN_FOLDERS[name]: file for name, file in folder_parts(path).items() if name in IN_FOLDERS}
        return {name: read_file(file).tensors for name, file in found.items()}
    tensors = read_file(path).tensors
    whole = identify_path(path).kind == "checkpoint"
    return dict(split_checkpoint(tensors, path)) if whole else {"unet": tensors}


def add_motion(unet: Tensors, config: UNetConfig, path: Path) -> tuple[Tensors, UNetConfig, str]:
    """The U-Net with a motion module, its config, and which composition that makes."""
    tensors = read_file(path).tensors
    layers, motion = motion_from(tensors, path)
    config = with_motion(config, layers, motion, path=path)
    if not any("pos_e" in name for name in tensors):
        return {**unet, **layers}, config, "animatelcm"
    composition = "long_animatediff" if motion.middle and motion.frames >= LCM_FRAMES else "animatediff"
    return {**unet, **layers}, config, composition


def read_control(
    path: Path, unet: Tensors, config: UNetConfig
) -> tuple[Tensors, ControlNetConfig | T2IAdapterConfig, Path]:
    """A ControlNet or a T2I adapter, whichever the file is, checked against the U-Net."""
    tensors = read_file(path).tensors
    if identify_path(path).kind == "t2i_adapter":
        ours, control = t2i_adapter_from(tensors, path)
    else:
        ours, control = controlnet_from(tensors, path, unet=unet)
    check_control(control, config, path=path)
    return ours, control, path


def control_of(config: ControlNetConfig | T2IAdapterConfig, ops: Any) -> ControlNet | T2IAdapter:
    """The network that a config describes."""
    return T2IAdapter(config, ops=ops) if isinstance(config, T2IAdapterConfig) else ControlNet(config, ops=ops)


def require_parts(files: PublicFiles, parts: Mapping[str, Tensors], unet: UNetConfig) -> None:
    """Refuses a composition that lacks something or has too much, and names the file to look for."""
    if not files.vae and "vae" not in parts:
        raise ValueError(
            f"{files.checkpoint} holds no autoencoder, and without one there are no pictures; give --vae, such as "
            "vae-ft-mse-840000-ema-pruned.safetensors, or a whole checkpoint."
        )
    if [identify_path(path).kind for path in files.vae].count("vae") and len(files.vae) > 1:
        raise ValueError(
            f"--vae got {len(files.vae)} files ({', '.join(path.name for path in files.vae)}), and one autoencoder is "
            "used; give one, or the two halves of TAESD."
        )
    if files.vae and identify_path(files.vae[0]).kind == "taesd":
        tiny_autoencoder_from({path: read_file(path).tensors for path in files.vae})
    if files.text_encoder is None and "text" not in parts:
        raise ValueError(
            f"{files.checkpoint} holds no text encoder, and a prompt needs one; give --text-encoder "
            "(text_encoder/model.safetensors of the same family), or a whole checkpoint."
        )
    if unet.class_embedding_width == 2 * 768 and files.statistics is None and "statistics" not in parts:
        raise ValueError(
            f"{files.checkpoint} is SD-unCLIP L, which needs the statistics of its embeddings, and they are not in the "
            "checkpoint; give --statistics with ViT-L-14_stats.th."
        )


def require_vision(
    files: PublicFiles, parts: Mapping[str, Tensors], unet: UNetConfig, adapters: Sequence[Adapter]
) -> None:
    """Refuses pictures that nothing could look at, and a CLIP vision file of another size than was trained with."""
    path = files.clip_vision
    if path is None and adapters:
        wanted = TOWERS[adapters[0].config.reads].get(adapters[0].config.input_width, "the tower it was trained on")
        raise ValueError(
            f"{files.ip_adapters[0]} looks at pictures through CLIP vision, and no such file was given; give "
            f"--clip-vision with {wanted} (for most IP-Adapters CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors)."
        )
    if path is None and unet.class_embedding_width and "vision" not in parts:
        raise ValueError(
            f"{files.checkpoint} is an SD-unCLIP model without its CLIP vision tower; give --clip-vision, or the whole "
            "checkpoint sd21-unclip-h.ckpt."
        )
    if path is None:
        return
    _, tower = vision_from(read_file(path).tensors, path)
    for adapter in adapters:
        require_tower(adapter.config, embedding_width=tower.embed_dim, hidden_width=tower.vision_width)
    if unet.class_embedding_width not in (0, 2 * tower.embed_dim):
        raise ValueError(
            f"{path} gives embeddings {tower.embed_dim} wide, but {files.checkpoint} reads embeddings "
            f"{unet.class_embedding_width // 2} wide; leave --clip-vision out, since the checkpoint brings its own."
        )


def text_of(files: PublicFiles, parts: Mapping[str, Tensors], unet: UNetConfig) -> tuple[dict[str, Tensor], CLIPConfig]:
    """The text encoder under our names: the file given for it, else the checkpoint's own."""
    path = files.text_encoder or files.checkpoint
    given = parts["text"] if files.text_encoder is None else read_file(path).tensors
    tensors, config = text_tower_from(given, path)
    if config.text_width != unet.cross_attention_dim:
        raise ValueError(
            f"{path} is a text encoder {config.text_width} wide, but the U-Net reads tokens "
            f"{unet.cross_attention_dim} wide; give the text encoder of its own family, or leave it out."
        )
    return tensors, config


def load_autoencoder(plan: Plan, module: Module) -> FrameCodec:
    """The VAE given, or TAESD from its files, else the checkpoint's own."""
    paths = plan.files.vae
    if not paths:
        tensors, path = plan.parts["vae"], plan.files.checkpoint
    elif identify_path(paths[0]).kind == "taesd":
        ours, tiny = tiny_autoencoder_from({path: read_file(path).tensors for path in paths})
        return module(lambda: TinyAutoencoder(tiny), ours, paths[0])
    else:
        tensors, path = read_file(paths[0]).tensors, paths[0]
    ours, config = autoencoder_from(tensors, path)
    return module(lambda: Autoencoder(config), ours, path)


def vision_tower(plan: Plan, module: Module) -> VisionTransformer:
    """The CLIP vision file given, else unCLIP's own tower."""
    path = plan.files.clip_vision or plan.files.checkpoint
    tensors = plan.parts["vision"] if plan.files.clip_vision is None else read_file(path).tensors
    ours, config = vision_from(tensors, path)
    return module(lambda: VisionTransformer(config), ours, path)


def load_adapters(plan: Plan, module: Module) -> list[PictureEncoder]:
    """An encoder for each IP-Adapter, all looking through one vision tower."""
    if not plan.adapters:
        return []
    tower = vision_tower(plan, module)
    return [
        PictureEncoder(
            tower,
            module(lambda a=adapter: build_projection(a.config), adapter.projection, path),
            scales=scales_of(plan.files.ip_scale, plan.unet),
        )
        for adapter, path in zip(plan.adapters, plan.files.ip_adapters, strict=True)
    ]


def scales_of(scale: float | Mapping[str, float], unet: UNetConfig) -> tuple[float, ...]:
    """One scale for all cross-attentions, or one for each, from the names of blocks (those not named are silent)."""
    return block_scales(unet, scale) if isinstance(scale, Mapping) else (scale,)


def load_unclip(plan: Plan, module: Module) -> list[UnclipEncoder]:
    """unCLIP's encoder, where the U-Net takes its embedding."""
    width = plan.unet.class_embedding_width // 2
    if not width:
        return []
    tower = vision_tower(plan, module)
    if plan.files.statistics is not None:
        mean, std = read_statistics(plan.files.statistics)
    elif "statistics" in plan.parts:
        mean, std = statistics_of(plan.parts["statistics"], path=plan.files.checkpoint)
    else:
        mean, std = torch.zeros(width), torch.ones(width)
    return [UnclipEncoder(tower, mean=mean, std=std)]


def load_depth(plan: Plan, place: torch.device) -> DepthEstimator:
    """The depth network given, else SD2-depth's own, else the embedded model's, which is only a rough one."""
    if plan.files.depth is not None:
        return dpt_estimator(load_depth_network(plan.files.depth, device=place, dtype=torch.float32))
    if "depth" in plan.parts:
        path = plan.files.checkpoint
        return dpt_estimator(depth_network(plan.parts["depth"], path=path, device=place, dtype=torch.float32))
    if plan.controls or plan.unet.in_channels > 4:
        logger.warning(
            "No depth network was given, so the embedded one is used, which sees shapes roughly; give --depth with "
            "Depth Anything V2 (depth_anything_v2_vits) or MiDaS for sharp structure."
        )
    return load_gen1("tiny", device=place).depth
