"""The structure nodes: every input changes the depth, or what is made with it, in the direction its tooltip says."""

import time
from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from einops import rearrange
from PIL import Image
from torch import Tensor

SLIDERS = {"blur_level": 0, "structure_strength": 1.0, "start": 0.0, "end": 1.0}


@pytest.fixture(scope="module")
def gen1(pack: Any) -> Any:
    return pack("gen1_core.loading").load_gen1("tiny")


@pytest.fixture(scope="module")
def bunny(pack: Any) -> Tensor:
    """Six frames of the demo clip as IMAGE."""
    video = pack("gen1_core.video.read").open_video(pack("gen1_core.presets").DEMO_CLIP, start_s=0.8, end_s=1.04)
    return torch.cat([rearrange(frames, "f c h w -> f h w c").float() / 255 for frames in video])


def carrying(gen1: Any) -> Any:
    """What the nodes ask of a MODEL."""
    return SimpleNamespace(get_attachment=lambda name: gen1, model=SimpleNamespace(diffusion_model=gen1.unet))


def brightness(images: Tensor) -> Tensor:
    return images.mean(dim=1, keepdim=True)


@pytest.fixture
def depth_structure(pack: Any, gen1: Any) -> Callable[..., tuple[Any, Tensor]]:
    def run(image: Tensor, *, depth: Any = brightness, model: Any = None, **sliders: Any) -> tuple[Any, Tensor]:
        node = pack("nodes.structure").DepthStructure
        with torch.inference_mode():
            model = carrying(gen1) if model is None else model
            return node.execute(image=image, depth=depth, model=model, **{**SLIDERS, **sliders}).result

    return run


@pytest.fixture
def from_image(pack: Any, gen1: Any) -> Callable[..., tuple[Any, Tensor]]:
    def run(image: Tensor, *, model: Any = None, invert: bool = False, **sliders: Any) -> tuple[Any, Tensor]:
        node = pack("nodes.structure").StructureFromImage
        with torch.inference_mode():
            model = carrying(gen1) if model is None else model
            return node.execute(image=image, model=model, invert=invert, **{**SLIDERS, **sliders}).result

    return run


def noise(frames: int, height: int, width: int, *, seed: int = 0) -> Tensor:
    """Pictures of 8 bits, as they come from files."""
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(0, 256, (frames, height, width, 3), generator=generator) / 255


def detail(image: Tensor) -> float:
    """Mean difference of neighbouring pixels."""
    return (image[:, :, 1:] - image[:, :, :-1]).abs().mean().item()


# Gen-1 Depth Structure.


def test_depth_is_that_of_the_library(pack, gen1, bunny, depth_structure):
    """Bit-equal to what gen1_core.edit estimates of the same frames, and the preview to `gen1 depth`."""
    structure, preview = depth_structure(bunny, depth=pack("nodes.host").depth_wire(gen1.depth))
    frames = pack("gen1_core.frames")
    clip = pack("gen1_core.video.clip").MemoryClip(
        pack("gen1_core.tensors").to_bytes(rearrange(bunny, "f h w c -> f c h w"))
    )
    wanted, _ = frames.read_depth(gen1, clip)
    assert torch.equal(structure.depth, wanted)
    pictures = torch.cat(list(frames.depth_frames(gen1, wanted, clip)))
    assert torch.equal(preview, rearrange(pictures, "f c h w -> f h w c") / 255)


@pytest.mark.parametrize("height, width", [(64, 64), (45, 81), (200, 130)])
def test_the_preview_has_the_frames_and_size_of_the_pictures(depth_structure, height, width):
    structure, preview = depth_structure(noise(5, height, width))
    assert preview.shape == (5, height, width, 3) and preview.dtype == torch.float32
    assert 0 <= preview.min() and preview.max() <= 1
    assert structure.depth.shape[:3] == (1, 1, 5) and min(structure.depth.shape[3:]) == 128


def test_image_frames_keep_their_order(depth_structure):
    image = noise(4, 64, 64) * torch.tensor([0.2, 0.4, 0.7, 1.0])[:, None, None, None]
    structure, _ = depth_structure(image)
    backwards, _ = depth_structure(image.flip(0))
    torch.testing.assert_close(backwards.depth, structure.depth.flip(2))
    means = structure.depth.mean(dim=(0, 1, 3, 4))
    assert (means.diff() > 0.05).all(), "one range holds for the clip: dark frames stay far"


