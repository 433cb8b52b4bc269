"""Wrong input: told before anything runs where the schema can tell, else in three short parts; nothing is lost."""

import os
import secrets
from collections.abc import Callable
from inspect import signature
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import av
import numpy as np
import pytest
import torch
from workflow_files import ROOT, as_prompt, of_type, read

SHAPE = {"blur_level": 0, "structure_strength": 1.0, "start": 0.0, "end": 1.0}
WHOLE = {"start_s": 0.0, "end_s": 0.12, "stride": 1, "fps": 0.0, "max_size": 96}
OPTIONAL = ("transformers", "timm", "open_clip", "torchvision", "torchaudio", "cv2", "xformers")
LONGEST = 600
"""Letters that a person still reads, paths included."""


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    return {"class_type": kind, "inputs": inputs}


PARTS = {
    "model": node("Gen1_LoadModel", model="tiny (embedded)"),
    "video": node("Gen1_LoadVideo", file="bunny.mp4", **WHOLE),
    "depth": node("Gen1_DepthStructure", image=["video", 1], depth=["model", 3], model=["model", 0], **SHAPE),
    "words": node("Gen1_ContentFromText", encoder=["model", 2], prompt="snow", negative="", seed=0),
    "told": node("Gen1_Condition", model=["model", 0], structure=["depth", 0], content=["words", 0]),
    "mask": node("SolidMask", value=1.0, width=64, height=64),
}
LINKS = {
    "MODEL": ["model", 0],
    "VAE": ["model", 1],
    "GEN1_ENCODER": ["model", 2],
    "GEN1_DEPTH": ["model", 3],
    "VIDEO": ["video", 0],
    "IMAGE": ["video", 1],
    "AUDIO": ["video", 2],
    "GEN1_STRUCTURE": ["depth", 0],
    "GEN1_CONTENT": ["words", 0],
    "CONDITIONING": ["told", 0],
    "LATENT": ["told", 2],
    "MASK": ["mask", 0],
}
NODES = [
    path.stem.removesuffix(".md") for path in sorted((ROOT / "web" / "docs").glob("Gen1_*.md"))
]  # a page each, which test_schemas.py sees to


def given(info: dict[str, Any], values: dict[str, Any]) -> dict[str, Any]:
    """A prompt with all of a node's required inputs as they should be, but for ``values``; None leaves one out."""
    inputs = {}
    for name, (kind, *more) in info["input"]["required"].items():
        said = more[0] if more else {}
        listed = kind if isinstance(kind, list) else said.get("options")
        inputs[name] = LINKS[kind] if kind in LINKS.keys() else said.get("default", listed[0] if listed else "")
    inputs |= values
    inputs = {name: value for name, value in inputs.items() if value is not None}
    return {**PARTS, "asked": node(info["name"], **inputs), "shown": node("PreviewAny", source=["asked", 0])}


def told_before(server: Any, info: dict[str, Any], values: dict[str, Any]) -> set[str]:
    """The inputs that the canvas marks, of those that are wrong."""
    result = server.run(given(info, values))
    assert result.status == "rejected" and not result.executed, (info["name"], values, result.status)
    errors = result.node_errors.get("asked", {"errors": []})["errors"]
    assert all(error["message"] for error in errors)
    return {error["extra_info"]["input_name"] for error in errors if "input_name" in error.get("extra_info", {})}


@pytest.mark.parametrize("name", NODES)
def test_what_the_schema_can_tell_is_told_before_anything_runs(server: Any, name: str) -> None:
    """Numbers out of range, words for numbers, links of another type and links that are missing."""
    info = server.object_info(name)[name]
    every = {**info["input"]["required"], **info["input"].get("optional", {})}
    numbers = {one: said[1] for one, said in every.items() if said[0] in ("INT", "FLOAT")}
    links = [one for one, said in every.items() if isinstance(said[0], str) and said[0] in LINKS]
    needed = [one for one in info["input"]["required"] if one in links]
    for one, said in numbers.items():  # one by one: a wrong number may make another wrong
        # More than ComfyUI's page rounds to. A seed above the largest is no number that JSON's readers agree on.
        below, above = said["min"] - 1, None if said["max"] > 2**60 else said["max"] + 1
        for value in (below, above, "many"):
            if value is not None:
                assert one in told_before(server, info, {one: value}), (name, one, value)
    if links:
        # A frame rate is none of these.
        assert told_before(server, info, {one: ["video", 3] for one in links}) >= set(links)
    if needed:
        assert told_before(server, info, dict.fromkeys(needed)) >= set(needed)


