"""Training as it is started in the field: killed, on a full disk, on two processes that really run (gloo)."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import small_run
import torch

from gen1_core.training.engine import Engine
from gen1_core.training.state import load_state, read_records

SCRIPT = Path(small_run.__file__)
ROOT = Path(__file__).resolve().parents[2]
LAUNCH = {
    "one": [sys.executable],
    "two": [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"],
}


def start(kind: str, folder: Path, *options: str) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return subprocess.Popen(
        [*LAUNCH[kind], str(SCRIPT), str(folder), *options],
        cwd=folder.parent, env=environment, text=True, encoding="utf-8",
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip


def ended(process: subprocess.Popen[str]) -> str:
    """What a run said until its end; one that hangs is killed with all its processes."""
    try:
        return process.communicate(timeout=900)[0]
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)


def finish(kind: str, folder: Path, *options: str) -> None:
    process = start(kind, folder, *options)
    said = ended(process)
    assert process.returncode == 0, said


def kill_at(folder: Path, step: int) -> None:
    """Starts a run and kills it once the checkpoint has reached a step."""
    process = start("one", folder, "--pause", "0.2")
    deadline = time.monotonic() + 300
    while time.monotonic() < deadline and process.poll() is None:
        if (folder / "checkpoint.pt").exists() and load_state(folder / "checkpoint.pt")["step"] >= step:
            break
        time.sleep(0.05)
    assert process.poll() is None, process.communicate()[0]
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()


def losses(folder: Path) -> list[dict[str, float]]:
    return [record for record in read_records(folder / "log.jsonl") if "rate" in record]


def same(a: object, b: object, path: str = "") -> None:
    """Equal to the last bit, but for the time that was spent."""
    if isinstance(a, dict) and isinstance(b, dict):
        assert a.keys() == b.keys(), path
        for key in a.keys() - {"seconds"}:
            same(a[key], b[key], f"{path}/{key}")
    elif isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        assert torch.equal(a, b), f"{path} differs by {float((a.float() - b.float()).abs().max())}"
    else:
        assert a == b, path


def largest_difference(a: Path, b: Path) -> float:
    pairs = zip(losses(a), losses(b), strict=True)
    return max(abs(one[key] - two[key]) for one, two in pairs for key in ("loss", "gradient_norm"))


def test_accumulated_gradients_are_those_of_the_whole_batch(tmp_path: Path) -> None:
    small_run.run(tmp_path / "whole", steps=4, engine=Engine())
    small_run.run(tmp_path / "parts", steps=4, engine=Engine(accumulate=4, checkpointing=True))
    assert 0 < largest_difference(tmp_path / "whole", tmp_path / "parts") < 1e-5
    with pytest.raises(ValueError, match="change the batch or the number of shares"):
        small_run.run(tmp_path / "uneven", steps=4, engine=Engine(accumulate=3))


def test_layout_and_checkpointing_change_nothing_but_rounding(tmp_path: Path) -> None:
    small_run.run(tmp_path / "plain", steps=4, engine=Engine())
    small_run.run(tmp_path / "twice", steps=4, engine=Engine(checkpointing=True))
    small_run.run(tmp_path / "last", steps=4, engine=Engine(channels_last=True))
    assert largest_difference(tmp_path / "plain", tmp_path / "twice") < 1e-6
    assert largest_difference(tmp_path / "plain", tmp_path / "last") < 1e-5
    small_run.run(tmp_path / "half", steps=4, engine=Engine(precision="bf16"))
    assert 1e-5 < largest_difference(tmp_path / "plain", tmp_path / "half") < 0.1
    state = load_state(tmp_path / "half" / "checkpoint.pt")
    assert {value.dtype for value in state["model"].values()} == {torch.float32}


@pytest.mark.slow
def test_a_run_that_was_killed_again_and_again_equals_an_unbroken_one(tmp_path: Path) -> None:
    with small_run.one_thread():
        small_run.run(tmp_path / "whole", steps=8, engine=Engine())
    for step in (1, 5):
        kill_at(tmp_path / "killed", step)
    finish("one", tmp_path / "killed")
    whole, killed = (load_state(tmp_path / name / "checkpoint.pt") for name in ("whole", "killed"))
    assert killed["step"] == 8
    same(whole, killed)
    same(*(torch.load(tmp_path / name / "stage-temporal.pt") for name in ("whole", "killed")))
    for a, b in zip(losses(tmp_path / "whole"), losses(tmp_path / "killed"), strict=True):
        assert {**a, "seconds": 0} == {**b, "seconds": 0}


@pytest.mark.slow
def test_two_processes_learn_what_one_does(tmp_path: Path, record_property) -> None:
    small_run.run(tmp_path / "one", steps=8, engine=Engine())
    finish("two", tmp_path / "two")
    difference = largest_difference(tmp_path / "one", tmp_path / "two")
    record_property("two_process_difference", difference)
    assert 0 < difference < 1e-5  # 0 would mean that nothing was shared
    one, two = (load_state(tmp_path / name / "checkpoint.pt") for name in ("one", "two"))
    for name, value in one["averaged"].items():
        # AdamW divides a gradient by its own size, so one near zero shows its rounding at the learning rate's scale.
        torch.testing.assert_close(two["averaged"][name], value, rtol=0, atol=3e-4)


@pytest.mark.slow
def test_sharded_weights_train_save_and_resume(tmp_path: Path, record_property) -> None:
    small_run.run(tmp_path / "one", steps=8, engine=Engine())
    finish("two", tmp_path / "whole", "--fsdp", "--aside", "5")
    (tmp_path / "resumed").mkdir()
    shutil.copyfile(tmp_path / "whole" / "aside.pt", tmp_path / "resumed" / "checkpoint.pt")
    finish("two", tmp_path / "resumed", "--fsdp")
    assert [record["step"] for record in losses(tmp_path / "resumed")] == [6, 7, 8]
    same(*(load_state(tmp_path / name / "checkpoint.pt") for name in ("whole", "resumed")))
    difference = largest_difference(tmp_path / "one", tmp_path / "whole")
    record_property("fsdp_difference", difference)
    assert 0 < difference < 1e-5
    # The checkpoint is whole: one process reads what two have written.
    state = load_state(tmp_path / "resumed" / "checkpoint.pt")
    assert state["model"].keys() == load_state(tmp_path / "one" / "checkpoint.pt")["model"].keys()
    assert small_run.run(tmp_path / "resumed", steps=12, engine=Engine()).step == 12


def test_sharding_needs_several_processes(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="accelerate launch --num_processes N"):
        small_run.run(tmp_path, steps=4, engine=Engine(shard=True))


@pytest.mark.slow
def test_a_full_disk_stops_the_run_and_leaves_the_checkpoint(tmp_path: Path) -> None:
    small_run.run(tmp_path / "run", steps=4, engine=Engine())
    before = (tmp_path / "run" / "checkpoint.pt").read_bytes()
    process = start("one", tmp_path / "run", "--steps", "8", "--disk", str(len(before) // 2))
    said = ended(process)
    assert process.returncode != 0 and "free some space or make the folder writable" in said, said
    assert (tmp_path / "run" / "checkpoint.pt").read_bytes() == before
    assert not list((tmp_path / "run").glob("*.part"))
    assert small_run.run(tmp_path / "run", steps=8, engine=Engine()).finished
