"""The rules of CONTRIBUTING.md that a machine can check: who may import whom, and what importing may do."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

ORDER = (
    {"__main__"},
    {"cli", "nodes"},
    {"commands"},
    {"recipes"},
    {"evaluation"},
    {"training", "distributed", "demo"},
    {"loading"},
    {"presets"},
    {"pipeline", "metrics"},
    {"conditioning", "frames"},
    {"gen1"},
    {"structure", "content", "editing", "checkpoints"},
    {"models", "diffusion", "video", "progress"},
    {"tensors", "whole", "devices"},
)
"""Imports go from left to right, any number of steps; parts of one set never import each other."""

SURFACE = "gen1_core"
"""The package's own ``__init__``: the public names. Only the two doors may import from it."""

ALWAYS = {"torch", "numpy", "safetensors", "einops", "kornia", "PIL", "av", "tqdm", "jaxtyping"}
ON_DEMAND = {"open_clip", "transformers", "accelerate", "webdataset", "tensorboard", "ray"}
"""Imported only in the function that needs them: what breaks for users, and what the extras bring."""

COMFYUI = {"comfy", "comfy_api", "comfy_execution", "comfy_extras", "execution", "folder_paths", "server"}
COMFYUI_IN_EVERY_NODE = {"comfy_api"}
"""The versioned interface. The rest of ComfyUI is touched in nodes/host.py alone."""

BANNED_NAMES = {"utils", "util", "common", "misc", "helpers"}


def part_of(module: str) -> str:
    """``gen1_core.diffusion.samplers`` -> ``diffusion``; ``nodes.host`` -> ``nodes``."""
    names = module.split(".")
    if names[0] == "nodes":
        return "nodes"
    return names[1] if len(names) > 1 else SURFACE


def rank(part: str) -> int:
    """The place in ORDER; a part that is not there yet is a mistake too."""
    places = [i for i, parts in enumerate(ORDER) if part in parts]
    assert places, f"{part} has no place in the import order; add it to ORDER and to the map in CONTRIBUTING.md"
    return places[0]


def module_name(path: Path) -> tuple[str, bool]:
    """The dotted name of a source file, and whether it is a package."""
    names = list(path.relative_to(ROOT).with_suffix("").parts)
    package = names[-1] == "__init__"
    return ".".join(names[:-1] if package else names), package


def imports(tree: ast.AST, *, inside: bool = False) -> Iterator[tuple[ast.Import | ast.ImportFrom, bool]]:
    """Every import, and whether it stands inside a function."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            yield node, inside
        else:
            function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda))
            yield from imports(node, inside=inside or function)


def targets(node: ast.Import | ast.ImportFrom, module: str, package: bool) -> list[str]:
    """The dotted names that an import statement may bind: ``from ..a import b`` gives ``gen1_core.a.b``."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    names = module.split(".")
    base = names[: len(names) - node.level + package] if node.level else []
    prefix = ".".join([*base, *([node.module] if node.module else [])])
    return [f"{prefix}.{alias.name}" for alias in node.names]


def is_ours(target: str) -> bool:
    return target.split(".")[0] in ("gen1_core", "nodes")


def is_module(dotted: str) -> bool:
    path = ROOT.joinpath(*dotted.split("."))
    return path.is_dir() or path.with_suffix(".py").is_file()


def direction_fault(module: str, target: str) -> str | None:
    """Why ``module`` may not import ``target``, or None."""
    source = part_of(module)
    names = target.split(".")
    outside = names[0] == "gen1_core" and not is_module(".".join(names[:2]))
    goal = SURFACE if outside else part_of(target)
    if source == SURFACE or source == goal:
        return None
    if goal == SURFACE:
        return None if source in ("cli", "__main__", "nodes") else f"{module} imports the package's front {target}"
    if rank(goal) > rank(source):
        return None
    return f"{module} imports {target}, which lies to its left or beside it"


