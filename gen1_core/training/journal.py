"""What a run tells of itself: one JSON line per record, and the same numbers for TensorBoard."""

from pathlib import Path
from typing import Any

from .state import append_record, rewind_records


class Journal:
    """Writes ``log.jsonl`` and the folder ``tensorboard``; lines after ``step`` are dropped, for they come again.

    Raises ValueError where TensorBoard is not installed, and where the disk is full.
    """

    def __init__(self, folder: Path, *, step: int) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ValueError(
                "training writes its curves for TensorBoard, and it is not installed; install the extra: "
                "pip install -e '.[train]'."
            ) from error
        self.path = folder / "log.jsonl"
        rewind_records(self.path, step)
        try:
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)
        except OSError as error:
            raise self._refused(error) from error

    def losses(self, step: int, values: dict[str, float], *, rate: float, seconds: float) -> None:
        """Means since the last line."""
        self._write({"step": step, **values, "rate": rate, "seconds": round(seconds, 2)})
        self._draw("train", step, {**values, "rate": rate})

    def evaluation(self, step: int, values: dict[str, float], *, seconds: float) -> None:
        """What the averaged weights can do."""
        self._write({"step": step, "evaluation": values, "seconds": round(seconds, 2)})
        self._draw("evaluation", step, values)

    def close(self) -> None:
        """Writes what is left."""
        self._board.close()

    def _write(self, record: dict[str, Any]) -> None:
        try:
            append_record(self.path, record)
        except OSError as error:
            raise self._refused(error) from error

    def _draw(self, kind: str, step: int, values: dict[str, float]) -> None:
        try:
            for name, value in values.items():
                self._board.add_scalar(f"{kind}/{name}", value, step)
            self._board.flush()
        except OSError as error:
            raise self._refused(error) from error

    def _refused(self, error: OSError) -> ValueError:
        return ValueError(
            f"{self.path.parent} cannot take the log ({error}), and the checkpoint there is unchanged; free some space "
            "or make the folder writable, then give the same command again."
        )
