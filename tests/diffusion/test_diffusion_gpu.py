"""The whole spine on an accelerator: the CPU's answer, and no step that waits for the device."""

import pytest
import torch
from exact import condition_of, last
from torch import Tensor

from gen1_core.diffusion.condition import Condition
from gen1_core.diffusion.guidance import guided, masked
from gen1_core.diffusion.prediction import as_denoiser
from gen1_core.diffusion.samplers import SAMPLERS
from gen1_core.diffusion.schedule import Schedule, spaced_sigmas
from gen1_core.diffusion.windows import windowed

pytestmark = pytest.mark.gpu
SIGMAS = spaced_sigmas(Schedule(zero_terminal_snr=True), 8, "trailing").tolist()
SHAPE = (1, 4, 11, 8, 8)


def network(x: Tensor, timestep: Tensor, condition: Condition) -> Tensor:
    said = condition.structure.mean(dim=1, keepdim=True) + condition.content.mean()
    around = 0 if condition.image else 0.4 * x.roll(1, 2)
    return torch.sin(x + around + said + 0.002 * timestep[:, None, None, None, None])


def run(name: str, device: str, *, watch: bool) -> Tensor:
    def draw(seed: int) -> Tensor:
        return torch.randn(SHAPE, generator=torch.Generator().manual_seed(seed)).to(device)

    condition = condition_of(draw(0))
    condition = Condition(
        structure=condition.structure.to(device),
        content=condition.content.to(device),
        null=condition.null.to(device),
    )
    denoise = windowed(as_denoiser(network, Schedule(zero_terminal_snr=True), "v", batch=2), length=4, overlap=2)
    denoise = guided(denoise, content_scale=3.0, temporal_scale=1.5)
    denoise = masked(denoise, draw(1), (draw(2)[:, :1] > 0).float())
    x, noise = draw(3) * SIGMAS[0], [draw(10 + i) for i in range(len(SIGMAS))]
    torch.cuda.set_sync_debug_mode("error" if watch else "default")
    try:
        return last(SAMPLERS[name](denoise, x, SIGMAS, condition, noise=lambda i: noise[i]))
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("name", list(SAMPLERS))
def test_it_equals_the_cpu_and_never_waits(name: str) -> None:
    on_gpu = run(name, "cuda", watch=True).cpu()
    on_cpu = run(name, "cpu", watch=False)
    assert (on_gpu - on_cpu).norm() <= 1e-4 * on_cpu.norm()
