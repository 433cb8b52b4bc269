"""A ComfyUI workflow, version 0.4: nodes wired by name against their schemas and laid out in columns of groups."""

import json
import re
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from schemas import PREFIX, Input, Schemas, page_inputs

WIDTH, NOTE_WIDTH, WIDE = 320, 360, 400
TITLE, SLOT, WIDGET, TEXT, PICTURE = 30, 20, 24, 84, 240
GAP, MARGIN, HEADER = 40, 20, 60
"""Sizes in pixels, as the canvas of ComfyUI draws them."""

TABLE_COLUMN = 170
"""Of a note; a table that is wider is cut off."""

PREVIEW = 216
"""What a node grows by where it shows pictures while it works: without the room it would cover the one below."""

PREVIEWING = {
    *("EditVideo", "DepthStructure", "StructureFromImage", "Sampler", "Decode", "Compare", "EditMask"),
    *("KSampler", "SamplerCustomAdvanced", "PreviewImage"),
}
"""Those nodes, ours and ComfyUI's."""

DEPTHS = ("Gen1_DepthStructure", "Gen1_StructureFromImage")

STAGES = {
    "Load": "#3f789e",
    "Structure": "#4f8f5b",
    "Content": "#a1762f",
    "Sample": "#7a5aa6",
    "Mask": "#2f8f8f",
    "Save": "#9e4a4a",
}
"""One colour for every stage, the same in all workflows."""

CNR_ID = "gen1-video"
"""Under which ComfyUI's registry has this pack: how the Manager offers it where it is missing."""


@dataclass
class Link:
    """One output of a node."""

    node: "Node"
    slot: int


@dataclass
class Node:
    """One node on the canvas."""

    id: int
    type: str
    title: str
    size: tuple[int, int]
    inputs: list[Input]
    outputs: list[tuple[str, str]]
    values: dict[str, Any]
    links: dict[str, Link]
    properties: dict[str, Any]
    position: tuple[int, int] = (0, 0)
    colours: dict[str, str] = field(default_factory=dict)

    def __getitem__(self, which: str | int) -> Link:
        """An output by its place, its name, or a type that only one has."""
        if isinstance(which, int):
            return Link(self, which)
        for told in zip(*self.outputs, strict=True):
            if told.count(which) == 1:
                return Link(self, told.index(which))
        listed = ", ".join(f"{name} {wire}" for name, wire in self.outputs)
        raise SystemExit(f"{self.type} has no one output {which!r}; it has {listed}.")


@dataclass
class Group:
    """Nodes of one stage, one below the other in lanes beside each other."""

    title: str
    stage: str
    column: int
    lanes: list[list[Node]] = field(default_factory=lambda: [[]])

    def size(self) -> tuple[int, int]:
        """Width and height with the frame."""
        widths = [max(node.size[0] for node in lane) for lane in self.lanes]
        heights = [sum(TITLE + node.size[1] + GAP for node in lane) - GAP for lane in self.lanes]
        return sum(widths) + GAP * (len(widths) - 1) + 2 * MARGIN, max(heights) + HEADER + MARGIN

    def place(self, left: int, top: int) -> None:
        """Give every node its position, and those of a lane one width."""
        x = left + MARGIN
        for lane in self.lanes:
            y = top + HEADER
            width = max(node.size[0] for node in lane)
            for node in lane:
                node.size = (width, node.size[1])
                node.position = (x, y + TITLE)
                y += TITLE + node.size[1] + GAP
            x += width + GAP


