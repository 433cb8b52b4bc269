"""ComfyUI's real page in a headless browser: workflows open whole, nodes are found, Run runs, words are translated.

Needs playwright and a Chromium (CHROMIUM_PATH, or one on the PATH); skipped with the reason where one is missing.
"""

import json
import os
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from workflow_files import FILES, ROOT, TINY, as_prompt, read

NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
CHINESE = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_tiny = pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)

READY = "() => window.app?.vueAppReady && app.graph && app.canvas && document.querySelector('#graph-canvas')"

STATE = """() => JSON.stringify([
  app.graph?.nodes.map(n => [n.id, n.type, ...n.pos, ...n.size]), app.graph?.links.size,
  document.querySelectorAll('.p-dialog').length])"""

STILL = f"""() => {{
  const now = ({STATE})(), last = window.__last ?? {{}}
  if (last.now !== now) window.__last = {{ now, since: performance.now() }}
  return performance.now() - window.__last.since > 700
}}"""

REPORT = """() => {
  const label = node => `${node.type} ${node.id}`
  const nodes = app.graph.nodes
  return {
    count: nodes.length,
    unknown: nodes.filter(n => !(n.type in LiteGraph.registered_node_types)).map(label),
    red: nodes.filter(n => n.has_errors).map(label),
    open: nodes.flatMap(n => (n.inputs ?? []).filter(i =>
      i.name in (n.constructor.nodeData?.input?.required ?? {}) && i.link == null && !i.widget
    ).map(i => `${label(n)} ${i.name}`)),
    links: [...app.graph.links.values()].map(l => {
      const out = app.graph.getNodeById(l.origin_id)?.outputs?.[l.origin_slot]
      const into = app.graph.getNodeById(l.target_id)?.inputs?.[l.target_slot]
      return !!out && !!into && into.link === l.id && LiteGraph.isValidConnection(out.type, into.type)
    }),
    not_offered: nodes.flatMap(n => (n.widgets ?? []).filter(w =>
      w.type === 'combo' && Array.isArray(w.options?.values) && !w.options.values.includes(w.value)
    ).map(w => `${label(n)} ${w.name}`)),
    overlaps: nodes.flatMap((a, i) => nodes.slice(i + 1).filter(b => {
      const [ax, ay, aw, ah] = a.boundingRect, [bx, by, bw, bh] = b.boundingRect
      return ax < bx + bw && bx < ax + aw && ay < by + bh && by < ay + ah
    }).map(b => `${label(a)} ${label(b)}`)),
  }
}"""

NOISE = ("/user.css", "/favicon.ico", "/api/userdata", "reading 'id'", "_ctx.$t is not a function")
"""What the page logs at every start with no pack at all."""

OFFLINE = ("huggingface.co", "fetchFileSize")
"""What it logs where it cannot ask how large a missing file is."""


