"""CLIP's byte-level BPE tokenizer in plain Python, with all of CLIP's merges or only the first of them.

Any number of first merges is a valid tokenizer for any text: fewer merges only mean that rare words become more pieces,
down to single bytes, so there is no unknown token. ``assets/bpe_48894.txt`` holds the merges of OpenAI's CLIP
(https://github.com/openai/CLIP, bpe_simple_vocab_16e6.txt; MIT licence, Copyright (c) 2021 OpenAI): all that its public
weights know. The embedded model was trained on the first 4096.

Equal to open_clip's SimpleTokenizer, except that mis-decoded text is not repaired (open_clip uses ftfy for that) and
that "<start_of_text>" and "<end_of_text>" in a prompt are ordinary characters.
"""

import html
import re
import unicodedata
from collections.abc import Iterator, Sequence
from importlib import resources
from itertools import pairwise

import torch
from jaxtyping import Int
from torch import Tensor

Merge = tuple[str, str]

EMBEDDED_MERGES = 4096
"""How many of them the embedded model was trained with."""

CONTRACTION = re.compile(r"'(?:s|t|re|ve|m|ll|d)", re.IGNORECASE)
RUN = re.compile(r"L+|N|P+")
QUOTES = str.maketrans({"\u2018": "'", "\u2019": "'", "\u201c": '"', "\u201d": '"'})


def read_merges(text: str) -> list[Merge]:
    """Merges from the text of a merges file: a first line that says what it is, then one pair a line."""
    lines = [line.split() for line in text.split("\n")[1:] if line]
    wrong = next((number for number, line in enumerate(lines, start=2) if len(line) != 2), 0)
    if wrong:
        raise ValueError(
            f"Line {wrong} of the merges is not a pair of pieces, so this is no BPE merges file; "
            "give the text of CLIP's bpe_simple_vocab_16e6.txt or a merges.txt."
        )
    return [(first, second) for first, second in lines]


def clip_merges() -> list[Merge]:
    """The 48,894 merges of CLIP, which come with the library."""
    package = resources.files(__name__.rsplit(".", 2)[0])
    return read_merges((package / "assets" / "bpe_48894.txt").read_text(encoding="utf-8"))


def byte_alphabet() -> dict[int, str]:
    """A visible character for each byte, in the order of CLIP's vocabulary; printable ones are themselves."""
    printable = [
        *range(ord("!"), ord("~") + 1),
        *range(ord("¡"), ord("¬") + 1),
        *range(ord("®"), ord("ÿ") + 1),
    ]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


def clean(text: str) -> str:
    """Composed characters, straight quotes, HTML entities resolved, single spaces, lower case."""
    text = unicodedata.normalize("NFC", text).translate(QUOTES)
    return " ".join(html.unescape(html.unescape(text)).split()).lower()


def split_words(text: str) -> Iterator[str]:
    """CLIP's pattern: contractions, runs of letters, single digits, runs of anything else but space."""
    classes = "".join(map(_character_class, text))
    position = 0
    while run := RUN.search(classes, position):
        short = CONTRACTION.match(text, run.start())
        position = short.end() if short else run.end()
        yield text[run.start() : position]


def _character_class(character: str) -> str:
    """L, N or P for letter, number or other visible character; a space for a space."""
    if character.isspace():
        return " "
    category = unicodedata.category(character)[0]
    return category if category in "LN" else "P"


class Tokenizer:
    """Text to token ids: bytes, bytes that end a word, merges in order, start token, end token."""

    def __init__(self, merges: Sequence[Merge], *, context_length: int) -> None:
        if context_length < 3:
            raise ValueError(
                f"context_length={context_length} leaves no room between the start and the end token; "
                "set it to 3 or more."
            )
        self.alphabet = byte_alphabet()
        symbols = self.alphabet.values()
        pieces = [*symbols, *(symbol + "</w>" for symbol in symbols), *(a + b for a, b in merges)]
        self.context_length = context_length
        self.ids = {piece: number for number, piece in enumerate(pieces)}
        self.ranks = {merge: rank for rank, merge in enumerate(merges)}
        self.start_token, self.end_token = len(pieces), len(pieces) + 1
        self.vocab_size = len(pieces) + 2

    @classmethod
    def embedded(cls, context_length: int) -> "Tokenizer":
        """The tokenizer of the embedded model: CLIP's first 4096 merges."""
        return cls(clip_merges()[:EMBEDDED_MERGES], context_length=context_length)

    @classmethod
    def clip(cls) -> "Tokenizer":
        """The tokenizer of every public CLIP: all merges, 77 tokens."""
        return cls(clip_merges(), context_length=77)

    def pieces(self, word: str) -> list[str]:
        """A word's pieces: neighbours are joined, the earliest merge first, until none applies."""
        parts = [self.alphabet[byte] for byte in word.encode("utf-8", errors="replace")]
        parts[-1] += "</w>"
        while len(parts) > 1:
            best = min(pairwise(parts), key=lambda pair: self.ranks.get(pair, len(self.ranks)))
            if best not in self.ranks:
                break
            parts = _join(parts, best)
        return parts

    def encode(self, text: str) -> list[int]:
        """Token ids without start, end and padding, however many there are."""
        return [self.ids[piece] for word in split_words(clean(text)) for piece in self.pieces(word)]

    def __call__(self, texts: Sequence[str]) -> Int[Tensor, "n k"]:
        """Rows of context_length: start, text, end, zeros. A longer text is cut; the end token stays."""
        rows = torch.zeros(len(texts), self.context_length, dtype=torch.long)
        for row, text in zip(rows, texts, strict=True):
            ids = [self.start_token, *self.encode(text)[: self.context_length - 2], self.end_token]
            row[: len(ids)] = torch.tensor(ids)
        return rows


def _join(parts: list[str], pair: Merge) -> list[str]:
    """Every occurrence of a pair as one piece, from left to right."""
    joined, position = [], 0
    while position < len(parts):
        if tuple(parts[position : position + 2]) == pair:
            joined.append(pair[0] + pair[1])
            position += 2
        else:
            joined.append(parts[position])
            position += 1
    return joined
