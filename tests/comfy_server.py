"""A real ComfyUI on the CPU, started with the pack in it: for the tests of the nodes and for scripts/screenshots.py."""

import asyncio
import json
import os
import shutil
import signal
import socket
import struct
import subprocess
import sys
import time
import urllib.parse
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

START_S = 240.0
PREVIEW, TEXT, PREVIEW_WITH_METADATA = 1, 3, 4
"""How ComfyUI's binary messages begin, as a big-endian integer."""


class NotInstalled(RuntimeError):
    """Something outside this repository is missing; says what, and how to have it."""


@dataclass
class Result:
    """All that came of one prompt."""

    prompt_id: str = ""
    status: str = "rejected"
    """rejected, success, error or interrupted."""

    outputs: dict[str, Any] = field(default_factory=dict)
    error: dict[str, Any] = field(default_factory=dict)
    node_errors: dict[str, Any] = field(default_factory=dict)
    events: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    previews: list[tuple[dict[str, Any], bytes]] = field(default_factory=list)
    texts: list[tuple[str, str]] = field(default_factory=list)
    seconds: float = 0.0

    @property
    def ok(self) -> bool:
        """Done, and nothing left out: of a prompt that is valid in part, only that part runs."""
        return self.status == "success" and not self.node_errors

    @property
    def executed(self) -> list[str]:
        """Ids of the nodes that ran and did not come from the cache, in order."""
        return [data["node"] for kind, data in self.events if kind == "executing" and data.get("node")]

    @property
    def message(self) -> str:
        """What the user reads where it failed."""
        reasons = [one["details"] or one["message"] for node in self.node_errors.values() for one in node["errors"]]
        return " ".join([self.error.get("exception_message", ""), *reasons]).strip()

    def progress(self, node: str) -> list[tuple[float, float]]:
        """(value, max) of each step that a node reported."""
        states = (data["nodes"].get(node) for kind, data in self.events if kind == "progress_state")
        steps = [(state["value"], state["max"]) for state in states if state]
        return [step for place, step in enumerate(steps) if not place or step != steps[place - 1]]


