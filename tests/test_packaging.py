"""What is shipped: the wheel, the lists of dependencies, and the node pack as ComfyUI loads it."""

import ast
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
import urllib.request
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from types import ModuleType
from typing import Any

import pathspec
import pytest
from comfy_server import NotInstalled, Server, lay_out
from PIL import Image
from workflow_files import FILES, as_prompt, read

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


@pytest.fixture(scope="module")
def project(root: Path) -> dict:
    return tomllib.loads((root / "pyproject.toml").read_text(encoding="utf-8"))


def test_requirements_are_the_dependencies(root: Path, project: dict) -> None:
    """ComfyUI installs requirements.txt, pip reads pyproject.toml: one list, in one order."""
    lines = (root / "requirements.txt").read_text(encoding="utf-8").splitlines()
    assert lines == project["project"]["dependencies"]


def test_the_registry_takes_the_name_and_the_licence(root: Path, project: dict) -> None:
    about = project["project"]
    assert "comfyui" not in about["name"] and about["name"] == about["name"].lower()
    assert re.fullmatch(r"\d+\.\d+\.\d+", about["version"])
    assert "Apache License" in (root / about["license"]["file"]).read_text(encoding="utf-8")


def test_the_rules_of_the_registry_hold_everywhere(project: dict) -> None:
    """Those of ``comfy node validate``; ruff runs before the tests."""
    lint = project["tool"]["ruff"]["lint"]
    left_out = {*lint["ignore"], *(rule for rules in lint["per-file-ignores"].values() for rule in rules)}
    for rule in ("S102", "S307", "E702"):
        assert rule in lint["select"]
        assert not any(rule.startswith(ignored) for ignored in left_out)


def test_tools_have_one_version(root: Path, project: dict) -> None:
    """A hook that formats otherwise than the check is worse than no hook."""
    hooks = (root / ".pre-commit-config.yaml").read_text(encoding="utf-8")
    wanted = project["project"]["optional-dependencies"]["dev"]
    for tool, repository in {"ruff": "ruff-pre-commit", "pyright": "pyright-python"}.items():
        (pinned,) = (line.split("==")[1] for line in wanted if re.match(rf"{tool}(\[.*\])?==", line))
        (hook,) = re.findall(rf"{repository}\n\s+rev: v(\S+)", hooks)
        assert hook == pinned, tool


def test_the_changelog_knows_this_version(root: Path, project: dict) -> None:
    changes = (root / "CHANGELOG.md").read_text(encoding="utf-8")
    headings = re.findall(r"^## \[?([^\]\s]+)", changes, flags=re.MULTILINE)
    assert project["project"]["version"] in headings


@pytest.mark.slow
def test_the_wheel_holds_the_library_and_nothing_else(root: Path, tmp_path: Path) -> None:
    from hatchling.builders.wheel import WheelBuilder

    (wheel,) = WheelBuilder(str(root)).build(directory=str(tmp_path), versions=["standard"])
    with zipfile.ZipFile(wheel) as archive:
        names = {PurePosixPath(name) for name in archive.namelist()}
        (entry,) = (n for n in archive.namelist() if n.endswith("entry_points.txt"))
        assert "gen1 = gen1_core.cli:main" in archive.read(entry).decode()
    tops = {name.parts[0] for name in names}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"gen1_core"}
    assert PurePosixPath("gen1_core/py.typed") in names
    here = {PurePosixPath(p.relative_to(root).as_posix()) for p in shipped(root / "gen1_core")}
    assert here - names == set()
    assert {n for n in names if n.parts[0] == "gen1_core"} - here == set()


def shipped(folder: Path) -> list[Path]:
    """Every file of the package except what Python writes beside it."""
    return [p for p in folder.rglob("*") if p.is_file() and "__pycache__" not in p.parts]


# The archive that people install from ComfyUI's registry.


def tracked(root: Path) -> list[str]:
    """What is in the repository, which is what ``comfy node pack`` takes; without git, what .gitignore leaves."""
    if (root / ".git").exists() and shutil.which("git"):
        done = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, encoding="utf-8")
        if done.stdout:
            return [name for name in done.stdout.split("\0") if (root / name).is_file()]
    names = [path.relative_to(root).as_posix() for path in root.rglob("*") if path.is_file()]
    return [name for name in names if not name.startswith(".git/") and not spec(root, ".gitignore").match_file(name)]