def test_what_is_wired_is_not_judged_before_it_is_known(pack: Any) -> None:
    """ComfyUI hands None for every link when it validates; a node that stumbles over it refuses the whole prompt."""
    judging = [one for one in pack.nodes() if "validate_inputs" in vars(one)]
    assert len(judging) >= 8
    for one in judging:
        names = list(signature(one.validate_inputs).parameters)
        assert one.validate_inputs(**dict.fromkeys(names)) is True, one.GET_SCHEMA().node_id


def test_words_and_numbers_may_come_through_links(server: Any) -> None:
    graph = {
        **PARTS,
        "text": node("PrimitiveString", value="golden desert sand"),
        "half": node("PrimitiveFloat", value=0.5),
        "one": node("PrimitiveInt", value=1),
    }
    content = node("Gen1_ContentFromText", encoder=["model", 2], prompt=["text", 0], negative="", seed=["one", 0])
    shape = {**SHAPE, "start": ["half", 0]}
    depth = node("Gen1_DepthStructure", image=["video", 1], depth=["model", 3], model=["model", 0], **shape)
    result = server.run(
        {
            **graph,
            "content": content,
            "asked": depth,
            "shown": node("PreviewAny", source=["asked", 0]),
            "shown too": node("PreviewAny", source=["content", 0]),
        }
    )
    assert result.ok, result.message
    assert "start=0.5" in result.outputs["shown"]["text"][0]


EDIT = {
    "prompt": "snow",
    "negative": "",
    "blur_level": 0,
    "structure_strength": 1.0,
    "content_scale": 1.5,
    "temporal_scale": 1.0,
    "steps": 1,
    "strength": 1.0,
    "seed": 0,
}
SAMPLE = {name: EDIT[name] for name in ("content_scale", "temporal_scale", "steps", "strength", "seed")}
SAMPLE |= {"sampler": "euler", "window": 0, "overlap": 2}
KSAMPLER = {"cfg": 1.5, "sampler_name": "euler", "scheduler": "simple", "steps": 1, "denoise": 1.0, "seed": 1}
SPREAD = {"mask": ["mask", 0], "grow_px": 0, "feather_px": 0.0, "invert": False}
SAVE = {"frame_rate": 24.0, "crf": 18.0}
LABELS = {f"{place}_label": "" for place in ("first", "second", "third", "fourth")}

MORE = {
    "two": node("ImageFromBatch", image=["video", 1], batch_index=0, length=2),
    "wide": node("ImageScale", image=["video", 1], upscale_method="bilinear", width=128, height=32, crop="disabled"),
    "two masks": node("ImageToMask", image=["two", 0], channel="red"),
    "empty": node("EmptyLatentImage", width=64, height=64, batch_size=2),
    "square": node("EmptyImage", width=64, height=64, batch_size=2, color=0),
    "other": node("Gen1_Encode", image=["square", 0], vae=["model", 1], model=["model", 0]),
    "eight": node("Gen1_ScheduleContent", a=["words", 0], b=["words", 0], first_frame=0, last_frame=7, frames=8),
}

