"""A small U-Net trained on random latents: what the tests of several processes, kills and full disks start.

python small_run.py FOLDER [--steps N] [--accumulate N] [--fsdp] [--pause SECONDS] [--aside STEP] [--disk BYTES]
"""

import argparse
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from gen1_core.diffusion.schedule import Schedule
from gen1_core.gen1 import Diffusion
from gen1_core.models.unet import UNetConfig
from gen1_core.training.engine import Engine
from gen1_core.training.latents import LatentBank
from gen1_core.training.loop import train
from gen1_core.training.stages import Fit, Rate, Stage
from gen1_core.training.task import Outcome, Task
from gen1_core.training.unet import UNetPlan, unet_task, with_steps

CONFIG = UNetConfig(
    block_out_channels=(16, 16), layers_per_block=1, attention=(True, False), num_attention_heads=2,
    cross_attention_dim=16, norm_num_groups=4, frames=4,
)  # fmt: skip
DIFFUSION = Diffusion(working_size=32, prediction="v", schedule=Schedule(zero_terminal_snr=True))


def random_latents(clips: int = 6, frames: int = 5) -> LatentBank:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(shape, generator=generator).half()  # noqa: E731
    return LatentBank(
        rgb=draw(clips, 2, 4, frames, 4, 4),
        depth=draw(clips, 2, 4, frames, 4, 4),
        level=torch.arange(clips) % 7 + 1,
        images=draw(clips, 2, frames, 16),
        texts=draw(clips, 2, 2, 16),
        flat=draw(4, 4, 4),
    )


def small_plan(steps: int) -> UNetPlan:
    stages = tuple(
        Stage(
            name=name, steps=4, batch=16, image_fraction=images, structure=structure,
            rate=Rate(peak=3e-3, final=1e-3, warmup=1), keep=name == "temporal",
        )
        for name, images, structure in (
            ("images", 1.0, "none"), ("temporal", 0.25, "none"),
            ("structure", 0.25, "detail"), ("levels", 0.25, "levels"),
        )
    )  # fmt: skip
    fit = Fit(steps=16, batch=16, rate=Rate(peak=1e-3), log_every=1, evaluate_every=steps, save_every_s=0.0)
    return with_steps(UNetPlan(fit=fit, stages=stages), steps)


def small_task(steps: int) -> Task:
    return unet_task(
        CONFIG, small_plan(steps), DIFFUSION, random_latents(),
        evaluate=lambda model, step: {"first": float(next(model.parameters()).flatten()[0])},
        seed=0, device=torch.device("cpu"),
    )  # fmt: skip


@contextmanager
def one_thread() -> Iterator[None]:
    """As the processes that tests start: equal to the last bit only where as many threads add up."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def run(folder: Path, *, steps: int, engine: Engine, pause: float = 0.0, aside: int = 0) -> Outcome:
    """The whole training; after step ``aside`` a copy of the checkpoint is kept as ``aside.pt``."""

    def after(name: str, done: int, total: int) -> None:
        time.sleep(pause)
        if done == aside:
            shutil.copyfile(folder / "checkpoint.pt", folder / "aside.pt")

    def keep(averaged: torch.nn.Module, name: str, step: int) -> None:
        torch.save(averaged.state_dict(), folder / f"stage-{name}.pt")

    task = small_task(steps)
    return train(
        task, small_plan(steps).fit, folder, seed=7, identity="small", engine=engine, keep=keep, on_step=after
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--steps", type=int, default=8)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--fsdp", action="store_true")
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--aside", type=int, default=0)
    parser.add_argument("--disk", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.disk:
        import resource
        import signal

        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # a write beyond the limit then fails, as on a full disk
        resource.setrlimit(resource.RLIMIT_FSIZE, (options.disk, options.disk))
    engine = Engine(accumulate=options.accumulate, shard=options.fsdp)
    run(options.folder, steps=options.steps, engine=engine, pause=options.pause, aside=options.aside)


if __name__ == "__main__":
    main()
