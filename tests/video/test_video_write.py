import os
import subprocess
import sys
import weakref
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import pytest
import torch

from gen1_core.video.read import open_video
from gen1_core.video.write import VideoWriter, write_video

NTSC = Fraction(30000, 1001)


def mean_error(a: torch.Tensor, b: torch.Tensor) -> float:
    return (a.float() - b.float()).abs().mean().item()


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
@pytest.mark.parametrize(("width", "height"), [(128, 96), (127, 95), (126, 95), (64, 130)])
def test_round_trip_of_size_rate_and_count(suffix: str, width: int, height: int, tmp_path: Path, moving) -> None:
    clip = moving(20, height, width)
    path = tmp_path / f"out{suffix}"
    notes = write_video(path, clip.split(7), frame_rate=NTSC)
    video = open_video(path)
    assert (video.width, video.height, video.num_frames, video.frame_rate) == (width, height, 20, NTSC)
    assert video.time_stamps == tuple(k / NTSC for k in range(20))
    back = torch.cat(list(video))
    assert back.shape == clip.shape
    assert mean_error(back, clip) < 3 < mean_error(back.roll(1, 0), clip)
    even = width % 2 == height % 2 == 0
    with av.open(str(path)) as container:
        context = container.streams.video[0].codec_context
        assert (context.name, context.width, context.height) == ("h264", width, height)
        assert context.pix_fmt == ("yuv420p" if even else "yuv444p")
    assert len(notes) == (0 if even else 1)
    assert even or "even size" in notes[0]


@pytest.mark.parametrize(("width", "height"), [(130, 130), (144, 132)])
def test_the_same_frames_make_the_same_file(width: int, height: int, tmp_path: Path, moving) -> None:
    """Wherever they lie in memory: seen otherwise with AVX-512, at sides that are no multiples of 16."""
    clip, held, files = moving(6, height, width), [], set()
    clip = (clip.int() + torch.randint(-40, 40, clip.shape, generator=torch.Generator().manual_seed(0))).clamp(0, 255)
    for turn in range(8):
        held.append([torch.rand((37 * turn + 91 * k) % 5000 + 3) for k in range(200)][::3])
        path = tmp_path / f"{turn}.mp4"
        write_video(path, [clip.to(torch.uint8)], frame_rate=Fraction(25))
        files.add(path.read_bytes())
    assert len(files) == 1


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_colours_and_their_tags(suffix: str, tmp_path: Path) -> None:
    colours = torch.tensor([[255, 0, 0], [0, 255, 0], [0, 0, 255], [255, 255, 255], [0, 0, 0], [128, 64, 200]])
    clip = colours.to(torch.uint8)[:, :, None, None].expand(6, 3, 64, 64)
    path = tmp_path / f"flat{suffix}"
    write_video(path, [clip], frame_rate=Fraction(25), crf=10.0)
    assert (torch.cat(list(open_video(path)))[..., 32, 32].int() - colours).abs().max() <= 3
    with av.open(str(path)) as container:
        frame = next(container.decode(video=0))
        tags = (frame.colorspace, frame.color_primaries, frame.color_trc, frame.color_range)
        # The red frame by BT.709 in limited range: Y = 16 + 219 * 0.2126 = 63 (BT.601 would give 81).
        assert abs(int(frame.to_ndarray()[32, 32]) - 63) <= 2
    assert tuple(int(tag) for tag in tags) == (1, 1, 1, 1)


@pytest.mark.parametrize("suffix", [".mp4", ".mov", ".mkv"])
def test_varying_times_and_the_last_duration(suffix: str, tmp_path: Path, moving) -> None:
    stamps = [Fraction(ms, 1000) for ms in (0, 40, 90, 100, 300, 333)]
    path = tmp_path / f"vfr{suffix}"
    write_video(path, [moving(6, 48, 64)], frame_rate=Fraction(20), time_stamps=stamps)
    again = tmp_path / f"again{suffix}"
    video = open_video(path)
    write_video(again, video, frame_rate=video.frame_rate, time_stamps=video.time_stamps)
    assert open_video(again).time_stamps == open_video(path).time_stamps == tuple(stamps)
    with av.open(str(path)) as container:
        assert abs(container.duration / av.time_base - 0.383) < 0.01


