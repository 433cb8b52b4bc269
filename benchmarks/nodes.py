"""What does ComfyUI cost? KSampler on our MODEL beside Gen-1 Sampler and gen1_core.generate, and a server's memory.

Run: python benchmarks/nodes.py [--threads 1] [--frames 16] [--rounds 3] [--runs 20]
A real server (COMFYUI_PATH or ~/comfy/ComfyUI, CPU) and this process take turns at the same clip, steps, scales and
sampler; each round gives ratios, whose median is told, so other work on the machine counts little. Then one edit is
made again and again with /free between. Linux only: the server's memory is read from /proc.
"""

import argparse
import os
import statistics
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from gen1_core import describe, load_gen1
from gen1_core.pipeline import generate
from gen1_core.structure.estimator import Structure

ROOT = Path(__file__).resolve().parents[1]
STEPS, SCALE, SIDE, PROMPT = 8, 1.5, 128, "a pencil sketch on white paper"
SHAPE = {"blur_level": 0, "structure_strength": 1.0, "start": 0.0, "end": 1.0}
LIMIT_RATIO, LIMIT_MB_A_RUN = 1.15, 2.0


def node(kind: str, **inputs: Any) -> dict[str, Any]:
    """A node in the API's form."""
    return {"class_type": kind, "inputs": inputs}


def parts(frames: int) -> dict[str, Any]:
    """Everything but the sampling: a grey picture stands for the depth of every frame."""
    grey = node("EmptyImage", width=SIDE, height=SIDE, batch_size=frames, color=0x808080)
    told = {"image": ["image", 0], "model": ["load", 0], "invert": False, **SHAPE}
    return {
        "load": node("Gen1_LoadModel", model="tiny (embedded)"),
        "image": grey,
        "structure": node("Gen1_StructureFromImage", **told),
        "content": node("Gen1_ContentFromText", encoder=["load", 2], prompt=PROMPT, negative="", seed=0),
        "condition": node("Gen1_Condition", model=["load", 0], structure=["structure", 0], content=["content", 0]),
    }


def by_core(frames: int, seed: int) -> dict[str, Any]:
    """The stock sampler."""
    how = {"cfg": SCALE, "sampler_name": "euler", "scheduler": "simple", "denoise": 1.0, "steps": STEPS, "seed": seed}
    wires = {"positive": ["condition", 0], "negative": ["condition", 1], "latent_image": ["condition", 2]}
    sampled = node("KSampler", model=["load", 0], **wires, **how)
    return {**parts(frames), "sampled": sampled, "saved": saved()}


def by_node(frames: int, seed: int) -> dict[str, Any]:
    """Our own."""
    how = {"content_scale": SCALE, "temporal_scale": 1.0, "steps": STEPS, "strength": 1.0, "seed": seed}
    how["structure_scale"] = 1.0  # as KSampler, which knows none
    wires = {"model": ["load", 0], "structure": ["structure", 0], "content": ["content", 0]}
    sampled = node("Gen1_Sampler", **wires, **how, sampler="euler", window=0, overlap=2)
    return {**parts(frames), "sampled": sampled, "saved": saved()}


def saved() -> dict[str, Any]:
    """A graph has to end somewhere; a latent is quickly written."""
    return node("SaveLatent", samples=["sampled", 0], filename_prefix="benchmark")


def seconds_of(server: Any, graph: dict[str, Any]) -> float:
    """From the sampler's start to the next node's."""
    marks: dict[str, float] = {}

    def mark(kind: str, data: dict[str, Any]) -> None:
        if kind == "executing" and data.get("node"):
            marks[data["node"]] = time.perf_counter()

    result = server.run(graph, on_event=mark, timeout_s=600)
    if not result.ok:
        raise SystemExit(result.message)
    return marks["saved"] - marks["sampled"]


def by_library(frames: int) -> Any:
    """``generate`` in this process, with the node's options."""
    gen1 = load_gen1("tiny")
    structure = Structure(depth=torch.full((1, 1, frames, SIDE, SIDE), 128 / 255))
    content = describe(gen1, prompt=PROMPT)
    options = replace(gen1.defaults, steps=STEPS, sampler="euler", content_scale=SCALE, structure_scale=1.0, passes=1)

    def seconds(seed: int) -> float:
        started = time.perf_counter()
        generate(gen1, structure, content, replace(options, seed=seed))
        return time.perf_counter() - started

    return seconds


def memory(server: Any, frames: int, runs: int) -> list[float]:
    """Resident memory after /free, before each of the runs and after the last."""
    series = []
    for run in range(runs + 1):
        server.free()
        time.sleep(2)  # the server's worker sees to it within a second, and says so nowhere
        series.append(server.memory_mb())
        if run < runs:
            seconds_of(server, by_core(frames, seed=run))
    return series


def main() -> None:
    """Times in turns, then memory."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("threads", 1), ("frames", 16), ("rounds", 3), ("runs", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    os.environ["OMP_NUM_THREADS"] = str(options.threads)
    sys.path.insert(0, str(ROOT / "tests"))
    from comfy_server import Server, lay_out  # pyright: ignore[reportMissingImports]

    comfyui = Path(os.environ.get("COMFYUI_PATH") or Path.home() / "comfy" / "ComfyUI")
    library, rows = by_library(options.frames), []
    with tempfile.TemporaryDirectory() as folder:
        server = Server(comfyui, lay_out(Path(folder), ROOT, "gen1"))
        try:
            server.start()
            for turn in range(options.rounds + 1):
                core, own = (seconds_of(server, graph(options.frames, turn)) for graph in (by_core, by_node))
                rows.append((core, own, library(turn)))
            series = memory(server, 4, options.runs)
        finally:
            server.stop()

    rows = rows[1:]  # the first round loads
    print(
        f"{options.threads} threads, torch {torch.__version__}, {options.frames} frames of {SIDE}x{SIDE}, {STEPS} steps"
    )
    for name, column in zip(("KSampler", "Gen-1 Sampler", "gen1_core.generate"), zip(*rows, strict=True), strict=True):
        print(f"{name:18} {statistics.median(column):6.2f} s (of {', '.join(f'{one:.2f}' for one in column)})")
    ratios = {
        "KSampler / Gen-1 Sampler": statistics.median(row[0] / row[1] for row in rows),
        "KSampler / generate": statistics.median(row[0] / row[2] for row in rows),
        "Gen-1 Sampler / generate": statistics.median(row[1] / row[2] for row in rows),
    }
    for name, ratio in ratios.items():
        print(f"{name:24} {ratio:.2f} (limit {LIMIT_RATIO})")
    growth = statistics.linear_regression(range(options.runs), series[1:]).slope
    print(f"memory, MB: {' '.join(f'{one:.0f}' for one in series)}")
    print(f"{growth:+.2f} MB a run after the first (limit {LIMIT_MB_A_RUN})")
    if max(ratios.values()) > LIMIT_RATIO or growth > LIMIT_MB_A_RUN:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
