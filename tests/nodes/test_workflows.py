"""The workflow files: whole in themselves, of the form that ComfyUI's page reads, and run in a real server."""

import re
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
from PIL import Image, ImageStat
from workflow_files import FILES, ROOT, TINY, as_prompt, of_type, read

REST = [path for path in FILES if path not in TINY]

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_tiny = pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)
each_other = pytest.mark.parametrize("path", REST, ids=lambda path: path.stem)

CLIP = "gen1_bunny.mp4 [temp]"
LABEL = 22
"""Height in pixels of the strip above a clip in Gen-1 Compare."""

# What can be seen without ComfyUI.


def test_all_are_there() -> None:
    assert len(TINY) >= 8
    assert {path.stem for path in REST} == {"sd15_animatediff_controlnet_ipadapter", "gen1_own_checkpoint"}


def test_the_list_names_them_all() -> None:
    text = (ROOT / "workflows" / "README.md").read_text(encoding="utf-8")
    assert sorted(re.findall(r"\((\w+\.json)\)", text)) == [path.name for path in FILES]


def test_it_is_the_only_template_folder() -> None:
    """ComfyUI lists several and serves one."""
    others = ("example_workflows", "example", "examples", "workflow")
    assert [name for name in others if (ROOT / name).exists()] == []


def test_every_node_is_in_one() -> None:
    ours = set(read(ROOT / "locales" / "en" / "nodeDefs.json"))
    used = {node["type"] for path in FILES for node in read(path)["nodes"]}
    assert ours - used == set()
    assert {name for name in used if name.startswith("Gen1_")} <= ours


@each_file
def test_it_has_a_thumbnail(path: Path) -> None:
    """Where ComfyUI's template browser looks; scripts/screenshots.py makes it."""
    thumbnail = path.with_suffix(".jpg")
    assert thumbnail.stat().st_size <= 60_000
    with Image.open(thumbnail) as picture:
        assert picture.format == "JPEG"
        assert max(picture.size) == 512
        assert min(picture.size) >= 128  # a row of four clips
        assert ImageStat.Stat(picture.convert("L")).stddev[0] > 5  # something is on it


def test_no_thumbnail_is_left_over() -> None:
    assert sorted(path.stem for path in (ROOT / "workflows").glob("*.jpg")) == [path.stem for path in FILES]


def test_the_readme_shows_the_canvas() -> None:
    """Each screenshot is of a workflow that there is, can be read, and is not heavy."""
    shown = re.findall(r"\]\((docs/screenshots/[^)]+)\)", (ROOT / "README.md").read_text(encoding="utf-8"))
    assert 2 <= len(shown) <= 3
    made = sorted((ROOT / "docs" / "screenshots").iterdir())
    assert set(shown) <= {path.relative_to(ROOT).as_posix() for path in made}
    assert len(made) >= 4
    for path in made:
        assert path.stem in {one.stem for one in FILES}
        assert path.stat().st_size <= 400_000
        with Image.open(path) as picture:
            assert picture.width >= 1200


@each_file
def test_nodes_and_links_agree(path: Path) -> None:
    workflow = read(path)
    assert workflow["version"] == 0.4
    nodes = {node["id"]: node for node in workflow["nodes"]}
    assert len(nodes) == len(workflow["nodes"]) == workflow["last_node_id"]
    assert sorted(node["order"] for node in nodes.values()) == list(range(len(nodes)))
    links = {link[0]: link for link in workflow["links"]}
    assert len(links) == len(workflow["links"]) == workflow["last_link_id"]
    for number, source, slot, target, place, kind in links.values():
        out, into = nodes[source]["outputs"][slot], nodes[target]["inputs"][place]
        assert number in out["links"]
        assert into["link"] == number
        assert out["type"] == kind
        assert into["type"] in (kind, "*")
        assert nodes[source]["order"] < nodes[target]["order"]
    taken = [number for node in nodes.values() for out in node["outputs"] for number in out["links"] or ()]
    wired = [one["link"] for node in nodes.values() for one in node["inputs"] if one["link"] is not None]
    assert sorted(taken) == sorted(wired) == sorted(links)


@each_file
def test_widgets_are_there_by_place_and_by_name(path: Path) -> None:
    for node in read(path)["nodes"]:
        assert node["widgets_values"] == list(node["widgets_values_named"].values()), node["type"]
        widgets = [one["widget"]["name"] for one in node["inputs"] if "widget" in one]
        assert [name for name in node["widgets_values_named"] if name in widgets] == widgets


