"""The pack as ComfyUI loads it: every node's form, words, translations and help page, and what importing it does."""

import ast
import json
import re
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from comfy_lint.linter import lint_workflow
from comfy_lint.schema import normalize
from workflow_files import FILES, TINY, as_prompt, read

ROOT = Path(__file__).resolve().parents[2]

NODES = """
    Gen1_LoadModel Gen1_LoadPublic Gen1_LoadDepth Gen1_LoadLora
    Gen1_LoadVideo Gen1_SaveVideo
    Gen1_DepthStructure Gen1_StructureFromImage
    Gen1_ContentFromText Gen1_ContentFromImage Gen1_BlendContent Gen1_ScheduleContent
    Gen1_Condition Gen1_Guider Gen1_Encode Gen1_Sampler Gen1_Decode
    Gen1_EditVideo Gen1_EditMask Gen1_Compare Gen1_Metrics
""".split()
"""Frozen: people's workflows name them. New ones are added, none is renamed."""

OWN_TYPES = {"GEN1_DEPTH", "GEN1_STRUCTURE", "GEN1_CONTENT", "GEN1_ENCODER"}
CORE_TYPES = set(
    """VIDEO IMAGE MASK AUDIO LATENT VAE MODEL CONDITIONING GUIDER CLIP_VISION_OUTPUT NOISE SAMPLER SIGMAS
    INT FLOAT STRING BOOLEAN COMBO""".split()
)

LOADERS = {"Gen1_LoadModel", "Gen1_LoadPublic"}
LANGUAGES = ("en", "zh")
EXECUTE_LINES = 40


INFO = json.loads((ROOT / "tests" / "object_info.json").read_text(encoding="utf-8"))
"""What a server says of them, and of those of its own that the workflows use, so that most can be checked without a
ComfyUI. scripts/node_files.py writes it, test_words.py compares it with a server."""

OURS = {name: info for name, info in INFO.items() if name.startswith("Gen1_")}


