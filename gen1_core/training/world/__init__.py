"""A small world of analytic solids: the same moving scene in any style, with its exact depth."""

from .captions import caption, known_words
from .geometry import Camera, Scene, Solid
from .looks import Style
from .presets import PRESETS
from .relief import render_reliefs
from .render import render, render_styles
from .scenes import FAMILIES, HELD_OUT_FAMILIES, TRAINED_FAMILIES, random_scene
from .styles import is_held_out, is_held_out_pair, named_style, random_style

__all__ = [
    "FAMILIES",
    "HELD_OUT_FAMILIES",
    "PRESETS",
    "TRAINED_FAMILIES",
    "Camera",
    "Scene",
    "Solid",
    "Style",
    "caption",
    "is_held_out",
    "is_held_out_pair",
    "known_words",
    "named_style",
    "random_scene",
    "random_style",
    "render",
    "render_reliefs",
    "render_styles",
]
