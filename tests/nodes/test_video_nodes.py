"""Load Video and Save Video: the chosen frames and no others, exact rates, sound and workflow kept."""

import json
import re
from collections.abc import Callable
from fractions import Fraction
from io import BytesIO
from pathlib import Path
from typing import Any

import av
import pytest
import torch
from torch.testing import assert_close

from gen1_core.presets import DEMO_CLIP
from gen1_core.tensors import to_float
from gen1_core.video.read import Video, open_video
from gen1_core.video.write import write_video

DEMO = "gen1_bunny.mp4 [temp]"
WHOLE = {"start_s": 0.0, "end_s": 0.0, "stride": 1, "fps": 0.0, "max_size": 0}


def frames_of(video: Video) -> torch.Tensor:
    return to_float(torch.cat(list(video))).permute(0, 2, 3, 1)


def packets_of(path: Path) -> list[bytes]:
    with av.open(str(path)) as container:
        return [bytes(packet) for packet in container.demux(video=0) if packet.size]


@pytest.fixture
def load(pack: Any) -> Callable[..., tuple[Any, ...]]:
    """Load Video with these inputs: VIDEO, IMAGE, AUDIO, frame_rate, frame_count."""
    return lambda file=DEMO, **given: pack.node("Gen1_LoadVideo").execute(file=file, **{**WHOLE, **given}).args


@pytest.fixture
def save(pack: Any) -> Callable[..., Path]:
    """Save Video with these inputs: the file."""

    def execute(prefix: str = "test/clip", *, frame_rate: float = 24.0, crf: float = 18.0, **given: Any) -> Path:
        done = pack.node("Gen1_SaveVideo").execute(filename_prefix=prefix, frame_rate=frame_rate, crf=crf, **given)
        item = done.ui.as_dict()["images"][0]
        path = pack.base / item["type"] / item["subfolder"] / item["filename"]
        assert done.args[0].get_stream_source() == str(path)
        return path

    return execute


@pytest.fixture(scope="module")
def stripes() -> torch.Tensor:
    """IMAGE of 7 frames of an odd size: a bar that moves over a slope."""
    frames = torch.linspace(0, 0.7, 75).expand(7, 45, 75)[..., None].repeat(1, 1, 1, 3)
    for k in range(7):
        frames[k, :, 10 * k : 10 * k + 5, 1] = 1.0
    return frames


def sound(seconds: float, *, channels: int = 2) -> dict[str, Any]:
    times = torch.arange(round(seconds * 8000)) / 8000
    return {"waveform": torch.sin(times * 440 * 6.2832).expand(1, channels, -1) * 0.5, "sample_rate": 8000}


def test_a_whole_file_is_itself(load: Callable[..., Any]) -> None:
    video, images, audio, frame_rate, frame_count = load()
    assert Path(video.get_stream_source()).resolve() == DEMO_CLIP.resolve()
    assert torch.equal(images, frames_of(open_video(DEMO_CLIP)))
    assert (frame_rate, frame_count) == (25.0, 48)
    assert audio["waveform"].shape[-1] / audio["sample_rate"] == pytest.approx(48 / 25, abs=0.05)


def test_every_input_chooses_frames_as_it_says(load: Callable[..., Any]) -> None:
    whole = load(max_size=96)[1]

    def chosen(max_size: int = 96, **given: float) -> tuple[torch.Tensor, float, int]:
        _, images, _, frame_rate, count = load(max_size=max_size, **given)
        assert len(images) == count
        return images, frame_rate, count

    assert torch.equal(chosen(start_s=0.4)[0], whole[10:])
    assert torch.equal(chosen(end_s=0.4)[0], whole[:10])
    images, frame_rate, _ = chosen(stride=3)
    assert torch.equal(images, whole[::3]) and frame_rate == pytest.approx(25 / 3)
    images, frame_rate, count = chosen(fps=50.0)
    assert torch.equal(images, whole.repeat_interleave(2, dim=0)) and (frame_rate, count) == (50.0, 96)
    assert chosen(fps=29.97)[1] == 30000 / 1001
    assert whole.shape == (48, 54, 96, 3)
    assert chosen(max_size=2000, end_s=0.1)[0].shape == (3, 360, 640, 3)


