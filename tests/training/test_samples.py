"""Samples of the U-Net while it trains are guided as the edits of the finished model are."""

from dataclasses import replace

import pytest
import torch
from parts import tiny_gen1
from torch.testing import assert_close

from gen1_core.diffusion.condition import Condition
from gen1_core.gen1 import EditOptions
from gen1_core.structure.blur import encode_depth, flat_structure
from gen1_core.training.samples import sample

ONE_STEP = EditOptions(steps=1, sampler="ddim", content_scale=1.0)
"""The result is the clean estimate itself, so guided results are sums of others."""


@pytest.fixture(scope="module")
def gen1():
    return tiny_gen1()


@pytest.fixture(scope="module")
def told(gen1) -> Condition:
    depth = torch.rand(2, 1, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    structure = encode_depth(gen1.autoencoder, depth, 0, 8).detach()
    content = torch.randn(2, 1, 1, gen1.unet.config.cross_attention_dim, generator=torch.Generator().manual_seed(2))
    return Condition(structure=structure, content=content, null=torch.zeros_like(content))


def test_samples_are_guided_by_content_and_structure(gen1, told):
    flat = flat_structure(gen1.autoencoder, like=told.structure).detach()

    def made(condition: Condition, **more):
        options = replace(ONE_STEP, **{name: value for name, value in more.items() if name != "flat"})
        return sample(gen1.unet, condition, gen1.diffusion, options, seed=3, flat=more.get("flat"))

    content, null, free = made(told), made(told.dropped()), made(replace(told.dropped(), structure=flat))
    guided = made(told, content_scale=2.5, structure_scale=3.0, flat=flat)
    assert_close(guided, free + 3.0 * (null - free) + 2.5 * (content - null), rtol=1e-4, atol=1e-4)
    assert (guided - made(told, content_scale=2.5)).abs().max() > 0.01
    # Without what shows no structure there is nothing to move away from.
    assert_close(made(told, content_scale=2.5, structure_scale=3.0), made(told, content_scale=2.5), rtol=0, atol=0)
