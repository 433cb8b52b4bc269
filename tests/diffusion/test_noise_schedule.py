"""The schedule against diffusers' tables, and where the steps of a sampler lie."""

import json
import math
import warnings
from dataclasses import asdict

import pytest
import torch
from exact import as_users_run_it
from torch.testing import assert_close

from gen1_core.diffusion.schedule import (
    Schedule,
    alphas_cumprod,
    sigma_of,
    sigma_table,
    spaced_sigmas,
    spaced_timesteps,
    start,
    timestep_of,
)

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    from diffusers import (
        DDIMScheduler,
        DPMSolverMultistepScheduler,
        EulerDiscreteScheduler,
        HeunDiscreteScheduler,
        LCMScheduler,
    )
    from diffusers.schedulers.scheduling_ddim import rescale_zero_terminal_snr

# diffusers hands tensors to numpy in a way that new versions of numpy warn of.
pytestmark = pytest.mark.filterwarnings("ignore:.*__array__:DeprecationWarning")

SD = dict(beta_start=0.00085, beta_end=0.012)


@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
def test_alphas_equal_diffusers(betas: str) -> None:
    theirs = DDIMScheduler(beta_schedule=betas, **SD).alphas_cumprod
    assert_close(alphas_cumprod(Schedule(betas=betas)).float(), theirs, rtol=1e-5, atol=0)


@pytest.mark.parametrize("betas", ["scaled_linear", "linear"])
def test_zero_terminal_snr_equals_diffusers_up_to_the_last_value(betas: str) -> None:
    plain = DDIMScheduler(beta_schedule=betas, **SD).betas
    theirs = (1 - rescale_zero_terminal_snr(plain.double())).cumprod(dim=0)
    ours = alphas_cumprod(Schedule(betas=betas, zero_terminal_snr=True))
    assert_close(ours[:-1], theirs[:-1], rtol=1e-3, atol=1e-9)
    assert theirs[-1] == 0
    assert ours[-1].item() == 4.8973451890853435e-08
    assert 4518 < sigma_table(Schedule(betas=betas, zero_terminal_snr=True))[-1] < 4520
    assert (alphas_cumprod(Schedule(betas=betas)) - ours).norm() > 0.01 * ours.norm()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 15, 16, 20, 25, 30, 50, 64, 100, 333, 999])
@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace"])
def test_timesteps_equal_ddim(steps: int, spacing: str) -> None:
    scheduler = DDIMScheduler(beta_schedule="scaled_linear", timestep_spacing=spacing, steps_offset=1, **SD)
    scheduler.set_timesteps(steps)
    assert spaced_timesteps(Schedule(), steps, spacing) == scheduler.timesteps.tolist()


@pytest.mark.parametrize("steps", [1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 25, 50])
def test_timesteps_equal_lcm(steps: int) -> None:
    scheduler = LCMScheduler(**SD)
    scheduler.set_timesteps(steps)
    assert spaced_timesteps(Schedule(), steps, "lcm") == scheduler.timesteps.tolist()


@pytest.mark.parametrize("kind", [EulerDiscreteScheduler, HeunDiscreteScheduler, DPMSolverMultistepScheduler])
@pytest.mark.parametrize("spacing", ["trailing", "karras"])
def test_sigmas_equal_diffusers(kind: type, spacing: str) -> None:
    options = dict(use_karras_sigmas=True, timestep_spacing="linspace") if spacing == "karras" else {}
    options = options or dict(timestep_spacing="trailing")
    scheduler = kind(beta_schedule="scaled_linear", **SD, **options)
    scheduler.set_timesteps(20)
    theirs = scheduler.sigmas.unique().flip(0) if kind is HeunDiscreteScheduler else scheduler.sigmas
    assert_close(spaced_sigmas(Schedule(), 20, spacing).float(), theirs.float(), rtol=2e-4, atol=1e-5)


