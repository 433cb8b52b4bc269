"""Condition, Guider, Encode, Sampler and Decode: the library's results, and every input's effect."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from gen1_core.editing import MaskOptions
from gen1_core.frames import encode_source, read_latent_mask, size_for
from gen1_core.gen1 import Gen1
from gen1_core.loading import load_gen1
from gen1_core.pipeline import describe, edit, generate
from gen1_core.presets import DEMO_CLIP
from gen1_core.structure.estimator import Structure
from gen1_core.tensors import to_bytes, to_float
from gen1_core.video.clip import MemoryClip
from gen1_core.video.read import open_video

SNOW, DESERT = "snow and blue ice in winter", "golden desert sand at dusk"
VALUES = {
    "content_scale": -1.0,
    "temporal_scale": 1.0,
    "steps": 2,
    "strength": 1.0,
    "seed": 0,
    "sampler": "as the model prefers",
    "window": 0,
    "overlap": 2,
}


@pytest.fixture(scope="module")
def gen1() -> Gen1:
    return load_gen1("tiny")


@pytest.fixture(scope="module")
def source() -> Tensor:
    """Four frames of the rabbit, of an odd size."""
    video = open_video(DEMO_CLIP, start_s=0.8, end_s=0.96)
    return torch.cat(list(video))[:, :, 60:300:2, 180:450:2][..., :119, :133]


def as_image(frames: Tensor) -> Tensor:
    return rearrange(to_float(frames), "f c h w -> f h w c")


@pytest.fixture(scope="module")
def run(pack: Any) -> Callable[..., Any]:
    """Runs a node as ComfyUI does; its outputs."""

    def execute(node: str, **inputs: Any) -> Any:
        with torch.inference_mode():
            return pack.node(f"Gen1_{node}").execute(**inputs).result

    return execute


@pytest.fixture(scope="module")
def loaded(run: Callable[..., Any]) -> Any:
    """MODEL, VAE, encoder and depth of the embedded model."""
    return run("LoadModel", model="tiny (embedded)")


@pytest.fixture(scope="module")
def wires(run: Callable[..., Any], loaded: Any, source: Tensor) -> dict[str, Any]:
    """What Sampler and Condition take, made by the other nodes."""
    shape = {"blur_level": 0, "structure_strength": 1.0, "start": 0.0, "end": 1.0}
    structure = run("DepthStructure", image=as_image(source), depth=loaded[3], model=loaded[0], **shape)[0]
    content = run("ContentFromText", encoder=loaded[2], prompt=SNOW, negative="", seed=0)[0]
    return {"model": loaded[0], "structure": structure, "content": content}


@pytest.fixture(scope="module")
def small(pack: Any, wires: dict[str, Any]) -> dict[str, Any]:
    """The same with a structure of 64 by 64 pixels, ten frames: more than a window, and quickly sampled."""
    depth = torch.rand(1, 1, 10, 64, 64, generator=torch.Generator().manual_seed(2))
    return {**wires, "structure": pack("gen1_core.structure.estimator").Structure(depth=depth)}


@pytest.fixture(scope="module")
def desert(run: Callable[..., Any], loaded: Any) -> Any:
    return run("ContentFromText", encoder=loaded[2], prompt=DESERT, negative="", seed=0)[0]


@pytest.fixture(scope="module")
def sampled(run: Callable[..., Any], small: dict[str, Any]) -> Callable[..., Tensor]:
    """Latents of Sampler, of the small structure where nothing else is said; the same question is asked once."""
    answers: dict[str, Tensor] = {}

    def sample(**inputs: Any) -> Tensor:
        key = repr(sorted((name, value) for name, value in inputs.items()))
        if key not in answers:
            answers[key] = run("Sampler", **{**small, **VALUES, **inputs})[0]["samples"]
        return answers[key]

    return sample


def distance(one: Tensor, other: Tensor) -> float:
    return (one - other).abs().mean().item()


def unrest(latents: Tensor) -> float:
    return distance(latents[1:], latents[:-1])


def noise_of(model: Any, *, frames: int, like: Tensor) -> Tensor:
    """As the library draws it, where the core starts from."""
    drawn = [torch.randn(1, *like.shape[1:], generator=torch.Generator().manual_seed(k)) for k in range(frames)]
    return torch.cat(drawn)


# The parts make what the library makes.


@pytest.mark.slow
def test_parts_give_what_edit_gives(run, wires, loaded, gen1, source, record_property):
    """Depth Structure, Content from Text, Sampler and Decode at an odd size: gen1_core.edit, up to one level of a byte.

    LATENT has another scale than the network, and the way there and back rounds.
    """
    latent = run("Sampler", **wires, **{**VALUES, "seed": 5, "temporal_scale": 1.3})[0]
    frames = run("Decode", latent=latent, vae=loaded[1], image=as_image(source))[0]
    options = replace(gen1.defaults, passes=1, steps=2, seed=5, temporal_scale=1.3)
    wanted = torch.cat(list(edit(gen1, MemoryClip(source), describe(gen1, prompt=SNOW), options)))
    assert frames.shape == (4, 119, 133, 3)
    apart = (to_bytes(rearrange(frames, "f h w c -> f c h w")).int() - wanted.int()).abs()
    record_property("bytes_that_differ", (apart > 0).float().mean().item())
    assert apart.max() <= 1 and (apart > 0).float().mean() < 1e-3


def test_encode_is_that_of_the_library(run, loaded, gen1, source):
    """And in the scale of the core's own VAE Encode."""
    latent = run("Encode", image=as_image(source), vae=loaded[1], model=loaded[0])[0]["samples"]
    clean = rearrange(encode_source(gen1, MemoryClip(source)), "1 c f h w -> f c h w")
    config = gen1.autoencoder.config
    raw = clean / config.latent_scale + torch.tensor(config.latent_mean)[:, None, None]
    torch.testing.assert_close(latent, raw)
    square = as_image(source)[:, :96, :96]
    large = torch.nn.functional.interpolate(rearrange(square, "f h w c -> f c h w"), (128, 128), mode="nearest")
    with torch.inference_mode():
        theirs = loaded[1].encode(rearrange(large, "f c h w -> f h w c"))
    ours = run("Encode", image=rearrange(large, "f c h w -> f h w c"), vae=loaded[1], model=loaded[0])[0]["samples"]
    assert (ours - theirs).norm() / theirs.norm() < 0.02  # one rounds to bytes