WRONG: dict[str, tuple[dict[str, Any], str]] = {
    "other number of frames in a mask's clips": (
        node("Gen1_EditMask", **SPREAD, edited=["video", 1], source=["two", 0]),
        "connect the frames that the edit was made of",
    ),
    "other size of a mask's clips": (
        node("Gen1_EditMask", **SPREAD, edited=["video", 1], source=["wide", 0]),
        "connect the frames that the edit was made of",
    ),
    "one clip of two": (node("Gen1_EditMask", **SPREAD, edited=["video", 1]), "connect source too"),
    "clips of other lengths": (
        node("Gen1_Compare", first=["video", 1], second=["two", 0], columns=2, **LABELS),
        "connect clips of one length, or a single picture",
    ),
    "mask of another length": (
        node("Gen1_EditVideo", video=["video", 0], mask=["two masks", 0], **EDIT),
        "give one mask picture, or a mask video of the same length",
    ),
    "content of another length": (
        node("Gen1_Condition", model=["model", 0], structure=["depth", 0], content=["eight", 0]),
        "frames",
    ),
    "strength without a source": (
        node(
            "Gen1_Sampler",
            model=["model", 0],
            structure=["depth", 0],
            content=["words", 0],
            **{**SAMPLE, "strength": 0.5},
        ),
        "wire Gen-1 Encode to source, or set strength to 1",
    ),
    "latents of another clip as source": (
        node(
            "Gen1_Sampler",
            model=["model", 0],
            structure=["depth", 0],
            content=["words", 0],
            source=["other", 0],
            **SAMPLE,
        ),
        "make both from the same frames",
    ),
    "latents of another clip in KSampler": (
        node(
            "KSampler",
            model=["model", 0],
            positive=["told", 0],
            negative=["told", 1],
            latent_image=["empty", 0],
            **KSAMPLER,
        ),
        "Condition",
    ),
    "latents of another clip to decode": (
        node("Gen1_Decode", latent=["other", 0], vae=["model", 1], image=["video", 1]),
        "connect to image the frames that the latents were made for",
    ),
    "latents of another kind of model to decode": (
        node("Gen1_Decode", latent=["empty", 0], vae=["model", 1], image=["video", 1]),
        "is not [frames, 8, height, width]; make it with Gen-1 Encode",
    ),
    "one frame to measure": (
        node("Gen1_Metrics", edited=["one", 0], encoder=["model", 2], prompt="snow"),
        "give two or more",
    ),
    "no picture": (
        node("Gen1_ContentFromImage", encoder=["model", 2], prompt="", negative="", seed=0, per_frame=False),
        "wire a picture into image",
    ),
    "file that is no video": (node("Gen1_LoadVideo", file="noise.mp4", **WHOLE), "give an MP4, MOV, MKV or WebM"),
    "file with a sound alone": (node("Gen1_LoadVideo", file="heard.mp4", **WHOLE), "give an MP4, MOV, MKV or WebM"),
    "file cut short": (node("Gen1_LoadVideo", file="half.mp4", **WHOLE), "copy or download it again"),
    "range without frames": (
        node("Gen1_LoadVideo", file="bunny.mp4", **{**WHOLE, "start_s": 60.0, "end_s": 0.0}),
        "lower start_s or raise end_s",
    ),
    "folder that is a file": (
        node("Gen1_SaveVideo", images=["video", 1], filename_prefix="taken/it", **SAVE),
        "give another name or folder",
    ),
    "folder outside": (
        node("Gen1_SaveVideo", images=["video", 1], filename_prefix="../it", **SAVE),
        "give a name, or a folder below it",
    ),
}
"""What is wrong, and the advice that must be in the message."""


@pytest.fixture(scope="module")
def broken(server: Any) -> Any:
    """The server with files that are no videos, and a file where a folder is wanted."""
    lay_out_broken(server.base / "input")
    (server.base / "output" / "taken").write_text("a file of the user", encoding="utf-8")
    return server


