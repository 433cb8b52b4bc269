"""What is added to a network: LoRA, IP-Adapters, motion modules, ControlNets and T2I adapters."""

from .facts import control_facts, ip_adapter_facts, lora_facts, motion_facts, t2i_facts
from .row import ANY, CONV, INSTEAD, LINEAR, Row

_DIT = "only Stable Diffusion 1.x and 2.x have the U-Net that this program runs; take a LoRA for SD 1.5"

LORA = (
    Row(
        name="ControlNet-LLLite",
        kind="controlnet",
        some=(r"^lllite_unet_",),
        base="sdxl",
        reason="it was published for SDXL only; take a depth ControlNet for SD 1.5",
    ),
    Row(
        name="Control-LoRA",
        kind="controlnet",
        has=("lora_controlnet",),
        base="sdxl",
        reason="it was published for SDXL only; take a depth ControlNet for SD 1.5",
    ),
    Row(
        name="IP-Adapter FaceID",
        kind="ip_adapter",
        some=(r"^(ip_adapter|adapter_modules)\.\d+\.to_q_lora\.|^image_proj\.perceiver_resampler\.",),
        facts=ip_adapter_facts,
        reason="it needs insightface's face recognition; take ip-adapter-plus-face_sd15 or ip-adapter-full-face_sd15",
    ),
    Row(
        name="LyCORIS LoRA",
        kind="lora",
        some=(r"\.(hada_w1_a|lokr_w1(_a)?|oft_blocks|oft_diag|dora_scale|on_input)$",),
        facts=lora_facts,
        reason="LoHa, LoKr, OFT, IA3 and DoRA are not plain LoRA; merge it into a checkpoint with its own program",
    ),
    Row(
        name="LoRA for SDXL",
        kind="lora",
        some=(r"^lora_te[12]_|^text_encoder_2\.|(^lora_unet_|^unet[._]).*[._]transformer_blocks[._][1-9][._]",),
        base="sdxl",
        facts=lora_facts,
        reason=INSTEAD.format("file"),
    ),
    Row(
        name="LoRA for a transformer (Flux, SD3, video models)",
        kind="lora",
        some=(
            r"^(lora_unet_(double|single|joint)_blocks_|lora_transformer_|transformer\.|diffusion_model\.(layers|blocks|\w+_blocks\.\d+\.(img|txt|linear)))"
            r".*(lora_down|lora_up|lora_A|lora_B|lora\.down|lora\.up)",
        ),
        facts=lora_facts,
        reason=_DIT,
    ),
    Row(
        name="LoRA for motion modules",
        kind="lora",
        some=(r"motion_modules[._].*(lora_down|lora\.down|lora_A)",),
        base="motion",
        layout="animatediff",
        facts=lora_facts,
    ),
    Row(
        name="LoRA",
        kind="lora",
        some=(r"^lora_(unet|te)_.*\.lora_down\.weight$",),
        base="sd15",
        layout="kohya",
        facts=lora_facts,
    ),
    Row(name="LoRA", kind="lora", some=(r"\.lora_A(\.\w+)?\.weight$",), base="sd15", layout="peft", facts=lora_facts),
    Row(
        name="LoRA",
        kind="lora",
        some=(r"(\.lora|_lora|\.lora_linear_layer)\.down\.weight$",),
        base="sd15",
        layout="diffusers",
        facts=lora_facts,
    ),
)

IP_ADAPTER = (
    Row(
        name="IP-Adapter FaceID",
        kind="ip_adapter",
        shapes={"image_proj.proj.0.weight": (ANY, 512)},
        facts=ip_adapter_facts,
        reason="it needs insightface's face recognition; take ip-adapter-plus-face_sd15 or ip-adapter-full-face_sd15",
    ),
    Row(
        name="IP-Adapter for SDXL",
        kind="ip_adapter",
        some=(r"^image_proj\.", r"^(ip_adapter|adapter_modules)\.(3[3-9]|[4-9]\d|1\d\d)\."),
        base="sdxl",
        facts=ip_adapter_facts,
        reason=INSTEAD.format("file"),
    ),
    Row(
        name="IP-Adapter Plus ({tokens} tokens)",
        kind="ip_adapter",
        has=("image_proj.latents",),
        some=(r"to_k_ip\.weight$",),
        base="sd15",
        layout="plus",
        facts=ip_adapter_facts,
    ),
    Row(
        name="IP-Adapter Full Face",
        kind="ip_adapter",
        has=("image_proj.proj.3.weight",),
        some=(r"to_k_ip\.weight$",),
        base="sd15",
        layout="full_face",
        facts=ip_adapter_facts,
    ),
    Row(
        name="IP-Adapter ({tokens} tokens)",
        kind="ip_adapter",
        has=("image_proj.proj.weight",),
        some=(r"to_k_ip\.weight$",),
        base="sd15",
        layout="plain",
        facts=ip_adapter_facts,
    ),
)

