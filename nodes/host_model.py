"""Part of the adapter: our U-Net as the core's model, for its samplers, its LoRA loaders and its memory management.

LATENT is ``[frames, c, h, w]``: for the core a batch of pictures, for us one clip, or several passes of it one after
the other.
"""

import logging
from dataclasses import replace
from typing import Any

import comfy.conds
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.patcher_extension
import comfy.sd
import comfy.supported_models_base
import torch
from einops import rearrange
from torch import Tensor

from ..gen1_core.diffusion.condition import Condition
from ..gen1_core.diffusion.windows import blend_weights, plan
from ..gen1_core.gen1 import Gen1, compute_dtype
from ..gen1_core.models.control import control_residuals
from ..gen1_core.models.unet import SpaceTimeUNet, UNetConfig
from .host_networks import attach, device
from .host_progress import several_frames
from .host_sampling import LatentFormat, sampling_of, settings_of
from .renamed import core_config, renamed
from .residuals import added, in_window, residuals_of
from .told import Told, by_pass, check_tokens, check_told, nothing_told, window_of

logger = logging.getLogger(__name__)

TYPES = {"eps": "EPS", "v": "V_PREDICTION", "clean": "EPS"}
"""The core's model types, which saved files and some nodes ask for."""

OWN_KEY = "gen1"
"""Of our own wrapper among those of other nodes."""


class Config(comfy.supported_models_base.BASE):
    """What the core keeps of how a model was made; ModelSampling nodes read the schedule from it."""

    unet_extra_config: dict[str, Any] = {}

    def __init__(self, gen1: Gen1):
        super().__init__(core_config(gen1.unet.config))
        self.latent_format = LatentFormat(gen1.autoencoder)
        self.sampling_settings = settings_of(gen1.diffusion.schedule)
        dtype = compute_dtype(gen1.unet)
        self.set_inference_dtype(dtype, comfy.model_management.unet_manual_cast(dtype, device()))
        if any(weight.dtype != dtype for weight in gen1.unet.parameters()):
            self.custom_operations = comfy.ops.manual_cast
        # The core's figure for Stable Diffusion is 1; what a step takes grows with the width of the maps.
        self.memory_usage_factor = gen1.unet.config.block_out_channels[0] / 320 * (1.5 if gen1.controls else 1.0)


class ClipCond(comfy.conds.CONDRegular):
    """A ``Told`` among the core's condition objects: never repeated, never cut but to an area."""

    cond: Told

    def process_cond(self, batch_size: int, area: Any = None, **kwargs: Any) -> "ClipCond":
        """Refuses frames it was not made for."""
        if self.cond.size[0] not in (1, batch_size):
            raise ValueError(
                f"{batch_size} of {self.cond.size[0]} frames are to be sampled alone, and which of the depth is theirs "
                "cannot be told; remove the Context Windows node: Gen-1 models divide long clips by themselves."
            )
        return self._copy_with(self.cond if area is None else self.cond.cut(area))

    def can_concat(self, other: "ClipCond") -> bool:
        """Passes of one mode, told of maps of one size."""
        return self.cond.joins(other.cond)

    def concat(self, others: list["ClipCond"]) -> tuple[Told, ...]:
        """One call of the network for several passes, which are laid together window by window."""
        return (self.cond, *(other.cond for other in others))

    def size(self) -> list[int]:
        """For the core's estimate of memory."""
        return list(self.cond.shown.structure.shape)


