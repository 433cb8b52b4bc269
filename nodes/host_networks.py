"""Part of the adapter: networks of gen1_core under ComfyUI's memory management, and what MODEL and VAE carry."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields, is_dataclass, replace
from math import prod
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.sd
import comfy.taesd.taesd
import torch
from torch import Tensor, nn

from ..gen1_core.content.describe import Describer
from ..gen1_core.content.encoder import Content
from ..gen1_core.gen1 import Gen1
from ..gen1_core.models.autoencoder import FrameCodec
from ..gen1_core.models.depth import DepthNet
from ..gen1_core.models.dpt import DPT
from ..gen1_core.pipeline import check_content
from ..gen1_core.structure.estimator import DepthEstimator, near_size
from ..gen1_core.tensors import Images
from .host_frames import RawCodec, latent_channels
from .host_progress import cancellable

ATTACHMENT = "gen1"
BYTES_PER_INPUT_PIXEL = 2000
"""What the activations of a depth network take at the size it works at: Depth Anything Large 1829, DPT-Large 1133."""

BYTES_PER_SOURCE_PIXEL = 16
"""Beside that: the pictures as floats, and their depth."""


def device() -> torch.device:
    """Where ComfyUI computes."""
    return comfy.model_management.get_torch_device()


def unet_dtype(parameters: int) -> torch.dtype:
    """What ComfyUI would keep a U-Net of so many parameters in, by device and by the user's flags."""
    return comfy.model_management.unet_dtype(model_params=parameters)


class WholeNetwork(comfy.model_patcher.ModelPatcher):
    """A network that is on its device whole, or not at all.

    The core leaves layers behind where memory is short (and all of them with --novram), and feeds those it built
    itself as they are called. Plain layers would stay on the CPU while their input is on the device.
    """

    def partially_load(self, device_to: torch.device, extra_memory: float = 0, *args: Any, **kwargs: Any) -> int:
        """All of it, whatever memory it is allowed."""
        return super().partially_load(device_to, 1e32, *args, **kwargs)

    def partially_unload(self, *args: Any, **kwargs: Any) -> int:
        """Frees nothing, so the core takes the whole network off."""
        return 0


def managed(network: nn.Module) -> Any:
    """A network in a ModelPatcher of its own, which ``load`` moves."""
    return WholeNetwork(network, load_device=device(), offload_device=comfy.model_management.unet_offload_device())


def load(*models: Any, memory: float = 0, whole: bool = False) -> None:
    """ComfyUI's ``load_models_gpu``: makes room and moves the models (MODEL, ``managed`` networks) to their device.

    ``memory`` is what is needed beside the weights, in bytes; ``whole`` keeps it from leaving layers of a MODEL behind,
    ``managed`` networks are never divided.
    """
    comfy.model_management.load_models_gpu(list(models), memory_required=memory, force_full_load=whole)


def networks_in(part: object) -> list[nn.Module]:
    """Every network that an estimator, a describer or a codec of gen1_core holds: in fields and in closures."""
    found: dict[int, nn.Module] = {}
    for module in _networks(part, set()):
        found.setdefault(id(module), module)
    return list(found.values())


def _networks(part: object, seen: set[int]) -> Iterator[nn.Module]:
    if id(part) in seen:
        return
    seen.add(id(part))
    if isinstance(part, nn.Module):
        yield part
        return
    if isinstance(part, (tuple, list)):
        inside = list(part)
    elif is_dataclass(part):
        inside = [getattr(part, field.name) for field in fields(part)]
    else:
        closure: Any = getattr(part, "__closure__", None) or ()
        inside = [cell.cell_contents for cell in closure]
        if type(part).__module__.startswith(__package__.rpartition(".")[0] if __package__ else ""):
            inside += list(getattr(part, "__dict__", {}).values())
        inside += [getattr(part, "__self__", None)]
    for one in inside:
        yield from _networks(one, seen)


class DepthNetwork:
    """A depth estimator that ComfyUI moves to its device when it is called: the value of GEN1_DEPTH."""

    def __init__(self, estimator: DepthEstimator):
        self.estimator = estimator
        self.networks = tuple(managed(network) for network in networks_in(estimator))

    def __call__(self, images: Images, /) -> Tensor:
        """Images 0..1 of any size to raw depth of the same size, as gen1_core's ``DepthEstimator``."""
        load(*self.networks, memory=depth_memory([network.model for network in self.networks], images))
        with cancellable(*(network.model for network in self.networks)):
            return self.estimator(images.to(device()))


def depth_memory(networks: Sequence[nn.Module], images: Images) -> int:
    """Bytes beside the weights: large pictures are made smaller before a network sees them."""
    frames, _, height, width = images.shape
    pixels = sum(prod(seen_size(network, height, width)) for network in networks)
    return frames * (BYTES_PER_INPUT_PIXEL * pixels + BYTES_PER_SOURCE_PIXEL * height * width)


def seen_size(network: nn.Module, height: int, width: int) -> tuple[int, int]:
    """At what size a depth network works where the pictures have this one."""
    if isinstance(network, DepthNet):
        return near_size(height, width, short_side=network.config.train_size, multiple=network.config.multiple)
    if isinstance(network, DPT):
        return near_size(height, width, short_side=network.config.vit.image_size, multiple=network.config.multiple)
    return height, width