def test_depth_is_what_the_estimator_says(depth_structure):
    image = noise(2, 128, 128)
    near, preview = depth_structure(image)
    far, _ = depth_structure(image, depth=lambda images: -brightness(images))
    torch.testing.assert_close(far.depth, 1 - near.depth)
    nearest = near.depth[0, 0, 0].flatten().argmax()
    assert preview[0, ..., 0].flatten()[nearest] == 1, "near is bright"


def test_model_sets_the_working_size(gen1, depth_structure):
    small = replace(gen1, diffusion=replace(gen1.diffusion, working_size=64))
    image = noise(2, 90, 150)
    assert depth_structure(image)[0].depth.shape[3:] == (128, 224)
    assert depth_structure(image, model=carrying(small))[0].depth.shape[3:] == (64, 128)


def test_depth_structure_refuses_another_loaders_model(depth_structure):
    other = SimpleNamespace(get_attachment=lambda name: None, model=SimpleNamespace())
    with pytest.raises(ValueError, match="connect the MODEL of Gen-1 Load Model"):
        depth_structure(noise(1, 64, 64), model=other)


# Gen-1 Structure from Image.


def test_a_picture_is_depth_and_bright_is_near(from_image):
    image = noise(3, 128, 128)
    structure, preview = from_image(image)
    torch.testing.assert_close(structure.depth[0, 0], image.mean(dim=-1), atol=1e-6, rtol=0)
    torch.testing.assert_close(preview[..., 0], image.mean(dim=-1), atol=0.5 / 255 + 1e-6, rtol=0)
    assert torch.equal(preview[..., 0], preview[..., 2])


def test_fine_depth_is_not_rounded_to_bytes(from_image):
    ramp = torch.linspace(0.5, 0.51, 128).expand(1, 128, 128)[..., None].expand(-1, -1, -1, 3)
    assert len(from_image(ramp)[0].depth.unique()) > 100


def test_invert_swaps_near_and_far(from_image):
    image = noise(2, 128, 192)
    torch.testing.assert_close(from_image(image, invert=True)[0].depth, 1 - from_image(image)[0].depth)
    assert from_image(torch.zeros(1, 128, 128, 3), invert=True)[1].min() == 1


def test_model_sets_the_size_of_given_depth(gen1, from_image):
    small = replace(gen1, diffusion=replace(gen1.diffusion, working_size=64))
    structure, preview = from_image(noise(2, 91, 150), model=carrying(small))
    assert structure.depth.shape == (1, 1, 2, 64, 128) and preview.shape == (2, 91, 150, 3)


def test_a_preview_taken_as_depth_gives_the_same_structure(depth_structure, from_image):
    structure, preview = depth_structure(noise(3, 128, 192))
    torch.testing.assert_close(from_image(preview)[0].depth, structure.depth, atol=0.5 / 255 + 1e-6, rtol=0)


def test_chunks_leave_no_trace(gen1, from_image):
    image = noise(9, 80, 80)
    alone = [from_image(frame[None])[0].depth for frame in image]
    assert torch.equal(from_image(image)[0].depth, torch.cat(alone, dim=2))


def test_pictures_too_small_are_refused(from_image):
    with pytest.raises(ValueError, match="use a larger source"):
        from_image(noise(1, 4, 64))


# The sliders, which both nodes share.


@pytest.fixture(params=["depth_structure", "from_image"])
def either(request: pytest.FixtureRequest, pack: Any) -> Callable[..., tuple[Any, Tensor]]:
    return request.getfixturevalue(request.param)


def test_each_blur_level_loses_detail(either):
    image = noise(2, 128, 128)
    made = [either(image, blur_level=level) for level in range(8)]
    left = [detail(preview) for _, preview in made]
    assert all(after < 0.8 * before for before, after in zip(left, left[1:], strict=False)), left
    assert [structure.blur_level for structure, _ in made] == list(range(8))
    assert left[7] < 0.01 * left[0]