def test_times_on_a_fine_clock_are_exact(tmp_path: Path, moving) -> None:
    stamps = [Fraction(k, 15360) for k in (0, 611, 1025, 1800, 2999)]
    path = tmp_path / "fine.mp4"
    write_video(path, [moving(5, 48, 64)], frame_rate=Fraction(19997, 977), time_stamps=stamps)
    assert open_video(path).time_stamps == tuple(stamps)


def test_one_frame(tmp_path: Path, moving) -> None:
    path = tmp_path / "one.mp4"
    write_video(path, [moving(1, 48, 64)], frame_rate=Fraction(24))
    video = open_video(path)
    assert (video.num_frames, video.frame_rate, video.time_stamps) == (1, 24, (0,))
    assert [chunk.shape for chunk in video] == [(1, 3, 48, 64)]


def test_metadata_and_pixel_aspect(tmp_path: Path, moving) -> None:
    path = tmp_path / "Häschen 兔.mp4"
    told = {"title": "Ein Häschen", "comment": "seed 7", "gen1": '{"prompt": "clay"}'}
    write_video(path, [moving(2, 48, 64)], frame_rate=Fraction(24), metadata=told, pixel_aspect=Fraction(16, 15))
    with av.open(str(path)) as container:
        assert told.items() <= dict(container.metadata).items()
    assert open_video(path).pixel_aspect == Fraction(16, 15)
    assert os.listdir(tmp_path) == [path.name]


def test_crf_trades_size_for_likeness(tmp_path: Path, moving) -> None:
    clip = moving(8, 96, 128)
    for crf in (10.0, 35.0):
        write_video(tmp_path / f"{crf}.mp4", [clip], frame_rate=Fraction(24), crf=crf)
    fine, coarse = (torch.cat(list(open_video(tmp_path / f"{crf}.mp4"))) for crf in (10.0, 35.0))
    assert mean_error(fine, clip) < mean_error(coarse, clip)
    assert (tmp_path / "10.0.mp4").stat().st_size > (tmp_path / "35.0.mp4").stat().st_size


def test_frames_are_taken_one_chunk_at_a_time(tmp_path: Path) -> None:
    alive: list[weakref.ref] = []

    def chunks() -> Iterator[torch.Tensor]:
        for k in range(30):
            assert sum(ref() is not None for ref in alive) <= 1
            chunk = torch.full((2, 3, 48, 64), k, dtype=torch.uint8)
            alive.append(weakref.ref(chunk))
            yield chunk

    write_video(tmp_path / "stream.mp4", chunks(), frame_rate=Fraction(24))
    assert open_video(tmp_path / "stream.mp4").num_frames == 60


def test_a_clip_can_be_written_over_itself(tmp_path: Path, with_sound) -> None:
    path = with_sound(tmp_path / "clip.mp4", "aac")
    video = open_video(path)
    write_video(path, video, frame_rate=video.frame_rate, time_stamps=video.time_stamps, audio_from=video)
    again = open_video(path)
    assert (again.num_frames, again.has_audio) == (25, True)
    assert os.listdir(tmp_path) == ["clip.mp4"]


def test_writer_as_a_context(tmp_path: Path, moving) -> None:
    path = tmp_path / "context.mkv"
    with VideoWriter(path, frame_rate=Fraction(24)) as writer:
        for chunk in moving(6, 48, 64).split(4):
            writer.add(chunk)
        assert not path.exists()
    assert open_video(path).num_frames == 6


@pytest.mark.slow
@pytest.mark.skipif(os.name == "nt", reason="Windows does not tell a process its peak")
def test_long_clips_take_no_more_memory_than_short_ones(root: Path) -> None:
    script = root / "benchmarks" / "video_memory.py"
    environment = os.environ | {"PYTHONPATH": str(root)}
    subprocess.run([sys.executable, str(script), "--frames", "100", "300"], check=True, env=environment)
