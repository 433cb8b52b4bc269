"""What is seen while it samples: several frames of the clean estimate, with ComfyUI's samplers and with ours."""

from io import BytesIO
from typing import Any

import numpy as np
import pytest
from PIL import Image

FRAMES, STEPS = 8, 4


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


SLIDERS = {"invert": False, "blur_level": 0, "structure_strength": 1.0, "start": 0.0, "end": 1.0}

PARTS = {
    "load": node("Gen1_LoadModel", model="tiny (embedded)"),
    "image": node("EmptyImage", width=192, height=128, batch_size=FRAMES, color=0x808080),
    "structure": node("Gen1_StructureFromImage", image=["image", 0], model=["load", 0], **SLIDERS),
    "content": node("Gen1_ContentFromText", encoder=["load", 2], prompt="a red brick wall", negative="", seed=0),
    "condition": node("Gen1_Condition", model=["load", 0], structure=["structure", 0], content=["content", 0]),
    "guider": node(
        "Gen1_Guider",
        model=["load", 0],
        positive=["condition", 0],
        negative=["condition", 1],
        content_scale=1.5,
        temporal_scale=1.2,
    ),
    "noise": node("RandomNoise", noise_seed=1),
    "euler": node("KSamplerSelect", sampler_name="euler"),
    "sigmas": node("BasicScheduler", model=["load", 0], scheduler="sgm_uniform", steps=STEPS, denoise=1.0),
}

SAMPLERS = {
    "core": node(
        "KSampler",
        model=["load", 0],
        seed=1,
        steps=STEPS,
        cfg=1.5,
        sampler_name="euler",
        scheduler="sgm_uniform",
        positive=["condition", 0],
        negative=["condition", 1],
        latent_image=["condition", 2],
        denoise=1.0,
    ),
    "custom": node(
        "SamplerCustomAdvanced",
        noise=["noise", 0],
        guider=["guider", 0],
        sampler=["euler", 0],
        sigmas=["sigmas", 0],
        latent_image=["condition", 2],
    ),
    "own": node(
        "Gen1_Sampler",
        model=["load", 0],
        structure=["structure", 0],
        content=["content", 0],
        content_scale=1.5,
        temporal_scale=1.0,
        steps=STEPS,
        strength=1.0,
        seed=1,
        sampler="euler",
        window=0,
        overlap=2,
    ),
}


@pytest.fixture(scope="module")
def previewing(new_server: Any) -> Any:
    """Previews are off in a plain ComfyUI; people turn them on in its settings or with this option."""
    return new_server("--preview-method", "auto")


@pytest.mark.parametrize("name", SAMPLERS)
def test_several_frames_are_shown(name: str, previewing: Any) -> None:
    """The last preview is a sheet of frames 0, 2, 5 and 7 of what is decoded in the end."""
    decoded = node("VAEDecode", samples=[name, 0], vae=["load", 1])
    shown = node("PreviewImage", images=["decoded", 0])
    result = previewing.run({**PARTS, name: SAMPLERS[name], "decoded": decoded, "shown": shown})
    assert result.ok, result.message
    pictures = [Image.open(BytesIO(data)) for said, data in result.previews if said.get("node_id") == name]
    assert len(pictures) >= 2
    assert {picture.size for picture in pictures} == {(512, 341)}
    frames = [grey(Image.open(previewing.file(item))) for item in result.outputs["shown"]["images"]]
    wanted = np.block([[frames[0], frames[2]], [frames[5], frames[7]]])
    seen = grey(pictures[-1], size=wanted.shape[::-1])
    assert np.corrcoef(seen.ravel(), wanted.ravel())[0, 1] > 0.9


def grey(picture: Image.Image, size: tuple[int, ...] = (48, 32)) -> np.ndarray:
    return np.asarray(picture.convert("L").resize((size[0], size[1]), Image.Resampling.BOX), dtype=np.float64)


@pytest.mark.parametrize("method", ["none", "auto"])
def test_it_hands_on_what_later_versions_say_besides(method: str, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """ComfyUI after 0.3.64 calls with ``latent_shapes``."""
    progress = pack("nodes.host_progress")
    monkeypatch.setattr(progress.args, "preview_method", progress.LatentPreviewMethod(method))
    told: dict[str, Any] = {}

    def sample(*given: Any, **named: Any) -> str:
        told.update(given=given, named=named)
        return "latents"

    wrapper = progress.several_frames(None)
    assert wrapper(sample, 1, 2, 3, [1.0, 0.0], None, None, False, 7, latent_shapes=[(4,)]) == "latents"
    assert told["named"] == {"latent_shapes": [(4,)]} and told["given"][-2:] == (False, 7)


def test_where_previews_are_off_none_come_from_core_samplers(server: Any) -> None:
    saved = node("SaveLatent", samples=["core", 0], filename_prefix="previews/off")
    result = server.run({**PARTS, "core": SAMPLERS["core"], "saved": saved})
    assert result.ok, result.message
    assert [said for said, _ in result.previews if said.get("node_id") == "core"] == []