def test_encode_keeps_to_the_models_size(run, loaded):
    for height, width, cells in [(40, 40, (16, 16)), (300, 200, (24, 16)), (64, 200, (16, 52))]:
        latent = run("Encode", image=torch.rand(2, height, width, 3), vae=loaded[1], model=loaded[0])[0]["samples"]
        assert latent.shape == (2, 8, *cells)


def test_decode_gives_the_size_of_the_source(run, loaded, source):
    """There and back the clip is itself again, up to the autoencoder."""
    latent = run("Encode", image=as_image(source), vae=loaded[1], model=loaded[0])[0]
    frames = run("Decode", latent=latent, vae=loaded[1], image=as_image(source))[0]
    assert frames.shape == (4, 119, 133, 3)
    assert distance(frames, as_image(source)) < 0.08
    larger = run("Decode", latent=latent, vae=loaded[1], image=torch.zeros(1, 238, 266, 3))[0]
    assert larger.shape == (4, 238, 266, 3)


def test_decode_is_the_same_in_any_chunks(pack, run, loaded, source):
    sample, codec = pack("nodes.sample"), pack("nodes.host").codec_of(loaded[1])
    latents = torch.randn(1, 8, 5, 16, 20)
    parts = [
        torch.cat(list(sample.decoded_frames(codec, latents, width=40, height=32, chunk=chunk))) for chunk in (1, 2, 8)
    ]
    assert (parts[0].int() - parts[2].int()).abs().max() <= 1 and (parts[1].int() - parts[2].int()).abs().max() <= 1


def shifted(codec: Any) -> None:
    """Every latent grows by 0.5."""
    codec.encoder.patches.bias += 0.5


@pytest.fixture(scope="module")
def another_vae(pack: Any, gen1: Gen1) -> Any:
    """VAE of an autoencoder with other weights: pictures come out of it darker."""
    codec = pack("gen1_core.loading").load_gen1("tiny").autoencoder
    with torch.no_grad():
        codec.decoder.conv_out.bias -= 0.5
        shifted(codec)
    return pack("nodes.host").vae_wire(codec)


