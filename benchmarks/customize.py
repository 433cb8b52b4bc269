"""Does a model learn a look from 20 pictures, and keep the rest? Figures of what `gen1 customize` writes.

The pictures are single frames of 20 scenes of the procedural world in one style of a combination that no training
shows. Asked are scenes of families that no training shows: clips in another style are edited to the look of one of the
pictures, and compared with the renderer's own answer. What is kept is the loss on clips of the world that neither the
model nor its customisation has seen.

Run: python benchmarks/customize.py FOLDER [--method lora full] [--steps 60] [--rate R] [--weights tiny]
"""

import argparse
import shutil
import sys
import time
from dataclasses import replace
from pathlib import Path

import torch
from einops import rearrange

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gen1_core import load_gen1, open_video
from gen1_core.checkpoints.files import load_module
from gen1_core.commands.customize import RATES
from gen1_core.gen1 import Gen1
from gen1_core.loading import config_of, read_part, with_lora
from gen1_core.models.depth import DepthNet, DepthNetConfig
from gen1_core.tensors import to_float
from gen1_core.training.bank import Bank, BankConfig, join, look_of, render_clip
from gen1_core.training.customize import CustomWork, customize, load_encoders
from gen1_core.training.halves import CustomPlan, measure
from gen1_core.training.latents import encode_bank
from gen1_core.training.samples import Judges, evaluation
from gen1_core.training.stages import Fit, Rate
from gen1_core.training.unet import UNetPlan
from gen1_core.training.world import (
    HELD_OUT_FAMILIES,
    TRAINED_FAMILIES,
    Style,
    random_scene,
    random_style,
    render_styles,
)
from gen1_core.video.sheet import to_picture

CPU = torch.device("cpu")


def write_pictures(folder: Path, style: Style, *, count: int, size: int) -> None:
    """One frame each of scenes of the trained families."""
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(count):
        generator = torch.Generator().manual_seed(1000 + number)
        scene = random_scene(TRAINED_FAMILIES[number % len(TRAINED_FAMILIES)], generator, frames=1)
        rgb, _ = render_styles([scene], [[style]], height=size, width=size, supersample=2, device=CPU)
        to_picture(rgb[0, 0, 0]).save(folder / f"{number:02d}.png")


def unseen_scenes(style: Style, *, count: int, frames: int, size: int) -> Bank:
    """Clips of the held-out families in a look of their own, and in the asked one."""
    clips = []
    for number in range(count):
        generator = torch.Generator().manual_seed(2000 + number)
        family = HELD_OUT_FAMILIES[number % len(HELD_OUT_FAMILIES)]
        scene, look = random_scene(family, generator, frames=frames), random_style(generator)
        rgb, raw = render_styles([scene], [[look, style]], height=size, width=size, supersample=2, device=CPU)
        depth = (raw - raw.min()) / (raw.max() - raw.min())
        clips.append(
            Bank(
                rgb=rgb,
                depth=rearrange((depth * 255).round().to(torch.uint8), "1 1 f h w -> 1 f 1 h w"),
                captions=[[[""], [""]]],
                looks=[[look_of(look), look_of(style)]],
                families=[family],
            )
        )
    return join(clips)


def main() -> None:
    """Makes pictures and scenes, customises by each method, and prints a table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--weights", default="tiny")
    parser.add_argument("--method", nargs="+", choices=sorted(RATES), default=sorted(RATES))
    parser.add_argument("--pictures", type=int, default=20)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rate", type=float)
    parser.add_argument("--clips", type=int, default=32, help="original data while customising")
    parser.add_argument("--scenes", type=int, default=4, help="what is edited")
    parser.add_argument("--kept", type=int, default=8, help="clips that the loss on unseen original data is taken on")
    parser.add_argument("--style", type=int, default=7, help="seed of the look")
    parser.add_argument("--threads", type=int, default=1)
    asked = parser.parse_args()
    torch.set_num_threads(asked.threads)

    style = random_style(torch.Generator().manual_seed(asked.style), held_out=True)
    pictures = asked.folder / "pictures"
    work = CustomWork(images=(str(pictures),), out=asked.folder, folder=asked.folder / "work", weights=asked.weights)
    encoders = load_encoders(work)
    size, frames = encoders.gen1.diffusion.working_size, encoders.gen1.unet.config.longest
    write_pictures(pictures, style, count=asked.pictures, size=size)
    bank = unseen_scenes(style, count=asked.scenes, frames=frames, size=size)
    encode = lambda clips: encode_bank(clips, encoders.autoencoder, encoders.clip, torch.Generator().manual_seed(0))  # noqa: E731
    latents = encode(bank)
    config = BankConfig(name="kept", seed=99, shards=1, clips=asked.kept, frames=frames, size=size)
    kept = encode(join([render_clip(config, number, device=CPU) for number in range(asked.kept)]))
    file = read_part(work.model, "depth")
    made = config_of(DepthNetConfig, file)
    depth = load_module(lambda: DepthNet(made), file.tensors, device=CPU, dtype=torch.float32, path=work.model)
    judges = Judges(autoencoder=encoders.autoencoder, depth=depth, encoder=encoders.clip)

    def plan_of(method: str) -> CustomPlan:
        peak = asked.rate or RATES[method]
        rate = Rate(peak=peak, final=peak / 10, warmup=10)
        fit = Fit(steps=asked.steps, batch=asked.batch, rate=rate, ema_decay=0.99, log_every=10, evaluate_every=10**6)
        return CustomPlan(method=method, fit=fit)  # pyright: ignore[reportArgumentType]

    def judged(name: str, gen1: Gen1, seconds: float) -> None:
        plan = plan_of("lora")
        stages = UNetPlan(fit=plan.fit, stages=(plan.stage,))
        told = replace(latents, images=looks)
        look = evaluation(
            told, bank, judges, stages, gen1.diffusion, gen1.defaults, sheets / name, clips=asked.scenes
        )  # fmt: skip
        (sheets / name).mkdir(parents=True, exist_ok=True)
        found = look(gen1.unet, asked.steps)
        loss = measure(gen1.unet, plan, gen1.diffusion, kept, frames=frames, seed=0, device=CPU)
        found |= {"loss_original": loss, "seconds": seconds}
        print(name, {key: round(value, 4) for key, value in found.items()}, flush=True)

    sheets = asked.folder / "sheets"
    paths = sorted(pictures.glob("*.png"))[: asked.scenes]
    shown = encoders.clip.encode_images(torch.cat([to_float(next(iter(open_video(path)))) for path in paths]))
    looks = shown[:, None, None].expand(-1, 2, frames, -1)
    judged("before", load_gen1(asked.weights), 0.0)
    for method in asked.method:
        out = asked.folder / ("look.safetensors" if method == "lora" else "model")
        began = time.perf_counter()
        folder = asked.folder / f"work-{method}"
        for part in ("pictures", "bank", "latents"):  # the same data for all methods, made once
            there = asked.folder / f"work-{asked.method[0]}" / part
            if there.exists() and there.parent != folder:
                shutil.copytree(there, folder / part, dirs_exist_ok=True)
        job = replace(work, out=out, folder=folder, clips=asked.clips)
        print(method, customize(plan_of(method), job).record, flush=True)
        seconds = time.perf_counter() - began
        made_of = with_lora(load_gen1(asked.weights), out) if method == "lora" else load_gen1(out)
        judged(method, made_of, seconds)


if __name__ == "__main__":
    main()