def import_faults(source: str, module: str, package: bool) -> list[str]:
    """Every import of one file that breaks a rule."""
    faults = []
    host = module.startswith("nodes.host")
    core = module.split(".")[0] == "gen1_core"
    for node, inside in imports(ast.parse(source)):
        relative = isinstance(node, ast.ImportFrom) and node.level > 0
        for target in targets(node, module, package):
            first = target.split(".")[0]
            if relative:
                faults.append(direction_fault(module, f"gen1_core.{target}" if not is_ours(target) else target))
            elif is_ours(target):
                faults.append(f"{module} imports {target} by its absolute name; ComfyUI loads packs by path")
            elif first in COMFYUI:
                if core or not (host or first in COMFYUI_IN_EVERY_NODE):
                    faults.append(f"{module} imports ComfyUI's {target}")
            elif first not in sys.stdlib_module_names | ALWAYS | (ON_DEMAND if inside else set()):
                faults.append(f"{module} imports {target}, which is not declared or not inside a function")
    return [fault for fault in faults if fault]


def text_without_encoding(source: str) -> list[int]:
    """Lines that open a text file in the encoding of the machine, which is not UTF-8 on Windows."""
    lines = []
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call) or any(k.arg in ("encoding", None) for k in node.keywords):
            continue
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        builtin = isinstance(node.func, ast.Name)
        mode = node.args[1 if builtin else 0 :][:1] + [k.value for k in node.keywords if k.arg == "mode"]
        binary = any(isinstance(m, ast.Constant) and "b" in str(m.value) for m in mode)
        bare_open = called == "open" and (builtin or not node.args) and not binary
        if bare_open or called in ("read_text", "write_text"):
            lines.append(node.lineno)
    return lines


SOURCES = sorted(p for top in ("gen1_core", "nodes") for p in (ROOT / top).rglob("*.py"))
CORE = [p for p in SOURCES if p.is_relative_to(ROOT / "gen1_core")]


def each(paths: list[Path]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("path", paths, ids=[p.relative_to(ROOT).as_posix() for p in paths])


@each(SOURCES)
def test_imports_point_right(path: Path) -> None:
    module, package = module_name(path)
    assert import_faults(path.read_text(encoding="utf-8"), module, package) == []


@pytest.mark.parametrize(
    ("module", "line", "fault"),
    [
        ("gen1_core.diffusion.samplers", "from ..pipeline import edit", "to its left"),
        ("gen1_core.diffusion.samplers", "from ..models.unet import SpaceTimeUNet", "beside it"),
        ("gen1_core.diffusion.samplers", "from .. import pipeline", "to its left"),
        ("gen1_core.diffusion.samplers", "from .. import load_gen1", "the package's front"),
        ("gen1_core.pipeline", "from .metrics import frame_consistency", "beside it"),
        ("gen1_core.pipeline", "def f():\n    from .training import loop", "to its left"),
        ("gen1_core.pipeline", "from gen1_core.tensors import Latents", "absolute name"),
        ("gen1_core.pipeline", "import comfy.utils", "imports ComfyUI"),
        ("gen1_core.pipeline", "from folder_paths import models_dir", "imports ComfyUI"),
        ("gen1_core.pipeline", "from nodes import KSampler", "absolute name"),
        ("gen1_core.content.clip", "import open_clip", "not inside a function"),
        ("gen1_core.content.clip", "def f():\n    import cv2", "not declared"),
        ("gen1_core.training.engine", "from accelerate import Accelerator", "not inside a function"),
        ("gen1_core.training.loop", "from ..evaluation.run import evaluate", "to its left"),
        ("gen1_core.evaluation.run", "from ..recipes.tiny import TINY", "to its left"),
        ("gen1_core.recipes.tiny", "from ..commands.train import add_train", "to its left"),
        ("gen1_core.training.prepare.run", "from ...distributed.processes import run_processes", "beside it"),
        ("nodes.sample", "import comfy.samplers", "imports ComfyUI"),
    ],
)
def test_a_wrong_import_is_found(module: str, line: str, fault: str) -> None:
    assert [fault in found for found in import_faults(line, module, False)] == [True]


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gen1_core.diffusion.samplers", "from .condition import Denoiser\nfrom ..tensors import Latents"),
        ("gen1_core.cli", "from . import edit, presets\nfrom .training.loop import run"),
        ("gen1_core.content.clip", "def f():\n    import open_clip"),
        (
            "nodes.sample",
            "from comfy_api.latest import io\nfrom ..gen1_core.pipeline import edit\nfrom .host import tick",
        ),
        ("nodes.host", "import comfy.utils, folder_paths"),
    ],
)
def test_a_right_import_passes(module: str, line: str) -> None:
    assert import_faults(line, module, False) == []


