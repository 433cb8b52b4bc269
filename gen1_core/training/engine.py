"""Hardware of a training run: processes, precision, memory. Accelerate brings the devices, DDP and FSDP.

What is wrapped for several processes is the loss of a step, not the network: a task may then call its network as it
likes (twice, or by another method than ``forward``), and gradients still meet.
"""

import logging
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from .draws import Share

logger = logging.getLogger(__name__)

Precision = Literal["config", "no", "bf16"]
Compile = Literal["no", "default", "reduce-overhead", "max-autotune"]
Blocks = tuple[type[nn.Module], ...]


@dataclass(frozen=True, kw_only=True)
class Engine:
    """How steps are computed; it may change from call to call, and all but ``rate_scale`` learn the same to rounding.

    ``precision`` is that of autocast ("config": what accelerate's configuration says); ``accumulate`` the number of
    parts that a process computes its share of a batch in; ``checkpointing`` keeps only the inputs of the task's blocks
    and computes the rest twice; ``shard`` divides weights, gradients and optimiser among the processes (FSDP2), also
    where accelerate's configuration does not say so; ``compile`` is a mode of ``torch.compile``;
    ``rate_scale`` multiplies every learning rate, to go on where a loss was not finite.
    """

    precision: Precision = "config"
    accumulate: int = 1
    checkpointing: bool = False
    channels_last: bool = False
    shard: bool = False
    compile: Compile = "no"
    rate_scale: float = 1.0

    def __post_init__(self) -> None:
        if not 0 < self.rate_scale < math.inf:
            raise ValueError(f"rate_scale={self.rate_scale} is no factor of a learning rate; give one above 0.")
        if self.accumulate < 1:
            raise ValueError(f"accumulate={self.accumulate} parts of a batch are none; give 1 or more.")


class Measured(nn.Module):
    """The losses of a step as a module, with the network inside."""

    def __init__(self, model: nn.Module, losses: Callable[..., dict[str, Tensor]], *, divides: bool) -> None:
        super().__init__()
        self.model, self.losses, self.divides = model, losses, divides

    def forward(self, step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        """Losses of a share of a step's batch, or of all of it where the task cannot be divided."""
        return self.losses(step, generator, share) if self.divides else self.losses(step, generator)


def open_accelerator(engine: Engine, device: torch.device) -> Any:
    """Accelerate's view of the processes that were started; on a GPU it also sets this process's own.

    Raises ValueError where it is not installed, for the number of a GPU, which accelerate chooses, and for float16.
    """
    if device.index:
        raise ValueError(
            f"the device {device} has a number, and every process takes its own from accelerate; give {device.type}, "
            "and let the environment show this process no other device (docs/training.md)."
        )
    try:
        from accelerate import Accelerator, DistributedDataParallelKwargs
    except ImportError as error:
        raise ValueError(
            "training runs on accelerate, and it is not installed; install the extra: pip install -e '.[train]'."
        ) from error
    # Image batches leave the temporal layers without gradients.
    unused = DistributedDataParallelKwargs(find_unused_parameters=True)
    accelerator = Accelerator(
        cpu=device.type == "cpu",
        mixed_precision=None if engine.precision == "config" else "no",
        gradient_accumulation_steps=engine.accumulate,
        kwargs_handlers=[unused],
    )
    if accelerator.mixed_precision not in ("no", "bf16"):
        raise ValueError(
            f"accelerate's configuration asks for {accelerator.mixed_precision}, and training knows bf16 and no; "
            "change mixed_precision there (accelerate config), or give --precision bf16."
        )
    return accelerator


def rearranged(model: nn.Module, engine: Engine, blocks: Blocks) -> None:
    """The network made ready in place: memory layout, checkpointing, compilation. Names of weights stay."""
    if engine.channels_last:
        model.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
    if engine.checkpointing:
        checkpoint_blocks(model, blocks)
    if engine.compile != "no":
        model.compile(mode=engine.compile)


def checkpoint_blocks(model: nn.Module, blocks: Blocks) -> None:
    """Blocks forget what they computed and compute it again for the gradient.

    Raises ValueError where the network has none of them.
    """
    found = [module for module in model.modules() if isinstance(module, blocks)]
    if not found:
        raise ValueError(
            f"{type(model).__name__} names no blocks that could be computed twice; train it without checkpointing."
        )
    for module in found:
        module.forward = partial(checkpoint, module.forward, use_reentrant=False)


def shard_weights(measured: Measured, blocks: Blocks, accelerator: Any) -> None:
    """FSDP2 in place: every block, and what is left, divided among all processes.

    Accelerate does this by its own configuration, but not on CPUs. Raises ValueError for a single process.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    if accelerator.num_processes < 2:
        raise ValueError(
            "sharding divides the weights among processes, and there is only one; start several with "
            "`accelerate launch --num_processes N`, or leave it out."
        )
    mesh = init_device_mesh(accelerator.device.type, (accelerator.num_processes,))
    for module in measured.modules():
        if isinstance(module, blocks):
            fully_shard(module, mesh=mesh)
    fully_shard(measured, mesh=mesh)


def is_sharded(model: nn.Module) -> bool:
    """Whether processes hold parts of the weights (FSDP2), by accelerate's doing or ours."""
    return any(hasattr(parameter, "full_tensor") for parameter in model.parameters())


def own_part(tensor: Any) -> Tensor:
    """What this process holds of a tensor."""
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


@torch.no_grad()
def gathered(value: Any) -> Any:
    """Nested state with every divided tensor whole, on the CPU. All processes must call it together."""
    if isinstance(value, dict):
        return {key: gathered(part) for key, part in value.items()}
    if isinstance(value, list):
        return [gathered(part) for part in value]
    return value.full_tensor().cpu() if hasattr(value, "full_tensor") else value


@torch.no_grad()
def divided(whole: Tensor, like: Any) -> Tensor:
    """This process's part of a whole tensor, divided as ``like`` is; scalars and undivided ones stay whole."""
    if not hasattr(like, "device_mesh") or whole.shape != like.shape:
        return whole
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(whole.to(like.device), like.device_mesh, like.placements)


def joined(part: Tensor, like: Any) -> Tensor:
    """A whole tensor from the parts that processes hold of it, divided as ``like`` is."""
    if not hasattr(like, "device_mesh"):
        return part
    from torch.distributed.tensor import DTensor

    spread = DTensor.from_local(part, like.device_mesh, like.placements, shape=like.shape, stride=like.stride())
    return spread.full_tensor()


def divided_optimiser(state: dict[str, Any], parameters: Sequence[Tensor]) -> dict[str, Any]:
    """An optimiser's state with its moments divided as the parameters they belong to."""
    moments = {
        index: {name: divided(value, parameters[index]) for name, value in each.items()}
        for index, each in state["state"].items()
    }
    return {**state, "state": moments}


def agreed(accelerator: Any, *wishes: bool) -> list[bool]:
    """What the main process wishes, known to all: clocks differ, and saving is done together."""
    if accelerator.num_processes == 1:
        return list(wishes)
    from accelerate.utils import broadcast

    return broadcast(torch.tensor(wishes, dtype=torch.int32, device=accelerator.device)).bool().tolist()