class Canvas:
    """The page, driven as a person would."""

    def __init__(self, page: Any, url: str):
        self.page, self.url = page, url
        self.errors: list[str] = []
        page.on("console", lambda said: said.type == "error" and self._note(f"{said.text} {said.location.get('url')}"))
        page.on("pageerror", lambda error: self._note(str(error)))

    def _note(self, message: str) -> None:
        if not any(noise in message for noise in NOISE):
            self.errors.append(message)

    def open(self) -> None:
        """The page, until it is at rest."""
        self.page.goto(self.url, wait_until="domcontentloaded", timeout=240_000)
        self.page.wait_for_function(READY, timeout=240_000)
        self.rest()

    def rest(self) -> None:
        """Until nodes, links and dialogs stay as they are."""
        self.page.evaluate("() => { window.__last = null }")
        self.page.wait_for_function(STILL, polling=100, timeout=60_000)

    def close_dialogs(self) -> list[str]:
        """What they said."""
        said = []
        while self.page.locator(".p-dialog:visible").count():
            said.append(self.page.locator(".p-dialog:visible").first.inner_text())
            self.page.keyboard.press("Escape")
            self.page.wait_for_timeout(500)
        return said

    def load(self, path: Path) -> dict[str, Any]:
        """A workflow by the page's own Open; what is on the canvas then."""
        self.page.set_input_files("#comfy-file-input", str(path))
        name = "name => app.extensionManager.workflow.activeWorkflow?.path?.includes(name)"
        self.page.wait_for_function(name, arg=path.stem, timeout=30_000)
        self.rest()
        return {**self.page.evaluate(REPORT), "dialogs": self.close_dialogs()}

    def prompt(self) -> dict[str, Any]:
        """What Run would send, without titles and without what nodes only show."""
        told = self.page.evaluate("async () => (await app.graphToPrompt()).output")
        for node in told.values():
            for shown in ("video-preview", "preview"):
                node["inputs"].pop(shown, None)
        return {name: {"class_type": node["class_type"], "inputs": node["inputs"]} for name, node in told.items()}

    def workflow(self) -> dict[str, Any]:
        """What Save would write."""
        return self.page.evaluate("() => JSON.parse(JSON.stringify(app.graph.serialize()))")

    def types(self) -> list[str]:
        """Of the nodes on the canvas."""
        return self.page.evaluate("() => app.graph.nodes.map(n => n.type)")

    def clear(self) -> None:
        """An empty canvas."""
        self.page.evaluate("() => app.graph.clear()")
        self.rest()


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium that reaches this machine and nothing else."""
    driver = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    chromium = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not chromium:
        pytest.skip("no Chromium; install one or set CHROMIUM_PATH")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options.append("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    with driver.sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=chromium, args=options)
        yield started
        started.close()


@pytest.fixture(scope="module")
def canvas(browser: Any, server: Any) -> Iterator[Canvas]:
    """ComfyUI's page in English."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000}, locale="en-US")
    canvas = Canvas(page, server.url)
    canvas.open()
    canvas.close_dialogs()
    yield canvas
    page.close()


@each_file
def test_it_opens_whole(path: Path, canvas: Canvas) -> None:
    """No missing node, red node or broken link; and the page reads from the file what the tests run."""
    canvas.errors.clear()
    found = canvas.load(path)
    written = read(path)
    assert found["count"] == len(written["nodes"])
    assert len(found["links"]) == len(written["links"])
    assert all(found["links"])
    for fault in ("unknown", "red", "open", "overlaps"):
        assert found[fault] == [], fault
    assert [error for error in canvas.errors if not any(known in error for known in OFFLINE)] == []
    assert canvas.prompt() == as_prompt(written)
    widgets = {node["id"]: node.get("widgets_values") for node in canvas.workflow()["nodes"]}
    assert widgets == {node["id"]: node["widgets_values"] for node in written["nodes"]}


@each_tiny
def test_a_tiny_one_finds_all_it_names(path: Path, canvas: Canvas) -> None:
    found = canvas.load(path)
    assert found["not_offered"] == []
    assert found["dialogs"] == []


def test_missing_weights_are_offered(canvas: Canvas) -> None:
    """The page's own dialog, from the file's list of models."""
    found = canvas.load(ROOT / "workflows" / "sd15_animatediff_controlnet_ipadapter.json")
    said = " ".join(found["dialogs"])
    for name in ("v1-5-pruned-emaonly-fp16.safetensors", "control_v11f1p_sd15_depth_fp16.safetensors"):
        assert name in said


def test_run_runs(canvas: Canvas) -> None:
    """Pressed in the page; the video then shows on the node, and no node is red."""
    canvas.load(ROOT / "workflows" / "tiny_text_edit.json")
    canvas.errors.clear()
    watch = """() => { window.__end = null
      for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
        app.api.addEventListener(kind, () => { window.__end = kind }, { once: true }) }"""
    canvas.page.evaluate(watch)
    canvas.page.locator('[data-testid="queue-button"] button').first.click()
    canvas.page.wait_for_function("() => window.__end || document.querySelector('.p-dialog')", timeout=900_000)
    assert canvas.page.evaluate("() => window.__end") == "execution_success"
    shown = """() => app.graph.nodes.filter(n => n.type === 'Gen1_SaveVideo').flatMap(n => n.widgets ?? [])
      .flatMap(w => [...(w.element?.querySelectorAll?.('video') ?? [])]).some(v => v.videoWidth === 640)"""
    canvas.page.wait_for_function(shown, timeout=60_000)
    assert canvas.page.evaluate(REPORT)["red"] == []
    assert canvas.errors == []