def test_max_frames_keeps_the_beginning(load: Callable[..., Any], stripes: torch.Tensor) -> None:
    """Of what the other inputs leave, with its sound; of frames in memory too."""
    whole = load(max_size=96)[1]
    for given, chosen in (({}, whole), ({"start_s": 0.4, "stride": 3}, whole[10::3])):
        video, images, audio, frame_rate, count = load(max_size=96, max_frames=5, **given)
        assert count == 5 and torch.equal(images, chosen[:5])
        assert video.get_duration() == pytest.approx(5 / frame_rate)
        assert audio["waveform"].shape[-1] / audio["sample_rate"] == pytest.approx(5 / frame_rate, abs=0.03)
    assert torch.equal(load(max_size=96, fps=50.0, max_frames=5)[1], whole[[0, 0, 1, 1, 2]])
    assert load(max_frames=48)[0].get_stream_source() == load(max_frames=0)[0].get_stream_source()

    from comfy_api.latest import InputImpl, Types

    parts = Types.VideoComponents(images=stripes, audio=sound(0.7), frame_rate=Fraction(10))
    _, images, audio, _, count = load(video=InputImpl.VideoFromComponents(parts), max_frames=3)
    assert count == 3 and audio["waveform"].shape[-1] == 2400
    assert_close(images, stripes[:3], rtol=0, atol=0.5 / 255)


def test_a_part_is_a_video_that_streams(load: Callable[..., Any], tmp_path: Path) -> None:
    video, images, audio, _, _ = load(start_s=0.4, end_s=1.2, max_size=120)
    assert (video.get_dimensions(), video.get_duration()) == ((120, 68), pytest.approx(0.8))
    parts = video.get_components()
    assert torch.equal(parts.images, images) and parts.frame_rate == 25
    assert torch.equal(parts.audio["waveform"], audio["waveform"])
    assert audio["waveform"].shape[-1] / audio["sample_rate"] == pytest.approx(0.8, abs=0.03)

    memory = BytesIO()
    video.save_to(memory)
    video.save_to(str(tmp_path / "part.mp4"), metadata={"prompt": {"1": {}}})
    stream = Path(video.get_stream_source())
    assert video.get_stream_source() == str(stream) and video.get_container_format().startswith("mov,mp4")
    (tmp_path / "memory.mp4").write_bytes(memory.getvalue())
    for path in (tmp_path / "part.mp4", stream, tmp_path / "memory.mp4"):
        written = open_video(path)
        assert (written.num_frames, written.frame_rate, written.has_audio) == (20, 25, True)
        assert (frames_of(written) - images).abs().mean() < 0.02
    with av.open(str(tmp_path / "part.mp4")) as container:
        assert json.loads(container.metadata["prompt"]) == {"1": {}}


def test_a_part_of_a_part_is_a_part(load: Callable[..., Any]) -> None:
    first, _, _, _, _ = load(start_s=0.4, stride=2)
    _, images, audio, frame_rate, count = load(file=None, video=first, start_s=0.4, end_s=0.8, stride=2, max_size=64)
    assert (frame_rate, count) == (6.25, 3)
    same = load(start_s=0.8, end_s=1.2, stride=4, max_size=64)
    assert torch.equal(images, same[1])
    assert torch.equal(audio["waveform"], same[2]["waveform"])
    assert load(file=None, video=first)[0] is first


def test_a_video_in_memory_is_cut_too(load: Callable[..., Any], stripes: torch.Tensor) -> None:
    from comfy_api.latest import InputImpl, Types

    parts = Types.VideoComponents(images=stripes, audio=sound(0.7), frame_rate=Fraction(10))
    video = InputImpl.VideoFromComponents(parts)
    part, images, audio, frame_rate, count = load(video=video, start_s=0.2, end_s=0.5)
    assert_close(images, stripes[2:5], rtol=0, atol=0.5 / 255)
    assert (frame_rate, count) == (10.0, 3)
    assert audio["waveform"].shape == (1, 2, 2400)
    assert_close(part.get_components().images, images, rtol=0, atol=0)


