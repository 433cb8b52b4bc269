"""The judges' own networks, made from truth renders alone: one names looks and families, one estimates depth.

Nothing that conditions an edit is in them: neither weights nor data nor outputs of the model that is judged. They know
every family of the world, those held out from the model too, by other scenes than the benchmark's: an instrument should
be exact where it measures.
"""

import json
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from einops import rearrange, reduce, repeat
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints.files import load_module, read_file, save_file
from ..models.depth import DepthNet, DepthNetConfig
from ..structure.estimator import range_of, scale_depth
from ..tensors import Images, OnStep, ignore_progress
from ..training.depth import DepthPlan, aligned, augment, depth_losses
from ..training.ema import averaged_copy, decay_at, update
from ..training.loop import generator_at, seeded
from ..training.stages import Fit, Rate
from ..training.world import FAMILIES, PRESETS, Scene, random_scene, render_styles
from .benchmark import HELD_OUT
from .store import identity_of

VERSION = 3
"""Goes up with every change of the code here that changes the judges."""

MOMENTS = 8
"""Into how many moments a scene's motion is divided, of which one is drawn."""


@dataclass(frozen=True, kw_only=True)
class JudgeConfig:
    """How the judges are made: one moment of each of ``scenes`` scenes of every family, in ``looks`` looks."""

    seed: int = 11
    scenes: int = 40
    looks: int = 6
    size: int = 128
    supersample: int = 2
    look_steps: int = 600
    look_batch: int = 32
    depth_steps: int = 1600
    depth_batch: int = 12
    widths: tuple[int, ...] = (16, 32, 64, 128)
    smoothing: float = 0.05
    averaging: float = 0.99
    """Label smoothing of looks, and the memory of the average over weights that judges in the end."""
    depth: DepthNetConfig = DepthNetConfig(channels=(8, 16, 32, 64, 96), norm_num_groups=4)

    def __post_init__(self) -> None:
        for name in ("scenes", "looks", "look_steps", "look_batch", "depth_steps", "depth_batch"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} would make judges of nothing; give at least 1.")
        if self.look_batch < 2:
            raise ValueError("look_batch=1 has no spread for batch norms to learn from; give at least 2.")


@dataclass(frozen=True, kw_only=True)
class TruthSet:
    """Truth renders with their answers: pictures, depth 0..1 with 1 near, and the numbers of look and family."""

    rgb: UInt8[Tensor, "n 3 h w"]
    depth: UInt8[Tensor, "m 1 h w"]
    look: Int[Tensor, " n"]
    family: Int[Tensor, " n"]
    of: Int[Tensor, " n"]
    """Which depth map belongs to each picture: looks of one scene share theirs."""
    frames: int = 1
    """Pictures of one clip, which follow each other."""


def moment(scene: Scene, frame: int) -> Scene:
    """One frame of a scene, as a scene."""
    at = slice(frame, frame + 1)
    solids = tuple(replace(solid, centre=solid.centre[at], turn=solid.turn[at]) for solid in scene.solids)
    eye = scene.camera
    camera = replace(eye, position=eye.position[at], target=eye.target[at], roll=eye.roll[at])
    return replace(scene, solids=solids, camera=camera)


