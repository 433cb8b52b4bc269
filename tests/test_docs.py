"""The documents say where things are; here it is checked that they are there."""

import ast
import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCUMENTS = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")])

each_document = pytest.mark.parametrize("document", DOCUMENTS, ids=lambda p: p.relative_to(ROOT).as_posix())


def defined(path: Path) -> set[str]:
    """The names that the top level of a module defines."""
    names: set[str] = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            names.add(node.name)
        targets = node.targets if isinstance(node, ast.Assign) else [getattr(node, "target", None)]
        names |= {target.id for target in targets if isinstance(target, ast.Name)}
    return names


def dead_references(text: str, *, base: Path) -> list[str]:
    """References like `diffusion/guidance.py:guided` whose file or name is not there."""
    dead = []
    for file, name in re.findall(r"`([\w./]+\.py)(?::(\w+))?`", text):
        found = [p for p in (base / file, ROOT / file, ROOT / "gen1_core" / file) if p.is_file()]
        if not found or (name and name not in defined(found[0])):
            dead.append(f"{file}:{name}" if name else file)
    return dead


def dead_links(text: str, *, base: Path) -> list[str]:
    """Links and pictures to files of the repository that are not there."""
    links = re.findall(r"\]\(([^)#\s]+)", text)
    return [link for link in links if "://" not in link and not (base / link).exists()]


@each_document
def test_what_a_document_names_exists(document: Path) -> None:
    text = document.read_text(encoding="utf-8")
    assert dead_references(text, base=document.parent) == []
    assert dead_links(text, base=document.parent) == []


def test_a_dead_reference_is_found() -> None:
    text = "`tensors.py:to_float`, `tensors.py:nothing`, `nowhere.py`, [a](README.md), [b](no.md), [c](https://x.org/y)"
    assert dead_references(text, base=ROOT) == ["tensors.py:nothing", "nowhere.py"]
    assert dead_links(text, base=ROOT) == ["no.md"]
