"""The training loop: resumable bit for bit, atomic, and a pure function of seed and step."""

import json
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from accelerate.state import AcceleratorState
from torch import nn
from torch.optim.optimizer import register_optimizer_step_post_hook

from gen1_core.training import ema
from gen1_core.training.draws import Share, draw_seeds, normal_rows
from gen1_core.training.engine import Engine, open_accelerator
from gen1_core.training.loop import Task, generator_at, identity_of, train
from gen1_core.training.stages import Fit, Rate, Stage, kept_stages, scale_stages, stage_at
from gen1_core.training.state import load_state, read_records, rewind_records, save_state

FIT = Fit(steps=6, batch=4, rate=Rate(peak=1e-2, warmup=2), log_every=2, evaluate_every=3, save_every_s=0.0)


def linear_task(*, stop_at: int = -1) -> Task:
    """A small regression; with ``stop_at`` it is killed in the middle of that step."""
    torch.manual_seed(3)
    model = nn.Sequential(nn.Linear(3, 8), nn.Tanh(), nn.Linear(8, 1))
    unused = nn.Linear(2, 2)  # gets its first gradient late, as the temporal layers of the U-Net do
    model.add_module("late", unused)

    def losses(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        if step == stop_at:
            raise ConnectionError("killed")
        x = torch.randn(4, 3, generator=generator)
        loss = (model[2](model[1](model[0](x))) - x.sum(1, keepdim=True)).square().mean()
        if step >= 4:
            loss = loss + unused(x[:, :2]).square().mean()
        return {"loss": loss, "size": x.abs().mean()}

    return Task(
        name="line",
        model=model,
        losses=losses,
        rate=lambda step: FIT.rate.at(step, FIT.steps),
        evaluate=lambda averaged, step: {"first": float(averaged[0].weight[0, 0])},
    )


def without_times(path: Path) -> list[dict]:
    records = read_records(path)
    for record in records:
        record.pop("seconds")
    return records


def test_killed_and_resumed_run_equals_an_unbroken_one(tmp_path: Path) -> None:
    whole = train(linear_task(), FIT, tmp_path / "whole", seed=5, identity="line")
    with pytest.raises(ConnectionError):
        train(linear_task(stop_at=3), FIT, tmp_path / "broken", seed=5, identity="line")
    assert load_state(tmp_path / "broken" / "checkpoint.pt")["step"] == 3
    task = linear_task()
    resumed = train(task, FIT, tmp_path / "broken", seed=5, identity="line")

    assert whole.finished and resumed.finished and resumed.step == 6
    a, b = (load_state(tmp_path / name / "checkpoint.pt") for name in ("whole", "broken"))
    for key in ("model", "averaged"):
        for name, value in a[key].items():
            torch.testing.assert_close(b[key][name], value, rtol=0, atol=0)
    for index, moments in a["optimiser"]["state"].items():
        for name, value in moments.items():
            torch.testing.assert_close(b["optimiser"]["state"][index][name], value, rtol=0, atol=0)
    assert without_times(tmp_path / "whole" / "log.jsonl") == without_times(tmp_path / "broken" / "log.jsonl")
    assert not torch.equal(a["model"]["0.weight"], a["averaged"]["0.weight"])


def test_lines_logged_after_the_last_checkpoint_are_dropped_on_resume(tmp_path: Path) -> None:
    with pytest.raises(ConnectionError):
        train(linear_task(stop_at=5), replace(FIT, save_every_s=1e9), tmp_path, seed=5, identity="line")
    assert not (tmp_path / "checkpoint.pt").exists() and read_records(tmp_path / "log.jsonl")
    train(linear_task(), FIT, tmp_path, seed=5, identity="line")
    train(linear_task(), FIT, tmp_path / "whole", seed=5, identity="line")
    assert without_times(tmp_path / "log.jsonl") == without_times(tmp_path / "whole" / "log.jsonl")


def test_a_time_limit_stops_cleanly_and_a_second_call_goes_on(tmp_path: Path) -> None:
    stopped = train(linear_task(), FIT, tmp_path, seed=5, identity="line", minutes=0.0)
    assert stopped.step == 0 and not stopped.finished
    assert train(linear_task(), FIT, tmp_path, seed=5, identity="line").finished


def test_an_interrupt_in_the_middle_of_a_step_leaves_the_last_checkpoint_whole(tmp_path: Path) -> None:
    train(linear_task(), FIT, tmp_path / "whole", seed=5, identity="line")
    steps = []

    def interrupt(optimiser: torch.optim.Optimizer, *_: object) -> None:
        steps.append(optimiser)
        if len(steps) == 4:  # the weights have moved, the count of steps has not
            raise KeyboardInterrupt

    hook = register_optimizer_step_post_hook(interrupt)
    with hook, pytest.raises(KeyboardInterrupt):
        train(linear_task(), FIT, tmp_path / "broken", seed=5, identity="line")
    assert load_state(tmp_path / "broken" / "checkpoint.pt")["step"] == 3
    train(linear_task(), FIT, tmp_path / "broken", seed=5, identity="line")
    a, b = (load_state(tmp_path / name / "checkpoint.pt")["model"] for name in ("whole", "broken"))
    for name, value in a.items():
        torch.testing.assert_close(b[name], value, rtol=0, atol=0)


def test_a_run_made_from_something_else_is_refused_and_left_as_it_is(tmp_path: Path) -> None:
    train(linear_task(), FIT, tmp_path, seed=5, identity=identity_of(FIT, "latents"))
    before = (tmp_path / "checkpoint.pt").read_bytes()
    for changed in (identity_of(FIT, "other latents"), identity_of(replace(FIT, batch=5), "latents")):
        with pytest.raises(ValueError, match="remove the folder .* to train it anew"):
            train(linear_task(), FIT, tmp_path, seed=5, identity=changed)
    assert (tmp_path / "checkpoint.pt").read_bytes() == before
    longer = replace(FIT, steps=8, rate=Rate(peak=1e-3), log_every=1)
    assert train(linear_task(), longer, tmp_path, seed=5, identity=identity_of(longer, "latents")).step == 8


def test_identity_ignores_the_length_of_every_stage_and_nothing_else() -> None:
    stages = [
        Stage(name="a", steps=steps, batch=8, image_fraction=0.0, structure="detail", rate=FIT.rate) for steps in (1, 2)
    ]
    assert (
        identity_of([stages[0]]) == identity_of((stages[1],)) != identity_of([replace(stages[0], image_fraction=1.0)])
    )


def test_another_seed_or_another_network_is_refused(tmp_path: Path) -> None:
    train(linear_task(), FIT, tmp_path, seed=5, identity="line")
    with pytest.raises(ValueError, match="use seed=5 or another folder"):
        train(linear_task(), FIT, tmp_path, seed=6, identity="line")
    other = replace(linear_task(), model=nn.Linear(3, 1))
    with pytest.raises(ValueError, match="another folder"):
        train(other, FIT, tmp_path, seed=5, identity="line")


def test_the_learning_rate_can_be_scaled_for_the_rest_of_a_run(tmp_path: Path) -> None:
    train(linear_task(), FIT, tmp_path, seed=5, identity="line", engine=Engine(rate_scale=0.5))
    lines = [record for record in read_records(tmp_path / "log.jsonl") if "rate" in record]
    assert lines and all(line["rate"] == 0.5 * FIT.rate.at(line["step"] - 1, FIT.steps) for line in lines)


@pytest.mark.parametrize(("told", "used"), [("config", "bf16"), ("no", "no"), ("bf16", "no")])
def test_only_where_asked_does_accelerates_own_precision_wrap_the_network(
    told: str, used: str, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    """Ours is autocast around the loss; accelerate's would stay on under it."""
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    request.addfinalizer(lambda: AcceleratorState._reset_state(reset_partial_state=True))
    AcceleratorState._reset_state(reset_partial_state=True)
    assert open_accelerator(Engine(precision=told), torch.device("cpu")).mixed_precision == used


def test_a_gpu_is_not_chosen_by_its_number() -> None:
    with pytest.raises(ValueError, match="give cuda, and let the environment"):
        open_accelerator(Engine(), torch.device("cuda:1"))


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    task = linear_task()
    broken = replace(task, losses=lambda step, g: {"loss": task.losses(step, g)["loss"] * (float("nan") ** step)})
    with pytest.raises(
        ValueError, match="not finite at step 1, .*resume from the last checkpoint.*lower learning rate"
    ):
        train(broken, FIT, tmp_path, seed=5, identity="line")
    assert load_state(tmp_path / "checkpoint.pt")["step"] < 2


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path: Path) -> None:
    task = linear_task()

    def losses(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        loss = task.losses(step, generator)["loss"]
        return {"loss": loss + (0 * loss).sqrt() if step == 3 else loss}  # a finite loss, a gradient of 0 * inf

    with pytest.raises(ValueError, match="gradient .* is not finite at step 3, .*resume from the last checkpoint"):
        train(replace(task, losses=losses), FIT, tmp_path, seed=5, identity="line")
    state = load_state(tmp_path / "checkpoint.pt")
    assert state["step"] == 3 and bool(state["model"]["0.weight"].isfinite().all())


def test_samples_of_the_step_that_broke_are_named_even_when_it_is_noticed_later(tmp_path: Path) -> None:
    task = linear_task()

    def losses(step: int, generator: torch.Generator) -> dict[str, torch.Tensor]:
        return {"loss": task.losses(step, generator)["loss"] * (float("inf") if step == 3 else 1.0)}

    def names(step: int, generator: torch.Generator) -> list[str]:
        return [f"clip {int(torch.randint(0, 100, (1,), generator=generator))} of step {step}"]

    broken = replace(task, losses=losses, names=names)
    fit = replace(FIT, log_every=6, save_every_s=1e9)
    (shown,) = names(3, generator_at(5, "line", 3))
    with pytest.raises(ValueError, match=f"at step 3, which showed {shown}, so these weights are lost"):
        train(broken, fit, tmp_path, seed=5, identity="line")
    assert not (tmp_path / "checkpoint.pt").exists()


@pytest.mark.parametrize("damage", ["cut", "flipped", "empty"])
def test_a_damaged_checkpoint_is_told(tmp_path: Path, damage: str) -> None:
    train(linear_task(), FIT, tmp_path, seed=5, identity="line")
    path = tmp_path / "checkpoint.pt"
    content = bytearray(path.read_bytes())
    weights = load_state(path)["model"]["0.weight"].numpy().tobytes()
    if damage == "flipped":
        content[content.index(weights)] ^= 1  # one bit of one weight, which PyTorch would read without a word
    path.write_bytes({"cut": content[: len(content) // 2], "empty": b""}.get(damage, content))
    with pytest.raises(ValueError, match="is damaged .*put a copy back, or remove the folder"):
        train(linear_task(), FIT, tmp_path, seed=5, identity="line")


def test_weights_are_kept_where_the_task_says_so(tmp_path: Path) -> None:
    kept = {}

    def keep(averaged: nn.Module, name: str, step: int) -> None:
        kept[name] = (step, {key: value.clone() for key, value in averaged.state_dict().items()})

    task = replace(linear_task(), kept={4: "before"})
    outcome = train(task, FIT, tmp_path, seed=5, identity="line", keep=keep)
    step, weights = kept["before"]
    until = train(linear_task(), replace(FIT, steps=4), tmp_path / "short", seed=5, identity="line")
    assert step == 4 and not torch.equal(weights["0.weight"], outcome.averaged.state_dict()["0.weight"])
    assert until.step == 4 and kept.keys() == {"before"}


def test_curves_are_written_for_tensorboard_once(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    with pytest.raises(ConnectionError):
        train(linear_task(stop_at=5), replace(FIT, save_every_s=1e9), tmp_path, seed=5, identity="line")
    train(linear_task(), FIT, tmp_path, seed=5, identity="line")
    events = EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.step for event in events.Scalars("train/loss")] == [2, 4, 6]
    assert [event.step for event in events.Scalars("evaluation/first")] == [3, 6]
    told = {record["step"]: record["loss"] for record in read_records(tmp_path / "log.jsonl") if "rate" in record}
    assert events.Scalars("train/loss")[-1].value == pytest.approx(told[6])


def test_without_accelerate_the_extra_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for missing, advice in (("accelerate", "training runs on accelerate"), ("torch.utils.tensorboard", "curves")):
        with monkeypatch.context() as patched:
            patched.setitem(sys.modules, missing, None)
            with pytest.raises(ValueError, match=rf"{advice}.*pip install -e '.\[train\]'"):
                train(linear_task(), FIT, tmp_path, seed=5, identity="line")


def test_shares_are_rows_and_noise_belongs_to_the_row() -> None:
    rows = torch.arange(6)
    assert torch.equal(torch.cat([Share(index=i, count=3).of(rows) for i in range(3)]).sort().values, rows)
    assert torch.equal(Share(index=1, count=4).of(rows), rows), "a batch that is not divided is computed whole"
    seeds = draw_seeds(6, torch.Generator().manual_seed(0))
    whole = normal_rows(seeds, (3, 2), torch.device("cpu"))
    share = Share(index=1, count=2)
    assert torch.equal(normal_rows(share.of(seeds), (3, 2), torch.device("cpu")), share.of(whole))
    assert abs(float(normal_rows(seeds, (1000,), torch.device("cpu")).std()) - 1) < 0.05
    assert not torch.equal(whole[0], whole[1])
    with pytest.raises(ValueError, match="give a number from 0 to 1"):
        Share(index=2, count=2)


def test_the_end_of_a_stage_can_be_kept() -> None:
    common = {"batch": 8, "image_fraction": 0.125, "structure": "detail", "rate": Rate(peak=1e-3)}
    stages = tuple(Stage(name=name, steps=5, keep=name == "b", **common) for name in "abc")
    assert kept_stages(stages) == {10: "b"}


def test_draws_are_a_pure_function_of_seed_name_and_step() -> None:
    draw = lambda *key: torch.randint(0, 1 << 30, (8,), generator=generator_at(*key))  # noqa: E731
    assert torch.equal(draw(1, "a", 7), draw(1, "a", 7))
    others = [draw(2, "a", 7), draw(1, "b", 7), draw(1, "a", 8)]
    assert not any(torch.equal(draw(1, "a", 7), other) for other in others)


def test_rate_warms_up_and_falls() -> None:
    for shape in ("linear", "cosine"):
        rate = Rate(peak=1.0, final=0.1, warmup=9, shape=shape)
        values = [rate.at(step, 100) for step in range(101)]
        assert values[0] == pytest.approx(0.1, rel=0.02)
        assert values[10:] == sorted(values[10:], reverse=True) and values[100] == pytest.approx(0.1)
    assert Rate(peak=1.0, final=0.0, warmup=0).at(50, 100) == pytest.approx(0.5)
    with pytest.raises(ValueError, match="lower final or raise peak"):
        Rate(peak=1e-4, final=1e-3)


def test_average_follows_its_formula() -> None:
    model = nn.Linear(2, 1)
    averaged = ema.averaged_copy(model)
    before = averaged.weight.clone()
    with torch.no_grad():
        model.weight.add_(1.0)
    ema.update(averaged, model, decay=0.75)
    torch.testing.assert_close(averaged.weight, before + 0.25)
    assert ema.decay_at(0.999, 0) == pytest.approx(0.1) and ema.decay_at(0.999, 10**6) == 0.999


def test_a_failed_save_keeps_the_old_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"step": 1, "weight": torch.ones(2)})
    with pytest.raises(Exception, match="pickle"):
        save_state(path, {"step": 2, "weight": lambda: 0})
    assert load_state(path)["step"] == 1
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
    with pytest.raises(ValueError, match="free some space or make the folder writable"):
        save_state(tmp_path / "gone" / "checkpoint.pt", {"step": 3})


def test_a_half_written_log_line_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text(json.dumps({"step": 1}) + "\n" + json.dumps({"step": 2}) + '\n{"ste', encoding="utf-8")
    assert read_records(path) == [{"step": 1}, {"step": 2}]
    rewind_records(path, 1)
    assert path.read_text(encoding="utf-8") == '{"step": 1}\n'


def test_stages_follow_each_other_and_scale_together() -> None:
    common = {"batch": 8, "image_fraction": 0.125, "structure": "detail", "rate": Rate(peak=1e-3)}
    stages = tuple(Stage(name=name, steps=steps, **common) for name, steps in (("a", 60), ("b", 30), ("c", 10)))
    assert [stage_at(stages, step)[0].name for step in (0, 59, 60, 89, 90, 99, 100)] == list("aabbccc")
    assert stage_at(stages, 65)[1] == 5
    assert scale_stages(stages, 20) == (12, 6, 2) and sum(scale_stages(stages, 7)) == 7
    with pytest.raises(ValueError, match="give at least 3 steps"):
        scale_stages(stages, 2)
