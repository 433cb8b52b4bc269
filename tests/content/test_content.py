"""Content, its blending and scaling, and the words of a prompt."""

import pytest
import torch

from gen1_core.content.encoder import (
    Content,
    content_of,
    content_words,
    scale_embeddings,
    unfamiliar_words,
)
from gen1_core.content.mixing import blend


def content(value: float, *, width: int = 4) -> Content:
    return content_of(torch.full((1, width), value))


def test_an_embedding_is_one_token_with_a_null_of_zeros():
    made = content_of(torch.arange(6.0).reshape(2, 3))
    assert made.tokens.shape == (2, 1, 1, 3)
    torch.testing.assert_close(made.tokens[1, 0, 0], torch.tensor([3.0, 4.0, 5.0]))
    assert not made.null.any() and made.kind == "clip_image"


@pytest.mark.parametrize(
    "tokens, null, advice",
    [
        (torch.zeros(1, 1, 4), torch.zeros(1, 1, 4), "give four axes"),
        (torch.zeros(1, 1, 1, 4), torch.zeros(1, 1, 1, 5), "give both the same shape"),
        (
            torch.full((1, 1, 1, 4), torch.nan),
            torch.zeros(1, 1, 1, 4),
            "check the image and the encoder's weights",
        ),
    ],
)
def test_content_refuses(tokens, null, advice):
    with pytest.raises(ValueError, match=advice):
        Content(tokens=tokens, null=null)


def test_blend_is_the_weighted_mean():
    mixed = blend([content(1.0), content(5.0)], [3.0, 1.0])
    torch.testing.assert_close(mixed.tokens, torch.full((1, 1, 1, 4), 2.0))
    torch.testing.assert_close(blend([content(7.0)], [0.2]).tokens, content(7.0).tokens)


@pytest.mark.parametrize(
    "contents, weights, advice",
    [
        ([content(1.0)], [1.0, 2.0], "give one weight for each content"),
        ([], [], "give one weight for each content"),
        ([content(1.0), content(1.0, width=5)], [1.0, 1.0], "with the same encoder"),
        ([content(1.0), content(2.0)], [1.0, -1.0], "give weights with another sum"),
    ],
)
def test_blend_refuses(contents, weights, advice):
    with pytest.raises(ValueError, match=advice):
        blend(contents, weights)


def test_the_sphere_has_unit_variance_and_raw_is_raw():
    raw = torch.randn(3, 64, generator=torch.Generator().manual_seed(0)) * 5
    scaled = scale_embeddings(raw, "sphere")
    torch.testing.assert_close(scaled.square().mean(dim=-1), torch.ones(3))
    torch.testing.assert_close(scaled / scaled.norm(dim=-1, keepdim=True), raw / raw.norm(dim=-1, keepdim=True))
    torch.testing.assert_close(scale_embeddings(raw, "raw"), raw)


def test_unfamiliar_words():
    known = frozenset({"castle", "robots", "neon"})
    assert content_words("A castle, in the Style of NEON 3d!") == ["castle", "neon", "d"]
    assert unfamiliar_words("two castles and a robot of neon", known) == ["two"]
    assert unfamiliar_words("eine Burg", known) == ["eine", "burg"]
