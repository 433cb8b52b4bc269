"""The training loop of every part: step by step, stoppable anywhere, resumed bit for bit.

All randomness of a step comes from a generator made of (seed, name, step), and the learning rate is a function of the
step, so a run that was stopped and resumed equals one that was not.
"""

import hashlib
import json
import logging
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, is_dataclass
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from ..tensors import OnStep, ignore_progress
from . import ema
from .stages import Fit
from .state import append_record, load_state, rewind_records, save_state

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)

Losses = dict[str, Tensor]
"""What a step measures: ``loss`` is minimised, the rest is logged."""

CHANGEABLE = ("steps", "rate", "log_every", "evaluate_every", "save_every_s")
"""Settings that may be changed while a part is trained: how long, how fast, and how often it reports."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What is trained: a network, the losses of a step, the learning rate, an evaluation of the averaged weights."""

    name: str
    model: nn.Module
    losses: Callable[[int, torch.Generator], Losses]
    rate: Callable[[int], float]
    evaluate: Callable[[Any, int], dict[str, float]]


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Where a call of ``train`` ended."""

    step: int
    finished: bool
    hours: float
    record: dict[str, float]
    averaged: nn.Module


def seeded(build: Callable[[], Module], seed: int) -> Module:
    """A network whose first weights follow from the seed alone."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def generator_at(seed: int, name: str, step: int) -> torch.Generator:
    """The randomness of one step; a hash, since neighbouring seeds of one generator are not independent enough."""
    digest = hashlib.blake2b(f"{seed}/{name}/{step}".encode(), digest_size=4).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest, "big"))


def identity_of(*made_from: Any) -> str:
    """A short hash of what weights are made from (configs, names, fingerprints), but for ``CHANGEABLE`` settings."""
    return hashlib.sha256(json.dumps(_lasting(made_from), sort_keys=True).encode()).hexdigest()[:16]


def _lasting(value: Any) -> Any:
    """Plain data without the settings that may be changed."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _lasting(part) for key, part in value.items() if key not in CHANGEABLE}
    return [_lasting(part) for part in value] if isinstance(value, (list, tuple)) else value


class Run:
    """Everything training changes as it goes: weights, their average, optimiser, step; saved and restored as one."""

    def __init__(self, task: Task, fit: Fit, *, seed: int, identity: str) -> None:
        self.task, self.fit, self.seed, self.identity = task, fit, seed, identity
        self.averaged = ema.averaged_copy(task.model)
        self.parameters = [p for p in task.model.parameters() if p.requires_grad]
        self.optimiser = torch.optim.AdamW(
            self.parameters, lr=0.0, betas=fit.betas, weight_decay=fit.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0
        self.sums: dict[str, Tensor] = {}
        self.record: dict[str, float] = {}

    def state(self) -> dict[str, Any]:
        """The run as tensors and numbers."""
        return {
            "model": self.task.model.state_dict(),
            "averaged": self.averaged.state_dict(),
            "optimiser": self.optimiser.state_dict(),
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
            self.task.model.load_state_dict(state["model"])
        except RuntimeError as error:
            raise ValueError(
                f"{path} holds weights of another configuration ({error}); use the configuration it was "
                "started with, or another folder."
            ) from error
        self.averaged.load_state_dict(state["averaged"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.step, self.seconds = state["step"], state["seconds"]
        self.sums, self.record = state["sums"], state["record"]

    def advance(self) -> float:
        """One step of the optimiser and of the average; returns the learning rate it used."""
        rate = self.task.rate(self.step)
        for group in self.optimiser.param_groups:
            group["lr"] = rate
        losses = self.task.losses(self.step, generator_at(self.seed, self.task.name, self.step))
        self.optimiser.zero_grad(set_to_none=True)
        losses["loss"].backward()
        torch.nn.utils.clip_grad_norm_(self.parameters, self.fit.clip_norm)
        self.optimiser.step()
        ema.update(self.averaged, self.task.model, decay=ema.decay_at(self.fit.ema_decay, self.step))
        self.step += 1
        for key, value in losses.items():
            past = self.sums.get(key, torch.zeros(2, dtype=torch.float32))
            self.sums[key] = past + torch.stack([value.detach().float().cpu(), torch.ones(())])
        return rate

    def means(self) -> dict[str, float]:
        """Mean losses since the last log line; refuses to go on with numbers that are not finite."""
        means = {key: float(total / count) for key, (total, count) in self.sums.items()}
        self._must(all(math.isfinite(value) for value in means.values()), f"the loss is {means}")
        return means

    def save(self, checkpoint: Path) -> None:
        """Write the checkpoint; one with numbers that are not finite never replaces the last whole one."""
        self.means()
        weights = [*self.task.model.parameters(), *self.averaged.parameters()]
        # A finite loss may still have had a gradient that was not.
        finite = torch.stack([weight.detach().isfinite().all() for weight in weights]).all()
        self._must(bool(finite), "weights are not finite")
        save_state(checkpoint, self.state())

    def _must(self, finite: bool, otherwise: str) -> None:
        if not finite:
            raise ValueError(
                f"{self.task.name}: {otherwise} at step {self.step}, so these weights are lost; "
                "lower the learning rate and resume from the last checkpoint, which is still whole."
            )


def train(
    task: Task,
    fit: Fit,
    folder: Path,
    *,
    seed: int,
    identity: str,
    minutes: float = math.inf,
    on_step: OnStep = ignore_progress,
) -> Outcome:
    """Train until ``fit.steps`` are done or ``minutes`` have passed; call again to go on where it stopped.

    An interrupt saves nothing, since it may fall into the middle of a step: the next call goes on from the last
    checkpoint, at most ``fit.save_every_s`` old. ``identity`` (``identity_of``) says what the weights are made from.
    Raises ValueError where the folder holds a run made from something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint, log = folder / "checkpoint.pt", folder / "log.jsonl"
    run = Run(task, fit, seed=seed, identity=identity)
    if checkpoint.exists():
        run.restore(load_state(checkpoint), checkpoint)
        logger.info("%s: going on at step %d of %d", task.name, run.step, fit.steps)
    rewind_records(log, run.step)
    _advance_until(run, checkpoint, log, deadline=time.monotonic() + 60 * minutes, on_step=on_step)
    run.save(checkpoint)
    return Outcome(
        step=run.step,
        finished=run.step >= fit.steps,
        hours=run.seconds / 3600,
        record=run.record,
        averaged=run.averaged,
    )


def _advance_until(run: Run, checkpoint: Path, log: Path, *, deadline: float, on_step: OnStep) -> None:
    """The loop itself: step, log, evaluate, save."""
    task, fit = run.task, run.fit
    saved = began = time.monotonic()
    before = run.seconds
    while run.step < fit.steps and time.monotonic() < deadline:
        rate = run.advance()
        now = time.monotonic()
        run.seconds = before + now - began
        last = run.step == fit.steps
        if run.step % fit.log_every == 0 or last:
            run.record |= run.means()
            run.sums = {}
            append_record(log, {"step": run.step, **run.record, "rate": rate, "seconds": round(run.seconds, 2)})
        if run.step % fit.evaluate_every == 0 or last:
            run.record |= task.evaluate(run.averaged, run.step)
            append_record(log, {"step": run.step, "evaluation": run.record, "seconds": round(run.seconds, 2)})
        if now - saved >= fit.save_every_s:
            run.save(checkpoint)
            saved = now
        on_step(task.name, run.step, fit.steps)
