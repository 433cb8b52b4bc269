"""From the figures of single edits to the tables of a report."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from math import isfinite, nan
from typing import Any

from .judges import better, nearer, win_rate
from .methods import OURS, OURS_IMAGE, SOURCE, TRUTH, Method
from .sweeps import mean_error, trend

Record = Mapping[str, Any]
"""One edit by one method: ``case`` as in ``Case``, ``figures`` by name."""

FIGURES = (
    "frame_consistency",
    "prompt_consistency",
    "psnr",
    "ssim",
    "distance",
    "clip_distance",
    "style_accuracy",
    "depth_error",
    "depth_excess",
    "warp_error",
    "sharpness",
    "motion",
)
"""The columns of the table."""


def with_excess(records: Mapping[str, Sequence[Record]]) -> dict[str, list[dict[str, Any]]]:
    """Records with ``depth_excess``: depth error less that of the truth in the same edit, which is the estimator's."""
    floor = {key(record): record["figures"]["depth_error"] for record in records[TRUTH]}
    return {
        name: [
            {
                **record,
                "figures": record["figures"] | {"depth_excess": record["figures"]["depth_error"] - floor[key(record)]},
            }
            for record in rows
        ]
        for name, rows in records.items()
    }


def key(record: Record) -> tuple[int, int]:
    """What tells an edit of the benchmark."""
    return record["case"]["seed"], record["case"]["number"]


def method_table(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, list[float]]]:
    """Mean and standard error of every figure of every method; figures that are not defined are left out."""
    table: dict[str, dict[str, list[float]]] = {}
    for name, rows in records.items():
        columns = {figure: [row["figures"].get(figure, nan) for row in rows] for figure in FIGURES}
        table[name] = {figure: mean_error(values) for figure, values in columns.items() if all(map(isfinite, values))}
    return table


def win_table(records: Mapping[str, Sequence[Record]], methods: Sequence[Method]) -> dict[str, dict[str, Any]]:
    """How often ours (by text) is preferred to each baseline, by both judges."""
    ours = {key(record): record["figures"] for record in records[OURS]}
    table = {}
    for method in methods:
        if method.name in (OURS, OURS_IMAGE, TRUTH):
            continue
        pairs = [(ours[key(record)], record["figures"]) for record in records[method.name]]
        table[method.name] = {
            "truth": asdict(win_rate([nearer(a["distance"], b["distance"]) for a, b in pairs])),
            "look_and_depth": asdict(win_rate([better(a["score"], b["score"]) for a, b in pairs])),
        }
    return table


def accuracy_table(records: Mapping[str, Sequence[Record]]) -> dict[str, dict[str, Any]]:
    """Style accuracy by how the look was asked for: of ``frames`` and of whole ``clips``, each mean and standard error,
    and the number of ``edits``."""

    def among(rows: Sequence[Record], **wanted: str) -> list[Record]:
        """The rows of these cases."""
        return [row for row in rows if all(row["case"][key] == value for key, value in wanted.items())]

    ours, image, truth = (records[name] for name in (OURS, OURS_IMAGE, TRUTH))
    groups = {
        "text": ours,
        "text, title": among(ours, wording="title"),
        "text, paraphrase": among(ours, wording="paraphrase"),
        "text, held-out family": among(ours, held_out="family"),
        "text, held-out family, paraphrase": among(ours, held_out="family", wording="paraphrase"),
        "text, held-out pair": among(ours, held_out="pair"),
        "image": image,
        "image, held-out family": among(image, held_out="family"),
        "truth (the classifier's own limit)": truth,
        "truth, held-out family": among(truth, held_out="family"),
        "source (no edit)": records[SOURCE],
    }
    return {
        name: {
            "frames": mean_error([row["figures"]["style_accuracy"] for row in rows]),
            "clips": mean_error([row["figures"]["style_clip"] for row in rows]),
            "edits": len(rows),
        }
        for name, rows in groups.items()
        if rows
    }


def goals(results: Mapping[str, Any]) -> list[dict[str, Any]]:
    """What the paper's claims come to here, and what was reached: ``[{goal, found, reached}]``."""
    table, wins, accuracy = results["table"], results["wins"], results["accuracy"]
    sdedit = [name for name in ("sdedit_50", "sdedit_75", "sdedit_best") if name in wins]
    rate = min(wins[name]["truth"]["rate"] for name in sdedit)
    ours, rival = table[OURS], table["sdedit_75"]
    best = max((row["psnr"][0], name) for name, row in table.items() if name not in (OURS, OURS_IMAGE, TRUTH))
    found = [
        ("win rate over SDEdit per frame (the worst row) at least 75 %", f"{rate:.1%}", rate >= 0.75),
        (
            "depth error under half of SDEdit-75's",
            f"{ours['depth_error'][0]:.4f} against {rival['depth_error'][0]:.4f}",
            2 * ours["depth_error"][0] < rival["depth_error"][0],
        ),
        (
            "the same less the estimator's own error on the truth",
            f"{ours['depth_excess'][0]:.4f} against {rival['depth_excess'][0]:.4f}",
            2 * ours["depth_excess"][0] < rival["depth_excess"][0],
        ),
        (
            "PSNR to the counterfactual above every baseline",
            f"{ours['psnr'][0]:.2f} dB against {best[0]:.2f} ({best[1]})",
            ours["psnr"][0] > best[0],
        ),
    ]
    for name in ("text, held-out family", "text, held-out family, paraphrase", "image, held-out family"):
        if name in accuracy:
            value, edits = accuracy[name]["frames"][0], accuracy[name]["edits"]
            found.append((f"style accuracy by {name}, at least 80 %", f"{value:.1%} of {edits} edits", value >= 0.8))
    for slider, (right, steps) in results["sweeps"].get("trends", {}).items():
        found.append((trend(slider), f"{right} of {steps} steps", right == steps))
    return [{"goal": goal, "found": text, "reached": bool(reached)} for goal, text, reached in found]