@torch.no_grad()
def truth_set(
    config: JudgeConfig,
    families: tuple[str, ...],
    *,
    scenes: int,
    name: str,
    frames: int = 1,
    on_step: OnStep = ignore_progress,
) -> TruthSet:
    """Scenes of each family, in looks that take turns in a drawn order; follows from the seed and ``name``.

    Of each scene a moment drawn from its whole motion, or as many ``frames`` of it as are asked for, evenly spaced.
    """
    styles, rgb, depth, look, family = list(PRESETS.values()), [], [], [], []
    order = torch.empty(0, dtype=torch.long)
    for number in range(scenes * len(families)):
        generator = generator_at(config.seed, f"judge {name}", number)
        which = number % len(families)
        scene = random_scene(families[which], generator, frames=MOMENTS if frames == 1 else frames)
        if frames == 1:
            scene = moment(scene, int(torch.randint(0, MOMENTS, (1,), generator=generator)))
        while len(order) < config.looks:
            order = torch.cat([order, torch.randperm(len(styles), generator=generator)])
        chosen, order = order[: config.looks], order[config.looks :]
        clips, raw = render_styles(
            [scene],
            [[styles[index] for index in chosen.tolist()]],
            height=config.size,
            width=config.size,
            supersample=config.supersample,
            device=torch.device("cpu"),
        )
        raw = rearrange(raw, "1 1 f h w -> f 1 h w")
        rgb.append(rearrange(clips, "1 k f c h w -> (k f) c h w"))
        depth.append((scale_depth(raw, range_of(raw)) * 255).round().to(torch.uint8))
        look.append(repeat(chosen, "k -> (k f)", f=frames))
        family.append(torch.full_like(look[-1], which))
        on_step(f"judges: render {name}", number + 1, scenes * len(families))
    within = torch.arange(len(look[0])) % frames
    return TruthSet(
        rgb=torch.cat(rgb),
        depth=torch.cat(depth),
        look=torch.cat(look),
        family=torch.cat(family),
        of=torch.cat([frames * index + within for index in range(len(rgb))]),
        frames=frames,
    )


class LookNet(nn.Module):
    """A small convolutional network that names the look and the family of a picture.

    A look is what a picture is made of, wherever it is: so mean and spread over the picture of every level, and of the
    colours themselves, go straight to the classifier. Batch norms, since norms within one picture take away how bright
    and how colourful it is.
    """

    def __init__(self, widths: tuple[int, ...], *, looks: int, families: int) -> None:
        super().__init__()
        ins = (3, *widths[:-1])
        self.down = nn.ModuleList(nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(ins, widths, strict=True))
        self.conv = nn.ModuleList(nn.Conv2d(b, b, 3, padding=1) for b in widths)
        self.norms = nn.ModuleList(nn.BatchNorm2d(b) for b in widths)
        self.outs = nn.ModuleList(nn.BatchNorm2d(b) for b in widths)
        pooled = 2 * (3 + sum(widths))
        self.level = nn.BatchNorm1d(pooled)
        self.look = nn.Linear(pooled, looks)
        self.family = nn.Linear(pooled, families)

    def features(self, images: Images) -> list[Float[Tensor, "_ _ _ _"]]:
        """What each level sees, normalised and before its activation, so that it is centred: what is compared."""
        x, levels = images * 2 - 1, []
        for down, norm, conv, out in zip(self.down, self.norms, self.conv, self.outs, strict=True):
            x = out(conv(F.silu(norm(down(x)))))
            levels.append(x)
            x = F.silu(x)
        return levels

    def forward(self, images: Images) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n j"]]:
        """Logits of looks and of families."""
        seen = [images, *(F.silu(level) for level in self.features(images))]
        pooled = self.level(torch.cat([part for level in seen for part in mean_and_spread(level)], dim=1))
        return self.look(pooled), self.family(pooled)


def mean_and_spread(level: Float[Tensor, "n c h w"]) -> tuple[Float[Tensor, "n c"], Float[Tensor, "n c"]]:
    """Mean and spread over the picture."""
    mean = reduce(level, "n c h w -> n c", "mean")
    variance = reduce(level.square(), "n c h w -> n c", "mean") - mean.square()
    return mean, variance.clamp(min=1e-6).sqrt()