def test_vae_is_what_reads_and_draws_the_pictures(run, loaded, another_vae, source):
    """Latents are of the VAE that is wired to Encode, pictures of that wired to Decode."""
    image = as_image(source)
    ours, other = (
        run("Encode", image=image, vae=vae, model=loaded[0])[0]["samples"] for vae in (loaded[1], another_vae)
    )
    torch.testing.assert_close(other, ours + 0.5)
    frames, darker = (
        run("Decode", latent={"samples": ours}, vae=vae, image=image)[0] for vae in (loaded[1], another_vae)
    )
    assert darker.mean() < frames.mean() - 0.1


def test_model_sets_the_working_size_of_encode(run, loaded, pack, source):
    gen1 = pack("gen1_core.loading").load_gen1("tiny")
    with torch.inference_mode():
        small = pack("nodes.native").model_of(replace(gen1, diffusion=replace(gen1.diffusion, working_size=64)))
    sizes = [
        run("Encode", image=as_image(source), vae=loaded[1], model=model)[0]["samples"].shape
        for model in (small, loaded[0])
    ]
    assert sizes == [(4, 8, 8, 12), (4, 8, 16, 20)]


def test_latent_is_what_is_decoded(run, loaded, source):
    """Frame by frame, in their order."""
    latent = run("Encode", image=as_image(source), vae=loaded[1], model=loaded[0])[0]["samples"]
    frames = run("Decode", latent={"samples": latent}, vae=loaded[1], image=as_image(source))[0]
    back = run("Decode", latent={"samples": latent.flip(0)}, vae=loaded[1], image=as_image(source))[0]
    torch.testing.assert_close(back, frames.flip(0), atol=1.01 / 255, rtol=0)


def told(conditioning: Any) -> Any:
    """What the network is told of structure, ``[1 c f h w]``."""
    return conditioning[0][1]["gen1"].shown.structure


def test_structure_is_what_both_conditionings_keep(run, wires):
    other = replace(wires["structure"], depth=wires["structure"].depth.flip(-1))
    positive, negative, _ = run("Condition", **wires)
    mirrored, without, _ = run("Condition", **{**wires, "structure": other})
    assert torch.equal(told(positive), told(negative)) and torch.equal(told(mirrored), told(without))
    assert distance(told(mirrored), told(positive)) > 0.1
    assert torch.equal(mirrored[0][0], positive[0][0]), "the content is the same"
    fewer = replace(wires["structure"], depth=wires["structure"].depth[:, :, :2])
    assert run("Condition", **{**wires, "structure": fewer})[2]["samples"].shape == (2, 8, 16, 20)


def test_content_is_in_the_positive_alone(run, wires, desert):
    positive, negative, _ = run("Condition", **wires)
    other, without, _ = run("Condition", **{**wires, "content": desert})
    assert torch.equal(other[0][0][None], desert.tokens) and not torch.equal(other[0][0], positive[0][0])
    assert torch.equal(negative[0][0], without[0][0]) and not negative[0][0].any()


def test_model_reads_structure_its_own_way(run, wires, pack):
    """One whose latents have another scale is shown the depth in that scale."""
    gen1 = pack("gen1_core.loading").load_gen1("tiny")
    with torch.no_grad():
        shifted(gen1.autoencoder)
    model = pack("nodes.native").model_of(gen1)
    ours, other = (told(run("Condition", **{**wires, "model": one})[0]) for one in (wires["model"], model))
    assert ours.shape == other.shape and (other - ours).abs().mean() > 0.1


def test_condition_is_for_the_clips_frames_and_size(run, wires):
    positive, negative, latent = run("Condition", **wires)
    assert latent["samples"].shape == (4, 8, 16, 20) and not latent["samples"].any()
    assert not torch.equal(positive[0][0], negative[0][0])


# Sampler, input by input.


@pytest.mark.slow
def test_sampler_is_generate(sampled, small, gen1):
    """In the numbers of the library, latent by latent."""
    options = replace(gen1.defaults, passes=1, steps=2, window=4, overlap=1, sampler="euler")
    structure = Structure(depth=small["structure"].depth)
    wanted = generate(gen1, structure, describe(gen1, prompt=SNOW), options)
    config = gen1.autoencoder.config
    raw = wanted / config.latent_scale + torch.tensor(config.latent_mean)[:, None, None, None]
    made = sampled(window=4, overlap=1, sampler="euler", content_scale=2.0, structure_scale=2.0)
    torch.testing.assert_close(made, rearrange(raw, "1 c f h w -> f c h w"))


