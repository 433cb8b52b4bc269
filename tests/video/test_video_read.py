import os
from fractions import Fraction
from pathlib import Path
from struct import pack

import numpy as np
import pytest
import torch

from gen1_core.video.read import Video, open_video

RED, GREEN, BLUE, WHITE = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255)
MATRICES = {"bt709": (0.2126, 0.0722), "bt601": (0.299, 0.114)}


def corners(video: Video) -> list[tuple[int, ...]]:
    """The middle of each quarter of the first frame."""
    frame = next(iter(video))[0]
    height, width = frame.shape[-2:]
    return [tuple(frame[:, int(height * y), int(width * x)].tolist()) for y in (0.25, 0.75) for x in (0.25, 0.75)]


def near(got: list[tuple[int, ...]], want: list[tuple[int, ...]], tolerance: int = 3) -> bool:
    return np.abs(np.array(got) - np.array(want)).max() <= tolerance


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [
        ("libx264", "yuv420p10le", ".mp4"),
        ("libx265", "yuv420p10le", ".mp4"),
        ("prores_ks", "yuv422p10le", ".mov"),
        ("ffv1", "yuv444p", ".mkv"),
        ("mpeg4", "yuv420p", ".avi"),
        ("libx264", "yuv420p", ".ts"),
        ("libvpx-vp9", "yuv420p", ".webm"),
    ],
)
def test_codecs_depths_and_containers(codec, pix_fmt, suffix, tmp_path: Path, encode, quarters) -> None:
    options = {"x265-params": "log-level=none"} if codec == "libx265" else {}
    path = encode(tmp_path / f"clip{suffix}", [quarters] * 5, codec=codec, pix_fmt=pix_fmt, options=options)
    video = open_video(path, chunk=2)
    assert [len(chunk) for chunk in video] == [2, 2, 1]
    assert (video.num_frames, video.frame_rate, video.width, video.height) == (5, 25, 96, 64)
    assert video.time_stamps == tuple(Fraction(k, 25) for k in range(5))
    assert not video.has_audio and not video.notes
    assert near(corners(video), [RED, GREEN, BLUE, WHITE])


@pytest.mark.parametrize(
    ("a", "b", "c", "d", "upright"),
    [
        (0, 1, -1, 0, [BLUE, RED, WHITE, GREEN]),  # a phone held upright: a quarter turn clockwise
        (0, -1, 1, 0, [GREEN, WHITE, RED, BLUE]),
        (-1, 0, 0, -1, [WHITE, BLUE, GREEN, RED]),
        (-1, 0, 0, 1, [GREEN, RED, WHITE, BLUE]),  # a front camera's mirror
    ],
)
def test_rotation_is_applied(a, b, c, d, upright, tmp_path: Path, encode, quarters) -> None:
    path = encode(tmp_path / "phone.mp4", [quarters] * 2)
    content = path.read_bytes()
    identity = pack(">9i", 65536, 0, 0, 0, 65536, 0, 0, 0, 1 << 30)
    at = content.index(identity, content.index(b"tkhd"))
    turned = pack(">9i", a * 65536, b * 65536, 0, c * 65536, d * 65536, 0, 0, 0, 1 << 30)
    path.write_bytes(content[:at] + turned + content[at + 36 :])
    video = open_video(path)
    assert (video.width, video.height) == ((64, 96) if b else (96, 64))
    assert next(iter(video)).shape == (2, 3, video.height, video.width)
    assert near(corners(video), upright)
    small = open_video(path, max_size=48)
    assert next(iter(small)).shape == (2, 3, *((48, 32) if b else (32, 48)))


@pytest.mark.parametrize(
    ("codec", "pix_fmt", "suffix"),
    [("libvpx-vp9", "yuva420p", ".webm"), ("png", "rgba", ".mov"), ("prores_ks", "yuva444p10le", ".mov")],
)
def test_alpha_is_laid_over_black_and_said(codec, pix_fmt, suffix, tmp_path: Path, encode, quarters) -> None:
    alpha = np.full((64, 96, 1), 255, np.uint8)
    alpha[:32, :48], alpha[32:, 48:] = 0, 128
    frames = [np.concatenate([quarters, alpha], axis=-1)] * 2
    video = open_video(encode(tmp_path / f"a{suffix}", frames, codec=codec, pix_fmt=pix_fmt, array_format="rgba"))
    assert near(corners(video), [(0, 0, 0), GREEN, BLUE, (128, 128, 128)])
    assert "over black" in video.notes[0]


