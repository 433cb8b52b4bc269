"""Runs the workflows in a real ComfyUI and takes its pictures: docs/screenshots/*.png and workflows/*.jpg.

    python scripts/screenshots.py               all of them
    python scripts/screenshots.py tiny_parts    those of one workflow

Needs a ComfyUI checkout (COMFYUI_PATH or ~/comfy/ComfyUI) whose requirements are installed, playwright, and a
Chromium (CHROMIUM_PATH, or one on the PATH). A screenshot is the canvas after Run; a thumbnail, which ComfyUI's
template browser shows, is a frame of the video that the workflow made, or its graph where it needs weights.
"""

import argparse
import io
import sys
import tempfile
from pathlib import Path

import av
from PIL import Image
from schemas import ROOT, comfyui_path

sys.path.insert(0, str(ROOT / "tests"))

from comfy_canvas import REPORT, Canvas, chromium
from comfy_server import NotInstalled, Server, lay_out
from workflow_files import FILES, TINY, of_type, read

SCREENSHOTS = (
    "tiny_text_edit",
    "tiny_parts",
    "tiny_content_swap",
    "tiny_structure_detail",
    "tiny_keep_background",
    "sd15_animatediff_controlnet_ipadapter",
)
WIDTH, THUMBNAIL = 2000, 512
MOST_BYTES, MOST_THUMBNAIL_BYTES = 400_000, 60_000
MARGIN = 24
RUN_S = 3600.0

BARE = """async () => {
  const set = (name, value) => app.extensionManager.setting.set(name, value)
  await set('Comfy.Minimap.Visible', false)
  await set('Comfy.Graph.CanvasMenu', false)
  app.canvas.show_info = false
  const style = document.createElement('style')
  style.textContent = '.comfy-menu-hamburger { display: none !important }'
  document.head.append(style)
}"""

FOCUS = "() => app.extensionManager.command.execute('Workspace.ToggleFocusMode')"
"""Canvas alone, and back: in between there is no Run."""

BOUNDS = """() => { const [x, y, w, h] = [...app.graph.groups, ...app.graph.nodes].map(one => one.boundingRect)
  .map(([x, y, w, h]) => [x, y, x + w, y + h])
  .reduce((a, b) => [Math.min(a[0], b[0]), Math.min(a[1], b[1]), Math.max(a[2], b[2]), Math.max(a[3], b[3])])
  return [x, y, w - x, h - y] }"""

LOOK = """([x, y]) => { app.canvas.deselectAll(); app.canvas.ds.scale = 1; app.canvas.ds.offset = [-x, -y]
  app.canvas.setDirty(true, true); app.canvas.draw(true, true) }"""

MIDDLE = """async () => { for (const video of document.querySelectorAll('video')) {
  if (video.readyState < 1)
    await new Promise(done => video.addEventListener('loadedmetadata', done, { once: true }))
  video.pause()
  video.controls = false
  const sought = new Promise(done => video.addEventListener('seeked', done, { once: true }))
  video.currentTime = video.duration / 2
  await sought
} }"""


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", help="workflows, without .json; all where none is named")
    names = parser.parse_args().names
    for name in set(names) - {path.stem for path in FILES}:
        raise SystemExit(f"no workflow {name!r}; there are {', '.join(path.stem for path in FILES)}.")
    try:
        take([path for path in FILES if not names or path.stem in names])
    except NotInstalled as missing:
        raise SystemExit(f"no pictures can be taken: {missing}") from None


def take(files: list[Path]) -> None:
    """Every picture of these workflows."""
    # The browser first: it is found missing at once, ComfyUI only when it has started.
    with chromium() as browser, tempfile.TemporaryDirectory() as folder:
        server = Server(comfyui_path(), lay_out(Path(folder), ROOT, "gen1-video"), "--preview-method", "latent2rgb")
        try:
            server.start()
            page = browser.new_page(viewport={"width": 1600, "height": 1000}, locale="en-US")
            canvas = Canvas(page, server.url)
            canvas.open()
            canvas.close_dialogs()
            page.evaluate(BARE)
            for path in files:
                for made in pictures_of(path, canvas, server):
                    print(f"{made.relative_to(ROOT).as_posix()}: {made.stat().st_size // 1000} KB")  # noqa: T201
        finally:
            server.stop()


