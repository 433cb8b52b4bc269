"""What is measured of an edit, and who wins of two: judges that no network which conditions the edit sits among."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite, sqrt

import torch
from jaxtyping import Float
from torch import Tensor

from ..content.clip import EmbeddedClip
from ..content.encoder import ContentEncoder
from ..metrics import clip_scores, psnr
from ..models.clip import preprocess
from ..models.depth import DepthNet
from ..tensors import Bytes, Depth, Images, to_float
from ..training.depth import aligned
from .benchmark import Case, Clips
from .distances import feature_distance, motion, multi_scale_ssim, sharpness, ssim, warp_error
from .judge_nets import LookNet

TIE = 0.02
"""Two distances tie where they differ by less than this share of their mean (first judge)."""

TIE_SCORE = 0.05
"""Two scores, each at most 1, tie where they differ by less than this (second judge)."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Judges:
    """The networks that look at edits. ``encoder`` measures the paper's two figures and judges nothing."""

    looks: LookNet
    depth: DepthNet
    names: tuple[str, ...]
    encoder: ContentEncoder


@torch.no_grad()
def features_of(looks: LookNet, images: Images) -> list[Float[Tensor, "_ _ _ _"]]:
    """The features that the first judge compares."""
    return looks.features(images)


def perceptual_distance(looks: LookNet, images: Images, truth: Images) -> float:
    """The first judge: half distance in the look network's features, half 1 - multi-scale SSIM."""
    deep = feature_distance(features_of(looks, images), features_of(looks, truth))
    return (deep + 1 - multi_scale_ssim(images, truth)) / 2


@torch.no_grad()
def clip_distance(encoder: ContentEncoder, images: Images, truth: Images) -> float:
    """LPIPS-like distance in the states of the embedded CLIP's image tower after each block; NaN for another CLIP.

    It is reported and judges nothing, since this CLIP conditions the edit.
    """
    if not isinstance(encoder, EmbeddedClip):
        return float("nan")
    visual = encoder.clip.visual
    depth = len(visual.transformer.resblocks)
    device = visual.conv1.weight.device
    pixels = [preprocess(part.to(device), encoder.clip.config.image_size) for part in (images, truth)]
    states = [[visual.hidden(part, skip=skip)[:, 1:].mT[..., None] for skip in range(depth)] for part in pixels]
    return feature_distance(*states)


@torch.no_grad()
def depth_fidelity(depth: DepthNet, images: Images, exact: Depth) -> tuple[float, float]:
    """Error of the estimated depth of an edit against the exact depth of the scene, and that of a flat map.

    Each frame under the scale and shift that fit it best, as monocular depth is judged (Ranftl et al., 2020); mean
    absolute, of depth 0..1.
    """
    truth = exact[0].transpose(0, 1)
    estimate = torch.cat([depth(part) for part in images.split(8)])
    flat = truth.mean(dim=(1, 2, 3), keepdim=True)
    return float((aligned(estimate, truth) - truth).abs().mean()), float((flat - truth).abs().mean())


@torch.no_grad()
def look_of(judges: Judges, images: Images, target: str) -> tuple[float, float, float]:
    """Share of the frames that the look network calls the target, the mean probability it gives it, and whether the
    clip as a whole is the target: 1 where its mean probability over the frames is the highest of all looks'."""
    chances = torch.cat([judges.looks(part)[0].softmax(dim=-1) for part in images.split(8)])
    index = judges.names.index(target)
    whole = chances.mean(dim=0)
    share = (chances.argmax(dim=1) == index).float().mean()
    return float(share), float(whole[index]), float(whole.argmax() == index)


def measure(judges: Judges, case: Case, clips: Clips, edited: Bytes) -> dict[str, float]:
    """Every figure of one edited clip that is defined for it."""
    images, truth, source = (to_float(frames) for frames in (edited, clips.truth, clips.source))
    right, chance, clip = look_of(judges, images, case.target)
    error, flat = depth_fidelity(judges.depth, images, clips.depth)
    figures = {
        **clip_scores(judges.encoder, images, case.prompt),
        "psnr": psnr(images, truth),
        "ssim": ssim(images, truth),
        "clip_distance": clip_distance(judges.encoder, images, truth),
        "distance": perceptual_distance(judges.looks, images, truth),
        "style_accuracy": right,
        "style_clip": clip,
        "style_chance": chance,
        "depth_error": error,
        "depth_flat": flat,
        "score": chance - error / max(flat, 1e-6),
        "warp_error": warp_error(images, clips.flow, clips.seen),
        "sharpness": sharpness(images) / max(sharpness(source), 1e-6),
        "motion": motion(images) / max(motion(source), 1e-6),
    }
    return {name: figure for name, figure in figures.items() if isfinite(figure)}


def nearer(ours: float, theirs: float, *, margin: float = TIE) -> float:
    """The first judge's verdict on two distances: 1 where ours is smaller, 0 where theirs is, 0.5 for a tie."""
    if abs(ours - theirs) <= margin * (ours + theirs) / 2:
        return 0.5
    return float(ours < theirs)


def better(ours: float, theirs: float, *, margin: float = TIE_SCORE) -> float:
    """The second judge's verdict on two scores (chance of the target look minus relative depth error)."""
    if abs(ours - theirs) <= margin:
        return 0.5
    return float(ours > theirs)


@dataclass(frozen=True, kw_only=True)
class WinRate:
    """How often one is preferred, its binomial standard error, and how many pairs there were."""

    rate: float
    error: float
    pairs: int


def win_rate(verdicts: Sequence[float]) -> WinRate:
    """The mean verdict; its error is that of a binomial share, ties counting half.

    Raises ValueError without verdicts.
    """
    if not verdicts:
        raise ValueError("0 verdicts have no win rate; judge at least one pair.")
    rate = sum(verdicts) / len(verdicts)
    return WinRate(rate=rate, error=sqrt(rate * (1 - rate) / len(verdicts)), pairs=len(verdicts))
