"""A whole model from a seed: the recipe as one config, and its parts in the order they need each other.

bank -> autoencoder, clip, depth (in any order, or side by side) -> encode -> decoder, prior, unet

As in the paper, structure in training comes from the estimator that edits use, with its faults: that of half of the
clips (``estimated_depth``). The others show the renderer's own depth, since users may bring a better estimator.
"""

import json
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from ..checkpoints.files import load_module, read_file, save_file
from ..content.clip import EmbeddedClip
from ..content.tokenizer import Tokenizer
from ..gen1 import Diffusion, EditOptions
from ..loading import PARTS as WEIGHTS
from ..loading import as_metadata, config_of, read_part
from ..models.autoencoder import Autoencoder, AutoencoderConfig
from ..models.clip import CLIP, CLIPConfig
from ..models.depth import DepthNet, DepthNetConfig
from ..models.prior import PriorConfig
from ..models.unet import UNetConfig
from ..structure.estimator import network_estimator
from ..tensors import OnStep, ignore_progress
from .autoencoder import AutoencoderPlan, autoencoder_task, decoder_task, normalised
from .autoencoder import evaluation as reconstruction_evaluation
from .bank import Bank, BankConfig, load_bank, render_bank, shard_identity
from .clip import CLIPPlan, caption_words, clip_task
from .depth import DepthPlan, depth_task
from .engine import Engine, open_accelerator
from .latents import LatentBank, check_weights, encode_shards, fingerprint, load_latents
from .loop import train
from .patches import principal_autoencoder
from .prior import PriorPlan, prior_task
from .restart import adopt, start_from
from .samples import Judges, evaluation
from .shards import Shards, open_shards
from .sources import LatentSource, ShardSource
from .task import Keep, Outcome, Task, identity_of, keep_nothing
from .unet import UNetPlan, unet_task, with_steps

logger = logging.getLogger(__name__)

