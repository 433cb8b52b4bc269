"""Training: frames/s, share of the matmul ceiling measured in the same run, memory; the overhead of accelerate.

Run: python benchmarks/training.py [--device cpu] [--threads 2] [--width 0.5] [--what tiny,sd15,overhead]

tiny is a step of the embedded model's U-Net at its own batch. sd15 is one step of the full-size U-Net on one clip of 8
frames at ``--side`` latents; weights, gradients, optimiser and average are 24 GB at its real width, so ``--width``
narrows it (1 is real). Data are random numbers: what a step computes does not depend on them.
"""

import argparse
import platform
import statistics
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from torch.utils.flop_counter import FlopCounterMode

from gen1_core.models.unet import UNetConfig
from gen1_core.presets import TINY_DIFFUSION
from gen1_core.recipes.sd15_train import SD15
from gen1_core.recipes.tiny import TINY
from gen1_core.training import ema
from gen1_core.training.engine import Engine
from gen1_core.training.latents import LatentBank
from gen1_core.training.run import Run
from gen1_core.training.stages import Fit, Rate, Stage
from gen1_core.training.task import Task, generator_at
from gen1_core.training.unet import UNetPlan, unet_task


def random_latents(config: UNetConfig, *, frames: int, side: int, device: torch.device, clips: int = 8) -> LatentBank:
    """A bank of noise, as that U-Net takes it."""
    channels, width = config.out_channels, config.cross_attention_dim
    draw = lambda *shape: torch.randn(shape, device=device, dtype=torch.float16)  # noqa: E731
    return LatentBank(
        rgb=draw(clips, 2, channels, frames, side, side),
        depth=draw(clips, 2, channels, frames, side, side),
        level=torch.ones(clips, dtype=torch.long),
        images=draw(clips, 2, frames, width),
        texts=draw(clips, 2, 1, width),
        flat=draw(channels, side, side),
    )


def task_of(config: UNetConfig, *, batch: int, side: int, images: float, device: torch.device) -> tuple[Task, Fit]:
    """One endless stage of images or of clips."""
    rate = Rate(peak=1e-4, final=1e-4, warmup=0)
    stage = Stage(name="x", steps=10**6, batch=batch, image_fraction=images, structure="levels", rate=rate)
    fit = Fit(steps=10**6, batch=batch, rate=rate)
    latents = random_latents(config, frames=config.frames, side=side, device=device)
    plan = UNetPlan(fit=fit, stages=(stage,))
    task = unet_task(config, plan, TINY_DIFFUSION, latents, evaluate=lambda m, s: {}, seed=0, device=device)
    return task, fit


def matmul_ceiling(device: torch.device, dtype: torch.dtype, side: int) -> float:
    """GFLOP/s of the best of twenty square products."""
    a, b = (torch.randn(side, side, device=device, dtype=dtype) for _ in range(2))
    return 2 * side**3 / min(timed(lambda: a @ b, device) for _ in range(20)) / 1e9


def timed(work: Callable[[], object], device: torch.device) -> float:
    """Seconds of one call, the device's queue included."""
    wait(device)
    started = time.perf_counter()
    work()
    wait(device)
    return time.perf_counter() - started


def wait(device: torch.device) -> None:
    """Until the device has done what it was given."""
    if device.type != "cpu":
        torch.accelerator.synchronize()


