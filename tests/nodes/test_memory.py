"""What lies on the device, in memory and in the temp folder: no more than is asked for, and no longer than needed."""

import gc
from collections.abc import Callable
from dataclasses import replace
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from gen1_core.presets import DEMO_CLIP

META = torch.device("meta")
"""Another device than the CPU, for the rules by which networks are moved."""


@pytest.fixture
def host(pack: Any) -> Any:
    return pack("nodes.host")


@pytest.fixture
def networks(pack: Any) -> Any:
    return pack("nodes.host_networks")


@pytest.fixture
def gen1(pack: Any) -> Any:
    """A model of one's own: its weights do not come back from ``META``."""
    return pack("gen1_core").load_gen1("tiny")


def defaults(pack: Any, name: str) -> dict[str, Any]:
    """What a new node of this kind has in its form."""
    inputs = pack.node(name).GET_SCHEMA().inputs
    return {one.id: one.default for one in inputs if not one.optional and getattr(one, "default", None) is not None}


def patchers(host: Any, gen1: Any) -> dict[str, Any]:
    """Everything that is under ComfyUI's memory management, but the U-Net."""
    outer = nn.Module()
    outer.diffusion_model = gen1.unet
    model = host.managed(outer)
    host.attach(model, replace(gen1, controls=(nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4)),)))
    return {
        "depth": host.depth_wire(gen1.depth).networks[0],
        "clip": host.encoder_wire(gen1.describer).networks[0],
        "prior": host.encoder_wire(gen1.describer).networks[1],
        "vae": host.vae_wire(gen1.autoencoder).patcher,
        "control": model.clone().get_nested_additional_models()[0],
    }


def places(patcher: Any) -> set[str]:
    return {weight.device.type for weight in patcher.model.parameters()}


@pytest.mark.parametrize("name", ["depth", "clip", "prior", "vae", "control"])
def test_a_network_is_on_the_device_whole_or_not_at_all(host: Any, gen1: Any, name: str) -> None:
    """The core's own patcher says "loaded completely" and leaves plain layers on the CPU."""
    patcher = patchers(host, gen1)[name]
    patcher.partially_load(META, 1.0)
    assert places(patcher) == {"meta"}
    assert patcher.loaded_size() == patcher.model_size()
    assert patcher.partially_unload(torch.device("cpu"), 1) == 0
    assert places(patcher) == {"meta"}