Module = TypeVar("Module", bound=nn.Module)
Part = Literal["bank", "autoencoder", "clip", "depth", "encode", "decoder", "prior", "unet"]
PARTS: tuple[Part, ...] = get_args(Part)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything a model is made from."""

    name: str
    seed: int
    bank: BankConfig
    held_out: BankConfig
    autoencoder: AutoencoderConfig
    autoencoder_plan: AutoencoderPlan
    decoder_plan: AutoencoderPlan
    clip: CLIPConfig
    clip_plan: CLIPPlan
    depth: DepthNetConfig
    depth_plan: DepthPlan
    prior: PriorConfig
    prior_plan: PriorPlan
    unet: UNetConfig
    unet_plan: UNetPlan
    diffusion: Diffusion
    options: EditOptions
    judged_clips: int = 10
    estimated_depth: bool = True

    def __post_init__(self) -> None:
        if self.held_out.styles < 2:
            raise ValueError("held_out.styles=1 leaves no other style to edit to; render at least 2.")
        if self.bank.seed == self.held_out.seed:
            raise ValueError(
                f"bank and held_out have the same seed={self.bank.seed}, so evaluation would see the "
                "training clips; give them different seeds."
            )


@dataclass(frozen=True, kw_only=True)
class Work:
    """Where, how long and how one call works. ``shards`` of the bank are rendered, encoded, or trained on.

    ``start`` is a folder of finished parts: what is trained begins at their weights, what is not is taken from there.
    ``data`` are folders of prepared shards, which the U-Net sees in ``data_share`` of its steps beside the bank.
    """

    folder: Path
    shards: range
    minutes: float
    device: torch.device
    on_step: OnStep = ignore_progress
    engine: Engine = Engine()
    start: Path | None = None
    data: tuple[Path, ...] = ()
    data_share: float = 0.5

    @property
    def weights(self) -> Path:
        """The folder of the finished parts: what ``load_gen1`` takes."""
        return self.folder / "weights"


def recipe_with_steps(recipe: Recipe, part: str, steps: int) -> Recipe:
    """The same recipe with one part trained for another number of steps, its learning rate stretched."""
    if part == "unet":
        return replace(recipe, unet_plan=with_steps(recipe.unet_plan, steps))
    name = f"{part}_plan"
    if not hasattr(recipe, name):
        raise ValueError(f"the part {part!r} has no training steps; give steps to one that is trained.")
    plan = getattr(recipe, name)
    return replace(recipe, **{name: replace(plan, fit=replace(plan.fit, steps=steps))})


def recipe_with_batch(recipe: Recipe, part: str, batch: int) -> Recipe:
    """The same recipe with one part trained on batches of another size; the U-Net counts frames."""
    name = f"{part}_plan"
    if not hasattr(recipe, name):
        raise ValueError(f"the part {part!r} draws no batches; give a batch to one that is trained.")
    plan = getattr(recipe, name)
    changed = replace(plan, fit=replace(plan.fit, batch=batch))
    if part == "unet":
        changed = replace(changed, stages=tuple(replace(stage, batch=batch) for stage in plan.stages))
    return replace(recipe, **{name: changed})


def run(recipe: Recipe, parts: Sequence[Part], work: Work) -> None:
    """The parts in their order; each goes on where it stopped.

    A part stopped by the clock still exports, but the chain ends there: what later parts are made from would change.
    Raises ValueError, before any work, where accelerate is not installed, there is nothing to start from, or prepared
    data is missing or of no use.
    """
    if work.start and work.start.resolve() == work.weights.resolve():
        raise ValueError(
            f"{work.start} is where this training writes its own weights, so its start would be lost; give another "
            "--folder, or leave --from out to go on with the run that is there."
        )
    if work.data and "unet" not in parts:
        raise ValueError(f"prepared data is for the U-Net, and {', '.join(parts)} would not see it; leave --data out.")
    if work.data:
        open_shards(*work.data)
    with main_first(work):
        if work.start:
            adopt(work.start, work.weights, [name for name in WEIGHTS if name not in made_by(parts)])
    for part in PARTS:
        if part not in parts:
            continue
        logger.info("%s: %s in %s", recipe.name, part, work.folder)
        if not RUNS[part](recipe, work):
            logger.info("%s: stopped, since %s is not finished; the same command goes on", recipe.name, part)
            return


def made_by(parts: Sequence[Part]) -> set[str]:
    """The weights that parts make anew; the decoder is trained on from the autoencoder that is there."""
    return {part for part in parts if part in WEIGHTS}


@contextmanager
def main_first(work: Work) -> Iterator[bool]:
    """What writes files that all processes read: the main one does it, the others find it done. Yields who is main."""
    accelerator = open_accelerator(work.engine, work.device)
    with accelerator.main_process_first():
        yield accelerator.is_main_process


def run_bank(recipe: Recipe, work: Work) -> bool:
    """Render the training clips, and the held-out ones by whoever renders the first shard."""
    folder = work.folder / "bank"
    with main_first(work):
        if 0 in work.shards:
            held_out = recipe.held_out
            render_bank(held_out, folder, shards=range(held_out.shards), device=work.device, on_step=work.on_step)
        render_bank(recipe.bank, folder, shards=work.shards, device=work.device, on_step=work.on_step)
    return True


def run_autoencoder(recipe: Recipe, work: Work) -> bool:
    """Train the autoencoder, then measure its latents."""
    if recipe.autoencoder.patch_encoder:
        return run_principal(recipe, work)
    bank, held_out = _banks(recipe, work)
    folder, plan = _part_folder(work, "autoencoder"), recipe.autoencoder_plan
    task = autoencoder_task(
        recipe.autoencoder, plan, bank, held_out, seed=recipe.seed, folder=folder, device=work.device
    )
    outcome = _train(task, plan, recipe, work, recipe.autoencoder)
    config = normalised(outcome.averaged, bank, frames=256, seed=recipe.seed)  # pyright: ignore[reportArgumentType]
    return _export(recipe, work, "autoencoder", outcome, config, plan, {})


def run_principal(recipe: Recipe, work: Work) -> bool:
    """Linear maps of patches are computed, not trained, in seconds; those of ``work.start`` are taken as they are.

    The same maps may be there with a decoder that was trained since: that file stays.
    """
    if work.start and (work.start / "autoencoder.safetensors").is_file():
        with main_first(work):
            adopt(work.start, work.weights, ["autoencoder"])
        return True
    bank, held_out = _banks(recipe, work)
    model = principal_autoencoder(recipe.autoencoder, bank, frames=2048, seed=recipe.seed).to(work.device)
    config = normalised(model, bank, frames=256, seed=recipe.seed)
    there = load_autoencoder(work) if (work.weights / "autoencoder.safetensors").is_file() else None
    # Nobody writes before all have looked: they must come to the same answer.
    open_accelerator(work.engine, work.device).wait_for_everyone()
    if there is not None and there.config == config:
        made = Autoencoder(config)
        made.load_state_dict({name: tensor.half().float() for name, tensor in model.state_dict().items()})
        if fingerprint(there) == fingerprint(made):
            logger.info("autoencoder: these patches are there already, and their decoder stays as it is")
            return True
    record = reconstruction_evaluation(held_out, _part_folder(work, "autoencoder"))(model, 0)
    fitted = Outcome(step=0, finished=True, hours=0.0, record=record, averaged=model)
    return _export(recipe, work, "autoencoder", fitted, config, recipe.autoencoder_plan, {})


def run_decoder(recipe: Recipe, work: Work) -> bool:
    """Train the decoder on, with the encoder as it is; the autoencoder's file is replaced."""
    bank, held_out = _banks(recipe, work)
    folder, plan = _part_folder(work, "decoder"), recipe.decoder_plan
    before = read_part(work.weights, "autoencoder").metadata
    model = load_autoencoder(work)
    task = decoder_task(model, plan, bank, held_out, folder=folder, device=work.device)
    outcome = _train(task, plan, recipe, work, fingerprint(model))
    first = before.get("recipe_autoencoder", before["recipe"])
    return _export(recipe, work, "autoencoder", outcome, model.config, plan, {"recipe_autoencoder": first})


