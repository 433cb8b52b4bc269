"""ComfyUI's door to this node pack.

ComfyUI imports this file by its path. Anywhere else (a test run, an editor) there is no ``comfy_api``, and
importing this file does nothing. The nodes are imported in the else branch, so that our errors show.
"""

import sys

try:
    import comfy_api.latest  # noqa: F401
except ModuleNotFoundError as error:
    # A ComfyUI too old for it prints this; of a pack without nodes it would only say that it has none.
    if "folder_paths" in sys.modules:
        raise ImportError(
            f"this ComfyUI has not the interface that the Gen-1 nodes are written for ({error}), so they cannot be "
            "loaded; update ComfyUI to 0.3.64 or newer."
        ) from error
else:
    from .nodes import comfy_entrypoint  # noqa: F401

    # Help pages of the nodes. Named here and not in pyproject.toml, which ComfyUI would serve under the project's name
    # while its canvas asks for the folder's.
    WEB_DIRECTORY = "web"
