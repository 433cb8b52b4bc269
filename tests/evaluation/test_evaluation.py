"""A whole small evaluation: its files, their links, resuming, the votes, the command."""

import json
import math
import re
import shutil
from dataclasses import replace
from functools import partial
from html import unescape
from pathlib import Path

import pytest
import torch
from evaluation.small import SMALL, Finished
from parts import write_model

from gen1_core.cli import main
from gen1_core.evaluation.benchmark import draw_cases, render_case
from gen1_core.evaluation.methods import (
    OURS,
    OURS_IMAGE,
    SOURCE,
    TRUTH,
    Settings,
    load_unstructured,
    make,
    methods_for,
    prepare,
    restyle,
    thinned,
)
from gen1_core.evaluation.plots import line_plot
from gen1_core.evaluation.run import edit_path, frames_of
from gen1_core.evaluation.store import read_json, write_frames, write_json
from gen1_core.evaluation.sweeps import follows, mean_error, trend
from gen1_core.evaluation.tables import accuracy_table, goals
from gen1_core.evaluation.votes import KEY, TALLY, read_tally, read_votes, tally

pytestmark = pytest.mark.slow  # one evaluation for all, some ten seconds of a core

CASES = draw_cases(SMALL.benchmark)


def test_every_method_is_in_the_table_and_the_truth_is_perfect(finished: Finished):
    table = finished.results["table"]
    assert set(table) == {method.name for method in methods_for(unstructured=True)}
    assert table[TRUTH]["psnr"][0] == pytest.approx(100) and table[TRUTH]["depth_excess"][0] == 0
    assert table[SOURCE]["sharpness"][0] == pytest.approx(1) and table[SOURCE]["motion"][0] == pytest.approx(1)
    assert table[TRUTH]["distance"][0] < min(row["distance"][0] for name, row in table.items() if name != TRUTH)
    wins = finished.results["wins"]
    assert set(wins) == set(table) - {OURS, "ours_image", TRUTH}
    assert all(0 <= row[judge]["rate"] <= 1 for row in wins.values() for judge in ("truth", "look_and_depth"))
    assert set(finished.results["sweeps"]["trends"]) == {"temporal_scale", "blur_level", "structure_scale"}


def test_kept_frames_are_the_edit(finished: Finished):
    case = CASES[0]
    prepared = prepare(finished.editor, case, render_case(case, SMALL.benchmark))
    ours = next(method for method in methods_for(unstructured=True) if method.name == OURS)
    kept = frames_of(finished.folder, case, OURS, SMALL.benchmark)
    torch.testing.assert_close(kept, make(finished.editor, ours, prepared), rtol=0, atol=0)
    truth = frames_of(finished.folder, case, TRUTH, SMALL.benchmark)
    torch.testing.assert_close(truth, prepared.clips.truth, rtol=0, atol=0)


def test_baselines_may_use_the_models_own_scales():
    every = methods_for(unstructured=True, content_scale=3.25, structure_scale=3.0)
    methods = {method.name: method for method in every}
    for method in methods.values():
        assert len(set(method.grid)) == len(method.grid)
        if len(method.grid) > 1 and method.name != OURS:
            assert {settings.content_scale for settings in method.grid} == {3.25, 1.0, 1.5, 2.5}
            assert {settings.structure_scale for settings in method.grid} == ({1.0, 3.0} if method.structure else {1.0})
    assert methods[OURS].grid[0] == Settings(content_scale=3.25, structure_scale=3.0)


def test_ours_is_made_with_its_own_scales_whatever_tuning_says(finished: Finished):
    assert OURS in finished.results["tuning"]
    ours = next(method for method in methods_for(unstructured=True) if method.name == OURS)
    prepared = prepare(finished.editor, CASES[0], render_case(CASES[0], SMALL.benchmark))
    far = Settings(content_scale=5.0, structure_scale=4.0)
    default = make(finished.editor, ours, prepared)
    again = make(replace(finished.editor, tuned={OURS: far}), ours, prepared)
    torch.testing.assert_close(again, default, rtol=0, atol=0)
    tried = make(finished.editor, ours, prepared, far)
    assert not torch.equal(tried, default)
    options = replace(finished.editor.options, content_scale=5.0, structure_scale=4.0)
    torch.testing.assert_close(tried, restyle(finished.editor, prepared, options), rtol=0, atol=0)