@pytest.mark.slow
def test_content_scale_follows_the_content(sampled, desert):
    apart = [
        distance(sampled(content_scale=scale), sampled(content_scale=scale, content=desert))
        for scale in (0.5, 1.0, 3.0)
    ]
    assert apart == sorted(apart)
    assert torch.equal(sampled(content_scale=2.0), sampled())


@pytest.fixture(scope="module")
def mirrored(small: dict[str, Any]) -> Any:
    """The small structure with left and right exchanged."""
    return replace(small["structure"], depth=small["structure"].depth.flip(-1))


@pytest.mark.slow
def test_structure_scale_follows_the_structure(sampled, mirrored):
    """The further, the more two structures differ."""
    apart = [
        distance(sampled(structure_scale=scale), sampled(structure_scale=scale, structure=mirrored))
        for scale in (0.0, 1.0, 3.0)
    ]
    assert apart == sorted(apart)
    assert torch.equal(sampled(structure_scale=2.0), sampled())


@pytest.mark.slow
def test_temporal_scale_ties_frames_together(sampled):
    """Of a structure that is another in each frame."""
    restless = [unrest(sampled(temporal_scale=scale)) for scale in (0.0, 0.5, 1.0)]
    assert restless == sorted(restless, reverse=True)


@pytest.mark.slow
def test_temporal_scale_above_one_is_smoother(sampled, wires):
    """Of four frames of the rabbit."""
    restless = [unrest(sampled(**wires, steps=8, temporal_scale=scale)) for scale in (0.5, 1.0, 1.5)]
    assert restless == sorted(restless, reverse=True)


@pytest.mark.slow
def test_steps_refine(sampled):
    finest = sampled(steps=16)
    far = [distance(sampled(steps=steps), finest) for steps in (1, 2, 8)]
    assert far == sorted(far, reverse=True)
    assert torch.equal(sampled(steps=0), sampled(steps=4))


@pytest.mark.slow
def test_sampler_is_how_steps_are_taken(sampled):
    assert torch.equal(sampled(sampler="dpmpp_2m", steps=3), sampled(steps=3))
    assert not torch.equal(sampled(sampler="euler", steps=3), sampled(steps=3))


@pytest.mark.slow
def test_seed_is_a_variation(sampled, run, small):
    assert not torch.equal(sampled(seed=1), sampled())
    assert torch.equal(run("Sampler", **small, **VALUES)[0]["samples"], sampled())


@pytest.mark.slow
def test_windows_share_frames(sampled):
    """Shorter windows change the picture, more overlap too; longer ones than learnt are refused."""
    assert not torch.equal(sampled(window=4, overlap=1), sampled())
    assert not torch.equal(sampled(window=4, overlap=1), sampled(window=4, overlap=3))
    assert torch.equal(sampled(overlap=5), sampled()), "where no window is set, the model's own overlap holds"
    with pytest.raises(ValueError, match="set window to 16 or less, or to 0"):
        sampled(window=17)
    with pytest.raises(ValueError, match="use 0 to 3"):
        sampled(window=4, overlap=4)


@pytest.fixture
def seen(small: dict[str, Any]) -> Iterator[list[int]]:
    """How many frames the U-Net is shown in each of its calls."""
    frames: list[int] = []
    network = small["model"].model.diffusion_model
    hook = network.register_forward_pre_hook(lambda _, given: frames.append(given[0].shape[2]))
    yield frames
    hook.remove()


@pytest.mark.slow
def test_fewer_frames_in_a_window_need_less_memory_and_move_less_as_one(run, small, seen):
    """One picture's structure in every frame: what moves is the noise, and windows do not see each other's."""
    depth = torch.rand(1, 1, 1, 64, 64, generator=torch.Generator().manual_seed(2)).expand(-1, -1, 8, -1, -1)
    still = {**small, "structure": replace(small["structure"], depth=depth)}
    restless = {}
    for window in (1, 2, 4, 8):
        seen.clear()
        overlap = {"overlap": 0 if window < 4 else 2}
        made = run("Sampler", **{**still, **VALUES, "window": window, "steps": 4, **overlap})[0]["samples"]
        assert set(seen) == {window}
        restless[window] = unrest(made)
    assert restless[1] > restless[2] > restless[4] > restless[8], restless


