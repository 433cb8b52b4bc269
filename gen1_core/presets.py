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
    content_scale=2.0,
    temporal_scale=1.0,
    steps=12,
    sampler="dpmpp_2m",
    spacing="trailing",
    overlap=2,
)
"""Few steps suffice a small network; above scale 3 its colours clip (seen on the demo clip)."""

PAPER_OPTIONS = EditOptions(content_scale=7.5, temporal_scale=1.0, steps=50, sampler="ddim")
"""Section 4: DDIM, omega 7.5, omega_t 1; the number of steps is not stated, 50 is the usual choice."""
