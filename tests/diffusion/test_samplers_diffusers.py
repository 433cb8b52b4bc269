"""Whole loops against diffusers' schedulers with the same network."""

import math
import warnings
from collections.abc import Callable

import pytest
import torch
from exact import condition_of, last
from torch import Tensor

from gen1_core.diffusion.prediction import as_denoiser
from gen1_core.diffusion.samplers import SAMPLERS, ddim
from gen1_core.diffusion.schedule import Schedule, spaced_sigmas

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerAncestralDiscreteScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
    )

# diffusers hands tensors to numpy in a way that new versions of numpy warn of.
pytestmark = pytest.mark.filterwarnings("ignore:.*__array__:DeprecationWarning")

SD = dict(beta_schedule="scaled_linear", beta_start=0.00085, beta_end=0.012)
NAMES = {"v": "v_prediction", "eps": "epsilon", "clean": "sample"}
SHAPE = (1, 4, 2, 5, 6)
LINSPACE = dict(timestep_spacing="linspace", use_karras_sigmas=True)


def network(x: Tensor, timestep: Tensor) -> Tensor:
    """Not trained, but it depends on everything: neighbours, noise and time."""
    mixed = x + 0.5 * x.roll(1, -1) - 0.3 * x.roll(1, 2)
    return torch.sin(1.3 * mixed + 0.004 * timestep) + 0.2 * x


def noise_of(seed: int) -> Tensor:
    return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed))


def theirs(scheduler, steps: int, **options) -> Tensor:
    scheduler.set_timesteps(steps)
    x = noise_of(1) * getattr(scheduler, "init_noise_sigma", 1.0)
    for timestep in scheduler.timesteps:
        out = network(scheduler.scale_model_input(x, timestep), timestep)
        x = scheduler.step(out, timestep, x, **options).prev_sample
    return x


def ours(sampler: Callable, sigmas: list[float], prediction: str, *, first: Tensor, noise=noise_of) -> Tensor:
    denoise = as_denoiser(
        lambda x, timestep, condition: network(x, timestep[:, None, None, None, None]),
        Schedule(),
        prediction,
        batch=1,
    )
    return last(sampler(denoise, first, sigmas, condition_of(first), noise=noise))


def in_sequence() -> Callable[[int], Tensor]:
    """Each step the next noise of one generator, as diffusers draws it."""
    generator = torch.Generator().manual_seed(7)
    return lambda i: torch.randn(SHAPE, generator=generator)


def assert_same(mine: Tensor, reference: Tensor) -> None:
    assert (mine - reference).norm() <= 1e-4 * reference.norm()


def scaled(sigmas: list[float]) -> Tensor:
    return noise_of(1) * math.sqrt(1 + sigmas[0] ** 2)


@pytest.mark.parametrize("prediction", ["v", "eps", "clean"])
@pytest.mark.parametrize("spacing", ["trailing", "leading"])
def test_ddim(prediction: str, spacing: str) -> None:
    scheduler = DDIMScheduler(
        **SD, clip_sample=False, timestep_spacing=spacing, steps_offset=1, prediction_type=NAMES[prediction]
    )
    sigmas = spaced_sigmas(Schedule(), 20, spacing).tolist()
    assert_same(ours(ddim, sigmas, prediction, first=scaled(sigmas)), theirs(scheduler, 20))


@pytest.mark.parametrize("steps", [5, 20])
def test_dpmpp_2m(steps: int) -> None:
    scheduler = DPMSolverMultistepScheduler(
        **SD, timestep_spacing="trailing", prediction_type="v_prediction", final_sigmas_type="zero"
    )
    sigmas = spaced_sigmas(Schedule(), steps, "trailing").tolist()
    mine = ours(SAMPLERS["dpmpp_2m"], sigmas, "v", first=scaled(sigmas))
    assert_same(mine, theirs(scheduler, steps))
    first_order = ours(ddim, sigmas, "v", first=scaled(sigmas))
    assert (mine - first_order).norm() > 0.01 * mine.norm()


@pytest.mark.parametrize("spacing", ["trailing", "karras"])
@pytest.mark.parametrize(("name", "kind"), [("euler", EulerDiscreteScheduler), ("heun", HeunDiscreteScheduler)])
def test_euler_and_heun(name: str, kind: type, spacing: str) -> None:
    options = LINSPACE if spacing == "karras" else dict(timestep_spacing="trailing")
    scheduler = kind(**SD, **options, prediction_type="v_prediction")
    sigmas = spaced_sigmas(Schedule(), 12, spacing).tolist()
    reference = theirs(scheduler, 12)
    # Here diffusers begins with noise times sigma, without the 1 below the root.
    assert_same(ours(SAMPLERS[name], sigmas, "v", first=noise_of(1) * sigmas[0]), reference)


def test_ddim_with_eta() -> None:
    scheduler = DDIMScheduler(**SD, clip_sample=False, timestep_spacing="trailing", prediction_type="v_prediction")
    sigmas = spaced_sigmas(Schedule(), 10, "trailing").tolist()
    reference = theirs(scheduler, 10, eta=0.7, generator=torch.Generator().manual_seed(7))
    mine = ours(
        lambda *args, noise: ddim(*args, noise=noise, eta=0.7),
        sigmas,
        "v",
        first=scaled(sigmas),
        noise=in_sequence(),
    )
    assert_same(mine, reference)


def test_euler_ancestral() -> None:
    scheduler = EulerAncestralDiscreteScheduler(**SD, timestep_spacing="trailing", prediction_type="v_prediction")
    sigmas = spaced_sigmas(Schedule(), 10, "trailing").tolist()
    reference = theirs(scheduler, 10, generator=torch.Generator().manual_seed(7))
    first = noise_of(1) * sigmas[0]
    assert_same(ours(SAMPLERS["euler_ancestral"], sigmas, "v", first=first, noise=in_sequence()), reference)


def test_dpmpp_2m_sde() -> None:
    scheduler = DPMSolverMultistepScheduler(
        **SD,
        timestep_spacing="trailing",
        prediction_type="v_prediction",
        algorithm_type="sde-dpmsolver++",
        final_sigmas_type="zero",
    )
    sigmas = spaced_sigmas(Schedule(), 16, "trailing").tolist()
    reference = theirs(scheduler, 16, generator=torch.Generator().manual_seed(7))
    mine = ours(SAMPLERS["dpmpp_2m_sde"], sigmas, "v", first=scaled(sigmas), noise=in_sequence())
    assert_same(mine, reference)


@pytest.mark.parametrize("steps", [4, 8])
def test_lcm(steps: int) -> None:
    scheduler = LCMScheduler(**SD, prediction_type="v_prediction")
    sigmas = spaced_sigmas(Schedule(), steps, "lcm").tolist()
    reference = theirs(scheduler, steps, generator=torch.Generator().manual_seed(7))
    assert_same(ours(SAMPLERS["lcm"], sigmas, "v", first=scaled(sigmas), noise=in_sequence()), reference)
