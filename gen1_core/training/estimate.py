"""What a training of the U-Net will need, without doing it: the network is built and run on the meta device.

Memory is that of weights, gradients, optimiser and average, and of what the forward pass keeps for the backward one;
what a framework keeps besides (buffers of communication, fragmentation) is not counted.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from ..models.unet import SpaceTimeUNet, UNetConfig
from .stages import Stage
from .unet import BLOCKS

WEIGHT_BYTES = 4 + 4 + 8 + 4
"""Of one parameter in float32: itself, its gradient, two moments of AdamW, its average."""


@dataclass(frozen=True, kw_only=True)
class Cost:
    """One clip, forward and backward, in bfloat16.

    ``activations`` are bytes that wait for the backward pass; ``checkpointed`` the same where only the inputs of the
    blocks are kept, and one block at a time is computed again (which adds a forward pass of FLOP).
    """

    parameters: int
    temporal: int
    flop: int
    forward_flop: int
    activations: int
    checkpointed: int

    @property
    def weights(self) -> int:
        """Bytes of all that belongs to the parameters."""
        return self.parameters * WEIGHT_BYTES


def cost_of(config: UNetConfig, *, frames: int, height: int, width: int, image: bool = False) -> Cost:
    """Counts one clip of ``height`` x ``width`` latents, or so many single frames."""
    with torch.device("meta"):
        unet = SpaceTimeUNet(config).to(torch.bfloat16)
        x = torch.empty(1, config.in_channels, frames, height, width, dtype=torch.bfloat16)
        timestep, content = torch.empty(1), torch.empty(1, 1, 1, config.cross_attention_dim, dtype=torch.bfloat16)
    saved = Saved(unet)
    with FlopCounterMode(display=False) as counted, torch.autograd.graph.saved_tensors_hooks(saved.keep, lambda t: t):
        out = unet(x, timestep, content, image=image)
        forward = counted.get_total_flops()
    with FlopCounterMode(display=False) as backward:
        out.sum().backward()
    return Cost(
        parameters=sum(p.numel() for p in unet.parameters()),
        temporal=sum(p.numel() for name, p in unet.named_parameters() if "temporal" in name or "motion" in name),
        flop=forward + backward.get_total_flops(),
        forward_flop=forward,
        activations=sum(saved.bytes.values()),
        checkpointed=saved.bytes.get("", 0) + sum(saved.inputs.values()) + max(saved.blocks(), default=0),
    )


class Saved:
    """Bytes that autograd keeps, by the block that keeps them ("" is none), each storage counted once."""

    def __init__(self, unet: nn.Module) -> None:
        self.bytes: dict[str, int] = {}
        self.inputs: dict[str, int] = {}
        self._weights = {p.untyped_storage()._cdata for p in unet.parameters()}
        self._storages: dict[int, Tensor] = {}
        self._inside = ""
        for name, module in unet.named_modules():
            if isinstance(module, BLOCKS):
                module.register_forward_pre_hook(self._enter(name))
                module.register_forward_hook(self._leave)

    def keep(self, tensor: Tensor) -> Tensor:
        """A hook of autograd: counts what is neither weight nor counted before."""
        storage = tensor.untyped_storage()
        if storage._cdata not in self._weights and storage._cdata not in self._storages:
            self._storages[storage._cdata] = tensor  # held, or its number could be given to another
            self.bytes[self._inside] = self.bytes.get(self._inside, 0) + storage.nbytes()
        return tensor

    def blocks(self) -> list[int]:
        """Bytes of each block."""
        return [size for name, size in self.bytes.items() if name]

    def _enter(self, name: str) -> Callable[..., None]:
        def enter(module: nn.Module, args: tuple[Any, ...]) -> None:
            self._inside = name
            self.inputs[name] = args[0].numel() * args[0].element_size()

        return enter

    def _leave(self, module: nn.Module, args: tuple[Any, ...], out: Any) -> None:
        self._inside = ""


def plan_lines(
    config: UNetConfig,
    stages: Sequence[Stage],
    *,
    height: int,
    width: int,
    processes: int,
    accumulate: int,
    tflops: float,
    use: float,
) -> list[str]:
    """The plan for a person: parameters, steps, memory of a GPU, GPU-hours at ``use`` of ``tflops``; sizes in pixels.

    Raises ValueError where a batch cannot be shared evenly.
    """
    shares = processes * accumulate
    if min(processes, accumulate) < 1:
        raise ValueError(
            f"--processes {processes} --accumulate {accumulate} leaves nobody to work; give 1 or more of each."
        )
    sizes = {max(1, stage.batch // config.frames) for stage in stages if stage.image_fraction < 1}
    if uneven := [size for size in sorted(sizes) if size % shares]:
        raise ValueError(
            f"{uneven} clips cannot be shared evenly among {processes} processes of {accumulate} parts; "
            "change --processes or --accumulate."
        )
    video = cost_of(config, frames=config.frames, height=height // 8, width=width // 8)
    image = cost_of(config, frames=1, height=height // 8, width=width // 8, image=True)
    lines = [
        f"U-Net: {video.parameters / 1e6:.1f} M parameters, {video.temporal / 1e6:.1f} M of them in temporal layers",
        f"one clip of {config.frames} frames at {width}x{height}: {video.flop / 1e12:.2f} TFLOP forward and backward, "
        f"{video.activations / 1e9:.2f} GB of activations in bfloat16, {video.checkpointed / 1e9:.2f} GB checkpointed",
        f"one image: {image.flop / 1e12:.2f} TFLOP, {image.activations / 1e9:.2f} GB, "
        f"{image.checkpointed / 1e9:.2f} GB checkpointed",
    ]
    total = 0.0
    for stage in stages:
        clips = max(1, stage.batch // config.frames)
        step = stage.image_fraction * stage.batch * (image.flop + image.forward_flop)
        step += (1 - stage.image_fraction) * clips * (video.flop + video.forward_flop)
        hours = stage.steps * step / (tflops * use * 1e12) / 3600
        total += hours
        lines.append(
            f"stage {stage.name}: {stage.steps} steps of {stage.batch} images or {clips} clips, structure "
            f"{stage.structure}, rate {stage.rate.peak:g} to {stage.rate.final:g}, {step / 1e15:.2f} PFLOP a step with "
            f"checkpointing, {hours:,.0f} GPU-hours"
        )
    for size in sorted(sizes):
        part = size // shares
        kept = part * max(video.checkpointed, config.frames * image.checkpointed)
        lines.append(
            f"{processes} GPUs, {accumulate} parts: {part} clips at once on each; "
            f"DDP {(video.weights + kept) / 1e9:.1f} GB, FSDP {(video.weights / processes + kept) / 1e9:.1f} GB a GPU "
            f"(weights, gradients, optimiser, average {video.weights / 1e9:.1f} GB; activations {kept / 1e9:.1f} GB)"
        )
    lines.append(
        f"all: {sum(stage.steps for stage in stages)} steps, {total:,.0f} GPU-hours "
        f"at {100 * use:.0f} % of {tflops:g} TFLOP/s"
    )
    return lines
