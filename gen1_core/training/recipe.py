"""A whole model from a seed: the recipe as one config, and its parts in the order they need each other.

bank -> autoencoder, clip, depth (in any order, or side by side) -> encode -> decoder, prior, unet
"""

import json
import logging
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypeVar, get_args

import torch
from torch import nn

from ..checkpoints.files import load_module, save_file
from ..content.clip import EmbeddedClip
from ..content.tokenizer import Tokenizer
from ..gen1 import Diffusion, EditOptions
from ..loading import as_metadata, config_of, read_part
from ..models.autoencoder import Autoencoder, AutoencoderConfig
from ..models.clip import CLIP, CLIPConfig
from ..models.depth import DepthNet, DepthNetConfig
from ..models.prior import PriorConfig
from ..models.unet import UNetConfig
from ..tensors import OnStep, ignore_progress
from .autoencoder import AutoencoderPlan, autoencoder_task, decoder_task, normalised
from .bank import Bank, BankConfig, load_bank, render_bank, shard_identity
from .clip import CLIPPlan, caption_words, clip_task
from .depth import DepthPlan, depth_task
from .latents import LatentBank, encode_shards, fingerprint, load_latents
from .loop import Outcome, Task, identity_of, train
from .prior import PriorPlan, prior_task
from .samples import Judges, evaluation
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
    """Where and how long one call works. ``shards`` of the bank are rendered, encoded, or trained on."""

    folder: Path
    shards: range
    minutes: float
    device: torch.device
    on_step: OnStep = ignore_progress

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


def run(recipe: Recipe, parts: Sequence[Part], work: Work) -> None:
    """The parts in their order; each goes on where it stopped.

    A part stopped by the clock still exports, but the chain ends there: what later parts are made from would change.
    """
    for part in PARTS:
        if part not in parts:
            continue
        logger.info("%s: %s in %s", recipe.name, part, work.folder)
        if not RUNS[part](recipe, work):
            command = f"gen1 train {part if len(parts) == 1 else 'all'} --folder {work.folder}"
            logger.info(
                "%s: stopped, since %s is not finished; the same command goes on: %s", recipe.name, part, command
            )
            return


def run_bank(recipe: Recipe, work: Work) -> bool:
    """Render the training clips, and the held-out ones by whoever renders the first shard."""
    folder = work.folder / "bank"
    if 0 in work.shards:
        held_out = recipe.held_out
        render_bank(held_out, folder, shards=range(held_out.shards), device=work.device, on_step=work.on_step)
    render_bank(recipe.bank, folder, shards=work.shards, device=work.device, on_step=work.on_step)
    return True


def run_autoencoder(recipe: Recipe, work: Work) -> bool:
    """Train the autoencoder, then measure its latents."""
    bank, held_out = _banks(recipe, work)
    folder, plan = _part_folder(work, "autoencoder"), recipe.autoencoder_plan
    task = autoencoder_task(
        recipe.autoencoder, plan, bank, held_out, seed=recipe.seed, folder=folder, device=work.device
    )
    outcome = _train(task, plan, recipe, work, recipe.autoencoder)
    config = normalised(outcome.averaged, bank, frames=256, seed=recipe.seed)  # pyright: ignore[reportArgumentType]
    return _export(recipe, work, "autoencoder", outcome, config, plan, {})


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
    """Encode the bank with the trained autoencoder and CLIP."""
    autoencoder, encoder = load_autoencoder(work), load_encoder(work)
    weights = fingerprint(autoencoder, encoder.clip)
    jobs = [(recipe.bank, work.shards)]
    if 0 in work.shards:
        jobs.insert(0, (recipe.held_out, range(recipe.held_out.shards)))
    for config, shards in jobs:
        encode_shards(
            config,
            work.folder / "bank",
            work.folder / "latents",
            autoencoder,
            encoder,
            shards=shards,
            weights=weights,
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
    plan, folder = recipe.unet_plan, _part_folder(work, "unet")
    judges = Judges(
        autoencoder=load_autoencoder(work),
        depth=_load(work, "depth", DepthNet, DepthNetConfig),
        encoder=load_encoder(work),
    )
    truth = load_bank(recipe.held_out, work.folder / "bank", shards=range(recipe.held_out.shards))
    evaluate = evaluation(
        held_out, truth, judges, plan, recipe.diffusion, recipe.options, folder, clips=recipe.judged_clips
    )
    task = unet_task(
        recipe.unet, plan, recipe.diffusion, latents, evaluate=evaluate, seed=recipe.seed, device=work.device
    )
    outcome = _train(task, plan, recipe, work, recipe.unet, recipe.diffusion, weights)
    extra = as_metadata(recipe.diffusion, recipe.options)
    return _export(recipe, work, "unet", outcome, recipe.unet, plan, extra)


def load_autoencoder(work: Work) -> Autoencoder:
    """The exported autoencoder, as every user will have it."""
    return _load(work, "autoencoder", Autoencoder, AutoencoderConfig)


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


def _train(task: Task, plan: Any, recipe: Recipe, work: Work, *made_from: Any) -> Outcome:
    """Train one part in its own folder; ``made_from`` says what besides plan and bank its weights follow from."""
    bank = [shard_identity(recipe.bank), work.shards.start, work.shards.stop]
    return train(
        task,
        plan.fit,
        _part_folder(work, task.name),
        seed=recipe.seed,
        identity=identity_of(plan, bank, *made_from),
        minutes=work.minutes,
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
    return load_bank(recipe.bank, folder, shards=work.shards), held_out


def _latents(recipe: Recipe, work: Work) -> tuple[LatentBank, LatentBank, str]:
    """Training and held-out clips, encoded with the weights that are there, and the fingerprint of these."""
    weights = fingerprint(load_autoencoder(work), load_encoder(work).clip)
    folder = work.folder / "latents"
    held_out = load_latents(recipe.held_out, folder, shards=range(recipe.held_out.shards), weights=weights)
    return load_latents(recipe.bank, folder, shards=work.shards, weights=weights), held_out, weights


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
        "plan": asdict(plan),
        "measured": {name: round(value, 5) for name, value in outcome.record.items()},
    }
    tensors = {name: tensor.half() for name, tensor in outcome.averaged.state_dict().items()}
    path = work.weights / f"{part}.safetensors"
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
