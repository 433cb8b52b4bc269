"""The workflows of the pack, and what ComfyUI's page sends for one."""

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
FILES = sorted((ROOT / "workflows").glob("*.json"))
TINY = [path for path in FILES if path.name.startswith("tiny_")]
"""Those that need only the embedded model."""

PAGE_ONLY = {"upload", "control_after_generate"}
"""Widgets that ComfyUI's page adds and does not send."""


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8"))


def as_prompt(workflow: dict[str, Any]) -> dict[str, Any]:
    """What Run sends; nodes/test_canvas.py compares it with what the page makes of the same file."""
    origins = {link[0]: [str(link[1]), link[2]] for link in workflow["links"]}
    prompt = {}
    for node in workflow["nodes"]:
        if node["type"] == "MarkdownNote":
            continue
        inputs = {name: value for name, value in node["widgets_values_named"].items() if name not in PAGE_ONLY}
        inputs |= {one["name"]: origins[one["link"]] for one in node["inputs"] if one["link"] is not None}
        prompt[str(node["id"])] = {"class_type": node["type"], "inputs": inputs}
    return prompt


def of_type(workflow: dict[str, Any], kind: str) -> list[dict[str, Any]]:
    return [node for node in workflow["nodes"] if node["type"] == kind]
