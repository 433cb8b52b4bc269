"""A warm restart from averaged weights, and the full-size preset: its plan, and the same path at a narrow width."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import pytest
import small_run
import torch
from shard_folder import write_folder

from gen1_core.checkpoints.files import read_file, save_file
from gen1_core.cli import main
from gen1_core.gen1 import EditOptions
from gen1_core.loading import as_metadata, config_of
from gen1_core.models.autoencoder import AutoencoderConfig
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig
from gen1_core.recipes.sd15_train import SD15
from gen1_core.recipes.tiny import TINY
from gen1_core.training.autoencoder import AutoencoderPlan
from gen1_core.training.bank import BankConfig
from gen1_core.training.estimate import cost_of
from gen1_core.training.recipe import Recipe, Work, run
from gen1_core.training.restart import adopt, start_from, with_frames
from gen1_core.training.stages import Fit, Rate
from gen1_core.training.state import load_state, read_records

CPU = torch.device("cpu")
NARROW = UNetConfig(
    block_out_channels=(32, 64, 64, 64), cross_attention_dim=16, num_attention_heads=4, norm_num_groups=8, frames=4
)


def recipe(steps: int = 2) -> Recipe:
    """An autoencoder of convolutions alone, in no time."""
    bank = BankConfig(name="train", seed=3, shards=1, clips=1, frames=2, size=32, supersample=1, captions=2)
    fit = Fit(steps=steps, batch=2, rate=Rate(peak=1e-2, warmup=0))
    return replace(
        TINY,
        bank=bank,
        held_out=replace(bank, name="held_out", seed=4),
        autoencoder=replace(TINY.autoencoder, patch_encoder=False),
        autoencoder_plan=AutoencoderPlan(fit=fit, crop=16, full_batch=1),
    )


def work(folder: Path, start: Path | None = None) -> Work:
    return Work(folder=folder, shards=range(1), minutes=1e9, device=CPU, start=start)


def test_a_part_begins_at_finished_weights_with_a_fresh_optimiser(tmp_path: Path) -> None:
    run(recipe(), ["bank", "autoencoder"], work(tmp_path / "a"))
    weights = tmp_path / "a" / "weights"
    other = replace(recipe(1), seed=9)  # whose own first weights are others
    run(other, ["bank", "autoencoder"], work(tmp_path / "warm", weights))
    run(other, ["bank", "autoencoder"], work(tmp_path / "cold"))
    first, warm, cold = (
        read_file(tmp_path / name / "weights" / "autoencoder.safetensors").tensors["decoder.conv_out.weight"].float()
        for name in ("a", "warm", "cold")
    )
    assert float((warm - first).abs().mean()) < 0.3 * float((cold - first).abs().mean())
    assert splits_of(tmp_path / "warm") == splits_of(weights.parent) == ["train"]
    state = load_state(tmp_path / "warm" / "autoencoder" / "checkpoint.pt")
    assert {float(moments["step"]) for moments in state["optimiser"]["state"].values()} == {1.0}
    with pytest.raises(ValueError, match="remove the folder"):  # a run that began elsewhere does not go on
        run(other, ["autoencoder"], work(tmp_path / "warm"))
    with pytest.raises(ValueError, match="give another --folder, or leave --from out"):
        run(recipe(), ["autoencoder"], work(tmp_path / "a", weights))
    with pytest.raises(ValueError, match="give the `weights` folder of a training"):
        run(recipe(), ["autoencoder"], work(tmp_path / "b", tmp_path / "nowhere"))
    with pytest.raises(ValueError, match="give the `weights` folder of a training"):
        run(recipe(), ["autoencoder"], work(tmp_path / "b", weights.parent))


def test_what_the_start_has_seen_is_told(tmp_path: Path) -> None:
    start = tmp_path / "start"
    run(recipe(), ["bank", "autoencoder"], work(tmp_path / "old"))
    file = read_file(tmp_path / "old" / "weights" / "autoencoder.safetensors")
    start.mkdir()
    told = {"recipe": json.dumps({"bank": {"seed": 1}})}  # of a world without splits
    config = config_of(AutoencoderConfig, file)
    save_file(start / "autoencoder.safetensors", file.tensors, kind="autoencoder", config=config, metadata=told)
    run(recipe(), ["bank", "autoencoder"], work(tmp_path / "new", start))
    assert splits_of(tmp_path / "new") == ["train", "unknown"]


def splits_of(folder: Path) -> list[str]:
    return json.loads(read_file(folder / "weights" / "autoencoder.safetensors").metadata["recipe"])["splits"]


def test_what_is_not_trained_is_taken_from_there(tmp_path: Path) -> None:
    for folder in ("old", "new"):
        (tmp_path / folder).mkdir()
    for part in ("autoencoder", "clip"):
        (tmp_path / "old" / f"{part}.safetensors").write_bytes(part.encode())
    (tmp_path / "new" / "clip.safetensors").write_bytes(b"own")
    adopt(tmp_path / "old", tmp_path / "new", ["autoencoder", "clip", "depth"])
    assert (tmp_path / "new" / "autoencoder.safetensors").read_bytes() == b"autoencoder"
    assert (tmp_path / "new" / "clip.safetensors").read_bytes() == b"own"
    assert len(list((tmp_path / "new").iterdir())) == 2


def test_frame_positions_are_stretched_and_nothing_else() -> None:
    torch.manual_seed(0)
    short = SpaceTimeUNet(replace(small_run.CONFIG, frames=4))
    long = SpaceTimeUNet(replace(small_run.CONFIG, frames=8))
    start_from(long, short.state_dict(), Path("short"))
    before, after = short.state_dict(), long.state_dict()
    stretched = [name for name in before if before[name].shape != after[name].shape]
    assert stretched and all(name.endswith("position.weight") for name in stretched)
    assert all(torch.equal(before[name], after[name]) for name in before if name not in stretched)
    old, new = before[stretched[0]], after[stretched[0]]
    torch.testing.assert_close(new[[0, -1]], old[[0, -1]])
    torch.testing.assert_close(new[1], old[0] + (old[1] - old[0]) * 3 / 7)
    assert torch.equal(with_frames(before, 4)[stretched[0]], old)
    with pytest.raises(ValueError, match="start from weights of the same configuration"):
        start_from(SpaceTimeUNet(replace(small_run.CONFIG, cross_attention_dim=8)), before, Path("short"))


def test_the_plan_of_the_full_size_is_counted(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    assert main(["train", "--preset", "sd15", "--dry-run"]) == 0
    assert "1216.3 M parameters, 356.7 M of them in temporal layers" in caplog.text
    assert (
        "all: 125000 steps" in caplog.text and "stage temporal: 75000 steps of 9216 images or 1152 clips" in caplog.text
    )
    assert [stage.steps for stage in SD15.plan.stages] == [15_000, 75_000, 25_000, 10_000]
    assert [stage.structure for stage in SD15.plan.stages] == ["none", "none", "detail", "levels"]
    assert main(["train", "--preset", "sd15", "--dry-run", "--processes", "7"]) == 2


@pytest.mark.parametrize(
    ("wrong", "cure"),
    [
        ("--preset sd15 --dry-run --processes 0", "leaves nobody to work"),
        ("--preset sd15 --shards 0:1", "--shards says nothing to the preset sd15"),
        ("--held-out data", "--held-out says nothing to the preset tiny"),
        ("--dry-run", "--dry-run says nothing to the preset tiny"),
        ("clip --data data", "leave --data out"),
        ("unet --data nowhere", "nowhere"),
        ("autoencoder --steps 5", "trained by the part decoder"),
        ("unet --rate-scale 0", "give one above 0"),
        ("unet --stage levels", "give those weights by --from"),
        ("all --stage levels --from somewhere", "name the part unet"),
        ("unet --stage blur --from somewhere", "choose one of images, temporal, structure, levels"),
        ("--preset sd15 --stage blur --dry-run", "choose one of images, temporal, structure, levels"),
        ("all --until temporal", "name the part unet"),
        ("unet --stage structure --until temporal --from somewhere", "choose one of structure, levels"),
        ("--preset sd15 --until blur --dry-run", "choose one of images, temporal, structure, levels"),
    ],
)
def test_what_would_say_nothing_is_refused_before_any_work(
    wrong: str, cure: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["train", *wrong.split(), "--folder", str(tmp_path / "run"), "--threads", "1"]) == 2
    assert cure in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_costs_grow_as_they_must() -> None:
    one = cost_of(NARROW, frames=1, height=8, width=8, image=True)
    clip = cost_of(NARROW, frames=4, height=8, width=8)
    unet = SpaceTimeUNet(NARROW)
    assert clip.parameters == sum(p.numel() for p in unet.parameters()) > clip.temporal > 0
    assert clip.flop > 4 * one.flop and 1.8 < (clip.flop - clip.forward_flop) / clip.forward_flop < 2.2
    assert clip.checkpointed < 0.6 * clip.activations
    held = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        held.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        unet(torch.randn(1, 12, 4, 8, 8), torch.ones(1), torch.randn(1, 1, 1, 16))
    weights = {p.untyped_storage().data_ptr() for p in unet.parameters()}
    real = {t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in held}
    measured = sum(size for place, size in real.items() if place not in weights)
    assert 0.7 < measured / 2 / clip.activations < 1.4  # float32 here, bfloat16 there


@pytest.mark.slow
def test_the_full_size_path_at_a_narrow_width(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_folder(tmp_path / "data")
    torch.manual_seed(0)
    told = as_metadata(small_run.DIFFUSION, EditOptions())
    inflated = tmp_path / "inflated.safetensors"
    save_file(inflated, SpaceTimeUNet(NARROW).state_dict(), kind="unet", config=NARROW, metadata=told)
    folder = tmp_path / "run"
    command = ["train", "unet", "--preset", "sd15", "--smoke", "--batch", "16", "--folder", str(folder)]
    judged = ["--held-out", str(write_folder(tmp_path / "held-out", first=20))]
    given = ["--data", str(data), *judged, "--from", str(inflated)]
    assert main([*command, "--data", str(data), "--held-out", str(data), "--from", str(inflated)]) == 2
    assert "10 of 10 held-out samples are in --data too" in capsys.readouterr().err
    assert main(command) == 2 and "give both, or --dry-run for the plan" in capsys.readouterr().err
    assert main([*command, *given, "--checkpointing", "--threads", "1"]) == 0, capsys.readouterr().err
    file = read_file(folder / "weights" / "unet.safetensors")
    assert file.metadata["config"]["frames"] == 8, "the positions were stretched from 4"
    assert json.loads(file.metadata["recipe"])["finished"] is True
    assert (folder / "unet" / "stage-temporal.safetensors").exists() and list((folder / "unet").glob("sheet-*.png"))
    assert "held_out_loss" in read_records(folder / "unet" / "log.jsonl")[-1]["evaluation"]
    assert main([*command, *given[:-1], str(folder / "weights")]) == 2
    assert "its start would be lost" in capsys.readouterr().err
    for change, cure in (({"width": 8}, "with the CLIP of that width"), ({"channels": 8}, "gen1 prepare --vae")):
        other = write_folder(tmp_path / f"other {list(change)}", **change)
        wrong = [*command[:-1], str(tmp_path / "run2"), "--data", str(other), "--from", str(inflated)]
        assert main(wrong) == 2 and cure in capsys.readouterr().err


def test_embedded_weights_fit_their_budget() -> None:
    from gen1_core.models.autoencoder import Autoencoder
    from gen1_core.models.clip import CLIP
    from gen1_core.models.depth import DepthNet
    from gen1_core.models.prior import Prior

    with torch.device("meta"):
        parts = [SpaceTimeUNet(TINY.unet), Autoencoder(TINY.autoencoder), CLIP(TINY.clip), DepthNet(TINY.depth)]
        parts.append(Prior(TINY.prior))
    sizes = [2 * sum(value.numel() for value in part.state_dict().values()) for part in parts]
    assert max(sizes) < 16 * 2**20 and sum(sizes) < 32e6
    assert TINY.unet.frames == TINY.bank.frames == TINY.held_out.frames == 16
    assert [stage.name for stage in TINY.unet_plan.stages if stage.keep] == ["temporal"]