def cropped(images: Images, generator: torch.Generator) -> Float[Tensor, "n 3 _ _"]:
    """A window of three quarters of each side or more, anywhere: one for the whole batch."""
    height, width = images.shape[-2:]
    high, wide = (side - int(torch.randint(0, side // 4 + 1, (1,), generator=generator)) for side in (height, width))
    top, left = (
        int(torch.randint(0, side - part + 1, (1,), generator=generator))
        for side, part in ((height, high), (width, wide))
    )
    return images[..., top : top + high, left : left + wide]


def softened(images: Images, generator: torch.Generator) -> Images:
    """Mirrored, slightly blurred, noisy and recoloured at random, so that a network's softness is no look."""
    count = len(images)
    draw = lambda *shape: torch.rand(*shape, generator=generator)  # noqa: E731
    images = torch.where(draw(count, 1, 1, 1) < 0.5, images.flip(-1), images)
    soft = F.avg_pool2d(images, 5, stride=1, padding=2, count_include_pad=False)
    images = torch.lerp(images, soft, (draw(count, 1, 1, 1) * 1.6 - 0.6).clamp(0, 1))
    images = images * (0.92 + 0.16 * draw(count, 3, 1, 1)) + 0.08 * (draw(count, 1, 1, 1) - 0.5)
    return (images + 0.03 * draw(count, 1, 1, 1) * torch.randn(images.shape, generator=generator)).clamp(0, 1)


def look_losses(model: LookNet, truth: TruthSet, config: JudgeConfig, generator: torch.Generator) -> Tensor:
    """Cross entropy of looks, and a third of that of families."""
    index = torch.randint(0, len(truth.rgb), (config.look_batch,), generator=generator)
    look, family = model(softened(cropped(truth.rgb[index].float() / 255, generator), generator))
    named = F.cross_entropy(look, truth.look[index], label_smoothing=config.smoothing)
    return named + F.cross_entropy(family, truth.family[index]) / 3


def depth_loss(model: DepthNet, truth: TruthSet, batch: int, generator: torch.Generator) -> Tensor:
    """The training loss of the embedded model's depth network, on other pictures and other weights."""
    plan = DepthPlan(fit=Fit(steps=1, batch=batch, rate=Rate(peak=1e-3)))
    index = torch.randint(0, len(truth.rgb), (batch,), generator=generator)
    images, depth = truth.rgb[index].float() / 255, truth.depth[truth.of[index]].float() / 255
    flip = torch.rand(batch, 1, 1, 1, generator=generator) < 0.5
    images, depth = (torch.where(flip, part.flip(-1), part) for part in (images, depth))
    return depth_losses(model(augment(images, plan, generator)), depth, plan)["loss"]


def fit(
    model: nn.Module,
    loss: Callable[[Any, torch.Generator], Tensor],
    *,
    steps: int,
    averaging: float,
    seed: int,
    name: str,
    on_step: OnStep,
) -> None:
    """AdamW at a rate that rises and falls; the network ends fixed, at an average over the weights it went through."""
    optimiser = torch.optim.AdamW(model.parameters(), lr=0.0, weight_decay=0.02)
    average = averaged_copy(model)
    model.train()
    for step in range(steps):
        rate = 2e-3 * min(1.0, (step + 1) / 40) * (1 + math.cos(math.pi * step / steps)) / 2
        for group in optimiser.param_groups:
            group["lr"] = rate
        optimiser.zero_grad(set_to_none=True)
        loss(model, generator_at(seed, name, step)).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimiser.step()
        update(average, model, decay=decay_at(averaging, step))
        on_step(f"judges: {name}", step + 1, steps)
    model.load_state_dict(average.state_dict())
    model.requires_grad_(False).eval()


@torch.no_grad()
def examine(looks: LookNet, depth: DepthNet, truth: TruthSet) -> dict[str, Any]:
    """How good the judges are on truth renders they never saw.

    ``look_accuracy`` is the share of single pictures named right, ``clip_accuracy`` that of clips by the mean chance
    over their ``frames`` pictures, ``confused`` the worst pairs (asked, named, share of the pictures of the first).
    ``depth_mae`` is the error of the depth, ``depth_mae_constant`` that of a flat map.
    """
    chances, error, flat = [], [], []
    for index in torch.arange(len(truth.rgb)).split(32):
        images = truth.rgb[index].float() / 255
        exact = truth.depth[truth.of[index]].float() / 255
        chances.append(looks(images)[0].softmax(dim=-1))
        error.append((aligned(depth(images), exact) - exact).abs().mean(dim=(1, 2, 3)))
        flat.append((exact.mean(dim=(1, 2, 3), keepdim=True) - exact).abs().mean(dim=(1, 2, 3)))
    given = torch.cat(chances)
    clips = reduce(given, "(n f) k -> n k", "mean", f=truth.frames)
    named = given.argmax(dim=1)
    return {
        "look_accuracy": float((named == truth.look).float().mean()),
        "clip_accuracy": float((clips.argmax(dim=1) == truth.look[:: truth.frames]).float().mean()),
        "pictures": len(named),
        "frames": truth.frames,
        "depth_mae": float(torch.cat(error).mean()),
        "depth_mae_constant": float(torch.cat(flat).mean()),
        "confused": confused(named, truth.look),
    }


def confused(named: Int[Tensor, " n"], asked: Int[Tensor, " n"], *, most: int = 8) -> list[list[Any]]:
    """The pairs of looks that are mixed up most often: ``[asked, named, share]``, the worst first."""
    names = list(PRESETS)
    counts = torch.zeros(len(names), len(names))
    counts.index_put_((asked, named), torch.ones(len(named)), accumulate=True)
    shares = counts / counts.sum(dim=1, keepdim=True).clamp(min=1)
    shares.fill_diagonal_(0)
    worst = shares.flatten().argsort(descending=True, stable=True)[:most].tolist()
    pairs = [(index // len(names), index % len(names)) for index in worst]
    return [[names[a], names[b], float(shares[a, b])] for a, b in pairs if shares[a, b] > 0]


def judge_identity(config: JudgeConfig) -> str:
    """What the judges' weights follow from."""
    return identity_of(VERSION, config, {name: asdict(style) for name, style in PRESETS.items()}, FAMILIES, HELD_OUT)


def judge_networks(
    config: JudgeConfig, folder: Path, *, on_step: OnStep = ignore_progress
) -> tuple[LookNet, DepthNet, dict[str, Any]]:
    """The judges' networks and how good they are; made once, in about ten minutes, and kept in ``folder``.

    The file is named after all that the judges follow from, so reports may share a folder.
    """
    identity = judge_identity(config)
    path = folder / f"judges-{identity}.safetensors"
    if path.exists():
        return kept_judges(config, path)
    looks = seeded(lambda: LookNet(config.widths, looks=len(PRESETS), families=len(FAMILIES)), config.seed)
    depth = seeded(lambda: DepthNet(config.depth), config.seed + 1)
    truth = truth_set(config, FAMILIES, scenes=config.scenes, name="training", on_step=on_step)
    unseen = truth_set(config, HELD_OUT, scenes=max(2, config.scenes // 2), name="unseen", frames=2, on_step=on_step)
    fits: list[tuple[nn.Module, str, int, Callable[[Any, torch.Generator], Tensor]]] = [
        (looks, "looks", config.look_steps, lambda model, generator: look_losses(model, truth, config, generator)),
        (
            depth,
            "depth",
            config.depth_steps,
            lambda model, generator: depth_loss(model, truth, config.depth_batch, generator),
        ),
    ]
    for model, name, steps, loss in fits:
        fit(model, loss, steps=steps, averaging=config.averaging, seed=config.seed, name=name, on_step=on_step)
    found = examine(looks, depth, unseen)
    tensors = {
        f"{name}.{key}": tensor
        for name, module in (("looks", looks), ("depth", depth))
        for key, tensor in module.state_dict().items()
    }
    folder.mkdir(parents=True, exist_ok=True)
    save_file(path, tensors, kind="judges", config=config, metadata={"quality": json.dumps(found)})
    return looks, depth, found


def kept_judges(config: JudgeConfig, path: Path) -> tuple[LookNet, DepthNet, dict[str, Any]]:
    """The judges of an earlier call."""
    file = read_file(path)
    place = {"device": torch.device("cpu"), "dtype": torch.float32, "path": path}
    parts = {
        name: {key.removeprefix(f"{name}."): t for key, t in file.tensors.items() if key.startswith(f"{name}.")}
        for name in ("looks", "depth")
    }
    looks = load_module(
        lambda: LookNet(config.widths, looks=len(PRESETS), families=len(FAMILIES)), parts["looks"], **place
    )
    depth = load_module(lambda: DepthNet(config.depth), parts["depth"], **place)
    return (
        looks.requires_grad_(False).eval(),
        depth.requires_grad_(False).eval(),
        json.loads(file.metadata["quality"]),
    )
