"""Everything training changes as it goes, on one process or several."""

import math
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from . import ema
from .draws import Share
from .engine import (
    Engine,
    Measured,
    divided,
    divided_optimiser,
    gathered,
    is_sharded,
    joined,
    open_accelerator,
    own_part,
    rearranged,
    shard_weights,
)
from .stages import Fit
from .state import save_state
from .task import Losses, Task, generator_at


class Run:
    """Everything training changes as it goes: weights, their average, optimiser, step; saved and restored as one."""

    def __init__(self, task: Task, fit: Fit, *, seed: int, identity: str, engine: Engine) -> None:
        self.task, self.fit, self.seed, self.identity, self.engine = task, fit, seed, identity, engine
        self.device = next(task.model.parameters()).device
        self.accelerator = open_accelerator(engine, self.device)
        self.parts = self.accelerator.gradient_accumulation_steps if task.divides else 1
        check_batches(task, self.parts * self.accelerator.num_processes)
        self.averaged = ema.averaged_copy(task.model)  # before layers are wrapped
        rearranged(task.model, engine, task.blocks)
        self.measured, self.optimiser = self._prepared()
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]
        self.sharded = is_sharded(task.model)
        # The average of divided weights is divided too; it is put together where it is looked at.
        own = [own_part(p.detach()) for p in task.model.parameters()]
        self.held = [part.clone() for part in own] if self.sharded else list(self.averaged.parameters())
        if self.sharded:
            self.averaged.to("cpu")
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, Tensor] = {}
        self.first_bad = torch.full((), -1, dtype=torch.int64, device=self.device)
        self.record: dict[str, float] = {}

    def _prepared(self) -> tuple[nn.Module, Any]:
        """The loss as all processes share it, and the optimiser of its weights."""
        measured = Measured(self.task.model, self.task.losses, divides=self.task.divides)
        # Accelerate reads this where its configuration names no layers to shard by.
        measured._no_split_modules = [block.__name__ for block in self.task.blocks]  # pyright: ignore
        if self.engine.shard:
            shard_weights(measured, self.task.blocks, self.accelerator)
        optimiser = torch.optim.AdamW(
            [p for p in self.task.model.parameters() if p.requires_grad],
            lr=0.0,
            betas=self.fit.betas,
            weight_decay=self.fit.weight_decay,
            fused=True,
        )
        return (measured, optimiser) if self.engine.shard else self.accelerator.prepare(measured, optimiser)

    def state(self) -> dict[str, Any]:
        """The run as whole tensors and numbers; all processes must ask for it together."""
        return {
            "model": gathered(self.task.model.state_dict()),
            "averaged": self.average().state_dict(),
            "optimiser": gathered(self.optimiser.state_dict()),
            "step": self.step,
            "seconds": self.seconds,
            "sums": self.sums,
            "record": self.record,
            "seed": self.seed,
            "identity": self.identity,
        }

    def restore(self, state: dict[str, Any], path: Path) -> None:
        """Go back to a saved state."""
        if state["seed"] != self.seed:
            raise ValueError(
                f"{path} was trained with seed={state['seed']}, not {self.seed}, so the data would come in "
                f"another order; use seed={state['seed']} or another folder."
            )
        made_from = state.get("identity", "unknown")
        if made_from != self.identity:
            raise ValueError(
                f"{path} was made from other settings, data or latents (identity {made_from}, now {self.identity}), "
                f"and going on would mix both; remove the folder {path.parent} to train it anew, or go back to those."
            )
        try:
            current = self.task.model.state_dict()
            weights = {name: divided(value, current.get(name, value)) for name, value in state["model"].items()}
            self.task.model.load_state_dict(weights)
        except RuntimeError as error:
            raise ValueError(
                f"{path} holds weights of another configuration ({error}); use the configuration it was "
                "started with, or another folder."
            ) from error
        self.averaged.load_state_dict(state["averaged"])
        if self.sharded:
            pairs = zip(self.averaged.parameters(), self.task.model.parameters(), strict=True)
            self.held = [own_part(divided(mean.detach(), like)).clone() for mean, like in pairs]
        self.optimiser.load_state_dict(divided_optimiser(state["optimiser"], self.parameters))
        self.step, self.seconds = state["step"], state["seconds"]
        self.sums, self.record = {key: value.to(self.device) for key, value in state["sums"].items()}, state["record"]

    def advance(self) -> float:
        """One step of the optimiser and of the average; returns the learning rate it used."""
        rate = self.engine.rate_scale * self.task.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        self.optimiser.zero_grad(set_to_none=True)
        measured = [self._measure(part) for part in range(self.parts)]
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.fit.clip_norm)
        norm = norm.full_tensor() if hasattr(norm, "full_tensor") else norm
        self.optimiser.step()
        self._average_in()
        losses = {key: torch.stack([each[key] for each in measured]).mean() for key in measured[0]}
        finite = losses["loss"].isfinite() & norm.isfinite()
        self.first_bad = torch.where((self.first_bad < 0) & ~finite, self.step, self.first_bad)
        self.step += 1
        for key, value in {**losses, "gradient_norm": norm}.items():
            past = self.sums.get(key, torch.zeros(2, device=self.device))
            self.sums[key] = past + torch.stack([value.float(), torch.ones((), device=self.device)])
        return rate

    def _measure(self, part: int) -> Losses:
        """Losses and gradients of one part of this process's share; processes meet after the last."""
        share = Share(
            index=self.accelerator.process_index * self.parts + part, count=self.accelerator.num_processes * self.parts
        )
        generator = generator_at(self.seed, self.task.name, self.step)
        apart = self.accelerator.no_sync(self.measured) if part < self.parts - 1 else nullcontext()
        told = self.engine.precision
        half = (self.accelerator.mixed_precision if told == "config" else told) == "bf16"
        # Layers that draw (dropout) take from the step's randomness too, and nobody else's is touched.
        with apart, torch.random.fork_rng(devices=[]):
            torch.manual_seed(generator.initial_seed() + share.index)
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=half) if half else nullcontext():
                losses = self.measured(self.step, generator, share)
            (losses["loss"] / self.parts).backward()
        return {key: value.detach() for key, value in losses.items()}

    def _average_in(self) -> None:
        decay = ema.decay_at(self.fit.ema_decay, self.step)
        if self.sharded:
            ema.update_tensors(self.held, [own_part(p) for p in self.task.model.parameters()], decay=decay)
        else:
            ema.update(self.averaged, self.task.model, decay=decay)

    @torch.no_grad()
    def average(self) -> nn.Module:
        """The averaged weights as a network; all processes must ask for it together where weights are divided."""
        if self.sharded:
            for mean, part, like in zip(
                self.averaged.parameters(), self.held, self.task.model.parameters(), strict=True
            ):
                mean.copy_(joined(part, like))
        return self.averaged

    def means(self) -> dict[str, float]:
        """Mean losses since the last log line; refuses to go on with numbers that are not finite."""
        if self.accelerator.num_processes > 1:
            self.sums = {key: self.accelerator.reduce(value, "mean") for key, value in self.sums.items()}
        means = {key: float(total / count) for key, (total, count) in self.sums.items()}
        bad = int(self.first_bad)
        self._must(bad < 0 and all(map(math.isfinite, means.values())), bad, f"the loss or its gradient ({means})")
        return means

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint; one with numbers that are not finite never replaces the last whole one."""
        self.means()
        weights = [own_part(weight.detach()) for weight in [*self.task.model.parameters(), *self.held]]
        finite = torch.stack([weight.isfinite().all() for weight in weights]).all()
        self._must(bool(finite), -1, "what was learnt")
        state = self.state()
        if self.accelerator.is_main_process:
            save_state(checkpoint, state)
        self.accelerator.wait_for_everyone()

    def _must(self, finite: bool, step: int, what: str) -> None:
        if finite:
            return
        at, shown = (
            (step, self.task.names(step, generator_at(self.seed, self.task.name, step)))
            if step >= 0
            else (self.step, [])
        )
        samples = f", which showed {', '.join(shown)}" if shown else ""
        raise ValueError(
            f"{self.task.name}: {what} is not finite at step {at}{samples}, so these weights are lost; "
            "resume from the last checkpoint, which is still whole, at a lower learning rate (gen1: --rate-scale 0.5)."
        )


def check_batches(task: Task, shares: int) -> None:
    """Refuses, before any work, batches that the processes cannot share."""
    uneven = sorted({size for size in task.batches if size % shares}) if task.divides else []
    if uneven:
        raise ValueError(
            f"{task.name} draws batches of {', '.join(map(str, uneven))}, which cannot be shared evenly among {shares} "
            "(processes times parts that gradients accumulate over); change the batch or the number of shares."
        )
