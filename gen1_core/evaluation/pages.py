"""The two HTML pages as text: the report, and the page to vote on. Static: no script or style from anywhere else."""

import json
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

from ..training.world import PRESETS
from .methods import OURS
from .plots import line_plot
from .sweeps import SHOWN, trend
from .tables import FIGURES
from .votes import Pair

STYLE = """
body { font: 15px/1.45 system-ui, sans-serif; margin: 2em auto; max-width: 1320px; padding: 0 1em; color: #1c1c22; }
table { border-collapse: collapse; margin: 1em 0; } th, td { padding: .25em .6em; text-align: right; }
th { border-bottom: 1px solid #888; font-weight: 600; } td:first-child, th:first-child { text-align: left; }
table.figures small { display: block; } table.figures td:first-child { min-width: 14em; }
tr:nth-child(even) td { background: #f4f4f7; } tr.ours td { font-weight: 600; } small { color: #777; font-weight: 400; }
video, img { max-width: 100%; background: #111; } .yes { color: #0a7a33; } .no { color: #b3261e; }
svg { margin: 4px; } svg text { font: 10px sans-serif; fill: #444; } svg .t { text-anchor: middle; font-size: 11px; }
svg .x { text-anchor: middle; } svg .y { text-anchor: end; } svg polyline { fill: none; stroke: #2457c5; }
svg circle { fill: #2457c5; } svg .error { stroke: #2457c5; } svg .grid { stroke: #ddd; }
button { font-size: 1.2em; padding: .5em 2em; margin: .5em 1em .5em 0; } .clips { width: 780px; }
"""

ARROWS = {
    "frame_consistency": "frame consistency",
    "prompt_consistency": "prompt consistency",
    "psnr": "PSNR, dB",
    "ssim": "SSIM",
    "distance": "judge 1's distance",
    "clip_distance": "CLIP-feature distance",
    "style_accuracy": "style accuracy",
    "depth_error": "depth error",
    "depth_excess": "depth error less truth's",
    "warp_error": "warp error",
    "sharpness": "sharpness / source",
    "motion": "motion / source",
}

SLIDERS = {
    "temporal_scale": "temporal_scale (omega_t)",
    "blur_level": "blur_level (t_s)",
    "structure_scale": "structure_scale",
}
"""The paper's names beside ours."""

EXPLAINED = """
<p>Consistency and prompt are the paper's cosines of CLIP embeddings; PSNR, SSIM and both feature distances are taken
against the <b>true counterfactual</b>, the same scene as the renderer makes it in the look that was asked for. Depth
error is that of a depth network of the judges' own on the edit against the scene's exact depth, under the best scale
and shift; its value for the truth is the network's own error. Warp error follows the scene's exact motion. Sharpness
and motion stand beside every consistency: blur and stills are not consistency. Numbers are means over edits, and their
standard errors.</p>
"""

JUDGES = """
<p><b>Judge 1</b>: nearer to the true counterfactual, in half the distance in features of a network trained on truth
renders alone, half 1 - multi-scale SSIM; distances that differ by less than 2 % tie. <b>Judge 2</b>: chance that the
same network gives the look asked for, less the relative depth error by the judges' own depth network; scores within
0.05 tie. Ties count half. No network that conditions the edit judges it. Errors are binomial.</p>
"""


def page(title: str, body: str) -> str:
    """A whole page."""
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f"<style>{STYLE}</style></head>\n<body><h1>{escape(title)}</h1>\n{body}\n</body></html>\n"
    )


def table(head: Sequence[str], rows: Sequence[tuple[str, Sequence[str]]], *, name: str = "") -> str:
    """Rows with their class; cells are HTML already, the head is not. ``name`` is a class of the table."""
    top = "".join(f"<th>{escape(cell)}</th>" for cell in head)
    body = "\n".join(
        f'<tr class="{kind}">' + "".join(f"<td>{cell}</td>" for cell in cells) + "</tr>" for kind, cells in rows
    )
    return f'<table class="{name}"><tr>{top}</tr>\n{body}</table>'


