"""The adapter, which alone touches ComfyUI's insides: what the nodes need of it, in one place.

    host_frames.py    IMAGE, MASK, LATENT    <-> pictures [n 3 h w], clips, latents [1 c f h w]
    host_videos.py    VIDEO, AUDIO           <-> streams with their rate, times and sound
    host_clips.py     a part of a file as VIDEO, a VIDEO copied as it is
    host_progress.py  bar, preview, cancel   <-> OnStep
    host_files.py     input, output, models  <-> paths
    host_networks.py  MODEL, VAE, memory     <-> Gen1 and its networks
    host_model.py     our U-Net as the core's model

Written for ComfyUI 0.3.64; what newer versions can do besides is asked for here, once.
"""

from inspect import signature
from typing import Any

from comfy_api.latest import io

from .host_clips import copy_file, length_of, linked_input, linked_outputs, playable, video_from, with_sound
from .host_files import (
    BY_CONTENT,
    EMBEDDED,
    MOTION_LORA_FOLDER,
    NONE,
    OutputFile,
    file_state,
    folders_of,
    gen1_folder,
    input_path,
    input_videos,
    metadata,
    model_files,
    model_folders,
    model_path,
    output_file,
    register_folders,
    temp_path,
)
from .host_frames import (
    clip_of,
    gather,
    image_of,
    images_of,
    latent_of,
    latent_scale,
    latents_of,
    mask_clip,
    mask_of,
    masks_of,
    require_memory,
)
from .host_networks import (
    ContentReader,
    DepthNetwork,
    attach,
    codec_of,
    depth_wire,
    device,
    encoder_wire,
    gen1_of,
    load,
    managed,
    networks_in,
    ready,
    unet_dtype,
    vae_wire,
)
from .host_progress import Progress, cancellable, check_cancel, counted, on_step, say, sheet, ticking
from .host_videos import (
    Source,
    audio_of,
    kept_path,
    rate_of,
    source_of_file,
    source_of_images,
    source_of_video,
    video_of,
    write,
)

CATEGORY = "Gen-1"
"""Of every node."""

Depth = io.Custom("GEN1_DEPTH")
"""Wire of a depth estimator; its value is a ``DepthNetwork``, callable as gen1_core's ``DepthEstimator``."""

Structure = io.Custom("GEN1_STRUCTURE")
"""Wire of gen1_core's ``Structure``."""

Content = io.Custom("GEN1_CONTENT")
"""Wire of gen1_core's ``Content``."""

Encoder = io.Custom("GEN1_ENCODER")
"""Wire of what makes content; its value is a ``ContentReader``, called as gen1_core's ``Describer``."""


def aliases(*words: str) -> dict[str, Any]:
    """Words that also find a node in the search: ``io.Schema(..., **host.aliases("rotoscope"))``; 0.3.64 knows none."""
    return {"search_aliases": list(words)} if "search_aliases" in signature(io.Schema).parameters else {}


__all__ = [
    "BY_CONTENT",
    "CATEGORY",
    "EMBEDDED",
    "MOTION_LORA_FOLDER",
    "NONE",
    "Content",
    "ContentReader",
    "Depth",
    "DepthNetwork",
    "Encoder",
    "OutputFile",
    "Progress",
    "Source",
    "Structure",
    "aliases",
    "attach",
    "audio_of",
    "cancellable",
    "check_cancel",
    "clip_of",
    "codec_of",
    "copy_file",
    "counted",
    "depth_wire",
    "device",
    "encoder_wire",
    "file_state",
    "folders_of",
    "gather",
    "gen1_folder",
    "gen1_of",
    "image_of",
    "images_of",
    "input_path",
    "input_videos",
    "kept_path",
    "latent_of",
    "latent_scale",
    "latents_of",
    "length_of",
    "linked_input",
    "linked_outputs",
    "load",
    "managed",
    "mask_clip",
    "mask_of",
    "masks_of",
    "metadata",
    "model_files",
    "model_folders",
    "model_path",
    "networks_in",
    "on_step",
    "output_file",
    "playable",
    "rate_of",
    "ready",
    "register_folders",
    "require_memory",
    "say",
    "sheet",
    "source_of_file",
    "source_of_images",
    "source_of_video",
    "temp_path",
    "ticking",
    "unet_dtype",
    "vae_wire",
    "video_from",
    "video_of",
    "with_sound",
    "write",
]
