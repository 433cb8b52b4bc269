"""Progress bars for a terminal."""

from collections.abc import Iterator
from contextlib import contextmanager

from tqdm import tqdm

from .tensors import OnStep


@contextmanager
def progress(*, every_s: float = 0.1) -> Iterator[OnStep]:
    """An ``OnStep`` that draws a bar for every stage on standard error, at most once in ``every_s``.

    A stage may begin in the middle (a resumed run) and may come again; bars of stages cut off by an error are closed.
    """
    bars: dict[str, tqdm] = {}

    def on_step(stage: str, done: int, total: int) -> None:
        if stage in bars and done < bars[stage].n:
            bars.pop(stage).close()
        if stage not in bars:
            bars[stage] = tqdm(total=total, desc=stage, initial=done - 1, mininterval=every_s, delay=0.5)
        bars[stage].update(done - bars[stage].n)
        if done >= total:
            bars.pop(stage).close()

    try:
        yield on_step
    finally:
        for bar in bars.values():
            bar.close()
