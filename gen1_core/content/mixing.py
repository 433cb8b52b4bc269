"""Contents mixed with one another, for a whole clip or frame by frame."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from math import lcm

import torch
from einops import rearrange, repeat
from jaxtyping import Float
from torch import Tensor

from .encoder import Content


def blend(contents: Sequence[Content], weights: Sequence[float]) -> Content:
    """The weighted mean of contents of one kind, the same in every frame; weights are divided by their sum."""
    return over_frames(contents, torch.tensor(list(weights), dtype=torch.float32)[:, None])


def fade(keyframes: Mapping[int, Content], *, frames: int) -> Content:
    """Content that passes linearly from keyframe to keyframe, and stays before the first and after the last.

    Frames count from 0. Raises ValueError for no keyframes, and for keyframes outside the clip.
    """
    places = sorted(keyframes)
    if not places or places[0] < 0 or places[-1] >= frames:
        raise ValueError(
            f"keyframes {places} do not lie in a clip of {frames} frames; give at least one, from 0 to {frames - 1}."
        )
    weights = torch.zeros(len(places), frames)
    weights[0, : places[0]] = 1
    weights[-1, places[-1] :] = 1
    for index, (begin, end) in enumerate(zip(places, places[1:], strict=False)):
        rising = torch.arange(end - begin) / (end - begin)
        weights[index, begin:end] = 1 - rising
        weights[index + 1, begin:end] = rising
    return over_frames([keyframes[place] for place in places], weights)


def over_frames(contents: Sequence[Content], weights: Float[Tensor, "k f"]) -> Content:
    """The weighted mean of contents of one kind in each of ``f`` frames; weights are divided by their sum.

    Token rows of different lengths (a long and a short prompt) are repeated to one length, which attention does not
    notice. Raises ValueError where the contents cannot be compared, and where the weights of a frame sum to 0.
    """
    if len(contents) != len(weights) or not contents:
        raise ValueError(
            f"{len(contents)} contents and {len(weights)} weights do not pair up; give one weight for each content."
        )
    if len({_likeness(content) for content in contents}) > 1:
        given = "; ".join(sorted({_described(content) for content in contents}))
        raise ValueError(
            f"Contents of different kinds or shapes cannot be blended ({given}); "
            "make all of them with the same encoder and the same scales."
        )
    counts = {_frames(content) for content in contents} | {weights.shape[1]}
    if len(counts - {1}) > 1:
        raise ValueError(
            f"contents and weights of {sorted(counts)} frames cannot be mixed; give each one frame, or as many as the "
            "clip."
        )
    total = weights.sum(dim=0)
    if (total == 0).any():
        raise ValueError(
            f"The weights {weights.tolist()} sum to 0 in some frame, so they have no mean there; "
            "give weights with another sum."
        )
    return _mixed(contents, weights / total)


def _mixed(contents: Sequence[Content], shares: Float[Tensor, "k f"]) -> Content:
    first = contents[0]
    pictures = zip(*(content.pictures for content in contents), strict=True)
    return replace(
        first,
        tokens=_mean([content.tokens for content in contents], shares),
        null=_mean([content.null for content in contents], shares),
        pictures=tuple(
            replace(
                each[0],
                tokens=_mean([picture.tokens for picture in each], shares),
                null=_mean([picture.null for picture in each], shares),
            )
            for each in pictures
        ),
        embedding=_mean_embedding([content.embedding for content in contents], shares),
        embedding_null=_mean_embedding([content.embedding_null for content in contents], shares),
    )


def _mean(parts: Sequence[Float[Tensor, "b _ _ d"]], shares: Float[Tensor, "k f"]) -> Float[Tensor, "b _ _ d"]:
    longest = lcm(*(part.shape[2] for part in parts))
    rows = [repeat(part, "b g n d -> b g (times n) d", times=longest // max(part.shape[2], 1)) for part in parts]
    weights = rearrange(shares, "k f -> k 1 f 1 1").to(parts[0])
    mixed = weights[0] * rows[0]
    for weight, row in zip(weights[1:], rows[1:], strict=True):
        mixed = mixed + weight * row
    return mixed


def _mean_embedding(parts: Sequence[Tensor | None], shares: Float[Tensor, "k f"]) -> Float[Tensor, "b g e"] | None:
    given = [rearrange(part, "b g e -> b g 1 e") for part in parts if part is not None]
    return rearrange(_mean(given, shares), "b g 1 e -> b g e") if given else None


def _frames(content: Content) -> int:
    parts = [content.tokens, *(picture.tokens for picture in content.pictures)]
    parts += [content.embedding] if content.embedding is not None else []
    return max(part.shape[1] for part in parts)


def _likeness(content: Content) -> tuple[object, ...]:
    """What contents must have in common to be mixed: everything but frames and the number of tokens."""
    return (
        content.kind,
        content.tokens.shape[0],
        content.tokens.shape[-1],
        content.tokens.shape[2] > 0,
        tuple((picture.tokens.shape[-1], picture.scales) for picture in content.pictures),
        None if content.embedding is None else content.embedding.shape[-1],
    )


def _described(content: Content) -> str:
    parts = [f"{content.kind} of shape {tuple(content.tokens.shape)}"]
    parts += [f"a picture of width {p.tokens.shape[-1]} at scales {p.scales}" for p in content.pictures]
    parts += [] if content.embedding is None else [f"an embedding of width {content.embedding.shape[-1]}"]
    return " with ".join(parts)
