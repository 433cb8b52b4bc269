"""The training objective: section 3.1 of the paper with v-prediction, every clip at one noise level."""

import torch
from einops import reduce
from jaxtyping import Float, Int
from torch import Tensor

from ..tensors import Latents
from .condition import Condition
from .prediction import Network, Prediction, noised, require_trainable, target
from .schedule import Schedule, sigma_table


def diffusion_loss(
    network: Network,
    clean: Latents,
    condition: Condition,
    *,
    schedule: Schedule,
    prediction: Prediction,
    timestep: Int[Tensor, " b"],
    noise: Latents,
) -> Float[Tensor, " b"]:
    """Mean squared error of the prediction, one number per clip so that the caller may weigh or log them.

    The error is taken in float32 whatever the network computes in: its mean over a clip is beyond bfloat16.
    """
    require_trainable(schedule, prediction)
    # float64 has no place on MPS, so the table shrinks to float32 before it moves.
    sigma = sigma_table(schedule).to(torch.float32).to(clean.device)[timestep.to(clean.device)]
    x = noised(clean, noise, sigma)
    out = network(x.to(condition.structure.dtype), timestep.to(clean.device, torch.float32), condition)
    error = (out.float() - target(clean, noise, sigma, prediction).float()) ** 2
    return reduce(error, "b c f h w -> b", "mean")