def spec(root: Path, name: str) -> pathspec.GitIgnoreSpec:
    return pathspec.GitIgnoreSpec.from_lines((root / name).read_text(encoding="utf-8").splitlines())


@pytest.fixture(scope="module")
def archive(root: Path) -> list[str]:
    """The names of all files in it."""
    left_out = spec(root, ".comfyignore")
    return sorted(name for name in tracked(root) if not left_out.match_file(name))


def modules(root: Path) -> dict[str, Path]:
    """Every module of the pack by its name, ``gen1_core.video`` for a package."""
    paths = (*(root / "nodes").glob("*.py"), *(root / "gen1_core").rglob("*.py"))
    parts = {path: path.relative_to(root).with_suffix("").parts for path in paths}
    return {".".join(names[:-1] if names[-1] == "__init__" else names): path for path, names in parts.items()}


def imported(module: str, path: Path) -> Iterator[str]:
    """What may be modules of ours among what a file imports: the names, their packages, and what is taken of them."""
    package = module.split(".") if path.stem == "__init__" else module.split(".")[:-1]
    for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(one, ast.ImportFrom) and one.level:
            start = [*package[: len(package) - one.level + 1], *(one.module or "").split(".")]
            for names in ([*start, alias.name] for alias in one.names):
                names = [name for name in names if name]
                yield from (".".join(names[:count]) for count in range(1, len(names) + 1))


def test_the_archive_has_the_modules_that_the_nodes_reach_and_no_other(root: Path, archive: list[str]) -> None:
    """Training and the command line are not what a node pack is asked for, and less is less to be suspected of."""
    ours, reached, todo = modules(root), set(), ["nodes"]
    while todo:
        module = todo.pop()
        if module in ours and module not in reached:
            reached.add(module)
            todo += imported(module, ours[module])
    wanted = sorted(ours[module].relative_to(root).as_posix() for module in reached)
    assert "gen1_core/video/decode.py" in wanted and "gen1_core/training/loop.py" not in wanted
    assert [name for name in archive if name.endswith(".py")] == sorted(["__init__.py", *wanted])


def test_the_archive_has_what_a_server_serves_and_nothing_else(root: Path, archive: list[str]) -> None:
    def below(folder: str, *patterns: str) -> set[str]:
        return {path.relative_to(root).as_posix() for one in patterns for path in (root / folder).rglob(one)}

    served = (
        below("web/docs", "*.*")
        | below("locales/en", "*.json")
        | below("locales/zh", "*.json")
        | below("workflows", "*.*")
        | {path.relative_to(root).as_posix() for path in shipped(root / "gen1_core" / "assets")}
    )
    about = {"CHANGELOG.md", "LICENSE", "README.md", "pyproject.toml", "requirements.txt", "gen1_core/py.typed"}
    found = {name for name in archive if not name.endswith(".py")}
    new = set() if not (root / ".git").exists() else {name for name in served if name not in tracked(root)}
    assert found == (served - new) | about


def test_the_archive_is_small_enough_to_fetch(root: Path, archive: list[str]) -> None:
    assert sum((root / name).stat().st_size for name in archive) < 40e6


def test_comfyui_is_told_its_version_and_the_pack_has_an_icon(root: Path, project: dict) -> None:
    """The registry wants a square of at most 400 pixels."""
    assert project["tool"]["comfy"]["requires-comfyui"] == ">=0.3.64"
    assert "includes" not in project["tool"]["comfy"]  # it would bring back what .comfyignore leaves out
    with Image.open(root / "docs" / "icon.png") as icon:
        assert icon.width == icon.height <= 400


def unpacked(root: Path, archive: list[str], folder: Path) -> Path:
    for name in archive:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy2(root / name, folder / name)
    return folder


# The node pack as ComfyUI loads it.


def load_as_comfyui_does(root: Path, name: str):
    """By path, under a name that is a path, with the root never on ``sys.path``."""
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    finally:
        del sys.modules[name]
    return module


