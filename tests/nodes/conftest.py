"""A real ComfyUI for the tests of the nodes: a server with the pack in it, and the pack loaded into this process.

``server``  ComfyUI on the CPU at a free port: ``server.run(prompt)`` queues a prompt and tells all that came of it.
``pack``    the pack imported as ComfyUI does, by its path and under an odd name, with ComfyUI's modules beside it.

Tests that use them are marked ``comfy`` here, those of the server ``slow`` too.
"""

import asyncio
import importlib
import importlib.util
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from comfy_server import NotInstalled, Server, lay_out

PACK_NAME = "ComfyUI-Gen1-main"
"""As an unpacked download is called. With a dot or a space in it ComfyUI itself would serve no help pages."""

ODD_NAME = "Gen-1 pack v0.1 (test)"
"""People rename folders, and ComfyUI replaces dots."""


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is marked slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Whoever uses ComfyUI is marked."""
    for item in items:
        names = set(getattr(item, "fixturenames", ()))
        if names & {"comfyui", "server", "pack"}:
            item.add_marker(pytest.mark.comfy)
        if "server" in names:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(scope="session")
def new_server(comfyui: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Server]]:
    """Starts a server of one's own with further options of main.py; all end with the tests.

    ``others`` are packs beside ours, name and source, imported in the order of their names.
    """
    started: list[Server] = []

    def start(*options: str, others: Mapping[str, str] | None = None) -> Server:
        base = lay_out(tmp_path_factory.mktemp("comfy"), root, PACK_NAME)
        for name, source in (others or {}).items():
            (base / "custom_nodes" / f"{name}.py").write_text(source, encoding="utf-8")
        server = Server(comfyui, base, *options)
        started.append(server)
        try:
            return server.start()
        except NotInstalled as missing:
            pytest.skip(str(missing))

    yield start
    for server in started:
        server.stop()


@pytest.fixture(scope="session")
def server(new_server: Callable[..., Server]) -> Server:
    """The server that tests share; what they write stays for the others, so give each its own names."""
    return new_server()


@dataclass(frozen=True)
class Pack:
    """The pack in this process. Its gen1_core is another import than ``gen1_core`` itself: other classes."""

    module: ModuleType
    base: Path

    def __call__(self, name: str) -> Any:
        """A module of it: ``pack("nodes.host")``, ``pack("gen1_core.pipeline")``."""
        return importlib.import_module(f"{self.module.__name__}.{name}")

    def node(self, name: str) -> Any:
        """A node class by its id."""
        return next(one for one in self.nodes() if one.GET_SCHEMA().node_id == name)

    def nodes(self) -> list[Any]:
        """Every node class, as ComfyUI gets them."""
        return asyncio.run(asyncio.run(self.module.comfy_entrypoint()).get_node_list())


@pytest.fixture(scope="session")
def pack(comfyui: Path, root: Path, tmp_path_factory: pytest.TempPathFactory) -> Pack:
    """Imports ComfyUI's modules and then the pack; once, as nothing of it can be undone in a process."""
    base = lay_out(tmp_path_factory.mktemp("comfy"), root, ODD_NAME)
    sys.path.insert(0, str(comfyui))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # ComfyUI's own
        try:
            from comfy.cli_args import args

            args.cpu, args.base_directory = True, str(base)
            import comfy.samplers  # noqa: F401
            import comfy.sd  # noqa: F401
            import comfy_api.latest  # noqa: F401
        except ModuleNotFoundError as error:
            pytest.skip(f"ComfyUI's requirements are not installed here ({error})")
        module = import_by_path(base / "custom_nodes" / ODD_NAME)
    return Pack(module, base)


def import_by_path(folder: Path) -> ModuleType:
    """As ComfyUI's load_custom_node: the path, less its dots, is the name of the module."""
    name = str(folder).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, folder / "__init__.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module