def test_strength_is_how_much_of_the_depth_is_shown(either):
    image = noise(2, 128, 128)
    made = [either(image, structure_strength=strength) for strength in (0.0, 0.25, 0.5, 1.0)]
    spread = [preview.std().item() for _, preview in made]
    assert spread[0] < 1e-6 and made[0][0].strength == 0
    torch.testing.assert_close(torch.tensor(spread[1:]) / spread[3], torch.tensor([0.25, 0.5, 1.0]), atol=0.01, rtol=0)
    torch.testing.assert_close(made[0][1].mean(), made[3][1].mean(), atol=1 / 255, rtol=0)


def test_strength_turns_a_control_network_down_and_not_its_picture(gen1, either):
    controlled = carrying(replace(gen1, controls=(object(),)))
    structure, preview = either(noise(1, 128, 128), model=controlled, structure_strength=0.0)
    assert structure.strength == 0 and preview.std() > 0.1


def seen_at(pack: Any, structure: Any, *, steps: int) -> list[bool]:
    """At which steps the sampler's network is shown this structure: gen1_core's own wrapper around a denoiser."""
    shown: list[bool] = []

    def denoise(x: Tensor, sigma: float, conditions: list[bool]) -> list[Tensor]:
        shown.append(conditions[0])
        return [x]

    sigmas = [float(steps - step) for step in range(steps + 1)]
    wrapped = pack("gen1_core.conditioning").during(denoise, structure, sigmas, without=lambda condition: False)
    for sigma in sigmas[:-1]:
        wrapped(torch.zeros(1, 4, 1, 1, 1), sigma, [True])
    return shown


@pytest.mark.parametrize(
    "start, end, wanted",
    [(0.0, 1.0, "11111111"), (0.25, 1.0, "00111111"), (0.0, 0.5, "11110000"), (0.5, 0.75, "00001100")],
)
def test_the_structure_is_shown_from_start_to_end(pack, either, start, end, wanted):
    structure, _ = either(noise(1, 64, 64), start=start, end=end)
    assert (structure.start, structure.end) == (start, end)
    assert seen_at(pack, structure, steps=8) == [each == "1" for each in wanted]


@pytest.fixture(scope="module")
def edited(pack: Any, gen1: Any, bunny: Tensor) -> Callable[..., Tensor]:
    """Latents of an edit by the embedded model with these sliders."""
    wire, pipeline = pack("nodes.host").depth_wire(gen1.depth), pack("gen1_core.pipeline")
    content = pipeline.describe(gen1, prompt="golden desert sand at dusk")
    node = pack("nodes.structure").DepthStructure

    def latents(**sliders: Any) -> Tensor:
        with torch.inference_mode():
            out = node.execute(image=bunny, depth=wire, model=carrying(gen1), **{**SLIDERS, **sliders})
        return pipeline.generate(gen1, out.result[0], content, gen1.defaults)

    return latents


@pytest.mark.slow
@pytest.mark.parametrize(
    "slider, values",
    [("start", (0.25, 0.5, 0.75)), ("end", (0.75, 0.5, 0.25)), ("structure_strength", (0.75, 0.5, 0.0))],
)
def test_an_edit_leaves_the_structure_the_more_the_less_is_shown(edited, slider, values):
    full = edited()
    away = [((edited(**{slider: value}) - full).norm() / full.norm()).item() for value in values]
    assert 0.01 < away[0] < away[1] < away[2], away


@pytest.mark.slow
def test_an_edit_keeps_less_of_the_shapes_at_the_highest_blur_level(pack, gen1, bunny, edited):
    """Only the ends are compared: between them the embedded model's edits are not in order, level by level."""
    frames, memory = pack("gen1_core.frames"), pack("gen1_core.video.clip").MemoryClip
    clip = memory(pack("gen1_core.tensors").to_bytes(rearrange(bunny, "f h w c -> f c h w")))
    depth, _ = frames.read_depth(gen1, clip)

    def lost(level: int) -> float:
        made = memory(torch.cat(list(frames.decode(gen1, edited(blur_level=level), clip))))
        return pack("gen1_core.metrics").depth_error(frames.read_depth(gen1, made)[0], depth)

    assert lost(7) > 1.05 * lost(0)


# Before anything runs.


@pytest.mark.parametrize("name", ["DepthStructure", "StructureFromImage"])
def test_sliders_that_leave_no_step_are_refused_before_anything_runs(pack, name):
    node = getattr(pack("nodes.structure"), name)
    assert node.validate_inputs() is True
    assert node.validate_inputs(start=0.2, end=0.8) is True
    for sliders in ({"start": 0.5, "end": 0.5}, {"end": 0.0}, {"start": 1.0}, {"start": -0.1}, {"end": 1.1}):
        assert "give fractions of the sampling" in node.validate_inputs(**sliders)


