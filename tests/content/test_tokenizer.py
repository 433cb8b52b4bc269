"""The tokenizer against open_clip's, and its properties with fewer merges."""

import gzip
import unicodedata
from itertools import islice
from pathlib import Path

import ftfy
import open_clip
import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st

from gen1_core.content.tokenizer import Tokenizer, clean, clip_merges, read_merges, split_words

CLIP_MERGES = 49152 - 256 - 2


def all_merges() -> list[tuple[str, str]]:
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return read_merges("".join(islice(file, 1 + CLIP_MERGES)))


MERGES = all_merges()
FULL = Tokenizer(MERGES, context_length=77)
SMALL = Tokenizer.embedded(context_length=32)
REFERENCE = open_clip.SimpleTokenizer(context_length=77)

any_text = st.text(st.characters(exclude_categories=("Cs", "Cn", "Co", "Cc")), max_size=60)
english = st.lists(
    st.sampled_from(
        [
            "a castle",
            "it's",
            "don't",
            "we're",
            "I'LL",
            "neon",
            "2nd",
            "1234",
            "&amp;",
            "--",
            "'",
            "''",
            "’s",
            "“x”",
        ]
        + [
            "café",
            "naïve",
            "日本語",
            "½",
            "x²",
            "Ⅷ",
            "🙂",
            "_",
            "a_b",
            " ",
            "  ",
            "!!'s",
            "Ǆ",
            "\t",
            "<b>",
            "&lt;",
        ]
    ),
    max_size=12,
).flatmap(lambda parts: st.sampled_from([" ".join(parts), "".join(parts)]))


@given(any_text | english)
@example("it’s a “test” of the tokenizer's pieces, isn't it? 100% sure & <b>bold</b> &amp;amp; e\u0301")
def test_all_merges_equal_open_clip(text):
    # ftfy also repairs mis-decoded text, which we leave alone
    assume(repaired_alike(text))
    assert FULL.encode(text) == REFERENCE.encode(text)


def repaired_alike(text: str) -> bool:
    straight = unicodedata.normalize("NFC", text).translate(str.maketrans("‘’“”", "''\"\""))
    return ftfy.fix_text(text).split() == straight.split()


def test_rows_equal_open_clip():
    texts = ["a castle made of lava", "", "word " * 100, "neon city, at night"]
    torch.testing.assert_close(FULL(texts), REFERENCE(texts))
    assert (FULL.start_token, FULL.end_token) == (REFERENCE.sot_token_id, REFERENCE.eot_token_id)


def test_the_asset_holds_clips_merges():
    assert clip_merges() == MERGES[:48894]
    assert SMALL.vocab_size == 256 * 2 + 4096 + 2


@given(any_text | english)
def test_any_text_encodes_and_comes_back(text):
    pieces = {number: piece for piece, number in SMALL.ids.items()}
    letters = {symbol: byte for byte, symbol in SMALL.alphabet.items()}
    joined = "".join(pieces[number].replace("</w>", "") for number in SMALL.encode(text))
    decoded = bytes(letters[symbol] for symbol in joined).decode("utf-8")
    assert decoded == clean(text).replace(" ", "")


@given(any_text | english)
def test_rows_start_end_and_have_one_length(text):
    (row,) = SMALL([text])
    ends = (row == SMALL.end_token).nonzero()
    assert len(row) == 32 and row[0] == SMALL.start_token and len(ends) == 1
    assert (row[ends.item() + 1 :] == 0).all()
    assert row.argmax() == ends.item()


def test_a_long_text_is_cut_and_keeps_its_end():
    (row,) = SMALL(["castle " * 60])
    assert row[-1] == SMALL.end_token


def test_fewer_merges_mean_more_pieces():
    bytes_only = Tokenizer([], context_length=32)
    assert len(bytes_only.encode("castle")) == 6
    assert 6 > len(SMALL.encode("castle")) >= len(FULL.encode("castle")) == 1


def test_words_split_as_clip_does():
    assert list(split_words("it's 12 x² half-done!!")) == [
        "it",
        "'s",
        "1",
        "2",
        "x",
        "²",
        "half",
        "-",
        "done",
        "!!",
    ]


def test_refuses():
    with pytest.raises(ValueError, match="give the text of CLIP's"):
        read_merges("head\na b\nc\n")
    with pytest.raises(ValueError, match="set it to 3 or more"):
        Tokenizer([], context_length=2)
