from fractions import Fraction
from pathlib import Path

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame

from gen1_core.video.audio import AudioTrack
from gen1_core.video.read import open_video
from gen1_core.video.write import write_video

CLICK_S = 0.5


def copy(source: Path, target: Path, **options: float) -> list[str]:
    video = open_video(source, **options)
    return write_video(target, video, frame_rate=video.frame_rate, time_stamps=video.time_stamps, audio_from=video)


def codec_of(path: Path) -> str:
    with av.open(str(path)) as container:
        return container.streams.audio[0].codec_context.name


@pytest.mark.parametrize(
    ("codec", "before", "after"),
    [
        ("aac", ".mp4", ".mp4"),
        ("aac", ".mov", ".mkv"),
        ("aac", ".mkv", ".mp4"),
        ("aac", ".ts", ".mp4"),
        ("pcm_s16le", ".mov", ".mov"),
        ("pcm_s16le", ".mkv", ".mkv"),
        ("pcm_s16le", ".avi", ".mkv"),
        ("libmp3lame", ".mkv", ".mp4"),
        ("flac", ".mkv", ".mkv"),
    ],
)
def test_copied_bit_by_bit_and_in_step(
    codec, before, after, tmp_path: Path, with_sound, audio_packets, click_at
) -> None:
    source = with_sound(tmp_path / f"source{before}", codec)
    target = tmp_path / f"target{after}"
    assert copy(source, target) == []
    taken, given = audio_packets(target), audio_packets(source)
    if before == ".ts":  # there each packet carries a header of its own, which MP4 keeps once
        given = [packet[7:] for packet in given]
    assert taken == given
    assert abs(click_at(target) - click_at(source)) < 0.002


@pytest.mark.parametrize(
    ("codec", "before", "after"),
    [
        ("pcm_s16le", ".mov", ".mp4"),
        ("pcm_s16le", ".avi", ".mp4"),
        ("flac", ".mkv", ".mp4"),
        ("libopus", ".mkv", ".mov"),
    ],
)
def test_encoded_anew_and_said(codec, before, after, tmp_path: Path, with_sound, click_at) -> None:
    source = with_sound(tmp_path / f"source{before}", codec)
    target = tmp_path / f"target{after}"
    (note,) = copy(source, target)
    assert "-> AAC" in note and ".mkv" in note
    assert codec_of(target) == "aac"
    assert abs(click_at(target) - click_at(source)) < 0.005
    with av.open(str(target)) as container:
        stream = container.streams.audio[0]
        assert abs(float(stream.duration * stream.time_base) - 1.0) < 0.05


@pytest.mark.parametrize("codec", ["aac", "pcm_s16le"])
def test_a_part_keeps_its_part_of_the_sound(codec: str, tmp_path: Path, with_sound, click_at) -> None:
    source = with_sound(tmp_path / "source.mov", codec)
    copy(source, tmp_path / "part.mp4", start_s=0.2, end_s=0.8)
    video = open_video(tmp_path / "part.mp4")
    assert video.num_frames == 15
    assert abs(click_at(tmp_path / "part.mp4") - (CLICK_S - 0.2)) < 0.03
    with av.open(str(tmp_path / "part.mp4")) as container:
        stream = container.streams.audio[0]
        assert abs(float(stream.duration * stream.time_base) - 0.6) < 0.05


def test_no_audio_is_a_normal_case(tmp_path: Path, encode, quarters) -> None:
    source = encode(tmp_path / "silent.mp4", [quarters] * 3)
    assert not open_video(source).has_audio
    assert copy(source, tmp_path / "target.mp4") == []
    write_video(tmp_path / "path.mp4", open_video(source), frame_rate=Fraction(25), audio_from=source)
    assert not open_video(tmp_path / "path.mp4").has_audio


def test_sound_from_a_path_and_from_a_sound_file(tmp_path: Path, with_sound, moving, audio_packets) -> None:
    source = with_sound(tmp_path / "source.mp4", "aac")
    write_video(tmp_path / "a.mp4", [moving(25, 48, 64)], frame_rate=Fraction(25), audio_from=source)
    assert audio_packets(tmp_path / "a.mp4") == audio_packets(source)
    wav = tmp_path / "sound.wav"
    with av.open(str(wav), "w") as output:
        stream = output.add_stream("pcm_s16le", rate=44100)
        frame = AudioFrame.from_ndarray(np.zeros((1, 44100 * 2), np.int16), format="s16", layout="stereo")
        frame.sample_rate = 44100
        output.mux([*stream.encode(frame), *stream.encode(None)])
    track = AudioTrack(path=wav, end_s=0.5)
    write_video(tmp_path / "b.mkv", [moving(12, 48, 64)], frame_rate=Fraction(24), audio_from=track)
    assert codec_of(tmp_path / "b.mkv") == "pcm_s16le"


def test_the_first_of_several_tracks_and_that_is_said(tmp_path: Path, moving) -> None:
    source = tmp_path / "two.mkv"
    with av.open(str(source), "w") as output:
        video = output.add_stream("libx264", rate=25)
        video.width, video.height = 64, 48
        tracks = [output.add_stream("pcm_s16le", rate=8000) for _ in range(2)]
        output.mux(video.encode(av.VideoFrame.from_ndarray(np.zeros((48, 64, 3), np.uint8), format="rgb24")))
        output.mux(video.encode(None))
        for track in tracks:
            frame = AudioFrame.from_ndarray(np.zeros((1, 320 * 2), np.int16), format="s16", layout="stereo")
            frame.sample_rate = 8000
            output.mux([*track.encode(frame), *track.encode(None)])
    assert "first of 2" in copy(source, tmp_path / "one.mkv")[0]
    with av.open(str(tmp_path / "one.mkv")) as container:
        assert len(container.streams.audio) == 1
