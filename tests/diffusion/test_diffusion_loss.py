"""The training objective."""

import pytest
import torch
from exact import condition_of
from torch.testing import assert_close

from gen1_core.diffusion.loss import diffusion_loss
from gen1_core.diffusion.prediction import target
from gen1_core.diffusion.schedule import Schedule, alphas_cumprod, sigma_table

CLEAN, NOISE = torch.randn(2, 3, 4, 2, 5, 6, generator=torch.Generator().manual_seed(0))
TIMESTEP = torch.tensor([0, 500, 999])


def loss(network, prediction: str = "v", schedule: Schedule | None = None) -> torch.Tensor:
    return diffusion_loss(
        network,
        CLEAN,
        condition_of(CLEAN),
        schedule=schedule or Schedule(),
        prediction=prediction,
        timestep=TIMESTEP,
        noise=NOISE,
    )


@pytest.mark.parametrize("prediction", ["eps", "v", "clean"])
def test_the_right_answer_costs_nothing_and_another_its_square(prediction: str) -> None:
    right = target(CLEAN, NOISE, sigma_table(Schedule()).float()[TIMESTEP], prediction)
    assert_close(loss(lambda *_: right, prediction), torch.zeros(3))
    offset = torch.tensor([1.0, 2.0, 3.0])
    assert_close(loss(lambda *_: right + offset[:, None, None, None, None], prediction), offset**2)


def test_the_network_sees_the_forward_process_and_its_timestep() -> None:
    seen = []

    def network(x, timestep, condition):
        seen.append((x, timestep))
        return x

    loss(network)
    alphas = alphas_cumprod(Schedule())[TIMESTEP][:, None, None, None, None]
    assert_close(seen[0][0], (alphas.sqrt() * CLEAN + (1 - alphas).sqrt() * NOISE).float())
    assert_close(seen[0][1], TIMESTEP.float())


def test_bfloat16_networks_are_judged_in_float32() -> None:
    losses = loss(lambda x, *_: x.bfloat16())
    assert losses.dtype == torch.float32
    assert_close(losses, loss(lambda x, *_: x), rtol=0.02, atol=0)


def test_it_is_finite_at_zero_terminal_snr_and_refuses_eps() -> None:
    schedule = Schedule(zero_terminal_snr=True)
    assert loss(lambda x, *_: x, "v", schedule).isfinite().all()
    with pytest.raises(ValueError, match="use prediction='v' or 'clean'"):
        loss(lambda x, *_: x, "eps", schedule)