def test_a_node_is_added_by_search(canvas: Canvas) -> None:
    canvas.clear()
    canvas.page.mouse.dblclick(700, 300)
    canvas.page.wait_for_selector(".comfy-vue-node-search-container input", timeout=30_000)
    canvas.page.keyboard.type("Gen-1 Edit Video", delay=20)
    offered = canvas.page.locator(".comfy-vue-node-search-container li", has_text="Gen-1 Edit Video")
    offered.first.wait_for(timeout=30_000)
    canvas.page.wait_for_timeout(400)
    canvas.page.keyboard.press("Enter")
    canvas.page.wait_for_timeout(400)
    canvas.page.mouse.click(700, 300)
    canvas.rest()
    assert canvas.types() == ["Gen1_EditVideo"]


def test_a_node_is_dragged_from_the_library(canvas: Canvas) -> None:
    canvas.clear()
    canvas.page.click(".node-library-tab-button")
    canvas.page.locator("input.search-box-input").fill("Gen-1 Guider")
    entry = canvas.page.locator(".node-lib-node-container", has_text="Gen-1 Guider").first
    entry.wait_for(timeout=30_000)
    entry.drag_to(canvas.page.locator("#graph-canvas"), target_position={"x": 800, "y": 400})
    canvas.rest()
    canvas.page.click(".node-library-tab-button")
    assert canvas.types() == ["Gen1_Guider"]


def test_every_word_is_chinese_for_a_chinese_browser(browser: Any, server: Any) -> None:
    """Titles, sockets and widgets of every node, as the page itself draws them."""
    page = browser.new_page(viewport={"width": 1600, "height": 1000}, locale="zh-CN")
    canvas = Canvas(page, server.url)
    canvas.open()
    canvas.close_dialogs()
    seen = page.evaluate(
        """ids => Object.fromEntries(ids.map(id => {
          const node = LiteGraph.createNode(id)
          return [id, {
            title: node.title,
            inputs: Object.fromEntries(node.inputs.map(i => [i.name, i.localized_name ?? i.label ?? i.name])),
            outputs: node.outputs.map(o => o.localized_name ?? o.label ?? o.name),
            widgets: Object.fromEntries((node.widgets ?? []).map(w => [w.name, w.label ?? w.name])),
          }]
        }))""",
        list(NODES),
    )
    for name, node in CHINESE.items():
        assert seen[name]["title"] == node["display_name"]
        for key, one in node["inputs"].items():
            assert {**seen[name]["inputs"], **seen[name]["widgets"]}[key] == one["name"], (name, key)
        for place, one in node["outputs"].items():
            # Where an output has no name of its own, the page says its type.
            if not re.fullmatch(r"[A-Z0-9_]+", one["name"]):
                assert seen[name]["outputs"][int(place)] == one["name"]
    page.close()


def test_the_help_of_a_node_opens(canvas: Canvas) -> None:
    """By the question mark that stands over a selected node."""
    canvas.load(ROOT / "workflows" / "tiny_text_edit.json")
    title = """() => { const node = app.graph.nodes.find(n => n.type === 'Gen1_EditVideo')
      app.canvas.ds.fitToBounds(node.boundingRect, { zoom: 0.5 })
      app.canvas.draw(true, true)
      return [...app.canvasPosToClientPos([node.pos[0] + 120, node.pos[1] - 12])] }"""
    canvas.page.mouse.click(*canvas.page.evaluate(title))
    canvas.page.locator('[data-testid="info-button"]').click()
    canvas.page.get_by_text("Which slider").wait_for(timeout=30_000)


def test_templates_are_in_the_browser(server: Any) -> None:
    """Under the pack's folder, each with its file."""
    listed = server.get("/workflow_templates")
    (names,) = listed.values()
    assert sorted(names) == [path.stem for path in FILES]
    assert set(names) >= {path.stem for path in TINY}
