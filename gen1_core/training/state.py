"""Files of a run: checkpoints that are replaced whole or not at all, and a log of one JSON line per record."""

import json
import os
import pickle
import zipfile
from pathlib import Path
from typing import Any

import torch


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a checkpoint beside its place, then put it there in one move: a crash leaves the old one whole.

    Raises ValueError where the disk is full or the folder cannot be written to.
    """
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            torch.save(state, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except (OSError, RuntimeError) as error:  # PyTorch turns a failed write into a RuntimeError
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} could not be written ({reason}), and the checkpoint that was there is unchanged; "
            "free some space or make the folder writable, then give the same command again."
        ) from error
    finally:
        part.unlink(missing_ok=True)


def load_state(path: Path) -> dict[str, Any]:
    """Read a checkpoint of ours (tensors, numbers and strings only; no code).

    Raises ValueError where it is damaged: PyTorch itself does not look at the checksums that it wrote.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            damaged = archive.testzip()
        if damaged is not None:
            raise zipfile.BadZipFile(f"the checksum of {damaged} is wrong")
        return torch.load(path, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, zipfile.BadZipFile, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"{path} is damaged ({reason}), so the run cannot go on from it; put a copy back, or remove the folder "
            f"{path.parent} and train anew, from the last weights exported if you like (--from)."
        ) from error


def append_record(path: Path, record: dict[str, Any]) -> None:
    """Add one line to the log."""
    with path.open("a", encoding="utf-8", newline="\n") as file:
        file.write(json.dumps(record) + "\n")


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole lines of the log; a last line cut off by a crash is left out."""
    if not path.exists():
        return []
    records = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            break
    return records


def rewind_records(path: Path, step: int) -> None:
    """Drop the lines after ``step``: what was logged between the last checkpoint and a crash comes again."""
    records = [record for record in read_records(path) if record["step"] <= step]
    part = path.with_name(path.name + ".part")
    try:
        part.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8", newline="\n")
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
