"""Writes every file that follows from the nodes' schemas: locales, tables of the help pages, docs/nodes.md, workflows.

The schemas that they were made of are kept too, in tests/object_info.json, for checks without a ComfyUI.

    python scripts/node_files.py            write them
    python scripts/node_files.py --check    name those that are not what would be written, and fail

Needs a ComfyUI checkout (COMFYUI_PATH or ~/comfy/ComfyUI), which tells the schemas; with ``--schemas FILE`` a saved
``/object_info`` of a server that runs this pack does.
"""

import argparse
import json
from pathlib import Path

from schemas import ROOT, SAVED, comfyui_path, lasting, read_schemas
from templates import workflow_files
from words import as_json, word_files


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true", help="write nothing; fail where a file is stale")
    parser.add_argument("--schemas", type=Path, help="a saved answer of /object_info")
    options = parser.parse_args()
    if options.schemas:
        schemas = json.loads(options.schemas.read_text(encoding="utf-8"))
    else:
        schemas = read_schemas(comfyui_path())
    files = word_files(schemas)
    workflows = workflow_files(schemas)
    files |= workflows
    used = {
        node["type"] for path, text in workflows.items() if path.suffix == ".json" for node in json.loads(text)["nodes"]
    }
    files[SAVED] = as_json(lasting(schemas, used))
    stale = [path for path, text in files.items() if not path.is_file() or path.read_text(encoding="utf-8") != text]
    made = {path.name for path in files}
    left = [path for path in (ROOT / "workflows").glob("*.json") if path.name not in made]
    if options.check and (stale or left):
        names = ", ".join(path.relative_to(ROOT).as_posix() for path in (*stale, *left))
        raise SystemExit(f"not what the schemas say: {names}; run python scripts/node_files.py.")
    for path in stale:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files[path], encoding="utf-8", newline="\n")
    for path in left:
        path.unlink()


if __name__ == "__main__":
    main()
