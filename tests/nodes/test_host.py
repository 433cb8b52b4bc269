"""The adapter: ComfyUI's values into the library's and back, its folders, its progress, its memory management."""

import shutil
import wave
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch


@pytest.fixture(scope="module")
def host(pack: Any) -> Any:
    return pack("nodes.host")


@pytest.fixture(scope="module")
def gen1(pack: Any) -> Any:
    return pack("gen1_core").load_gen1("tiny")


def pictures(*shape: int) -> torch.Tensor:
    return torch.randint(0, 256, shape, generator=torch.Generator().manual_seed(0)) / 255


def test_images_go_there_and_back(host: Any) -> None:
    image = pictures(3, 5, 7, 3)
    assert torch.equal(host.image_of(host.images_of(image)), image)
    clip = host.clip_of(image, chunk=2)
    assert (clip.num_frames, clip.height, clip.width, [len(chunk) for chunk in clip]) == (3, 5, 7, [2, 1])
    assert torch.equal(host.gather(clip, frames=3), image)


def test_alpha_is_dropped_and_grey_repeated(host: Any) -> None:
    image = pictures(2, 4, 6, 3)
    assert torch.equal(host.images_of(torch.cat([image, image[..., :1]], dim=-1)), host.images_of(image))
    assert torch.equal(host.images_of(image[..., :1])[:, 2], image[..., 0])


def test_values_outside_the_range_are_clipped(host: Any) -> None:
    assert host.images_of(pictures(1, 4, 4, 3) * 3 - 1).aminmax() == (0, 1)


def test_what_is_no_image_is_refused(host: Any) -> None:
    with pytest.raises(ValueError, match="connect the output of a node that loads pictures"):
        host.clip_of(torch.zeros(0, 8, 8, 3))
    with pytest.raises(ValueError, match="connect a MASK output"):
        host.masks_of(torch.zeros(8))
    with pytest.raises(ValueError, match="make it with Gen-1 Encode"):
        host.latents_of({"samples": torch.zeros(1, 16, 3, 8, 8)}, None)


def test_a_clip_that_ends_early_is_refused(host: Any) -> None:
    with pytest.raises(ValueError, match="load it again"):
        host.gather(host.clip_of(pictures(2, 4, 4, 3)), frames=3)


def test_masks_go_there_and_back(host: Any) -> None:
    mask = pictures(2, 5, 7)
    assert torch.equal(host.mask_of(host.masks_of(mask)), mask)
    assert host.masks_of(mask[0]).shape == (1, 1, 5, 7)
    frames = torch.cat(list(host.mask_clip(mask)))
    assert torch.equal(frames[:, 1], (mask * 255).round().to(torch.uint8))


@pytest.mark.parametrize(
    ("written", "rate"),
    [
        (29.97, Fraction(30000, 1001)),
        (23.976, Fraction(24000, 1001)),
        (30000 / 1001, Fraction(30000, 1001)),
        (24.0, Fraction(24)),
        (12.5, Fraction(25, 2)),
        (30.0, Fraction(30)),
    ],
)
def test_a_float_is_the_rate_it_stands_for(host: Any, written: float, rate: Fraction) -> None:
    assert host.rate_of(written) == rate


def test_a_rate_of_zero_is_refused(host: Any) -> None:
    with pytest.raises(ValueError, match="such as 24"):
        host.rate_of(0.0)


def tone(seconds: float, *, rate: int = 8000) -> dict[str, Any]:
    time = torch.arange(int(seconds * rate)) / rate
    return {"waveform": torch.stack([torch.sin(2000 * time), torch.cos(900 * time)])[None], "sample_rate": rate}


def test_sound_goes_there_and_back(host: Any) -> None:
    audio = tone(1.0)
    source = host.source_of_images(pictures(10, 8, 8, 3), frame_rate=10.0, audio=audio)
    back = host.audio_of(source.audio)
    assert back["sample_rate"] == 8000
    torch.testing.assert_close(back["waveform"], audio["waveform"])


def test_sound_in_whole_numbers_is_scaled(host: Any) -> None:
    audio = tone(0.5)
    whole = {**audio, "waveform": (audio["waveform"] * 32767).round().to(torch.int16)}
    back = host.audio_of(host.source_of_images(pictures(5, 8, 8, 3), frame_rate=10.0, audio=whole).audio)
    torch.testing.assert_close(back["waveform"], audio["waveform"], atol=1e-4, rtol=0)


def test_a_part_of_the_frames_takes_its_part_of_the_sound(host: Any) -> None:
    audio = tone(1.0)
    source = host.source_of_images(pictures(10, 8, 8, 3), frame_rate=10.0, audio=audio, start_s=0.3, end_s=0.6)
    assert source.clip.num_frames == 3
    torch.testing.assert_close(host.audio_of(source.audio)["waveform"], audio["waveform"][..., 2400:4800])


def test_no_sound_is_refused_as_sound(host: Any) -> None:
    with pytest.raises(ValueError, match="leave the input open"):
        host.source_of_images(
            pictures(2, 8, 8, 3), frame_rate=10.0, audio={"waveform": torch.zeros(1, 2, 0), "sample_rate": 8000}
        )


