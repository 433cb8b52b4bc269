"""CLIP towers in files: transformers' names (with and without ``text_model.``), and open_clip's and OpenAI's: ours.

transformers keeps query, key and value apart and its projections as linear layers; open_clip has the three in one and
projects with bare matrices. A file may hold both towers; each is taken out by itself.
"""

from collections.abc import Mapping
from itertools import count
from pathlib import Path

from torch import Tensor

from ..models.clip import CLIPConfig
from .keymap import Row, Table, from_theirs, prefixed, same, together, transposed
from .ldm import split_checkpoint

Shapes = Mapping[str, tuple[int, ...]]

BLOCK = {"layer_norm1": "ln_1", "layer_norm2": "ln_2", "mlp.fc1": "mlp.c_fc", "mlp.fc2": "mlp.c_proj"}
"""Layers of a block: transformers' name -> ours."""

MOST_HEADS = 16
"""Heads of the vision towers L/14, H/14, g/14 and bigG/14. Smaller ones, and all text towers, have one per 64 channels.
"""

QUICK = {"text": (768,), "vision": (1024,)}
"""Widths of OpenAI's ViT-L/14 towers, the only public ones here that were trained with the quick GELU."""

DROPPED = (
    r".*position_ids",  # a table of 0, 1, 2, ..., in files of transformers before 4.31
    r"logit_scale|logit_bias",
    r"input_resolution|context_length|vocab_size|attn_mask",  # of OpenAI's own files
    r".*text_projection(\.weight)?",  # to the shared space, which a diffusion model does not read
)
OTHER_TOWER = {
    "text": (r"vision_model\..*", r"visual_projection\.weight", r"visual\..*"),
    "vision": (
        r"text_model\..*",
        r"(transformer|token_embedding|ln_final)\..*",
        r"positional_embedding",
    ),
}


def text_tower_from(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], CLIPConfig]:
    """The text tower of a file under our names, and its config; ``path`` is only named in errors.

    Takes a CLIP of either naming, its text half, or a single file of Stable Diffusion.

    Raises ValueError where the file holds no CLIP text tower, or a tensor has no place in it.
    """
    if any(name.startswith("cond_stage_model.") for name in tensors):
        tensors = split_checkpoint(tensors, path)["text"]
    config = text_config_of(_shapes(tensors), path)
    dropped = (*DROPPED, *OTHER_TOWER["text"])
    if "token_embedding.weight" in tensors:
        table: Table = [same(name, name) for row in text_table(config.text_layers) for name in row.ours]
    else:
        prefix = "text_model." if any(name.startswith("text_model.") for name in tensors) else ""
        table = prefixed(text_table(config.text_layers), theirs=prefix)
    return from_theirs(tensors, table, path=path, dropped=dropped), config


def vision_from(tensors: Mapping[str, Tensor], path: Path) -> tuple[dict[str, Tensor], CLIPConfig]:
    """The vision tower of a file under our names (without ``visual.``), and its config.

    Takes a CLIP of either naming, its image half, or a single file of SD-unCLIP. ``path`` is only named in errors.

    Raises ValueError where the file holds no CLIP vision tower with its projection, or a tensor has no place in it.
    """
    if any(name.startswith("embedder.model.visual.") for name in tensors):
        tensors = split_checkpoint(tensors, path)["vision"]
    named = _with_prefix(tensors)
    config = vision_config_of(_shapes(named), path)
    ours = vision_table(config.vision_layers)
    if "visual.conv1.weight" in named:
        table: Table = prefixed([same(name, name) for row in ours for name in row.ours], theirs="visual.")
    else:
        table = ours
    return from_theirs(named, table, path=path, dropped=(*DROPPED, *OTHER_TOWER["vision"])), config


def text_table(layers: int) -> list[Row]:
    """transformers' CLIPTextModel without ``text_model.`` -> our TextTower."""
    rows = [
        same("embeddings.token_embedding.weight", "token_embedding.weight"),
        same("embeddings.position_embedding.weight", "positional_embedding"),
        *_layer("final_layer_norm", "ln_final"),
    ]
    return rows + _blocks(layers, "encoder.layers", "transformer.resblocks")


def vision_table(layers: int) -> list[Row]:
    """transformers' CLIPVisionModelWithProjection -> our VisionTransformer."""
    rows = [
        same("vision_model.embeddings.class_embedding", "class_embedding"),
        same("vision_model.embeddings.patch_embedding.weight", "conv1.weight"),
        same("vision_model.embeddings.position_embedding.weight", "positional_embedding"),
        *_layer("vision_model.pre_layrnorm", "ln_pre"),
        *_layer("vision_model.post_layernorm", "ln_post"),
        transposed("visual_projection.weight", "proj"),
    ]
    return rows + _blocks(layers, "vision_model.encoder.layers", "transformer.resblocks")


