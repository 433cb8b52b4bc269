"""Every format that is known, one row each, told by keys and by shapes that do not depend on how wide a network is.

Key names come from the implementations that write the files: CompVis/stable-diffusion and Stability-AI/stablediffusion
("ldm"), diffusers, transformers, open_clip, AnimateDiff, IP-Adapter, ControlNet, T2I-Adapter, Depth-Anything-V2, MiDaS,
kohya's sd-scripts.
"""

from .additions import CONTROL, IP_ADAPTER, LORA, MOTION
from .networks import CLIP, DEPTH, SMALL, UNET, VAE

ROWS = (*LORA, *IP_ADAPTER, *MOTION, *CONTROL, *UNET, *VAE, *CLIP, *DEPTH, *SMALL)
"""All formats, in the order in which they are tried: the first row that matches counts."""
