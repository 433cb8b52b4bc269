"""What is said of the nodes: written files that follow from the schemas are current, and people can read them."""

import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
LANGUAGES = ("en", "zh")
NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))

each_language = pytest.mark.parametrize("language", LANGUAGES)


def locale(language: str, name: str) -> dict[str, Any]:
    return json.loads((ROOT / "locales" / language / f"{name}.json").read_text(encoding="utf-8"))


def help_page(node: str, language: str) -> str:
    """As ComfyUI's page looks for it: in the language, else without one."""
    docs = ROOT / "web" / "docs"
    path = docs / f"{node}.md" if language == "en" else docs / node / f"{language}.md"
    return path.read_text(encoding="utf-8")


def leaves(words: Any, path: str = "") -> Iterator[tuple[str, str]]:
    """Every phrase with the keys that lead to it."""
    if isinstance(words, str):
        yield path, words
    else:
        for key, value in words.items():
            yield from leaves(value, f"{path}.{key}")


def check(schemas: Path) -> subprocess.CompletedProcess[str]:
    """Whether the written files are those that follow from the schemas."""
    command = [sys.executable, str(ROOT / "scripts" / "node_files.py"), "--check", "--schemas", str(schemas)]
    return subprocess.run(command, capture_output=True, text=True, encoding="utf-8")


def test_what_follows_from_the_schemas_is_current(server: Any, tmp_path: Path) -> None:
    """Kept schemas, locales, tables and workflows are what scripts/node_files.py would write."""
    told = tmp_path / "object_info.json"
    told.write_text(json.dumps(server.object_info()), encoding="utf-8")
    done = check(told)
    assert done.returncode == 0, done.stderr


def test_what_follows_from_the_kept_schemas_is_current() -> None:
    """The same without a ComfyUI, as far as the schemas that are kept are current."""
    done = check(ROOT / "tests" / "object_info.json")
    assert done.returncode == 0, done.stderr


def test_a_changed_default_is_found(tmp_path: Path) -> None:
    """In workflows, tables and kept schemas."""
    schemas = json.loads((ROOT / "tests" / "object_info.json").read_text(encoding="utf-8"))
    schemas["Gen1_SaveVideo"]["input"]["required"]["crf"][1]["default"] = 17.0
    told = tmp_path / "object_info.json"
    told.write_text(json.dumps(schemas), encoding="utf-8")
    done = check(told)
    assert done.returncode != 0
    for stale in ("tests/object_info.json", "web/docs/Gen1_SaveVideo.md", "docs/nodes.md", "workflows/"):
        assert stale in done.stderr, stale


def test_a_stale_file_is_found(tmp_path: Path) -> None:
    """A node whose tooltip changed has no translation any more."""
    schema = {
        "name": "Gen1_New",
        "display_name": "Gen-1 New",
        "description": "A node that nobody has translated.",
        "input": {"required": {"image": ["IMAGE", {"tooltip": "Frames."}]}},
        "output": ["IMAGE"],
        "output_name": ["IMAGE"],
        "output_tooltips": ["Other frames."],
    }
    told = tmp_path / "object_info.json"
    told.write_text(json.dumps({"Gen1_New": schema}), encoding="utf-8")
    done = check(told)
    assert done.returncode != 0
    assert "A node that nobody has translated." in done.stderr


@pytest.mark.parametrize("name", ["main", "nodeDefs"])
def test_both_languages_say_the_same_things(name: str) -> None:
    english, chinese = (dict(leaves(locale(language, name))) for language in LANGUAGES)
    assert list(english) == list(chinese)
    for path, phrase in english.items():
        assert bool(phrase) == bool(chinese[path]), path


@each_language
def test_no_phrase_is_taken_for_a_template(language: str) -> None:
    """The page formats messages: braces, bars and at signs mean something to it, and a phrase with one breaks."""
    for name in ("main", "nodeDefs"):
        for path, phrase in leaves(locale(language, name)):
            assert not re.search(r"[{}|@]", phrase), (path, phrase)


def test_names_in_chinese_are_short() -> None:
    """They stand on the node."""
    for node in locale("zh", "nodeDefs").values():
        for one in (*node["inputs"].values(), *node["outputs"].values()):
            assert len(one["name"]) <= 20, one


def test_chinese_keeps_the_numbers() -> None:
    """A translation that says another default or bound misleads; spelled-out words aside, digits are the same."""
    english, chinese = (dict(leaves(locale(language, "nodeDefs"))) for language in LANGUAGES)
    for path, phrase in english.items():
        numbers, translated = (
            re.findall(r"\d+(?:\.\d+)?", re.sub(r"Gen-1|3D|n-th", "", one)) for one in (phrase, chinese[path])
        )
        assert sorted(numbers) == sorted(translated), (path, phrase, chinese[path])


@each_language
@pytest.mark.parametrize("node", NODES)
def test_a_help_page_is_headed_explained_and_has_its_tables(node: str, language: str) -> None:
    page, words = help_page(node, language), locale(language, "nodeDefs")[node]
    assert page.splitlines()[0] == f"# {words['display_name']}"
    introduction = page.split("<!--")[0].splitlines()[2:]
    assert len(" ".join(introduction)) > 15
    for one in (*words["inputs"].values(), *words["outputs"].values()):
        assert one["tooltip"] in page


@each_language
def test_help_pages_name_nodes_that_exist(language: str) -> None:
    names = [node["display_name"] for node in locale(language, "nodeDefs").values()]
    for node in NODES:
        prose = re.sub(r"\s+", " ", help_page(node, language))
        starts = re.finditer(r"Gen-1 [A-Z]" if language == "en" else r"“Gen-1 ", prose)
        for start in starts:
            rest = prose[start.start() :].removeprefix("“")
            assert any(rest.startswith(name) for name in names), (node, rest[:40])


def test_the_document_has_every_node_and_every_own_type() -> None:
    text = (ROOT / "docs" / "nodes.md").read_text(encoding="utf-8")
    assert re.findall(r"`(Gen1_[A-Za-z]+)`", text) == list(NODES)
    for name in locale("en", "main")["dataTypes"]:
        assert f"| `{name}` |" in text