def test_baselines_differ_in_what_they_see(finished: Finished):
    case = CASES[0]
    prepared = prepare(finished.editor, case, render_case(case, SMALL.benchmark))
    methods = {method.name: method for method in methods_for(unstructured=True)}
    same = Settings(content_scale=2.0, strength=0.5)
    clips = [make(finished.editor, methods[name], prepared, same) for name in ("sdedit_50", "depth_frames", "flat")]
    other = Settings(content_scale=2.0, strength=0.5, weights="unstructured")
    clips += [make(finished.editor, methods["sdedit_50"], prepared, other)]
    clips += [make(finished.editor, methods["sdedit_50"], prepared, Settings(content_scale=1.0, strength=0.5))]
    for index, clip in enumerate(clips):
        assert clip.shape == prepared.clips.source.shape
        assert not any(torch.equal(clip, another) for another in clips[index + 1 :])


def test_frames_of_a_method_per_frame_do_not_see_each_other(finished: Finished):
    case = CASES[0]
    clips = render_case(case, SMALL.benchmark)
    method = next(method for method in methods_for(unstructured=True) if method.name == "sdedit_50")
    prepared = prepare(finished.editor, case, clips)
    changed = prepared.latents.clone()
    changed[:, :, -1] += 1
    both = [
        make(finished.editor, method, type(prepared)(**{**vars(prepared), "latents": latents}))
        for latents in (prepared.latents, changed)
    ]
    torch.testing.assert_close(both[0][0], both[1][0], rtol=0, atol=0)
    assert not torch.equal(both[0][-1], both[1][-1])


def test_what_is_done_is_not_done_again(finished: Finished):
    files = {path: path.stat().st_mtime_ns for path in finished.folder.rglob("*.json") if "results" not in path.name}
    assert finished.again()["table"] == finished.results["table"]
    assert {path: path.stat().st_mtime_ns for path in files} == files


def test_a_lost_or_foreign_edit_is_made_again_and_nothing_else(finished: Finished):
    lost = edit_path(finished.folder, CASES[1], OURS, ".png")
    foreign = edit_path(finished.folder, CASES[0], "flat", ".json")
    frames, figures = lost.read_bytes(), read_json(foreign)
    others = {path: path.stat().st_mtime_ns for path in lost.parent.iterdir() if path.stem not in lost.stem}
    lost.unlink()
    write_json(foreign, {"identity": "another", "value": {"made": "of other weights", "figures": {"psnr": 1.0}}})
    write_frames(foreign.with_suffix(".png"), torch.zeros(3, 3, 32, 32, dtype=torch.uint8))
    again = finished.again()
    assert lost.read_bytes() == frames and read_json(foreign) == figures
    assert again["table"] == finished.results["table"]
    kept = {path for path in others if path.stem not in (lost.stem, foreign.stem)}
    assert all(path.stat().st_mtime_ns == others[path] for path in kept)


def test_an_evaluation_that_is_stopped_twice_goes_on_to_the_same_results(finished: Finished, tmp_path: Path):
    class Stopped(Exception):
        pass

    def stop(name: str, done: int, total: int, *, stage: str) -> None:
        if name == stage and done == (total + 1) // 2:
            raise Stopped

    halfway: dict[Path, int] = {}
    for stage in ("tune", "edits"):
        with pytest.raises(Stopped):
            finished.again(tmp_path, on_step=partial(stop, stage=stage))
        assert not (tmp_path / "results.json").exists()
        more = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*") if path.is_file()}
        assert halfway.items() < more.items()  # nothing that was there is made again
        halfway = more
    results = finished.again(tmp_path)
    assert {path: path.stat().st_mtime_ns for path in halfway} == halfway
    assert results["edits"] == finished.results["edits"] and results["sweeps"] == finished.results["sweeps"]
    assert results["tuning"] == finished.results["tuning"] and results["goals"] == finished.results["goals"]


def test_another_measure_looks_at_the_same_edits(finished: Finished, tmp_path: Path):
    folder = tmp_path / "copy"
    shutil.copytree(finished.folder, folder)
    pictures = {path: path.stat().st_mtime_ns for path in (folder / "edits").glob("*.png")}
    figures = {path: path.stat().st_mtime_ns for path in (folder / "edits").glob("*.json")}
    assert finished.again(folder, encoder_name="another")["table"] == finished.results["table"]
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    assert all(path.stat().st_mtime_ns > old for path, old in figures.items())


def test_settings_that_are_seen_the_same_are_tried_once(finished: Finished):
    tuning = finished.results["tuning"]
    kept = {path.stem for path in (finished.folder / "tuning").iterdir()}
    assert len(kept) < sum(len(row["tried"]) for row in tuning.values())
    best = {
        (one["content_scale"], one["strength"], one["weights"]): one["distance"]
        for one in tuning["sdedit_best"]["tried"]
    }
    for name in ("sdedit_50", "sdedit_75"):
        for one in tuning[name]["tried"]:
            assert best[one["content_scale"], one["strength"], one["weights"]] == one["distance"]
    for row in tuning.values():
        chosen = next(one for one in row["tried"] if row["settings"].items() <= one.items())
        assert chosen["distance"] == min(one["distance"] for one in row["tried"])


