"""The schemas of our nodes and of ComfyUI's own, as a running ComfyUI would tell them at ``/object_info``."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]

Schemas = dict[str, dict[str, Any]]
"""Of every node by its id."""

PREFIX = "Gen1_"
"""Of every id of ours."""

WIDGETS = ("INT", "FLOAT", "STRING", "BOOLEAN", "COMBO", "IMAGEUPLOAD")
"""Types that are filled in on the node itself."""

UPLOADS = ("image_upload", "video_upload", "animated_image_upload")
"""Options of a list of files, to which the page adds a button."""

SAVED = ROOT / "tests" / "object_info.json"
"""What is checked where there is no ComfyUI: our nodes and those of its own that the workflows use."""

KEPT = (
    *("name", "display_name", "description", "category", "input", "input_order"),
    *("output", "output_is_list", "output_name", "output_tooltips", "output_node"),
)
"""What the saved schemas say of a node; the rest is of one server alone, as the folder that the pack lies in."""

MARK = "schemas:"
"""What the line with the answer begins with; ComfyUI prints others."""

PROGRAM = r"""
import asyncio, json, sys
sys.argv = ["main.py", "--cpu", "--base-directory", BASE]
sys.path.insert(0, COMFYUI)
import utils.install_util  # before another package of that name comes in
import comfy.options
comfy.options.enable_args_parsing()
import nodes
from comfy_api.internal import _ComfyNodeInternal

async def load():
    await nodes.init_builtin_extra_nodes()
    assert await nodes.load_custom_node(PACK), "ComfyUI refused the pack"

def told(name, node):
    if issubclass(node, _ComfyNodeInternal):
        info = node.GET_NODE_INFO_V1()
        return info if isinstance(info, dict) else vars(info)
    inputs = node.INPUT_TYPES()
    return {
        "input": inputs,
        "input_order": {key: list(value) for key, value in inputs.items()},
        "output": list(node.RETURN_TYPES),
        "output_is_list": list(getattr(node, "OUTPUT_IS_LIST", [False] * len(node.RETURN_TYPES))),
        "output_name": list(getattr(node, "RETURN_NAMES", node.RETURN_TYPES)),
        "name": name,
        "display_name": nodes.NODE_DISPLAY_NAME_MAPPINGS.get(name, name),
        "description": getattr(node, "DESCRIPTION", ""),
        "category": getattr(node, "CATEGORY", "sd"),
        "output_node": bool(getattr(node, "OUTPUT_NODE", False)),
        **({"output_tooltips": list(node.OUTPUT_TOOLTIPS)} if hasattr(node, "OUTPUT_TOOLTIPS") else {}),
    }

asyncio.run(load())
print(MARK + json.dumps({name: told(name, node) for name, node in nodes.NODE_CLASS_MAPPINGS.items()}, default=str))
"""


@dataclass(frozen=True, kw_only=True)
class Input:
    """One input of a node."""

    name: str
    type: Any
    optional: bool
    options: dict[str, Any]

    @property
    def wire(self) -> str:
        """Its type's name; older combos carry their choices in its place."""
        return "COMBO" if isinstance(self.type, list) else self.type

    @property
    def choices(self) -> list[Any]:
        """What a combo offers."""
        return self.type if isinstance(self.type, list) else self.options.get("options") or []

    @property
    def widget(self) -> bool:
        """Whether it is filled in on the node, where no link comes in."""
        return self.wire in WIDGETS and not self.options.get("forceInput")

    @property
    def default(self) -> Any:
        """What it holds on a new node."""
        empty = {"INT": 0, "FLOAT": 0.0, "STRING": "", "BOOLEAN": False, "COMBO": next(iter(self.choices), "")}
        return self.options.get("default", empty.get(self.wire))

    @property
    def controlled(self) -> bool:
        """Whether the page puts the choice of what follows a run behind this number."""
        return self.wire == "INT" and self.options.get("control_after_generate", self.name in ("seed", "noise_seed"))


def comfyui_path() -> Path:
    """Where ComfyUI is: COMFYUI_PATH, else the place that comfy-cli gives it."""
    path = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    if not (path / "nodes.py").is_file():
        raise SystemExit(f"no ComfyUI at {path}, which tells the schemas; clone it there or set COMFYUI_PATH.")
    return path


def read_schemas(comfyui: Path, pack: Path = ROOT) -> Schemas:
    """What ``/object_info`` of a ComfyUI with this pack says of every node, ours in their order."""
    with tempfile.TemporaryDirectory() as base:
        given = {"COMFYUI": str(comfyui), "PACK": str(pack), "BASE": base, "MARK": MARK}
        program = "".join(f"{name} = {value!r}\n" for name, value in given.items()) + PROGRAM
        for name in ("custom_nodes", "input"):
            Path(base, name).mkdir()
        done = subprocess.run(
            [sys.executable, "-c", program],
            cwd=base,
            env={**os.environ, "PYTHONPATH": ""},
            capture_output=True,
            text=True,
            encoding="utf-8",
        )
    lines = [line for line in done.stdout.splitlines() if line.startswith(MARK)]
    if not lines:
        raise SystemExit(f"ComfyUI at {comfyui} did not tell its schemas:\n{done.stderr[-3000:]}")
    return json.loads(lines[0].removeprefix(MARK))


def our_nodes(schemas: Schemas) -> list[str]:
    """Our ids, in the order of the node list."""
    return [name for name in schemas if name.startswith(PREFIX)]


def lasting(schemas: Schemas, kinds: Iterable[str]) -> Schemas:
    """Of our nodes and of other kinds, what is the same on every machine: lists of files are without the user's own."""
    names = [*our_nodes(schemas), *sorted(set(kinds) & set(schemas) - set(our_nodes(schemas)))]
    return {name: _without_files({key: schemas[name][key] for key in KEPT if key in schemas[name]}) for name in names}


def _without_files(said: Any) -> Any:
    if isinstance(said, dict):
        return {key: _without_files(value) for key, value in said.items()}
    if not isinstance(said, list):
        return said
    return [_without_files(one) for one in said if not (isinstance(one, str) and re.search(r"\w\.\w{2,12}$", one))]


def inputs_of(schema: dict[str, Any]) -> list[Input]:
    """The inputs of a node in their order: required ones first, as ComfyUI's page has them."""
    found = []
    for group in ("required", "optional"):
        given = schema["input"].get(group, {})
        for name in schema.get("input_order", {}).get(group, list(given)):
            kind, *rest = given[name]
            found.append(Input(name=name, type=kind, optional=group == "optional", options=rest[0] if rest else {}))
    return found


def page_inputs(schema: dict[str, Any]) -> list[Input]:
    """The same with what ComfyUI's page adds of its own: the button to upload, which comes last."""
    inputs = inputs_of(schema)
    if any(one.options.get(name) for one in inputs for name in UPLOADS):
        inputs.append(Input(name="upload", type="IMAGEUPLOAD", optional=False, options={"default": "image"}))
    return inputs