def run_clip(recipe: Recipe, work: Work) -> bool:
    """Train the CLIP pair."""
    bank, held_out = _banks(recipe, work)
    plan = recipe.clip_plan
    tokenizer = Tokenizer.embedded(recipe.clip.context_length)
    task = clip_task(recipe.clip, plan, bank, held_out, tokenizer, seed=recipe.seed, device=work.device)
    outcome = _train(task, plan, recipe, work, recipe.clip)
    return _export(recipe, work, "clip", outcome, recipe.clip, plan, {"words": caption_words(bank)})


def run_depth(recipe: Recipe, work: Work) -> bool:
    """Train the depth network."""
    bank, held_out = _banks(recipe, work)
    folder, plan = _part_folder(work, "depth"), recipe.depth_plan
    task = depth_task(recipe.depth, plan, bank, held_out, seed=recipe.seed, folder=folder, device=work.device)
    outcome = _train(task, plan, recipe, work, recipe.depth)
    return _export(recipe, work, "depth", outcome, recipe.depth, plan, {})


def run_encode(recipe: Recipe, work: Work) -> bool:
    """Encode the bank with the trained autoencoder, CLIP and depth network; held-out clips show their true depth."""
    autoencoder, encoder = load_autoencoder(work), load_encoder(work)
    weights = latents_fingerprint(recipe, work)
    estimate = network_estimator(load_depth(work)) if recipe.estimated_depth else None
    jobs = [(recipe.bank, work.shards, estimate)]
    if 0 in work.shards:
        jobs.insert(0, (recipe.held_out, range(recipe.held_out.shards), None))
    with main_first(work):
        for config, shards, guess in jobs:
            encode_shards(
                config,
                work.folder / "bank",
                work.folder / "latents",
                autoencoder,
                encoder,
                shards=shards,
                weights=weights,
                estimate=guess,
                on_step=work.on_step,
            )
    return True


def run_prior(recipe: Recipe, work: Work) -> bool:
    """Train the prior."""
    latents, held_out, weights = _latents(recipe, work)
    plan = recipe.prior_plan
    task = prior_task(recipe.prior, plan, latents, held_out, seed=recipe.seed, device=work.device)
    outcome = _train(task, plan, recipe, work, recipe.prior, weights)
    return _export(recipe, work, "prior", outcome, recipe.prior, plan, {})