@pytest.mark.slow
def test_more_overlap_hides_seams_and_takes_longer(run, small, seen):
    """The jump where one window of four frames ends and the next begins, against what moves elsewhere."""
    depth = torch.rand(1, 1, 1, 64, 64, generator=torch.Generator().manual_seed(2)).expand(-1, -1, 8, -1, -1)
    still = {**small, "structure": replace(small["structure"], depth=depth)}
    calls, seams = [], []
    for overlap in (0, 1, 2, 3):
        seen.clear()
        values = {**VALUES, "window": 4, "steps": 4, "overlap": overlap}
        made = run("Sampler", **{**still, **values})[0]["samples"]
        calls.append(len(seen))
        seams.append(distance(made[4], made[3]))
    assert calls == sorted(calls) and calls[0] < calls[2] < calls[3]
    assert seams[0] > seams[2] > seams[3], seams


@pytest.mark.slow
def test_structure_and_content_count(sampled, small, desert):
    other = replace(small["structure"], depth=small["structure"].depth.flip(-1))
    assert distance(sampled(structure=other), sampled()) > 0.01
    assert distance(sampled(content=desert), sampled()) > 0.1


@pytest.mark.slow
def test_model_with_patched_weights_counts(sampled, loaded):
    patched = loaded[0].clone()
    name = next(key for key in patched.model_state_dict() if key.endswith("out.2.weight") or "conv_out.weight" in key)
    assert patched.add_patches({name: ("diff", (0.2 * torch.ones_like(patched.model_state_dict()[name]),))})
    before = sampled()
    assert distance(sampled(model=patched), before) > 0.01
    assert torch.equal(sampled(model=loaded[0]), before)


@pytest.fixture(scope="module")
def own_latents() -> dict[str, Tensor]:
    return {"samples": 3 * torch.randn(10, 8, 8, 8, generator=torch.Generator().manual_seed(8))}


@pytest.mark.slow
def test_strength_is_the_way_from_the_source(sampled, own_latents):
    far = [
        distance(sampled(strength=strength, source=own_latents), own_latents["samples"])
        for strength in (0.01, 0.3, 1.0)
    ]
    assert far == sorted(far)
    assert torch.equal(sampled(source=own_latents), sampled()), "at strength 1 nothing of the source is left"


@pytest.mark.slow
def test_noise_mask_says_what_is_edited(sampled, own_latents):
    """As Set Latent Noise Mask lays it in: black stays the source's latents exactly."""
    mask = torch.zeros(1, 64, 64)
    mask[..., 32:] = 1
    made = sampled(source={**own_latents, "noise_mask": mask})
    torch.testing.assert_close(made[..., :4], own_latents["samples"][..., :4])
    assert distance(made[..., 4:], own_latents["samples"][..., 4:]) > 0.1


def test_what_does_not_fit_is_refused(sampled, run, loaded, own_latents):
    with pytest.raises(ValueError, match="wire Gen-1 Encode to source, or set strength to 1"):
        sampled(strength=0.5)
    with pytest.raises(ValueError, match="make both from the same frames"):
        sampled(source={"samples": torch.zeros(9, 8, 8, 8)})
    with pytest.raises(ValueError, match="one for every frame"):
        sampled(source={**own_latents, "noise_mask": torch.ones(3, 8, 8)})
    with pytest.raises(ValueError, match="connect to image the frames that the latents were made for"):
        run("Decode", latent=own_latents, vae=loaded[1], image=torch.zeros(1, 64, 200, 3))


def test_unknown_sampler_is_refused_by_the_form(pack):
    said = pack.node("Gen1_Sampler").validate_inputs(sampler="magic")
    assert "choose from" in said and "dpmpp_2m" in said


@pytest.mark.parametrize("node", ["Gen1_Sampler", "Gen1_Condition"])
def test_windows_that_do_not_move_are_refused_by_the_form(pack, node):
    check = pack.node(node).validate_inputs
    assert check(window=4, overlap=3) is True and check(window=0, overlap=9) is True
    assert check(window=4, overlap=None) is True, "wired: not known yet"
    assert "use 0 to 3" in check(window=4, overlap=4)
    assert "give 0 to 256" in check(window=300) and "give 0 to 255" in check(overlap=-1)


