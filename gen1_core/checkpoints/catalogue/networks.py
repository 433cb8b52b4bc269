"""Networks that stand by themselves: U-Nets, autoencoders, CLIP, depth."""

from collections.abc import Iterator

from .facts import FactsOf, checkpoint_facts, clip_facts, depth_facts, unet_facts, vae_facts
from .row import ANY, CONV, INSTEAD, LINEAR, Axes, Kind, Row

_DIT = "only Stable Diffusion 1.x and 2.x have the U-Net that this program runs; take a checkpoint of SD 1.5"
_INPAINT = "its U-Net takes a masked picture in 5 more channels; take the plain checkpoint that it was made from"
_IP2P = "its U-Net takes the picture in 4 more channels, not depth; take a plain checkpoint and a depth ControlNet"
_UPSCALER = "it enlarges pictures; take a plain checkpoint"
_SVD = "Stable Video Diffusion is another network; take a checkpoint of SD 1.5 and a motion module"
_MIDAS = "of MiDaS only DPT-Large and DPT-Hybrid can be read; take one of these, or Depth Anything V2"
_WORDS, _CLASS = "embeddings.token_embedding.weight", "embeddings.class_embedding"


def _unets(
    kind: Kind, title: str, facts: FactsOf, *, first: str, project: str, layout: str, label: str, some: str
) -> Iterator[Row]:
    """The variants of Stable Diffusion, in one naming: those that cannot be used, and those that can."""
    refused = (
        ("inpainting", "sd15", 9, _INPAINT),
        ("InstructPix2Pix", "sd15", 8, _IP2P),
        ("upscaler", "sd2", 7, _UPSCALER),
    )
    for variant, base, channels, reason in refused:
        shapes: dict[str, Axes] = {first: (ANY, channels, ANY, ANY)}
        name = f"Stable Diffusion {title}, {variant}"
        yield Row(name=name, kind=kind, shapes=shapes, base=base, layout=layout, facts=facts, reason=reason)
    used = (
        ("2 depth", "sd2-depth", 5, LINEAR, ()),
        ("2.1 unCLIP {variant}", "sd2-unclip", 4, LINEAR, (label,)),
        ("2.x", "sd2", 4, LINEAR, ()),
        ("1.x", "sd15", 4, CONV, ()),
    )
    for version, base, channels, projection, has in used:
        yield Row(
            name=f"Stable Diffusion {version} {title}",
            kind=kind,
            has=has,
            shapes={first: (ANY, channels, ANY, ANY), project: projection},
            some=(some,),
            base=base,
            layout=layout,
            facts=facts,
        )


UNET = (
    Row(
        name="Stable Video Diffusion",
        kind="unet",
        some=(r"(time_stack|time_mix_blocks|temporal_transformer_blocks|time_mixer)\.",),
        base="svd",
        reason=_SVD,
    ),
    Row(
        name="SDXL checkpoint",
        kind="checkpoint",
        some=(r"^model\.diffusion_model\.", r"^conditioner\.embedders\.|input_blocks\.4\.1\.transformer_blocks\.1\."),
        base="sdxl",
        layout="ldm",
        facts=checkpoint_facts,
        reason=INSTEAD.format("checkpoint"),
    ),
    Row(
        name="SDXL U-Net",
        kind="unet",
        some=(r"^add_embedding\.|^(input_blocks\.4\.1|down_blocks\.1\.attentions\.0)\.transformer_blocks\.1\.",),
        base="sdxl",
        facts=unet_facts,
        reason=INSTEAD.format("U-Net"),
    ),
    Row(
        name="transformer (Flux, SD3, PixArt, video models)",
        kind="unet",
        some=(r"^(model\.diffusion_model\.)?(double_blocks|joint_blocks|transformer_blocks|blocks\.0\.cross_attn)\b",),
        reason=_DIT,
    ),
    *_unets(
        "checkpoint",
        "checkpoint",
        checkpoint_facts,
        first="model.diffusion_model.input_blocks.0.0.weight",
        project="model.diffusion_model.input_blocks.1.1.proj_in.weight",
        label="model.diffusion_model.label_emb.0.0.weight",
        some=r"^(first_stage_model|cond_stage_model)\.",
        layout="ldm",
    ),
    *_unets(
        "unet",
        "U-Net",
        unet_facts,
        first="input_blocks.0.0.weight",
        project="input_blocks.1.1.proj_in.weight",
        label="label_emb.0.0.weight",
        some=r"^output_blocks\.",
        layout="ldm",
    ),
    *_unets(
        "unet",
        "U-Net",
        unet_facts,
        first="conv_in.weight",
        project="down_blocks.0.attentions.0.proj_in.weight",
        label="class_embedding.linear_1.weight",
        some=r"^up_blocks\.",
        layout="diffusers",
    ),
)

