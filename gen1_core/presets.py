"""Named settings as constants: what a model edits with where the user says nothing."""

from dataclasses import dataclass
from pathlib import Path

from .diffusion.schedule import Schedule
from .gen1 import Diffusion, EditOptions

ASSETS = Path(__file__).parent / "assets"
"""The embedded model and the demo clip travel with the package."""

MODELS = {"tiny": ASSETS / "tiny"}
"""Models that need no file of the user's."""

DEMO_CLIP = ASSETS / "bunny.mp4"

TINY_DIFFUSION = Diffusion(
    working_size=128, prediction="clean", schedule=Schedule(betas="scaled_linear", zero_terminal_snr=True)
)

TINY_OPTIONS = EditOptions(
    content_scale=2.0,
    temporal_scale=1.0,
    structure_scale=2.0,
    steps=4,
    sampler="dpmpp_2m",
    spacing="trailing",
    overlap=2,
)
"""Few steps suffice a small network. Both scales are the same, which saves a pass (``guided``), and of those tried on
validation edits (docs/evaluation.md) come nearest to the truth."""


@dataclass(frozen=True, kw_only=True)
class Composition:
    """How a kind of public weights was trained, what to edit with where the user says nothing, and who says so."""

    diffusion: Diffusion
    options: EditOptions
    source: str


COMPOSITIONS = {
    "image": Composition(
        diffusion=Diffusion(working_size=512, prediction="eps"),
        options=EditOptions(steps=25, sampler="dpmpp_2m", spacing="karras", content_scale=7.5, window=16, overlap=0),
        source="Stable Diffusion 1.x: 512 px and scaled-linear betas (v1-inference.yaml); scale 7.5 (default of "
        "diffusers' pipeline); 25 steps of DPM++ 2M (diffusers, 'Schedulers': 20 to 25 steps).",
    ),
    "animatediff": Composition(
        diffusion=Diffusion(working_size=512, prediction="eps", schedule=Schedule(betas="linear")),
        options=EditOptions(steps=25, sampler="ddim", spacing="linspace", content_scale=7.5, window=16, overlap=4),
        source="AnimateDiff v1 to v3: linear betas and clips of 16 frames (inference-v1.yaml, training configs); 25 "
        "steps of DDIM from the last timestep (linspace), scale 7.5 (diffusers, 'AnimateDiff'); overlap 4 (as context "
        "windows usually have).",
    ),
    "long_animatediff": Composition(
        diffusion=Diffusion(working_size=512, prediction="eps", schedule=Schedule(betas="linear")),
        options=EditOptions(steps=25, sampler="ddim", spacing="linspace", content_scale=7.5, window=32, overlap=4),
        source="LongAnimateDiff: as AnimateDiff, on clips of 16 to 64 frames (its README recommends 32).",
    ),
    "animatelcm": Composition(
        diffusion=Diffusion(working_size=512, prediction="eps", schedule=Schedule(betas="linear")),
        options=EditOptions(steps=6, sampler="lcm", spacing="lcm", content_scale=2.0, window=16, overlap=4),
        source="AnimateLCM: linear betas, clips of 16 frames, 6 steps of LCM at scale 2 (diffusers, 'AnimateLCM').",
    ),
    "sd2_depth": Composition(
        diffusion=Diffusion(working_size=512, prediction="eps"),
        options=EditOptions(steps=50, sampler="ddim", spacing="leading", content_scale=7.5, window=16, overlap=0),
        source="SD2-depth: v2-midas-inference.yaml; 50 steps, scale 7.5 (defaults of diffusers' depth2img pipeline).",
    ),
    "sd2": Composition(
        diffusion=Diffusion(working_size=512, prediction="eps"),
        options=EditOptions(steps=25, sampler="dpmpp_2m", spacing="karras", content_scale=7.5, window=16, overlap=0),
        source="Stable Diffusion 2.x base: v2-inference.yaml; steps and scale as for 1.x.",
    ),
    "sd2_768": Composition(
        diffusion=Diffusion(working_size=768, prediction="v"),
        options=EditOptions(steps=25, sampler="dpmpp_2m", spacing="karras", content_scale=7.5, window=16, overlap=0),
        source="Stable Diffusion 2.x at 768 px: v2-inference-v.yaml; steps and scale as for 1.x.",
    ),
    "unclip": Composition(
        diffusion=Diffusion(working_size=768, prediction="v"),
        options=EditOptions(steps=20, sampler="ddim", spacing="trailing", content_scale=10.0, window=16, overlap=0),
        source="SD2.1-unCLIP: v-prediction at 768 px (v2-1-stable-unclip-h-inference.yaml); 20 steps, scale 10 "
        "(defaults of diffusers' unCLIP image pipeline).",
    ),
}
"""The defaults of each composition of public weights, with where each number comes from."""