def test_a_schedule_settles_on_the_clips_frames(run, wires, small, desert):
    content = run("ScheduleContent", a=wires["content"], b=desert, first_frame=0, last_frame=3, frames=0)[0]
    positive, negative, _ = run("Condition", **{**wires, "content": content})
    tokens = positive[0][0]
    assert tokens.shape[0] == 4 == len(negative[0][0])
    assert torch.equal(tokens[:1], wires["content"].tokens[0]) and torch.equal(tokens[3:], desert.tokens[0])
    longer = run("Condition", **{**small, "content": content})[0][0][0]
    assert len(longer) == 10 and torch.equal(longer[9], tokens[3])
    made = run("Sampler", **{**wires, **VALUES, "content": content, "steps": 1})[0]["samples"]
    assert made.shape[0] == 4
    late = run("ScheduleContent", a=wires["content"], b=desert, first_frame=0, last_frame=4, frames=0)[0]
    with pytest.raises(ValueError, match="ends with frame 3"):
        run("Condition", **{**wires, "content": late})


def test_mask_of_encode_is_that_of_the_library(run, loaded, gen1, pack):
    """Of 40 by 86 pixels 128 by 275 are worked at, and 288 with the padding, which a mask is not stretched over."""
    frames = torch.randint(0, 255, (2, 3, 40, 86), dtype=torch.uint8)
    mask = torch.zeros(1, 40, 86)
    mask[..., 60:] = 1
    latent = run("Encode", image=as_image(frames), vae=loaded[1], model=loaded[0], mask=mask)[0]
    clip, white = MemoryClip(frames), MemoryClip(to_bytes(mask[None].expand(1, 3, -1, -1)))
    wanted = read_latent_mask(white, clip, size_for(gen1, clip), MaskOptions(feather_px=0.0), chunk=8)
    assert latent["noise_mask"].shape == (2, 1, *latent["samples"].shape[2:])
    assert torch.equal(latent["noise_mask"][:, 0], wanted[0, 0])
    assert wanted[..., 30].all() and not wanted[..., -1].any() and not wanted[..., :20].any()
    sample = pack("nodes.sample")
    taken = sample.mask_of(latent, like=torch.zeros(1, 4, 2, *latent["samples"].shape[2:]))
    assert torch.equal(taken, wanted)
    with pytest.raises(ValueError, match="one mask picture"):
        run("Encode", image=as_image(frames), vae=loaded[1], model=loaded[0], mask=torch.ones(3, 40, 86))


