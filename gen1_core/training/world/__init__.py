"""A small world of analytic solids: the same moving scene in any style, with its exact depth."""

from .captions import caption, known_words
from .geometry import Camera, Scene, Solid
from .render import render, render_styles
from .scenes import FAMILIES, random_scene
from .styles import PRESETS, Style, random_style

__all__ = [
    "FAMILIES",
    "PRESETS",
    "Camera",
    "Scene",
    "Solid",
    "Style",
    "caption",
    "known_words",
    "random_scene",
    "random_style",
    "render",
    "render_styles",
]
