"""Distances and statistics of clips that need no network: PSNR, SSIM, warp error, sharpness, motion.

All take pictures 0..1 ``[f 3 h w]`` and give one number; docs/evaluation.md says what each is for.
"""

import torch
from einops import repeat
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from ..tensors import Images

WINDOW, WIDTH = 11, 1.5
"""The Gaussian window of SSIM: its side and its standard deviation in pixels."""

LUMINANCE, CONTRAST = 0.01**2, 0.03**2
"""The constants of SSIM for values 0..1."""

SCALE_WEIGHTS = (0.0448, 0.2856, 0.3001)
"""The first three weights of Wang et al. (2003); at 128 pixels the window fits no further halving."""


def ssim_maps(images: Images, truth: Images) -> tuple[Float[Tensor, "f 3 a b"], Float[Tensor, "f 3 a b"]]:
    """SSIM and its contrast-structure part (Wang et al., 2004) where the whole window fits.

    Raises ValueError for pictures smaller than the window.
    """
    if min(images.shape[-2:]) < WINDOW:
        raise ValueError(
            f"pictures of {images.shape[-1]}x{images.shape[-2]} are smaller than SSIM's window of {WINDOW} pixels; "
            "give larger ones."
        )
    at = torch.arange(WINDOW, dtype=images.dtype, device=images.device) - WINDOW // 2
    line = torch.exp(-at.square() / (2 * WIDTH**2))
    line = line / line.sum()

    def mean(values: Tensor) -> Tensor:
        """The mean under the window, a column and then a row."""
        column, row = (repeat(line, shape, c=3) for shape in ("k -> c 1 k 1", "k -> c 1 1 k"))
        return F.conv2d(F.conv2d(values, column, groups=3), row, groups=3)

    mean_a, mean_b = mean(images), mean(truth)
    spread_a = mean(images.square()) - mean_a.square()
    spread_b = mean(truth.square()) - mean_b.square()
    shared = mean(images * truth) - mean_a * mean_b
    contrast = (2 * shared + CONTRAST) / (spread_a + spread_b + CONTRAST)
    return contrast * (2 * mean_a * mean_b + LUMINANCE) / (mean_a.square() + mean_b.square() + LUMINANCE), contrast


def ssim(images: Images, truth: Images) -> float:
    """Structural similarity, -1..1; 1 for equal pictures."""
    return float(ssim_maps(images, truth)[0].mean())


def multi_scale_ssim(images: Images, truth: Images) -> float:
    """Multi-scale SSIM (Wang et al., 2003) over as many of three scales as the window fits, 0..1."""
    result = torch.ones(len(images), device=images.device)
    scales = sum(min(images.shape[-2:]) // 2**k >= WINDOW for k in range(len(SCALE_WEIGHTS)))
    weights = torch.tensor(SCALE_WEIGHTS[: max(scales, 1)])
    for index, weight in enumerate((weights / weights.sum()).tolist()):
        whole, contrast = ssim_maps(images, truth)
        # Luminance counts at the coarsest scale only; a negative correlation is no likeness at all.
        part = whole if index == len(weights) - 1 else contrast
        result = result * part.mean(dim=(1, 2, 3)).clamp(min=0) ** weight
        images, truth = F.avg_pool2d(images, 2), F.avg_pool2d(truth, 2)
    return float(result.mean())


def warp(images: Images, flow: Float[Tensor, "f 2 h w"]) -> Images:
    """Each picture looked up at every pixel's place plus ``flow`` (x to the right, y down, in pixels)."""
    height, width = images.shape[-2:]
    x = torch.arange(width, device=images.device) + flow[:, 0]
    y = torch.arange(height, device=images.device)[:, None] + flow[:, 1]
    grid = torch.stack([(2 * x + 1) / width - 1, (2 * y + 1) / height - 1], dim=-1)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def warp_error(images: Images, flow: Float[Tensor, "k 2 h w"], seen: Bool[Tensor, "k 1 h w"]) -> float:
    """Mean absolute difference of a frame and the one before it, carried along the exact motion of the source.

    ``flow[k]`` leads from a pixel of frame ``k + 1`` to where its surface point was in frame ``k``; only pixels whose
    point could be ``seen`` there count. Lai et al. (2018) with exact flow in place of an estimate.
    """
    difference = (images[1:] - warp(images[:-1], flow)).abs().mean(dim=1, keepdim=True)
    return float((difference * seen).sum() / seen.sum().clamp(min=1))


def sharpness(images: Images) -> float:
    """Mean absolute difference of neighbouring pixels, of luminance."""
    grey = images.mean(dim=1)
    return float(((grey[..., 1:] - grey[..., :-1]).abs().mean() + (grey[:, 1:] - grey[:, :-1]).abs().mean()) / 2)


def motion(images: Images) -> float:
    """Mean absolute difference of neighbouring frames; 0 for a still clip."""
    return float((images[1:] - images[:-1]).abs().mean())


def feature_distance(features: list[Float[Tensor, "_ _ _ _"]], truth: list[Float[Tensor, "_ _ _ _"]]) -> float:
    """Distance of two clips in the features of a network, as LPIPS (Zhang et al., 2018) without its fitted weights.

    At every place of every layer half the squared distance of the directions of both feature vectors (1 minus their
    cosine); the mean over places, frames and layers. 0 for equal clips, 1 where the features have nothing in common.
    """
    each = [(1 - F.cosine_similarity(a, b, dim=1)).mean() for a, b in zip(features, truth, strict=True)]
    return float(torch.stack(each).mean())
