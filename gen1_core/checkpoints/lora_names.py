"""What trainers call the layers of a U-Net and of a CLIP text encoder, and where those layers are in ours.

kohya's names join the parts of a name with "_" and cannot be taken apart again, so every name is compared in that form.
"""

import re
from collections.abc import Collection, Iterable, Iterator, Mapping
from typing import Literal, NamedTuple

from .keymap import Row, same
from .ldm import unet_config_of, unet_table

Part = Literal["unet", "text"]

_PARTS: tuple[tuple[str, str], ...] = (
    ("lora_unet_", "unet"),
    ("lycoris_", "unet"),
    ("lora_te1_", "text"),
    ("lora_te2_", "text_2"),
    ("lora_te_", "text"),
    ("unet.", "unet"),
    ("model.diffusion_model.", "unet"),
    ("diffusion_model.", "unet"),
    ("text_encoder.", "text"),
    ("text_encoder_2.", "text_2"),
    ("text_encoders.clip_l.transformer.", "text"),
    ("text_encoders.clip_g.transformer.", "text_2"),
)
"""How a name begins, and which network it speaks of; two text encoders are SDXL's."""

_TEXT = re.compile(r"text_model[._]|encoder[._]layers[._]|transformer[._]resblocks[._]")
_ATTENTION = {"attn.in_proj": ("q_proj", "k_proj", "v_proj"), "attn.out_proj": ("out_proj",)}
_FEEDFORWARD = {"mlp.c_fc": "mlp_fc1", "mlp.c_proj": "mlp_fc2"}
_ORIGINAL = ("input_blocks_", "middle_block_", "output_blocks_", "time_embed_", "out_2")


class Place(NamedTuple):
    """A weight of ours, or one of ``shares`` equal parts of its rows (fused query, key and value)."""

    weight: str
    share: int = 0
    shares: int = 1


def layer_of(name: str) -> tuple[str, str]:
    """The network ("unet", "text" or "text_2") and the joined name of a layer as a LoRA file calls it."""
    name = name.removeprefix("base_model.model.").removeprefix("module.")
    unnamed = ("", "text" if _TEXT.match(name) else "unet")
    prefix, part = next((pair for pair in _PARTS if name.startswith(pair[0])), unnamed)
    name = name.removeprefix(prefix).removeprefix("base_model.model.")
    # AnimateDiff counts the attentions of a motion module and keeps them one level deeper than diffusers does.
    name = name.replace(".processor", "").replace("temporal_transformer.", "")
    name = re.sub(r"attention_blocks\.(\d)", lambda found: f"attn{int(found[1]) + 1}", name)
    return part, _joined(name.removeprefix("text_model.")).removeprefix("text_model_")


def places(layers: Collection[str], shapes: Mapping[str, tuple[int, ...]], part: Part) -> dict[str, Place]:
    """Where the ``layers`` of a file (joined names) are in a network of ours, given its names and shapes.

    Layers that are not there are left out.
    """
    if part == "text":
        named = dict(_text_names(shapes))
    else:
        named = dict(_unet_names(same(name, name) for name in shapes))
        if any(layer.startswith(_ORIGINAL) for layer in layers):
            named.update(_unet_names(unet_table(unet_config_of(shapes))))
    return {layer: named[layer] for layer in layers if layer in named}


def _joined(name: str) -> str:
    return name.replace(".", "_")


def _unet_names(rows: Iterable[Row]) -> Iterator[tuple[str, Place]]:
    for theirs, ours in ((row.theirs[0], row.ours[0]) for row in rows):
        if theirs.endswith(".weight"):
            name = theirs.removesuffix(".weight")
            yield _joined(name), Place(ours)
            if name.endswith("to_out.0"):
                # diffusers' attention processors hide that to_out is a list.
                yield _joined(name.removesuffix(".0")), Place(ours)


def _text_names(weights: Iterable[str]) -> Iterator[tuple[str, Place]]:
    """Names of transformers' CLIP, which all trainers use, beside our own, which are open_clip's."""
    for weight in weights:
        found = re.fullmatch(r"transformer\.resblocks\.(\d+)\.(\w+\.\w+?)[._]weight", weight)
        if not found:
            continue
        block, layer = f"encoder_layers_{found[1]}_", found[2]
        yield _joined(f"transformer.resblocks.{found[1]}.{layer}"), Place(weight)
        if layer in _FEEDFORWARD:
            yield block + _FEEDFORWARD[layer], Place(weight)
        for share, name in enumerate(_ATTENTION.get(layer, ())):
            place = Place(weight, share, len(_ATTENTION[layer]))
            yield f"{block}self_attn_{name}", place
            # diffusers before 0.18
            yield f"{block}self_attn_to_{name.removesuffix('_proj')}", place
