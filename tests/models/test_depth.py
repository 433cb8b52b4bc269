import pytest
import torch
from torch.testing import assert_close

from gen1_core.models.depth import DepthNet, DepthNetConfig

SMALL = DepthNetConfig(channels=(8, 16, 24), norm_num_groups=4, train_size=32)


def small_net(seed: int = 0) -> DepthNet:
    torch.manual_seed(seed)
    return DepthNet(SMALL).eval()


def test_default_size_is_about_1_3_million_parameters() -> None:
    with torch.device("meta"):
        net = DepthNet(DepthNetConfig())
    assert 1_200_000 < sum(parameter.numel() for parameter in net.parameters()) < 1_400_000


@pytest.mark.parametrize("size", [(32, 32), (16, 40), (8, 8)])
def test_depth_has_the_size_of_the_images(size: tuple[int, int]) -> None:
    assert small_net()(torch.rand(2, 3, *size)).shape == (2, 1, *size)


def test_each_image_is_estimated_by_itself() -> None:
    net, images = small_net(), torch.rand(3, 3, 32, 32)
    with torch.no_grad():
        assert_close(net(images)[1:2], net(images[1:2]), rtol=1e-5, atol=1e-6)


def test_every_parameter_is_used() -> None:
    net = small_net()
    net(torch.rand(2, 3, 32, 32)).square().mean().backward()
    unused = [name for name, parameter in net.named_parameters() if not parameter.grad.abs().sum() > 0]
    assert unused == []


def test_a_corner_changes_the_whole_picture() -> None:
    """The global mean path: the far corner is outside every convolution's reach."""
    net, images = small_net(), torch.rand(1, 3, 128, 128)
    other = images.clone()
    other[..., :16, :16] = 0
    with torch.no_grad():
        change = (net(other) - net(images))[..., -1, -1].abs()
    assert change > 0


def test_learns_a_simple_depth() -> None:
    """Brightness as depth: within a few steps the error falls well below that of a constant."""
    net = small_net().train()
    optimiser = torch.optim.AdamW(net.parameters(), 6e-3)
    images = torch.rand(8, 1, 4, 4).repeat_interleave(4, 2).repeat_interleave(4, 3).expand(-1, 3, -1, -1)
    depth = images.mean(1, keepdim=True)
    for _ in range(20):
        loss = (net(images) - depth).abs().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
    assert loss < 0.7 * (depth - depth.mean()).abs().mean()


def test_uneven_size_is_refused() -> None:
    with pytest.raises(ValueError, match="resize it to multiples of 8"):
        small_net()(torch.rand(1, 3, 30, 32))


@pytest.mark.parametrize(
    ("fields", "advice"),
    [
        ({"channels": (8,)}, "at least two widths"),
        ({"channels": (8, 12), "norm_num_groups": 8}, "a multiple of norm_num_groups"),
        ({"train_size": 100}, "choose a multiple of 32"),
    ],
)
def test_impossible_sizes_are_refused(fields: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        DepthNetConfig(**fields)