class Gen1Model(comfy.model_base.BaseModel):
    """mu of the paper where the core expects a model; see ``model_of``."""

    def __init__(self, gen1: Gen1):
        config = Config(gen1)

        def build(*, device: Any, operations: Any, **sizes: Any) -> Any:
            network = renamed(gen1.unet, operations)
            network.dtype = config.unet_config["dtype"]
            return network

        kind = comfy.model_base.ModelType[TYPES[gen1.diffusion.prediction]]
        super().__init__(config, model_type=kind, unet_model=build)
        self.model_sampling = sampling_of(config, gen1.diffusion.schedule, gen1.diffusion.prediction)
        self.unet_sizes = gen1.unet.config
        # Not registered here: the patcher holds them as models of their own.
        self.controls = tuple(gen1.controls)
        self.window = gen1.defaults.window or gen1.unet.config.longest
        self.overlap = gen1.defaults.overlap

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The core's condition objects of one CONDITIONING.

        Raises ValueError where it is of another clip or another model.
        """
        found = super().extra_conds(**kwargs)
        noise = kwargs["noise"]
        size = (noise.shape[0], noise.shape[2], noise.shape[3])
        refuse_core_windows(self.current_patcher, size[0])
        refuse_controls(kwargs.get("control"), self.diffusion_model, self.unet_sizes)
        told = kwargs["gen1"] if "gen1" in kwargs else nothing_told(self.unet_sizes, size)
        check_told(told, size)
        check_tokens(kwargs["cross_attn"], self.unet_sizes, size[0])
        window, overlap = self.windows(told)
        windows = plan(size[0], window, overlap)
        if len(windows) > 1 and kwargs.get("prompt_type") == "positive":
            logger.info("%d frames in %d windows of %d, %d shared", size[0], len(windows), window, overlap)
        told = told.as_images() if kwargs.get("gen1_image") else told
        return {**found, "gen1": ClipCond(told.free() if kwargs.get("gen1_free") else told)}

    def windows(self, told: Told) -> tuple[int, int]:
        """Length and overlap: those that Gen-1 Condition was given, or the model's own."""
        return (told.window, told.overlap) if told.window else (self.window, self.overlap)

    def _apply_model(
        self,
        x: Tensor,
        t: Tensor,
        c_concat: Any = None,
        c_crossattn: Any = None,
        control: Any = None,
        transformer_options: Any = None,
        gen1: tuple[Told, ...] = (),
        **kwargs: Any,
    ) -> Tensor:
        """Clean latents of noisy ones; the core calls it once for all passes that join, of which ``gen1`` tells."""
        options = transformer_options or {}
        refuse_patches(options)
        dtype = self.manual_cast_dtype or self.get_dtype()
        sigmas = options.get("sample_sigmas")
        now = [told.at(options["sigmas"][0], sigmas) if "sigmas" in options else told.shown for told in gen1]
        run = comfy.patcher_extension.WrapperExecutor.new_class_executor(
            self._predict,
            self,
            comfy.patcher_extension.get_all_wrappers(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, options),
        )
        noisy = self.model_sampling.calculate_input(t, x).to(dtype)
        timestep = self.model_sampling.timestep(t).float()
        tokens = c_crossattn.to(noisy.device, dtype)
        windows = plan(len(x) // len(gen1), *self.windows(gen1[0]))
        out = run.execute(noisy, timestep, tokens, None, control, options, told=now, windows=windows)
        return self.model_sampling.calculate_denoised(t, out.float(), x)

    def _predict(
        self,
        x: Tensor,
        timestep: Tensor,
        context: Tensor,
        y: Any,
        control: Any,
        options: Any,
        *,
        told: list[Condition],
        windows: list[range],
    ) -> Tensor:
        """What the network returns, window by window; positional arguments are those of the core's U-Net."""
        passes = len(told)
        noisy = rearrange(x, "(b f) c h w -> b c f h w", b=passes)
        at = rearrange(timestep, "(b f) -> b f", b=passes)[:, 0]
        tokens = by_pass(context, passes)
        given = residuals_of(control, self.unet_sizes, passes=passes)
        frames = noisy.shape[2]
        out = torch.zeros_like(noisy[:, : self.unet_sizes.out_channels])
        for window, weight in zip(windows, blend_weights(windows, frames, x.device), strict=True):
            comfy.model_management.throw_exception_if_processing_interrupted()
            part = slice(window.start, window.stop)
            content = tokens if tokens.shape[1] == 1 else tokens[:, part]
            some = replace(window_of(told, window, frames, x), content=content, null=content)
            predicted = self._network(noisy[:, :, part], at, some, in_window(given, part))
            if len(windows) == 1:
                out = predicted
            else:
                out[:, :, part] += weight[:, None, None].to(out.dtype) * predicted
        return rearrange(out, "b c f h w -> (b f) c h w")

    def _network(self, noisy: Tensor, timestep: Tensor, condition: Condition, given: Any) -> Tensor:
        """One call of the U-Net, with what our own control networks and the core's add."""
        own = control_residuals(self.controls, noisy, timestep, condition.content, condition.hints)
        return self.diffusion_model(
            torch.cat([noisy, condition.structure], dim=1),
            timestep,
            condition.content,
            image=condition.image,
            pictures=condition.pictures,
            embedding=condition.embedding,
            residuals=added(own, given),
        )

    def memory_required(self, input_shape: Any, cond_shapes: Any = None) -> float:
        """Bytes beside the weights: only a window of each pass is in the network at a time."""
        at_once = min(input_shape[0], 2 * self.window)
        return super().memory_required([at_once, *input_shape[1:]], cond_shapes or {})


def refuse_core_windows(patcher: Any, frames: int) -> None:
    """The core's context windows do not tell which frames are in one, and fail on pictures as a batch."""
    handler = patcher.model_options.get("context_handler") if patcher is not None else None
    if handler is not None and frames > getattr(handler, "context_length", 0):
        raise ValueError(
            f"the MODEL has context windows of ComfyUI for {frames} frames, which lose the depth of all windows but "
            "the first; remove the Context Windows node: Gen-1 models divide long clips by themselves."
        )


def refuse_controls(control: Any, network: SpaceTimeUNet, sizes: UNetConfig) -> None:
    """Control networks for another U-Net: the core skips what has no place, or fails deep in a layer."""
    while control is not None:
        lora = getattr(control, "control_weights", None)
        if lora is not None:
            refuse_control_lora(lora, network, sizes)
        elif (trunk := getattr(control, "control_model", None)) is not None:
            first = getattr(trunk, "in_channels", 4), getattr(trunk, "model_channels", sizes.block_out_channels[0])
            reads = {layer.weight.shape[1] for name, layer in trunk.named_modules() if name.endswith("attn2.to_k")}
            if first != (sizes.out_channels, sizes.block_out_channels[0]) or reads - {sizes.cross_attention_dim}:
                raise ValueError(
                    f"this ControlNet was made for a U-Net of width {first[1]} that reads tokens of width "
                    f"{', '.join(map(str, sorted(reads))) or 'unknown'}, and this model has widths of "
                    f"{sizes.block_out_channels[0]} and {sizes.cross_attention_dim}; use a ControlNet with "
                    "the kind of model it was trained on (Stable Diffusion 1.5 for most), or remove it."
                )
        control = control.previous_controlnet


def refuse_control_lora(lora: dict[str, Tensor], network: SpaceTimeUNet, sizes: UNetConfig) -> None:
    """It has only changes of the model's own layers, and the core passes over layers that it does not find."""
    shapes = {name.removesuffix(".weight"): len(weight) for name, weight in network.state_dict().items()}
    changed = {name.removesuffix(".up"): len(weight) for name, weight in lora.items() if name.endswith(".up")}
    lost = [name for name, width in changed.items() if shapes.get(name) != width]
    if lost or sizes.in_channels != sizes.out_channels:
        why = f"this model reads {sizes.in_channels} channels and not the latents' {sizes.out_channels}"
        if lost:
            why = f"{len(lost)} of its {len(changed)} layers have no place in this model"
        raise ValueError(
            f"this Control-LoRA changes layers of the U-Net it was made for, and {why}; use a whole ControlNet for "
            "Stable Diffusion 1.5, with a model of public weights."
        )


def refuse_patches(options: Any) -> None:
    """Patches of attention and of blocks would be passed over silently: our network does not ask for them."""
    found = [name for kind in ("patches", "patches_replace") for name, each in options.get(kind, {}).items() if each]
    if found:
        raise ValueError(
            f"the MODEL has patches inside its network ({', '.join(sorted(found))}), from a node such as FreeU or an "
            "IP-Adapter of another pack, and a Gen-1 U-Net has no place for them; remove that node (Gen-1's loader of "
            "public weights takes an IP-Adapter itself)."
        )


def refuse_options(model: Any) -> None:
    """For our own samplers, which run the network by themselves: refuses what other nodes want of the core's sampling.

    A LoRA is in the weights and counts.
    """
    options = model.model_options
    inside = options.get("transformer_options", {})
    wrappers = [*model.wrappers.items(), *inside.get("wrappers", {}).items()]
    patches = [inside.get(kind, {}) for kind in ("patches", "patches_replace")]
    handled = ("context_handler", "model_function_wrapper", "denoise_mask_function")
    found = [
        *(name for name in options if name.startswith("sampler_") or name in handled),
        *(name for patched in patches for name, each in patched.items() if each),
        *(str(key or kind) for kind, keyed in wrappers for key, each in keyed.items() if each and key != OWN_KEY),
        *model.object_patches,
    ]
    if found:
        raise ValueError(
            f"the MODEL comes with {', '.join(dict.fromkeys(found))} from a node such as RescaleCFG, ModelSampling, "
            "FreeU, Context Windows or torch.compile, which this node would pass over; use KSampler, or Gen-1 Guider "
            "with SamplerCustomAdvanced, or remove that node."
        )


def patcher_of(gen1: Gen1) -> Any:
    """A MODEL around a model of ``gen1_core``; it shares the weights and carries the rest of the Gen1."""
    model = Gen1Model(gen1)
    try:  # newer versions of the core exchange this class at their start
        from comfy.model_patcher import CoreModelPatcher as kind
    except ImportError:
        kind = comfy.model_patcher.ModelPatcher
    patcher = kind(model, load_device=device(), offload_device=comfy.model_management.unet_offload_device())
    showing = several_frames(model.latent_format)
    patcher.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.OUTER_SAMPLE, OWN_KEY, showing)
    # With this U-Net only, or the weights would stay in memory twice once they have been moved.
    attach(patcher, replace(gen1, unet=model.diffusion_model))
    return patcher


def with_lora_tensors(model: Any, tensors: dict[str, Tensor], strength: float) -> Any:
    """The MODEL with a LoRA under kohya's names, by the core's own loader.

    Raises ValueError where none of it has a place.
    """
    patched = comfy.sd.load_lora_for_models(model, None, tensors, strength, 0)[0]
    if sum(map(len, patched.patches.values())) == sum(map(len, model.patches.values())):
        raise ValueError(
            f"none of the {len(tensors)} tensors of this LoRA has a place in the model; take one for Stable Diffusion "
            "1.5 with a model of public weights, a motion LoRA only with a motion module."
        )
    return patched