def with_error(value: Sequence[float] | None, digits: int = 3) -> str:
    """A mean and its standard error."""
    if value is None:
        return "-"
    return f"{value[0]:.{digits}f} <small>&plusmn;{value[1]:.{digits}f}</small>"


def rate(cell: Mapping[str, Any]) -> str:
    """A win rate with its error."""
    return f"{cell['rate']:.1%} <small>&plusmn;{cell['error']:.1%} of {cell['pairs']}</small>"


def report_page(
    results: Mapping[str, Any],
    votes: Mapping[str, Any] | None,
    cases: Sequence[Sequence[str]],
    sheets: Sequence[str],
) -> str:
    """The report. ``cases`` are a text, a player and a sheet for each edit, ``sheets`` those of all edits; as paths
    from the page."""
    methods = results["methods"]
    goals = [("", [escape(row["goal"]), escape(row["found"]), _mark(row["reached"])]) for row in results["goals"]]
    figures = [
        (
            OURS if name == OURS else "",
            [escape(methods[name]), *(with_error(row.get(figure)) for figure in FIGURES)],
        )
        for name, row in results["table"].items()
    ]
    wins = [
        ("", [escape(methods[name]), rate(row["truth"]), rate(row["look_and_depth"])])
        for name, row in results["wins"].items()
    ]
    accuracy = [
        ("", [escape(name), with_error(row["frames"]), with_error(row["clips"]), str(row["edits"])])
        for name, row in results["accuracy"].items()
    ]
    unstructured = any(name.startswith("unstructured") for name in methods)
    parts = [
        '<p><a href="blind.html">Vote: two clips, which is better?</a> &middot; '
        '<a href="results.json">all numbers as JSON</a></p>',
        "<h2>Goals</h2>" + table(("goal", "found", ""), goals),
        "<h2>Figures</h2>"
        + table(("method", *(ARROWS[name] for name in FIGURES)), figures, name="figures")
        + EXPLAINED,
        ""
        if unstructured
        else "<p>The video model trained without structure is missing here: no --unstructured FILE "
        "was given. Without it the baselines that see no structure run on weights that always saw one.</p>",
        "<h2>Ours preferred to</h2>" + table(("baseline", "judge 1", "judge 2"), wins) + JUDGES + _judged(results),
        "" if votes is None else _voted(votes, methods),
        "<h2>Style accuracy of ours</h2>"
        + table(("asked by", "frames named right", "clips named right", "edits"), accuracy)
        + "<p>A frame is named right where the judges' network gives the look that was asked for the highest chance of "
        f"all {len(PRESETS)}; a clip, where the mean chance over its frames is the highest.</p>",
        _tuned(results),
        _swept(results),
        "<h2>Sheets</h2><p>The middle frame of every edit by every method.</p>"
        + "".join(f'<p><a href="{escape(name)}"><img src="{escape(name)}" alt=""></a></p>' for name in sheets),
        "<h2>Edits</h2>" + "\n".join(_edit(*case) for case in cases),
    ]
    return page("Gen-1: evaluation", "\n".join(parts))


def _mark(reached: bool) -> str:
    return '<span class="yes">reached</span>' if reached else '<span class="no">not reached</span>'


def _judged(results: Mapping[str, Any]) -> str:
    judges = results["judges"]
    mixed = "; ".join(f"{escape(a)} as {escape(b)} ({share:.0%})" for a, b, share in judges["confused"]) or "none"
    return (
        f"<p>On {judges['pictures']} truth renders of held-out families, of scenes that were not in its training, the "
        f"judges' network names {judges['look_accuracy']:.1%} of the looks right by single frames, and "
        f"{judges['clip_accuracy']:.1%} by the mean chance over {judges['frames']} frames of a clip. Looks it mixes up "
        f"most: {mixed}. "
        f"The judges' depth network errs by {judges['depth_mae']:.4f} there, a flat map by "
        f"{judges['depth_mae_constant']:.4f}.</p>"
    )


def _voted(votes: Mapping[str, Any], methods: Mapping[str, str]) -> str:
    rows = [("", [escape(methods.get(name, name)), rate(row)]) for name, row in votes.items()]
    return "<h2>Ours preferred by people to</h2>" + table(("baseline", "votes"), rows)