def lay_out_broken(folder: Path) -> None:
    whole = (folder / "bunny.mp4").read_bytes()
    (folder / "half.mp4").write_bytes(whole[: len(whole) // 2])
    (folder / "noise.mp4").write_bytes(np.random.default_rng(0).bytes(5000))
    with av.open(str(folder / "heard.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.pts = 8000, 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def contents(server: Any) -> dict[Path, bytes]:
    """All that lies in output and temp."""
    folders = [server.base / "output", server.base / "temp"]
    return {path: path.read_bytes() for folder in folders for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize("wrong", WRONG)
def test_what_only_execution_can_tell_is_said_in_three_parts(broken: Any, wrong: str) -> None:
    """What was given, why it cannot be, and after a semicolon what to do; short, and nothing on disk has changed."""
    asked, advice = WRONG[wrong]
    before = contents(broken)
    graph = {**PARTS, **MORE, "one": node("ImageFromBatch", image=["video", 1], batch_index=0, length=1)}
    result = broken.run({**graph, "asked": asked, "shown": node("PreviewAny", source=["asked", 0])})
    assert result.status == "error" and result.error["node_id"] == "asked", (result.status, result.message)
    assert result.error["exception_type"] == "ValueError"
    assert advice in result.message and ";" in result.message
    assert len(result.message) < LONGEST and "Traceback" not in result.message
    assert contents(broken) == before


def test_nothing_to_edit_with_is_told_before_anything_runs(server: Any) -> None:
    edit = node("Gen1_EditVideo", video=["video", 0], **{**EDIT, "prompt": " \n"})
    shown = node("PreviewAny", source=["asked", 0])
    result = server.run({**PARTS, "asked": edit, "shown": shown})
    assert result.status == "rejected" and "give a prompt or an image" in result.message
    edit["inputs"]["image"] = ["video", 1]
    pictured = server.run({**PARTS, "asked": edit, "shown": shown})
    assert pictured.ok, pictured.message


# Of other loaders, and disks.


def test_the_model_of_another_loader_is_refused_by_every_node(pack: Any) -> None:
    other = SimpleNamespace(get_attachment=lambda name: None, model=SimpleNamespace(), model_options={})
    nodes = {one.GET_SCHEMA().node_id: one for one in pack.nodes()}
    taking = [name for name, one in nodes.items() if any(each.io_type == "MODEL" for each in one.GET_SCHEMA().inputs)]
    assert len(taking) >= 7
    for name in taking:
        # What else is given does not matter: the model is looked at first.
        given = {each.id: getattr(each, "default", None) for each in nodes[name].GET_SCHEMA().inputs}
        given |= {"model": other} | ({"image": torch.zeros(2, 64, 64, 3)} if "image" in given else {})
        if name == "Gen1_EditVideo":
            given |= {"video": pack("nodes.host").video_of(pack.base / "input" / "bunny.mp4"), "image": None}
        if name == "Gen1_Encode":
            given |= {"vae": pack.node("Gen1_LoadModel").execute(model="tiny (embedded)").args[1]}
        with pytest.raises(ValueError, match="connect the MODEL of Gen-1 Load Model"), torch.inference_mode():
            nodes[name].execute(**given)


@pytest.fixture
def save(pack: Any) -> Callable[..., Path]:
    def execute(prefix: str, **inputs: Any) -> Path:
        done = pack.node("Gen1_SaveVideo").execute(filename_prefix=prefix, frame_rate=24.0, crf=0.0, **inputs)
        return Path(done.args[0].get_stream_source())

    return execute


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a disk that is full is a file of Linux")
def test_a_full_disk_loses_nothing(pack: Any, save: Callable[..., Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Written to /dev/full in place of the file beside the target, and in place of the copy in the temp folder."""
    images, output, temp = torch.rand(30, 64, 64, 3), pack.base / "output" / "full", pack.base / "temp"
    whole = save("full/it", images=images)
    before = whole.read_bytes()
    temp.mkdir(exist_ok=True)
    monkeypatch.setattr(secrets, "token_hex", lambda count: "here")
    (output / ".gen1-here.part").symlink_to("/dev/full")
    (temp / "gen1_here.mp4").symlink_to("/dev/full")
    with pytest.raises(ValueError, match="No space left on device.* free disk space"):
        save("full/it", images=images)
    with pytest.raises(ValueError, match="No space left on device.* free disk space"):
        save("full/it", video=pack("nodes.host").video_of(pack.base / "input" / "bunny.mp4"))
    assert list(output.iterdir()) == [whole] and whole.read_bytes() == before
    assert not (temp / "gen1_here.mp4").exists()
    monkeypatch.undo()
    assert save("full/it", images=images).name != whole.name


def test_a_target_that_cannot_be_is_told(pack: Any, save: Callable[..., Path]) -> None:
    """A file in the place of the folder, a name that is too long, and a folder in the place of a finished copy."""
    images = torch.rand(2, 16, 16, 3)
    (pack.base / "output" / "in the way").write_text("mine", encoding="utf-8")
    for prefix in ("in the way/it", "long" * 100):
        with pytest.raises(ValueError, match="give another name or folder"):
            save(prefix, images=images)
    assert (pack.base / "output" / "in the way").read_text(encoding="utf-8") == "mine"
    if os.name == "posix":
        part = pack.base / "temp" / "gen1_part.mp4"
        part.write_bytes(b"whole")
        target = pack.base / "output" / "a folder.mp4"
        target.mkdir()
        with pytest.raises(ValueError, match="choose a folder that may be written to"):
            pack("nodes.host_clips").place(part, target)
        assert not part.exists() and not list(pack.base.glob("output/.gen1*")) and target.is_dir()


# What need not be there.

REFUSING = f"""
import sys

for name in {OPTIONAL}:
    sys.modules[name] = None
NODE_CLASS_MAPPINGS = {{}}
"""

ASKING = f"""
import importlib

for name in {OPTIONAL}:
    try:
        importlib.import_module(name)
    except ImportError:
        print(f"REFUSED {{name}}", flush=True)
NODE_CLASS_MAPPINGS = {{}}
"""


@pytest.mark.slow
def test_tiny_workflows_run_where_nothing_optional_can_be_imported(new_server: Any) -> None:
    """From the first pack on, none of them can be imported by anyone in this server, ours included.

    ComfyUI itself has imported transformers by then, and needs it.
    """
    server = new_server(others={"000_refusing": REFUSING, "zzz_asking": ASKING})
    assert all(f"REFUSED {name}\n" in server.log for name in OPTIONAL), server.log
    for name in ("tiny_text_edit", "tiny_parts"):
        workflow = read(ROOT / "workflows" / f"{name}.json")
        result = server.run(as_prompt(workflow), timeout_s=900)
        assert result.ok, result.message
        (save,) = of_type(workflow, "Gen1_SaveVideo")
        assert server.file(result.outputs[str(save["id"])]["images"][0]).stat().st_size > 1000
