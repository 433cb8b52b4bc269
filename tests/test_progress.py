"""Progress bars: they begin anywhere, come again, and are closed whatever happens."""

import pytest
from tqdm import tqdm

from gen1_core.progress import progress


def test_bars_are_closed_after_an_error_and_count_right(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConnectionError), progress() as on_step:
        for done in (41, 42, 50):
            on_step("resumed", done, 50)
        for done in (1, 2, 1, 2):
            on_step("again", done, 2)
        for done in (5, 6, 2):
            on_step("restarted", done, 9)
        open_bars = list(tqdm._instances)  # pyright: ignore[reportAttributeAccessIssue]
        assert [(bar.desc, bar.n, bar.initial) for bar in open_bars] == [("restarted", 2, 1)]
        raise ConnectionError("killed")
    assert not tqdm._instances  # pyright: ignore[reportAttributeAccessIssue]
    assert capsys.readouterr().out == ""