@pytest.mark.parametrize("state", ["NO_VRAM", "LOW_VRAM", "NORMAL_VRAM"])
def test_the_core_loads_it_whole_with_little_memory(
    host: Any, gen1: Any, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    big = host.managed(nn.Sequential(*(nn.Linear(2048, 2048, device="cpu") for _ in range(9))))  # more than 128 MB
    found = {**patchers(host, gen1), "big": big}
    monkeypatch.setattr(management, "vram_state", management.VRAMState[state])
    monkeypatch.setattr(
        management, "get_free_memory", lambda device, torch_free_too=False: (50e6, 0) if torch_free_too else 50e6
    )
    monkeypatch.setattr(management, "current_loaded_models", [])
    for patcher in found.values():
        patcher.load_device = META
    host.load(*found.values())
    assert {name: places(patcher) for name, patcher in found.items()} == dict.fromkeys(found, {"meta"})


class Spy:
    """In place of ``load``: what memory was asked for."""

    def __init__(self) -> None:
        self.asked: list[float] = []

    def __call__(self, *models: Any, memory: float = 0, whole: bool = False) -> None:
        self.asked.append(memory)


@pytest.mark.parametrize("way", ["encode", "decode"])
def test_the_vae_takes_as_many_frames_as_there_is_room_for(
    host: Any, networks: Any, gen1: Any, way: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management as management

    vae = host.vae_wire(gen1.autoencoder)
    codec, spy = host.codec_of(vae), Spy()
    given = torch.randn(5, *((3, 64, 48) if way == "encode" else (8, 8, 6)), generator=torch.Generator().manual_seed(0))
    one = (vae.memory_used_encode if way == "encode" else vae.memory_used_decode)(given.shape, vae.vae_dtype)
    plain, sizes, most = getattr(vae.first_stage_model.network, way), [], [5]

    def function(part: torch.Tensor) -> torch.Tensor:
        if len(part) > most[0]:
            raise management.OOM_EXCEPTION("no room")
        sizes.append(len(part))
        return plain(part)

    monkeypatch.setattr(networks, "load", spy)
    monkeypatch.setattr(vae.first_stage_model.network, way, function)
    for free, most[0], expected in ((100, 5, [5]), (2.5, 5, [2, 2, 1]), (0.5, 5, [1] * 5), (100, 1, [1] * 5)):
        sizes.clear()
        monkeypatch.setattr(management, "get_free_memory", lambda device, free=free: free * one)
        with torch.no_grad():
            result = getattr(codec, way)(given)
            torch.testing.assert_close(result, plain(given), atol=1e-5, rtol=1e-5)
        assert sizes == expected
    assert spy.asked == [5 * one] * 4
    most[0] = 0
    with pytest.raises(management.OOM_EXCEPTION):
        getattr(codec, way)(given)


def test_depth_asks_for_what_it_takes(host: Any, networks: Any, gen1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 8 frames of 4K: DPT-Large keeps 2.34 GB of tensors at most, and 600 bytes a pixel would be 40."""
    dpt = networks.DPT
    with META:
        large = dpt(dpt.__init__.__annotations__["config"]())
    uhd, hd = (torch.empty(8, 3, *size, device="meta") for size in ((2160, 3840), (720, 1280)))
    assert 2.34e9 < networks.depth_memory([large], uhd) < 6e9
    more = 16 * 8 * (2160 * 3840 - 720 * 1280)
    assert networks.depth_memory([large], uhd) - networks.depth_memory([large], hd) == more
    spy, depth = Spy(), host.depth_wire(gen1.depth)
    monkeypatch.setattr(networks, "load", spy)
    depth(torch.zeros(2, 3, 256, 128))
    assert spy.asked == [2 * (networks.BYTES_PER_INPUT_PIXEL * 320 * 160 + 16 * 256 * 128)]


def test_depth_of_a_clip_waits_on_the_cpu(pack: Any, gen1: Any) -> None:
    """Its range is found there, before anything of the size of the clip is on the device."""
    frames, video = pack("gen1_core.frames"), pack("gen1_core.video.clip")
    clip = video.MemoryClip(torch.randint(0, 256, (5, 3, 128, 128), dtype=torch.uint8), chunk=2)
    known = frames.size_for(gen1, clip)
    depths = iter(torch.rand(5, 1, 128, 128).split(2))

    class Elsewhere:
        device, unet, diffusion = META, gen1.unet, gen1.diffusion

        @staticmethod
        def depth(images: torch.Tensor) -> torch.Tensor:
            assert images.device == META
            return next(depths)

    depth, found = frames.read_depth(Elsewhere, clip, chunk=2)
    assert depth.device == META and depth.shape == (1, 1, 5, known.padded_height, known.padded_width)
    assert 0 < found.low < found.high < 1


def test_frames_are_gathered_where_there_is_room(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.model_management as management

    clip = host.clip_of(torch.rand(3, 100, 100, 3))
    monkeypatch.setattr(management, "get_free_memory", lambda device: 3 * 100 * 100 * 12)
    assert host.gather(clip, frames=3).shape == (3, 100, 100, 3)
    monkeypatch.setattr(management, "get_free_memory", lambda device: 3 * 100 * 100 * 12 - 1)
    with pytest.raises(ValueError, match="3 frames of 100x100 take .* take fewer frames"):
        host.gather(clip, frames=3)


def test_a_preview_that_nothing_takes_is_not_made(pack: Any, gen1: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    structure = pack("nodes.structure")
    model = SimpleNamespace(get_attachment=lambda name: gen1, model=SimpleNamespace(diffusion_model=gen1.unet))
    given = {"image": torch.rand(3, 40, 60, 3), "model": model, **defaults(pack, "Gen1_DepthStructure")}
    both = (structure.DepthStructure, {"depth": lambda x: x[:, :1]}), (structure.StructureFromImage, {"invert": False})
    for node, more in both:
        made, states = [], []
        for linked in ({0, 1}, {0}):
            monkeypatch.setattr(structure.host, "linked_outputs", lambda *, count, linked=linked: frozenset(linked))
            made.append(node.execute(**given, **more).result)
            states.append(node.fingerprint_inputs(start=0.0))
        assert torch.equal(made[0][0].depth, made[1][0].depth)
        assert made[0][1].shape == (3, 40, 60, 3) and made[1][1] is None
        assert states[0] != states[1], "a link drawn later must make it run again"


@pytest.fixture
def temp(pack: Any) -> Callable[[], set[str]]:
    """New files in the temp folder, of those that are held no longer none."""
    folder = pack.base / "temp"
    gc.collect()
    before = set(folder.glob("gen1_*"))

    def new() -> set[str]:
        gc.collect()
        return {path.suffix for path in set(folder.glob("gen1_*")) - before if path.stem != "gen1_bunny"}

    return new


def sound(seconds: float, rate: int = 8000) -> dict[str, Any]:
    times = torch.arange(round(seconds * rate)) / rate
    return {"waveform": torch.stack([torch.sin(2000 * times), torch.cos(900 * times)])[None], "sample_rate": rate}


def save(pack: Any, **given: Any) -> Any:
    return pack.node("Gen1_SaveVideo").execute(filename_prefix="memory/x", frame_rate=10.0, crf=18.0, **given).args[0]


def test_saving_a_sound_leaves_no_file_behind(pack: Any, host: Any, temp: Callable[[], set[str]]) -> None:
    video = save(pack, images=torch.rand(5, 16, 16, 3), audio=sound(0.5))
    assert host.source_of_video(video).audio is not None
    assert temp() == set()
    held = host.source_of_images(torch.rand(5, 16, 16, 3), frame_rate=10.0, audio=sound(0.5), start_s=0.2).audio
    assert temp() == {".wav"}
    assert host.audio_of(held)["waveform"].shape[-1] == 2400
    del held
    assert temp() == set()


def test_a_video_in_memory_is_one_file_for_as_long_as_it_lives(
    pack: Any, host: Any, temp: Callable[[], set[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    from comfy_api.latest import InputImpl

    written = []
    write = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", lambda path, data: written.append(path.name) or write(path, data))
    video = InputImpl.VideoFromFile(BytesIO(DEMO_CLIP.read_bytes()))
    for _ in range(2):
        save(pack, video=video)
    part = pack.node("Gen1_LoadVideo").execute(
        file="", start_s=0.4, end_s=0.6, stride=1, fps=0.0, max_size=0, video=video
    )
    assert len(written) == 1 and temp() == {".video"}
    del video
    part = part.args[0]
    smaller = host.video_from(host.source_of_video(part, end_s=0.1))
    del part
    assert temp() == {".video"}, "what was cut out of it still reads it"
    assert smaller.get_components().images.shape[0] == 3 and smaller.get_components().audio is not None
    inside = smaller.get_stream_source()
    assert temp() == {".video", ".mp4"}
    del smaller
    assert temp() == {".mp4"} and Path(inside).is_file()
    del inside
    assert temp() == set()


def test_the_edited_file_lives_as_long_as_its_video(pack: Any, host: Any, temp: Callable[[], set[str]]) -> None:
    source = host.video_from(host.source_of_images(torch.rand(2, 64, 64, 3), frame_rate=10.0))
    edited = (
        pack.node("Gen1_EditVideo").execute(video=source, **{**defaults(pack, "Gen1_EditVideo"), "steps": 1}).args[0]
    )
    assert temp() == {".mp4"}
    kept = host.source_of_video(edited)
    del edited
    assert torch.cat(list(kept.clip)).shape == (2, 3, 64, 64)
    del kept
    assert temp() == set()


def test_a_long_sound_is_encoded_in_blocks(pack: Any, host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import av

    sizes = []
    make = av.AudioFrame.from_ndarray

    class Frame:
        @staticmethod
        def from_ndarray(array: Any, **more: Any) -> Any:
            sizes.append(array.size)
            return make(array, **more)

    monkeypatch.setattr(pack("nodes.host_videos").av, "AudioFrame", Frame)
    audio = sound(300.0)
    track = host.source_of_images(torch.rand(2, 8, 8, 3), frame_rate=10.0, audio=audio).audio
    assert max(sizes) == 2 * 2**20 and len(sizes) == 3
    assert torch.equal(host.audio_of(track)["waveform"], audio["waveform"])


@pytest.mark.parametrize("suffix", [".mp4", ".wav"])
def test_a_part_of_a_long_sound_is_read_alone(
    pack: Any, host: Any, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is the same part of the whole, and little more of the file is looked at."""
    import comfy.model_management as management

    images, audio = torch.rand(600, 8, 8, 3), sound(60.0, 44100)
    track = host.source_of_images(images, frame_rate=10.0, audio=audio).audio
    if suffix == ".mp4":
        track = host.source_of_video(save(pack, images=images, audio=audio)).audio
    looked: list[int] = []
    monkeypatch.setattr(pack("nodes.host_videos"), "check_cancel", lambda: looked.append(1))
    whole = host.audio_of(track)["waveform"]
    frames = len(looked)
    looked.clear()
    part = host.audio_of(replace(track, zero=Fraction(20), start_s=20.0, end_s=21.0))["waveform"]
    assert 0 < len(looked) < frames / 15
    assert torch.equal(part, whole[..., 20 * 44100 : 21 * 44100])
    monkeypatch.undo()
    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        host.audio_of(track)


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        (23.98, Fraction(24000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (59.94, Fraction(60000, 1001)),
        (29.97, Fraction(30000, 1001)),
        (119.88, Fraction(120000, 1001)),
        (24.0, Fraction(24)),
        (60.0, Fraction(60)),
        (23.9, Fraction(239, 10)),
    ],
)
def test_rates_of_two_places_are_meant_exactly(host: Any, written: float, rate: Fraction) -> None:
    assert host.rate_of(written) == rate


def test_the_mean_of_a_varying_rate_is_kept(host: Any) -> None:
    assert abs(host.rate_of(23.9789) - 23.9789) < 1e-4


def test_a_link_drawn_later_finds_its_preview(server: Any, pack: Any) -> None:
    def node(kind: str, **inputs: Any) -> dict[str, Any]:
        ours = defaults(pack, kind) if kind.startswith("Gen1") else {}
        return {"class_type": kind, "inputs": {**ours, **inputs}}

    graph = {
        "1": node("Gen1_LoadVideo", file="gen1_bunny.mp4 [temp]", end_s=0.12),
        "2": node("Gen1_LoadModel", model="tiny (embedded)"),
        "3": node("Gen1_StructureFromImage", image=["1", 1], model=["2", 0]),
        "4": node("PreviewAny", source=["3", 0]),
    }
    first = server.run(graph)
    assert first.ok, first.message
    assert server.run(graph).executed == []
    graph["5"] = node("PreviewImage", images=["3", 1])
    second = server.run(graph)
    assert second.ok, second.message
    assert "3" in second.executed and len(second.outputs["5"]["images"]) == 3