def test_tuning_takes_every_other_frame_of_all_that_belongs_to_it(finished: Finished):
    prepared = prepare(finished.editor, CASES[0], render_case(CASES[0], SMALL.benchmark))
    part = thinned(prepared, 2)
    for few, all_ in ((part.clips.source, prepared.clips.source), (part.clips.truth, prepared.clips.truth)):
        torch.testing.assert_close(few, all_[[0, 2]], rtol=0, atol=0)
    pairs = [(part.depth, prepared.depth), (part.latents, prepared.latents), (part.clips.depth, prepared.clips.depth)]
    for few, all_ in pairs:
        torch.testing.assert_close(few, all_[:, :, [0, 2]], rtol=0, atol=0)


def test_the_pages_link_to_each_other_and_to_files_that_are_there(finished: Finished):
    for name in ("index.html", "blind.html"):
        text = (finished.folder / name).read_text(encoding="utf-8")
        links = [unescape(link) for link in re.findall(r'(?:href|src)="([^"]+)"', text)]
        links += re.findall(r'"video": "([^"]+)"', text)
        assert links and not [link for link in links if not (finished.folder / link.partition("#")[0]).is_file()]
        assert "http" not in text
    index = (finished.folder / "index.html").read_text(encoding="utf-8")
    assert 'href="blind.html"' in index and index.count("<video") == len(CASES) and "<svg" in index
    assert 'href="index.html"' in (finished.folder / "blind.html").read_text(encoding="utf-8")


def test_the_page_to_vote_on_hides_the_names(finished: Finished):
    text = (finished.folder / "blind.html").read_text(encoding="utf-8")
    body = text[text.index("<body>") :].lower()
    titles = [title.lower() for title in finished.results["methods"].values()]
    assert not [word for word in (*titles, "ours", "sdedit", "unstructured", "depth_frames", KEY) if word in body]
    pairs = read_json(finished.folder / KEY)["pairs"]
    assert all((pair["left"] == OURS) != (pair["right"] == OURS) for pair in pairs)
    assert {pair["left"] == OURS for pair in pairs} == {True, False}
    rivals = {side for pair in pairs for side in (pair["left"], pair["right"])} - {OURS}
    assert rivals == set(finished.results["wins"]) - {SOURCE}


def test_votes_are_counted(finished: Finished, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    key = read_json(finished.folder / KEY)
    against = [pair for pair in key["pairs"] if "sdedit_75" in (pair["left"], pair["right"])]
    choices = ["A" if pair["left"] == OURS else "B" for pair in against]
    choices[0] = "B" if choices[0] == "A" else "A"
    votes = [{"pair": pair["name"], "choice": choice} for pair, choice in zip(against, choices, strict=True)]
    path = tmp_path / "votes.json"
    write_json(path, {"report": key["report"], "votes": votes})
    assert tally(finished.folder, [path])["sdedit_75"]["rate"] == (len(votes) - 1) / len(votes)
    other = tmp_path / "other.json"
    write_json(other, {"report": key["report"], "votes": votes[:1]})
    both = tally(finished.folder, [path, other])["sdedit_75"]  # two people on one pair are one verdict
    assert (both["rate"], both["pairs"]) == ((len(votes) - 1) / len(votes), len(votes))
    with pytest.raises(ValueError, match="would count twice"):
        tally(finished.folder, [path, path])
    videos = {each: each.stat().st_mtime_ns for each in finished.folder.rglob("*.mp4")}
    assert main(["eval", "--votes", str(path), "--out", str(finished.folder)]) == 0
    assert videos and {each: each.stat().st_mtime_ns for each in videos} == videos  # counting makes no videos
    index = (finished.folder / "index.html").read_text(encoding="utf-8")
    assert "preferred by people" in index
    order = [index.index(f"<td>{title}") for title in finished.results["methods"].values()]
    kept = read_json(finished.folder / TALLY)
    write_json(finished.folder / TALLY, {**kept, "report": "of other videos"})
    assert read_tally(finished.folder) is None
    write_json(finished.folder / TALLY, kept)
    assert order == sorted(order)  # results read back from their file are shown in the same order

    write_json(path, {"report": "another", "votes": votes})
    assert main(["eval", "--votes", str(path), "--out", str(finished.folder)]) == 2
    assert "give --out the folder that was voted on" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["no json", "[]", '{"votes": []}', '{"report": "a", "votes": [{"pair": 1}]}'])
def test_a_file_without_votes_is_refused(tmp_path: Path, text: str):
    path = tmp_path / "votes.json"
    path.write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match="that `blind.html` saved"):
        read_votes(path)