def pictures_of(path: Path, canvas: Canvas, server: Server) -> list[Path]:
    """A workflow opened and, where the pack has all it needs, run; what was written."""
    canvas.page.set_viewport_size({"width": 1600, "height": 1000})
    canvas.load(path)
    thumbnail = path.with_suffix(".jpg")
    if path in TINY:
        if (end := canvas.run(timeout_s=RUN_S)) != "execution_success":
            raise SystemExit(f"{path.stem} did not run: {end or canvas.close_dialogs()}")
        write_small(result_of(path, canvas, server), thumbnail)
    picture = graph_of(canvas)
    report = canvas.page.evaluate(REPORT)
    if report["overlaps"] or report["outside"]:
        raise SystemExit(f"{path.stem}: no room for what nodes show: {report['overlaps']} {report['outside']}.")
    if path not in TINY:
        write_small(picture, thumbnail)
    if path.stem not in SCREENSHOTS:
        return [thumbnail]
    screenshot = ROOT / "docs" / "screenshots" / f"{path.stem}.png"
    screenshot.parent.mkdir(parents=True, exist_ok=True)
    write_png(picture, screenshot)
    return [screenshot, thumbnail]


def graph_of(canvas: Canvas) -> Image.Image:
    """The whole graph at its own size, with the middle of every video on its node."""
    canvas.rest()
    canvas.page.evaluate(MIDDLE)
    canvas.rest()  # a node grows with what it shows
    x, y, width, height = canvas.page.evaluate(BOUNDS)
    canvas.page.set_viewport_size({"width": round(width) + 2 * MARGIN, "height": round(height) + 2 * MARGIN})
    canvas.page.evaluate(FOCUS)
    canvas.page.wait_for_timeout(500)
    canvas.page.evaluate(LOOK, [x - MARGIN, y - MARGIN])
    canvas.rest()
    canvas.page.wait_for_timeout(1500)  # the picture of a video comes after it was sought
    picture = Image.open(io.BytesIO(canvas.page.screenshot())).convert("RGB")
    canvas.page.evaluate(FOCUS)
    return picture


def result_of(path: Path, canvas: Canvas, server: Server) -> Image.Image:
    """What the workflow is for, in one picture: the template browser shows it in a square of 256 pixels."""
    workflow = read(path)
    (save,) = of_type(workflow, "Gen1_SaveVideo")
    (saved,) = canvas.page.evaluate("id => app.nodeOutputs[id].images", str(save["id"]))
    frames = decode(server.file(saved))
    if of_type(workflow, "Gen1_Compare"):
        return frames[len(frames) // 2]
    if of_type(workflow, "Gen1_ScheduleContent"):
        return stacked(frames[0], frames[-1])
    source = decode(ROOT / "gen1_core" / "assets" / "bunny.mp4")
    return stacked(source[len(frames) // 2], frames[len(frames) // 2])


def decode(path: Path) -> list[Image.Image]:
    """All frames of a short video."""
    with av.open(str(path)) as container:
        return [frame.to_image() for frame in container.decode(video=0)]


def stacked(above: Image.Image, below: Image.Image) -> Image.Image:
    """Two pictures of one size, one over the other."""
    both = Image.new("RGB", (above.width, above.height + below.height))
    both.paste(above, (0, 0))
    both.paste(below, (0, above.height))
    return both


def write_small(picture: Image.Image, path: Path) -> None:
    """A thumbnail as large as the template browser can use."""
    picture = picture.copy()
    picture.thumbnail((THUMBNAIL, THUMBNAIL), Image.Resampling.LANCZOS)
    for quality in (90, 80, 70, 60):
        picture.save(path, quality=quality, optimize=True)
        if path.stat().st_size <= MOST_THUMBNAIL_BYTES:
            return
    raise SystemExit(f"{path} stays larger than {MOST_THUMBNAIL_BYTES} bytes; make THUMBNAIL smaller.")


def write_png(picture: Image.Image, path: Path) -> None:
    """A screenshot for a page, with as many colours as the size allows."""
    picture = picture.copy()
    picture.thumbnail((WIDTH, WIDTH), Image.Resampling.LANCZOS)
    for colours in (256, 128, 64):
        picture.quantize(colours).save(path, optimize=True)
        if path.stat().st_size <= MOST_BYTES:
            return
    raise SystemExit(f"{path} stays larger than {MOST_BYTES} bytes; make WIDTH smaller.")


if __name__ == "__main__":
    main()
