"""Our U-Net as ComfyUI's MODEL: what stock samplers, guiders, LoRA loaders and ControlNets make of it, in numbers."""

import warnings
from dataclasses import replace
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from parts import randomised, relative_error
from torch import Tensor

pytestmark = [pytest.mark.comfy, pytest.mark.slow]

FRAMES, HEIGHT, WIDTH = 8, 8, 12
SAME = 1e-4
"""As norm ratio: rounding over four to eight steps; measured 3e-7 to 2e-5."""


@pytest.fixture(autouse=True)
def as_in_the_server():
    with torch.inference_mode(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@pytest.fixture(scope="module")
def its(pack) -> SimpleNamespace:
    """The modules of the pack and of ComfyUI; the pack's gen1_core is not the one that tests import."""
    ours = {
        "native": "nodes.native",
        "model": "nodes.host_model",
        "told": "nodes.told",
        "renamed": "nodes.renamed",
        "gen1": "gen1_core.gen1",
        "loading": "gen1_core.loading",
        "pipeline": "gen1_core.pipeline",
        "noise": "gen1_core.diffusion.noise",
        "schedule": "gen1_core.diffusion.schedule",
        "condition": "gen1_core.diffusion.condition",
        "structure": "gen1_core.structure.estimator",
        "encoder": "gen1_core.content.encoder",
        "unet": "gen1_core.models.unet",
        "control": "gen1_core.models.control",
        "motion": "gen1_core.models.motion",
        "storage": "gen1_core.models.storage",
        "ldm": "gen1_core.checkpoints.ldm",
        "keymap": "gen1_core.checkpoints.keymap",
        "lora": "gen1_core.checkpoints.lora",
        "files": "gen1_core.checkpoints.files",
        "control_files": "gen1_core.checkpoints.control",
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        core = {
            part: import_module(f"comfy.{part}")
            for part in ("sd", "samplers", "utils", "ops", "controlnet", "conds", "context_windows", "sample")
        }
        own = {short: pack(module) for short, module in ours.items()}
    return SimpleNamespace(**own, comfy=SimpleNamespace(**core))


@pytest.fixture(scope="module")
def tiny(its) -> SimpleNamespace:
    with torch.inference_mode():
        reference = its.loading.load_gen1("tiny")
        model = its.native.model_of(its.loading.load_gen1("tiny"))
        structure = its.structure.Structure(depth=depth(FRAMES), blur_level=1)
        content = its.pipeline.describe(reference, prompt="a red ball on grass", negative="snow")
        positive, negative, latent = its.native.conditioning(reference, structure, content)
    return SimpleNamespace(
        its=its,
        reference=reference,
        model=model,
        structure=structure,
        content=content,
        conds=(positive, negative),
        latent=latent,
        options=replace(reference.defaults, seed=3, sampler="euler", steps=4, structure_scale=1.0),
    )


def depth(frames: int) -> Tensor:
    return torch.rand(1, 1, frames, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(5))


def noise(case: Any, frames: int, seed: int = 3) -> Tensor:
    size = {"channels": case.reference.unet.config.out_channels, "height": HEIGHT, "width": WIDTH}
    return by_frame(case.its.noise.FrameNoise(seed=seed, **size, first=0, count=frames).initial())


def by_frame(latents: Tensor) -> Tensor:
    return latents[0].transpose(0, 1).contiguous()


def stock(case: Any, conds: Any = None, *, options: Any = None, start: Any = None, model: Any = None) -> Tensor:
    """KSampler's own function, in the network's scale."""
    model, options = model or case.model, options or case.options
    positive, negative = conds or case.conds
    start = noise(case, positive[0][1]["gen1"].size[0]) if start is None else start
    sampler = case.its.comfy.samplers.sampler_object(options.sampler)
    out = case.its.comfy.samplers.sample(
        model,
        start,
        positive,
        negative,
        options.content_scale,
        model.load_device,
        sampler,
        sigmas_of(case, options),
        model.model_options,
        latent_image=torch.zeros_like(start),
        disable_pbar=True,
        seed=1,
    )
    return model.model.latent_format.process_in(out)


def guided(case: Any, conds: Any = None, *, options: Any, start: Any = None, model: Any = None) -> Tensor:
    """SamplerCustomAdvanced with our guider, in the network's scale."""
    model = model or case.model
    positive, negative = conds or case.conds
    start = noise(case, positive[0][1]["gen1"].size[0]) if start is None else start
    scales = {name: getattr(options, name) for name in ("content_scale", "temporal_scale", "structure_scale")}
    guider = case.its.native.guider(model, positive, negative, **scales)
    sampler = case.its.comfy.samplers.sampler_object(options.sampler)
    out = guider.sample(start, torch.zeros_like(start), sampler, sigmas_of(case, options), disable_pbar=True, seed=1)
    return model.model.latent_format.process_in(out)


def sigmas_of(case: Any, options: Any) -> Tensor:
    schedule = case.reference.diffusion.schedule
    return case.its.schedule.spaced_sigmas(schedule, options.steps, options.spacing).float()


def ours(case: Any, structure: Any = None, content: Any = None, *, options: Any) -> Tensor:
    """What gen1_core makes of it."""
    return by_frame(
        case.its.pipeline.generate(case.reference, structure or case.structure, content or case.content, options)
    )


def apart(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().max().item()


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m"])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_a_stock_sampler_does_what_generate_does(tiny, sampler, spacing) -> None:
    options = replace(tiny.options, sampler=sampler, spacing=spacing)
    assert relative_error(stock(tiny, options=options), ours(tiny, options=options)) < SAME


@pytest.mark.parametrize("scales", [(1.5, 1.5), (2.0, 1.4), (0.0, 0.0), (0.0, 2.0), (1.0, 0.3)])
def test_the_guider_is_eq_8(tiny, scales) -> None:
    options = replace(tiny.options, content_scale=scales[0], temporal_scale=scales[1])
    assert relative_error(guided(tiny, options=options), ours(tiny, options=options)) < SAME


@pytest.mark.parametrize("scales", [(2.0, 1.0, 2.0), (1.5, 1.0, 3.0), (2.0, 1.4, 2.5), (1.0, 1.0, 0.0)])
@pytest.mark.parametrize("range_", [(0.0, 1.0), (0.0, 0.5)])
def test_the_guider_guides_by_structure_as_the_library(tiny, scales, range_) -> None:
    content_scale, temporal_scale, structure_scale = scales
    options = replace(
        tiny.options, content_scale=content_scale, temporal_scale=temporal_scale, structure_scale=structure_scale
    )
    structure = replace(tiny.structure, start=range_[0], end=range_[1])
    conds = tiny.its.native.conditioning(tiny.reference, structure, tiny.content)[:2]
    found = guided(tiny, conds, options=options)
    assert relative_error(found, ours(tiny, structure, options=options)) < SAME
    assert relative_error(found, guided(tiny, conds, options=replace(options, structure_scale=1.0))) > 0.01


def test_equal_scales_are_ksampler_with_a_negative_without_structure(tiny) -> None:
    positive, negative = tiny.conds
    free = [[tokens, {**said, "gen1": said["gen1"].free()}] for tokens, said in negative]
    options = replace(tiny.options, content_scale=2.0, structure_scale=2.0)
    assert relative_error(guided(tiny, options=options), stock(tiny, (positive, free), options=options)) < SAME
    assert relative_error(guided(tiny, options=options), stock(tiny, options=options)) > 0.01


def test_equal_scales_take_two_passes(tiny) -> None:
    """Away from neither structure nor content: as many as guidance by content alone."""
    calls: list[int] = []

    def counted(call: Any, given: Any) -> Any:
        calls.append(len(given["c"]["gen1"]))
        return call(given["input"], given["timestep"], **given["c"])

    model = tiny.model.clone()
    model.set_model_unet_function_wrapper(counted)
    for structure_scale, passes in ((1.0, 2), (2.0, 2), (3.0, 3)):
        calls.clear()
        guided(tiny, options=replace(tiny.options, content_scale=2.0, structure_scale=structure_scale), model=model)
        assert sum(calls) == passes * tiny.options.steps


def test_temporal_scale_1_is_ksampler_exactly(tiny) -> None:
    options = replace(tiny.options, content_scale=2.0, temporal_scale=1.0)
    assert apart(guided(tiny, options=options), stock(tiny, options=options)) == 0.0


def test_both_scales_0_see_each_frame_alone(tiny) -> None:
    start = noise(tiny, FRAMES)
    other = start.clone()
    other[3] = noise(tiny, 1, seed=9)[0]
    alone = replace(tiny.options, content_scale=0.0, temporal_scale=0.0)
    one, two = (guided(tiny, options=alone, start=each) for each in (start, other))
    assert apart(one[:3], two[:3]) == 0.0 and apart(one[4:], two[4:]) == 0.0
    assert apart(one[3], two[3]) > 0.1
    joined = replace(tiny.options, content_scale=0.0, temporal_scale=1.0)
    one, two = (guided(tiny, options=joined, start=each) for each in (start, other))
    assert min(apart(one[i], two[i]) for i in range(FRAMES)) > 0.1


def test_twice_is_the_same(tiny) -> None:
    assert apart(stock(tiny), stock(tiny)) == 0.0


@pytest.mark.parametrize("temporal", [1.0, 1.5])
def test_long_clips_go_through_in_windows_with_their_own_depth(tiny, temporal) -> None:
    structure = replace(tiny.structure, depth=depth(19))
    conds = tiny.its.native.conditioning(tiny.reference, structure, tiny.content)[:2]
    options = replace(tiny.options, temporal_scale=temporal)
    long = guided(tiny, conds, options=options)
    assert relative_error(long, ours(tiny, structure, options=options)) < SAME
    cut = replace(structure, depth=structure.depth.roll(8, dims=2))
    wrong = tiny.its.native.conditioning(tiny.reference, cut, tiny.content)[:2]
    assert relative_error(guided(tiny, wrong, options=options), long) > 0.01


def test_structure_counts_only_between_start_and_end(tiny) -> None:
    structure = replace(tiny.structure, start=0.2, end=0.6)
    conds = tiny.its.native.conditioning(tiny.reference, structure, tiny.content)[:2]
    part = stock(tiny, conds)
    assert relative_error(part, ours(tiny, structure, options=tiny.options)) < SAME
    assert relative_error(part, stock(tiny)) > 0.05


def test_content_may_change_over_frames(tiny) -> None:
    its = tiny.its
    tokens = tiny.content.tokens.expand(-1, FRAMES, -1, -1).clone()
    tokens[:, FRAMES // 2 :] *= -1
    content = replace(tiny.content, tokens=tokens, null=tiny.content.null.expand_as(tokens))
    conds = its.native.conditioning(tiny.reference, tiny.structure, content)[:2]
    assert relative_error(stock(tiny, conds), ours(tiny, content=content, options=tiny.options)) < SAME


def test_a_single_frame_has_nothing_to_be_tied_to(tiny) -> None:
    structure = replace(tiny.structure, depth=depth(1))
    conds = tiny.its.native.conditioning(tiny.reference, structure, tiny.content)[:2]
    options = replace(tiny.options, temporal_scale=2.0)
    assert relative_error(guided(tiny, conds, options=options), ours(tiny, structure, options=options)) < SAME


def test_other_nodes_guidance_is_kept_under_ours(tiny) -> None:
    """RescaleCFG and its like replace the guidance by content; ours over time and by structure comes on top."""
    model = tiny.model.clone()
    model.set_model_sampler_cfg_function(
        lambda args: args["uncond"] + args["cond_scale"] * (args["cond"] - args["uncond"])
    )
    options = replace(tiny.options, temporal_scale=1.5)
    for scales in ({}, {"structure_scale": 2.0}, {"structure_scale": 2.0, "temporal_scale": 1.0}):
        told = replace(options, **scales)
        assert relative_error(guided(tiny, options=told, model=model), guided(tiny, options=told)) < SAME
    model.set_model_sampler_cfg_function(lambda args: 0.7 * args["cond"] + 0.3 * args["uncond"])
    assert relative_error(guided(tiny, options=options, model=model), guided(tiny, options=options)) > 1e-3


def test_what_other_nodes_do_before_the_guidance_is_kept_under_ours(tiny) -> None:
    """Perturbed attention and its like hang in there; each once a step, and what they make of the passes counts."""
    options = replace(tiny.options, temporal_scale=1.5)
    plain, seen = guided(tiny, options=options), []
    batch = tiny.its.comfy.samplers.calc_cond_batch

    def before(args: Any) -> Any:
        seen.append("before")
        return args["conds_out"]

    def passes(args: Any) -> Any:
        seen.append("passes")
        return batch(args["model"], args["conds"], args["input"], args["sigma"], args["model_options"])

    model = tiny.model.clone()
    model.set_model_sampler_pre_cfg_function(before)
    model.set_model_sampler_calc_cond_batch_function(passes)
    assert relative_error(guided(tiny, options=options, model=model), plain) < SAME
    assert seen == ["passes", "before"] * options.steps
    model = tiny.model.clone()
    model.set_model_sampler_pre_cfg_function(lambda args: [1.1 * args["conds_out"][0], args["conds_out"][1]])
    assert relative_error(guided(tiny, options=options, model=model), plain) > 0.01


def test_what_is_told_of_a_long_clip_stays_where_it_is(public) -> None:
    """Hints have the size of the pictures: the GPU is given a window of them at a time, and there is one copy of them:
    what is told without the structure has a pixel of each frame."""
    told, elsewhere = public.conds[0][0][1]["gen1"], torch.device("meta")
    for changed in (told, told.to(elsewhere), told.as_images(), told.cut((4, 4, 0, 0)), public.its.told.dropped(told)):
        assert [tuple(hint.image.shape[-2:]) for hint in changed.hidden.hints] == [(1, 1)]
        assert [hint.strength for hint in changed.hidden.hints] == [0.0]
        assert changed.shown.hints[0].image.shape[-1] > 1 and changed.shown.hints[0].strength > 0
    given = {"gen1": told, "cross_attn": public.conds[0][0][0], "noise": noise(public, FRAMES)}
    cond = public.model.model.extra_conds(**given, device=elsewhere)["gen1"].cond
    assert cond.shown.hints[0].image is told.shown.hints[0].image
    some = public.its.told.window_of([told.shown] * 2, range(2, 5), FRAMES, torch.zeros(1, device=elsewhere))
    assert some.hints[0].image.device == elsewhere and some.hints[0].image.shape[:3] == (2, 1, 3)


def test_condition_may_say_how_a_clip_is_divided(tiny) -> None:
    options = replace(tiny.options, window=4, overlap=1)
    conds = tiny.its.native.conditioning(tiny.reference, tiny.structure, tiny.content, window=4, overlap=1)[:2]
    found = stock(tiny, conds, options=options)
    assert relative_error(found, ours(tiny, options=options)) < SAME
    assert relative_error(found, stock(tiny)) > 0.01


def test_it_stays_right_where_layers_are_left_on_the_cpu(tiny) -> None:
    """Low VRAM: weights are cast layer by layer, LoRA included; layers leave and come back."""
    before = stock(tiny)
    model = tiny.its.native.model_of(tiny.its.loading.load_gen1("tiny"))
    tensors = lora_of(tiny.reference.unet, *STOCK_NAMES["kohya"])
    changed, _ = tiny.its.comfy.sd.load_lora_for_models(model, None, tensors, 0.8, 0)
    changed.patch_model(device_to=changed.load_device, lowvram_model_memory=100_000)
    assert changed.model.model_lowvram and changed.loaded_size() < changed.model_size() / 2
    partial = one_call(tiny, changed)
    changed.partially_load(changed.load_device, extra_memory=10**9)
    assert not changed.model.model_lowvram
    whole = one_call(tiny, changed)
    assert changed.partially_unload(changed.offload_device, 300_000) >= 300_000
    assert apart(partial, whole) < 1e-5 and apart(one_call(tiny, changed), whole) < 1e-5
    changed.detach()
    tiny.model.patch_model()
    assert apart(one_call(tiny, tiny.model), whole) > 1e-3
    assert apart(stock(tiny), before) == 0.0


def one_call(case: Any, model: Any) -> Tensor:
    """Of the network, as it lies in memory."""
    model.pre_run()
    given = {"gen1": case.conds[0][0][1]["gen1"], "cross_attn": case.conds[0][0][0]}
    start = noise(case, FRAMES)
    found = model.model.extra_conds(**given, noise=start, device=start.device)
    ready = {name: cond.process_cond(batch_size=FRAMES).concat([]) for name, cond in found.items()}
    return model.model.apply_model(start, torch.full((FRAMES,), 2.0), **ready)


def test_unloading_changes_nothing(tiny) -> None:
    before = stock(tiny)
    tiny.model.detach()
    assert apart(stock(tiny), before) == 0.0


def test_half_precision_is_near(tiny) -> None:
    its = tiny.its
    model = its.native.model_of(its.loading.load_gen1("tiny", dtype=torch.bfloat16))
    assert model.model_dtype() == torch.bfloat16
    assert relative_error(stock(tiny, model=model), stock(tiny)) < 0.1


# Names


@pytest.mark.parametrize(
    "sizes",
    [
        {},
        {
            "in_channels": 5,
            "cross_attention_dim": 1024,
            "use_linear_projection": True,
            "num_attention_heads": (5, 10, 20, 20),
        },
    ],
    ids=["SD1.5", "SD2-depth"],
)
def test_names_and_shapes_are_those_of_the_core(its, sizes) -> None:
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    config = its.unet.UNetConfig(**{"in_channels": 4, "temporal": False, **sizes})
    with torch.device("meta"):
        ours = its.renamed.renamed(its.unet.SpaceTimeUNet(config), its.comfy.ops.disable_weight_init)
        theirs = UNetModel(
            **its.renamed.core_config(config), device="meta", operations=its.comfy.ops.disable_weight_init
        )
    assert shapes(ours) == shapes(theirs)


def test_what_only_we_have_keeps_its_name(its) -> None:
    config = its.unet.UNetConfig(motion=its.motion.MotionConfig(middle=True), picture_adapters=1)
    with torch.device("meta"):
        plain = its.unet.SpaceTimeUNet(config)
        ours = its.renamed.renamed(plain, its.comfy.ops.disable_weight_init)
    names = shapes(ours)
    assert sorted(names.values()) == sorted(shapes(plain).values())
    assert "down_blocks.0.resnets.0.temporal_conv1.conv.weight" in names
    assert "mid_block.motion_modules.0.transformer_blocks.0.pos_embed.pe" in names
    for name in names:
        assert its.comfy.utils.get_attr(ours, name).shape == names[name]


def shapes(module: torch.nn.Module) -> dict[str, torch.Size]:
    return {name: tensor.shape for name, tensor in module.state_dict().items()}


# LoRA

LAYERS = (
    "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_q",
    "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_out.0",
    "mid_block.attentions.0.transformer_blocks.0.attn2.to_k",
    "up_blocks.0.attentions.0.transformer_blocks.0.attn1.to_v",
)


def lora_of(unet: torch.nn.Module, name: Any, down: str, up: str, *, layers: Any = LAYERS) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(7)
    state, found = unet.state_dict(), {}
    for layer in layers:
        out, width = state[f"{layer}.weight"].shape
        found[name(layer) + down] = torch.randn(4, width, generator=generator)
        found[name(layer) + up] = 2 * torch.randn(out, 4, generator=generator)
    return found


def original(its: Any, case: Any) -> Any:
    table = {row.ours[0]: row.theirs[0] for row in its.ldm.unet_table(case.reference.unet.config)}
    return lambda layer: "lora_unet_" + table[f"{layer}.weight"].removesuffix(".weight").replace(".", "_")


def processor(layer: str) -> str:
    return "unet." + layer.removesuffix(".0").replace(".to_", ".processor.to_")


STOCK_NAMES = {
    "kohya": (lambda layer: "lora_unet_" + layer.replace(".", "_"), ".lora_down.weight", ".lora_up.weight"),
    "kohya, original names": (None, ".lora_down.weight", ".lora_up.weight"),
    "diffusers before peft": (processor, "_lora.down.weight", "_lora.up.weight"),
}
OTHER_NAMES = {
    "peft": (lambda layer: f"unet.{layer}", ".lora_A.weight", ".lora_B.weight"),
    "peft, saved by itself": (lambda layer: f"base_model.model.{layer}", ".lora_A.weight", ".lora_B.weight"),
    "diffusers, linear": (lambda layer: f"unet.{layer}", ".lora.down.weight", ".lora.up.weight"),
}


@pytest.fixture(scope="module")
def merged(tiny) -> Tensor:
    """The same change by gen1_core's own merging, which knows all names."""
    with torch.inference_mode():
        its = tiny.its
        tensors = lora_of(tiny.reference.unet, *STOCK_NAMES["kohya"])
        lora = its.lora.read_lora(tensors, "lora.safetensors")
        gen1 = its.loading.load_gen1("tiny")
        gen1.unet.load_state_dict(its.lora.merge(gen1.unet.state_dict(), lora, weight=0.8, part="unet"))
        return ours(SimpleNamespace(**{**vars(tiny), "reference": gen1}), options=tiny.options)


@pytest.mark.parametrize("names", STOCK_NAMES)
def test_the_core_loader_loads_a_lora(tiny, merged, names) -> None:
    name, down, up = STOCK_NAMES[names]
    tensors = lora_of(tiny.reference.unet, name or original(tiny.its, tiny), down, up)
    before = stock(tiny)
    changed, _ = tiny.its.comfy.sd.load_lora_for_models(tiny.model, None, tensors, 0.8, 0)
    assert len(changed.patches) == len(LAYERS)
    after = stock(tiny, model=changed)
    assert relative_error(after, merged) < SAME and relative_error(after, before) > 0.01
    nothing, _ = tiny.its.comfy.sd.load_lora_for_models(tiny.model, None, tensors, 0.0, 0)
    assert apart(stock(tiny, model=nothing), before) == 0.0
    assert apart(stock(tiny), before) == 0.0


@pytest.mark.parametrize("names", [*STOCK_NAMES, *OTHER_NAMES])
def test_our_own_function_loads_a_lora_of_any_names(tiny, merged, names, tmp_path) -> None:
    from safetensors.torch import save_file

    name, down, up = {**STOCK_NAMES, **OTHER_NAMES}[names]
    path = tmp_path / "lora.safetensors"
    save_file(lora_of(tiny.reference.unet, name or original(tiny.its, tiny), down, up), path)
    changed = tiny.its.native.with_lora(tiny.model, path, strength=0.8)
    assert len(changed.patches) == len(LAYERS)
    assert relative_error(stock(tiny, model=changed), merged) < SAME


def test_a_lora_of_another_network_is_refused(tiny, tmp_path) -> None:
    from safetensors.torch import save_file

    path = tmp_path / "lora.safetensors"
    save_file(
        {
            "lora_unet_elsewhere.lora_down.weight": torch.ones(1, 4),
            "lora_unet_elsewhere.lora_up.weight": torch.ones(4, 1),
        },
        path,
    )
    with pytest.raises(ValueError, match=r"take one for Stable Diffusion"):
        tiny.its.native.with_lora(tiny.model, path, strength=1.0)


# Refusals


def test_what_does_not_fit_is_refused(tiny) -> None:
    start = noise(tiny, FRAMES - 2)
    with pytest.raises(ValueError, match=r"LATENT of the same Gen-1 Condition"):
        stock(tiny, start=start)
    with pytest.raises(ValueError, match=r"8 x 12 latent pixels .* 4 x 12.*one loader, whose short_side sets the size"):
        stock(tiny, start=noise(tiny, FRAMES)[:, :, :4])
    plain = [[tiny.content.tokens[0], {}]]
    with pytest.raises(ValueError, match=r"from Gen-1 Condition"):
        stock(tiny, (plain, plain), start=noise(tiny, FRAMES))
    other = [[torch.zeros(1, 77, 768), tiny.conds[0][0][1]]]
    with pytest.raises(ValueError, match=r"GEN1_ENCODER of the loader"):
        stock(tiny, (other, other))
    many = [[tiny.content.tokens[0].repeat(3, 1, 1), tiny.conds[0][0][1]]]
    with pytest.raises(ValueError, match=r"as many frames as the clip has"):
        stock(tiny, (many, many))


def test_what_the_core_would_pass_over_is_refused(tiny) -> None:
    model = tiny.model.clone()
    model.set_model_output_block_patch(lambda *args: args)
    with pytest.raises(ValueError, match=r"remove that node"):
        stock(tiny, model=model)
    model = tiny.model.clone()
    windows = tiny.its.comfy.context_windows
    model.model_options["context_handler"] = windows.IndexListContextHandler(
        context_schedule=windows.get_matching_context_schedule("standard_static"),
        fuse_method=windows.get_matching_fuse_method("pyramid"),
        context_length=4,
        context_overlap=1,
    )
    with pytest.raises(ValueError, match=r"remove the Context Windows node"):
        stock(tiny, model=model)


# Public weights


class Codec(torch.nn.Module):
    """Stands for an autoencoder where none is asked."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))


@pytest.fixture(scope="module")
def public(its) -> SimpleNamespace:
    """SD1.5's shape at small sizes: motion modules, an IP-Adapter and a ControlNet, random in every parameter."""
    image = its.unet.UNetConfig(
        in_channels=4,
        block_out_channels=(32, 64),
        layers_per_block=2,
        attention=(True, False),
        num_attention_heads=2,
        cross_attention_dim=16,
        temporal=False,
    )
    motion = its.motion.MotionConfig(frames=6, heads=2, norm_num_groups=8, middle=True)
    config = replace(image, motion=motion, picture_adapters=1)
    generator = torch.Generator().manual_seed(2)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    with torch.inference_mode():
        reference = its.gen1.Gen1(
            unet=randomised(its.unet.SpaceTimeUNet(config), 0),
            autoencoder=Codec(),
            depth=None,
            describer=None,
            diffusion=its.gen1.Diffusion(prediction="eps", schedule=its.schedule.Schedule(betas="linear")),
            defaults=its.gen1.EditOptions(steps=4, sampler="euler", spacing="linspace", content_scale=3.0, overlap=2),
            controls=(randomised(its.control.ControlNet(its.control.ControlNetConfig(trunk=image)), 1),),
        )
        structure = its.structure.Structure(depth=depth(FRAMES), blur_level=1, strength=0.6)
        picture = its.condition.PictureTokens(tokens=draw(1, 1, 4, 16), null=draw(1, 1, 4, 16), scales=(0.7,))
        content = its.encoder.Content(tokens=draw(1, 1, 7, 16), null=draw(1, 1, 7, 16), pictures=(picture,))
        model = its.native.model_of(reference)
        conds = its.native.conditioning(reference, structure, content)[:2]
    return SimpleNamespace(
        its=its,
        reference=reference,
        model=model,
        structure=structure,
        content=content,
        conds=conds,
        options=replace(reference.defaults, seed=3),
    )


@pytest.mark.parametrize(("temporal", "by_structure"), [(1.0, 1.0), (1.5, 1.0), (1.0, 2.0), (1.5, 3.0)])
def test_public_weights_sample_as_generate_does(public, temporal, by_structure) -> None:
    """Eight frames on six positions; text, a picture and depth through our own ControlNet."""
    options = replace(public.options, temporal_scale=temporal, structure_scale=by_structure)
    found = guided(public, options=options)
    assert relative_error(found, ours(public, options=options)) < SAME
    silent = replace(public.structure, strength=0.0)
    conds = public.its.native.conditioning(public.reference, silent, public.content)[:2]
    assert relative_error(guided(public, conds, options=options), found) > 0.01


def test_control_between_start_and_end(public) -> None:
    structure = replace(public.structure, start=0.25, end=0.75)
    conds = public.its.native.conditioning(public.reference, structure, public.content)[:2]
    assert relative_error(stock(public, conds), ours(public, structure, options=public.options)) < SAME
    assert relative_error(stock(public, conds), stock(public)) > 0.01


def test_the_schedule_is_animatediffs(public) -> None:
    sampling = public.model.get_model_object("model_sampling")
    table = public.its.schedule.sigma_table(public.reference.diffusion.schedule)
    torch.testing.assert_close(sampling.sigmas, table.float())
    known = public.model.model.model_config.sampling_settings
    assert known["beta_schedule"] == "sqrt_linear" and not known["zsnr"]
    # ModelSampling nodes build the core's own from these settings: the same table.
    core = import_module("comfy.model_sampling").ModelSamplingDiscrete(public.model.model.model_config)
    torch.testing.assert_close(core.sigmas, table.float(), rtol=1e-4, atol=0)


def core_control(its: Any, public: Any, strength: float) -> Any:
    """The ControlNet of the model as the core has it, under its names."""
    from comfy.cldm.cldm import ControlNet

    control = public.reference.controls[0]
    sizes = its.renamed.core_config(control.config.trunk)
    sizes.pop("out_channels")
    sizes.pop("transformer_depth_output")
    network = ControlNet(**sizes, hint_channels=3, dtype=torch.float32, operations=its.comfy.ops.disable_weight_init)
    network.load_state_dict(
        its.keymap.to_theirs(control.state_dict(), its.control_files.controlnet_table(control.config))
    )
    found = its.comfy.controlnet.ControlNet(network.eval(), load_device=torch.device("cpu"))
    hint = public.conds[0][0][1]["gen1"].shown.hints[0].image[0]
    return found.set_cond_hint(hint.transpose(0, 1).expand(-1, 3, -1, -1), strength, (0.0, 1.0))


def test_the_core_controlnet_does_what_ours_does(public) -> None:
    its = public.its
    with_ours = stock(public)
    silent = replace(public.structure, strength=0.0)
    conds = its.native.conditioning(public.reference, silent, public.content)[:2]
    without = stock(public, conds)
    control = core_control(its, public, 0.6)
    theirs = [[[tokens, {**said, "control": control}] for tokens, said in cond] for cond in conds]
    assert relative_error(stock(public, theirs), with_ours) < SAME
    assert relative_error(without, with_ours) > 0.01
    both = [[[tokens, {**said, "control": control}] for tokens, said in cond] for cond in public.conds]
    twice = replace(public.structure, strength=1.0)
    doubled = [
        [[tokens, {**said, "gen1": strengthened(said["gen1"], 1.2)}] for tokens, said in cond]
        for cond in its.native.conditioning(public.reference, twice, public.content)[:2]
    ]
    assert relative_error(stock(public, both), stock(public, doubled)) < SAME


@pytest.mark.parametrize("way", ["both", "applied to both", "area"])
def test_the_core_controlnet_is_structure_too(public, way) -> None:
    """Guidance by structure moves away from what is made without it, as without our own; whichever way it came in.

    The core hands that of a positive on where its old node says so, and with an area.
    """
    options = replace(public.options, structure_scale=2.0)
    control = core_control(public.its, public, 0.6)
    silent = replace(public.structure, strength=0.0)
    conds = public.its.native.conditioning(public.reference, silent, public.content)[:2]
    said_of = {
        "both": ({"control": control}, {"control": control}),
        "applied to both": ({"control": control, "control_apply_to_uncond": True}, {}),
        "area": ({"control": control, "area": (HEIGHT, WIDTH, 0, 0)}, {"control": control}),
    }[way]
    theirs = [[[tokens, {**said, **more}] for tokens, said in cond] for cond, more in zip(conds, said_of, strict=True)]
    assert relative_error(guided(public, theirs, options=options), guided(public, options=options)) < SAME
    assert relative_error(guided(public, options=options), guided(public, options=public.options)) > 0.01


def strengthened(told: Any, strength: float) -> Any:
    hints = tuple(replace(hint, strength=strength) for hint in told.shown.hints)
    shown = replace(told.shown, hints=hints)
    return replace(told, shown=shown, hidden=shown)


# Control networks as the core loads them, by its names.


@pytest.fixture(scope="module")
def published(its) -> SimpleNamespace:
    """The smallest U-Net that the core takes for Stable Diffusion 1.5, and a ControlNet for it under official names."""
    config = its.unet.UNetConfig(
        in_channels=4,
        block_out_channels=(320, 320),
        layers_per_block=1,
        attention=(True, False),
        num_attention_heads=8,
        cross_attention_dim=768,
        temporal=False,
    )
    generator = torch.Generator().manual_seed(6)
    with torch.inference_mode():
        reference = its.gen1.Gen1(
            unet=randomised(its.unet.SpaceTimeUNet(config), 0),
            autoencoder=Codec(),
            depth=None,
            describer=None,
            diffusion=its.gen1.Diffusion(prediction="eps", schedule=its.schedule.Schedule()),
            defaults=its.gen1.EditOptions(steps=1, sampler="euler", content_scale=3.0, window=16),
        )
        tokens = torch.randn(2, 1, 1, 7, 768, generator=generator)
        content = its.encoder.Content(tokens=tokens[0], null=tokens[1])
        structure = its.structure.Structure(depth=depth(2))
        model = its.native.model_of(reference)
        conds = its.native.conditioning(reference, structure, content)[:2]
        control = randomised(its.control.ControlNet(its.control.ControlNetConfig(trunk=config)), 1)
        names = its.control_files.controlnet_table(control.config)
        official = its.keymap.to_theirs(control.state_dict(), names)
    unet = {name: weight.clone() for name, weight in model.model.diffusion_model.state_dict().items()}
    return SimpleNamespace(
        its=its,
        reference=reference,
        model=model,
        conds=conds,
        options=replace(reference.defaults, seed=3),
        official=official,
        shared=[name for name in official if name in unet],
        unet=unet,
    )


def controlled(case: Any, tensors: dict[str, Tensor], tmp_path: Any, *, model: Any = None) -> Tensor:
    """What a file makes of the clip, loaded and applied as by the core's nodes."""
    from safetensors.torch import save_file

    path = tmp_path / "control.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, path)
    return stock(case, with_control(case, case.its.comfy.controlnet.load_controlnet(str(path), model)))


def with_control(case: Any, control: Any) -> Any:
    picture = torch.rand(2, 3, 8 * HEIGHT, 8 * WIDTH, generator=torch.Generator().manual_seed(4))
    control = control.copy().set_cond_hint(picture, 0.8, (0.0, 1.0))
    return [[[tokens, {**said, "control": control}] for tokens, said in cond] for cond in case.conds]


def test_a_controlnet_stored_as_a_difference_is_added_to_the_model(published, tmp_path, record_property) -> None:
    """By DiffControlNetLoader, which passes over what it does not find by its own names."""
    assert len(published.shared) > 50
    whole = controlled(published, published.official, tmp_path)
    file = {f"control_model.{name}": tensor.clone() for name, tensor in published.official.items()}
    for name in published.shared:
        file[f"control_model.{name}"] -= published.unet[name]
    found = controlled(published, {**file, "difference": torch.zeros(1)}, tmp_path, model=published.model)
    record_property("norm_ratio", relative_error(found, whole))
    assert relative_error(found, whole) < SAME
    assert relative_error(whole, stock(published)) > 0.01


def test_a_control_lora_is_filled_from_the_model(published, tmp_path, record_property) -> None:
    layers = ("input_blocks.1.1.transformer_blocks.0.attn1.to_q", "middle_block.0.in_layers.2")
    file = {name: tensor for name, tensor in published.official.items() if name not in published.shared}
    whole = {**file, **{name: published.unet[name] for name in published.shared}}
    generator = torch.Generator().manual_seed(9)
    for layer in layers:
        weight = whole[f"{layer}.weight"]
        file[f"{layer}.up"] = torch.randn(len(weight), 4, generator=generator) * 0.1
        file[f"{layer}.down"] = torch.randn(4, weight[0].numel(), generator=generator) * 0.1
        change = (file[f"{layer}.up"] @ file[f"{layer}.down"]).reshape(weight.shape)
        whole[f"{layer}.weight"] = weight + change
    lora = {**file, "lora_controlnet": torch.zeros(1)}
    found, wanted = controlled(published, lora, tmp_path), controlled(published, whole, tmp_path)
    record_property("norm_ratio", relative_error(found, wanted))
    assert relative_error(found, wanted) < SAME
    assert relative_error(wanted, stock(published)) > 0.01
    with pytest.raises(ValueError, match=r"use a whole ControlNet for Stable Diffusion 1\.5"):
        controlled(published, {**lora, "input_blocks.9.0.in_layers.2.up": torch.ones(320, 4)}, tmp_path)


def test_control_networks_for_another_model_are_refused(tiny, published, tmp_path) -> None:
    """A Gen-1 model of its own reads the structure beside the latents, and has other widths."""
    case = SimpleNamespace(**{**vars(tiny), "conds": conds_of_two(tiny)})
    with pytest.raises(ValueError, match=r"the kind of model it was trained on"):
        controlled(case, published.official, tmp_path)
    lora = {"lora_controlnet": torch.zeros(1), "input_hint_block.0.weight": torch.zeros(16, 3, 3, 3)}
    with pytest.raises(ValueError, match=r"with a model of public weights"):
        controlled(case, lora, tmp_path)


def conds_of_two(case: Any) -> Any:
    structure = replace(case.structure, depth=depth(2))
    return case.its.native.conditioning(case.reference, structure, case.content)[:2]


def test_plain_text_conditioning_is_silent_elsewhere(public) -> None:
    """CLIP Text Encode of the core: no picture, no structure, and nothing refused."""
    text = [[[tokens, {}] for tokens, _ in cond] for cond in public.conds]
    picture = replace(public.content.pictures[0], scales=(0.0,))
    content = replace(public.content, pictures=(picture,))
    silent = replace(public.structure, strength=0.0)
    expected = ours(public, silent, content, options=public.options)
    assert relative_error(stock(public, text, start=noise(public, FRAMES)), expected) < SAME


def test_weights_of_8_bits_are_cast(public) -> None:
    its = public.its
    small = its.unet.SpaceTimeUNet(public.reference.unet.config, ops=its.storage.FP8_OPS)
    state = {
        name: its.storage.convert(tensor, device=torch.device("cpu"), dtype=small.state_dict()[name].dtype, copy=True)
        for name, tensor in public.reference.unet.state_dict().items()
    }
    small.load_state_dict(state)
    gen1 = replace(public.reference, unet=small.eval())
    case = SimpleNamespace(**{**vars(public), "reference": gen1, "model": its.native.model_of(gen1)})
    assert relative_error(stock(case), ours(case, options=public.options)) < SAME


def test_torch_compile_takes_it(public) -> None:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    model = public.model.clone()
    set_torch_compile_wrapper(model=model, backend="eager")
    assert relative_error(stock(public, model=model), stock(public)) < SAME


def test_the_network_is_the_cores(public) -> None:
    """With the same weights, under the same names, and with what ControlNets and T2I adapters add."""
    from comfy.ldm.modules.diffusionmodules.openaimodel import UNetModel

    its = public.its
    config = replace(public.reference.unet.config, motion=None, picture_adapters=0)
    plain = its.renamed.renamed(randomised(its.unet.SpaceTimeUNet(config), 4), its.comfy.ops.disable_weight_init)
    core = UNetModel(
        **its.renamed.core_config(config), dtype=torch.float32, operations=its.comfy.ops.disable_weight_init
    ).eval()
    core.load_state_dict(plain.state_dict())
    generator = torch.Generator().manual_seed(8)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, tokens = draw(FRAMES, 4, HEIGHT, WIDTH), draw(FRAMES, 7, 16)
    blocks = [(32, 8, 12)] * 3 + [(32, 4, 6)] + [(64, 4, 6)] * 2
    down = [0.3 * draw(FRAMES, *size) for size in blocks]
    middle, features = 0.3 * draw(FRAMES, 64, 4, 6), [0.3 * draw(FRAMES, *blocks[i]) for i in (2, 5)]
    # As their T2I adapters give it: the last first.
    inputs = [None, None, features[0], None, None, features[1]][::-1]

    def control() -> dict[str, Any]:
        return {"output": list(down), "middle": [middle], "input": list(inputs)}

    residuals = import_module(its.told.__name__.replace("told", "residuals"))
    given = residuals.in_window(residuals.residuals_of(control(), config, passes=1), slice(0, FRAMES))
    ours = plain(x.transpose(0, 1)[None], torch.tensor([500.0]), tokens[None], image=True, residuals=given)
    theirs = core(x, torch.full((FRAMES,), 500.0), context=tokens, control=control())
    assert relative_error(by_frame(ours), theirs) < 1e-5
    bare = plain(x.transpose(0, 1)[None], torch.tensor([500.0]), tokens[None], image=True)
    assert relative_error(bare, ours) > 0.01
    with pytest.raises(ValueError, match=r"T2I adapter for Stable Diffusion 1\.5"):
        residuals.residuals_of({"input": inputs[1:]}, config, passes=1)
    with pytest.raises(ValueError, match=r"ControlNet or a T2I adapter for Stable Diffusion 1\.5"):
        residuals.residuals_of({"output": [None, *down[1:]]}, config, passes=1)


def test_the_preview_has_the_right_colours(tiny) -> None:
    shown = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(1))
    picture = torch.nn.functional.interpolate(shown, (64, 64), mode="bilinear")
    latents = tiny.reference.autoencoder.encode(2 * picture - 1)
    form = tiny.model.model.latent_format
    factors, constant = (torch.tensor(part) for part in form.colours)
    colours = torch.einsum("nchw,cd->ndhw", latents, factors) + constant[:, None, None]
    seen = torch.nn.functional.interpolate(2 * picture - 1, (8, 8), mode="area")
    assert (colours - seen).abs().mean() < 0.1


def test_context_windows_of_later_versions_are_refused(tiny) -> None:
    """Where they hand on only some frames of what we told."""
    cond = tiny.its.model.ClipCond(tiny.conds[0][0][1]["gen1"])
    with pytest.raises(ValueError, match=r"remove the Context Windows node"):
        cond.process_cond(batch_size=4)


def test_an_area_has_its_own_depth(public) -> None:
    told = public.conds[0][0][1]["gen1"]
    cut = public.its.model.ClipCond(told).process_cond(batch_size=FRAMES, area=[4, 6, 2, 3]).cond
    assert cut.size == (FRAMES, 4, 6)
    assert torch.equal(cut.shown.hints[0].image, told.shown.hints[0].image[..., 16:48, 24:72])
    before = stock(public)
    positive, negative = public.conds
    whole, half = ([[tokens, {**said, "area": (h, WIDTH, 0, 0)}] for tokens, said in positive] for h in (HEIGHT, 4))
    assert relative_error(stock(public, (whole, negative)), before) < SAME
    found = stock(public, (positive + half, negative))
    assert torch.isfinite(found).all() and relative_error(found, before) > 0.01


def test_memory_is_asked_for_a_window_only(public) -> None:
    def asked(frames: int) -> float:
        return public.model.model.memory_required([frames, 4, HEIGHT, WIDTH])

    assert asked(6) < asked(12) == asked(400)