@dataclass(frozen=True, kw_only=True)
class ContentReader:
    """A describer that ComfyUI moves to its device when it is used: the value of GEN1_ENCODER.

    ``networks`` are the ModelPatchers of ``describer``; ``load(*reader.networks)`` before other use of it.
    """

    describer: Describer
    networks: tuple[Any, ...]

    @property
    def reads_both(self) -> bool:
        """Whether a prompt and a picture can go together."""
        return self.describer.reads_both

    @property
    def reads_pictures(self) -> bool:
        """Whether it takes a picture at all."""
        return self.describer.reads_pictures

    def __call__(
        self, *, prompt: str | None = None, image: Images | None = None, negative: str = "", seed: int = 0
    ) -> Content:
        """Content from text, from a picture 0..1 ``[1 3 h w]``, or from both.

        Raises ValueError for what this model does not read, and for neither.
        """
        check_content(prompt or None, image, describer=self.describer)
        load(*self.networks)
        return self.describer(prompt=prompt or "", image=image, negative=negative, seed=seed)


class ManagedCodec:
    """The autoencoder of a VAE as gen1_core calls one: moved to its device and fed in its dtype by itself."""

    def __init__(self, vae: Any):
        self.vae = vae
        self.network = vae.first_stage_model.network

    def encode(self, images: Images) -> Tensor:
        """Images -1..1 to latents."""
        return self._run(self.network.encode, images)

    def decode(self, latents: Tensor) -> Tensor:
        """Latents to images about -1..1."""
        return self._run(self.network.decode, latents)

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Its weights, on the device from now on."""
        load(self.vae.patcher)
        return self.network.parameters(recurse)

    def _run(self, function: Callable[[Tensor], Tensor], given: Tensor) -> Tensor:
        """As many frames at once as memory has room for."""
        memory = self.vae.memory_used_decode if function == self.network.decode else self.vae.memory_used_encode
        one = memory((1, *given.shape[1:]), self.vae.vae_dtype)  # the core's figures are for one, whatever the batch
        load(self.vae.patcher, memory=one * len(given))
        free = comfy.model_management.get_free_memory(self.vae.device)
        at_once = max(1, min(len(given), int(free / one)))
        with cancellable(self.network):
            try:
                return self._in_parts(function, given, at_once)
            except comfy.model_management.OOM_EXCEPTION:
                if at_once == 1:
                    raise
            comfy.model_management.soft_empty_cache()  # out here: the error holds what it could not hold any more of
            return self._in_parts(function, given, 1)

    def _in_parts(self, function: Callable[[Tensor], Tensor], given: Tensor, at_once: int) -> Tensor:
        parts = given.split(at_once)
        return torch.cat([function(part.to(self.vae.device, self.vae.vae_dtype)).to(given.dtype) for part in parts])


def depth_wire(estimator: DepthEstimator) -> DepthNetwork:
    """An estimator of gen1_core as GEN1_DEPTH."""
    return estimator if isinstance(estimator, DepthNetwork) else DepthNetwork(estimator)


def encoder_wire(describer: Describer) -> ContentReader:
    """A describer of gen1_core as GEN1_ENCODER."""
    if isinstance(describer, ContentReader):
        return describer
    return ContentReader(describer=describer, networks=tuple(managed(one) for one in networks_in(describer)))


def vae_wire(codec: FrameCodec) -> Any:
    """An autoencoder of gen1_core as VAE, which the core's nodes take; LATENT is in its raw scale."""
    # The core knows a VAE only by its state dict, and no width but its own. So the smallest that it knows is made, with
    # every attribute that this version of the core gives a VAE, and its network exchanged.
    vae = comfy.sd.VAE(sd=comfy.taesd.taesd.TAESD().state_dict())
    vae.first_stage_model = RawCodec(codec).to(vae.vae_dtype).eval()
    vae.latent_channels = latent_channels(codec)
    vae.patcher = WholeNetwork(
        vae.first_stage_model,
        load_device=vae.device,
        offload_device=comfy.model_management.vae_offload_device(),
    )
    return vae


def codec_of(vae: Any) -> FrameCodec:
    """The autoencoder of a VAE for gen1_core, on its device by itself.

    Raises ValueError for a VAE that did not come from ``vae_wire``.
    """
    if not isinstance(getattr(vae, "first_stage_model", None), RawCodec):
        raise ValueError(
            "this VAE is of another loader, so its latents may have another scale than the model's; connect the VAE of "
            "the Gen-1 loader that the MODEL came from."
        )
    return ManagedCodec(vae)


def attach(model: Any, gen1: Gen1) -> None:
    """Lets a MODEL carry its Gen1; clones (LoRA loaders, ModelSampling nodes) keep it.

    Depth, describer and autoencoder should be the values of their wires, which move themselves. Control networks are
    put under memory management here, and stock samplers load them beside the model.
    """
    model.set_attachments(ATTACHMENT, gen1)
    model.set_additional_models(ATTACHMENT, [managed(control) for control in gen1.controls])


def gen1_of(model: Any) -> Gen1:
    """The Gen1 that a MODEL carries, with this MODEL's own U-Net. Raises ValueError for the MODEL of another loader."""
    gen1 = model.get_attachment(ATTACHMENT)
    if gen1 is None:
        raise ValueError(
            f"this MODEL is a {type(model.model).__name__} of another loader, which takes no structure; connect the "
            "MODEL of Gen-1 Load Model or Gen-1 Load Public Weights (LoRA loaders may lie between)."
        )
    return replace(gen1, unet=model.model.diffusion_model)


def ready(model: Any, *, memory: float = 0) -> Gen1:
    """The Gen1 of a MODEL with its U-Net, patches applied, on the device, for ``generate`` and ``edit``.

    Other networks move themselves when they are used.
    """
    gen1 = gen1_of(model)
    load(model, *model.get_nested_additional_models(), memory=memory, whole=True)
    return gen1
