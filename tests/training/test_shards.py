"""Reading prepared shards: any sample by number, batches that follow from seed and step, damage reported."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gen1_core.training.prepare.files import ShardWriter, finish_index, whole, write_json
from gen1_core.training.shards import FORMAT, Shards, epoch_batches, open_shards, shard_path

SIZES = [(3, 32, 48)] * 5 + [(3, 32, 32)] * 3 + [(1, 32, 48)] * 2


def sample(number: int, frames: int, height: int, width: int) -> tuple[dict, dict]:
    """Tensors that tell their number, and what is told of them."""
    h, w = height // 8, width // 8
    tensors = {
        "rgb": torch.full((1, 4, frames, h, w), float(number)).half(),
        "depth": torch.full((2, 4, frames, h, w), number + 0.5).half(),
        "images": torch.full((1, frames, 16), float(number)).half(),
        "texts": torch.zeros(1, 0, 16).half(),
    }
    about = {"kind": "video", "source": f"clip{number}", "first": 0, "stride": 2, "frames": frames, "height": height}
    about |= {"width": width, "levels": (0, 3), "captions": [[]], "looks": [""], "family": ""}
    return tensors, about


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Ten samples of three buckets in three shards."""
    write_json(tmp_path / "prepare.json", {"format": FORMAT, "config": {}, "weights": {"autoencoder": "one"}})
    save_file({"32x48": torch.ones(4, 4, 6), "32x32": torch.zeros(4, 4, 4)}, tmp_path / "flat.safetensors")
    for shard in range(3):
        path = shard_path(tmp_path, shard)
        with whole(path) as stream:
            writer = ShardWriter(stream)
            for number in range(shard * 4, min(shard * 4 + 4, len(SIZES))):
                writer.add(f"{number:08d}", *sample(number, *SIZES[number]))
            writer.close()
        finish_index(path, writer.samples, [], identity="x")
    return tmp_path


def damage(shards: Shards, number: int) -> None:
    """One bit of a sample's tensors, as a bad disk would."""
    entry = shards.entries[number]
    content = bytearray(entry.shard.read_bytes())
    content[entry.safetensors[0] + entry.safetensors[1] - 1] ^= 1
    entry.shard.write_bytes(content)


def test_any_sample_by_its_number(folder: Path) -> None:
    shards = open_shards(folder)
    assert len(shards) == 10
    for number in (9, 0, 6, 3):
        found, (tensors, about) = shards.read(number), sample(number, *SIZES[number])
        assert all(torch.equal(getattr(found, name), tensors[name]) for name in tensors)
        assert (found.source, found.key, found.levels) == (about["source"], f"{number:08d}", (0, 3))
        assert (found.height, found.width) == SIZES[number][1:]
    assert torch.equal(shards.flat(32, 48), torch.ones(4, 4, 6))
    with pytest.raises(ValueError, match="give 0 to 9"):
        shards.read(10)


def test_a_damaged_sample_is_named_and_the_next_of_its_size_comes(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shards = open_shards(folder)
    damage(shards, 7)
    found = shards.read(7)
    assert found.number == 5 and torch.equal(found.rgb, sample(5, *SIZES[5])[0]["rgb"])
    assert "part-000001.tar: sample 00000007 is damaged" in caplog.text
    with pytest.raises(ValueError, match="make it anew"):
        shards.read_exactly(7)
    for number in (5, 6):
        damage(shards, number)
    with pytest.raises(ValueError, match="removing the shards"):
        shards.read(6)
    assert shards.read(4).number == 4


def test_a_shard_that_was_cut_short_is_refused(folder: Path) -> None:
    path = shard_path(folder, 1)
    path.write_bytes(path.read_bytes()[:-600])
    with pytest.raises(ValueError, match="part-000001.tar.*copy it again"):
        open_shards(folder)


def test_a_folder_that_was_not_prepared_to_its_end_is_refused(folder: Path) -> None:
    (folder / "flat.safetensors").unlink()
    with pytest.raises(ValueError, match="makes last; give its command again"):
        open_shards(folder)


def test_folders_go_together_if_their_weights_do(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    assert len(open_shards(folder, folder)) == 20
    other = tmp_path_factory.mktemp("other")
    write_json(other / "prepare.json", {"format": FORMAT, "config": {}, "weights": {"autoencoder": "two"}})
    with pytest.raises(ValueError, match="prepare one of them again"):
        open_shards(folder, other)
    with pytest.raises(ValueError, match="gen1 prepare --out"):
        open_shards(tmp_path_factory.mktemp("empty"))


def test_the_batch_of_a_step_follows_from_seed_and_step(folder: Path) -> None:
    ahead, behind = open_shards(folder), open_shards(folder)
    batches = [ahead.batch_numbers(step, batch=2, seed=3) for step in range(40)]
    assert batches[::-1] == [behind.batch_numbers(step, batch=2, seed=3) for step in reversed(range(40))]
    assert batches != [ahead.batch_numbers(step, batch=2, seed=4) for step in range(40)]
    for batch in batches:
        assert len({SIZES[number][1:] for number in batch}) == 1
    clips = [ahead.batch_numbers(step, batch=2, seed=3, least_frames=2) for step in range(40)]
    assert {number for batch in clips for number in batch} == set(range(8))
    with pytest.raises(ValueError, match="longest of 10 samples has 3 frames"):
        ahead.batch_numbers(0, batch=2, seed=3, least_frames=4)
    with pytest.raises(ValueError, match="a batch from 1"):
        ahead.batch_numbers(0, batch=0, seed=3)


def test_every_sample_is_seen_equally_often_whatever_its_bucket() -> None:
    buckets = [list(range(37)), [37], list(range(38, 50))]
    seen: Counter[int] = Counter()
    for epoch in range(2000):
        batches = epoch_batches(buckets, steps=6, batch=8, seed=0, epoch=epoch)
        assert len(batches) == 6 and all(len(batch) == 8 for batch in batches)
        seen.update(number for batch in batches for number in batch)
    expected = 2000 * 48 / 50
    # A bucket of one fills a whole batch in one epoch of eight; over so many epochs that is known to about 6 %.
    assert all(abs(seen[number] / expected - 1) < 0.2 for number in range(50))


def test_nothing_repeats_before_all_of_a_bucket_was_drawn() -> None:
    batches = epoch_batches([list(range(12))], steps=3, batch=4, seed=0, epoch=5)
    assert sorted(number for batch in batches for number in batch) == list(range(12))
