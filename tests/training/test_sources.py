"""Where batches come from: prepared shards beside the bank, one size a batch, a pure function of seed and step."""

from dataclasses import replace
from pathlib import Path

import pytest
import small_run
import torch
from shard_folder import write_folder

from gen1_core.training.draws import WHOLE, Share
from gen1_core.training.shards import open_shards
from gen1_core.training.sources import ShardSource, draw_source, nearest_level
from gen1_core.training.task import generator_at
from gen1_core.training.unet import UNetPlan, draw_batch, read_batch, unet_task

CPU = torch.device("cpu")


@pytest.fixture
def source(tmp_path: Path) -> ShardSource:
    return ShardSource(open_shards(write_folder(tmp_path / "data")), seed=3)


def plan(*shares: float, images: float = 0.0) -> UNetPlan:
    small = small_run.small_plan(8)
    stages = tuple(replace(stage, image_fraction=images, structure="levels") for stage in small.stages)
    return replace(small, stages=stages, shares=shares, content_dropout=0.0)


def test_clips_of_shards_keep_look_frames_and_content_together(source: ShardSource) -> None:
    sizes = set()
    for step in range(6):
        batch = draw_batch([source], plan(1.0), step, generator_at(0, "u", step), frames=4)
        clean, condition = read_batch(batch, WHOLE, CPU)
        sizes.add(clean.shape[-1])
        first = clean[:, 0, 0, 0, 0]
        assert clean.shape[:3] == (4, 4, 4) and set((first % 10).tolist()) <= set(range(6))
        torch.testing.assert_close(clean[:, 0, :, 0, 0], first[:, None] + torch.arange(4.0))
        sample, look = first // 100, first % 100 // 10
        depth = condition.structure[:, 0, :, 0, 0]
        blurred = (depth % 100 // 10).round()  # the second depth is that of t_s = 3, by its number
        expected = 100 * sample[:, None] + 10 * blurred + first[:, None] % 10 + torch.arange(4.0) + 0.5
        torch.testing.assert_close(depth, expected)
        shown = condition.content[:, 0, 0, 0]
        torch.testing.assert_close(shown // 10, 10 * sample + look)
        again, _ = read_batch(draw_batch([source], plan(1.0), step, generator_at(0, "u", step), frames=4), WHOLE, CPU)
        assert torch.equal(again, clean)
        half, _ = read_batch(batch, Share(index=1, count=2), CPU)
        assert torch.equal(half, clean[1::2])
    assert sizes == {4, 6}, "both sizes come, each batch holds one"


def test_pictures_are_for_image_steps_alone_and_names_tell_the_shard(source: ShardSource) -> None:
    seen = set()
    for step in range(12):
        batch = draw_batch([source], plan(1.0, images=1.0), step, generator_at(0, "u", step), frames=4)
        clean, condition = read_batch(batch, WHOLE, CPU)
        assert clean.shape[2] == 1 and condition.image
        seen |= set(batch.picks.clip.tolist())
        assert batch.source.names(batch.picks)[0].startswith("part-000000.tar:0000000")
    assert seen == set(range(10)) and source.longest() == 9


def test_levels_are_found_among_those_that_were_encoded() -> None:
    everything = tuple(range(8))
    assert [nearest_level(everything, level) for level in range(8)] == list(range(8))
    assert [nearest_level((0, 5), level) for level in range(8)] == [0, 1, 1, 1, 1, 1, 1, 1]
    assert nearest_level((0,), 4) == 0


def test_sources_are_mixed_by_their_shares(source: ShardSource) -> None:
    bank = small_run.random_latents()
    drawn = [draw_source([bank, source], (3.0, 1.0), generator_at(0, "mix", step)) is bank for step in range(2000)]
    assert 0.72 < sum(drawn) / len(drawn) < 0.78
    assert draw_source([bank, source], (0.0, 1.0), generator_at(0, "mix", 0)) is source
    for shares, advice in (((1.0,), "give one share for each source"), ((0.5, 0.5), "")):
        arguments = (small_run.CONFIG, plan(*shares), small_run.DIFFUSION, bank, source)
        if advice:
            with pytest.raises(ValueError, match=advice):
                unet_task(*arguments, evaluate=lambda m, s: {}, seed=0, device=CPU)
        else:
            task = unet_task(*arguments, evaluate=lambda m, s: {}, seed=0, device=CPU)
            assert all(torch.isfinite(task.losses(step, generator_at(0, "unet", step))["loss"]) for step in range(4))
            named = {task.names(step, generator_at(0, "unet", step))[0][:4] for step in range(8)}
            assert named == {"clip", "part"}
    with pytest.raises(ValueError, match="give each source a share above 0"):
        plan(0.0, 0.0)
