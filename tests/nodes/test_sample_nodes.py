"""Condition, Guider, Encode, Sampler and Decode: the library's results, and every input's effect."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from einops import rearrange
from torch import Tensor

from gen1_core.frames import encode_source
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
    "content_scale": 0.0,
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
    shape = {"blur_level": 0, "strength": 1.0, "start": 0.0, "end": 1.0}
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
        assert latent.shape == (2, 4, *cells)


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
    latents = torch.randn(1, 4, 5, 16, 20)
    parts = [
        torch.cat(list(sample.decoded_frames(codec, latents, width=40, height=32, chunk=chunk))) for chunk in (1, 2, 8)
    ]
    assert (parts[0].int() - parts[2].int()).abs().max() <= 1 and (parts[1].int() - parts[2].int()).abs().max() <= 1


def test_condition_is_for_the_clips_frames_and_size(run, wires):
    positive, negative, latent = run("Condition", **wires)
    assert latent["samples"].shape == (4, 4, 16, 20) and not latent["samples"].any()
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
    made = sampled(window=4, overlap=1, sampler="euler", content_scale=1.5)
    torch.testing.assert_close(made, rearrange(raw, "1 c f h w -> f c h w"))


@pytest.mark.slow
def test_content_scale_follows_the_content(sampled, desert):
    apart = [
        distance(sampled(content_scale=scale), sampled(content_scale=scale, content=desert))
        for scale in (0.5, 1.0, 3.0)
    ]
    assert apart == sorted(apart)
    assert torch.equal(sampled(content_scale=1.5), sampled())


@pytest.mark.slow
def test_temporal_scale_ties_frames_together(sampled):
    """Of a structure that is another in each frame."""
    restless = [unrest(sampled(temporal_scale=scale)) for scale in (0.0, 0.5, 1.0)]
    assert restless == sorted(restless, reverse=True)


@pytest.mark.slow
def test_steps_refine(sampled):
    finest = sampled(steps=16)
    far = [distance(sampled(steps=steps), finest) for steps in (1, 2, 8)]
    assert far == sorted(far, reverse=True)
    assert torch.equal(sampled(steps=0), sampled(steps=8))


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
    with pytest.raises(ValueError, match="set window to 8 or less, or to 0"):
        sampled(window=9)
    with pytest.raises(ValueError, match="use 0 to 3"):
        sampled(window=4, overlap=4)


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
    return {"samples": 3 * torch.randn(10, 4, 8, 8, generator=torch.Generator().manual_seed(8))}


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
        sampled(source={"samples": torch.zeros(9, 4, 8, 8)})
    with pytest.raises(ValueError, match="one for every frame"):
        sampled(source={**own_latents, "noise_mask": torch.ones(3, 8, 8)})
    with pytest.raises(ValueError, match="connect to image the frames that the latents were made for"):
        run("Decode", latent=own_latents, vae=loaded[1], image=torch.zeros(1, 64, 200, 3))


def test_unknown_sampler_is_refused_by_the_form(pack):
    said = pack.node("Gen1_Sampler").validate_inputs(sampler="magic")
    assert "choose from" in said and "dpmpp_2m" in said


# Guider, input by input; its equalities are in test_native.py.


@pytest.fixture(scope="module")
def guided(run: Callable[..., Any], small: dict[str, Any]) -> Callable[..., Tensor]:
    """Latents of SamplerCustomAdvanced's own calls with the Guider."""
    from comfy import samplers

    def sample(*, content_scale: float = 1.5, temporal_scale: float = 1.0, **inputs: Any) -> Tensor:
        positive, negative, latent = run("Condition", **{**small, **inputs})
        scales = {"content_scale": content_scale, "temporal_scale": temporal_scale}
        guider = run("Guider", model=small["model"], positive=positive, negative=negative, **scales)[0]
        noise = noise_of(small["model"], frames=10, like=latent["samples"])
        sigmas = samplers.calculate_sigmas(small["model"].get_model_object("model_sampling"), "simple", 3)
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
def test_guider_ties_frames_together(guided):
    restless = [unrest(guided(temporal_scale=scale)) for scale in (0.0, 0.5, 1.0)]
    assert restless == sorted(restless, reverse=True)


# In a server.


@pytest.mark.parametrize("temporal_scale", [1.0, 1.4])
def test_parts_with_the_cores_sampler(server, source, temporal_scale):
    """Structure and content by Condition and Guider through SamplerCustomAdvanced, to frames of the source's size."""
    from PIL import Image

    picture = server.base / "input" / "sample_nodes.png"
    Image.fromarray(rearrange(source[0], "c h w -> h w c").numpy()).save(picture)
    shape = {"blur_level": 0, "strength": 1.0, "start": 0.0, "end": 1.0}
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
    assert result.progress("told")
