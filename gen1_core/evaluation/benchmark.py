"""The benchmark: edits of scenes that no training saw, with the renderer's own answer to each."""

from dataclasses import dataclass

import torch
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from ..tensors import Depth
from ..training.loop import generator_at
from ..training.world import HELD_OUT_FAMILIES, PRESETS, TRAINED_FAMILIES, random_scene, render_styles
from ..training.world.dice import Dice
from ..training.world.styles import is_held_out_pair
from .flow import exact_flow

HELD_OUT, TRAINED = HELD_OUT_FAMILIES, TRAINED_FAMILIES
"""Families of scenes that no training sees, and the others."""


@dataclass(frozen=True, kw_only=True)
class BenchmarkConfig:
    """Which edits: ``clips`` for each of the ``seeds``, of ``frames`` frames of ``size`` x ``size`` pixels."""

    seeds: tuple[int, ...] = (7,)
    clips: int = 35
    frames: int = 16
    size: int = 128
    supersample: int = 2

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds={self.seeds} must be different numbers, at least one; name each once.")
        if self.clips < 1:
            raise ValueError(f"clips={self.clips} leaves nothing to judge; give at least 1, best 35 as in the paper.")
        if self.frames < 2:
            raise ValueError(f"frames={self.frames} has no motion to judge; give at least 2.")
        if self.size < 32 or self.size % 32:
            raise ValueError(
                f"size={self.size} cannot be halved five times by the judges' depth network; "
                "give a multiple of 32, best the size that the model was trained at."
            )

    @property
    def edits(self) -> int:
        """How many edits there are in all."""
        return len(self.seeds) * self.clips


@dataclass(frozen=True, kw_only=True)
class Case:
    """One edit as words: a scene of ``family`` in the look ``source``, to be made ``target`` by ``prompt``.

    ``wording`` says whether the prompt is a title that training used or a paraphrase that it did not. ``other`` is the
    family of the scene whose picture is the image prompt. ``seed`` and ``number`` fix everything that is drawn.
    """

    number: int
    seed: int
    family: str
    other: str
    source: str
    target: str
    prompt: str
    wording: str
    held_out: str


@dataclass(frozen=True, kw_only=True)
class Clips:
    """One edit as pictures: the source, the true counterfactual, the exact depth and motion, the image prompt."""

    source: UInt8[Tensor, "f 3 h w"]
    truth: UInt8[Tensor, "f 3 h w"]
    depth: Depth
    flow: Float[Tensor, "k 2 h w"]
    seen: Bool[Tensor, "k 1 h w"]
    example: UInt8[Tensor, "1 3 h w"]


def draw_cases(config: BenchmarkConfig, *, name: str = "benchmark") -> list[Case]:
    """All edits of a benchmark; ``name`` keeps validation and benchmark apart."""
    return [draw_case(seed, index, name=name) for seed in config.seeds for index in range(config.clips)]


def draw_case(seed: int, index: int, *, name: str) -> Case:
    """One edit: looks take turns in an order drawn from the seed, titles and paraphrases alternate.

    Two of three scenes are of a family that training never saw, the third of a family that it never saw in this look.
    """
    looks = tuple(PRESETS)
    order = torch.randperm(len(looks), generator=generator_at(seed, f"{name} order", 0)).tolist()
    dice = Dice(generator=generator_at(seed, name, index))
    target = looks[order[index % len(looks)]]
    pairs = [family for family in TRAINED if is_held_out_pair(target, family)]
    held_out = "pair" if pairs and index % 3 == 2 else "family"
    family = dice.pick(pairs if held_out == "pair" else HELD_OUT)
    paraphrase = index % 2 == 1
    return Case(
        number=index,
        seed=seed,
        family=family,
        other=dice.pick([each for each in TRAINED if each != family]),
        source=dice.pick([look for look in looks if look != target]),
        target=target,
        prompt=dice.pick(PRESETS[target].paraphrases if paraphrase else PRESETS[target].titles),
        wording="paraphrase" if paraphrase else "title",
        held_out=held_out,
    )


@torch.no_grad()
def render_case(case: Case, config: BenchmarkConfig, *, name: str = "benchmark") -> Clips:
    """The clips of one edit; on the CPU, so that every machine judges the same pictures."""
    cpu = torch.device("cpu")
    sizes = {"height": config.size, "width": config.size, "supersample": config.supersample, "device": cpu}
    scene = random_scene(case.family, generator_at(case.seed, f"{name} scene", case.number), frames=config.frames)
    rgb, depth = render_styles([scene], [[PRESETS[case.source], PRESETS[case.target]]], **sizes)
    other = random_scene(case.other, generator_at(case.seed, f"{name} example", case.number), frames=1)
    example, _ = render_styles([other], [[PRESETS[case.target]]], **sizes)
    flow, seen = exact_flow(scene, height=config.size, width=config.size)
    return Clips(
        source=rgb[0, 0],
        truth=rgb[0, 1],
        depth=depth,
        flow=flow,
        seen=seen,
        example=rearrange(example, "1 1 1 c h w -> 1 c h w"),
    )
