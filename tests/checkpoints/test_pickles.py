"""Pickles: tensors come out of every form that is in use, and nothing in one is ever run."""

import logging
import os
import pickle
import sys
import types
import zipfile
from pathlib import Path

import numpy
import pytest
import torch
from checkpoints.layouts import fixture, layout, scaled, write
from torch.testing import assert_close

from gen1_core.checkpoints.files import read_file
from gen1_core.checkpoints.header import read_header


class Evil:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("plain_pickle", [False, True])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, plain_pickle: bool) -> None:
    path, trap = tmp_path / "w.ckpt", tmp_path / "trap"
    if plain_pickle:
        path.write_bytes(pickle.dumps({"w": Evil(trap)}))
    else:
        torch.save({"w": Evil(trap)}, path)
    with pytest.raises(ValueError, match="never run; convert to safetensors"):
        read_file(path)
    assert not trap.exists()


def test_torchscript_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    # An archive with TorchScript's own record; making a real one warns that TorchScript is deprecated.
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("script/constants.pkl", b"\x80\x02).")
        archive.writestr("script/code/x.py", "pass")
    with pytest.raises(ValueError, match="convert to safetensors"):
        read_file(path)


@pytest.mark.parametrize("wrap", ["", "state_dict", "model"])
def test_a_pickle_of_tensors_is_read(tmp_path: Path, wrap: str, caplog: pytest.LogCaptureFixture) -> None:
    inner = {"a": torch.arange(3.0), "epoch": 4}
    torch.save({wrap: inner, "optimizer": {}} if wrap else inner, tmp_path / "w.pt")
    with caplog.at_level(logging.INFO):
        assert_close(read_file(tmp_path / "w.pt").tensors, {"a": torch.arange(3.0)})
    assert "epoch" in caplog.text


def test_a_pickle_without_tensors_is_refused(tmp_path: Path) -> None:
    torch.save([1, 2], tmp_path / "w.pt")
    with pytest.raises(ValueError, match="give the file with the weights"):
        read_file(tmp_path / "w.pt")


def test_old_pickles_without_an_archive_are_read(tmp_path: Path) -> None:
    torch.save({"a": torch.arange(3.0)}, tmp_path / "w.pt", _use_new_zipfile_serialization=False)
    assert read_header(tmp_path / "w.pt").shapes == {"a": (3,)}
    assert_close(read_file(tmp_path / "w.pt").tensors, {"a": torch.arange(3.0)})


def test_the_two_halves_of_an_ip_adapter_are_joined(tmp_path: Path) -> None:
    path = write(tmp_path / "w.bin", fixture("ip_adapter_sd15"), nest=True)
    assert read_header(path).shapes == scaled(layout("ip_adapter_sd15")).shapes


def lightning_class(trap: Path) -> type:
    """The class whose notes Lightning kept in checkpoints; this one would leave a trace if it were built or filled."""

    def leave_a_trace(self: object, state: object) -> None:
        trap.mkdir()

    names = {"__module__": "pytorch_lightning.callbacks.model_checkpoint", "__setstate__": leave_a_trace}
    return type("ModelCheckpoint", (), names)


def test_a_checkpoint_of_lightning_is_read_and_its_callback_is_not_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = lightning_class(tmp_path / "trap")
    names = found.__module__.split(".")
    for end in range(1, len(names) + 1):
        monkeypatch.setitem(sys.modules, ".".join(names[:end]), types.ModuleType(names[end - 1]))
    monkeypatch.setattr(sys.modules[found.__module__], found.__name__, found, raising=False)
    notes = found()
    notes.best = 1
    before = set(torch.serialization.get_safe_globals())
    content = {"state_dict": {"a": torch.ones(2)}, "callbacks": {found: {"best": torch.tensor(1.0)}}, "notes": notes}
    torch.save(content, tmp_path / "w.ckpt")
    assert_close(read_file(tmp_path / "w.ckpt").tensors, {"a": torch.ones(2)})
    assert not (tmp_path / "trap").exists()
    assert set(torch.serialization.get_safe_globals()) == before


def test_numbers_of_numpy_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    torch.save({"a": torch.ones(2), "loss": numpy.float64(0.5)}, tmp_path / "w.ckpt")
    assert_close(read_file(tmp_path / "w.ckpt").tensors, {"a": torch.ones(2)})


def test_a_truncated_archive_is_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "w.pt", {"a": torch.randn(999)})
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match="cut short.*convert to safetensors"):
        read_header(path)
