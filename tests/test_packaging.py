"""What is shipped: the wheel, the lists of dependencies, and the node pack as ComfyUI loads it."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
import textwrap
import zipfile
from pathlib import Path, PurePosixPath

import pytest

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


@pytest.mark.skipif(importlib.util.find_spec("comfy_api") is not None, reason="comfy_api can be imported here")
def test_without_comfyui_the_door_stays_shut(root: Path) -> None:
    """Editors and test runs import the root file too; it must then do nothing and fail at nothing."""
    module = load_as_comfyui_does(root, "/somewhere/custom_nodes/gen1-video_x_")
    assert not hasattr(module, "comfy_entrypoint")


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
def test_comfyui_loads_the_pack(root: Path, comfyui: Path, tmp_path: Path) -> None:
    """ComfyUI's own loader, in its own process, from a folder with a dot and a hyphen in its name."""
    pack = tmp_path / "gen1-video-0.1"
    pack.mkdir()
    for name in ("__init__.py", "pyproject.toml"):
        shutil.copy(root / name, pack)
    for name in ("nodes", "gen1_core"):
        shutil.copytree(root / name, pack / name, ignore=shutil.ignore_patterns("__pycache__"))
    program = f"COMFYUI = {str(comfyui)!r}\nPACK = {str(pack)!r}\n{LOAD}"
    command = [sys.executable, "-c", program]
    environment = {**os.environ, "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, encoding="utf-8")
    missing = re.search(r"^ModuleNotFoundError: No module named '(\S+)'$", done.stderr, flags=re.MULTILINE)
    if missing and "load the pack" not in done.stdout:
        pytest.skip(f"ComfyUI at {comfyui} needs {missing[1]}; install its requirements.txt")
    assert done.returncode == 0, textwrap.indent(done.stderr, "  ")
    assert "loaded" in done.stdout
