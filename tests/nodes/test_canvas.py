"""ComfyUI's real page in a headless browser: workflows open whole, nodes are found, Run runs, words are translated.

Needs playwright and a Chromium (CHROMIUM_PATH, or one on the PATH); skipped with the reason where one is missing.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_canvas import OFFLINE, REPORT, Canvas, chromium
from comfy_server import NotInstalled
from workflow_files import FILES, ROOT, TINY, as_prompt, read

NODES = json.loads((ROOT / "locales" / "en" / "nodeDefs.json").read_text(encoding="utf-8"))
CHINESE = json.loads((ROOT / "locales" / "zh" / "nodeDefs.json").read_text(encoding="utf-8"))

each_file = pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
each_tiny = pytest.mark.parametrize("path", TINY, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Skips where playwright or Chromium is missing."""
    try:
        with chromium() as started:
            yield started
    except NotInstalled as missing:
        pytest.skip(str(missing))


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
    for fault in ("unknown", "red", "open", "overlaps", "outside"):
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
    """Pressed in the page; the video then shows on the node, no node is red, and there was room for what they show."""
    canvas.load(ROOT / "workflows" / "tiny_text_edit.json")
    canvas.errors.clear()
    assert canvas.run() == "execution_success"
    shown = """() => app.graph.nodes.filter(n => n.type === 'Gen1_SaveVideo').flatMap(n => n.widgets ?? [])
      .flatMap(w => [...(w.element?.querySelectorAll?.('video') ?? [])]).some(v => v.videoWidth === 640)"""
    canvas.page.wait_for_function(shown, timeout=60_000)
    report = canvas.page.evaluate(REPORT)
    assert report["red"] == report["overlaps"] == report["outside"] == []
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


def test_templates_are_in_the_browser(canvas: Canvas, server: Any) -> None:
    """Under the pack's folder, each with its file and a thumbnail that the page can show."""
    listed = server.get("/workflow_templates")
    ((folder, names),) = listed.items()
    assert sorted(names) == [path.stem for path in FILES]
    canvas.page.evaluate("() => app.extensionManager.command.execute('Comfy.BrowseTemplates')")
    canvas.page.get_by_text(folder, exact=True).click()
    for name in names:
        card = f'[data-testid="template-workflow-{name}"]'
        canvas.page.locator(card).scroll_into_view_if_needed(timeout=30_000)
        loaded = "card => document.querySelector(`${card} img`)?.naturalWidth > 200"
        canvas.page.wait_for_function(loaded, arg=card, timeout=30_000)
    canvas.close_dialogs()