MOTION = (
    Row(
        name="Video Depth Anything",
        kind="depth",
        some=(r"^head\.motion_modules\.",),
        reason="its temporal layers are not written here; take Depth Anything V2",
    ),
    Row(
        name="SparseCtrl",
        kind="sparsectrl",
        some=(r"^controlnet_cond_embedding\.", r"motion_modules\."),
        base="sd15",
        reason="it draws from a few given frames, not from depth; take a depth ControlNet",
    ),
    Row(
        name="PIA",
        kind="motion",
        shapes={"conv_in.weight": (ANY, 9, ANY, ANY)},
        some=(r"motion_modules\.",),
        base="sd15",
        facts=motion_facts,
        reason="it animates one picture through 5 more input channels; take a motion module of AnimateDiff",
    ),
    Row(
        name="AnimateLCM-I2V",
        kind="motion",
        some=(r"^img_encoder\.", r"motion_modules\."),
        base="sd15",
        facts=motion_facts,
        reason="it animates one picture with an encoder of its own; take AnimateLCM_sd15_t2v",
    ),
    Row(
        name="HotshotXL motion module",
        kind="motion",
        some=(r"temporal_attentions\..*pos_encoder\.positional_encoding$",),
        base="sdxl",
        facts=motion_facts,
        reason=INSTEAD.format("motion module"),
    ),
    Row(
        name="AnimateDiff motion module for SDXL",
        kind="motion",
        some=(r"down_blocks\.2\.motion_modules\.",),
        lacks=(r"down_blocks\.3\.",),
        base="sdxl",
        facts=motion_facts,
        reason=INSTEAD.format("motion module"),
    ),
    Row(
        name="AnimateDiff motion module {version}",
        kind="motion",
        some=(r"motion_modules\.\d+\.temporal_transformer\.",),
        base="sd15",
        layout="original",
        facts=motion_facts,
    ),
    Row(
        name="AnimateDiff motion module {version}",
        kind="motion",
        some=(r"motion_modules\.\d+\.transformer_blocks\.",),
        base="sd15",
        layout="diffusers",
        facts=motion_facts,
    ),
)

CONTROL = (
    Row(
        name="ControlNet for SDXL",
        kind="controlnet",
        some=(
            r"^(control_model\.)?(input_hint_block|controlnet_cond_embedding)\.",
            r"label_emb|add_embedding|task_embedding|transformer_blocks\.1\.",
        ),
        base="sdxl",
        facts=control_facts,
        reason=INSTEAD.format("ControlNet"),
    ),
    *(
        Row(
            name=f"ControlNet for {title}",
            kind="controlnet",
            has=(hint,),
            shapes={f"{prefix}{first}.proj_in.weight": projection},
            base=base,
            layout=layout,
            facts=control_facts,
        )
        for prefix, hint, first, layout in (
            ("control_model.", "control_model.input_hint_block.0.weight", "input_blocks.1.1", "ldm"),
            ("", "input_hint_block.0.weight", "input_blocks.1.1", "ldm"),
            ("", "controlnet_cond_embedding.conv_in.weight", "down_blocks.0.attentions.0", "diffusers"),
        )
        for title, base, projection in (("SD 1.x", "sd15", CONV), ("SD 2.x", "sd2", LINEAR))
    ),
    *(
        Row(
            name="T2I adapter for SDXL",
            kind="t2i_adapter",
            shapes={f"{prefix}conv_in.weight": (ANY, inputs, ANY, ANY)},
            some=(r"^(adapter\.)?body\.0\.",),
            base="sdxl",
            facts=t2i_facts,
            reason=INSTEAD.format("T2I adapter"),
        )
        for prefix in ("", "adapter.")
        for inputs in (256, 768)
    ),
    *(
        Row(
            name=f"T2I adapter for SD 1.x{title}",
            kind="t2i_adapter",
            has=has,
            base="sd15",
            layout=layout,
            facts=t2i_facts,
        )
        for title, layout, has in (
            ("", "original", ("body.0.block1.weight", "conv_in.weight")),
            ("", "diffusers", ("adapter.body.0.resnets.0.block1.weight", "adapter.conv_in.weight")),
            (", light", "original", ("body.0.body.0.block1.weight", "body.0.in_conv.weight")),
            (", light", "diffusers", ("adapter.body.0.resnets.0.block1.weight", "adapter.body.0.in_conv.weight")),
        )
    ),
    Row(
        name="T2I style adapter",
        kind="t2i_adapter",
        some=(r"^transformer_layes\.0\.",),
        base="sd15",
        reason="it reads a style from CLIP, not depth; take an IP-Adapter",
    ),
)
