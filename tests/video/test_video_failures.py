from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
import torch

from gen1_core.video.read import open_video
from gen1_core.video.write import write_video

RATE = Fraction(24)


@pytest.mark.parametrize("content", [b"", b"hello, I am a text\n" * 50, bytes(range(256)) * 40])
def test_not_a_video(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "text.mp4"
    path.write_bytes(content)
    with pytest.raises(ValueError, match="give an MP4, MOV, MKV or WebM file"):
        open_video(path)
    with pytest.raises(ValueError, match="give an MP4"):
        open_video(path.rename(tmp_path / "text.txt"))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="check the spelling"):
        open_video(tmp_path / "nothing.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
@pytest.mark.parametrize("part", [0.5, 0.9])
def test_truncated(suffix: str, part: float, tmp_path: Path, encode, moving) -> None:
    noise = torch.randint(0, 256, (40, 48, 64, 3), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    codec = "mpeg4" if suffix == ".avi" else "libx264"
    path = encode(tmp_path / f"whole{suffix}", list(noise.numpy()), codec=codec)
    whole = path.read_bytes()
    assert open_video(path).num_frames == 40
    path.write_bytes(whole[: int(len(whole) * part)])
    with pytest.raises(ValueError, match="copy or download it again, or repair it"):
        sum(len(chunk) for chunk in open_video(path))


def test_truncated_with_the_index_in_front(tmp_path: Path, moving) -> None:
    path = tmp_path / "front.mp4"
    write_video(path, [moving(40, 96, 128)], frame_rate=RATE)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * 0.8)])
    with pytest.raises(ValueError, match="copy or download it again"):
        sum(len(chunk) for chunk in open_video(path))


def test_damaged_in_the_middle_is_said_or_read_to_the_end(tmp_path: Path, encode, moving) -> None:
    path = encode(tmp_path / "holes.mp4", list(moving(30, 48, 64).permute(0, 2, 3, 1).numpy()))
    content = bytearray(path.read_bytes())
    start = content.index(b"mdat") + 4
    content[start + 200 : start + 1500] = bytes(1300)
    path.write_bytes(bytes(content))
    try:
        video = open_video(path)
        assert sum(len(chunk) for chunk in video) == video.num_frames
    except ValueError as error:
        assert "copy or download it again" in str(error)


def test_only_sound(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as output:
        stream = output.add_stream("aac", rate=48000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 9600), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 48000
        output.mux([*stream.encode(frame), *stream.encode(None)])
    with pytest.raises(ValueError, match="without moving pictures; give an MP4"):
        open_video(tmp_path / "sound.mp4")


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_zero_frames_in_a_file(suffix: str, tmp_path: Path) -> None:
    with av.open(str(tmp_path / f"empty{suffix}"), "w") as output:
        stream = output.add_stream("libx264", rate=24)
        stream.width, stream.height = 64, 48
        output.start_encoding()
    with pytest.raises(ValueError, match="give an MP4, MOV, MKV|download it again"):
        open_video(tmp_path / f"empty{suffix}")


def failing(clip: torch.Tensor, error: BaseException) -> Iterator[torch.Tensor]:
    yield from clip.split(4)
    raise error


@pytest.mark.parametrize(
    "error", [KeyboardInterrupt(), RuntimeError("the network failed"), OSError("the source failed")]
)
@pytest.mark.parametrize("frames", [4, 60])
def test_cancelled_half_way_leaves_what_was_there(error, frames: int, tmp_path: Path, moving) -> None:
    target = tmp_path / "out.mp4"
    target.write_bytes(b"the old file")
    with pytest.raises(type(error)) as caught:
        write_video(target, failing(moving(frames, 48, 64), error), frame_rate=RATE)
    assert caught.value is error
    assert target.read_bytes() == b"the old file"
    assert [file.name for file in tmp_path.iterdir()] == ["out.mp4"]


def test_cancelled_with_sound_leaves_nothing(tmp_path: Path, with_sound, moving) -> None:
    source = with_sound(tmp_path / "source.mp4", "aac")
    with pytest.raises(KeyboardInterrupt):
        chunks = failing(moving(20, 48, 64), KeyboardInterrupt())
        write_video(tmp_path / "out.mp4", chunks, frame_rate=RATE, audio_from=source)
    assert [file.name for file in tmp_path.iterdir()] == ["source.mp4"]


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
@pytest.mark.parametrize("limit", [0, 2000, 60_000])
def test_disk_full(suffix: str, limit: int, tmp_path: Path, file_size_limit) -> None:
    noise = torch.randint(0, 256, (30, 3, 48, 64), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    target = tmp_path / f"out{suffix}"
    target.write_bytes(b"the old file")
    with file_size_limit(limit), pytest.raises(ValueError, match="free disk space"):
        write_video(target, noise.split(5), frame_rate=RATE)
    assert target.read_bytes() == b"the old file"
    assert [file.name for file in tmp_path.iterdir()] == [target.name]
    write_video(target, noise.split(5), frame_rate=RATE)
    assert target.stat().st_size > 60_000


def test_read_only_target(tmp_path: Path, moving) -> None:
    (tmp_path / "file").write_bytes(b"")
    for folder in ("file", "missing"):
        pulled = []
        with pytest.raises(ValueError, match="choose a folder that exists and may be written to"):
            write_video(tmp_path / folder / "out.mp4", (pulled.append(1) for _ in range(1)), frame_rate=RATE)
        assert not pulled, "the target is tried before any work is done"


def test_bad_arguments(tmp_path: Path, moving) -> None:
    clip, target = moving(3, 48, 64), tmp_path / "out.mp4"
    with pytest.raises(ValueError, match="choose a name that ends in .mp4"):
        write_video(tmp_path / "out.avi", [clip], frame_rate=RATE)
    with pytest.raises(ValueError, match="choose another name"):
        (tmp_path / "folder.mp4").mkdir()
        write_video(tmp_path / "folder.mp4", [clip], frame_rate=RATE)
    with pytest.raises(ValueError, match="choose a rate above 0"):
        write_video(target, [clip], frame_rate=Fraction(0))
    with pytest.raises(ValueError, match="choose 0 .lossless. to 51"):
        write_video(target, [clip], frame_rate=RATE, crf=99.0)
    with pytest.raises(ValueError, match="sort them"):
        write_video(target, [clip], frame_rate=RATE, time_stamps=[Fraction(0), Fraction(2), Fraction(1)])
    with pytest.raises(ValueError, match="as many of one as of the other"):
        write_video(target, [clip], frame_rate=RATE, time_stamps=[Fraction(0), Fraction(1)])
    with pytest.raises(ValueError, match="resize them before writing"):
        write_video(target, [clip, moving(1, 50, 64)], frame_rate=RATE)
    with pytest.raises(ValueError, match="give at least one frame"):
        write_video(target, [], frame_rate=RATE)
    with pytest.raises(ValueError, match="choose 1 or more"):
        open_video(target, chunk=0)
    assert [file.name for file in tmp_path.iterdir()] == ["folder.mp4"]