def test_without_comfyui_the_door_stays_shut(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Editors and test runs import the root file too; it must then do nothing and fail at nothing."""
    monkeypatch.setitem(sys.modules, "comfy_api", None)
    monkeypatch.delitem(sys.modules, "folder_paths", raising=False)
    module = load_as_comfyui_does(root, "/somewhere/custom_nodes/gen1-video_x_")
    assert not hasattr(module, "comfy_entrypoint")


def test_a_comfyui_that_is_too_old_is_told_so(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "comfy_api", None)
    monkeypatch.setitem(sys.modules, "folder_paths", ModuleType("folder_paths"))
    with pytest.raises(ImportError, match="update ComfyUI to 0.3.64 or newer"):
        load_as_comfyui_does(root, "/somewhere/custom_nodes/gen1-video_x_")


LOAD = """
import asyncio, sys
sys.argv = ["main.py", "--cpu"]
sys.path.insert(0, COMFYUI)
import comfy.options
comfy.options.enable_args_parsing()
import nodes
print("load the pack", flush=True)
before = list(sys.path)
assert asyncio.run(nodes.load_custom_node(PACK)), "ComfyUI refused the pack"
assert sys.path == before
module = sys.modules[PACK.replace(".", "_x_")]
extension = asyncio.run(module.comfy_entrypoint())
listed = {node.GET_SCHEMA().node_id for node in asyncio.run(extension.get_node_list())}
assert listed <= set(nodes.NODE_CLASS_MAPPINGS), "a node did not arrive"
assert "KSampler" in nodes.NODE_CLASS_MAPPINGS, "our nodes/ took the place of ComfyUI's nodes.py"
ours = [name for name in sys.modules if name.startswith(PACK.replace(".", "_x_"))]
assert PACK.replace(".", "_x_") + ".nodes" in ours
assert not any(name.split(".")[0] == "gen1_core" for name in sys.modules)
print("loaded", len(listed))
"""


@pytest.mark.slow
@pytest.mark.comfy
def test_comfyui_loads_the_pack(root: Path, comfyui: Path, tmp_path: Path, archive: list[str]) -> None:
    """ComfyUI's own loader, in its own process, from a folder with a dot and a hyphen in its name."""
    pack = unpacked(root, archive, tmp_path / "gen1-video-0.1")
    program = f"COMFYUI = {str(comfyui)!r}\nPACK = {str(pack)!r}\n{LOAD}"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    missing = re.search(r"^ModuleNotFoundError: No module named '(\S+)'$", done.stderr, flags=re.MULTILINE)
    if missing and "load the pack" not in done.stdout:
        pytest.skip(f"ComfyUI at {comfyui} needs {missing[1]}; install its requirements.txt")
    assert done.returncode == 0, textwrap.indent(done.stderr, "  ")
    assert "loaded" in done.stdout


@pytest.mark.slow
@pytest.mark.comfy
def test_the_archive_works_in_a_real_server(root: Path, comfyui: Path, tmp_path: Path, archive: list[str]) -> None:
    """Installed into an empty ComfyUI: nodes, help pages, templates, and the first workflow runs to its video."""
    pack = unpacked(root, archive, tmp_path / "unpacked")
    server = Server(comfyui, lay_out(tmp_path / "base", pack, "gen1-video"))
    try:
        server.start()
        nodes = [name for name in server.object_info() if name.startswith("Gen1_")]
        assert len(nodes) == 21
        pages = [f"extensions/gen1-video/docs/{name}{end}" for name in nodes for end in (".md", "/zh.md")]
        graphs = [f"api/workflow_templates/gen1-video/{path.name}" for path in FILES]
        for address in (*pages, *graphs):
            with urllib.request.urlopen(f"{server.url}/{address}") as answer:
                assert len(answer.read()) > 200, address
        assert set(server.get("/api/workflow_templates")["gen1-video"]) == {path.stem for path in FILES}
        assert set(nodes) <= set(server.get("/i18n")["zh"]["nodeDefs"])
        prompt: dict[str, Any] = as_prompt(read(pack / "workflows" / "tiny_text_edit.json"))
        (edit,) = (node["inputs"] for node in prompt.values() if node["class_type"] == "Gen1_EditVideo")
        edit["steps"] = 2
        result = server.run(prompt, timeout_s=600)
        assert result.ok, result.message
        (file,) = [one for output in result.outputs.values() for one in output["images"]]
        assert server.file(file).stat().st_size > 10_000
    except NotInstalled as error:
        pytest.skip(str(error))
    finally:
        server.stop()
