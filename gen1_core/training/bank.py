"""The bank: clips of the procedural world on disk, each geometry in several styles, in shards made from a seed.

Shard ``i`` is a pure function of (config, i), so processes may render different shards, and what exists is kept.
"""

import json
import logging
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import UInt8
from safetensors import safe_open
from torch import Tensor

from ..checkpoints.files import save_file
from ..structure.estimator import range_of, scale_depth
from ..tensors import OnStep, ignore_progress
from .loop import generator_at
from .world import (
    HELD_OUT_FAMILIES,
    PRESETS,
    TRAINED_FAMILIES,
    Style,
    caption,
    is_held_out_pair,
    named_style,
    random_scene,
    random_style,
    render_styles,
)

logger = logging.getLogger(__name__)

SPLITS = ("train", "families", "pairs", "looks", "held_out")
"""What a bank shows: what training may see; families, pairs of a named style and a family, or composed styles that
training never sees; or these three in turn."""


HELD_OUT_SPLITS: tuple[str, ...] = ("families", "pairs", "looks")

PAIRED_FAMILIES = tuple(
    family for family in TRAINED_FAMILIES if sum(is_held_out_pair(name, family) for name in PRESETS) > 1
)
"""Trained families with at least two named styles held out."""


@dataclass(frozen=True, kw_only=True)
class BankConfig:
    """How many clips, and how they are rendered.

    ``clips`` is per shard, ``styles`` per clip, ``captions`` per style. ``preset_share`` of the styles are named ones,
    the others are composed of random parts. ``split`` says what may be shown; with ``paraphrases`` the captions of
    named styles are in words that training never sees together.
    """

    name: str
    seed: int
    shards: int
    clips: int = 32
    styles: int = 2
    captions: int = 4
    frames: int = 8
    size: int = 128
    supersample: int = 2
    preset_share: float = 0.35
    split: str = "train"
    paraphrases: bool = False

    def __post_init__(self) -> None:
        if self.split not in SPLITS:
            raise ValueError(f"split={self.split!r} is not a part of the world; choose one of {', '.join(SPLITS)}.")
        for name in ("shards", "clips", "styles", "captions", "frames", "size", "supersample"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} leaves an empty bank; give a number of at least 1.")
        if self.size % 32:
            raise ValueError(
                f"size={self.size} cannot be halved five times by the depth network; choose a multiple of 32."
            )


@dataclass(frozen=True, kw_only=True)
class Bank:
    """Clips in memory: ``rgb`` and ``depth`` (1 is near) as bytes, and per clip and style its captions and its look.

    ``looks`` are texts that are equal where two clips have the same style.
    """

    rgb: UInt8[Tensor, "m k f 3 h w"]
    depth: UInt8[Tensor, "m f 1 h w"]
    captions: list[list[list[str]]]
    looks: list[list[str]]
    families: list[str]


def shard_path(folder: Path, config: BankConfig, index: int) -> Path:
    """Where a shard lies."""
    return folder / f"{config.name}-{index:04d}.safetensors"


def render_bank(
    config: BankConfig,
    folder: Path,
    *,
    shards: Iterable[int],
    device: torch.device,
    on_step: OnStep = ignore_progress,
) -> None:
    """Render the shards that are not there yet; several processes may share a bank by different ``shards``."""
    folder.mkdir(parents=True, exist_ok=True)
    missing = [index for index in shards if not _is_whole(shard_path(folder, config, index), config)]
    for done, index in enumerate(missing):
        clips = []
        for number in range(config.clips):
            clips.append(render_clip(config, index * config.clips + number, device=device))
            on_step(f"bank {config.name}", done * config.clips + number + 1, len(missing) * config.clips)
        write_shard(shard_path(folder, config, index), config, join(clips))


