"""Checks that the world's styles and families are different things: a small classifier has to tell them apart.

``python scripts/world_check.py`` renders scenes, fits one classifier to grey frames of the named styles and one to
depth maps of the families, and tests both on scenes of other seeds. Of each pair it reports the share of the two's test
frames whose own class gets the higher score of the two; under 90 % the check fails.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from gen1_core.training.world import FAMILIES, PRESETS, TRAINED_FAMILIES, random_scene, render_styles
from gen1_core.training.world.shade import nearness
from gen1_core.training.world.surface import trace

CPU = torch.device("cpu")
LEAST = 0.9


def style_frames(scenes: range, looks: Sequence[str], *, size: int) -> Float[Tensor, "n s 1 h w"]:
    """One grey frame of each scene in every look; families take turns."""
    rows = []
    for seed in scenes:
        family = TRAINED_FAMILIES[seed % len(TRAINED_FAMILIES)]
        scene = random_scene(family, torch.Generator().manual_seed(seed), frames=1)
        styles = [[PRESETS[look] for look in looks]]
        rgb, _ = render_styles([scene], styles, height=size, width=size, supersample=1, device=CPU)
        rows.append(rgb[0, :, 0].float().mean(dim=1, keepdim=True) / 255)
    return torch.stack(rows)


def family_frames(scenes: range, families: Sequence[str], *, size: int) -> Float[Tensor, "n s 1 h w"]:
    """One depth map of each family from each seed."""
    rows = []
    for seed in scenes:
        row = []
        for family in families:
            scene = random_scene(family, torch.Generator().manual_seed(seed), frames=1)
            row.append(nearness(trace(scene, height=size, width=size, device=CPU, coarse=16), 1))
        rows.append(torch.cat(row))
    return torch.stack(rows)


def features(frames: Float[Tensor, "m 1 h w"]) -> Float[Tensor, "m d"]:
    """What is where, how bright it is, and how strong fixed random filters answer at two scales, each coarsely."""
    filters = torch.randn(40, 1, 5, 5, generator=torch.Generator().manual_seed(0))
    filters = filters - filters.mean(dim=(2, 3), keepdim=True)
    levels = torch.linspace(0, 1, 16)[None, :, None, None]
    tones = torch.exp(-(((F.avg_pool2d(frames, 2) - levels) * 16) ** 2))
    found = [F.adaptive_avg_pool2d(frames, 12).flatten(1), F.adaptive_avg_pool2d(tones, 2).flatten(1) * 2]
    for scale in (1, 2):
        answers = F.conv2d(F.avg_pool2d(frames, scale), filters, stride=2, padding=2)
        found.append(F.adaptive_avg_pool2d(answers.abs(), 4).flatten(1).sqrt())
        found.append(F.adaptive_max_pool2d(answers.abs(), 1).flatten(1).sqrt())
    return torch.cat(found, dim=1)


def distances(a: Float[Tensor, "m d"], b: Float[Tensor, "n d"]) -> Float[Tensor, "m n"]:
    """Squared distances of all pairs of rows."""
    return ((a * a).sum(1)[:, None] + (b * b).sum(1) - 2 * a @ b.T).clamp(min=0)


def classify(seen: Float[Tensor, "n s 1 h w"], asked: Float[Tensor, "m s 1 h w"]) -> Float[Tensor, "m s s"]:
    """A score of every class for every asked frame, by kernel ridge regression; axis 1 is the class."""
    classes = seen.shape[1]
    known, wanted = (torch.cat([features(part) for part in x.flatten(0, 1).split(512)]) for x in (seen, asked))
    mean, spread = known.mean(dim=0), known.std(dim=0) + 1e-3
    known, wanted = (known - mean) / spread, (wanted - mean) / spread
    between = distances(known, known)
    width = between[:500].median()
    kernel = torch.exp(-between / width)
    kernel.diagonal().add_(0.02)
    targets = torch.eye(classes).repeat(len(seen), 1) - 1 / classes
    weights = torch.cholesky_solve(targets, torch.linalg.cholesky(kernel))
    scores = torch.exp(-distances(wanted, known) / width) @ weights
    return scores.reshape(len(asked), classes, classes)


def pairwise(scores: Float[Tensor, "m s s"]) -> tuple[float, Float[Tensor, "s s"]]:
    """Share of frames recognised among all classes, and for each pair the share whose own class scores higher."""
    own = scores.diagonal(dim1=1, dim2=2)[:, :, None]
    better = (own > scores).float().mean(dim=0)
    given = scores.argmax(dim=-1)
    return float((given == torch.arange(len(scores[0]))).float().mean()), (better + better.T) / 2


def report(what: str, names: Sequence[str], frames: Float[Tensor, "n s 1 h w"], *, tested: int) -> bool:
    """Learn from the first scenes, test on the rest, print the worst pairs; whether all pairs pass."""
    right, pairs = pairwise(classify(frames[:-tested], frames[-tested:]))
    upper = torch.triu_indices(len(names), len(names), offset=1)
    shares = pairs[upper[0], upper[1]]
    failed = int((shares < LEAST).sum())
    lines = [
        f"{what}: {len(names)}, {len(shares)} pairs, {2 * tested} test frames each; of all {right:.3f} recognised; "
        f"pairs: mean {shares.mean():.4f}, worst {shares.min():.3f}, {failed} under {LEAST}"
    ]
    for index in shares.argsort()[:15].tolist():
        first, second = (names[int(upper[axis, index])] for axis in (0, 1))
        lines.append(f"  {shares[index]:.3f}  {first} - {second}")
    sys.stdout.write("\n".join(lines) + "\n")
    return failed == 0


def main() -> int:
    """Both checks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=["styles", "families", "all"], default="all")
    parser.add_argument("--size", type=int, default=64)
    parser.add_argument("--scenes", type=int, default=180, help="rendered in every style; every third one is tested on")
    parser.add_argument("--depths", type=int, default=280, help="depth maps of each family")
    parser.add_argument("--only", nargs="+", default=[], help="names of the styles or families to compare")
    options = parser.parse_args()
    torch.set_num_threads(1)
    families, looks = ([name for name in table if name in options.only] or list(table) for table in (FAMILIES, PRESETS))
    passed = True
    if options.what != "styles":
        frames = family_frames(range(options.depths), families, size=options.size)
        passed &= report("families", families, frames, tested=options.depths // 4)
    if options.what != "families":
        frames = style_frames(range(options.scenes), looks, size=options.size)
        passed &= report("styles", looks, frames, tested=options.scenes // 3)
    sys.stdout.write("passed\n" if passed else "failed\n")
    return 0 if passed else 1


if __name__ == "__main__":
    sys.exit(main())
