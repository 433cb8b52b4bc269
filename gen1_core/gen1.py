"""What a model is: its parts, how it was trained, and the sliders of an edit."""

import math
from dataclasses import dataclass

import torch

from .content.describe import Describer
from .diffusion.prediction import Prediction
from .diffusion.samplers import SAMPLERS
from .diffusion.schedule import Schedule, Spacing
from .models.autoencoder import FrameCodec
from .models.control import ControlNet, T2IAdapter
from .models.unet import SpaceTimeUNet, UNetConfig
from .structure.blur import LEVEL_CHANNELS
from .structure.estimator import DepthEstimator, Structure
from .tensors import Depth

DEPTH_CHANNELS = 1
"""What SD2-depth takes beside the noisy latents: plain depth."""


def beside_channels(config: UNetConfig) -> int:
    """How many channels a U-Net takes beside the noisy latents: the paper's, ``DEPTH_CHANNELS``, or none."""
    return config.in_channels - config.out_channels


def reads_encoded_depth(config: UNetConfig) -> bool:
    """Whether they are the paper's: depth encoded as the frames are, and the channels of its level."""
    return beside_channels(config) == config.out_channels + LEVEL_CHANNELS


@dataclass(frozen=True, kw_only=True)
class Diffusion:
    """How the U-Net was trained: it travels with its weights. ``working_size`` is the short side in pixels."""

    working_size: int = 256
    prediction: Prediction = "v"
    schedule: Schedule = Schedule()

    def __post_init__(self) -> None:
        if self.working_size < 8:
            raise ValueError(
                f"working_size={self.working_size} is smaller than one latent pixel; give at least 64, best the size "
                "that the model was trained at."
            )


@dataclass(frozen=True, kw_only=True)
class EditOptions:
    """The sliders of one edit.

    ``blur_level`` is the paper's t_s (0 keeps every detail of the depth, 7 almost none); ``content_scale`` and
    ``temporal_scale`` are omega and omega_t of Eq. 8, and ``structure_scale`` is to the structure what omega is to the
    content (1 is off; ``guided``). ``strength`` below 1 starts from the source's own latents; ``structure_start`` and
    ``structure_end`` are fractions of the sampling steps between which the structure is shown. ``window`` frames are
    denoised together (0: as many as the model was trained on), neighbours share ``overlap``. ``passes`` is the number
    of guidance passes per network call: 2 is fast on a GPU, 1 saves memory.
    """

    blur_level: int = 0
    structure_strength: float = 1.0
    structure_start: float = 0.0
    structure_end: float = 1.0
    content_scale: float = 7.5
    temporal_scale: float = 1.0
    structure_scale: float = 1.0
    steps: int = 50
    sampler: str = "ddim"
    spacing: Spacing = "trailing"
    strength: float = 1.0
    seed: int = 0
    window: int = 0
    overlap: int = 2
    passes: int = 2
    chunk: int = 8

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ValueError(
                f"sampler={self.sampler!r} is not one of the samplers; choose from {', '.join(sorted(SAMPLERS))}."
            )
        if not 0 < self.strength <= 1:
            raise ValueError(
                f"strength={self.strength} is outside 0..1, the share of the noise to start from; "
                "give 1 for a full edit, or a value just above 0 to stay near the source."
            )
        for name in ("steps", "passes", "chunk"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name}={getattr(self, name)} would do no work; give a whole number of at least 1.")
        for name in ("content_scale", "temporal_scale", "structure_scale"):
            if not 0 <= getattr(self, name) < math.inf:
                raise ValueError(
                    f"{name}={getattr(self, name)} is no weight to push with; give a number of 0 or more (1 is off)."
                )
        # The structure sliders are checked by the class that holds them, here already, before any work.
        self.structure(torch.zeros(1, 1, 1, 1, 1))

    def structure(self, depth: Depth) -> Structure:
        """These sliders' structure of a clip."""
        return Structure(
            depth=depth,
            blur_level=self.blur_level,
            strength=self.structure_strength,
            start=self.structure_start,
            end=self.structure_end,
        )


@dataclass(frozen=True, kw_only=True)
class Gen1:
    """The parts of one model, each replaceable."""

    unet: SpaceTimeUNet
    autoencoder: FrameCodec
    depth: DepthEstimator
    describer: Describer
    diffusion: Diffusion
    defaults: EditOptions
    controls: tuple[ControlNet | T2IAdapter, ...] = ()

    @property
    def device(self) -> torch.device:
        """Where the U-Net is; input is moved there."""
        return next(self.unet.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        """What the U-Net and the autoencoder compute in; sampling itself stays in float32."""
        return compute_dtype(self.unet)

    @property
    def reads_structure(self) -> bool:
        """Whether anything in it looks at the depth."""
        return bool(self.controls) or beside_channels(self.unet.config) > 0


def compute_dtype(unet: SpaceTimeUNet) -> torch.dtype:
    """What the network computes in: its norms are in it, also where other weights are stored smaller."""
    return next(unet.conv_norm_out.parameters()).dtype