class Peak:
    """The highest memory while it is open, in GB: of the device, or of the process above what it had before."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.value, self._open = device, 0.0, True

    def __enter__(self) -> "Peak":
        if self.device.type == "cuda":
            torch.cuda.reset_peak_memory_stats()
        else:
            self._before = resident()
            self._thread = threading.Thread(target=self._watch, daemon=True)
            self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self.device.type == "cuda":
            self.value = torch.cuda.max_memory_allocated() / 1e9
        else:
            self._open = False
            self._thread.join()

    def _watch(self) -> None:
        while self._open:
            self.value = max(self.value, resident() - self._before)
            time.sleep(0.01)


def resident() -> float:
    """GB that this process holds (Linux)."""
    return int(Path("/proc/self/statm").read_text(encoding="utf-8").split()[1]) * 4096 / 1e9


def measure(
    name: str, config: UNetConfig, *, batch: int, side: int, images: float, steps: int, engine: Engine,
    device: torch.device, ceiling: float,
) -> str:  # fmt: skip
    """One line of the table."""
    with Peak(device) as peak:
        task, fit = task_of(config, batch=batch, side=side, images=images, device=device)
        run = Run(task, fit, seed=0, identity="benchmark", engine=engine)
        with FlopCounterMode(display=False) as counted:
            run.advance()  # also the warm-up
        flop = counted.get_total_flops()
        before = ceiling()  # around the steps, since other work on the machine slows both
        seconds = statistics.median(timed(run.advance, device) for _ in range(steps))
        most = max(before, ceiling())
    parameters = sum(p.numel() for p in task.model.parameters())
    rate = flop / seconds / 1e9
    return (
        f"| {name} | {parameters / 1e6:.1f} M | {batch} | {side} | {seconds:.2f} | {batch / seconds:.2f} | "
        f"{flop / 1e9:.0f} | {100 * rate / most:.0f} % of {most:.0f} | {peak.value:.2f} |"
    )


def overhead(device: torch.device, *, rounds: int) -> str:
    """Milliseconds of a step of a plain loop and of ours, turn by turn, on a network too small to hide anything."""
    config = replace(TINY.unet, block_out_channels=(16, 16, 16), num_attention_heads=1, norm_num_groups=4, frames=4)
    task, fit = task_of(config, batch=8, side=8, images=0.0, device=device)
    run = Run(task, fit, seed=0, identity="benchmark", engine=Engine())
    plain, _ = task_of(config, batch=8, side=8, images=0.0, device=device)
    averaged = ema.averaged_copy(plain.model)
    optimiser = torch.optim.AdamW(plain.model.parameters(), lr=1e-4, fused=True)

    def step(number: int) -> None:
        optimiser.zero_grad(set_to_none=True)
        plain.losses(number, generator_at(0, "unet", number))["loss"].backward()
        torch.nn.utils.clip_grad_norm_(plain.model.parameters(), 1.0)
        optimiser.step()
        ema.update(averaged, plain.model, decay=0.99)

    for number in range(3):
        step(number), run.advance()
    pairs = [(timed(lambda n=n: step(n), device), timed(run.advance, device)) for n in range(rounds)]
    a, b = (1000 * statistics.median(column) for column in zip(*pairs, strict=True))
    return f"a step of a plain loop {a:.2f} ms, of the loop on accelerate {b:.2f} ms: {b - a:+.2f} ms ({rounds} turns)"


def main() -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--batch", type=int, default=64, help="frames of a step of tiny")
    parser.add_argument("--width", type=float, default=0.5, help="of sd15; 1 is real and takes 24 GB")
    parser.add_argument("--side", type=int, default=8, help="latents of sd15, 8 is 64 pixels")
    parser.add_argument("--compile", default="no")
    parser.add_argument("--what", default="tiny,sd15,overhead")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    device, what = torch.device(options.device), options.what.split(",")
    gpu = device.type != "cpu"
    engine = Engine(precision="bf16" if gpu else "no", channels_last=gpu, compile=options.compile)

    def ceiling() -> float:
        return matmul_ceiling(device, torch.bfloat16 if gpu else torch.float32, 8192 if gpu else 1536)

    print(f"{platform.processor() or platform.machine()}, {options.device}, {options.threads} threads, ", end="")
    print(f"torch {torch.__version__}\n")
    print("| step | parameters | frames | side | s | frames/s | GFLOP | of the matmul ceiling, GFLOP/s | memory, GB |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    common = {"engine": engine, "device": device, "ceiling": ceiling}
    if "tiny" in what:
        for name, images in (("tiny, images", 1.0), ("tiny, clips of 16", 0.0)):
            print(measure(name, TINY.unet, batch=options.batch, side=16, images=images, steps=options.steps, **common))
    if "sd15" in what:
        widths = tuple(int(width * options.width) for width in SD15.unet.block_out_channels)
        narrow = replace(SD15.unet, block_out_channels=widths, norm_num_groups=16)
        name = f"sd15, width x {options.width:g}"
        common["engine"] = replace(engine, checkpointing=True)
        print(measure(name, narrow, batch=8, side=options.side, images=0.0, steps=1, **common))
    if "overhead" in what:
        print("\n" + overhead(device, rounds=30))


if __name__ == "__main__":
    main()