def text_config_of(shapes: Shapes, path: Path) -> CLIPConfig:
    """The sizes of a text tower from either naming. Heads and the kind of GELU are told by the width.

    Raises ValueError where there is no text tower.
    """
    names = {name.removeprefix("text_model."): shape for name, shape in shapes.items()}
    tokens = names.get("token_embedding.weight", names.get("embeddings.token_embedding.weight", ()))
    places = names.get("positional_embedding", names.get("embeddings.position_embedding.weight", ()))
    inner = names.get("transformer.resblocks.0.mlp.c_fc.weight", names.get("encoder.layers.0.mlp.fc1.weight", ()))
    if not (tokens and places and inner):
        raise ValueError(
            f"{path} holds no CLIP text encoder that could be read; give a Stable Diffusion checkpoint with its own, "
            "or the file of CLIPTextModel (text_encoder/model.safetensors)."
        )
    width = tokens[1]
    return CLIPConfig(
        embed_dim=width,
        text_width=width,
        text_layers=_count(names, "transformer.resblocks.{}.ln_1.weight", "encoder.layers.{}.layer_norm1.weight"),
        text_heads=_heads(width, most=width),
        context_length=places[0],
        vocab_size=tokens[0],
        mlp_ratio=inner[0] / width,
        quick_gelu=width in QUICK["text"],
    )


def vision_config_of(shapes: Shapes, path: Path) -> CLIPConfig:
    """The sizes of a vision tower from either naming. Heads and the kind of GELU are told by the width.

    Raises ValueError where there is no vision tower, or its projection is missing.
    """
    theirs = "vision_model.embeddings.patch_embedding.weight"
    ours = "visual.conv1.weight" in shapes
    patches = shapes.get("visual.conv1.weight", shapes.get(theirs, ()))
    layer = "visual.transformer.resblocks.0.mlp.c_fc.weight" if ours else "vision_model.encoder.layers.0.mlp.fc1.weight"
    projected = shapes["visual.proj"][1] if "visual.proj" in shapes else shapes.get("visual_projection.weight", (0,))[0]
    places = shapes.get("visual.positional_embedding", shapes.get(theirs.replace("patch", "position"), ()))
    inner = shapes.get(layer, ())
    if not (patches and inner and projected and places):
        raise ValueError(
            f"{path} holds no CLIP vision tower with its projection; give the file of CLIPVisionModelWithProjection, "
            "such as CLIP-ViT-H-14-laion2B-s32B-b79K.safetensors for most IP-Adapters."
        )
    width, patch = patches[0], patches[-1]
    return CLIPConfig(
        embed_dim=projected,
        image_size=round((places[0] - 1) ** 0.5) * patch,
        patch_size=patch,
        vision_width=width,
        vision_layers=_count(
            shapes, "visual.transformer.resblocks.{}.ln_1.weight", "vision_model.encoder.layers.{}.layer_norm1.weight"
        ),
        vision_heads=_heads(width, most=MOST_HEADS),
        mlp_ratio=inner[0] / width,
        quick_gelu=width in QUICK["vision"],
    )


def _heads(width: int, *, most: int) -> int:
    """One head per 64 channels and at most ``most``; for widths that nobody published, the next number that divides."""
    wanted = min(max(1, width // 64), most)
    return next(heads for heads in range(wanted, 0, -1) if width % heads == 0)


def _with_prefix(tensors: Mapping[str, Tensor]) -> Mapping[str, Tensor]:
    """transformers 5 saves CLIPVisionModel, as CLIPTextModel, without the name of the tower."""
    if "embeddings.class_embedding" not in tensors:
        return tensors
    inside = ("embeddings.", "encoder.", "pre_layrnorm.", "post_layernorm.")
    return {f"vision_model.{name}" if name.startswith(inside) else name: tensor for name, tensor in tensors.items()}


def _blocks(layers: int, theirs: str, ours: str) -> list[Row]:
    rows = []
    for layer in range(layers):
        their, our = f"{theirs}.{layer}", f"{ours}.{layer}"
        for name, own in BLOCK.items():
            rows += _layer(f"{their}.{name}", f"{our}.{own}")
        for kind in ("weight", "bias"):
            fused = [f"{their}.self_attn.{letter}_proj.{kind}" for letter in "qkv"]
            rows.append(together(fused, f"{our}.attn.in_proj_{kind}"))
        rows += _layer(f"{their}.self_attn.out_proj", f"{our}.attn.out_proj")
    return rows


def _layer(theirs: str, ours: str) -> list[Row]:
    return [same(f"{theirs}.{kind}", f"{ours}.{kind}") for kind in ("weight", "bias")]


def _count(shapes: Shapes, *patterns: str) -> int:
    return max(next(n for n in count() if pattern.format(n) not in shapes) for pattern in patterns)


def _shapes(tensors: Mapping[str, Tensor]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(tensor.shape) for name, tensor in tensors.items()}