@torch.no_grad()
def render_clip(config: BankConfig, number: int, *, device: torch.device) -> Bank:
    """One clip of the bank: families take turns, everything else is drawn from (seed, number)."""
    generator = generator_at(config.seed, "clip", number)
    split: str = HELD_OUT_SPLITS[number % 3] if config.split == "held_out" else config.split
    turn = number // 3 if config.split == "held_out" else number
    families = HELD_OUT_FAMILIES if split == "families" else PAIRED_FAMILIES if split == "pairs" else TRAINED_FAMILIES
    family = families[turn % len(families)]
    scene = random_scene(family, generator, frames=config.frames)
    styles = [draw_style(generator, config.preset_share, family=family, split=split) for _ in range(config.styles)]
    rgb, raw = render_styles(
        [scene],
        [styles],
        height=config.size,
        width=config.size,
        supersample=config.supersample,
        device=device,
    )
    raw = rearrange(raw, "1 1 f h w -> f 1 h w").cpu()
    depth = scale_depth(raw, range_of(raw))
    return Bank(
        rgb=rgb.cpu(),
        depth=rearrange((depth * 255).round().to(torch.uint8), "f 1 h w -> 1 f 1 h w"),
        captions=[
            [
                [caption(style, family, generator, paraphrase=config.paraphrases) for _ in range(config.captions)]
                for style in styles
            ]
        ],
        looks=[[look_of(style) for style in styles]],
        families=[family],
    )


def draw_style(generator: torch.Generator, preset_share: float, *, family: str, split: str = "train") -> Style:
    """A style for a scene of ``family``: a named one, or one composed at random, as the split allows."""
    if split == "pairs":
        return named_style(family, generator, held_out=True)
    if split == "looks":
        return random_style(generator, held_out=True)
    # Held-out families are new in every style: the rule of pairs is for the trained ones.
    if split == "families":
        return any_style(generator, preset_share)
    return named_style(family, generator) if _chance(preset_share, generator) else random_style(generator)


def any_style(generator: torch.Generator, preset_share: float) -> Style:
    """A named style, or one composed at random, for what belongs to none of the trained families."""
    if not _chance(preset_share, generator):
        return random_style(generator)
    return list(PRESETS.values())[int(torch.randint(0, len(PRESETS), (1,), generator=generator))]


def _chance(share: float, generator: torch.Generator) -> bool:
    return float(torch.rand(1, generator=generator)) < share


def look_of(style: Style) -> str:
    """A text that is equal for equal styles."""
    return json.dumps(asdict(style), sort_keys=True)


def load_bank(config: BankConfig, folder: Path, *, shards: Iterable[int]) -> Bank:
    """Shards of a bank, all of them in memory."""
    return join([_read_shard(shard_path(folder, config, index), config) for index in shards])


def join(banks: Sequence[Bank]) -> Bank:
    """Banks one after the other."""
    return Bank(
        rgb=torch.cat([bank.rgb for bank in banks]),
        depth=torch.cat([bank.depth for bank in banks]),
        captions=[texts for bank in banks for texts in bank.captions],
        looks=[looks for bank in banks for looks in bank.looks],
        families=[family for bank in banks for family in bank.families],
    )


def pictures(bytes_: UInt8[Tensor, "n c h w"], device: torch.device) -> Tensor:
    """Bytes to images 0..1 with three channels (depth is repeated)."""
    images = bytes_.to(device, torch.float32) / 255
    return images if images.shape[1] == 3 else repeat(images, "n 1 h w -> n c h w", c=3)


def write_shard(path: Path, config: BankConfig, bank: Bank) -> None:
    """A file that is there whole or not at all."""
    texts = {
        "bank": shard_identity(config),
        "captions": bank.captions,
        "looks": bank.looks,
        "families": bank.families,
    }
    metadata = {key: json.dumps(value) for key, value in texts.items()}
    save_file(path, {"rgb": bank.rgb, "depth": bank.depth}, kind="bank", config=config, metadata=metadata)


def shard_identity(config: BankConfig) -> dict[str, int | float | str]:
    """What a shard depends on: not how many shards there are."""
    return {key: value for key, value in asdict(config).items() if key != "shards"}


def _read_shard(path: Path, config: BankConfig) -> Bank:
    if not path.exists():
        raise ValueError(f"{path} has not been rendered yet; run the part `bank` first, or name other shards.")
    with safe_open(path, framework="pt") as file:
        metadata = file.metadata()
        if json.loads(metadata["bank"]) != shard_identity(config):
            raise ValueError(
                f"{path} was rendered with {metadata['bank']}, not with {shard_identity(config)}; "
                "remove it or use another folder."
            )
        return Bank(
            rgb=file.get_tensor("rgb"),
            depth=file.get_tensor("depth"),
            captions=json.loads(metadata["captions"]),
            looks=json.loads(metadata["looks"]),
            families=json.loads(metadata["families"]),
        )


def _is_whole(path: Path, config: BankConfig) -> bool:
    """Whether a shard is there; one of another config is an error."""
    if not path.exists():
        return False
    _read_shard(path, config)
    logger.info("%s is there already", path.name)
    return True
