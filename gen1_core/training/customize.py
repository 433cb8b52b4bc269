"""Customisation: a trained model learns a subject or a style from 15 to 30 pictures (the paper's customisation).

pictures -> latents, depth, CLIP embeddings (as ``gen1 prepare`` makes them)      --+
original data: prepared shards, or clips of the procedural world, made here       --+--> halves.py --> LoRA or model

Everything that is made on the way stays in a folder, by which the same call goes on where it stopped.
"""

import filecmp
import json
import logging
import math
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from ..checkpoints.files import save_file
from ..content.clip import EmbeddedClip
from ..content.describe import PriorDescriber
from ..diffusion.condition import Condition
from ..gen1 import Gen1
from ..loading import PARTS, as_metadata, load_gen1
from ..models.autoencoder import Autoencoder, decode_clip
from ..models.unet import SpaceTimeUNet
from ..presets import MODELS
from ..structure.blur import flat_structure
from ..tensors import Images, OnStep, ignore_progress
from ..video.geometry import resize
from ..whole import whole
from .bank import BankConfig, render_bank, shard_identity
from .engine import Engine, open_accelerator
from .halves import CustomPlan, Learner, clip_frames, customize_task, learner_of, measure
from .latents import check_weights, encode_shards, fingerprint, load_latents
from .loop import Outcome, generator_at, identity_of, train
from .lora import Adapters, save_lora
from .prepare.networks import NetworkFiles, hash_of_tensors, require
from .prepare.run import prepare
from .prepare.sources import VIDEOS, PrepareConfig, expand
from .samples import sample
from .shards import open_shards
from .sheets import write_sheet
from .sources import LatentSource, ShardSource
from .unet import with_level

logger = logging.getLogger(__name__)

LEAST, USUAL = 4, range(15, 31)
"""Pictures: fewer are refused, other numbers than the paper's are told."""

ONCE = 1 << 30
"""Frames between two samples of a video: each of its scenes gives one picture."""

SHARD = 4
"""Rendered clips in a file; what is whole is not made again."""

SHOWN = 4
"""Rows of a sample sheet."""


@dataclass(frozen=True, kw_only=True)
class CustomWork:
    """What is customised with what, and where it goes.

    ``images`` are folders, lists (.txt) and files, ``weights`` a model's name or folder. ``regularisation`` are folders
    of ``gen1 prepare`` with original data; without them ``clips`` clips of the procedural world are. ``out`` is a
    LoRA's file, or the folder of a whole model; ``folder`` keeps what a later call goes on from.
    """

    images: tuple[str, ...]
    out: Path
    folder: Path
    weights: str = "tiny"
    regularisation: tuple[Path, ...] = ()
    clips: int = 32
    seed: int = 0
    minutes: float = math.inf
    device: torch.device = torch.device("cpu")
    engine: Engine = Engine()
    on_step: OnStep = ignore_progress

    def __post_init__(self) -> None:
        if self.clips < 1 and not self.regularisation:
            raise ValueError(
                f"clips={self.clips} leaves no original data for half of each batch; give 1 or more, or prepared data."
            )

    @property
    def model(self) -> Path:
        """The folder of the model that is customised."""
        return MODELS.get(self.weights, Path(self.weights))


@dataclass(frozen=True, kw_only=True)
class Encoders:
    """The parts of the model that data is made with, and a hash of them."""

    gen1: Gen1
    autoencoder: Autoencoder
    clip: EmbeddedClip
    weights: str


def customize(plan: CustomPlan, work: CustomWork) -> Outcome:
    """Customise a model; call again to go on where it stopped. The averaged weights are written to ``work.out``.

    Raises ValueError, before anything heavy, for too few pictures, for a model or data that are not there or do not
    belong together, and for a place that cannot be written to; later as the training loop does.
    """
    check_work(plan, work)
    encoders = load_encoders(work)
    unet = encoders.gen1.unet
    learner = learner_of(unet, plan, seed=work.seed)
    with open_accelerator(work.engine, work.device).main_process_first():
        pictures = picture_source(work, encoders.gen1)
        original, original_identity = original_source(plan, work, encoders)
    identity = identity_of(plan, fingerprint(unet), pictures.shards[True].checksums(), original_identity)
    evaluate = evaluation(learner, plan, encoders, pictures, original, work)
    task = customize_task(
        learner, plan, encoders.gen1.diffusion, pictures, original, evaluate=evaluate, device=work.device
    )
    outcome = train(
        task,
        plan.fit,
        work.folder,
        seed=work.seed,
        identity=identity,
        minutes=work.minutes,
        engine=work.engine,
        on_step=work.on_step,
    )
    if open_accelerator(work.engine, work.device).is_main_process:
        export(plan, work, encoders.gen1, outcome, pictures=len(pictures.shards[True]))
    return outcome


