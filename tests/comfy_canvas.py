"""ComfyUI's real page in a headless Chromium: for the tests of the canvas and for scripts/screenshots.py.

Needs playwright and a Chromium (CHROMIUM_PATH, or one on the PATH).
"""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from comfy_server import NotInstalled

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
    outside: nodes.filter(n => n.type !== 'MarkdownNote' && !app.graph.groups.some(g => {
      const [x, y, w, h] = n.boundingRect, [left, top, wide, high] = g.boundingRect
      return left <= x && top <= y && x + w <= left + wide && y + h <= top + high
    })).map(label),
  }
}"""

WATCH = """() => { window.__end = null
  for (const kind of ['execution_success', 'execution_error', 'execution_interrupted'])
    app.api.addEventListener(kind, () => { window.__end = kind }, { once: true }) }"""

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

    def run(self, *, timeout_s: float = 900.0) -> str:
        """Press Run and wait; the message that ended it, or empty where a dialog refused it."""
        self.page.evaluate(WATCH)
        self.page.locator('[data-testid="queue-button"] button').first.click()
        ended = "() => window.__end || document.querySelector('.p-dialog')"
        self.page.wait_for_function(ended, timeout=timeout_s * 1000)
        return self.page.evaluate("() => window.__end") or ""

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


@contextmanager
def chromium() -> Iterator[Any]:
    """A headless browser that reaches this machine and nothing else; NotInstalled where it cannot be."""
    try:
        from playwright.sync_api import sync_playwright
    except ModuleNotFoundError:
        raise NotInstalled("playwright is not installed here; pip install playwright.") from None
    found = os.environ.get("CHROMIUM_PATH") or shutil.which("chromium") or shutil.which("chromium-browser")
    if not found:
        raise NotInstalled("there is no Chromium on the PATH; install one or set CHROMIUM_PATH.")
    options = ["--no-sandbox", "--disable-gpu", "--no-first-run", "--disable-background-networking"]
    options.append("--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=found, args=options)
        try:
            yield browser
        finally:
            browser.close()
