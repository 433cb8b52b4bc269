"""Named settings as constants: what a model edits with where the user says nothing."""

from pathlib import Path

from .diffusion.schedule import Schedule
from .pipeline import Diffusion, EditOptions

ASSETS = Path(__file__).parent / "assets"
"""The embedded model and the demo clip travel with the package."""

MODELS = {"tiny": ASSETS / "tiny"}
"""Models that need no file of the user's."""

DEMO_CLIP = ASSETS / "bunny.mp4"

TINY_DIFFUSION = Diffusion(
    working_size=128, prediction="v", schedule=Schedule(betas="scaled_linear", zero_terminal_snr=True)
)

TINY_OPTIONS = EditOptions(
    content_scale=1.5,
    temporal_scale=1.0,
    steps=8,
    sampler="dpmpp_2m",
    spacing="trailing",
    overlap=2,
)
"""Few steps suffice a small network, and a higher content scale costs it shapes (seen on the demo clip)."""