def run_unet(recipe: Recipe, work: Work) -> bool:
    """Train the U-Net through its stages."""
    latents, held_out, weights = _latents(recipe, work)
    sources, plan = _sources(recipe, work, latents)
    folder = _part_folder(work, "unet")
    judges = Judges(
        autoencoder=load_autoencoder(work),
        depth=load_depth(work),
        encoder=load_encoder(work),
    )
    truth = load_bank(recipe.held_out, work.folder / "bank", shards=range(recipe.held_out.shards))
    evaluate = evaluation(
        held_out, truth, judges, plan, recipe.diffusion, recipe.options, folder, clips=recipe.judged_clips
    )
    task = unet_task(
        recipe.unet, plan, recipe.diffusion, *sources, evaluate=evaluate, seed=recipe.seed, device=work.device
    )
    extra = as_metadata(recipe.diffusion, recipe.options)

    def keep(averaged: nn.Module, name: str, step: int) -> None:
        tensors = {key: tensor.half() for key, tensor in averaged.state_dict().items()}
        told = {**extra, "recipe": json.dumps({"name": recipe.name, "stage": name, "steps": step})}
        save_file(folder / f"stage-{name}.safetensors", tensors, kind="unet", config=recipe.unet, metadata=told)

    made_from = [recipe.unet, recipe.diffusion, weights, *data_identity(work.data)]
    outcome = _train(task, plan, recipe, work, *made_from, keep=keep)
    return _export(recipe, work, "unet", outcome, recipe.unet, plan, extra)


def _sources(recipe: Recipe, work: Work, latents: LatentBank) -> tuple[list[LatentSource], UNetPlan]:
    """The bank, and the prepared shards that were given, with their shares of the steps.

    Raises ValueError for shards that were encoded with other weights than this model's, and for clips that are too
    short.
    """
    if not work.data:
        return [latents], recipe.unet_plan
    shards = open_shards(*work.data)
    check_weights(shards, work.data[0], load_autoencoder(work), load_encoder(work).clip)
    check_length(shards, recipe.unet.frames)
    return [latents, ShardSource(shards, seed=recipe.seed)], replace(
        recipe.unet_plan, shares=(1 - work.data_share, work.data_share)
    )


def check_length(shards: Shards, frames: int) -> None:
    """Refuses data without a clip as long as the network joins, before the first step that would want one."""
    if shards.longest() < frames:
        raise ValueError(
            f"the longest clip has {shards.longest()} frames and the network wants {frames}; prepare longer ones "
            f"(gen1 prepare --frames {frames})."
        )


def data_identity(folders: Sequence[Path]) -> list[Any]:
    """What is in prepared data, wherever it lies."""
    shards = open_shards(*folders) if folders else None
    return [shards.weights, shards.checksums()] if shards else []


def load_autoencoder(work: Work) -> Autoencoder:
    """The exported autoencoder, as every user will have it."""
    return _load(work, "autoencoder", Autoencoder, AutoencoderConfig)


def load_depth(work: Work) -> DepthNet:
    """The exported depth network."""
    return _load(work, "depth", DepthNet, DepthNetConfig)


def latents_fingerprint(recipe: Recipe, work: Work) -> str:
    """A hash of all weights that the latents follow from."""
    used: list[nn.Module] = [load_autoencoder(work), load_encoder(work).clip]
    return fingerprint(*used, *([load_depth(work)] if recipe.estimated_depth else []))


def load_encoder(work: Work) -> EmbeddedClip:
    """The exported CLIP pair as a content encoder."""
    clip = _load(work, "clip", CLIP, CLIPConfig)
    return EmbeddedClip(clip, Tokenizer.embedded(clip.config.context_length))


def _load(work: Work, part: str, build: Callable[[Any], Module], config: type) -> Module:
    """A part's weights from its file, in float32, fixed."""
    file = read_part(work.weights, part)
    path = work.weights / f"{part}.safetensors"
    made = config_of(config, file)
    module = load_module(lambda: build(made), file.tensors, device=work.device, dtype=torch.float32, path=path)
    return module.requires_grad_(False)