VAE = (
    Row(
        name="autoencoder with 16 channels (Flux, SD3)",
        kind="vae",
        shapes={"decoder.conv_in.weight": (ANY, 16, ANY, ANY)},
        reason="Stable Diffusion 1.x and 2.x have 4 channels; take vae-ft-mse-840000-ema-pruned",
        facts=vae_facts,
    ),
    *(
        Row(
            name="Stable Diffusion autoencoder",
            kind="vae",
            has=("encoder.conv_in.weight", "decoder.conv_in.weight", key),
            lacks=(r"^(encoder|decoder)\..*(conv3d|time_conv|temporal)",),
            layout=layout,
            facts=vae_facts,
        )
        for layout, key in (
            ("ldm", "decoder.mid.block_1.conv1.weight"),
            ("old_diffusers", "decoder.mid_block.attentions.0.query.weight"),
            ("diffusers", "decoder.mid_block.attentions.0.to_q.weight"),
        )
    ),
    *(
        Row(
            name=f"TAESD {part}with 16 channels",
            kind="taesd",
            shapes={key: shape},
            has=(other,),
            reason="it is for Flux or SD3, and Stable Diffusion 1.x and 2.x have 4 channels; take taesd_decoder.pth",
        )
        for part, key, shape, other in (
            ("decoder ", "1.weight", (64, 16, 3, 3), "3.conv.0.weight"),
            ("encoder ", "14.weight", (16, 64, 3, 3), "1.conv.0.weight"),
            ("", "decoder.layers.0.weight", (64, 16, 3, 3), "encoder.layers.0.weight"),
        )
    ),
    Row(
        name="TAESD encoder",
        kind="taesd",
        shapes={"0.weight": (64, 3, 3, 3)},
        has=("1.conv.0.weight",),
        layout="encoder",
    ),
    Row(
        name="TAESD decoder",
        kind="taesd",
        shapes={"1.weight": (64, 4, 3, 3)},
        has=("3.conv.0.weight",),
        layout="decoder",
    ),
    Row(name="TAESD", kind="taesd", has=("encoder.layers.0.weight", "decoder.layers.0.weight"), layout="diffusers"),
)

CLIP_LAYOUTS: tuple[tuple[str, Kind, str, tuple[str, ...]], ...] = (
    ("CLIP {model}", "clip", "transformers", (f"text_model.{_WORDS}", f"vision_model.{_CLASS}")),
    ("CLIP {model}", "clip", "open_clip", ("visual.class_embedding", "token_embedding.weight")),
    ("CLIP vision {model}", "clip_vision", "transformers", (f"vision_model.{_CLASS}",)),
    ("CLIP vision {model}", "clip_vision", "transformers", (_CLASS,)),
    ("CLIP vision {model}", "clip_vision", "open_clip", ("visual.class_embedding",)),
    ("CLIP text {model}", "clip_text", "transformers", (f"text_model.{_WORDS}",)),
    ("CLIP text {model}", "clip_text", "transformers", (_WORDS,)),
    ("CLIP text {model}", "clip_text", "open_clip", ("token_embedding.weight", "transformer.resblocks.0.ln_1.weight")),
)

CLIP = (
    Row(
        name="SigLIP",
        kind="clip_vision",
        has=("vision_model.head.probe",),
        reason="IP-Adapters for SD 1.5 were trained on CLIP; take CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
    Row(
        name="CLIP with a ResNet or ConvNeXt",
        kind="clip",
        some=(r"^visual\.(layer1|trunk)\.",),
        reason="IP-Adapters for SD 1.5 were trained on CLIP ViT-H; take CLIP-ViT-H-14-laion2B-s32B-b79K",
    ),
    Row(
        name="T5 text encoder",
        kind="clip_text",
        has=("encoder.block.0.layer.0.SelfAttention.q.weight",),
        reason="Stable Diffusion 1.x and 2.x read CLIP; take a checkpoint with its own text encoder",
    ),
    *(Row(name=name, kind=kind, has=has, layout=layout, facts=clip_facts) for name, kind, layout, has in CLIP_LAYOUTS),
)

DEPTH = (
    Row(
        name="Depth Anything V2 {size}",
        kind="depth",
        has=("pretrained.blocks.0.attn.qkv.weight", "depth_head.scratch.output_conv1.weight"),
        base="depth-anything",
        layout="original",
        facts=depth_facts,
    ),
    Row(
        name="Depth Anything V2 {size}",
        kind="depth",
        has=("backbone.encoder.layer.0.attention.attention.query.weight", "head.conv1.weight"),
        some=(r"^neck\.",),
        base="depth-anything",
        layout="transformers",
        facts=depth_facts,
    ),
    Row(
        name="MiDaS",
        kind="depth",
        some=(
            r"^pretrained\.(layer1\.|model\.(layers|stages|features|blocks\.\d+\.attn\.relative_position_bias_table))"
            r"|^core\.core\.",
        ),
        reason=_MIDAS,
    ),
    *(
        Row(name=f"MiDaS DPT-{size}", kind="depth", has=has, base=base, layout=layout, facts=depth_facts)
        for size, base, layout, has in (
            (
                "Hybrid",
                "dpt-hybrid",
                "midas",
                ("pretrained.model.patch_embed.backbone.stem.conv.weight", "scratch.output_conv.0.weight"),
            ),
            (
                "Large",
                "dpt-large",
                "midas",
                ("pretrained.model.blocks.0.attn.qkv.weight", "scratch.output_conv.0.weight"),
            ),
            (
                "Hybrid",
                "dpt-hybrid",
                "transformers",
                ("dpt.embeddings.backbone.bit.embedder.convolution.weight", "head.head.0.weight"),
            ),
            (
                "Large",
                "dpt-large",
                "transformers",
                ("dpt.encoder.layer.0.attention.attention.query.weight", "head.head.0.weight"),
            ),
        )
    ),
    Row(name="DPT on another backbone", kind="depth", has=("head.head.0.weight",), some=(r"^neck\.",), reason=_MIDAS),
)

SMALL = (
    Row(name="statistics of unCLIP's embeddings", kind="unclip_statistics", has=("mean", "std"), lacks=(r"\.",)),
    Row(
        name="textual inversion",
        kind="embedding",
        some=(r"^(emb_params|clip_[lg])$",),
        lacks=(r"\.",),
        reason="words from files are not read; describe it in the prompt, or use a LoRA",
    ),
)