@pytest.mark.parametrize(
    ("matrix", "full", "size", "tags"),
    [
        ("bt709", False, (96, 64), {"colorspace": 1, "color_range": 1}),
        ("bt709", True, (96, 64), {"colorspace": 1, "color_range": 2}),
        ("bt601", False, (96, 64), {"colorspace": 6, "color_range": 1}),
        ("bt601", False, (96, 64), {}),
        ("bt709", False, (1280, 720), {}),
    ],
)
def test_each_source_is_read_by_its_own_matrix_and_range(matrix, full, size, tags, tmp_path: Path, encode) -> None:
    width, height = size
    luma, blue, red = 120, 90, 180
    planes = np.empty((3, height, width), np.uint8)
    planes[0], planes[1], planes[2] = luma, blue, red
    path = encode(
        tmp_path / "tagged.mkv",
        [planes],
        pix_fmt="yuv444p",
        array_format="yuv444p",
        options={"qp": "0", "preset": "ultrafast"},
        **tags,
    )
    kr, kb = MATRICES[matrix]
    y = luma / 255 if full else (luma - 16) / 219
    b, r = ((v - 128) / (255 if full else 224) for v in (blue, red))
    rgb_r, rgb_b = y + 2 * (1 - kr) * r, y + 2 * (1 - kb) * b
    want = [rgb_r, (y - kr * rgb_r - kb * rgb_b) / (1 - kr - kb), rgb_b]
    got = next(iter(open_video(path)))[0, :, height // 2, width // 2]
    torch.testing.assert_close(got.float() / 255, torch.tensor(want), atol=1.6 / 255, rtol=0)


def test_hdr_is_said(tmp_path: Path, encode, quarters) -> None:
    path = encode(
        tmp_path / "hdr.mp4", [quarters], pix_fmt="yuv420p10le", color_trc=16, color_primaries=9, colorspace=9
    )
    assert "HDR (PQ)" in open_video(path).notes[0]


def test_varying_rate_keeps_every_time_stamp(tmp_path: Path, encode, quarters) -> None:
    stamps = [0, 40, 90, 100, 300, 333]
    for suffix in (".mp4", ".mkv", ".mov"):
        video = open_video(encode(tmp_path / f"vfr{suffix}", [quarters] * 6, pts=stamps))
        assert video.time_stamps == tuple(Fraction(ms, 1000) for ms in stamps)
        assert abs(video.frame_rate - Fraction(5000, 333)) < Fraction(1, 1000)


@pytest.mark.parametrize("suffix", [".mp4", ".mkv", ".avi"])
def test_ntsc_rate_is_exact(suffix: str, tmp_path: Path, encode, quarters) -> None:
    rate = Fraction(30000, 1001)
    video = open_video(encode(tmp_path / f"ntsc{suffix}", [quarters] * 40, rate=rate))
    assert video.frame_rate == rate
    assert video.time_stamps[39] == 39 / rate


def test_parts_equal_the_whole(tmp_path: Path, encode, moving) -> None:
    frames = list(moving(40, 48, 64).permute(0, 2, 3, 1).numpy())
    path = encode(tmp_path / "long.mp4", frames, options={"g": "12"})
    whole = torch.cat(list(open_video(path)))
    part = torch.cat(list(open_video(path, start_s=1.0, end_s=1.4, stride=2, chunk=3)))
    torch.testing.assert_close(part, whole[25:35:2], rtol=0, atol=0)
    assert not torch.equal(part, whole[24:34:2])
    slower = torch.cat(list(open_video(path, fps=Fraction(50))))
    torch.testing.assert_close(slower, whole.repeat_interleave(2, dim=0), rtol=0, atol=0)


def test_max_size(tmp_path: Path, encode, quarters) -> None:
    video = open_video(encode(tmp_path / "big.mp4", [quarters]), max_size=48)
    assert (video.width, video.height) == (48, 32)
    assert near(corners(video), [RED, GREEN, BLUE, WHITE])


def test_reads_again_and_lets_go_of_the_file(tmp_path: Path, encode, moving) -> None:
    path = encode(tmp_path / "twice.mp4", list(moving(20, 48, 64).permute(0, 2, 3, 1).numpy()))
    video = open_video(path, chunk=4)
    first = next(iter(video))
    for chunk in video:
        torch.testing.assert_close(chunk, first, rtol=0, atol=0)
        break
    torch.testing.assert_close(torch.cat(list(video)), torch.cat(list(video)), rtol=0, atol=0)
    descriptors = Path("/proc/self/fd")
    if not descriptors.is_dir():
        pytest.skip("this system does not list open files")
    still = [os.readlink(entry) for entry in descriptors.iterdir() if entry.is_symlink()]
    assert str(path) not in still


def test_a_clip_cut_before_its_first_key_frame_is_counted_by_decoding(tmp_path: Path, encode, moving) -> None:
    import av

    frames = list(moving(30, 48, 64).permute(0, 2, 3, 1).numpy())
    whole = encode(tmp_path / "whole.mp4", frames, options={"g": "10", "bf": "0"})
    cut = tmp_path / "cut.mkv"
    with av.open(str(whole)) as source, av.open(str(cut), "w") as output:
        stream = output.add_stream_from_template(source.streams.video[0])
        for k, packet in enumerate(source.demux(video=0)):
            if packet.size and k >= 5:
                packet.stream = stream
                output.mux(packet)
    video = open_video(cut)
    assert sum(len(chunk) for chunk in video) == video.num_frames


@pytest.mark.parametrize("name", ["Häschen 兔 🐇.mp4", "50% #1 'a' [b].mp4", "file:x.mp4"])
def test_names(name: str, tmp_path: Path, encode, quarters) -> None:
    if os.name == "nt" and ":" in name:
        pytest.skip("no colons in names on Windows")
    plain = encode(tmp_path / "plain.mp4", [quarters])
    assert open_video(plain.rename(tmp_path / name)).num_frames == 1
