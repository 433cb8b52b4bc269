"""The prior's network: every input reaches the output."""

import pytest
import torch

from gen1_core.models.prior import Prior, PriorConfig, timestep_features


@pytest.fixture(scope="module")
def prior() -> Prior:
    torch.manual_seed(0)
    network = Prior(PriorConfig(dim=12, width=32, depth=2, heads=4)).eval()
    for parameter in network.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape)
    return network


INPUTS = dict(
    noisy=torch.randn(3, 12, generator=torch.Generator().manual_seed(1)),
    timestep=torch.tensor([10.0, 500.0, 990.0]),
    text=torch.randn(3, 12, generator=torch.Generator().manual_seed(2)),
)


@pytest.mark.parametrize("name", INPUTS)
@torch.no_grad()
def test_every_input_counts(prior, name):
    before = prior(**INPUTS)
    after = prior(**INPUTS | {name: INPUTS[name].flip(0)})
    assert before.shape == (3, 12)
    assert ((after - before).norm() / before.norm()).item() > 0.01


@torch.no_grad()
def test_samples_of_a_batch_are_independent(prior):
    alone = prior(*(value[:1] for value in INPUTS.values()))
    torch.testing.assert_close(prior(**INPUTS)[:1], alone)


def test_timestep_features_tell_timesteps_apart():
    features = timestep_features(torch.arange(0, 1000, 1.0), 32)
    distances = torch.cdist(features, features) + torch.eye(1000) * 9
    assert distances.min() > 0.05


def test_config_refuses():
    with pytest.raises(ValueError, match="make width a multiple of heads"):
        PriorConfig(width=20, heads=3)
    with pytest.raises(ValueError, match="make width even"):
        PriorConfig(width=15, heads=3)
