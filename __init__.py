"""ComfyUI's door to this node pack.

ComfyUI imports this file by its path. Anywhere else (a test run, an editor) there is no ``comfy_api``, and
importing this file does nothing. The nodes are imported in the else branch, so that our errors show.
"""

try:
    import comfy_api  # noqa: F401
except ModuleNotFoundError:
    pass
else:
    from .nodes import comfy_entrypoint  # noqa: F401

    # Help pages of the nodes. Named here and not in pyproject.toml, which ComfyUI would serve under the project's name
    # while its canvas asks for the folder's.
    WEB_DIRECTORY = "web"