def _tuned(results: Mapping[str, Any]) -> str:
    parts = ("strength", "content_scale", "structure_scale", "weights")
    rows = [
        (
            "",
            [
                escape(results["methods"][name]),
                *(escape(str(row["settings"][part])) for part in parts),
                str(len(row["tried"])),
            ],
        )
        for name, row in results["tuning"].items()
    ]
    head = ("method", "strength", "content scale", "structure scale", "weights", "settings tried")
    text = (
        "<p>Nearest to the truth by judge 1's distance, on validation edits of another draw. Ours runs with the "
        "defaults in its weights, whatever was nearest here.</p>"
    )
    return "<h2>Tuning</h2>" + text + table(head, rows)


def _swept(results: Mapping[str, Any]) -> str:
    parts = []
    for slider, series in results["sweeps"]["series"].items():
        right, steps = results["sweeps"]["trends"][slider]
        values = [row["value"] for row in series]
        plots = [
            line_plot(ARROWS[name], values, [row[name][0] for row in series], [row[name][1] for row in series])
            for name in SHOWN
        ]
        parts.append(
            f"<h3>{escape(str(SLIDERS.get(slider, slider)))}: {trend(slider)} in {right} of {steps} steps</h3>"
            + "".join(plots)
        )
    return "<h2>Sweeps</h2>" + "".join(parts) if parts else ""


def _edit(text: str, video: str, sheet: str) -> str:
    return (
        f'<h3>{escape(text)}</h3><video src="{escape(video)}#t=0.01" controls loop muted preload="auto"></video>'
        f'<p><a href="{escape(sheet)}">every frame</a></p>'
    )


VOTE = """
const order = PAIRS.map((_, i) => i);
for (let i = order.length - 1; i > 0; i--) {
  const j = Math.floor(Math.random() * (i + 1)); [order[i], order[j]] = [order[j], order[i]];
}
let at = 0; const votes = []; const get = id => document.getElementById(id);
function show() {
  const over = at >= order.length;
  get("ask").hidden = over; get("count").textContent = votes.length + " of " + order.length + " pairs voted on"
    + (over ? ": that was the last one. Please save your votes." : "");
  if (over) return;
  const pair = PAIRS[order[at]]; get("prompt").textContent = pair.prompt;
  get("clips").src = pair.video; get("clips").play().catch(() => {});
}
function vote(choice) { votes.push({pair: PAIRS[order[at]].name, choice: choice}); at++; show(); }
function save() {
  const data = JSON.stringify({report: REPORT, votes: votes}, null, 1);
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([data], {type: "application/json"}));
  link.download = "gen1-votes.json"; link.click();
}
get("a").onclick = () => vote("A"); get("b").onclick = () => vote("B"); get("save").onclick = save;
document.onkeydown = event => {
  const choice = event.key.toUpperCase(); if (at < order.length && (choice === "A" || choice === "B")) vote(choice);
};
show();
"""


def blind_page(pairs: Sequence[Pair], videos: Sequence[str], report: str) -> str:
    """The page to vote on: the source, A and B in one video, so that they run together; names stay hidden."""
    shown = [
        {"name": pair.name, "prompt": pair.prompt, "video": video} for pair, video in zip(pairs, videos, strict=True)
    ]
    # "</" would end the script early if a prompt held it.
    data = json.dumps(shown).replace("</", "<\\/")
    body = (
        '<p><a href="index.html">back to the report</a></p><p id="count"></p><div id="ask">'
        '<p>The source is on the left. Which edit of it better shows <b id="prompt"></b>?</p>'
        '<video id="clips" class="clips" loop muted autoplay playsinline></video><br>'
        '<button id="a">A</button><button id="b">B</button></div>'
        '<p><button id="save">Save my votes</button> as a file; you may stop at any time. The keys A and B vote too. '
        "<code>gen1 eval --votes FILE --out FOLDER</code> counts them.</p>"
        f"<script>const PAIRS = {data}; const REPORT = {json.dumps(report)};{VOTE}</script>"
    )
    return page("Which edit is better?", body)
