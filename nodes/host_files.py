"""Part of the adapter: where ComfyUI keeps inputs, outputs, temporary files and weights."""

import hashlib
import json
import os
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import folder_paths
from comfy.cli_args import args
from comfy_api.latest import io, ui

from ..gen1_core.checkpoints.catalogue.row import Kind
from ..gen1_core.checkpoints.search import SHOWN, SUFFIXES, find
from ..gen1_core.loading import PARTS

NONE = "none"
BY_CONTENT = "find by content"
EMBEDDED = "tiny (embedded)"

MOTION_LORA_FOLDER = "animatediff_motion_lora"

SHARED_FOLDERS = ("animatediff_models", MOTION_LORA_FOLDER, "ipadapter", "depthanything")
"""Folders under models/ that other packs made usual and the core does not know."""

GEN1_FOLDER = "gen1"


@dataclass(frozen=True, kw_only=True)
class OutputFile:
    """Where a node writes, and how ComfyUI's page finds it (``io.NodeOutput(..., ui=file.ui)``)."""

    path: Path
    ui: ui.PreviewVideo


def temp_path(suffix: str) -> Path:
    """A new name in ComfyUI's temp folder, which it empties when it starts and ends."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(parents=True, exist_ok=True)
    return folder / f"gen1_{secrets.token_hex(6)}{suffix}"


def output_file(prefix: str, *, suffix: str = ".mp4", width: int, height: int) -> OutputFile:
    """The next free name of this prefix in ComfyUI's output folder; ``%width%``, ``%year%`` and the like are filled in.

    Raises ValueError for a prefix that leads out of it.
    """
    output = Path(folder_paths.get_output_directory())
    inside, target = os.path.abspath(output), os.path.abspath(output / os.path.dirname(prefix))
    if os.path.splitdrive(inside)[0] != os.path.splitdrive(target)[0] or os.path.commonpath((inside, target)) != inside:
        raise ValueError(
            f"filename_prefix={prefix} leads out of ComfyUI's output folder {output}, where nothing may be written; "
            "give a name, or a folder below it and a name."
        )
    try:
        folder, name, counter, subfolder, _ = folder_paths.get_save_image_path(prefix, str(output), width, height)
        path = Path(folder) / f"{name}_{counter:05}_{suffix}"
        path.exists()  # raises for a name that is too long
    except OSError as error:
        raise ValueError(
            f"filename_prefix={prefix} cannot be a file below {output}: {error.strerror}. Nothing was written; give "
            "another name or folder, or make that folder one that may be written to."
        ) from error
    saved = ui.SavedResult(path.name, subfolder, io.FolderType.output)
    return OutputFile(path=path, ui=ui.PreviewVideo([saved]))


def metadata(node: type[io.ComfyNode]) -> dict[str, str]:
    """Prompt and workflow to be written into a file; empty where the user switched that off.

    The node's schema needs ``hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo]``.
    """
    if args.disable_metadata or node.hidden is None:
        return {}
    found = {name: json.dumps(value) for name, value in (node.hidden.extra_pnginfo or {}).items()}
    if node.hidden.prompt is not None:
        found["prompt"] = json.dumps(node.hidden.prompt)
    return found


def input_videos() -> list[str]:
    """Names of the videos, animations and pictures in ComfyUI's input folder."""
    folder = Path(folder_paths.get_input_directory())
    files = sorted(file.name for file in folder.iterdir() if file.is_file()) if folder.is_dir() else []
    return folder_paths.filter_files_content_types(files, ["video"]) + [
        file for file in files if Path(file).suffix.lower() in (".gif", ".webp", ".apng")
    ]


def input_path(name: str) -> Path:
    """The file of a name, which may end in ``[input]``, ``[output]`` or ``[temp]``.

    Raises ValueError where it is gone.
    """
    path = Path(folder_paths.get_annotated_filepath(name))
    if not path.exists():
        raise ValueError(
            f"{name} is not in {path.parent}, so it cannot be loaded; put it there (or drop it on the node) and press "
            "R to refresh the list."
        )
    return path


