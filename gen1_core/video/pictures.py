"""Animated GIF, WebP and PNG, still pictures and folders of pictures: Pillow in, `Source` out."""

import re
from collections.abc import Generator, Sequence
from fractions import Fraction
from itertools import accumulate
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from .decode import over_black
from .source import Pixels, Source, damaged, not_a_video
from .timing import steady

SIGNATURES = (b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*")
FOLDER_SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".webp", ".bmp", ".tif", ".tiff"))
FOLDER_RATE = Fraction(24)
UNTIMED_MS = 100
"""How long browsers show an animation's frame whose stated duration is 0 (or 10 ms, which encoders write for
0).
"""

TRANSPARENT = "The source is transparent in places; it was laid over black."


def is_picture(path: Path) -> bool:
    """By the first bytes of the file, never by its name."""
    with path.open("rb") as file:
        head = file.read(12)
    return head.startswith(SIGNATURES) or (head[:4] == b"RIFF" and head[8:] == b"WEBP")


def open_picture(path: Path) -> Source:
    """An animation with its frames' own durations, or a still picture as a clip of one frame."""
    try:
        durations, transparent = _look_through(path)
    except (UnidentifiedImageError, OSError, EOFError, SyntaxError) as error:
        raise damaged(path, f"Pillow cannot read it ({error})") from error
    with Image.open(path) as image:
        width, height = ImageOps.exif_transpose(image).size
    times = tuple(Fraction(ms, 1000) for ms in accumulate(durations[:-1], initial=0))
    rate = Fraction(1000, durations[0])
    if len(times) > 1:
        times, rate = steady(times, Fraction(0), [rate])

    def read_frames(numbers: Sequence[int], width: int, height: int) -> Generator[Pixels, None, None]:
        with Image.open(path) as image:
            for number in numbers:
                image.seek(number)
                yield _pixels(image, width, height)

    return Source(
        path=path,
        width=width,
        height=height,
        time_stamps=times,
        frame_rate=rate,
        read_frames=read_frames,
        notes=(TRANSPARENT,) if transparent else (),
    )


def open_folder(path: Path, *, rate: Fraction) -> Source:
    """All pictures of a folder in the order of their names (2 before 10) as a clip of ``rate`` frames a
    second.
    """
    files = sorted((f for f in path.iterdir() if f.suffix.lower() in FOLDER_SUFFIXES), key=_natural)
    if not files:
        raise not_a_video(path, "the folder holds zero frames: no .png, .jpg, .webp, .bmp or .tif files")
    sizes = {file: _upright_size(file) for file in files}
    width, height = sizes[files[0]]
    other = next((file for file in files if sizes[file] != (width, height)), None)
    if other is not None:
        raise ValueError(
            f"{other} is {sizes[other][0]}x{sizes[other][1]} and {files[0].name} is {width}x{height}, but "
            f"the frames of a clip share one size; resize the pictures, or move the others elsewhere."
        )

    def read_frames(numbers: Sequence[int], width: int, height: int) -> Generator[Pixels, None, None]:
        for number in numbers:
            with Image.open(files[number]) as image:
                yield _pixels(image, width, height)

    with Image.open(files[0]) as image:
        transparent = _is_transparent(image)
    return Source(
        path=path,
        width=width,
        height=height,
        time_stamps=tuple(k / rate for k in range(len(files))),
        frame_rate=rate,
        read_frames=read_frames,
        notes=(TRANSPARENT,) if transparent else (),
    )


def _look_through(path: Path) -> tuple[list[int], bool]:
    """Every frame's duration in ms, and whether any pixel is transparent."""
    durations, transparent = [], False
    with Image.open(path) as image:
        for number in range(getattr(image, "n_frames", 1)):
            image.seek(number)
            image.load()
            stated = round(image.info.get("duration", 0))
            durations.append(stated if stated > 10 else UNTIMED_MS)
            transparent = transparent or _is_transparent(image)
    return durations, transparent


def _upright_size(file: Path) -> tuple[int, int]:
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image).size
    except (UnidentifiedImageError, OSError, SyntaxError) as error:
        raise damaged(file, f"Pillow cannot read it ({error})") from error


def _is_transparent(image: Image.Image) -> bool:
    if not image.has_transparency_data:
        return False
    return bool((np.asarray(image.convert("RGBA"))[..., 3] < 255).any())


def _pixels(image: Image.Image, width: int, height: int) -> Pixels:
    upright = ImageOps.exif_transpose(image)
    if upright.mode.startswith("I;16"):  # Pillow would clip 16 bits, not scale them
        upright = Image.fromarray((np.asarray(upright) >> 8).astype(np.uint8))
    flat = over_black(np.asarray(upright.convert("RGBA"))) if upright.has_transparency_data else None
    rgb = upright.convert("RGB") if flat is None else Image.fromarray(flat)
    if rgb.size != (width, height):
        rgb = rgb.resize((width, height), Image.Resampling.LANCZOS)
    return np.array(rgb)


def _natural(file: Path) -> list[tuple[int, int, str]]:
    """Sort key in which digits count as numbers."""
    return [(0, int(part), "") if part.isdigit() else (1, 0, part) for part in re.split(r"(\d+)", file.name.lower())]
