"""The same jobs over machines, by Ray (extra ``distributed``): each actor is one worker of ``processes.py``."""

import logging
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from .processes import Make, Plain, Work, attempt, result_of

logger = logging.getLogger(__name__)


Run = Callable[[Make, Sequence[Plain], Sequence[Plain]], Iterator[tuple[int, Plain]]]


@contextmanager
def ray_cluster(where: str, *, workers: int = 0) -> Iterator[Run]:
    """What does jobs as ``run_processes`` does, on ``where``: ``local:N`` starts N workers here, ``auto`` joins the
    cluster this machine belongs to, ``HOST:PORT`` another one.

    ``workers`` actors are started, 0 for as many as the cluster has processors (accelerators, where the setup names
    one). Every machine needs this package, and the folders under the same paths. Raises ValueError where there is no
    Ray or no cluster.
    """
    ray = _ray()
    local = re.fullmatch(r"local:([1-9]\d*)", where)
    here = int(local[1]) if local else 0
    _join(ray, where, processors=here)

    def run(make: Make, setups: Sequence[Plain], jobs: Sequence[Plain]) -> Iterator[tuple[int, Plain]]:
        return _run(ray, make, setups, jobs, workers=here or workers)

    try:
        yield run
    finally:
        ray.shutdown()


def _run(
    ray: Any, make: Make, setups: Sequence[Plain], jobs: Sequence[Plain], *, workers: int
) -> Iterator[tuple[int, Plain]]:
    accelerated = setups[0].get("device", "cpu") != "cpu"
    count = workers or int(ray.cluster_resources().get("GPU" if accelerated else "CPU", 1))
    actor = ray.remote(num_cpus=1, num_gpus=int(accelerated))(_Actor)
    threads = torch.get_num_threads()
    actors = [actor.remote(make, setups[i % len(setups)], threads) for i in range(min(count, len(jobs)))]
    logger.info("Ray: %d workers on %d machines, %d jobs", len(actors), len(ray.nodes()), len(jobs))
    waiting = list(range(len(jobs)))[::-1]
    running = {}
    for one in actors:
        number = waiting.pop()
        running[one.run.remote(jobs[number])] = (one, number)
    while running:
        (done,), _ = ray.wait(list(running))
        one, number = running.pop(done)
        try:
            outcome = ray.get(done)
        except ray.exceptions.RayError as error:
            raise ValueError(
                f"the worker of job {number} was lost ({str(error).splitlines()[0]}), and with it its result; "
                "give the same command again, with fewer workers."
            ) from error
        yield number, result_of(outcome, number)
        if waiting:
            number = waiting.pop()
            running[one.run.remote(jobs[number])] = (one, number)
    # Their processors are free for the next jobs at once, not when Python forgets them.
    for one in actors:
        ray.kill(one)


class _Actor:
    """One worker on some machine of the cluster."""

    def __init__(self, make: Make, setup: Plain, threads: int) -> None:
        self.make, self.setup, self.threads = make, setup, threads
        self.work: Work | None = None

    def run(self, job: Plain) -> tuple[str, Any]:
        """One job."""
        return attempt(self._build_and_work, job)

    def _build_and_work(self, job: Plain) -> Plain:
        if self.work is None:
            torch.set_num_threads(self.threads)
            self.work = self.make(self.setup)
        return self.work(job)


def _ray() -> Any:
    try:
        import ray  # pyright: ignore[reportMissingImports]  # an extra that `dev` leaves out
    except ImportError as error:
        raise ValueError(
            f"--ray needs the package ray, which cannot be imported ({error}); install it with "
            "`pip install -e '.[distributed]'`, or use --workers, which needs nothing."
        ) from error
    return ray


def _join(ray: Any, where: str, *, processors: int) -> None:
    quiet = {"include_dashboard": False} if processors else {}
    place = {"num_cpus": processors, **quiet} if processors else {"address": where}
    try:
        ray.init(**place, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ValueError(
            f"--ray {where} leads to no cluster ({str(error).splitlines()[0]}); start one with `ray start --head`, "
            "or give local:2 for two workers on this machine."
        ) from error