def file_state(path: Path) -> str:
    """What changes when a file or a model folder does, for ``fingerprint_inputs``."""
    files = sorted(path.iterdir()) if path.is_dir() else [path] if path.exists() else []
    state = "; ".join(f"{file} {file.stat().st_mtime_ns} {file.stat().st_size}" for file in files)
    return hashlib.sha256(state.encode()).hexdigest()[:16]  # the core writes it into saved files, and paths are private


def register_folders() -> None:
    """Makes models/gen1 and the folders that other packs share known to ComfyUI; what is known already is kept."""
    for name in (GEN1_FOLDER, *SHARED_FOLDERS):
        here = str(Path(folder_paths.models_dir) / name)
        paths, suffixes = folder_paths.folder_names_and_paths.get(name, ([], folder_paths.supported_pt_extensions))
        if here not in paths:
            folder_paths.folder_names_and_paths[name] = ([*paths, here], suffixes)


def folders_of(folder: str) -> list[Path]:
    """Every place that ComfyUI looks for such files in, extra_model_paths.yaml included."""
    known = folder in folder_paths.folder_names_and_paths
    return [Path(path) for path in folder_paths.get_folder_paths(folder)] if known else []


def model_files(folder: str) -> list[str]:
    """Names in a folder of ComfyUI: checkpoints, animatediff_models, controlnet, ipadapter, clip_vision, vae, loras."""
    if folder not in folder_paths.folder_names_and_paths:
        return []
    return [name for name in folder_paths.get_filename_list(folder) if Path(name).suffix.lower() in SUFFIXES]


def model_folders() -> list[str]:
    """Names of the folders under models/gen1 that hold a model of five files."""
    found = {}
    for top in folders_of(GEN1_FOLDER):
        for file in sorted(top.glob(f"**/{PARTS[0]}.safetensors")):
            name = file.parent.relative_to(top).as_posix()
            if all((file.parent / f"{part}.safetensors").is_file() for part in PARTS):
                found.setdefault(name, file.parent)
    return list(found)


def gen1_folder(name: str) -> str | Path:
    """What ``load_gen1`` takes for a name of ``[EMBEDDED, *model_folders()]``.

    Raises ValueError with the folders looked in and what is there.
    """
    if name == EMBEDDED:
        return "tiny"
    for top in folders_of(GEN1_FOLDER):
        if (top / name).is_dir():
            return top / name
    raise ValueError(
        f"{name} is no folder below {_listed(folders_of(GEN1_FOLDER))} (there: {_listed(model_folders()) or 'none'}), "
        f"and a Gen-1 model is a folder with {', '.join(PARTS)} as .safetensors; put it there and press R."
    )


def model_path(folder: str, name: str, *, kind: Kind, option: str) -> Path | None:
    """The file that a combo of ``[NONE, BY_CONTENT, *model_files(folder)]`` names; None for "none".

    ``option`` is the input's name, for messages. Raises ValueError with the file wanted, the folders searched and what
    they hold; also where "find by content" has several to choose from.
    """
    if name == NONE:
        return None
    if name == BY_CONTENT:
        return find(kind, name="", folders=folders_of(folder), option=option).path
    path = folder_paths.get_full_path(folder, name) if folder in folder_paths.folder_names_and_paths else None
    if path is None:
        there = _listed(model_files(folder)) or "nothing that holds weights"
        raise ValueError(
            f"{option} {name} is not in {_listed(folders_of(folder)) or f'models/{folder}'} (found: {there}); "
            f"put it there and press R, or choose another."
        )
    return Path(path)


def _listed(names: Sequence[str | Path]) -> str:
    more = f", and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
    return ", ".join(str(name) for name in names[:SHOWN]) + more
