"""The paper's two metrics on embeddings with known angles."""

import math

import pytest
import torch
from parts import encoder_of, tiny_gen1

from gen1_core.metrics import clip_scores, depth_error, frame_consistency, prompt_consistency


def test_frame_consistency_is_the_mean_cosine_of_neighbours():
    angles = torch.tensor([0.0, 0.1, 0.3])
    embeddings = torch.stack([angles.cos(), angles.sin()], dim=1) * torch.tensor([[1.0], [5.0], [0.2]])
    expected = (math.cos(0.1) + math.cos(0.2)) / 2
    assert frame_consistency(embeddings) == pytest.approx(expected, abs=1e-6)


def test_prompt_consistency_is_the_mean_cosine_with_the_text():
    embeddings = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    assert prompt_consistency(embeddings, torch.tensor([[1.0, 0.0]])) == pytest.approx(0.5)


def test_one_frame_has_no_consistency():
    with pytest.raises(ValueError, match="give two or more"):
        frame_consistency(torch.ones(1, 4))


def test_a_still_clip_is_fully_consistent_and_noise_is_not():
    encoder = encoder_of(tiny_gen1())
    still = torch.rand(1, 3, 32, 32).expand(4, -1, -1, -1)
    moving = torch.rand(4, 3, 32, 32)
    assert clip_scores(encoder, still, "gold")["frame_consistency"] == pytest.approx(1, abs=1e-5)
    assert clip_scores(encoder, moving, "gold")["frame_consistency"] < 1 - 1e-4


def test_depth_error_is_a_mean_difference():
    depth = torch.rand(1, 1, 2, 4, 4)
    assert depth_error(depth, depth) == 0
    assert depth_error(depth, depth + 0.25) == pytest.approx(0.25, abs=1e-6)
