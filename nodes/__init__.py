"""The ComfyUI nodes: one class per node, listed here, with no maths of their own."""

from comfy_api.latest import ComfyExtension, io


class Gen1Extension(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack. To add one: write its class in this folder and name it here."""
        return []


async def comfy_entrypoint() -> Gen1Extension:
    """ComfyUI calls this once after it has imported the pack."""
    return Gen1Extension()