def _train(task: Task, plan: Any, recipe: Recipe, work: Work, *made_from: Any, keep: Keep = keep_nothing) -> Outcome:
    """Train one part in its own folder; ``made_from`` says what besides plan and bank its weights follow from."""
    bank = [shard_identity(recipe.bank), work.shards.start, work.shards.stop]
    begun = work.start / f"{task.name}.safetensors" if work.start else Path()
    if begun.is_file():
        start_from(task.model, read_file(begun).tensors, begun)
        made_from = (*made_from, fingerprint(task.model))
        logger.info("%s: from the weights in %s", task.name, begun)
    return train(
        task,
        plan.fit,
        _part_folder(work, task.name),
        seed=recipe.seed,
        identity=identity_of(plan, bank, *made_from),
        minutes=work.minutes,
        engine=work.engine,
        keep=keep,
        on_step=work.on_step,
    )


def _part_folder(work: Work, part: str) -> Path:
    """The folder of a part's checkpoint, log and sheets."""
    folder = work.folder / part
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _banks(recipe: Recipe, work: Work) -> tuple[Bank, Bank]:
    """Training and held-out clips."""
    folder = work.folder / "bank"
    held_out = load_bank(recipe.held_out, folder, shards=range(recipe.held_out.shards))
    bank = load_bank(recipe.bank, folder, shards=work.shards)
    return replace(bank, rgb=bank.rgb.to(work.device), depth=bank.depth.to(work.device)), held_out


def _latents(recipe: Recipe, work: Work) -> tuple[LatentBank, LatentBank, str]:
    """Training and held-out clips, encoded with the weights that are there, and the fingerprint of these."""
    weights = latents_fingerprint(recipe, work)
    folder = work.folder / "latents"
    held_out = load_latents(recipe.held_out, folder, shards=range(recipe.held_out.shards), weights=weights)
    return load_latents(recipe.bank, folder, shards=work.shards, weights=weights).to(work.device), held_out, weights


def splits_seen(recipe: Recipe, work: Work, part: str) -> list[str]:
    """The splits of the world that weights have learnt from, also before a warm restart; "unknown" if not told."""
    start = work.start / f"{part}.safetensors" if work.start else Path()
    if not start.is_file():
        return [recipe.bank.split]
    told = json.loads(read_file(start).metadata.get("recipe", "{}"))
    before = told.get("splits") or [told.get("bank", {}).get("split", "unknown")]
    return sorted({recipe.bank.split, *before})


def _export(
    recipe: Recipe, work: Work, part: str, outcome: Outcome, config: Any, plan: Any, extra: dict[str, str]
) -> bool:
    """The averaged weights in float16, with config and recipe in the metadata; returns whether they are finished."""
    work.weights.mkdir(parents=True, exist_ok=True)
    made = {
        "name": recipe.name,
        "seed": recipe.seed,
        "steps": outcome.step,
        "finished": outcome.finished,
        "hours": round(outcome.hours, 4),
        "clips": len(work.shards) * recipe.bank.clips,
        "bank": asdict(recipe.bank),
        "splits": splits_seen(recipe, work, part),
        "plan": asdict(plan),
        "measured": {name: round(value, 5) for name, value in outcome.record.items()},
    }
    tensors = {name: tensor.half() for name, tensor in outcome.averaged.state_dict().items()}
    path = work.weights / f"{part}.safetensors"
    with main_first(work) as main:
        if main:
            save_file(path, tensors, kind=part, config=config, metadata={"recipe": json.dumps(made), **extra})
    logger.info("%s: step %d, finished=%s, %s -> %s", part, outcome.step, outcome.finished, made["measured"], path)
    return outcome.finished


RUNS: dict[Part, Callable[[Recipe, Work], bool]] = {
    "bank": run_bank,
    "autoencoder": run_autoencoder,
    "clip": run_clip,
    "depth": run_depth,
    "encode": run_encode,
    "decoder": run_decoder,
    "prior": run_prior,
    "unet": run_unet,
}