class Filter:
    """Stands for what other nodes put on a MODEL."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return given[0]


def other_nodes() -> dict[str, Callable[[Any], Any]]:
    from comfy_api.torch_helpers import set_torch_compile_wrapper

    put = Filter()
    return {
        "sampler_cfg_function": lambda model: model.set_model_sampler_cfg_function(put),
        "sampler_post_cfg_function": lambda model: model.set_model_sampler_post_cfg_function(put),
        "model_function_wrapper": lambda model: model.set_model_unet_function_wrapper(put),
        "denoise_mask_function": lambda model: model.set_model_denoise_mask_function(put),
        "output_block_patch": lambda model: model.set_model_output_block_patch(put),
        "attn1": lambda model: model.set_model_attn1_replace(put, "output", 1),
        "context_handler": lambda model: model.model_options.update(context_handler=put),
        "model_sampling": lambda model: model.add_object_patch("model_sampling", put),
        "other": lambda model: model.add_wrapper_with_key("sampler_sample", "other", put),
        "diffusion_model": lambda model: model.add_wrapper("diffusion_model", put),
        "torch.compile": lambda model: set_torch_compile_wrapper(model, backend="eager"),
    }


def test_what_other_nodes_want_of_the_cores_sampling_is_refused(pack, run, small, loaded):
    """By those that sample by themselves; what is in the weights counts, and previews are our own."""
    refuse = pack("nodes.host_model").refuse_options
    refuse(small["model"])
    for name, put in other_nodes().items():
        model = small["model"].clone()
        put(model)
        advice = rf"{name}.* pass over; use KSampler, or Gen-1 Guider with SamplerCustomAdvanced, or remove that node"
        with pytest.raises(ValueError, match=advice):
            run("Sampler", **{**small, **VALUES, "model": model})
        with pytest.raises(ValueError, match=advice):
            refuse(model)


@pytest.mark.slow
def test_below_0_every_sampler_takes_the_models_own_scale(sampled, guided):
    for slider in ("content_scale", "structure_scale"):
        assert torch.equal(sampled(**{slider: -1.0}), sampled(**{slider: 2.0}))
        assert not torch.equal(sampled(**{slider: -1.0}), sampled(**{slider: 0.0}))
        assert torch.equal(guided(**{slider: -1.0}), guided(**{slider: 2.0}))


@pytest.mark.slow
def test_both_scales_0_of_sampler_see_each_frame_alone(sampled, small):
    depth = small["structure"].depth.clone()
    depth[:, :, 3] = 1 - depth[:, :, 3]
    alone = {"content_scale": 0.0, "temporal_scale": 0.0, "structure_scale": 1.0}
    one, two = sampled(**alone), sampled(**alone, structure=replace(small["structure"], depth=depth))
    assert torch.equal(one[:3], two[:3]) and torch.equal(one[4:], two[4:]) and distance(one[3], two[3]) > 0.01


# Guider, input by input; its equalities are in test_native.py.


@pytest.fixture(scope="module")
def guided(run: Callable[..., Any], small: dict[str, Any]) -> Callable[..., Tensor]:
    """Latents of SamplerCustomAdvanced's own calls with the Guider; ``away`` is a content in the negative's place."""
    from comfy import samplers

    def sample(
        *,
        content_scale: float = 1.5,
        temporal_scale: float = 1.0,
        structure_scale: float = 1.0,
        steps: int = 3,
        model: Any = small["model"],
        away: Any = None,
        **inputs: Any,
    ) -> Tensor:
        positive, negative, latent = run("Condition", **{**small, **inputs})
        if away is not None:
            negative = run("Condition", **{**small, **inputs, "content": away})[0]
        scales = {"content_scale": content_scale, "temporal_scale": temporal_scale, "structure_scale": structure_scale}
        guider = run("Guider", model=model, positive=positive, negative=negative, **scales)[0]
        noise = noise_of(model, frames=len(latent["samples"]), like=latent["samples"])
        sigmas = samplers.calculate_sigmas(model.get_model_object("model_sampling"), "simple", steps)
        with torch.inference_mode():
            return guider.sample(
                noise, latent["samples"], samplers.sampler_object("euler"), sigmas, disable_pbar=True, seed=1
            )

    return sample


@pytest.mark.slow
def test_guider_follows_the_content(guided, desert):
    apart = [
        distance(guided(content_scale=scale), guided(content_scale=scale, content=desert)) for scale in (0.0, 1.0, 3.0)
    ]
    assert apart[0] < 1e-4 < apart[1] < apart[2]


@pytest.mark.slow
def test_guider_follows_the_structure(guided, mirrored):
    apart = [
        distance(guided(structure_scale=scale), guided(structure_scale=scale, structure=mirrored))
        for scale in (0.0, 1.0, 3.0)
    ]
    assert apart == sorted(apart)


@pytest.mark.slow
def test_guider_ties_frames_together(guided):
    restless = [unrest(guided(temporal_scale=scale)) for scale in (0.0, 0.5, 1.0)]
    assert restless == sorted(restless, reverse=True)


@pytest.mark.slow
def test_guider_above_one_is_smoother(guided, wires):
    restless = [
        unrest(guided(structure=wires["structure"], steps=8, temporal_scale=scale)) for scale in (0.5, 1.0, 1.5)
    ]
    assert restless == sorted(restless, reverse=True)


@pytest.mark.slow
def test_guider_goes_to_the_positive_and_away_from_the_negative(guided, desert):
    """Away from desert means further from what desert gives."""
    sand = guided(content=desert, content_scale=1.0)
    assert distance(guided(content=desert), sand) < distance(guided(), sand)
    far = [distance(guided(content_scale=scale, away=desert), sand) for scale in (1.0, 2.0, 4.0)]
    assert far[0] < far[1] < far[2], far
    assert distance(guided(content_scale=2.0, away=desert), sand) > distance(guided(content_scale=2.0), sand)


@pytest.mark.slow
def test_guider_samples_the_model_with_its_patches(guided, small):
    patched = small["model"].clone()
    name = next(key for key in patched.model_state_dict() if key.endswith("out.2.weight") or "conv_out.weight" in key)
    assert patched.add_patches({name: ("diff", (0.2 * torch.ones_like(patched.model_state_dict()[name]),))})
    before = guided()
    assert distance(guided(model=patched), before) > 0.01
    assert torch.equal(guided(), before)


@pytest.mark.slow
def test_condition_divides_the_clip_for_the_cores_samplers(guided, seen, pack, small):
    """As Gen-1 Sampler does: fewer frames at a time, and more calls the more they share."""
    calls = []
    for overlap in (0, 2, 3):
        seen.clear()
        guided(window=4, overlap=overlap)
        assert set(seen) == {4}
        calls.append(len(seen))
    assert calls[0] < calls[1] < calls[2]
    seen.clear()
    guided(window=0, overlap=5)
    assert set(seen) == {10}, "the model's own"
    with pytest.raises(ValueError, match="set window to 16 or less, or to 0"):
        guided(window=17)
    told = pack("nodes.native").conditioning
    gen1 = pack("nodes.host").gen1_of(small["model"])
    with torch.inference_mode():
        made = told(gen1, small["structure"], small["content"], window=4, overlap=1)
    assert [cond[0][1]["gen1"].window for cond in made[:2]] == [4, 4]


# In a server.


@pytest.mark.parametrize("temporal_scale", [1.0, 1.4])
def test_parts_with_the_cores_sampler(server, source, temporal_scale):
    """Structure and content by Condition and Guider through SamplerCustomAdvanced, to frames of the source's size."""
    from PIL import Image

    picture = server.base / "input" / "sample_nodes.png"
    Image.fromarray(rearrange(source[0], "c h w -> h w c").numpy()).save(picture)
    shape = {"blur_level": 0, "structure_strength": 1.0, "start": 0.0, "end": 1.0}
    graph = {
        "image": ("LoadImage", {"image": picture.name}),
        "clip": ("RepeatImageBatch", {"image": ["image", 0], "amount": 3}),
        "load": ("Gen1_LoadModel", {"model": "tiny (embedded)"}),
        "depth": ("Gen1_DepthStructure", {"image": ["clip", 0], "depth": ["load", 3], "model": ["load", 0], **shape}),
        "words": ("Gen1_ContentFromText", {"encoder": ["load", 2], "prompt": SNOW, "negative": "", "seed": 0}),
        "told": (
            "Gen1_Condition",
            {"model": ["load", 0], "structure": ["depth", 0], "content": ["words", 0]},
        ),
        "guide": (
            "Gen1_Guider",
            {
                "model": ["load", 0],
                "positive": ["told", 0],
                "negative": ["told", 1],
                "content_scale": 1.5,
                "temporal_scale": temporal_scale,
            },
        ),
        "noise": ("RandomNoise", {"noise_seed": 3}),
        "how": ("KSamplerSelect", {"sampler_name": "euler"}),
        "sigmas": ("BasicScheduler", {"model": ["load", 0], "scheduler": "simple", "steps": 3, "denoise": 1.0}),
        "sample": (
            "SamplerCustomAdvanced",
            {
                "noise": ["noise", 0],
                "guider": ["guide", 0],
                "sampler": ["how", 0],
                "sigmas": ["sigmas", 0],
                "latent_image": ["told", 2],
            },
        ),
        "decode": ("Gen1_Decode", {"latent": ["sample", 0], "vae": ["load", 1], "image": ["clip", 0]}),
        "save": ("SaveImage", {"images": ["decode", 0], "filename_prefix": "sample_nodes"}),
    }
    result = server.run({name: {"class_type": kind, "inputs": inputs} for name, (kind, inputs) in graph.items()})
    assert result.ok, result.message
    saved = result.outputs["save"]["images"]
    assert len(saved) == 3
    with Image.open(server.file(saved[0])) as first:
        assert first.size == (133, 119)
    assert result.progress("decode")[-1][0] == result.progress("decode")[-1][1]
    assert result.progress("told") or "told" not in result.executed, "the second run has it from the first"
