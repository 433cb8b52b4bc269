"""The training loop of every part: step by step, stoppable anywhere, resumed bit for bit.

All randomness of a step comes from a generator made of (seed, name, step), and the learning rate is a function of the
step, so a run that was stopped and resumed equals one that was not. Several processes draw the same batch and compute
a share of it each (draws.py), so they learn what one process would; accelerate brings them together (engine.py).
"""

import logging
import math
import time
from pathlib import Path

from ..tensors import OnStep, ignore_progress
from .engine import Engine, agreed
from .journal import Journal
from .run import Run
from .stages import Fit
from .state import load_state
from .task import Keep, Losses, Outcome, Task, generator_at, identity_of, keep_nothing, seeded

__all__ = ["Losses", "Outcome", "Task", "generator_at", "identity_of", "seeded", "train"]

logger = logging.getLogger(__name__)


def train(
    task: Task,
    fit: Fit,
    folder: Path,
    *,
    seed: int,
    identity: str,
    minutes: float = math.inf,
    engine: Engine = Engine(),  # noqa: B008 (frozen)
    keep: Keep = keep_nothing,
    on_step: OnStep = ignore_progress,
) -> Outcome:
    """Train until ``fit.steps`` are done or ``minutes`` have passed; call again to go on where it stopped.

    An interrupt saves nothing, since it may fall into the middle of a step: the next call goes on from the last
    checkpoint, at most ``fit.save_every_s`` old. ``identity`` (``identity_of``) says what the weights are made from;
    the number of processes and the ``engine`` may change. ``keep`` gets the averaged weights named in ``task.kept``.
    Raises ValueError where the folder holds a run made from something else, where batches cannot be shared, and where
    accelerate is not installed.
    """
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "checkpoint.pt"
    run = Run(task, fit, seed=seed, identity=identity, engine=engine)
    if checkpoint.exists():
        run.restore(load_state(checkpoint), checkpoint)
        logger.info("%s: going on at step %d of %d", task.name, run.step, fit.steps)
    run.accelerator.wait_for_everyone()
    journal = Journal(folder, step=run.step) if run.accelerator.is_main_process else None
    try:
        _advance_until(run, checkpoint, journal, keep, deadline=time.monotonic() + 60 * minutes, on_step=on_step)
    finally:
        if journal:
            journal.close()
    run.save(checkpoint)
    return Outcome(
        step=run.step,
        finished=run.step >= fit.steps,
        hours=run.seconds / 3600,
        record=run.record,
        averaged=run.averaged,
    )


def _advance_until(
    run: Run, checkpoint: Path, journal: Journal | None, keep: Keep, *, deadline: float, on_step: OnStep
) -> None:
    """The loop itself: step, log, evaluate, save. Only the main process has a journal."""
    task, fit = run.task, run.fit
    saved = began = time.monotonic()
    before = run.seconds
    stop = time.monotonic() >= deadline
    alone = run.accelerator.num_processes == 1
    (stop,) = agreed(run.accelerator, stop)
    while run.step < fit.steps and not stop:
        rate = run.advance()
        now = time.monotonic()
        run.seconds = before + now - began
        last = run.step == fit.steps
        logs = run.step % fit.log_every == 0 or last
        if logs:
            losses = run.means()
            run.record |= losses
            run.sums = {}
            if journal:
                journal.losses(run.step, losses, rate=rate, seconds=run.seconds)
        if run.step in task.kept or run.step % fit.evaluate_every == 0 or last:
            _look(run, journal, keep, evaluates=run.step % fit.evaluate_every == 0 or last)
        if alone or logs:
            stop, save = agreed(run.accelerator, now >= deadline, now - saved >= fit.save_every_s)
            if save:
                run.save(checkpoint)
                saved = now
        if journal:
            on_step(task.name, run.step, fit.steps)


def _look(run: Run, journal: Journal | None, keep: Keep, *, evaluates: bool) -> None:
    """The averaged weights: kept where they are asked for, evaluated; the others wait for the main process."""
    averaged = run.average()
    if journal:
        if run.step in run.task.kept:
            keep(averaged, run.task.kept[run.step], run.step)
        if evaluates:
            run.record |= run.task.evaluate(averaged.to(run.device), run.step)
            averaged.to("cpu" if run.sharded else run.device)
            journal.evaluation(run.step, run.record, seconds=run.seconds)
    run.accelerator.wait_for_everyone()