def test_a_silent_clip_has_no_sound(pack: Any, load: Callable[..., Any], save: Callable[..., Path]) -> None:
    write_video(pack.base / "input" / "silent.mp4", open_video(DEMO_CLIP, end_s=0.2), frame_rate=Fraction(25))
    video, images, audio, _, _ = load("silent.mp4")
    assert audio is None and video.get_components().audio is None
    assert load("silent.mp4", stride=2)[0].get_components().audio is None
    assert not open_video(save(images=images, audio=audio)).has_audio


def test_images_are_saved_with_their_rate(save: Callable[..., Path], stripes: torch.Tensor) -> None:
    for rate, exact in ((29.97, Fraction(30000, 1001)), (12.0, Fraction(12)), (12.5, Fraction(25, 2))):
        video = open_video(save(images=stripes, frame_rate=rate, crf=0.0))
        assert (video.num_frames, video.frame_rate, video.width, video.height) == (7, exact, 75, 45)
        assert_close(frames_of(video), stripes, rtol=0, atol=0.02)
    with_alpha = torch.cat([stripes, stripes[..., :1]], dim=-1)
    assert open_video(save(images=with_alpha)).num_frames == 7


def test_filename_prefix_is_the_folder_and_the_beginning_of_the_name(
    pack: Any, save: Callable[..., Path], stripes: torch.Tensor
) -> None:
    first, second = (save("named/day_%year%_%width%x%height%", images=stripes) for _ in range(2))
    assert first.parent == second.parent == pack.base / "output" / "named"
    assert re.fullmatch(r"day_20\d\d_75x45_00001_\.mp4", first.name)
    assert second.name == first.name.replace("00001", "00002"), "what is there is never written over"
    assert save("elsewhere", images=stripes).parent == pack.base / "output"


def test_higher_frame_rate_plays_faster(save: Callable[..., Path], stripes: torch.Tensor) -> None:
    lengths = [7 / open_video(save(images=stripes, frame_rate=rate)).frame_rate for rate in (5.0, 10.0, 60.0)]
    assert lengths == [Fraction(7, 5), Fraction(7, 10), Fraction(7, 60)]


def test_crf_trades_quality_for_size(save: Callable[..., Path], load: Callable[..., Any]) -> None:
    images = load(end_s=0.4, max_size=320)[1]
    sizes = [save(images=images, crf=crf).stat().st_size for crf in (5.0, 18.0, 40.0)]
    assert sizes[0] > 1.5 * sizes[1] > 3 * sizes[2]


def test_an_mp4_is_copied_without_loss(pack: Any, save: Callable[..., Path], load: Callable[..., Any]) -> None:
    node = pack.node("Gen1_SaveVideo").PREPARE_CLASS_CLONE(
        {"PROMPT": {"1": {"class_type": "x"}}, "EXTRA_PNGINFO": {"workflow": {"nodes": [7]}}}
    )
    done = node.execute(filename_prefix="test/copy", frame_rate=3.0, crf=50.0, video=load()[0])
    path = Path(done.args[0].get_stream_source())
    assert packets_of(path) == packets_of(DEMO_CLIP)
    copy, source = open_video(path), open_video(DEMO_CLIP)
    assert (copy.time_stamps, copy.frame_rate) == (source.time_stamps, source.frame_rate)
    assert copy.has_audio
    with av.open(str(path)) as container:
        assert json.loads(container.metadata["workflow"]) == {"nodes": [7]}
        assert json.loads(container.metadata["prompt"]) == {"1": {"class_type": "x"}}
    assert not list(path.parent.glob(".*"))


def test_other_files_are_encoded(pack: Any, save: Callable[..., Path], load: Callable[..., Any]) -> None:
    with av.open(str(pack.base / "input" / "old.avi"), "w") as output:
        stream = output.add_stream("mpeg4", rate=25)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for k in range(5):
            frame = av.VideoFrame.from_ndarray(torch.full((48, 64, 3), 40 * k, dtype=torch.uint8).numpy())
            output.mux(stream.encode(frame))
        output.mux(stream.encode(None))
    path = save(video=load("old.avi")[0])
    with av.open(str(path)) as container:
        assert container.streams.video[0].codec_context.name == "h264"
    assert open_video(path).num_frames == 5


