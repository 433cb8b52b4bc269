"""What the shapes of a file tell beyond its format: frames, widths, layers, ranks. One function per kind."""

import re
from collections.abc import Callable, Mapping

Shape = tuple[int, ...]
Shapes = Mapping[str, Shape]
Fact = int | str | bool | tuple[str, ...]
Facts = dict[str, Fact]


def unet_facts(shapes: Shapes) -> Facts:
    """Input channels, the width of the context, and what unCLIP gives beside it."""
    label = _axis(shapes, r"(label_emb\.0\.0|class_embedding\.linear_1)\.weight$", 1)
    context = _axis(shapes, r"attn2\.to_k\.weight$", 1)
    return {
        "in_channels": _axis(shapes, r"(input_blocks\.0\.0|(?<!cond_embedding\.)conv_in)\.weight$", 1),
        "context": context,
        "label": label,
        # The label is an embedding beside a sinusoid as wide; only OpenCLIP's H is as wide as the context.
        "variant": "h" if label == 2 * context else "l",
    }


def checkpoint_facts(shapes: Shapes) -> Facts:
    """As of the U-Net, and which other networks are there."""
    parts = {
        "unet": r"^model\.diffusion_model\.",
        "vae": r"^first_stage_model\.",
        "text": r"^cond_stage_model\.",
        "vision": r"^embedder\.model\.visual\.",
        "depth": r"^depth_model\.",
        "averaged copy": r"^model_ema\.diffusion_model",
    }
    there = tuple(part for part, pattern in parts.items() if _first(shapes, pattern))
    return {**unet_facts(shapes), "parts": there}


def vae_facts(shapes: Shapes) -> Facts:
    """Channels of the latents."""
    return {"latents": _axis(shapes, r"^decoder\.(conv_in|layers\.0)\.weight$", 1)}


def motion_facts(shapes: Shapes) -> Facts:
    """Frames it has positions for (0: none are stored), whether the middle has layers, and its generation.

    v1 and v3 differ only in their 24 and 32 positions; finetunes of either cannot be told from it.
    """
    frames = _axis(shapes, r"(pos_encoder\.pe|pos_embed\.pe|positional_encoding)$", 1)
    middle = bool(_first(shapes, r"(^|\.)mid_block\.motion_modules\."))
    if not frames:
        version = "LCM"
    elif middle:
        version = "v2" if frames <= 32 else "long"
    else:
        version = "v1" if frames <= 24 else "v3"
    attentions = 2 if _first(shapes, r"(attention_blocks\.1|attn2)\.to_q\.weight$") else 1
    levels = len({found[1] for key in shapes if (found := re.search(r"down_blocks\.(\d+)\.motion_modules", key))})
    return {"frames": frames, "middle": middle, "version": version, "attentions": attentions, "levels": levels}


def control_facts(shapes: Shapes) -> Facts:
    """Width of the context; whether it holds differences from a base model, or a base model beside itself."""
    return {
        "context": _axis(shapes, r"attn2\.to_k\.weight$", 1),
        "difference": "difference" in shapes,
        "whole": bool(_first(shapes, r"^model\.diffusion_model\.")),
    }


def t2i_facts(shapes: Shapes) -> Facts:
    """Channels of the picture it looks at, which is unshuffled by 8 (for SDXL by 16), and whether it is a light one."""
    inputs = _axis(shapes, r"^(adapter\.)?(conv_in|body\.0\.in_conv)\.weight$", 1)
    return {"inputs": inputs, "channels": inputs // 64, "light": bool(_first(shapes, r"body\.0\.(body|out_conv)\."))}


def ip_adapter_facts(shapes: Shapes) -> Facts:
    """Width of the picture's encoding, what of it is read, tokens (0: one per patch), the width of the context."""
    context = _axis(shapes, r"to_k_ip\.weight$", 1)
    tokens = shapes.get("image_proj.proj.weight", (0,))[0] // max(context, 1)
    return {
        "encoding": _axis(shapes, r"^image_proj\.(proj|proj\.0|proj_in)\.weight$", 1),
        "reads": "embedding" if tokens else "hidden states",
        "tokens": shapes.get("image_proj.latents", (1, tokens))[1],
        "context": context,
        "layers": sum(key.endswith("to_k_ip.weight") for key in shapes),
    }


def clip_facts(shapes: Shapes) -> Facts:
    """Widths and layers of both towers (0 where there is none), the width of the shared embedding, and the model."""
    vision = r"^(vision_model\.encoder\.layers|visual\.transformer\.resblocks|encoder\.layers)\.(\d+)\."
    text = r"^(text_model\.encoder\.layers|transformer\.resblocks|encoder\.layers)\.(\d+)\."
    patch = r"(^|\.)(patch_embedding|visual\.conv1)\.weight$"
    seen, read = bool(_first(shapes, patch)), bool(_first(shapes, r"token_embedding\.weight$"))
    vision_layers, text_layers = _count(shapes, vision) if seen else 0, _count(shapes, text) if read else 0
    by_vision, by_text = {24: "ViT-L", 32: "ViT-H", 48: "ViT-bigG"}, {12: "ViT-L", 24: "ViT-H", 32: "ViT-bigG"}
    return {
        "model": by_vision.get(vision_layers, "CLIP") if seen else by_text.get(text_layers, "CLIP"),
        "vision_width": _axis(shapes, patch, 0),
        "vision_layers": vision_layers,
        "text_width": _axis(shapes, r"token_embedding\.weight$", 1),
        "text_layers": text_layers,
        # transformers stores matrices as [out in]; OpenCLIP's are used as x @ matrix
        "embedding": _axis(shapes, r"^(visual_projection|text_projection)\.weight$", 0)
        or _axis(shapes, r"^(visual\.proj|text_projection)$", 1),
    }


def depth_facts(shapes: Shapes) -> Facts:
    """Width and layers of the transformer, and its usual name."""
    width = _axis(shapes, r"(^|\.)(cls_token)$", 2)
    return {
        "width": width,
        "layers": _count(shapes, r"(^|\.)(blocks|encoder\.layer)\.(\d+)\."),
        "size": {384: "small", 768: "base", 1024: "large", 1536: "giant"}.get(width, "of another size"),
    }


def lora_facts(shapes: Shapes) -> Facts:
    """Rank, the width of the context (0 where cross-attention has none), and what it changes."""
    down = r"(lora_down|lora\.down|lora_linear_layer\.down|_lora\.down|lora_A(\.\w+)?)\.weight$"
    return {
        "rank": _axis(shapes, down, 0),
        "context": _axis(shapes, rf"attn2.*to_k.*{down}", 1),
        "unet": bool(_first(shapes, r"(^lora_unet_|^unet\.|(^|\.)(down|up|mid)_block)")),
        "text": bool(_first(shapes, r"^(lora_te_|text_encoder\.)")),
        "convolutions": any(len(shape) == 4 and shape[-1] > 1 for shape in shapes.values()),
    }


def no_facts(_: Shapes) -> Facts:
    """Where the format says it all."""
    return {}


FactsOf = Callable[[Shapes], Facts]


def _first(shapes: Shapes, pattern: str) -> str:
    return next((key for key in shapes if re.search(pattern, key)), "")


def _axis(shapes: Shapes, pattern: str, axis: int) -> int:
    """The size of one axis of the first key that matches; 0 where there is none."""
    shape = shapes.get(_first(shapes, pattern), ())
    return shape[axis] if len(shape) > axis else 0


def _count(shapes: Shapes, pattern: str) -> int:
    """How many layers a pattern's last group numbers."""
    return len({found[found.re.groups] for key in shapes if (found := re.search(pattern, key))})
