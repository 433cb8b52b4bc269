"""The ComfyUI nodes: one class per node, listed here, with no maths of their own."""

from comfy_api.latest import ComfyExtension, io

from . import host
from .content import BlendContent, ContentFromImage, ContentFromText, ScheduleContent
from .edit import Compare, EditMask, EditVideo, Metrics
from .load import LoadDepth, LoadLora, LoadModel, LoadPublic
from .sample import Condition, Decode, Encode, Guider, Sampler
from .structure import DepthStructure, StructureFromImage
from .video import LoadVideo, SaveVideo


class Gen1Extension(ComfyExtension):
    """What ComfyUI asks for the nodes of this pack."""

    async def get_node_list(self) -> list[type[io.ComfyNode]]:
        """Every node of the pack. To add one: write its class in this folder and name it here."""
        return [
            LoadModel,
            LoadPublic,
            LoadDepth,
            LoadLora,
            LoadVideo,
            SaveVideo,
            DepthStructure,
            StructureFromImage,
            ContentFromText,
            ContentFromImage,
            BlendContent,
            ScheduleContent,
            Condition,
            Guider,
            Encode,
            Sampler,
            Decode,
            EditVideo,
            EditMask,
            Compare,
            Metrics,
        ]


async def comfy_entrypoint() -> Gen1Extension:
    """ComfyUI calls this once after it has imported the pack."""
    host.register_folders()
    return Gen1Extension()