def inputs(info: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Name, type and options of every input."""
    for group in ("required", "optional"):
        for name, (kind, *said) in info["input"].get(group, {}).items():
            yield name, kind, said[0] if said else {}


def tooltips(info: dict[str, Any]) -> Iterator[tuple[str, str]]:
    """Of every input and output, by the name that the canvas shows."""
    yield from ((f"{info['name']} {name}", said.get("tooltip", "")) for name, _, said in inputs(info))
    for name, told in zip(info["output_name"], info["output_tooltips"], strict=True):
        yield f"{info['name']} {name}", told or ""


def test_the_nodes_are_these() -> None:
    assert list(OURS) == NODES


def test_it_is_a_v3_pack_alone(pack: Any) -> None:
    assert not hasattr(pack.module, "NODE_CLASS_MAPPINGS")  # comfy_entrypoint would be ignored


def test_every_node_says_what_it_is() -> None:
    for name, info in OURS.items():
        assert info["name"] == name
        assert info["category"] == "Gen-1"
        assert info["display_name"].startswith("Gen-1 ")
        assert len(info["description"]) > 20, name
    assert len({info["display_name"] for info in OURS.values()}) == len(OURS)


def test_every_socket_has_a_tooltip() -> None:
    said = [one for info in OURS.values() for one in tooltips(info)]
    assert [name for name, tooltip in said if not re.fullmatch(r".{8,}[.?]", tooltip)] == []
    for name, tooltip in said:
        assert tooltip.lower().strip(". ") != name.split()[-1].replace("_", " "), name


def test_outputs_of_one_type_have_names() -> None:
    """Two sockets that both say CONDITIONING cannot be told apart on the canvas."""
    for name, info in OURS.items():
        assert len(set(info["output_name"])) == len(info["output_name"]), name


def test_ids_are_plain_and_differ(pack: Any) -> None:
    for schema in (node.GET_SCHEMA() for node in pack.nodes()):
        ids = [one.id for one in (*schema.inputs, *schema.outputs)]
        assert len(set(ids)) == len(ids), schema.node_id
        assert [one for one in ids if not re.fullmatch(r"[a-z][a-z0-9_]*", one)] == []


def test_wires_are_the_cores_where_it_has_one() -> None:
    types = {kind for info in OURS.values() for kind in (*info["output"], *(one[1] for one in inputs(info)))}
    assert types <= OWN_TYPES | CORE_TYPES
    assert OWN_TYPES <= types


def test_numbers_have_bounds_that_hold_their_default() -> None:
    numbers = [(name, *one) for name, info in OURS.items() for one in inputs(info) if one[1] in ("INT", "FLOAT")]
    assert len(numbers) > 30
    for name, one, _, said in numbers:
        assert said["min"] <= said["default"] <= said["max"], f"{name} {one}"


# The source against what is kept of the schemas: a changed word is seen where there is no ComfyUI.


def said_in_source() -> Iterator[tuple[str, str]]:
    """Every word that the nodes' source says of a node or a socket, with what it is: a keyword, or an id."""
    for path in sorted((ROOT / "nodes").glob("*.py")):
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(call, ast.Call):
                continue
            for given in call.keywords:
                if given.arg in ("tooltip", "description", "node_id", "display_name"):
                    if isinstance(given.value, ast.Constant):
                        yield given.arg, given.value.value
            socket = isinstance(call.func, ast.Attribute) and call.func.attr == "Input"
            if socket and call.args and isinstance(call.args[0], ast.Constant):
                yield "input", call.args[0].value


def test_the_kept_schemas_say_what_the_source_says() -> None:
    kept: dict[str, set[str]] = {
        "node_id": set(OURS),
        "description": {info["description"] for info in OURS.values()},
        "display_name": {one for info in OURS.values() for one in (info["display_name"], *info["output_name"])},
        "tooltip": {told for info in OURS.values() for _, told in tooltips(info)},
        "input": {name for info in OURS.values() for name, _, _ in inputs(info)},
    }
    said = set(said_in_source())
    assert len(said) > 150
    stale = sorted(word for kind, word in said if word not in kept[kind])
    assert stale == [], "tests/object_info.json is stale; run python scripts/node_files.py."
    assert {word for kind, word in said if kind == "node_id"} == kept["node_id"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_comfy_lint_finds_nothing_in_a_workflow(path: Path) -> None:
    """As the page would send it; a file of weights that is not here is all that may be missing."""
    workflow = read(path)
    found = lint_workflow(as_prompt(workflow), normalize(INFO))
    files = {one.field for one in found if one.rule == "invalid-enum" and one.class_type in LOADERS}
    assert [one for one in found if one.field not in files] == []
    assert bool(files) == (path not in TINY)


def test_comfy_lint_would_find_it() -> None:
    """A link of another type, a slot that is not there, a widget that is not one of the node's."""
    prompt = as_prompt(read(ROOT / "workflows" / "tiny_parts.json"))
    decode = next(node for node in prompt.values() if node["class_type"] == "Gen1_Decode")
    decode["inputs"] |= {"vae": decode["inputs"]["image"], "image": [decode["inputs"]["image"][0], 9], "tile": 1}
    found = lint_workflow(prompt, normalize(INFO))
    assert sorted(one.rule for one in found) == ["dangling-link", "extraneous-input", "type-mismatch"]


# What only the classes themselves tell.


def test_lists_offer_their_default_and_are_checked(pack: Any) -> None:
    """The server does not look whether a COMBO of the V3 schema holds the value, so each node does."""
    from comfy_api.internal import first_real_override

    for node in pack.nodes():
        lists = [one for one in node.GET_SCHEMA().inputs if one.io_type == "COMBO"]
        for one in lists:
            assert one.options, f"{node.GET_SCHEMA().node_id} {one.id}"
            assert one.default is None or one.default in one.options
        if lists:
            assert first_real_override(node, "validate_inputs") is not None, node.GET_SCHEMA().node_id


def test_no_node_is_a_subclass_of_another(pack: Any) -> None:
    """ComfyUI keeps the types of a class on the class: a subclass would inherit them."""
    nodes = pack.nodes()
    assert [node for node in nodes if any(base in nodes for base in node.__mro__[1:])] == []


# Translations, as /i18n serves them.


def definitions(language: str) -> dict[str, Any]:
    """What a language says of the nodes."""
    path = ROOT / "locales" / language / "nodeDefs.json"
    return json.loads(path.read_text(encoding="utf-8"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_everything_is_translated_and_nothing_else(language: str) -> None:
    told = definitions(language)
    assert sorted(told) == sorted(NODES)
    for name, info in OURS.items():
        node = told[name]
        assert node["display_name"]
        assert node["description"]
        assert set(node["inputs"]) == {one for one, _, _ in inputs(info)}, name
        assert set(node["outputs"]) == {str(place) for place in range(len(info["output"]))}, name
        for one in (*node["inputs"].values(), *node["outputs"].values()):
            assert one["name"], (name, one)
            assert one["tooltip"], (name, one)
    words = json.loads((ROOT / "locales" / language / "main.json").read_text(encoding="utf-8"))
    assert set(words["nodeCategories"]) == {info["category"] for info in OURS.values()}
    assert set(words["dataTypes"]) == OWN_TYPES


def test_english_is_what_the_nodes_say() -> None:
    told = definitions("en")
    for name, info in OURS.items():
        node = told[name]
        assert (node["display_name"], node["description"]) == (info["display_name"], info["description"])
        for one, _, said in inputs(info):
            assert node["inputs"][one]["tooltip"] == said["tooltip"], f"{name} {one}"
        for place, tooltip in enumerate(info["output_tooltips"]):
            assert node["outputs"][str(place)]["tooltip"] == tooltip, f"{name} {place}"


def test_chinese_is_chinese() -> None:
    for node in definitions("zh").values():
        for one in (node, *node["inputs"].values(), *node["outputs"].values()):
            text = one.get("tooltip") or one["description"]
            assert re.search(r"[\u4e00-\u9fff]", text), text


# Help pages, as the canvas asks for them.


def test_every_help_page_explains_every_socket() -> None:
    for node, info in OURS.items():
        for page in (f"{node}.md", f"{node}/zh.md"):
            text = (ROOT / "web" / "docs" / page).read_text(encoding="utf-8")
            said = definitions("en" if page == f"{node}.md" else "zh")[node]["outputs"].values()
            names = [*(name for name, _, _ in inputs(info)), *(one["name"] for one in said)]
            assert [name for name in names if f"`{name}`" not in text] == [], page


SECTIONS = {"en": ("Wiring", "Typical mistakes"), "zh": ("接线示例", "常见错误")}


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_help_page_shows_a_wiring_and_what_goes_wrong(language: str) -> None:
    """Pictures of every language are looked for by the canvas from web/docs on."""
    for node in NODES:
        path = ROOT / "web" / "docs" / (f"{node}.md" if language == "en" else f"{node}/{language}.md")
        text = path.read_text(encoding="utf-8")
        for section in SECTIONS[language]:
            (said,) = re.findall(rf"^## {section}\n\n(.+?)(?=\n## |\Z)", text, flags=re.MULTILINE | re.DOTALL)
            assert len(said) > 40, (path, section)
        for picture in re.findall(r"!\[[^\]]*\]\(([^)\s]+)\)", text):
            assert (ROOT / "web" / "docs" / picture).is_file(), (path, picture)


def test_no_help_page_is_left_over() -> None:
    pages = {path.stem for path in (ROOT / "web" / "docs").glob("*.md")}
    folders = {path.name for path in (ROOT / "web" / "docs").iterdir() if path.is_dir()}
    assert pages == folders == set(NODES)


# The source.


def test_nodes_are_short() -> None:
    long = []
    for path in sorted((ROOT / "nodes").glob("*.py")):
        for one in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(one, ast.FunctionDef) and one.name == "execute":
                lines = (one.end_lineno or 0) - one.lineno + 1
                long += [f"{path.name}:{one.lineno}: {lines}"] if lines > EXECUTE_LINES else []
    assert long == []


# Importing it.

IMPORT = """
import asyncio, importlib.util, json, sys, time, warnings
from pathlib import Path

comfyui, folder = sys.argv[1:]
sys.argv = sys.argv[:1]
sys.path.insert(0, comfyui)
from comfy.cli_args import args
args.cpu = True
import comfy.sd, comfy_api.latest, folder_paths, comfy_execution.progress
import comfy.samplers, kornia  # the core's own nodes, which are there before any pack, import them

for name in ("torchvision", "torchaudio", "cv2", "xformers", "transformers", "timm", "open_clip", "diffusers"):
    sys.modules[name] = None  # importing it fails from here on, also where ComfyUI did
events = []
WATCHED = {"subprocess.Popen", "os.exec", "os.posix_spawn", "os.fork", "os.system", "socket.connect", "socket.bind"}

def watch(event, given):
    writes = event == "open" and isinstance(given[1], str) and set(given[1]) & set("wax+")
    if event in WATCHED or (writes and not str(given[0]).endswith(tuple("0123456789")) and ".pyc" not in str(given[0])):
        events.append(f"{event} {given[0]}")

warnings.simplefilter("error")
before = set(sys.modules)
sys.addaudithook(watch)
began = time.process_time()  # what it costs, however busy the machine
name = folder.replace(".", "_x_")
spec = importlib.util.spec_from_file_location(name, Path(folder) / "__init__.py")
module = importlib.util.module_from_spec(spec)
sys.modules[name] = module
spec.loader.exec_module(module)
imported_s = time.process_time() - began
loaded = sorted({one.split(".")[0] for one in set(sys.modules) - before if not one.startswith(name)})
happened = list(events)
warnings.simplefilter("default")
nodes = asyncio.run(asyncio.run(module.comfy_entrypoint()).get_node_list())
ids = [node.GET_SCHEMA().node_id for node in nodes]
print(json.dumps({"s": imported_s, "loaded": loaded, "events": happened, "nodes": ids}))
"""


@pytest.mark.slow
def test_importing_is_quick_and_touches_nothing(comfyui: Path, tmp_path: Path, record_property: Any, pack: Any) -> None:
    """By its path under an odd name; without what breaks in the field; no process, no connection, no file written."""
    folder = tmp_path / "ComfyUI-Gen1.main (2)"
    folder.symlink_to(ROOT, target_is_directory=True)
    command = [sys.executable, "-c", IMPORT, str(comfyui), str(folder)]
    runs = []
    for _ in range(2):  # the first one may compile
        done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, encoding="utf-8")
        assert done.returncode == 0, done.stderr
        runs.append(json.loads(done.stdout.splitlines()[-1]))
    found = runs[-1]
    assert found["nodes"] == NODES
    assert found["events"] == []
    took_s = min(run["s"] for run in runs)
    record_property("pack_import_cpu_s", round(took_s, 2))
    assert took_s < 1, found["loaded"]


# The server.


def test_a_real_server_offers_every_node_and_its_page(server: Any, record_property: Any) -> None:
    ours = {name: info for name, info in server.object_info().items() if name.startswith("Gen1_")}
    assert list(ours) == NODES
    folder = next(iter(ours.values()))["python_module"].removeprefix("custom_nodes.")
    address = f"{server.url}/extensions/{folder}/docs"
    seconds = re.search(rf"([\d.]+) seconds(.*): .*{re.escape(folder)}$", server.log, re.MULTILINE)
    assert seconds is not None
    assert "IMPORT FAILED" not in seconds[2]
    record_property("pack_import_in_server_s", float(seconds[1]))
    record_property("server_ready_s", round(server.ready_s, 1))
    for name in NODES:
        for page in (f"{name}.md", f"{name}/zh.md"):
            with urllib.request.urlopen(f"{address}/{page}") as answer:
                assert answer.status == 200
                assert len(answer.read()) > 200, page


def test_a_real_server_serves_the_translations(server: Any) -> None:
    served = server.get("/i18n")
    for language in LANGUAGES:
        assert sorted(name for name in served[language]["nodeDefs"] if name.startswith("Gen1_")) == sorted(NODES)


def test_a_real_server_refuses_a_name_that_is_on_no_list(server: Any) -> None:
    """Before anything runs; the canvas marks the input."""
    info = server.object_info()
    for name in NODES:
        given = info[name]["input"]["required"]
        lists = [one for one, kind in given.items() if kind[0] == "COMBO" or isinstance(kind[0], list)]
        for one in lists:
            values = {key: kind[1]["default"] for key, kind in given.items() if len(kind) > 1 and "default" in kind[1]}
            prompt = {"1": {"class_type": name, "inputs": {**values, one: "gone.xyz"}}}
            prompt["2"] = {"class_type": "PreviewAny", "inputs": {"source": ["1", 0]}}
            result = server.run(prompt)
            assert result.status == "rejected", (name, one)
            # Of public weights the first file is missing here already.
            assert "gone.xyz" in result.message or name == "Gen1_LoadPublic", (name, one, result.message)


REFUSING = """
import sys

for name in ("transformers", "timm", "open_clip", "torchvision", "torchaudio", "cv2", "xformers"):
    sys.modules[name] = None
NODE_CLASS_MAPPINGS = {}
"""


def edited(server: Any, *, seed: int) -> dict[str, Any]:
    """A prompt that edits the first frames of the demo clip with the embedded model."""
    load = {**server.defaults("Gen1_LoadVideo"), "file": "bunny.mp4", "end_s": 0.1, "max_size": 64}
    return {
        "1": {"class_type": "Gen1_LoadVideo", "inputs": load},
        "2": {
            "class_type": "Gen1_EditVideo",
            "inputs": {**server.defaults("Gen1_EditVideo"), "video": ["1", 0], "steps": 2, "seed": seed},
        },
        "3": {
            "class_type": "Gen1_SaveVideo",
            "inputs": {**server.defaults("Gen1_SaveVideo"), "video": ["2", 0], "filename_prefix": "schemas/edit"},
        },
    }


def test_nothing_optional_is_needed(new_server: Any) -> None:
    """Neither to load the pack nor to edit with the embedded model."""
    server = new_server(others={"000_refusing": REFUSING})
    result = server.run(edited(server, seed=1))
    assert result.ok, result.message
    (saved,) = result.outputs["3"]["images"]
    assert server.file(saved).stat().st_size > 1000


def test_memory_stays_flat(server: Any, record_property: Any) -> None:
    """20 edits, all models thrown out between them: what is resident after the fifth is so after the last."""
    resident = []
    for seed in range(20):
        assert server.run(edited(server, seed=seed)).ok
        server.free()
        resident.append(round(server.memory_mb()))
    record_property("resident_mb", resident)
    assert resident[-1] - resident[4] < 60, resident