def check_work(plan: CustomPlan, work: CustomWork) -> None:
    """What can be refused at once; of videos each scene gives a picture, and they are counted when they were seen."""
    found = expand(work.images)
    count = len(found)
    if count < LEAST and all(isinstance(path, Path) and path.suffix.lower() not in VIDEOS for path in found):
        raise ValueError(
            f"{count} pictures were given, and a model would learn them by heart; give at least {LEAST}, better "
            f"{USUAL.start} to {USUAL.stop - 1}."
        )
    if plan.method == "lora" and work.out.suffix != ".safetensors":
        raise ValueError(f"{work.out} would be a LoRA of a name that nobody finds; let it end in .safetensors.")
    if plan.method == "full" and (work.out.is_file() or work.out.suffix == ".safetensors"):
        raise ValueError(f"{work.out} is a file, but a whole model is a folder of five; name a folder.")
    if work.out.resolve() == work.model.resolve():
        raise ValueError(f"{work.out} is the model that is customised, and it would be lost; name another folder.")
    try:
        (work.out if plan.method == "full" else work.out.parent).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{work.out} cannot be written to ({error}); name another place.") from error


def load_encoders(work: CustomWork) -> Encoders:
    """The model in float32, with the parts that are needed apart.

    Raises ValueError for a model that is not there, and for one whose content is no single embedding.
    """
    gen1 = load_gen1(work.weights, device=work.device)
    autoencoder = require(gen1.autoencoder, Autoencoder)
    clip = require(require(gen1.describer, PriorDescriber).encoder, EmbeddedClip)
    depth = hash_of_tensors(work.model / "depth.safetensors")
    return Encoders(
        gen1=gen1, autoencoder=autoencoder, clip=clip, weights=f"{fingerprint(autoencoder, clip.clip)} {depth}"
    )


def picture_source(work: CustomWork, gen1: Gen1) -> ShardSource:
    """The pictures as ``gen1 prepare`` makes them, at all t_s. What cannot be read is told and left out.

    Raises ValueError where too few are left.
    """
    folder = work.folder / "pictures"
    config = PrepareConfig(
        size=gen1.diffusion.working_size,
        frames=1,
        stride=1,
        hop=ONCE,
        multiple=8 * 2 ** (len(gen1.unet.config.block_out_channels) - 1),
        levels="all",
    )
    files = NetworkFiles(model=work.weights)
    summary = prepare(work.images, folder, config, files, devices=[str(work.device)], remove=True, on_step=work.on_step)
    for error in summary.errors:
        logger.warning("%s is left out: %s", error["path"], error["reason"])
    if summary.samples < LEAST:
        raise ValueError(
            f"only {summary.samples} of the pictures can be read ({folder / 'errors.jsonl'} says why), and a model "
            f"would learn them by heart; give at least {LEAST}, better {USUAL.start} to {USUAL.stop - 1}."
        )
    if summary.samples not in USUAL:
        logger.warning(
            "%d pictures: the paper takes %d to %d; fewer are learnt by heart, more want more steps.",
            summary.samples,
            USUAL.start,
            USUAL.stop - 1,
        )
    return ShardSource(open_shards(folder), seed=work.seed)


