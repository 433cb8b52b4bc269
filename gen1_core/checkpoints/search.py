"""Finds the files that a composition needs in folders that people already have: by path, by name, or by content."""

import difflib
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from .catalogue.row import LABELS, Kind
from .formats import Format, identify_path

logger = logging.getLogger(__name__)

SUFFIXES = (".safetensors", ".ckpt", ".pt", ".pth", ".bin", ".sft", ".th")

SERVES: dict[Kind, tuple[Kind, ...]] = {
    "controlnet": ("controlnet", "t2i_adapter"),
    "vae": ("vae", "taesd"),
    "clip_vision": ("clip_vision", "clip"),
    "clip_text": ("clip_text", "clip"),
    "checkpoint": ("checkpoint", "unet"),
}
"""Which kinds of file hold what is wanted, where it is not only its own kind; the first that is there is taken."""

SHOWN = 12
"""Names in a message; folders of thousands of files are usual."""


@dataclass(frozen=True, kw_only=True)
class Found:
    """A file and what it is."""

    path: Path
    format: Format


def anything(_: Format) -> bool:
    """Accepts every format of the right kind."""
    return True


def find(
    kind: Kind,
    *,
    name: str,
    folders: Sequence[Path],
    option: str,
    accept: Callable[[Format], bool] = anything,
) -> Found:
    """The file of one kind that is meant: ``name`` as a path, else by name below the folders, else by content.

    An empty ``name`` asks for the only file of its kind, among those that can be used and that ``accept`` takes.
    ``option`` is what chooses it on the command line, for messages. Names may leave out the suffix, or hold the end of
    the path ("lcm/pytorch_lora_weights.safetensors"); upper and lower case are the same.

    Raises ValueError where no file or more than one is meant, or a named one is of another kind.
    """
    kinds = SERVES.get(kind, (kind,))
    if name and Path(name).exists():
        return _checked(Path(name), kinds)
    if name:
        return _by_name(name, kinds, folders, option=option)
    return _by_content(kinds, folders, option=option, accept=accept)


def files_below(folders: Sequence[Path]) -> Iterator[Path]:
    """Every file below the folders that may hold weights, and every folder that is one model, in a fixed order.

    Links to folders are followed, as they are common in model folders; none is entered twice.
    """
    entered: set[str] = set()
    for top in folders:
        for here, inside, files in os.walk(top, followlinks=True):
            folder = Path(here)
            if os.path.realpath(here) in entered or "model_index.json" in files:
                inside.clear()
            if os.path.realpath(here) in entered:
                continue
            entered.add(os.path.realpath(here))
            if "model_index.json" in files:
                yield folder
            inside[:] = sorted(one for one in inside if not one.startswith("."))
            yield from (folder / file for file in sorted(files) if Path(file).suffix.lower() in SUFFIXES)


def scan(folders: Sequence[Path]) -> list[Found]:
    """What every file below the folders is; files that cannot be read are left out, with a note in the log."""
    found = []
    for path in files_below(folders):
        try:
            found.append(Found(path=path, format=identify_path(path)))
        except ValueError as error:
            logger.info("skipped %s", error)
    return found


def _checked(path: Path, kinds: Sequence[Kind]) -> Found:
    return Found(path=path, format=identify_path(path).require(path, *kinds))


def _by_name(name: str, kinds: Sequence[Kind], folders: Sequence[Path], *, option: str) -> Found:
    files = list(files_below(folders))
    same = [path for path in files if _named(path, name)]
    if len(same) > 1:
        same = [path for path in same if _kind_of(path) in kinds] or same
    if len(same) > 1:
        raise ValueError(
            f"{option} {name} is the name of {len(same)} files ({_listed(same)}), and one is needed; "
            f"give {option} the path of one, or as much of its end as tells them apart."
        )
    if same:
        return _checked(same[0], kinds)
    # Without suffixes, which all share and people leave out.
    stem = Path(name).stem.lower()
    near = difflib.get_close_matches(stem, sorted({path.stem.lower() for path in files}), n=3, cutoff=0.5)
    hint = f" Near it: {_listed([path for path in files if path.stem.lower() in near])}." if near else ""
    raise ValueError(
        f"{option} {name} is no path, and no file below {_places(folders)} has that name "
        f"({len(files)} files there).{hint} Give {option} a path or one of the names there, or leave it out to find "
        f"{_label(kinds)} by its content."
    )


def _by_content(
    kinds: Sequence[Kind], folders: Sequence[Path], *, option: str, accept: Callable[[Format], bool]
) -> Found:
    everything = scan(folders)
    there = [one for one in everything if one.format.kind in kinds]
    usable = [one for one in there if one.format.supported and accept(one.format)]
    for kind in kinds:
        fitting = [one for one in usable if one.format.kind == kind]
        if len(fitting) == 1:
            logger.info("%s: %s (%s)", option, fitting[0].path, fitting[0].format.name)
            return fitting[0]
        if fitting:
            raise ValueError(
                f"{_places(folders)} holds {len(fitting)} files that could serve as {_label(kinds)} "
                f"({_listed([one.path for one in fitting])}), and one is needed; name it with {option}."
            )
    others = "; ".join(f"{one.path.name} is {one.format.name}" for one in (there or everything)[:SHOWN])
    what = "none that fits" if there else "none"
    raise ValueError(
        f"{_label(kinds)} is needed, and of {len(everything)} files below {_places(folders)} there is {what}"
        f"{f' ({others})' if others else ''}; put the file there, or give its path with {option}."
    )


def _named(path: Path, name: str) -> bool:
    wanted = Path(name.lower()).parts
    parts = tuple(part.lower() for part in path.parts)
    stem = (*parts[:-1], path.stem.lower())
    return wanted in (parts[-len(wanted) :], stem[-len(wanted) :])


def _kind_of(path: Path) -> Kind:
    try:
        return identify_path(path).kind
    except ValueError:
        return "unknown"


def _label(kinds: Sequence[Kind]) -> str:
    return LABELS[kinds[0]]


def _places(folders: Sequence[Path]) -> str:
    return ", ".join(str(folder) for folder in folders) or "no folder (none was given)"


def _listed(paths: Sequence[Path]) -> str:
    more = f", and {len(paths) - SHOWN} more" if len(paths) > SHOWN else ""
    return ", ".join(str(path) for path in paths[:SHOWN]) + more