@pytest.mark.parametrize("spacing", ["trailing", "leading", "linspace", "karras", "lcm"])
@pytest.mark.parametrize("zero", [False, True])
def test_sigmas_fall_to_zero(spacing: str, zero: bool) -> None:
    schedule = Schedule(zero_terminal_snr=zero)
    for steps in (1, 2, 8, 50):
        sigmas = spaced_sigmas(schedule, steps, spacing)
        assert len(sigmas) == steps + 1
        assert (sigmas.diff() < 0).all()
        assert sigmas[-1] == 0
        assert sigmas.dtype == torch.float64


def test_every_timestep_is_a_step_where_asked() -> None:
    for spacing in ("trailing", "leading"):
        sigmas = spaced_sigmas(Schedule(), 1000, spacing)
        assert_close(sigmas[:-1], sigma_table(Schedule()).flip(0))


def test_strength_keeps_the_last_part() -> None:
    whole = spaced_sigmas(Schedule(), 20, "trailing")
    assert_close(spaced_sigmas(Schedule(), 20, "trailing", strength=0.35), whole[13:])
    assert len(spaced_sigmas(Schedule(), 20, "trailing", strength=0.001)) == 2


@pytest.mark.parametrize("zero", [False, True])
def test_timestep_and_sigma_are_inverse(zero: bool) -> None:
    schedule = Schedule(zero_terminal_snr=zero)
    table = sigma_table(schedule).tolist()
    for timestep in (0, 1, 17, 500, 998, 999):
        assert timestep_of(schedule, table[timestep]) == pytest.approx(timestep, abs=1e-9)
        assert sigma_of(schedule, timestep) == pytest.approx(table[timestep], rel=1e-12)
    halfway = math.sqrt(table[300] * table[301])
    assert timestep_of(schedule, halfway) == pytest.approx(300.5, abs=1e-9)
    assert sigma_of(schedule, 300.5) == pytest.approx(halfway, rel=1e-12)


def test_sigmas_beyond_the_table_stay_at_its_ends() -> None:
    assert timestep_of(Schedule(), 1e6) == 999
    assert timestep_of(Schedule(), 1e-6) == 0
    assert timestep_of(Schedule(), 0.0) == 0


def test_a_schedule_survives_json() -> None:
    schedule = Schedule(betas="linear", zero_terminal_snr=True)
    assert Schedule(**json.loads(json.dumps(asdict(schedule)))) == schedule


def test_start_at_full_strength_is_noise_as_diffusers_scales_it() -> None:
    noise = torch.randn(1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    scheduler = EulerDiscreteScheduler(beta_schedule="scaled_linear", timestep_spacing="leading", steps_offset=1, **SD)
    scheduler.set_timesteps(20)
    sigma = spaced_sigmas(Schedule(), 20, "leading")[0].item()
    assert_close(start(None, noise, sigma), noise * scheduler.init_noise_sigma.item(), rtol=1e-4, atol=1e-4)


def test_start_below_full_strength_is_the_source_under_noise() -> None:
    clean, noise = torch.randn(2, 1, 4, 2, 3, 3, generator=torch.Generator().manual_seed(0))
    assert_close(start(clean, noise, 0.5), clean + 0.5 * noise)


@pytest.mark.parametrize(
    ("config", "advice"),
    [
        (dict(betas="cosine"), "use one of"),
        (dict(beta_start=0.5, beta_end=0.1), "give them in that order"),
        (dict(timesteps=1), "use at least 2"),
    ],
)
def test_schedules_that_are_none(config: dict, advice: str) -> None:
    with as_users_run_it(), pytest.raises(ValueError, match=advice):
        Schedule(**config)


@pytest.mark.parametrize(
    ("asked", "advice"),
    [
        (dict(steps=0, spacing="trailing"), "use 1 to 1000"),
        (dict(steps=1001, spacing="trailing"), "use 1 to 1000"),
        (dict(steps=51, spacing="lcm"), "use fewer"),
        (dict(steps=20, spacing="simple"), "use one of"),
        (dict(steps=20, spacing="trailing", strength=0.0), "use more than 0"),
        (dict(steps=20, spacing="trailing", strength=1.5), "at most 1"),
    ],
)
def test_steps_that_are_none(asked: dict, advice: str) -> None:
    with as_users_run_it(), pytest.raises(ValueError, match=advice):
        spaced_sigmas(Schedule(), **asked)
