"""Two-choice votes by people: pairs in random order under hidden names, a page to vote on, and the tally."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean
from typing import Any

from ..training.loop import generator_at
from ..training.world.dice import Dice
from .benchmark import Case
from .judges import win_rate
from .methods import OURS
from .store import identity_of, read_json, write_json

KEY, TALLY = "blind-key.json", "votes.json"
"""What stands behind the names of the pairs, and the tally; neither is linked from the page."""


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Ours and a baseline side by side: which of them is ``left`` is drawn from the seed."""

    name: str
    seed: int
    number: int
    prompt: str
    left: str
    right: str


def draw_pairs(cases: Sequence[Case], rivals: Sequence[str]) -> list[Pair]:
    """Every edit against every rival, shuffled; names follow the shuffled order, so they say nothing."""
    dice = Dice(generator=generator_at(cases[0].seed, "blind", 0))
    pairs = [(case, rival) for case in cases for rival in rivals]
    for last in range(len(pairs) - 1, 0, -1):
        other = dice.integer(0, last)
        pairs[last], pairs[other] = pairs[other], pairs[last]
    found = []
    for index, (case, rival) in enumerate(pairs):
        left, right = (OURS, rival) if dice.chance(0.5) else (rival, OURS)
        found.append(
            Pair(
                name=f"pair-{index:03d}",
                seed=case.seed,
                number=case.number,
                prompt=case.prompt,
                left=left,
                right=right,
            )
        )
    return found


def write_key(folder: Path, pairs: Sequence[Pair], *made_from: Any) -> str:
    """Keeps what stands behind the names; returns the report's name, which votes carry: another for other videos."""
    plain = [asdict(pair) for pair in pairs]
    name = identity_of(*made_from, plain)
    write_json(folder / KEY, {"report": name, "pairs": plain})
    return name


def read_votes(path: Path) -> dict[str, Any]:
    """A file that the page saved.

    Raises ValueError where it is something else.
    """
    try:
        votes = json.loads(path.read_text(encoding="utf-8"))
        choices = {str(vote["pair"]): vote["choice"] for vote in votes["votes"]}
        report = str(votes["report"])
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} holds no votes ({type(error).__name__}: {error}); give the file that `blind.html` saved."
        ) from error
    if wrong := sorted({str(choice) for choice in choices.values()} - {"A", "B"}):
        raise ValueError(f"{path} holds the choices {wrong}, not A or B alone; give the file that `blind.html` saved.")
    return {"report": report, "choices": choices}


def tally(folder: Path, files: Sequence[Path]) -> dict[str, dict[str, Any]]:
    """How often people preferred ours to each baseline, over all files; also kept in the folder, instead of an earlier
    tally.

    Several people's votes on a pair are one verdict, their mean: the error is over edits, not over people.
    Raises ValueError where a file belongs to another report, or is given twice.
    """
    key = read_json(folder / KEY)
    if key is None:
        raise ValueError(f"{folder} has no {KEY}, so nobody knows what was voted on; make the report there first.")
    pairs: Mapping[str, Mapping[str, Any]] = {pair["name"]: pair for pair in key["pairs"]}
    chosen: dict[str, list[float]] = {}
    seen: list[dict[str, Any]] = []
    for path in files:
        votes = read_votes(path)
        if votes in seen:
            raise ValueError(f"{path} holds the same votes as a file before it, and they would count twice; drop one.")
        seen.append(votes)
        unknown = sorted(set(votes["choices"]) - set(pairs))
        if votes["report"] != key["report"] or unknown:
            raise ValueError(
                f"{path} holds votes on report {votes['report']}, but {folder} is report {key['report']}; "
                "give --out the folder that was voted on."
            )
        for name, choice in votes["choices"].items():
            pair = pairs[name]
            chosen.setdefault(name, []).append(float((pair["left"] if choice == "A" else pair["right"]) == OURS))
    verdicts: dict[str, list[float]] = {}
    for name, found in chosen.items():
        (rival,) = {pairs[name]["left"], pairs[name]["right"]} - {OURS}
        verdicts.setdefault(rival, []).append(fmean(found))
    table = {rival: asdict(win_rate(found)) for rival, found in sorted(verdicts.items())}
    write_json(folder / TALLY, {"report": key["report"], "table": table})
    return table


def read_tally(folder: Path) -> dict[str, Any] | None:
    """The tally of the report that is in the folder; None where there is none, or one of an earlier report."""
    key, told = read_json(folder / KEY), read_json(folder / TALLY)
    return told["table"] if key and told and told["report"] == key["report"] else None