def test_images_take_rate_times_and_sound_of_a_video(
    pack: Any, save: Callable[..., Path], load: Callable[..., Any]
) -> None:
    stamps = [Fraction(0), Fraction(1, 10), Fraction(1, 5), Fraction(1, 2)]
    clip = open_video(DEMO_CLIP, end_s=0.16, max_size=64)
    path = pack.base / "input" / "varying.mp4"
    write_video(path, clip, frame_rate=Fraction(6), time_stamps=stamps, audio_from=DEMO_CLIP)
    video, images, _, _, _ = load("varying.mp4")
    saved = open_video(save(images=1 - images, video=video, frame_rate=3.0))
    assert list(saved.time_stamps) == stamps and saved.has_audio
    assert_close(frames_of(saved), 1 - images, rtol=0, atol=0.15)
    fewer = open_video(save(images=images[:3], video=video))
    assert fewer.num_frames == 3 and fewer.frame_rate == open_video(path).frame_rate


def test_a_sound_takes_the_place_of_the_videos_own(
    pack: Any, save: Callable[..., Path], load: Callable[..., Any], stripes: torch.Tensor
) -> None:
    host = pack("nodes.host")
    silent = save(images=stripes, frame_rate=10.0)
    assert not open_video(silent).has_audio
    long = save(images=stripes, frame_rate=10.0, audio=sound(3.0, channels=1))
    heard = host.audio_of(host.source_of_file(long).audio)
    assert heard["waveform"].shape[1] == 1
    assert heard["waveform"].shape[-1] / heard["sample_rate"] == pytest.approx(0.7, abs=0.15)
    quiet = {"waveform": torch.zeros(1, 2, 8000), "sample_rate": 8000}
    muted = host.audio_of(host.source_of_file(save(video=load(end_s=1.0)[0], audio=quiet)).audio)
    assert muted["waveform"].abs().max() < 1e-3 < load()[2]["waveform"].abs().max()


def test_saving_nothing_is_refused(pack: Any, save: Callable[..., Path]) -> None:
    node = pack.node("Gen1_SaveVideo")
    with pytest.raises(ValueError, match="connect images, a video, or both"):
        save()
    assert "connect images, a video, or both" in node.validate_inputs(filename_prefix="x")
    assert node.validate_inputs(filename_prefix="x", images=None) is True
    assert node.validate_inputs(filename_prefix="x", video=None) is True
    with pytest.raises(ValueError, match="give a name, or a folder below it"):
        save(prefix="../out", images=torch.zeros(1, 8, 8, 3))


def test_a_missing_file_is_named_before_anything_runs(pack: Any, load: Callable[..., Any]) -> None:
    node = pack.node("Gen1_LoadVideo")
    assert node.validate_inputs(file=DEMO) is True and node.validate_inputs(file="bunny.mp4") is True
    assert "gone.mp4 is not in" in node.validate_inputs(file="gone.mp4")
    assert node.validate_inputs(file="gone.mp4", video=None) is True
    with pytest.raises(ValueError, match="lower start_s or raise end_s"):
        load(start_s=60.0)
    with pytest.raises(ValueError, match="choose 0 <= start_s < end_s"):
        load(start_s=1.0, end_s=0.5)


def test_frames_that_memory_does_not_hold_are_refused(
    pack: Any, load: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda device: 100e6)
    with pytest.raises(ValueError, match=r"48 frames of 640x360 take 0.1 GB .*connect VIDEO instead, which streams"):
        load()
    assert load(max_size=320)[4] == 48


def test_cancel_leaves_no_file(pack: Any, save: Callable[..., Path], stripes: torch.Tensor) -> None:
    import comfy.model_management as management

    management.interrupt_current_processing(True)
    with pytest.raises(management.InterruptProcessingException):
        save("cancelled/clip", images=stripes)
    assert not list((pack.base / "output" / "cancelled").iterdir())
    assert save("cancelled/clip", images=stripes).is_file()


def test_a_file_that_changes_is_read_again(pack: Any) -> None:
    node = pack.node("Gen1_LoadVideo")
    path = pack.base / "input" / "changing.mp4"
    path.write_bytes(DEMO_CLIP.read_bytes())
    before = node.fingerprint_inputs(file="changing.mp4", **WHOLE)
    assert node.fingerprint_inputs(file="changing.mp4", **WHOLE) == before
    path.write_bytes(DEMO_CLIP.read_bytes() + b"\0")
    assert node.fingerprint_inputs(file="changing.mp4", **WHOLE) != before


