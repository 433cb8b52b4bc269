"""What stands between the network and the sampler: guidance (Eq. 8), a mask, a range of steps with structure, a look.

Each function takes a Denoiser and returns one. From the inside out: network, windows, guidance, structure
range, mask, look.
"""

from collections.abc import Callable, Sequence

from jaxtyping import Float
from torch import Tensor

from ..tensors import Latents, OnLatents
from .condition import Condition, Denoiser


def guided(
    denoise: Denoiser,
    *,
    content_scale: float,
    temporal_scale: float,
    structure_scale: float = 1.0,
    without: Callable[[Condition], Condition] | None = None,
) -> Denoiser:
    """Eq. 8: away from frames denoised alone towards the clip, and from no content towards the content.

    ``mu_pi(null) + temporal_scale (mu(null) - mu_pi(null)) + content_scale (mu(content) - mu(null))``, sorted
    by pass; to which comes ``(structure_scale - 1) (mu(null) - mu(null, without structure))``, as InstructPix2Pix
    (Eq. 3) guides by its picture, where ``without`` takes the structure out of a condition. The weights sum to 1, so it
    holds for the clean estimate as for any prediction. A pass without weight is not run: ``temporal_scale`` 1 is
    classifier-free guidance and needs no image pass; all scales 1 is the plain network; and ``structure_scale`` equal
    to ``content_scale`` (with ``temporal_scale`` 1) is from neither to both, in two passes.

    Raises ValueError for a ``structure_scale`` other than 1 with nothing that takes the structure out.
    """
    if structure_scale != 1 and without is None:
        raise ValueError(
            f"structure_scale={structure_scale} moves away from what is made without structure, but nothing says what "
            "that is; give without, which takes the structure out of a condition, or a scale of 1."
        )
    bare = without or _as_it_is

    def passes_for(temporal: float) -> list[tuple[float, Callable[[Condition], Condition]]]:
        weighted = [
            (1 - temporal, lambda condition: condition.dropped().as_images()),
            ((temporal - 1) + (structure_scale - content_scale), lambda condition: condition.dropped()),
            (1 - structure_scale, lambda condition: bare(condition.dropped())),
            (content_scale, lambda condition: condition),
        ]
        return [(weight, change) for weight, change in weighted if weight != 0]

    def denoise_guided(x: Latents, sigma: float, conditions: Sequence[Condition]) -> list[Latents]:
        # A single frame has nothing to be tied to: its image pass is its video pass.
        passes = passes_for(1.0 if x.shape[2] == 1 else temporal_scale)
        clean = denoise(x, sigma, [change(condition) for condition in conditions for _, change in passes])
        each = [clean[i : i + len(passes)] for i in range(0, len(clean), len(passes))]
        return [_combine([weight for weight, _ in passes], group) for group in each]

    return denoise_guided


def _as_it_is(condition: Condition) -> Condition:
    return condition


def _combine(weights: Sequence[float], clean: Sequence[Latents]) -> Latents:
    """The weighted sum; a single pass, whose weight is 1, stays as it is."""
    total = weights[0] * clean[0]
    for weight, part in zip(weights[1:], clean[1:], strict=True):
        total = total + weight * part
    return total


def masked(denoise: Denoiser, known: Latents, mask: Float[Tensor, "b 1 f h w"]) -> Denoiser:
    """Edit where ``mask`` is 1 and keep ``known`` (the source's clean latents) where it is 0.

    It acts on the clean estimate, so it works for every sampler, and the last step ends on ``known`` exactly.
    """

    def denoise_masked(x: Latents, sigma: float, conditions: Sequence[Condition]) -> list[Latents]:
        return [mask * clean + (1 - mask) * known for clean in denoise(x, sigma, conditions)]

    return denoise_masked


def watched(denoise: Denoiser, look: OnLatents) -> Denoiser:
    """The same denoiser; ``look`` sees each clean estimate as it comes, for a preview."""

    def denoise_watched(x: Latents, sigma: float, conditions: Sequence[Condition]) -> list[Latents]:
        estimates = denoise(x, sigma, conditions)
        for clean in estimates:
            look(clean)
        return estimates

    return denoise_watched


def structure_between(
    denoise: Denoiser, without: Callable[[Condition], Condition], sigma_start: float, sigma_end: float
) -> Denoiser:
    """Structure only while ``sigma_start >= sigma > sigma_end``; outside, the condition ``without`` it."""

    def denoise_between(x: Latents, sigma: float, conditions: Sequence[Condition]) -> list[Latents]:
        if sigma_start >= sigma > sigma_end:
            return denoise(x, sigma, conditions)
        return denoise(x, sigma, [without(condition) for condition in conditions])

    return denoise_between