@pytest.mark.parametrize("name", ["DepthStructure", "StructureFromImage"])
def test_cancel_takes_effect_at_the_next_chunk(pack, gen1, name):
    """Nothing after the chunk in which the user cancelled is worked on."""
    import comfy.model_management as management

    read: list[int] = []

    def estimator(images: Tensor) -> Tensor:
        read.append(len(images))
        management.interrupt_current_processing(True)
        return brightness(images)

    node, image = getattr(pack("nodes.structure"), name), noise(40, 64, 64)
    depth = {"depth": estimator} if name == "DepthStructure" else {"invert": False}
    if name == "StructureFromImage":
        management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException), torch.inference_mode():
        node.execute(image=image, model=carrying(gen1), **depth, **SLIDERS)
    assert sum(read) <= gen1.defaults.chunk
    assert not management.processing_interrupted()


# In a real server.


def graph(*, start_s: float = 0.8, end_s: float = 1.04, **sliders: Any) -> dict[str, Any]:
    """The demo clip's depth, and the depth as pictures taken for depth again; both previews shown."""
    given = {**SLIDERS, **sliders}
    return {
        "1": {"class_type": "Gen1_LoadModel", "inputs": {"model": "tiny (embedded)"}},
        "2": {
            "class_type": "Gen1_LoadVideo",
            "inputs": {"file": "bunny.mp4", "start_s": start_s, "end_s": end_s, "stride": 1, "fps": 0.0, "max_size": 0},
        },
        "3": {
            "class_type": "Gen1_DepthStructure",
            "inputs": {"image": ["2", 1], "depth": ["1", 3], "model": ["1", 0], **given},
        },
        "4": {
            "class_type": "Gen1_StructureFromImage",
            "inputs": {"image": ["3", 1], "model": ["1", 0], "invert": True, **given},
        },
        "5": {"class_type": "PreviewImage", "inputs": {"images": ["3", 1]}},
        "6": {"class_type": "PreviewImage", "inputs": {"images": ["4", 1]}},
    }


def pictures_of(server: Any, result: Any, node: str) -> Tensor:
    files = [server.file(item) for item in result.outputs[node]["images"]]
    return torch.stack([torch.from_numpy(np.array(Image.open(file).convert("RGB"))) for file in files]).float() / 255


def test_in_the_server_both_give_previews_progress_and_structure(server):
    result = server.run(graph())
    assert result.ok, result.message
    near, far = (pictures_of(server, result, node) for node in ("5", "6"))
    assert near.shape == far.shape == (6, 360, 640, 3)
    assert near.std() > 0.1
    assert (near + far - 1).abs().mean() < 0.02, "inverted: near plus far is one"
    steps = result.progress("3")
    assert steps[-1][0] == steps[-1][1] and len(steps) >= 2
    assert any(data.get("node_id") == "3" for data, _ in result.previews)


@pytest.mark.parametrize("sliders", [{"start": 0.6, "end": 0.4}, {"blur_level": 8}, {"structure_strength": 1.5}])
def test_in_the_server_wrong_sliders_are_refused_before_anything_runs(server, sliders):
    result = server.run(graph(**sliders))
    assert set(result.node_errors) >= {"3"} and not result.executed
    assert {error["extra_info"]["input_name"] for error in result.node_errors["3"]["errors"]} == set(sliders)


def test_in_the_server_cancel_stops_the_depth_and_the_next_prompt_runs(server):
    cancelled: list[float] = []

    def cancel(kind: str, data: dict[str, Any]) -> None:
        if kind == "progress_state" and data["nodes"].get("3", {}).get("value", 0) > 0 and not cancelled:
            cancelled.append(time.monotonic())
            server.interrupt()

    result = server.run(graph(start_s=0.0, end_s=2.0, blur_level=1), on_event=cancel)
    waited = time.monotonic() - cancelled[0]
    assert result.status == "interrupted" and not result.outputs
    assert waited < 2, f"{waited:.1f} s after cancel"
    again = server.run(graph(blur_level=1))
    assert again.ok, again.message
