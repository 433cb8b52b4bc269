"""Part of the adapter: how a model was trained, in the words of the core's samplers, and how a sampler guides ours."""

from typing import Any

import comfy.latent_formats
import comfy.model_sampling
import comfy.samplers
import torch
from einops import rearrange
from torch import Tensor
from torch.nn import functional as F

from ..gen1_core.diffusion.prediction import Prediction
from ..gen1_core.diffusion.schedule import Schedule, sigma_table
from ..gen1_core.models.autoencoder import FrameCodec, encode_clip
from .host_frames import SD_SCALE, denormalised, latent_channels, latent_scale, normalised

BETAS = {"scaled_linear": "linear", "linear": "sqrt_linear"}
"""What the core calls the schedules of Stable Diffusion and of AnimateDiff."""


class LatentFormat(comfy.latent_formats.SD15):
    """LATENT as the core's VAE gives it <-> latents as the U-Net wants them.

    The core would show the first of a batch as the sampler's preview, a clip here: it is given no colours, and the
    model shows several frames by ``colours``, factors of the channels and a constant.
    """

    def __init__(self, codec: Any):
        scale, _ = latent_scale(codec)
        super().__init__(scale)
        self.codec, self.latent_channels = codec, latent_channels(codec)
        own = scale != SD_SCALE
        self.colours = preview_colours(codec) if own else (self.latent_rgb_factors, [0.0] * 3)
        self.latent_rgb_factors = self.latent_rgb_factors_bias = self.taesd_decoder_name = None

    def process_in(self, latent: Tensor) -> Tensor:
        """LATENT to the network's latents."""
        return normalised(latent, self.codec)

    def process_out(self, latent: Tensor) -> Tensor:
        """The network's latents to LATENT."""
        return denormalised(latent, self.codec)


class Discrete(comfy.model_sampling.ModelSamplingDiscrete):
    """The core's discrete schedule, with timesteps between those of the table as ``gen1_core`` has them."""

    def timestep(self, sigma: Tensor) -> Tensor:
        """Linear in log sigma, clamped to the ends of the table."""
        logs, log = self.log_sigmas.to(sigma.device), sigma.log()
        low = (torch.searchsorted(logs, log.contiguous(), right=True) - 1).clamp(0, len(logs) - 2)
        part = (log - logs[low]) / (logs[low + 1] - logs[low])
        return low + part.clamp(0, 1)


def sampling_of(config: Any, schedule: Schedule, prediction: Prediction) -> Any:
    """How the network was trained, as the core's ``model_sampling``: the same table of sigmas as ours."""
    kinds = {
        "eps": comfy.model_sampling.EPS,
        "v": comfy.model_sampling.V_PREDICTION,
        "clean": comfy.model_sampling.X0,
    }
    sampling = type("ModelSampling", (Discrete, kinds[prediction]), {})(config)
    sampling.set_sigmas(sigma_table(schedule))
    return sampling


def settings_of(schedule: Schedule) -> dict[str, Any]:
    """The schedule as ModelSampling nodes read it."""
    return {
        "beta_schedule": BETAS[schedule.betas],
        "linear_start": schedule.beta_start,
        "linear_end": schedule.beta_end,
        "timesteps": schedule.timesteps,
        "zsnr": schedule.zero_terminal_snr,
    }


def preview_colours(codec: FrameCodec) -> tuple[list[list[float]], list[float]]:
    """The colours (-1..1) that latents mean, as factors of the channels and a constant, for the sampler's preview.

    By least squares on a few soft pictures: 0.02 off on average on the demo clip with the embedded model.
    """
    spots = torch.rand(4, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    pictures = F.interpolate(spots, (64, 64), mode="bilinear")
    device = next(codec.parameters()).device
    latents = rearrange(encode_clip(codec, pictures.to(device), chunk=4).float().cpu(), "n c h w -> (n h w) c")
    colours = rearrange(F.interpolate(2 * pictures - 1, (8, 8), mode="area"), "n c h w -> (n h w) c")
    found = torch.linalg.lstsq(torch.cat([latents, torch.ones(len(latents), 1)], dim=1), colours).solution
    return found[:-1].tolist(), found[-1].tolist()


class Gen1Guider(comfy.samplers.CFGGuider):
    """Eq. 8 of the paper: away from frames denoised alone towards the clip, and towards the content and the structure.

    As ``gen1_core.diffusion.guidance.guided``.
    """

    def __init__(self, model: Any, *, content_scale: float, temporal_scale: float, structure_scale: float):
        super().__init__(model)
        self.set_cfg(content_scale)
        self.temporal_scale = temporal_scale
        self.structure_scale = structure_scale

    def set_conds(self, positive: Any, negative: Any) -> None:
        """The image pass is the negative with temporal layers off; the free pass is the negative without structure."""
        image, free = (
            [[tokens, {**said, how: True}] for tokens, said in negative] for how in ("gen1_image", "gen1_free")
        )
        self.inner_set_conds({"positive": positive, "negative": negative, "image": image, "free": free})

    def predict_noise(self, x: Tensor, timestep: Tensor, model_options: Any = None, seed: Any = None) -> Tensor:
        """The guided clean latents. A pass without weight is not run, so scale 1 is the core's own guidance."""
        options = model_options or {}
        temporal = 1.0 if len(x) == 1 else self.temporal_scale
        if temporal == 1 and self.structure_scale == 1:
            return super().predict_noise(x, timestep, options, seed)
        ours = {"negative": (temporal - 1) + (self.structure_scale - 1)}
        ours |= {"image": 1 - temporal, "free": 1 - self.structure_scale}
        if any(name.startswith("sampler_") for name in options):
            # Other nodes (RescaleCFG, perturbed attention) have a say in the guidance by content, and may change the
            # passes themselves: all of it as they want it, with ours on top, of passes that they left alone.
            return super().predict_noise(x, timestep, options, seed) + self.weighted(ours, x, timestep, options)
        content = {"positive": self.cfg, "negative": (temporal - 1) + (self.structure_scale - self.cfg)}
        return self.weighted({**ours, **content}, x, timestep, options)

    def weighted(self, weights: dict[str, float], x: Tensor, timestep: Tensor, options: Any) -> Tensor:
        """The sum of these passes; one without weight is not run."""
        weights = {name: weight for name, weight in weights.items() if weight != 0}
        clean = self.passes(list(weights), x, timestep, options)
        return torch.stack([weight * part for weight, part in zip(weights.values(), clean, strict=True)]).sum(dim=0)

    def passes(self, names: list[str], x: Tensor, timestep: Tensor, options: Any) -> list[Tensor]:
        """Clean latents of each."""
        # The core's ControlNets are structure too, and some come to a pass only after set_conds, from the positive.
        free = [{key: each for key, each in cond.items() if key != "control"} for cond in self.conds["free"]]
        conds = [{**self.conds, "free": free}.get(name) for name in names]
        return comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)
