"""The whole evaluation: judges, tuning of the baselines, every edit by every method, sweeps; resumable edit by edit."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from statistics import fmean
from typing import Any

from ..content.encoder import ContentEncoder
from ..tensors import Bytes, OnStep, ignore_progress, to_float
from ..training.world import PRESETS
from .benchmark import BenchmarkConfig, Case, draw_cases, render_case
from .judge_nets import JudgeConfig, judge_identity, judge_networks
from .judges import Judges, measure, perceptual_distance
from .methods import OURS, Editor, Method, Prepared, Settings, make, methods_for, prepare, restyle, thinned
from .store import identity_of, keep, kept, read_frames, read_json, write_frames, write_json
from .sweeps import Point, SweepConfig, follows, points, summarised
from .tables import accuracy_table, goals, method_table, win_table, with_excess

VALIDATION = "validation"

TUNED_ON = 4
"""Frames of a clip that settings are tried on, where a method sees each of them alone: the others tell little more."""

FIGURES_VERSION = 3
"""Goes up with every change of what is measured, so that finished edits are measured anew."""


@dataclass(frozen=True, kw_only=True)
class EvaluationConfig:
    """What is evaluated, and on how many validation edits the baselines are tuned."""

    benchmark: BenchmarkConfig = BenchmarkConfig()
    judges: JudgeConfig = JudgeConfig()
    sweeps: SweepConfig = SweepConfig()
    validation: int = 6

    def __post_init__(self) -> None:
        if self.validation < 1:
            raise ValueError(
                f"validation={self.validation} leaves nothing to tune the baselines on, and they would lose without a "
                "fight; give at least 1."
            )


@dataclass(frozen=True, kw_only=True, eq=False)
class Evaluation:
    """Everything an evaluation works with.

    ``made_by`` says what makes an edit (weights and options), ``judged_by`` what measures it: other judges look at the
    same frames again.
    """

    editor: Editor
    judges: Judges
    config: EvaluationConfig
    folder: Path
    made_by: str
    judged_by: str
    on_step: OnStep = field(default=ignore_progress)


def evaluate(
    editor: Editor,
    encoder: ContentEncoder,
    config: EvaluationConfig,
    folder: Path,
    *,
    weights: str,
    encoder_name: str = "",
    judges_folder: Path | None = None,
    on_step: OnStep = ignore_progress,
) -> dict[str, Any]:
    """All results as plain data, also in ``folder/results.json``; what is there from an earlier call is taken.

    ``weights`` is the fingerprint of the editor's weights, ``encoder_name`` a name for an encoder that is not among
    them. The judges are taken from ``judges_folder``, or made there; left out, it is ``folder``.
    """
    looks, depth, quality = judge_networks(config.judges, judges_folder or folder, on_step=on_step)
    judges = Judges(looks=looks, depth=depth, names=tuple(PRESETS), encoder=encoder)
    evaluation = Evaluation(
        editor=editor,
        judges=judges,
        config=config,
        folder=folder,
        made_by=identity_of(weights, editor.options),
        judged_by=identity_of(FIGURES_VERSION, encoder_name, judge_identity(config.judges)),
        on_step=on_step,
    )
    methods = methods_for(
        unstructured=editor.unstructured is not None,
        content_scale=editor.options.content_scale,
        structure_scale=editor.options.structure_scale,
    )
    tuning = tune(evaluation, methods)
    tuned = {name: Settings(**row["settings"]) for name, row in tuning.items() if name != OURS}
    evaluation = replace(evaluation, editor=replace(editor, tuned=tuned))
    records, swept = run_cases(evaluation, methods)
    records = with_excess(records)
    results: dict[str, Any] = {
        "config": {"benchmark": asdict(config.benchmark), "sweeps": asdict(config.sweeps)},
        "options": asdict(editor.options),
        "weights": weights,
        "methods": {method.name: method.title for method in methods},
        "judges": quality,
        "tuning": tuning,
        "table": method_table(records),
        "wins": win_table(records, methods),
        "accuracy": accuracy_table(records),
        "sweeps": {"series": swept, "trends": {slider: follows(slider, row) for slider, row in swept.items()}},
        "edits": records,
    }
    results["goals"] = goals(results)
    write_json(folder / "results.json", results)
    return results


def tune(evaluation: Evaluation, methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """The settings of each baseline that come nearest to the truth on validation edits, by the first judge's distance.

    Ours runs with the defaults in its weights, whatever is nearest here: its rows show what was to choose from.
    """
    size = replace(evaluation.config.benchmark, clips=evaluation.config.validation)
    cases = draw_cases(replace(size, seeds=size.seeds[:1]), name=VALIDATION)
    jobs = [(method, settings) for method in methods if len(method.grid) > 1 for settings in method.grid]
    edits: list[Prepared] = []

    def prepared() -> list[Prepared]:
        """The validation edits, rendered at the first call."""
        if not edits:
            edits.extend(prepare(evaluation.editor, case, render_case(case, size, name=VALIDATION)) for case in cases)
        return edits

    chosen: dict[str, dict[str, Any]] = {}
    for done, (method, settings) in enumerate(jobs, 1):
        distance = tried(evaluation, method, settings, cases, prepared)
        row = chosen.setdefault(method.name, {"settings": {}, "tried": []})
        row["tried"].append({**asdict(settings), "distance": distance})
        evaluation.on_step("tune", done, len(jobs))
    for row in chosen.values():
        best = min(row["tried"], key=lambda one: one["distance"])
        row["settings"] = {name: value for name, value in best.items() if name != "distance"}
    return chosen


def tried(
    evaluation: Evaluation,
    method: Method,
    settings: Settings,
    cases: Sequence[Case],
    prepared: Callable[[], list[Prepared]],
) -> float:
    """Mean distance to the truth of validation edits with these settings; kept under what it follows from, so methods
    that see the same share it."""
    frames = evaluation.config.benchmark.frames
    every = max(1, frames // TUNED_ON) if method.image else 1
    sees = [method.structure, method.image, method.content]
    plain = [asdict(case) for case in cases]
    judge = judge_identity(evaluation.config.judges)
    identity = identity_of(evaluation.made_by, judge, plain, size_of(evaluation), sees, every, settings)
    path = evaluation.folder / "tuning" / f"{identity}.json"
    if (found := kept(path, identity)) is not None:
        return found
    distances = []
    for edit in (thinned(edit, every) for edit in prepared()):
        edited = to_float(make(evaluation.editor, method, edit, settings))
        distances.append(perceptual_distance(evaluation.judges.looks, edited, to_float(edit.clips.truth)))
    keep(path, identity, fmean(distances))
    return fmean(distances)


def run_cases(
    evaluation: Evaluation, methods: Sequence[Method]
) -> tuple[dict[str, list[dict[str, Any]]], dict[str, list[dict[str, Any]]]]:
    """Every edit by every method, and the sweeps on the first of them; only what is not there yet is made."""
    cases = draw_cases(evaluation.config.benchmark)
    records: dict[str, list[dict[str, Any]]] = {method.name: [] for method in methods}
    swept: dict[str, list[dict[str, Any]]] = {}
    for done, case in enumerate(cases, 1):
        prepared: list[Prepared] = []

        def edit_of(case: Case = case, prepared: list[Prepared] = prepared) -> Prepared:
            """The clips, rendered at the first call: a finished edit needs none."""
            if not prepared:
                prepared.append(prepare(evaluation.editor, case, render_case(case, evaluation.config.benchmark)))
            return prepared[0]

        for method in methods:
            figures = one_edit(evaluation, method, case, edit_of)
            records[method.name].append({"case": asdict(case), "figures": figures})
        swept_points = points(evaluation.config.sweeps, evaluation.editor.options)
        for point in swept_points if done <= evaluation.config.sweeps.edits else []:
            figures = one_point(evaluation, point, case, edit_of)
            swept.setdefault(point.slider, []).append({"value": point.value, "figures": figures})
        evaluation.on_step("edits", done, len(cases))
    return records, summarised(swept)


def edit_path(folder: Path, case: Case, name: str, suffix: str) -> Path:
    """Where an edit lies: ``.png`` holds its frames, ``.json`` its figures."""
    return folder / "edits" / f"{case.seed}-{case.number:03d}-{name}{suffix}"


def one_edit(evaluation: Evaluation, method: Method, case: Case, edit_of: Callable[[], Prepared]) -> dict[str, float]:
    """The figures of one edit."""
    picture, record = (edit_path(evaluation.folder, case, method.name, suffix) for suffix in (".png", ".json"))
    settings = evaluation.editor.settings(method)
    sees = [method.name, method.structure, method.image, method.content]
    made = identity_of(evaluation.made_by, case, size_of(evaluation), sees, settings)
    identity = identity_of(made, evaluation.judged_by)
    whole = picture.exists()
    if whole and (found := kept(record, identity)) is not None:
        return found["figures"]
    earlier = read_json(record)
    if whole and isinstance(earlier, dict) and made == (earlier.get("value") or {}).get("made"):
        edited = frames_of(evaluation.folder, case, method.name, evaluation.config.benchmark)
    else:
        # First of all the old figures go: figures say that the frames beside them are whole, and which they are.
        record.unlink(missing_ok=True)
        edited = make(evaluation.editor, method, edit_of())
        write_frames(picture, edited)
    figures = measure(evaluation.judges, case, edit_of().clips, edited)
    keep(record, identity, {"made": made, "figures": figures})
    return figures


def one_point(evaluation: Evaluation, point: Point, case: Case, edit_of: Callable[[], Prepared]) -> dict[str, float]:
    """The figures of one edit at one value of a slider."""
    path = evaluation.folder / "sweeps" / f"{case.seed}-{case.number:03d}-{point.slider}-{point.value}.json"
    identity = identity_of(evaluation.made_by, evaluation.judged_by, case, size_of(evaluation), point.options)
    found = kept(path, identity)
    if found is None:
        prepared = edit_of()
        edited = restyle(evaluation.editor, prepared, point.options)
        found = measure(evaluation.judges, case, prepared.clips, edited)
        keep(path, identity, found)
    return found


def size_of(evaluation: Evaluation) -> list[int]:
    """What the clips of a case follow from beside the case."""
    config = evaluation.config.benchmark
    return [config.frames, config.size, config.supersample]


def frames_of(folder: Path, case: Case, name: str, config: BenchmarkConfig) -> Bytes:
    """The frames of a finished edit."""
    return read_frames(edit_path(folder, case, name, ".png"), config.frames)