def original_source(plan: CustomPlan, work: CustomWork, encoders: Encoders) -> tuple[LatentSource, Any]:
    """Original data, and what it is: prepared shards, or clips of the world that the embedded model learnt from.

    Raises ValueError for shards that were encoded with other weights.
    """
    if work.regularisation:
        shards = open_shards(*work.regularisation)
        check_weights(shards, work.regularisation[0], encoders.autoencoder, encoders.clip.clip)
        return ShardSource(shards, seed=work.seed), shards.checksums()
    gen1 = encoders.gen1
    longest = gen1.unet.config.longest
    clip_frames(plan, longest=longest, available=longest)  # told before anything is rendered
    config = BankConfig(
        name="original",
        seed=1,
        shards=-(-work.clips // SHARD),
        clips=SHARD,
        frames=longest,
        size=gen1.diffusion.working_size,
    )
    shards = range(config.shards)
    render_bank(config, work.folder / "bank", shards=shards, device=work.device, on_step=work.on_step)
    encode_shards(
        config,
        work.folder / "bank",
        work.folder / "latents",
        encoders.autoencoder,
        encoders.clip,
        shards=shards,
        weights=encoders.weights,
        estimate=gen1.depth,
        on_step=work.on_step,
    )
    latents = load_latents(config, work.folder / "latents", shards=shards, weights=encoders.weights)
    return latents.to(work.device), [shard_identity(config), config.shards, encoders.weights]


def evaluation(
    learner: Learner,
    plan: CustomPlan,
    encoders: Encoders,
    pictures: LatentSource,
    original: LatentSource,
    work: CustomWork,
) -> Callable[[nn.Module, int], dict[str, float]]:
    """The losses on the pictures and on original data, before and now, and a sheet of edits by both models.

    Both losses are on what is trained on: they tell whether it is learnt and whether the rest is kept, not how well
    it works elsewhere.
    """
    diffusion = encoders.gen1.diffusion
    frames = clip_frames(plan, longest=learner.unet.config.longest, available=original.longest())
    told = {"seed": work.seed, "device": work.device}

    def figures(unet: SpaceTimeUNet) -> dict[str, float]:
        return {
            "pictures": measure(unet, plan, diffusion, pictures, frames=1, **told),
            "original": measure(unet, plan, diffusion, original, frames=frames, **told),
        }

    begun = figures(learner.unet)
    columns, condition = sheet_parts(encoders.autoencoder, pictures, original, work)
    edited = edits(learner.unet, condition, encoders)

    def evaluate(averaged: nn.Module, step: int) -> dict[str, float]:
        with learner.using(averaged) as unet:
            write_sheet(work.folder / f"sheet-{step:06d}.png", [*columns, edited, edits(unet, condition, encoders)])
            return {**figures(unet), **{f"{name}_before": value for name, value in begun.items()}}

    return evaluate


def sheet_parts(
    autoencoder: Autoencoder, pictures: LatentSource, original: LatentSource, work: CustomWork
) -> tuple[list[Images], Condition]:
    """Frames of original data and pictures beside them, and the condition of an edit of the one to the other's look."""
    generator = generator_at(work.seed, "sheet", 0)
    sources, looks = (part.draw(0, count=SHOWN, frames=1, generator=generator) for part in (original, pictures))
    detail = torch.zeros_like(sources.level)
    frames, shown = original.read(replace(sources, level=detail), work.device), pictures.read(looks, work.device)
    content = rearrange(shown.content, "b d -> b 1 1 d")
    condition = Condition(
        structure=with_level(frames.depth, detail), content=content, null=torch.zeros_like(content), image=True
    )
    seen, look = (decoded(autoencoder, part.rgb) for part in (frames, shown))
    return [seen, resize(look, width=seen.shape[-1], height=seen.shape[-2])], condition


@torch.no_grad()
def edits(unet: SpaceTimeUNet, condition: Condition, encoders: Encoders) -> Images:
    """Single frames edited with the model's own settings."""
    gen1 = encoders.gen1
    flat = flat_structure(encoders.autoencoder, like=condition.structure)
    return decoded(encoders.autoencoder, sample(unet, condition, gen1.diffusion, gen1.defaults, seed=1, flat=flat))


@torch.no_grad()
def decoded(autoencoder: Autoencoder, latents: Float[Tensor, "b c f h8 w8"]) -> Images:
    """Latents of single frames as pictures 0..1."""
    return decode_clip(autoencoder, rearrange(latents, "b c f h w -> (b f) c h w"), chunk=8).clamp(0, 1)


def export(plan: CustomPlan, work: CustomWork, gen1: Gen1, outcome: Outcome, *, pictures: int) -> None:
    """The averaged weights in float16: a LoRA, or a folder that ``load_gen1`` takes."""
    made = {
        "name": f"{work.weights} customized",
        "pictures": pictures,
        "original": [str(folder) for folder in work.regularisation] or f"world:{work.clips}",
        "seed": work.seed,
        "steps": outcome.step,
        "finished": outcome.finished,
        "hours": round(outcome.hours, 4),
        "plan": asdict(plan),
        "measured": {name: round(value, 5) for name, value in outcome.record.items()},
    }
    if isinstance(outcome.averaged, Adapters):
        save_lora(work.out, outcome.averaged, plan.lora, metadata=made)
    else:
        for part in PARTS:
            if part != "unet":
                copy_file(work.model / f"{part}.safetensors", work.out / f"{part}.safetensors")
        tensors = {name: tensor.half() for name, tensor in outcome.averaged.state_dict().items()}
        metadata = {"recipe": json.dumps(made), **as_metadata(gen1.diffusion, gen1.defaults)}
        save_file(work.out / "unet.safetensors", tensors, kind="unet", config=gen1.unet.config, metadata=metadata)
    logger.info("step %d, finished=%s, %s -> %s", outcome.step, outcome.finished, made["measured"], work.out)


def copy_file(source: Path, target: Path) -> None:
    """A copy that is there whole or not at all; one that is there already is left alone.

    Raises ValueError where the disk is full.
    """
    if target.exists() and filecmp.cmp(source, target, shallow=False):
        return
    with whole(target, advice="free some space and give the same command again") as part:
        shutil.copyfile(source, part)