class Graph:
    """A workflow in the making: ``with graph.group(...)``, then ``graph.add(type, input=value or link)``."""

    def __init__(self, name: str, *, schemas: Schemas, version: str, about: str) -> None:
        self.name = name
        self.schemas = schemas
        self.version = version
        self.groups: list[Group] = []
        self.nodes: list[Node] = []
        self.note = self._note(about)

    @contextmanager
    def group(self, title: str, *, column: int, stage: str = "") -> Iterator[Group]:
        """A frame around the nodes added inside; groups of one column stand one below the other."""
        group = Group(title, stage or title.split()[0], column)
        self.groups.append(group)
        yield group

    def lane(self) -> None:
        """Go on beside the nodes of this group instead of below them."""
        self.groups[-1].lanes.append([])

    def add(self, kind: str, *, title: str = "", models: tuple[dict[str, str], ...] = (), **given: Any) -> Node:
        """A node with its inputs by name: links, or values of widgets; what is not given keeps its default."""
        if kind not in self.schemas:
            raise SystemExit(f"{self.name}: ComfyUI has no node {kind}.")
        schema = self.schemas[kind]
        inputs = page_inputs(schema)
        known = {one.name: one for one in inputs}
        for name in given.keys() - known.keys():
            raise SystemExit(f"{self.name}: {kind} has no input {name!r}; it has {', '.join(known)}.")
        links = {name: value for name, value in given.items() if isinstance(value, Link)}
        for name, link in links.items():
            self._check(link, known[name], kind)
        for one in inputs:
            if not (one.optional or one.widget or one.name in given):
                raise SystemExit(f"{self.name}: {kind} needs {one.name}.")
        values: dict[str, Any] = {}
        for one in (one for one in inputs if one.widget):
            value = given.get(one.name)
            values[one.name] = one.default if value is None or isinstance(value, Link) else value
            if one.controlled:
                values["control_after_generate"] = "fixed"
        ours = kind.startswith(PREFIX)
        properties = {
            "cnr_id": CNR_ID if ours else "comfy-core",
            "ver": self.version if ours else "0.3.64",
            "Node name for S&R": kind,
            **({"models": list(models)} if models else {}),
        }
        outputs = [(name, wire) for name, wire in zip(schema["output_name"], schema["output"], strict=True)]
        node = Node(
            id=len(self.nodes) + 1,
            type=kind,
            title=title,
            size=size_of(kind, inputs, outputs),
            inputs=inputs,
            outputs=outputs,
            values=values,
            links=links,
            properties=properties,
        )
        self.nodes.append(node)
        self.groups[-1].lanes[-1].append(node)
        return node

    def _check(self, link: Link, target: Input, kind: str) -> None:
        wire = link.node.outputs[link.slot][1]
        if target.wire != "*" and wire not in str(target.wire).split(","):
            raise SystemExit(f"{self.name}: {link.node.type} gives {wire}, and {kind} takes {target.wire} there.")

    def _note(self, text: str) -> Node:
        columns = max(line.count("|") - 1 for line in text.splitlines())
        note = Node(
            id=1,
            type="MarkdownNote",
            title="Read me",
            size=(max(NOTE_WIDTH, TABLE_COLUMN * columns), 80 + sum(line_height(line) for line in text.splitlines())),
            inputs=[],
            outputs=[],
            values={"text": text},
            links={},
            properties={},
            colours={"color": "#432", "bgcolor": "#653"},
        )
        self.nodes.append(note)
        return note

    def _lay_out(self) -> dict[int, tuple[int, int, int, int]]:
        """Positions of all nodes; the frames by the index of their group."""
        linked = {(link.node.id, link.slot) for node in self.nodes for link in node.links.values()}
        for node in self.nodes:
            # Depth is drawn, and shown, only where something takes the picture.
            if node.type in DEPTHS and (node.id, node.outputs.index(("IMAGE", "IMAGE"))) not in linked:
                node.size = (node.size[0], node.size[1] - PREVIEW)
        self.note.position = (0, HEADER)
        frames = {}
        left = self.note.size[0] + GAP
        for column in sorted({group.column for group in self.groups}):
            here = [(index, group) for index, group in enumerate(self.groups) if group.column == column]
            width, top = max(group.size()[0] for _, group in here), 0
            for index, group in here:
                group.place(left, top)
                height = group.size()[1]
                frames[index] = (left, top, width, height)
                top += height + GAP
            left += width + GAP
        return frames

    def workflow(self) -> dict[str, Any]:
        """The file's content; the same for the same graph."""
        frames = self._lay_out()
        links: list[list[Any]] = []
        taken: dict[tuple[int, int], list[int]] = {}
        sockets: dict[int, list[Input]] = {
            # As the page orders them: what only a link can fill, then what has a widget.
            node.id: sorted(node.inputs, key=lambda one: one.widget)
            for node in self.nodes
        }
        into: dict[tuple[int, str], int] = {}
        for node in self.nodes:
            for slot, one in enumerate(sockets[node.id]):
                if one.name in node.links:
                    link = node.links[one.name]
                    number = len(links) + 1
                    wire = link.node.outputs[link.slot][1]
                    links.append([number, link.node.id, link.slot, node.id, slot, wire])
                    taken.setdefault((link.node.id, link.slot), []).append(number)
                    into[node.id, one.name] = number
        return {
            "id": str(uuid.uuid5(uuid.NAMESPACE_URL, f"{CNR_ID}/{self.name}")),
            "revision": 0,
            "last_node_id": len(self.nodes),
            "last_link_id": len(links),
            "nodes": [
                serialised(node, order, sockets[node.id], into=into, taken=taken)
                # As they were added: a link can only come from a node that is there, so they can run in this order.
                for order, node in enumerate(self.nodes)
            ],
            "links": links,
            "groups": [
                {
                    "id": index + 1,
                    "title": group.title,
                    "bounding": list(frames[index]),
                    "color": STAGES[group.stage],
                    "font_size": 24,
                    "flags": {},
                }
                for index, group in enumerate(self.groups)
            ],
            "config": {},
            "extra": {},
            "version": 0.4,
        }