def test_a_third_choice_is_refused(tmp_path: Path):
    path = tmp_path / "votes.json"
    path.write_text(json.dumps({"report": "a", "votes": [{"pair": "b", "choice": "C"}]}), encoding="utf-8")
    with pytest.raises(ValueError, match="that `blind.html` saved"):
        read_votes(path)


def test_votes_need_their_report(tmp_path: Path):
    with pytest.raises(ValueError, match="make the report there first"):
        tally(tmp_path, [])


def test_goals_say_what_was_reached(finished: Finished):
    results = json.loads(json.dumps(finished.results))
    for name in ("sdedit_50", "sdedit_75", "sdedit_best"):
        results["wins"][name]["truth"]["rate"] = 0.8
    found = {row["goal"]: row["reached"] for row in goals(results)}
    assert found["win rate over SDEdit per frame (the worst row) at least 75 %"]
    results["wins"]["sdedit_50"]["truth"]["rate"] = 0.7
    found = {row["goal"]: row["reached"] for row in goals(results)}
    assert not found["win rate over SDEdit per frame (the worst row) at least 75 %"]


def test_style_goals_count_held_out_geometry_alone():
    def rows(name: str) -> list[dict]:
        right = {OURS: (1.0, 0.5, 0.0), OURS_IMAGE: (0.5, 1.0, 0.0)}.get(name, (1.0, 1.0, 1.0))
        kinds = (("family", "title"), ("family", "paraphrase"), ("pair", "title"))
        return [
            {
                "case": {"held_out": held, "wording": word},
                "figures": {"style_accuracy": share, "style_clip": float(share > 0.4)},
            }
            for (held, word), share in zip(kinds, right, strict=True)
        ]

    table = accuracy_table({name: rows(name) for name in (OURS, OURS_IMAGE, TRUTH, SOURCE)})
    assert table["text"]["frames"][0] == 0.5 and table["text"]["edits"] == 3
    assert table["text, held-out family"]["frames"][0] == 0.75 and table["text, held-out family"]["clips"][0] == 1
    assert table["text, held-out family, paraphrase"]["frames"] == [0.5, 0.0]
    assert table["text, held-out pair"]["frames"][0] == 0 and table["image, held-out family"]["edits"] == 2


def test_steps_that_follow_a_slider_are_counted():
    def series(name: str, *values: float) -> list[dict[str, list[float]]]:
        return [{name: [value, 0.0]} for value in values]

    assert follows("blur_level", series("frame_consistency", 1.0, 2.0, 1.5, 3.0)) == (2, 3)
    assert follows("blur_level", series("frame_consistency", 1.0, 1.0, 2.0)) == (1, 2)  # equal is not rising
    assert follows("structure_scale", series("depth_error", 3.0, 2.0, 2.0, 1.0)) == (2, 3)
    assert trend("structure_scale") == "depth error falls with structure_scale"


def test_means_and_their_standard_errors():
    assert mean_error([1.0, 2.0, 3.0, 6.0]) == pytest.approx([3.0, math.sqrt(14 / 3) / 2])
    assert mean_error([0.5]) == [0.5, 0.0]


def test_a_plot_shows_every_point_and_refuses_none():
    plot = line_plot("a < b", [0, 1, 2], [0.5, 0.6, 0.6], [0.1, 0.0, 0.2])
    assert plot.count("<circle") == 3 and "a &lt; b" in plot and "NaN" not in plot and "nan" not in plot
    with pytest.raises(ValueError, match="at least one"):
        line_plot("empty", [], [], [])


def test_the_unet_without_structure_must_fit(finished: Finished, tmp_path: Path):
    folder = write_model(finished.editor.gen1, tmp_path / "model")
    same = load_unstructured(finished.editor.gen1, folder / "unet.safetensors")
    torch.testing.assert_close(dict(same.unet.state_dict()), dict(finished.editor.gen1.unet.state_dict()))
    with pytest.raises(ValueError, match="stopped before the structure stage"):
        load_unstructured(finished.editor.gen1, folder / "clip.safetensors")


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [(["--clips", "0"], "at least 1"), (["--validation", "0"], "at least 1"), (["--seeds", "1", "1"], "once")],
)
def test_the_command_refuses_before_any_work(wrong: list[str], cure: str, finished: Finished, tmp_path: Path, capsys):
    folder = write_model(finished.editor.gen1, tmp_path / "model")
    command = ["eval", "--weights", str(folder), "--out", str(tmp_path / "out"), "--frames", "2", "--size", "32"]
    assert main([*command, *wrong]) == 2
    assert cure in capsys.readouterr().err and not (tmp_path / "out").exists()