def test_the_canvas_can_show_the_embedded_clip(pack: Any) -> None:
    copy = pack.base / "temp" / "gen1_bunny.mp4"
    copy.unlink(missing_ok=True)
    schema = pack.node("Gen1_LoadVideo").define_schema()
    assert DEMO in schema.inputs[0].options and copy.read_bytes() == DEMO_CLIP.read_bytes()


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


def test_frames_are_decoded_only_where_something_takes_them(server: Any) -> None:
    graph = {
        "1": node("Gen1_LoadVideo", file=DEMO, **{**WHOLE, "end_s": 0.48}),
        "2": node("Gen1_SaveVideo", video=["1", 0], filename_prefix="lazy", frame_rate=24.0, crf=18.0),
        "3": node("PreviewAny", source=["1", 4]),
        "4": node("PreviewAny", source=["1", 3]),
    }
    first = server.run(graph)
    assert first.ok, first.message
    assert sorted(first.executed) == ["1", "2", "3", "4"]
    assert len(first.progress("1")) == 2, "the core's own, at start and end"
    assert first.outputs["3"]["text"] == ["12"] and first.outputs["4"]["text"] == ["25.0"]
    assert server.run(graph).executed == []

    graph["5"] = node("PreviewImage", images=["1", 1])
    second = server.run(graph)
    assert second.ok and second.executed[0] == "1" and second.progress("1")[-1] == (1000, 1000)
    assert len(second.outputs["5"]["images"]) == 12


def test_the_saved_file_holds_the_workflow(server: Any) -> None:
    workflow = {"nodes": [], "version": 0.4}
    graph = {
        "1": node("Gen1_LoadVideo", file="bunny.mp4", **{**WHOLE, "end_s": 0.2}),
        "2": node("Gen1_SaveVideo", images=["1", 1], filename_prefix="held/it", frame_rate=24.0, crf=18.0),
    }
    result = server.run(graph, extra_data={"extra_pnginfo": {"workflow": workflow}})
    assert result.ok, result.message
    assert result.outputs["2"]["animated"] == [True] and result.progress("2")
    with av.open(str(server.file(result.outputs["2"]["images"][0]))) as container:
        assert json.loads(container.metadata["workflow"]) == workflow
        kept = json.loads(container.metadata["prompt"])
    assert {key: one["inputs"] for key, one in kept.items()} == {key: one["inputs"] for key, one in graph.items()}
    assert str(server.base) not in json.dumps(kept)


def test_a_rate_that_nobody_chose_is_said_on_the_node(server: Any) -> None:
    load = node("Gen1_LoadVideo", file=DEMO, **{**WHOLE, "end_s": 0.12, "max_size": 64})
    given = {"images": ["1", 1], "filename_prefix": "rates", "crf": 18.0}
    graph = {
        "1": load,
        "silent": node("Gen1_SaveVideo", frame_rate=24.0, **given),
        "chosen": node("Gen1_SaveVideo", frame_rate=12.0, **given),
        "wired": node("Gen1_SaveVideo", frame_rate=["rate", 0], **given),
        "rate": node("PrimitiveFloat", value=24.0),
        "video": node("Gen1_SaveVideo", frame_rate=24.0, video=["1", 0], **given),
    }
    result = server.run(graph)
    assert result.ok, result.message
    said = [(name, text) for name, text in result.texts if "wire frame_rate" in text]
    assert [name for name, _ in said] == ["silent"] and "24 frames a second" in said[0][1]


def test_the_server_refuses_before_it_runs(server: Any) -> None:
    graph = {
        "1": node("Gen1_LoadVideo", file="gone.mp4", **WHOLE),
        "2": node("Gen1_SaveVideo", video=["1", 0], filename_prefix="x", frame_rate=24.0, crf=18.0),
    }
    assert "gone.mp4 is not in" in server.run(graph).message
    graph["1"]["inputs"] |= {"file": DEMO, "stride": 0}
    assert "stride" in server.run(graph).message
    del graph["2"]["inputs"]["video"]
    assert "connect images, a video, or both" in server.run(graph).message