def test_a_video_streams_from_its_file(host: Any, pack: Any) -> None:
    path = pack.base / "input" / "bunny.mp4"
    video = pack("gen1_core").open_video(path)
    source = host.source_of_video(host.video_of(path), stride=2, max_size=64)
    assert source.clip.num_frames == -(-video.num_frames // 2)
    assert max(source.clip.width, source.clip.height) == 64
    assert source.clip.path == path


def test_frames_in_memory_are_the_video_where_there_is_no_file(host: Any, pack: Any) -> None:
    from comfy_api.latest import InputImpl, Types

    image = pictures(6, 8, 10, 3)
    video = InputImpl.VideoFromComponents(Types.VideoComponents(images=image, frame_rate=Fraction(25), audio=None))
    source = host.source_of_video(video)
    assert (source.frame_rate, source.audio, source.clip.num_frames) == (25, None, 6)
    assert torch.equal(host.gather(source.clip, frames=6), image)
    small = host.source_of_video(video, max_size=5, end_s=0.12)
    assert (small.clip.num_frames, small.clip.width, small.clip.height) == (3, 5, 4)


def test_a_written_video_has_the_sources_frames_rate_and_sound(host: Any, pack: Any, tmp_path: Path) -> None:
    source = host.source_of_images(pictures(9, 16, 16, 3), frame_rate=29.97, audio=tone(0.3, rate=44100))
    host.write(tmp_path / "a.mp4", source.clip, source, metadata={"workflow": "{}"})
    back = pack("gen1_core").open_video(tmp_path / "a.mp4")
    assert (back.num_frames, back.frame_rate, back.has_audio) == (9, Fraction(30000, 1001), True)


def test_progress_is_one_bar_over_the_stages(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import comfy.utils

    seen: list[tuple[int, int, Any]] = []
    monkeypatch.setattr(
        comfy.utils, "PROGRESS_BAR_HOOK", lambda value, total, preview, node_id: seen.append((value, total, preview))
    )
    progress = host.on_step("depth", "sample")
    progress.show(torch.zeros(9, 3, 12, 20, dtype=torch.uint8))
    progress("depth", 1, 2)
    progress("other", 1, 2)
    progress("sample", 1, 2)
    progress("sample", 2, 2)
    values, totals, previews = zip(*seen, strict=True)
    assert values == (500, 4000, 7000)
    assert set(totals) == {7000}
    assert previews[0][1].size == (40, 24)  # four frames, two in a row
    assert previews[1:] == (None, None)


def test_cancel_takes_effect_at_a_step_of_any_name(host: Any) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        host.on_step("depth")("other", 0, 1)
    host.check_cancel()


def test_outputs_stay_in_the_output_folder(host: Any, pack: Any) -> None:
    first = host.output_file("a/b_%width%", width=16, height=9)
    assert first.path == pack.base / "output" / "a" / "b_16_00001_.mp4"
    first.path.touch()
    assert host.output_file("a/b_%width%", width=16, height=9).path.name == "b_16_00002_.mp4"
    assert first.ui.as_dict()["images"][0]["subfolder"] == "a"
    for prefix in ("../b", "../output2/b", "/etc/b"):
        with pytest.raises(ValueError, match="give a name, or a folder below it"):
            host.output_file(prefix, width=1, height=1)


def test_input_names_are_found_or_told(host: Any, pack: Any) -> None:
    assert "bunny.mp4" in host.input_videos()
    assert host.input_path("bunny.mp4 [input]") == pack.base / "input" / "bunny.mp4"
    with pytest.raises(ValueError, match="press R to refresh"):
        host.input_path("gone.mp4")


def test_a_changed_file_is_seen(host: Any, tmp_path: Path) -> None:
    file = tmp_path / "a"
    file.write_bytes(b"1")
    before = host.file_state(file), host.file_state(tmp_path)
    file.write_bytes(b"12")
    assert host.file_state(file) != before[0]
    assert host.file_state(tmp_path) != before[1]


def test_folders_that_are_known_keep_their_places(host: Any, pack: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import folder_paths

    monkeypatch.setitem(folder_paths.folder_names_and_paths, "ipadapter", (["/elsewhere"], {".onnx"}))
    monkeypatch.delitem(folder_paths.folder_names_and_paths, "gen1", raising=False)
    host.register_folders()
    host.register_folders()
    here = str(pack.base / "models" / "ipadapter")
    assert folder_paths.folder_names_and_paths["ipadapter"] == (["/elsewhere", here], {".onnx"})
    assert folder_paths.folder_names_and_paths["gen1"][0] == [str(pack.base / "models" / "gen1")]


def test_a_missing_model_is_named_with_its_folder(host: Any, pack: Any) -> None:
    host.register_folders()
    assert host.model_path("vae", host.NONE, kind="vae", option="vae") is None
    folder = str(pack.base / "models" / "checkpoints")
    for name, ending in (("a.safetensors", "choose another"), (host.BY_CONTENT, "put the file there")):
        with pytest.raises(ValueError, match=ending) as error:
            host.model_path("checkpoints", name, kind="checkpoint", option="checkpoint")
        assert folder in str(error.value)


@pytest.fixture
def models(pack: Any) -> Iterator[Path]:
    """The folder of whole models; empty again afterwards, since other tests list it too."""
    folder = pack.base / "models" / "gen1"
    yield folder
    shutil.rmtree(folder)


def test_models_of_five_files_are_listed(host: Any, models: Path, root: Path) -> None:
    host.register_folders()
    tiny, folder = root / "gen1_core" / "assets" / "tiny", models
    (folder / "mine" / "v1").mkdir(parents=True)
    (folder / "half").mkdir()
    for file in tiny.iterdir():
        (folder / "mine" / "v1" / file.name).symlink_to(file)
    (folder / "half" / "unet.safetensors").symlink_to(tiny / "unet.safetensors")
    assert host.model_folders() == ["mine/v1"]
    assert host.gen1_folder("mine/v1") == folder / "mine" / "v1"
    assert host.gen1_folder(host.EMBEDDED) == "tiny"
    with pytest.raises(ValueError, match="put it there and press R") as error:
        host.gen1_folder("gone")
    assert str(folder) in str(error.value)
    assert "mine/v1" in str(error.value)


def test_every_network_is_found_and_no_more(host: Any, gen1: Any) -> None:
    describer = gen1.describer
    assert host.networks_in(describer) == [describer.encoder.clip, describer.prior]
    assert [type(one).__name__ for one in host.networks_in(gen1.depth)] == ["DepthNet"]
    assert host.networks_in(host.clip_of(pictures(1, 8, 8, 3))) == []


def test_managed_parts_give_what_the_parts_give(host: Any, gen1: Any) -> None:
    images = host.images_of(pictures(2, 64, 48, 3))
    assert torch.equal(host.depth_wire(gen1.depth)(images), gen1.depth(images))
    reader = host.encoder_wire(gen1.describer)
    theirs = gen1.describer(prompt="a dog", image=None, negative="", seed=3)
    assert torch.equal(reader(prompt="a dog", seed=3).tokens, theirs.tokens)
    with pytest.raises(ValueError, match="give a prompt or an image"):
        reader(prompt="", image=None)


def test_the_vae_is_the_autoencoder_in_the_cores_scale(host: Any, gen1: Any) -> None:
    image = pictures(3, 64, 48, 3)
    vae = host.vae_wire(gen1.autoencoder)
    codec = host.codec_of(vae)
    samples = vae.encode(image)
    scaled = host.images_of(image) * 2 - 1
    torch.testing.assert_close(host.latents_of({"samples": samples}, codec)[0].movedim(1, 0), codec.encode(scaled))
    assert torch.equal(codec.encode(scaled), gen1.autoencoder.encode(scaled))
    latents = codec.encode(scaled).movedim(0, 1)[None]
    back = host.latent_of(latents, codec)["samples"]
    torch.testing.assert_close(back, samples, atol=1e-5, rtol=1e-5)
    pixels = codec.decode(latents[0].movedim(1, 0))
    torch.testing.assert_close(vae.decode(samples), host.image_of(((pixels + 1) / 2).clamp(0, 1)), atol=1e-4, rtol=0)
    tiles = vae.decode_tiled(samples, tile_x=64, tile_y=64)
    torch.testing.assert_close(tiles, vae.decode(samples), atol=1e-4, rtol=0)


def test_another_vae_is_refused(host: Any) -> None:
    with pytest.raises(ValueError, match="connect the VAE of the Gen-1 loader"):
        host.codec_of(object())


def test_a_model_carries_its_gen1_through_clones(host: Any, gen1: Any) -> None:
    outer = torch.nn.Module()
    outer.diffusion_model = gen1.unet
    model = host.managed(outer)
    with pytest.raises(ValueError, match="connect the MODEL of Gen-1 Load Model"):
        host.gen1_of(model)
    host.attach(model, gen1)
    found = host.gen1_of(model.clone())
    assert found.describer is gen1.describer
    assert found.unet is gen1.unet


def test_what_newer_versions_know_is_told_to_them_alone(host: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    from comfy_api.latest import io

    def newer(node_id: str, search_aliases: list[str]) -> None: ...

    def older(node_id: str) -> None: ...

    monkeypatch.setattr(io, "Schema", older)
    assert host.aliases("dream") == {}
    monkeypatch.setattr(io, "Schema", newer)
    assert host.aliases("dream") == {"search_aliases": ["dream"]}


def test_wave_is_what_the_writer_reads(host: Any) -> None:
    source = host.source_of_images(pictures(2, 8, 8, 3), frame_rate=10.0, audio=tone(0.2))
    assert source.audio.path.suffix == ".wav"
    with pytest.raises(wave.Error):  # 32-bit floats: nothing is lost on the way
        wave.open(str(source.audio.path))