def line_height(line: str) -> int:
    """Of a line of Markdown in a note; links and addresses of a table are seen without their targets."""
    seen = re.sub(r"\]\([^)]*\)", "", line)
    if seen.startswith("#"):
        return 24 * (1 + len(seen) // 30)
    if seen.startswith("|"):
        return 22
    return 15 * (1 + len(seen) // 58) if seen else 10


def size_of(kind: str, inputs: list[Input], outputs: list[tuple[str, str]]) -> tuple[int, int]:
    """Room for a node's slots and widgets, and for what it shows."""
    widgets = [one for one in inputs if one.widget]
    rows = max(sum(not one.widget for one in inputs), len(outputs))
    texts = sum(bool(one.options.get("multiline")) for one in widgets)
    height = SLOT * rows + WIDGET * (len(widgets) + sum(one.controlled for one in widgets)) + TEXT * texts + 16
    shows = ("LoadImage", "LoadVideo", "SaveVideo")
    if kind.removeprefix(PREFIX) in shows:
        height += PICTURE
    if kind.removeprefix(PREFIX) in PREVIEWING:
        height += PREVIEW
    if kind == "PreviewAny":
        height += TEXT
    return (WIDE if texts or kind.endswith("LoadPublic") else WIDTH), height


def serialised(
    node: Node,
    order: int,
    sockets: list[Input],
    *,
    into: dict[tuple[int, str], int],
    taken: dict[tuple[int, int], list[int]],
) -> dict[str, Any]:
    """One node as the file has it, with its widgets by place and by name."""
    return {
        "id": node.id,
        "type": node.type,
        "pos": list(node.position),
        "size": list(node.size),
        "flags": {},
        "order": order,
        "mode": 0,
        "inputs": [
            {
                "name": one.name,
                "type": one.wire,
                **({"shape": 7} if one.optional else {}),
                **({"widget": {"name": one.name}} if one.widget else {}),
                "link": into.get((node.id, one.name)),
            }
            for one in sockets
        ],
        "outputs": [
            {"name": name, "type": wire, "links": taken.get((node.id, slot))}
            for slot, (name, wire) in enumerate(node.outputs)
        ],
        **({"title": node.title} if node.title else {}),
        "properties": node.properties,
        "widgets_values": list(node.values.values()),
        "widgets_values_named": node.values,
        **node.colours,
    }


def as_text(workflow: dict[str, Any]) -> str:
    """The file's text, one node and one link a line, so that changes can be read."""
    parts = []
    for key, value in workflow.items():
        if key in ("nodes", "links", "groups") and value:
            rows = ",\n".join("  " + json.dumps(one, ensure_ascii=False) for one in value)
            parts.append(f'"{key}": [\n{rows}\n ]')
        else:
            parts.append(f'"{key}": {json.dumps(value, ensure_ascii=False)}')
    return "{\n " + ",\n ".join(parts) + "\n}\n"
