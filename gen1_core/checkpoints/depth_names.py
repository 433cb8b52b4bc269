"""The key tables of depth networks: MiDaS's names, Depth Anything's, and those of transformers for both -> ours.

After isl-org/MiDaS on timm, DepthAnything/Depth-Anything-V2, and transformers' DPTForDepthEstimation and
DepthAnythingForDepthEstimation. A table covers every size: rows that a file lacks do nothing.
"""

from collections.abc import Iterable, Mapping
from typing import Literal

from torch import Tensor

from ..models.dpt import LEVELS
from .keymap import Row, Table, prefixed, same, together

DepthLayout = Literal["midas", "dpt", "dpt_hybrid", "depth_anything", "depth_anything_transformers"]
"""The two original layouts, and transformers' three."""

BLOCKS, RESNET_BLOCKS, RESNET_STAGES = 24, 9, 3
"""The most of each that a public file has."""

DROPPED = (r"pretrained\.model\.head\..*", r"pretrained\.mask_token", r"backbone\.embeddings\.mask_token")
"""MiDaS keeps the unused ImageNet classes, Depth Anything what DINOv2 was trained with."""

INSIDE_SD2 = "depth_model.model."
"""What stands before the keys of MiDaS inside SD2-depth."""

PREFIXES = ("", "module.", INSIDE_SD2)
"""What may stand before every key: nothing, a training checkpoint's wrapper, the place inside SD2-depth."""

_MARKS: dict[DepthLayout, str] = {
    "midas": "pretrained.model.blocks.0.attn.qkv.weight",
    "dpt_hybrid": "dpt.embeddings.projection.weight",
    "dpt": "dpt.embeddings.patch_embeddings.projection.weight",
    "depth_anything": "pretrained.blocks.0.attn.qkv.weight",
    "depth_anything_transformers": "backbone.encoder.layer.0.attention.attention.query.weight",
}

_DPT_LAYERS = {
    "layernorm_before": "norm1",
    "layernorm_after": "norm2",
    "attention.output.dense": "attn.proj",
    "intermediate.dense": "mlp.fc1",
    "output.dense": "mlp.fc2",
}

_DINO_LAYERS = {
    "norm1": "norm1",
    "norm2": "norm2",
    "attention.output.dense": "attn.proj",
    "mlp.fc1": "mlp.fc1",
    "mlp.fc2": "mlp.fc2",
}


_SINCE_TRANSFORMERS_5 = {
    ".attention.q_proj.": ".attention.attention.query.",
    ".attention.k_proj.": ".attention.attention.key.",
    ".attention.v_proj.": ".attention.attention.value.",
    ".attention.o_proj.": ".attention.output.dense.",
}


