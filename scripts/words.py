"""What is said of the nodes, from their schemas: locales, the tables of the help pages and of docs/nodes.md.

English is the schemas' own. Chinese is written by hand, phrase by phrase, in locales/chinese.json, so that a changed
tooltip has no translation until somebody makes one.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from schemas import ROOT, Input, Schemas, inputs_of, our_nodes

CHINESE = ROOT / "locales" / "chinese.json"

BEGIN, END = "<!-- written by scripts/node_files.py -->", "<!-- end -->"
"""Between these lines of a page the script writes; the rest is written by hand."""

HEADINGS = {
    "en": {
        "inputs": ("Inputs", ("input", "type", "default", "what it does")),
        "outputs": ("Outputs", ("output", "type", "what it is")),
        "optional": "optional",
    },
    "zh": {
        "inputs": ("输入", ("输入", "类型", "默认值", "作用")),
        "outputs": ("输出", ("输出", "类型", "说明")),
        "optional": "可选",
    },
}

CATEGORIES = ("Gen-1",)
TYPES = {
    "GEN1_DEPTH": "depth estimator",
    "GEN1_STRUCTURE": "structure",
    "GEN1_CONTENT": "content",
    "GEN1_ENCODER": "content encoder",
}
"""What our own types are called; the core's are the page's own business."""


def english(schemas: Schemas) -> dict[str, Any]:
    """locales/en/nodeDefs.json."""
    return {name: node_words(schemas[name]) for name in our_nodes(schemas)}


def node_words(schema: dict[str, Any]) -> dict[str, Any]:
    """All that is said of one node."""
    tooltips = schema.get("output_tooltips") or [""] * len(schema["output"])
    return {
        "display_name": schema["display_name"],
        "description": schema.get("description", ""),
        "inputs": {
            one.name: {
                "name": one.options.get("display_name", one.name),
                "tooltip": one.options.get("tooltip", ""),
            }
            for one in inputs_of(schema)
        },
        "outputs": {
            str(slot): {"name": name, "tooltip": tooltip or ""}
            for slot, (name, tooltip) in enumerate(zip(schema["output_name"], tooltips, strict=True))
        },
    }


def phrases(words: Any) -> Iterator[str]:
    """Every phrase in a tree of words."""
    if isinstance(words, str):
        yield words
    else:
        for value in words.values():
            yield from phrases(value)


def translated(words: Any, catalogue: dict[str, str]) -> Any:
    """The same tree in the catalogue's language."""
    if isinstance(words, str):
        return catalogue.get(words, words)
    return {key: translated(value, catalogue) for key, value in words.items()}


def untranslated(words: Any, catalogue: dict[str, str]) -> list[str]:
    """Phrases without a translation, in their order; names of types stay as they are."""
    found = (phrase for phrase in dict.fromkeys(phrases(words)) if phrase and not phrase.isupper())
    return [phrase for phrase in found if phrase not in catalogue]


def as_json(words: Any) -> str:
    """As a file."""
    return json.dumps(words, ensure_ascii=False, indent=2) + "\n"


def between(page: str, text: str, *, path: Path) -> str:
    """The page with what the script writes put between its two marks."""
    if page.count(BEGIN) != 1 or page.count(END) != 1:
        raise SystemExit(f"{path} needs the lines {BEGIN} and {END} once each; the tables go between them.")
    head, rest = page.split(BEGIN)
    return f"{head}{BEGIN}\n\n{text}\n\n{END}{rest.split(END)[1]}"


def cell(text: object) -> str:
    """Text that does not break a table."""
    return re.sub(r"\s+", " ", str(text)).replace("|", r"\|").strip()


def table(headings: tuple[str, ...], rows: list[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    lines = [headings, ("---",) * len(headings), *rows]
    return "\n".join("| " + " | ".join(cell(one) for one in line) + " |" for line in lines)


def value(one: Input) -> str:
    """The default as people read it; file lists and long texts have none to show."""
    if not one.widget or (one.wire == "COMBO" and "default" not in one.options):
        return ""
    shown = str(one.default)
    return f"`{shown}`" if shown and len(shown) < 40 else ""


def page_tables(schema: dict[str, Any], words: dict[str, Any], language: str) -> str:
    """Inputs and outputs of a help page."""
    own = HEADINGS[language]
    rows = [
        (
            f"`{one.name}`",
            one.wire if not one.optional else f"{one.wire} ({own['optional']})",
            value(one),
            words["inputs"][one.name]["tooltip"],
        )
        for one in inputs_of(schema)
    ]
    told = words["outputs"].values()
    outputs = [(f"`{said['name']}`", wire, said["tooltip"]) for said, wire in zip(told, schema["output"], strict=True)]
    parts = [f"## {own['inputs'][0]}\n\n{table(own['inputs'][1], rows)}"]
    if outputs:
        parts.append(f"## {own['outputs'][0]}\n\n{table(own['outputs'][1], outputs)}")
    return "\n\n".join(parts)


def overview(schemas: Schemas) -> str:
    """The table of docs/nodes.md."""
    rows = []
    for name in our_nodes(schemas):
        schema = schemas[name]
        inputs = []
        for one in inputs_of(schema):
            shown = f"{one.name} {one.wire}" + (f" [{value(one).strip('`')}]" if value(one) else "")
            inputs.append(f"*{shown}*" if one.optional else shown)
        outputs = [
            wire if wire == told else f"{told} {wire}"
            for told, wire in zip(schema["output_name"], schema["output"], strict=True)
        ]
        who = f"[{schema['display_name']}](../web/docs/{name}.md) `{name}`"
        rows.append((who, ", ".join(inputs) or "none", ", ".join(outputs) or "none"))
    return table(("node", "inputs", "outputs"), rows)


def word_files(schemas: Schemas) -> dict[Path, str]:
    """Every file that says something of the nodes, with its text."""
    catalogue = json.loads(CHINESE.read_text(encoding="utf-8"))
    words = {"en": english(schemas)}
    main = {"nodeCategories": {name: name for name in CATEGORIES}, "dataTypes": TYPES}
    missing = untranslated({**words["en"], **main}, catalogue)
    if missing:
        listed = json.dumps(dict.fromkeys(missing, ""), ensure_ascii=False, indent=2)
        raise SystemExit(f"{CHINESE} lacks {len(missing)} phrases; add their Chinese:\n{listed}")
    words["zh"] = translated(words["en"], catalogue)
    used = (phrase for phrase in dict.fromkeys(phrases({**words["en"], **main})) if phrase in catalogue)
    files = {CHINESE: as_json({phrase: catalogue[phrase] for phrase in used})}
    for language, nodes in words.items():
        folder = ROOT / "locales" / language
        files[folder / "nodeDefs.json"] = as_json(nodes)
        files[folder / "main.json"] = as_json(main if language == "en" else translated(main, catalogue))
        for name in nodes:
            path = help_page(name, language)
            page = path.read_text(encoding="utf-8") if path.is_file() else f"{BEGIN}\n{END}\n"
            files[path] = between(page, page_tables(schemas[name], nodes[name], language), path=path)
    document = ROOT / "docs" / "nodes.md"
    files[document] = between(document.read_text(encoding="utf-8"), overview(schemas), path=document)
    return files


def help_page(name: str, language: str) -> Path:
    """Where ComfyUI's page looks for the help of a node."""
    docs = ROOT / "web" / "docs"
    return docs / f"{name}.md" if language == "en" else docs / name / f"{language}.md"
