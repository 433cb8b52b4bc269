"""Prompts as Stable Diffusion reads them, against transformers and open_clip with their own tokenizers."""

import open_clip
import pytest
import torch
from parts import randomised, relative_error
from torch.nn.functional import scaled_dot_product_attention
from transformers import CLIPTextConfig, CLIPTextModel

from gen1_core.checkpoints.clip import text_tower_from
from gen1_core.checkpoints.files import load_module
from gen1_core.content.text import CLIP_TEXT, TextEncoder, sd_text_encoder
from gen1_core.models.clip import CLIPConfig, TextTower

PROMPT = "a castle of glowing lava, at night; isn't it?"
LONG = " ".join(["castle"] * 50 + ["lava, at night"] * 12)
TWICE, LONGER = LONG + " neon", "forest " * 160


def tower(width: int, layers: int) -> TextTower:
    return TextTower(
        CLIPConfig(
            text_width=width,
            text_layers=layers,
            text_heads=width // 64,
            context_length=77,
            vocab_size=49408,
            mlp_ratio=1.0,
        )
    )


@pytest.fixture(scope="module")
def first() -> TextEncoder:
    small = tower(768, 2)
    randomised(small)
    return sd_text_encoder(small)


@pytest.fixture(scope="module")
def second() -> TextEncoder:
    """Without weights: what it reads is seen from its sizes."""
    with torch.device("meta"):
        return sd_text_encoder(tower(1024, 24))


def test_sd1_pads_with_the_end_and_sd2_with_zero(first, second):
    reference = open_clip.tokenizer.SimpleTokenizer()([PROMPT])[0].tolist()
    (row,) = second.pieces(PROMPT)
    assert row == reference
    (row,) = first.pieces(PROMPT)
    end = reference.index(49407)
    assert row == reference[: end + 1] + [49407] * (76 - end)


@torch.no_grad()
def test_a_prompt_equals_transformers(tmp_path):
    theirs = randomised(
        CLIPTextModel(
            CLIPTextConfig(num_hidden_layers=2, num_attention_heads=12, hidden_size=768, intermediate_size=768)
        )
    )
    tensors, config = text_tower_from(theirs.state_dict(), tmp_path)
    tower = load_module(
        lambda: TextTower(config), tensors, device=torch.device("cpu"), dtype=torch.float32, path=tmp_path
    )
    content = sd_text_encoder(tower)(PROMPT, negative="blurry")
    for tokens, text in ((content.tokens, PROMPT), (content.null, "blurry")):
        ids = open_clip.tokenizer.SimpleTokenizer()([text])
        ids[0, ids[0].argmax() :] = 49407
        assert relative_error(tokens[0, 0], theirs(ids).last_hidden_state[0]) <= 1e-5
    assert content.kind == CLIP_TEXT and content.tokens.shape == (1, 1, 77, 768)
    assert relative_error(content.tokens, content.null) > 0.01


def test_a_long_prompt_is_read_in_pieces(first):
    content = first(LONG)
    rows = first.pieces(LONG)
    assert len(rows) > 1 and content.tokens.shape[2] == 77 * len(rows) == content.null.shape[2]
    torch.testing.assert_close(content.tokens[:, :, 77:154], first.encode(rows[1:2]), rtol=1e-4, atol=1e-5)
    joined = [token for row in rows for token in row if token < 49406]
    assert joined == first.tokenizer.encode(LONG)


@pytest.mark.parametrize("other, rows", [("dark", 2), (TWICE, 6)])
@torch.no_grad()
def test_a_shorter_prompt_is_repeated_which_attention_does_not_notice(first, other, rows):
    prompt = LONG if len(first.pieces(other)) == 1 else LONGER
    content = first(prompt, negative=other)
    assert content.tokens.shape == content.null.shape == (1, 1, 77 * rows, 768)
    query = torch.randn(1, 1, 5, 768, generator=torch.Generator().manual_seed(0))
    for states, text in ((content.tokens, prompt), (content.null, other)):
        alone = first.encode(first.pieces(text))
        seen, wanted = (scaled_dot_product_attention(query, one, one) for one in (states, alone))
        assert relative_error(seen, wanted) <= 1e-5


def test_fewer_blocks_are_read_where_fewer_are_stored(first, second):
    assert (first.skip, second.skip) == (0, 1)
    with torch.device("meta"):
        assert sd_text_encoder(tower(1024, 23)).skip == 0
    assert sd_text_encoder(first.tower, clip_skip=1).skip == 1
    assert sd_text_encoder(second.tower, clip_skip=1).skip == 2
    assert relative_error(first("x").tokens, sd_text_encoder(first.tower, clip_skip=1)("x").tokens) > 0.01


def test_no_prompt_is_one_empty_piece(first):
    assert first.pieces("") == [[49406, *[49407] * 76]]
    content = first("")
    torch.testing.assert_close(content.tokens, content.null, rtol=0, atol=0)


def test_another_vocabulary_is_refused():
    with pytest.raises(ValueError, match="without added tokens"):
        sd_text_encoder(TextTower(CLIPConfig()))