def published(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The state dict of transformers 5 by the names of its files, which it still reads and writes."""
    named = {}
    for name, tensor in tensors.items():
        new = next((new for new in _SINCE_TRANSFORMERS_5 if new in name), "")
        named[name.replace(new, _SINCE_TRANSFORMERS_5[new]) if new else name] = tensor
    return named


def layout_of(names: Mapping[str, object]) -> tuple[DepthLayout, str] | None:
    """Which layout these keys have, and what stands before each of them; None where it is no such network."""
    for layout, mark in _MARKS.items():
        for prefix in PREFIXES:
            if prefix + mark in names:
                return layout, prefix
    return None


def depth_table(layout: DepthLayout) -> list[Row]:
    """One layout -> ours, for all sizes."""
    if layout == "midas":
        return [*prefixed(_timm_rows(), theirs="pretrained.model.", ours="backbone."), *_midas_rows()]
    if layout == "depth_anything":
        return [*prefixed(_timm_rows(), theirs="pretrained.", ours="backbone."), *_depth_anything_rows()]
    if layout == "depth_anything_transformers":
        start, heads = "backbone.", ("head.conv1", "head.conv2", "head.conv3")
    else:
        start, heads = "dpt.", ("head.head.0", "head.head.2", "head.head.4")
    return [
        *prefixed(_transformers_rows(layout), theirs=start, ours="backbone."),
        *_neck_rows(),
        *_rows((theirs, f"head.conv{number}") for number, theirs in enumerate(heads, 1)),
    ]


def _rows(names: Iterable[tuple[str, str]]) -> list[Row]:
    """Weight and bias of layers, each with their name and ours."""
    return [same(f"{theirs}.{leaf}", f"{ours}.{leaf}") for theirs, ours in names for leaf in ("weight", "bias")]


def _timm_rows() -> Table:
    """The transformer as timm names it, which is as we do."""
    layers = ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
    names = ["patch_embed.proj", "norm"]
    names += [f"blocks.{block}.{layer}" for block in range(BLOCKS) for layer in layers]
    names += [f"patch_embed.backbone.{ours}" for _, ours in _resnet_names()]
    scales = [f"blocks.{block}.ls{branch}.gamma" for block in range(BLOCKS) for branch in (1, 2)]
    return [*_rows((name, name) for name in names), *(same(name, name) for name in ("cls_token", "pos_embed", *scales))]


def _resnet_names() -> list[tuple[str, str]]:
    """BiT's layers in transformers, and in timm."""
    names = [("embedder.convolution", "stem.conv"), ("embedder.norm", "stem.norm")]
    layers = [f"{kind}{number}" for number in (1, 2, 3) for kind in ("conv", "norm")]
    for stage in range(RESNET_STAGES):
        for block in range(RESNET_BLOCKS):
            theirs, ours = f"encoder.stages.{stage}.layers.{block}", f"stages.{stage}.blocks.{block}"
            names += [
                (f"{theirs}.{layer}", f"{ours}.{layer}") for layer in (*layers, "downsample.conv", "downsample.norm")
            ]
    return names


def _midas_rows() -> Table:
    """The rest of MiDaS's DPT."""
    names = [(f"scratch.output_conv.{place}", f"head.conv{place // 2 + 1}") for place in (0, 2, 4)]
    for level in range(LEVELS):
        post = f"pretrained.act_postprocess{level + 1}"
        names += [
            (f"{post}.0.project.0", f"reassemble.{level}.readout"),
            (f"{post}.3", f"reassemble.{level}.project"),
            (f"{post}.4", f"reassemble.{level}.resize"),
        ]
    return _rows([*names, *_scratch_names("scratch.")])


def _depth_anything_rows() -> Table:
    """The rest of Depth Anything: its head."""
    scratch = "depth_head.scratch."
    names = [
        (f"{scratch}output_conv1", "head.conv1"),
        (f"{scratch}output_conv2.0", "head.conv2"),
        (f"{scratch}output_conv2.2", "head.conv3"),
    ]
    for level in range(LEVELS):
        names += [
            (f"depth_head.projects.{level}", f"reassemble.{level}.project"),
            (f"depth_head.resize_layers.{level}", f"reassemble.{level}.resize"),
        ]
    return _rows([*names, *_scratch_names(scratch)])


def _scratch_names(scratch: str) -> list[tuple[str, str]]:
    """The fusion, which both authors call scratch."""
    names = []
    for level in range(LEVELS):
        unit = f"{scratch}refinenet{level + 1}"
        names += [
            (f"{scratch}layer{level + 1}_rn", f"narrow.{level}"),
            (f"{unit}.out_conv", f"fuse.{level}.project"),
        ]
        for theirs, ours in (("resConfUnit1", "branch"), ("resConfUnit2", "merged")):
            names += [(f"{unit}.{theirs}.conv{one}", f"fuse.{level}.{ours}.conv{one}") for one in (1, 2)]
    return names


def _transformers_rows(layout: DepthLayout) -> Table:
    """The vision transformer as transformers names it: DPT's own, with or without BiT, or DINOv2's."""
    patches = "embeddings.projection" if layout == "dpt_hybrid" else "embeddings.patch_embeddings.projection"
    layers = _DINO_LAYERS if layout == "depth_anything_transformers" else _DPT_LAYERS
    names = [("layernorm", "norm"), (patches, "patch_embed.proj")]
    names += [(f"embeddings.backbone.bit.{theirs}", f"patch_embed.backbone.{ours}") for theirs, ours in _resnet_names()]
    rows = [same("embeddings.cls_token", "cls_token"), same("embeddings.position_embeddings", "pos_embed")]
    for block in range(BLOCKS):
        theirs, ours = f"encoder.layer.{block}", f"blocks.{block}"
        attention = f"{theirs}.attention.attention"
        for leaf in ("weight", "bias"):
            parts = [f"{attention}.{part}.{leaf}" for part in ("query", "key", "value")]
            rows.append(together(parts, f"{ours}.attn.qkv.{leaf}"))
        names += [(f"{theirs}.{old}", f"{ours}.{new}") for old, new in layers.items()]
        rows += [same(f"{theirs}.layer_scale{one}.lambda1", f"{ours}.ls{one}.gamma") for one in (1, 2)]
    return [*rows, *_rows(names)]


def _neck_rows() -> Table:
    """Reassembling and fusion, which transformers names alike in both; it fuses from coarse to fine."""
    names = []
    for level in range(LEVELS):
        stage, fuse = "neck.reassemble_stage", f"neck.fusion_stage.layers.{LEVELS - 1 - level}"
        names += [
            (f"{stage}.readout_projects.{level}.0", f"reassemble.{level}.readout"),
            (f"{stage}.layers.{level}.projection", f"reassemble.{level}.project"),
            (f"{stage}.layers.{level}.resize", f"reassemble.{level}.resize"),
            (f"neck.convs.{level}", f"narrow.{level}"),
            (f"{fuse}.projection", f"fuse.{level}.project"),
        ]
        for number, ours in ((1, "branch"), (2, "merged")):
            names += [
                (f"{fuse}.residual_layer{number}.convolution{one}", f"fuse.{level}.{ours}.conv{one}") for one in (1, 2)
            ]
    return _rows(names)
