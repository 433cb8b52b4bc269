"""Jobs over processes: each worker builds what it needs once and then takes one job after another.

Setups, jobs and results are plain data (what JSON can hold), and ``make`` is a function of a module, so that a spawned
process, which shares nothing with its parent, can be told everything.
"""

import multiprocessing
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any

import torch

Plain = dict[str, Any]
Work = Callable[[Plain], Plain]
Make = Callable[[Plain], Work]


def run_processes(make: Make, setups: Sequence[Plain], jobs: Sequence[Plain]) -> Iterator[tuple[int, Plain]]:
    """Numbers of jobs with their results, in the order in which they are done; one process for each of ``setups``.

    A single setup works in this process. Every worker computes with as many threads as this process, so that results
    do not depend on how many workers there are. Raises ValueError for what a job refuses, and where a worker dies.
    """
    setups = setups[: max(1, len(jobs))]
    if len(setups) == 1:
        work = make(setups[0]) if jobs else None
        for number, job in enumerate(jobs):
            if work is not None:
                yield number, work(job)
        return
    # Spawned, never forked: a fork of a process with threads (PyTorch, ffmpeg) may wait for a lock that nobody holds.
    context = multiprocessing.get_context("spawn")
    workers: dict[Connection, tuple[BaseProcess, int]] = {}
    waiting = list(range(len(jobs)))[::-1]
    try:
        for setup in setups:
            ours, theirs = context.Pipe()
            arguments = (make, setup, torch.get_num_threads(), theirs)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            theirs.close()
            workers[ours] = (process, waiting.pop())
            ours.send(jobs[workers[ours][1]])
        while workers:
            for pipe in [pipe for pipe in wait(list(workers)) if isinstance(pipe, Connection)]:
                process, number = workers[pipe]
                yield number, _answer(pipe, process, number)
                if waiting:
                    workers[pipe] = (process, waiting.pop())
                    pipe.send(jobs[workers[pipe][1]])
                else:
                    del workers[pipe]
                    pipe.close()
                    process.join()
    finally:
        for process, _ in workers.values():
            process.terminate()
            process.join()


def attempt(work: Work, job: Plain) -> tuple[str, Any]:
    """What became of a job as plain data: ("done", result), ("refused", reason) or ("failed", traceback)."""
    try:
        return "done", work(job)
    except (ValueError, OSError) as error:
        return "refused", str(error)
    except Exception:
        return "failed", traceback.format_exc()


def result_of(outcome: tuple[str, Any], number: int) -> Plain:
    """The result of ``attempt``.

    Raises ValueError with the reason where the job was refused, RuntimeError with the worker's traceback where it
    failed.
    """
    state, value = outcome
    if state == "done":
        return value
    if state == "refused":
        raise ValueError(value)
    raise RuntimeError(f"job {number} failed in its worker:\n{value}")


def _answer(pipe: Connection, process: BaseProcess, number: int) -> Plain:
    try:
        outcome = pipe.recv()
    except EOFError as error:
        process.join()
        raise ValueError(
            f"the worker of job {number} ended with exit code {process.exitcode} before it answered, so its result is "
            "lost (out of memory is the usual reason); give the same command again, with fewer workers."
        ) from error
    return result_of(outcome, number)


def _serve(make: Make, setup: Plain, threads: int, pipe: Connection) -> None:
    """A worker's life: build once, answer job after job, end when the other side is gone."""
    torch.set_num_threads(threads)
    made: list[Work] = []

    def work(job: Plain) -> Plain:
        if not made:
            made.append(make(setup))
        return made[0](job)

    try:
        while True:
            pipe.send(attempt(work, pipe.recv()))
    except (EOFError, OSError, KeyboardInterrupt):
        return