@each(CORE)
def test_the_core_does_not_choose_hardware(path: Path) -> None:
    if path.name not in ("cli.py", "devices.py"):
        assert "cuda" not in path.read_text(encoding="utf-8").lower()


@each(SOURCES)
def test_text_files_are_utf8_everywhere(path: Path) -> None:
    assert text_without_encoding(path.read_text(encoding="utf-8")) == []


def test_a_text_file_in_the_machines_encoding_is_found() -> None:
    bad = ["open(p)", "open(p, 'w')", "open(p, mode='w')", "p.open()", "p.read_text()", "p.write_text(t)"]
    good = ["open(p, 'rb')", "p.open('wb')", "p.read_text(encoding='utf-8')", "av.open(p)", "Image.open(p)"]
    assert [bool(text_without_encoding(line)) for line in bad + good] == [True] * len(bad) + [False] * len(good)


def test_no_drawer_for_odds_and_ends() -> None:
    assert [p for p in SOURCES if p.stem in BANNED_NAMES or p.parent.name in BANNED_NAMES] == []


def test_shapes_are_checked_in_this_run() -> None:
    from gen1_core.tensors import to_bytes  # the import hook must be there first

    with pytest.raises(Exception, match="n 3 h w"):
        to_bytes("not images")  # pyright: ignore[reportArgumentType]


WITHOUT_OPTIONAL = """
import importlib, importlib.abc, logging, os, pkgutil, random, sys, threading, warnings
import numpy, torch, kornia, av, PIL.Image

class Refuse(importlib.abc.MetaPathFinder):
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in REFUSED:
            raise ImportError(f"{name} was imported while gen1_core was")

def state():
    return {
        "threads": [thread.name for thread in threading.enumerate()],
        "environment": dict(os.environ),
        "path": list(sys.path),
        "warnings": list(warnings.filters),
        "logging": (logging.root.level, list(logging.root.handlers)),
        "random": (random.getstate(), torch.get_rng_state().tolist(), numpy.random.get_state()[1].tolist()),
        "torch": (torch.get_default_dtype(), torch.get_num_threads(), torch.is_grad_enabled(),
                  torch.backends.cudnn.benchmark, torch.are_deterministic_algorithms_enabled(),
                  torch.get_float32_matmul_precision()),
    }

sys.meta_path.insert(0, Refuse())
before = state()
import gen1_core
names = [module.name for module in pkgutil.walk_packages(gen1_core.__path__, "gen1_core.")]
names.remove("gen1_core.__main__")
for name in names:
    importlib.import_module(name)
after = state()
changed = [key for key in before if before[key] != after[key]]
assert not changed, f"importing changed: {changed}"
assert not torch.cuda.is_initialized()
print(len(names))
"""


@pytest.mark.slow
def test_importing_needs_little_and_does_nothing() -> None:
    """Every module, in a fresh process, warnings as errors, without the packages that break in the field."""
    refused = ON_DEMAND | COMFYUI | {"timm", "torchvision", "torchaudio", "diffusers", "beartype"}
    program = f"REFUSED = {sorted(refused)!r}\n{WITHOUT_OPTIONAL}"
    command = [sys.executable, "-W", "error", "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) == len([p for p in CORE if p.stem != "__main__"]) - 1
