"""The open Gen-1: structure- and content-guided video diffusion (Esser et al., arXiv 2302.03011) in plain PyTorch.

Start with ``load_gen1``, ``describe`` and ``edit``; read ``pipeline.py`` first.
"""

from .gen1 import EditOptions, Gen1
from .loading import load_gen1
from .pipeline import describe, edit
from .structure.estimator import Structure
from .video.clip import Clip, MemoryClip
from .video.read import open_video
from .video.write import write_video

__all__ = [
    "Clip",
    "EditOptions",
    "Gen1",
    "MemoryClip",
    "Structure",
    "describe",
    "edit",
    "load_gen1",
    "open_video",
    "write_video",
]
