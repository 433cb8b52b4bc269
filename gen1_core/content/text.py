"""A prompt as Stable Diffusion reads it: the states of CLIP's text tower at every token."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import lcm

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from torch import Tensor

from ..models.clip import TextTower
from .encoder import Content
from .tokenizer import Tokenizer

CLIP_TEXT = "clip_text"
"""Kind of content: the tokens of a prompt, whose null is an empty or a negative prompt."""


@dataclass(frozen=True, kw_only=True)
class TextEncoder:
    """A text tower with its tokenizer.

    ``skip`` is the number of last blocks left out, and ``pad`` the token after the end of a short prompt: SD 1.x takes
    all blocks and pads with the end token (49407), SD 2.x leaves out one and pads with 0 (their inference
    configurations; transformers' and open_clip's tokenizers do the same).
    """

    tower: TextTower
    tokenizer: Tokenizer
    skip: int
    pad: int

    def __call__(self, prompt: str, *, negative: str = "") -> Content:
        """The prompt as content ``[1 1 n d]``, with the negative prompt as its null; n is 77 for every 75 tokens.

        Both are repeated to one length where theirs differ: attention over the same tokens twice is the same, so each
        prompt means what it means alone (ComfyUI's CONDCrossAttn).
        """
        pieces = [self.pieces(text) for text in (prompt, negative)]
        longest = lcm(*map(len, pieces))
        tokens, null = (
            repeat(self.encode(rows), "b g n d -> b g (times n) d", times=longest // len(rows)) for rows in pieces
        )
        return Content(tokens=tokens, null=null, kind=CLIP_TEXT)

    def pieces(self, text: str) -> list[list[int]]:
        """Token ids in rows of the tower's length, each with its own start and end, as ComfyUI cuts long prompts."""
        ids, room = self.tokenizer.encode(text), self.tower.config.context_length - 2
        parts = [ids[first : first + room] for first in range(0, len(ids), room)] or [[]]
        start, end = self.tokenizer.start_token, self.tokenizer.end_token
        return [[start, *part, end, *[self.pad] * (room - len(part))] for part in parts]

    @torch.no_grad()
    def encode(self, rows: Sequence[Sequence[int]]) -> Float[Tensor, "1 1 n d"]:
        """Rows of token ids to states, one after the other, in float32."""
        tokens: Int[Tensor, "m k"] = torch.tensor([list(row) for row in rows], device=self.tower.ln_final.weight.device)
        states = self.tower.hidden(tokens, skip=self.skip)
        return rearrange(states.float(), "m k d -> 1 1 (m k) d")


def sd_text_encoder(tower: TextTower, *, clip_skip: int = 0) -> TextEncoder:
    """The text encoder of SD 1.x (768 wide) or 2.x (1024 wide) around its tower.

    2.x leaves out the last of OpenCLIP's 24 blocks; diffusers' folders of it hold only the 23 that are used.
    ``clip_skip`` leaves out as many more, counted as in diffusers: 1 is what others call "clip skip 2".

    Raises ValueError for another vocabulary than CLIP's.
    """
    tokenizer = Tokenizer.clip()
    if tower.config.vocab_size != tokenizer.vocab_size:
        raise ValueError(
            f"a text tower of {tower.config.vocab_size} tokens does not read CLIP's {tokenizer.vocab_size}; "
            "give the text encoder of a Stable Diffusion checkpoint without added tokens."
        )
    second = tower.config.text_width == 1024
    unused = 1 if second and tower.config.text_layers == 24 else 0
    return TextEncoder(
        tower=tower, tokenizer=tokenizer, skip=unused + clip_skip, pad=0 if second else tokenizer.end_token
    )