class Server:
    """A ComfyUI that runs; its folders are below ``base``."""

    def __init__(self, comfyui: Path, base: Path, *options: str):
        self.comfyui, self.base, self.options = comfyui, base, options
        self.log_path = base / "server.log"
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.client_id = "gen1-tests"
        self.process: subprocess.Popen[bytes] | None = None
        self.ready_s = 0.0

    @property
    def log(self) -> str:
        """What it printed."""
        return self.log_path.read_text(encoding="utf-8", errors="replace")

    def start(self) -> "Server":
        """Waits until it answers; NotInstalled where a requirement of ComfyUI is missing."""
        command = [os.environ.get("COMFYUI_PYTHON") or sys.executable, "main.py", "--cpu", "--listen", "127.0.0.1"]
        command += ["--port", str(self.port), "--base-directory", str(self.base), "--disable-auto-launch"]
        # Its default place is in the checkout, in a folder that a fresh checkout lacks.
        command += ["--database-url", f"sqlite:///{self.base}/user/comfyui.db", "--disable-api-nodes", *self.options]
        began = time.monotonic()
        with self.log_path.open("wb") as log:
            self.process = subprocess.Popen(
                command, cwd=self.comfyui, stdout=log, stderr=subprocess.STDOUT, start_new_session=True
            )
        while not self._answers():
            if self.process.poll() is not None:
                last = (self.log.strip().splitlines() or [""])[-1]
                if last.startswith("ModuleNotFoundError"):
                    raise NotInstalled(f"ComfyUI's requirements are not installed here ({last})")
                raise RuntimeError(f"ComfyUI ended with {self.process.returncode}:\n{self.log[-4000:]}")
            if time.monotonic() - began > START_S:
                self.stop()
                raise RuntimeError(f"ComfyUI was not ready in {START_S:g} s:\n{self.log[-4000:]}")
            time.sleep(0.1)
        self.ready_s = time.monotonic() - began
        return self

    def stop(self) -> None:
        """Ends it, and nothing else."""
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(15)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait()

    def _answers(self) -> bool:
        try:
            return str(self.base) in self.get("/system_stats")["system"]["argv"]
        except (OSError, ValueError):
            return False

    def get(self, path: str, body: Any = None) -> Any:
        """A request; its answer as JSON, None where it is empty."""
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(self.url + path, data=data, headers={"Content-Type": "application/json"})
        with urllib.request.urlopen(request, timeout=60) as answer:
            text = answer.read()
        return json.loads(text) if text else None

    def object_info(self, node: str = "") -> dict[str, Any]:
        """What the canvas knows of one node, or of all."""
        return self.get("/object_info" + (f"/{urllib.parse.quote(node)}" if node else ""))

    def defaults(self, node: str) -> dict[str, Any]:
        """The values of a node that was just added: every widget's default, the first of a list without one."""
        inputs = self.object_info(node)[node]["input"]
        values = {}
        for name, (kind, *more) in {**inputs.get("required", {}), **inputs.get("optional", {})}.items():
            said = more[0] if more else {}
            listed = kind if isinstance(kind, list) else said.get("options", [])
            if "default" in said or listed:
                values[name] = said.get("default", listed[0] if listed else None)
        return values

    def interrupt(self) -> None:
        """Cancel, as the button does."""
        self.get("/interrupt", {})

    def free(self) -> None:
        """Unload all models and forget all results, as /free does."""
        self.get("/free", {"unload_models": True, "free_memory": True})

    def memory_mb(self) -> float:
        """Resident memory of the server."""
        status = Path(f"/proc/{self.process.pid if self.process else 0}/status").read_text(encoding="utf-8")
        return int(status.split("VmRSS:")[1].split()[0]) / 1024

    def file(self, item: dict[str, str]) -> Path:
        """The file that a UI output names."""
        return self.base / item["type"] / item["subfolder"] / item["filename"]

    def run(
        self,
        prompt: dict[str, Any],
        *,
        timeout_s: float = 300.0,
        extra_data: dict[str, Any] | None = None,
        on_event: Callable[[str, dict[str, Any]], None] | None = None,
    ) -> Result:
        """Queue a prompt in API form and wait for its end. ``on_event`` may call ``interrupt``."""
        waiting = asyncio.wait_for(self._run(prompt, extra_data or {}, on_event), timeout_s)
        return asyncio.run(waiting)

    async def _run(
        self,
        prompt: dict[str, Any],
        extra_data: dict[str, Any],
        on_event: Callable[[str, dict[str, Any]], None] | None,
    ) -> Result:
        import aiohttp  # a requirement of ComfyUI, so it is there where a server is

        result, began = Result(), time.monotonic()
        url = f"{self.url.replace('http', 'ws', 1)}/ws?clientId={self.client_id}"
        async with aiohttp.ClientSession() as session, session.ws_connect(url, max_msg_size=0) as socket_:
            # It has to be the first message; without it previews come without their node.
            await socket_.send_json({"type": "feature_flags", "data": {"supports_preview_metadata": True}})
            body = {"prompt": prompt, "client_id": self.client_id, "extra_data": extra_data}
            async with session.post(f"{self.url}/prompt", json=body) as response:
                answer = await response.json()
            result.node_errors = answer.get("node_errors") or {}
            if "prompt_id" not in answer:
                result.error = answer.get("error") or {}
                return result
            result.prompt_id = answer["prompt_id"]
            async for message in socket_:
                if message.type == aiohttp.WSMsgType.BINARY:
                    _keep_binary(message.data, result)
                elif message.type != aiohttp.WSMsgType.TEXT or await _ended(message.data, result, on_event):
                    break
            async with session.get(f"{self.url}/history/{result.prompt_id}") as response:
                result.outputs = (await response.json()).get(result.prompt_id, {}).get("outputs", {})
        result.seconds = time.monotonic() - began
        return result


async def _ended(text: str, result: Result, on_event: Callable[[str, dict[str, Any]], None] | None) -> bool:
    event = json.loads(text)
    kind, data = event["type"], event.get("data") or {}
    if data.get("prompt_id") not in (None, result.prompt_id):
        return False
    result.events.append((kind, data))
    ends = {"execution_success": "success", "execution_interrupted": "interrupted", "execution_error": "error"}
    result.status = ends.get(kind, result.status)
    if kind == "execution_error":
        result.error = data
    if on_event is not None:
        await asyncio.to_thread(on_event, kind, data)
    # The last message of a prompt, sent once its history is written.
    return kind == "executing" and data.get("node") is None


def _keep_binary(data: bytes, result: Result) -> None:
    kind, size = struct.unpack(">II", data[:8])
    if kind == PREVIEW_WITH_METADATA:
        result.previews.append((json.loads(data[8 : 8 + size]), data[8 + size :]))
    elif kind == PREVIEW:
        result.previews.append(({}, data[8:]))
    elif kind == TEXT:
        result.texts.append((data[8 : 8 + size].decode(), data[8 + size :].decode()))


def free_port() -> int:
    """One that nobody listens on."""
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return one.getsockname()[1]


def lay_out(base: Path, root: Path, name: str) -> Path:
    """A fresh base directory with the pack linked in and the demo clip as input; ComfyUI dies without custom_nodes."""
    for folder in ("custom_nodes", "input", "output", "temp", "models", "user/default"):
        (base / folder).mkdir(parents=True, exist_ok=True)
    (base / "custom_nodes" / name).symlink_to(root, target_is_directory=True)
    shutil.copy2(root / "gen1_core" / "assets" / "bunny.mp4", base / "input" / "bunny.mp4")
    # Settings of a second visit: in the first one the template browser opens over the canvas.
    settings = {"Comfy.TutorialCompleted": True, "Comfy.Notification.ShowVersionUpdates": False}
    (base / "user" / "default" / "comfy.settings.json").write_text(json.dumps(settings), encoding="utf-8")
    return base
