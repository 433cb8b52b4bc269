"""Contents beside one another, blended, and changing over frames."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.testing import assert_close

from gen1_core.content.encoder import PICTURE, Content, beside
from gen1_core.content.mixing import blend, fade, over_frames
from gen1_core.diffusion.condition import PictureTokens


def full(value: float, *shape: int) -> Tensor:
    return torch.full(shape, value)


def text(value: float, *, length: int = 3, frames: int = 1) -> Content:
    return Content(tokens=full(value, 1, frames, length, 4), null=full(-value, 1, frames, length, 4), kind="clip_text")


def picture(value: float, *, tokens: int = 2, frames: int = 1, scales: tuple[float, ...] = (1.0,)) -> Content:
    nothing = torch.zeros(1, 1, 0, 4)
    shape = (1, frames, tokens, 4)
    one = PictureTokens(tokens=full(value, *shape), null=full(-value, *shape), scales=scales)
    return Content(tokens=nothing, null=nothing, kind=PICTURE, pictures=(one,))


def embedding(value: float, *, frames: int = 1) -> Content:
    nothing = torch.zeros(1, 1, 0, 0)
    told = full(value, 1, frames, 6)
    return Content(tokens=nothing, null=nothing, kind=PICTURE, embedding=told, embedding_null=torch.zeros_like(told))


def whole(value: float, **options: int) -> Content:
    return beside(text(value, **options), picture(10 * value), embedding(100 * value))


def test_a_prompt_takes_pictures_beside_it():
    both = beside(text(1.0), picture(2.0), picture(3.0, frames=5), embedding(4.0))
    assert both.kind == "clip_text"
    assert_close(both.tokens, text(1.0).tokens)
    assert [float(p.tokens.mean()) for p in both.pictures] == [2.0, 3.0]
    assert both.embedding is not None and float(both.embedding.mean()) == 4.0
    assert beside(text(1.0)).tokens.shape == text(1.0).tokens.shape
    assert beside(picture(1.0), picture(2.0)).kind == PICTURE


def test_tokens_beside_tokens_follow_one_another():
    both = beside(text(1.0), text(2.0, length=2, frames=4))
    assert both.tokens.shape == both.null.shape == (1, 4, 5, 4)
    assert_close(both.tokens[0, 3, :, 0], torch.tensor([1.0, 1, 1, 2, 2]))


def test_what_cannot_stand_beside_is_refused():
    wide = Content(tokens=torch.zeros(1, 1, 1, 5), null=torch.zeros(1, 1, 1, 5))
    with pytest.raises(ValueError, match="with the encoders of the same model"):
        beside(text(1.0), wide)
    with pytest.raises(ValueError, match=r"mix them with blend\(\) first"):
        beside(text(1.0), embedding(1.0), embedding(2.0))
    with pytest.raises(ValueError, match="give each one frame, or as many as the clip"):
        beside(text(1.0, frames=3), picture(1.0, frames=4))
    with pytest.raises(ValueError, match="give both the same shape, zeros as the null"):
        replace(embedding(1.0), embedding_null=None)
    with pytest.raises(ValueError, match="embedding_null of shape .* give both the same shape"):
        replace(embedding(1.0), embedding_null=torch.zeros(1, 1, 3))
    with pytest.raises(ValueError, match="check the image"):
        embedding(torch.nan)


def values(content: Content) -> list[Tensor]:
    """Every field, one number per frame."""
    assert content.embedding is not None and content.embedding_null is not None
    (shown,) = content.pictures
    parts = [content.tokens, content.null, shown.tokens, shown.null, content.embedding, content.embedding_null]
    return [part[0].flatten(1).mean(dim=1) for part in parts]


def test_a_blend_has_the_mean_of_every_field():
    mixed = blend([whole(1.0), whole(5.0)], [3.0, 1.0])
    for value, wanted in zip(values(mixed), (2.0, -2.0, 20.0, -20.0, 200.0, 0.0), strict=True):
        assert_close(value, torch.tensor([wanted]))
    assert mixed.kind == "clip_text" and mixed.pictures[0].scales == (1.0,)


def test_a_content_over_frames_has_the_mean_of_each_frame():
    mixed = over_frames([whole(1.0), whole(3.0)], torch.tensor([[1.0, 0.5, 0.0], [0.0, 1.5, 2.0]]))
    each = torch.tensor([1.0, 2.5, 3.0])
    for value, factor in zip(values(mixed), (1, -1, 10, -10, 100, 0), strict=True):
        assert_close(value, factor * each)
    moving = text(0.0, frames=3)
    moving = replace(moving, tokens=torch.arange(3.0)[None, :, None, None].expand(1, 3, 3, 4))
    half = over_frames([moving, text(1.0)], torch.full((2, 3), 0.5))
    assert_close(half.tokens[0, :, 0, 0], torch.tensor([0.5, 1.0, 1.5]))


def test_a_fade_passes_linearly_between_keyframes():
    mixed = fade({6: text(3.0), 2: text(1.0)}, frames=9)
    assert_close(mixed.tokens[0, :, 0, 0], torch.tensor([1.0, 1, 1, 1.5, 2, 2.5, 3, 3, 3]))
    assert_close(mixed.null, -mixed.tokens)
    three = fade({0: text(0.0), 2: text(2.0), 3: text(0.0)}, frames=4)
    assert_close(three.tokens[0, :, 0, 0], torch.tensor([0.0, 1, 2, 0]))
    assert fade({1: text(2.0)}, frames=3).tokens.shape == (1, 3, 3, 4)


@pytest.mark.parametrize("keyframes", [{}, {-1: 1.0}, {4: 1.0}])
def test_keyframes_outside_the_clip_are_refused(keyframes):
    with pytest.raises(ValueError, match="give at least one, from 0 to 3"):
        fade({place: text(value) for place, value in keyframes.items()}, frames=4)


def attended(content: Content) -> Tensor:
    query = torch.linspace(-1, 1, 4)[None, None, None]
    return functional.scaled_dot_product_attention(query, content.tokens, content.tokens)


def test_prompts_of_different_lengths_can_be_blended():
    tokens = [torch.randn(1, 1, length, 4, generator=torch.Generator().manual_seed(length)) for length in (2, 3)]
    short, long = (Content(tokens=each, null=each) for each in tokens)
    alone = over_frames([short, long], torch.tensor([[1.0], [0.0]]))
    assert alone.tokens.shape == (1, 1, 6, 4)
    assert_close(attended(alone), attended(short))


@pytest.mark.parametrize(
    "second",
    [
        text(1.0),
        beside(text(1.0), picture(1.0), picture(1.0), embedding(1.0)),
        beside(text(1.0), picture(1.0, scales=(0.5,)), embedding(1.0)),
        replace(whole(1.0), kind="other"),
    ],
)
def test_contents_that_cannot_be_compared_are_refused(second):
    with pytest.raises(ValueError, match="with the same encoder and the same scales"):
        blend([whole(1.0), second], [1.0, 1.0])


def test_weights_that_do_not_fit_are_refused():
    with pytest.raises(ValueError, match="give one weight for each content"):
        over_frames([text(1.0)], torch.ones(2, 3))
    with pytest.raises(ValueError, match="give weights with another sum"):
        over_frames([text(1.0), text(2.0)], torch.tensor([[1.0, 1.0], [1.0, -1.0]]))
    with pytest.raises(ValueError, match="give each one frame, or as many as the clip"):
        over_frames([text(1.0, frames=2), text(2.0)], torch.ones(2, 3))