@each_file
def test_every_node_says_which_pack_it_is_of(path: Path, root: Path) -> None:
    """So that ComfyUI's Manager can offer what is missing."""
    project = (root / "pyproject.toml").read_text(encoding="utf-8")
    (name,), (version,) = (re.findall(rf'^{key} = "(.+)"$', project, re.MULTILINE) for key in ("name", "version"))
    for node in read(path)["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        about = node["properties"]
        assert about["Node name for S&R"] == node["type"]
        pack = (name, version) if node["type"].startswith("Gen1_") else ("comfy-core", "0.3.64")
        assert (about["cnr_id"], about["ver"]) == pack


@each_file
def test_it_is_laid_out_to_be_read(path: Path) -> None:
    """One note, every other node in a coloured group, nothing upon another."""
    workflow = read(path)
    assert len(of_type(workflow, "MarkdownNote")) == 1
    boxes = {node["id"]: (*node["pos"], *node["size"]) for node in workflow["nodes"]}
    for node in workflow["nodes"]:
        x, y, width, height = boxes[node["id"]]
        for other, (left, top, wide, high) in boxes.items():
            apart = x + width <= left or left + wide <= x or y + height <= top - 30 or top + high <= y - 30
            assert apart or other == node["id"], (node["type"], other)
        if node["type"] != "MarkdownNote":
            around = [
                group["title"]
                for group in workflow["groups"]
                if group["bounding"][0] <= x
                and group["bounding"][1] <= y - 30
                and x + width <= group["bounding"][0] + group["bounding"][2]
                and y + height <= group["bounding"][1] + group["bounding"][3]
            ]
            assert len(around) == 1, (node["type"], around)
    colours = {group["title"].split(":")[0]: group["color"] for group in workflow["groups"]}
    assert len(set(colours.values())) == len(colours)


@each_tiny
def test_tiny_ones_need_only_the_pack(path: Path) -> None:
    workflow = read(path)
    assert of_type(workflow, "Gen1_LoadPublic") == of_type(workflow, "LoadImage") == []
    assert [node["widgets_values_named"]["file"] for node in of_type(workflow, "Gen1_LoadVideo")] == [CLIP]
    for kind, name in {"Gen1_LoadModel": "model", "Gen1_LoadDepth": "estimator"}.items():
        for node in of_type(workflow, kind):
            assert node["widgets_values_named"][name] == "tiny (embedded)"


@each_other
def test_the_note_has_the_table_of_files(path: Path) -> None:
    """ComfyUI's page offers a download for safetensors only, so the others have to be found there."""
    workflow = read(path)
    (note,) = of_type(workflow, "MarkdownNote")
    text = note["widgets_values"][0]
    files = [
        value
        for node in of_type(workflow, "Gen1_LoadPublic")
        for value in node["widgets_values"]
        if re.search(r"\.(safetensors|ckpt|pth)$", str(value))
    ]
    for name in files or ["unet.safetensors", "models/gen1/mine"]:
        assert name in text
    for node in of_type(workflow, "Gen1_LoadPublic"):
        offered = node["properties"]["models"]
        assert {model["name"] for model in offered} == {name for name in files if name.endswith(".safetensors")}
        for model in offered:
            assert model["url"].startswith("https://huggingface.co/")
            assert model["url"].endswith(".safetensors")
            assert f"models/{model['directory']}" in text


# Run in a real server.


def decode(path: Path) -> tuple[np.ndarray, Fraction, int]:
    """Frames ``[f h w 3]`` of a video as numbers, its rate, and how many sounds it has."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        frames = np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(stream)])
        return frames.astype(np.float32), Fraction(stream.average_rate), len(container.streams.audio)


def tiles(frames: np.ndarray, *, columns: int, height: int, width: int, count: int) -> list[np.ndarray]:
    """The clips of a comparison, without their labels."""
    found = []
    for place in range(count):
        top, left = (place // columns) * (height + LABEL) + LABEL, (place % columns) * width
        found.append(frames[:, top : top + height, left : left + width])
    return found


def smoothness(frames: np.ndarray) -> float:
    """Correlation of neighbouring pixels: about 1 in a picture, about 0 in noise."""
    grey = frames.mean(axis=-1)
    return float(np.corrcoef(grey[:, :, :-1].ravel(), grey[:, :, 1:].ravel())[0, 1])


def difference(one: np.ndarray, other: np.ndarray) -> float:
    """Mean difference of two clips in levels of 255."""
    return float(np.abs(one - other).mean())


@each_tiny
def test_a_tiny_workflow_runs(path: Path, server: Any, record_property: Any) -> None:
    """It writes a video with the clip's frames, rate, size and sound; the edit is neither the source nor noise."""
    workflow = read(path)
    result = server.run(as_prompt(workflow), timeout_s=900)
    assert result.ok, result.message
    record_property(f"{path.stem}_s", round(result.seconds, 1))
    (save,) = of_type(workflow, "Gen1_SaveVideo")
    (saved,) = result.outputs[str(save["id"])]["images"]
    frames, rate, sounds = decode(server.file(saved))
    source, source_rate, source_sounds = decode(ROOT / "gen1_core" / "assets" / "bunny.mp4")
    (load,) = of_type(workflow, "Gen1_LoadVideo")
    end_s = load["widgets_values_named"]["end_s"]
    count = sum(place / source_rate < end_s for place in range(len(source)))
    assert abs(len(frames) - count) <= 1
    assert (rate, sounds) == (source_rate, source_sounds)
    source = source[: len(frames)]
    height, width = source.shape[1:3]
    comparison = of_type(workflow, "Gen1_Compare")
    if not comparison:
        assert frames.shape[1:3] == (height, width)
        check_edit(frames, source)
        return
    given = comparison[0]["widgets_values_named"]
    labels = [given[f"{place}_label"] for place in ("first", "second", "third", "fourth")]
    labels = [label for label in labels if label]
    columns = min(given["columns"], len(labels))
    rows = -(-len(labels) // columns)
    assert frames.shape[1:3] == (rows * (height + LABEL), columns * width)
    for label, tile in zip(
        labels, tiles(frames, columns=columns, height=height, width=width, count=len(labels)), strict=True
    ):
        if label == "source":
            assert difference(tile, source) < 6
        else:
            check_edit(tile, source)


def steadiness(frames: np.ndarray) -> float:
    """Correlation of neighbouring frames: about 0 in decoded noise, which is smooth as well.

    0.87 and more in edits; 0.40 with temporal scale 0.5, which is meant to be restless.
    """
    grey = frames.mean(axis=-1).reshape(len(frames), -1)
    return float(np.mean([np.corrcoef(one, other)[0, 1] for one, other in zip(grey[:-1], grey[1:], strict=True)]))


def check_edit(frames: np.ndarray, source: np.ndarray) -> None:
    assert difference(frames, source) > 4
    assert frames.std() > 5
    assert smoothness(frames) > 0.8
    assert steadiness(frames) > 0.25


def faulty(kind: str, source: np.ndarray) -> np.ndarray:
    """What no edit may be."""
    draw, size = np.random.default_rng(0), source.shape
    if kind == "source":
        return source + 2
    if kind == "one colour":
        return np.full(size, 90.0) + draw.normal(size=size)
    if kind == "noise":
        return draw.normal(128, 40, size)
    blots = draw.normal(128, 40, (size[0], size[1] // 40, size[2] // 40, 3))  # as noise in the latents is decoded
    return np.kron(blots, np.ones((1, 40, 40, 1)))


@pytest.mark.parametrize("kind", ["source", "one colour", "noise", "decoded noise"])
def test_what_is_no_edit_is_found(kind: str) -> None:
    source = decode(ROOT / "gen1_core" / "assets" / "bunny.mp4")[0][:4]
    with pytest.raises(AssertionError):
        check_edit(faulty(kind, source), source)


def test_what_could_be_an_edit_is_let_through() -> None:
    source = decode(ROOT / "gen1_core" / "assets" / "bunny.mp4")[0][:4]
    check_edit(255 - source, source)


def test_the_background_stays_and_the_rest_does_not(server: Any) -> None:
    """What the workflow with a mask is for."""
    workflow = read(ROOT / "workflows" / "tiny_keep_background.json")
    result = server.run(as_prompt(workflow), timeout_s=900)
    assert result.ok, result.message
    (save,) = of_type(workflow, "Gen1_SaveVideo")
    frames, _, _ = decode(server.file(result.outputs[str(save["id"])]["images"][0]))
    source, _, _ = decode(ROOT / "gen1_core" / "assets" / "bunny.mp4")
    change = np.abs(frames - source[: len(frames)]).mean(axis=(0, 3))
    assert np.percentile(change, 20) < 4
    assert np.percentile(change, 80) > 15


@each_other
def test_without_its_files_it_says_which_and_where(path: Path, server: Any) -> None:
    result = server.run(as_prompt(read(path)))
    assert not result.ok
    wanted = ("v1-5-pruned-emaonly-fp16.safetensors", "checkpoints") if "sd15" in path.stem else ("mine", "gen1")
    for name in wanted:
        assert name in result.message, result.message
