"""Customisation: the pictures are learnt, the rest is kept, and what comes out loads wherever a model does."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts import randomised, relative_error, tiny_gen1, write_model
from PIL import Image
from shard_folder import write_folder
from small_run import DIFFUSION
from torch import Tensor, nn

from gen1_core.checkpoints.files import read_file
from gen1_core.checkpoints.formats import identify_path
from gen1_core.checkpoints.lora import load_lora
from gen1_core.cli import main
from gen1_core.diffusion.condition import Condition
from gen1_core.gen1 import EditOptions
from gen1_core.loading import PARTS, load_gen1, with_lora
from gen1_core.models.unet import SpaceTimeUNet, UNetConfig
from gen1_core.training.customize import CustomWork, customize
from gen1_core.training.draws import Share
from gen1_core.training.halves import CustomPlan, customize_task, learner_of, measure
from gen1_core.training.latents import LatentBank
from gen1_core.training.loop import Task, generator_at, train
from gen1_core.training.lora import Adapters, LoraConfig, adapters_for, attach, holding, lora_layers, save_lora
from gen1_core.training.prepare.networks import NetworkFiles
from gen1_core.training.prepare.run import prepare
from gen1_core.training.prepare.sources import PrepareConfig
from gen1_core.training.samples import sample
from gen1_core.training.sources import Clips, Picks
from gen1_core.training.stages import Fit, Rate, Stage
from gen1_core.training.state import load_state
from gen1_core.training.unet import UNetPlan, unet_task, with_level
from gen1_core.video.read import open_video

CPU = torch.device("cpu")
SMALL = UNetConfig(
    block_out_channels=(16,), layers_per_block=1, attention=(True,), num_attention_heads=2, cross_attention_dim=16,
    norm_num_groups=4, frames=2, content_embedding=True,
)  # fmt: skip
METHODS = ("lora", "full")
PEAK = {"lora": 1e-2, "full": 2e-3}
SUBJECT = torch.tensor([2.0, -2.0, 1.0, -1.0])
"""What the pictures look like, and nothing else does."""


def plan_of(method: str, *, steps: int, batch: int = 16, **others: float) -> CustomPlan:
    rate = Rate(peak=PEAK[method], final=PEAK[method] / 10, warmup=5)
    fit = Fit(steps=steps, batch=batch, rate=rate, ema_decay=0.95, evaluate_every=steps)
    return CustomPlan(method=method, fit=fit, lora=LoraConfig(rank=4), **others)  # pyright: ignore


def made(clips: int, frames: int, *, seed: int, subject: bool = False) -> LatentBank:
    """Clips whose colour follows from their content; of the subject, which has one content, it does not."""
    generator = torch.Generator().manual_seed(seed)
    mixing = torch.randn(3, 20, generator=torch.Generator().manual_seed(0)) / 3**0.5
    content, colour = (torch.randn(clips, 3, generator=generator) @ mixing).split([16, 4], dim=1)
    if subject:
        content = torch.ones(clips, 16) + 0.1 * content
        colour = SUBJECT.expand(clips, -1)
    depth = torch.randn(clips, 2, 4, frames, 4, 4, generator=generator)
    rgb = colour[:, None, :, None, None, None] + 0.3 * depth[:, :1]
    images = content[:, None, None].expand(-1, 1, frames, -1)
    return LatentBank(
        rgb=rgb.half(),
        depth=depth.half(),
        level=torch.arange(clips) % 7 + 1,
        images=images.half(),
        texts=torch.zeros(clips, 1, 0, 16).half(),
        flat=torch.zeros(4, 4, 4).half(),
    )


PICTURES = made(20, 1, seed=1, subject=True)
ORIGINAL = made(24, 2, seed=2)
UNSEEN = made(24, 2, seed=3)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Tensor]:
    """Weights of a small U-Net that knows the original data."""
    rate = Rate(peak=5e-3, final=5e-4, warmup=5)
    stage = Stage(name="levels", steps=150, batch=16, image_fraction=0.5, structure="levels", rate=rate)
    fit = Fit(steps=150, batch=16, rate=rate, ema_decay=0.95, evaluate_every=150)
    plan = UNetPlan(fit=fit, stages=(stage,))
    task = unet_task(SMALL, plan, DIFFUSION, ORIGINAL, evaluate=lambda model, step: {}, seed=0, device=CPU)
    return train(task, fit, tmp_path_factory.mktemp("base"), seed=0, identity="base").averaged.state_dict()


def unet_of(weights: dict[str, Tensor]) -> SpaceTimeUNet:
    unet = SpaceTimeUNet(SMALL)
    unet.load_state_dict(weights)
    return unet.eval()


def task_of(unet: SpaceTimeUNet, plan: CustomPlan, original: LatentBank = ORIGINAL, *, stop_at: int = -1) -> Task:
    """The training of a small U-Net; with ``stop_at`` it is killed in the middle of that step."""
    learner = learner_of(unet, plan, seed=0)
    task = customize_task(learner, plan, DIFFUSION, PICTURES, original, evaluate=lambda model, step: {}, device=CPU)

    def losses(step: int, generator: torch.Generator, share: Share) -> dict[str, Tensor]:
        if step == stop_at:
            raise ConnectionError("killed")
        return task.losses(step, generator, share)

    return replace(task, losses=losses)


def subject_edit(unet: SpaceTimeUNet) -> Tensor:
    """The mean colour of unseen frames edited to the look of a picture."""
    told = UNSEEN.read(UNSEEN.draw(0, count=8, frames=1, generator=torch.Generator().manual_seed(0)), CPU)
    content = torch.ones(8, 1, 1, 16)
    condition = Condition(
        structure=with_level(told.depth, torch.zeros(8, dtype=torch.long)),
        content=content,
        null=torch.zeros_like(content),
        image=True,
    )
    options = EditOptions(steps=8, sampler="dpmpp_2m", content_scale=1.0)
    return sample(unet, condition, DIFFUSION, options, seed=1).mean(dim=(0, 2, 3, 4))


def figures(unet: SpaceTimeUNet, plan: CustomPlan) -> dict[str, float]:
    told = {"seed": 5, "device": CPU}
    return {
        "pictures": measure(unet, plan, DIFFUSION, PICTURES, frames=1, **told),
        "original": measure(unet, plan, DIFFUSION, UNSEEN, frames=2, **told),
        "edit": float((subject_edit(unet) - SUBJECT).norm()),
    }


def customized(weights: dict[str, Tensor], plan: CustomPlan, original: LatentBank, folder: Path) -> dict[str, float]:
    unet = unet_of(weights)
    learner = learner_of(unet, plan, seed=0)
    task = customize_task(learner, plan, DIFFUSION, PICTURES, original, evaluate=lambda model, step: {}, device=CPU)
    outcome = train(task, plan.fit, folder, seed=0, identity="custom")
    with learner.using(outcome.averaged) as after:
        return figures(after, plan)


@pytest.mark.slow
@pytest.mark.parametrize("method", METHODS)
def test_pictures_are_learnt_and_the_rest_is_kept(trained: dict[str, Tensor], tmp_path: Path, method: str) -> None:
    plan = plan_of(method, steps=60)
    before = figures(unet_of(trained), plan)
    after = customized(trained, plan, ORIGINAL, tmp_path / "half")
    alone = customized(trained, plan, PICTURES, tmp_path / "alone")  # the pictures in both halves
    assert after["pictures"] < 0.6 * before["pictures"]
    assert after["edit"] < 0.7 * before["edit"]
    assert after["original"] < 1.15 * before["original"] < alone["original"]


class Counting:
    """A source that remembers how many frames were read of it, and in clips of how many."""

    def __init__(self, latents: LatentBank) -> None:
        self.latents, self.read_frames, self.lengths = latents, 0, set[int]()

    def draw(self, step: int, *, count: int, frames: int, generator: torch.Generator) -> Picks:
        return self.latents.draw(step, count=count, frames=frames, generator=generator)

    def read(self, picks: Picks, device: torch.device) -> Clips:
        self.read_frames += len(picks.clip) * picks.frames
        self.lengths.add(picks.frames)
        return self.latents.read(picks, device)

    def names(self, picks: Picks) -> list[str]:
        return self.latents.names(picks)

    def longest(self) -> int:
        return self.latents.longest()


def test_half_of_each_batch_is_original_data() -> None:
    plan = plan_of("lora", steps=12, batch=12, image_fraction=0.4)
    pictures, original = Counting(PICTURES), Counting(ORIGINAL)
    learner = learner_of(SpaceTimeUNet(SMALL), plan, seed=0)
    task = customize_task(
        learner, plan, DIFFUSION, pictures, original, evaluate=lambda model, step: {}, device=CPU
    )  # fmt: skip
    for step in range(12):
        losses = task.losses(step, generator_at(0, "custom", step))
        assert pictures.read_frames == original.read_frames == 6 * (step + 1)
        torch.testing.assert_close(losses["loss"], (losses["pictures_loss"] + losses["original_loss"]) / 2)
    assert (pictures.lengths, original.lengths) == ({1}, {1, 2})  # as single frames, and as whole clips
    assert len(task.names(0, generator_at(0, "custom", 0))) in (6 + 6, 6 + 3)


def test_shares_of_a_batch_add_up_to_the_batch() -> None:
    plan = plan_of("full", steps=4, batch=8, image_fraction=0.5)
    task = task_of(randomised(SpaceTimeUNet(SMALL)), plan)  # pyright: ignore[reportArgumentType]
    for step in range(3):
        whole, *parts = (
            task.losses(step, generator_at(0, "custom", step), share)["loss"]
            for share in (Share(), Share(index=0, count=2), Share(index=1, count=2))
        )
        torch.testing.assert_close(torch.stack(parts).mean(), whole)
        assert not torch.equal(*parts)


@pytest.mark.parametrize("method", METHODS)
def test_killed_and_resumed_equals_an_unbroken_run(tmp_path: Path, method: str) -> None:
    plan = plan_of(method, steps=4, batch=8)
    plan = replace(plan, fit=replace(plan.fit, save_every_s=0.0))
    weights = randomised(SpaceTimeUNet(SMALL)).state_dict()
    run = {"seed": 5, "identity": "custom"}
    whole = train(task_of(unet_of(weights), plan), plan.fit, tmp_path / "whole", **run)
    with pytest.raises(ConnectionError):
        train(task_of(unet_of(weights), plan, stop_at=2), plan.fit, tmp_path / "broken", **run)
    resumed = train(task_of(unet_of(weights), plan), plan.fit, tmp_path / "broken", **run)
    assert whole.finished and resumed.finished
    a, b = (load_state(tmp_path / name / "checkpoint.pt") for name in ("whole", "broken"))
    for key in ("model", "averaged"):
        for name, value in a[key].items():
            torch.testing.assert_close(b[key][name], value, rtol=0, atol=0)
    assert any(not torch.equal(value, a["averaged"][name]) for name, value in a["model"].items())
    assert ("conv_in.weight" in a["model"]) == (method == "full"), "a LoRA's checkpoint holds the LoRA alone"


def adapted(unet: SpaceTimeUNet, *, rank: int = 4) -> Adapters:
    """Adapters of the network, as after a training, with values that a file in float16 keeps."""
    adapters = adapters_for(unet, LoraConfig(rank=rank), seed=0)
    generator = torch.Generator().manual_seed(4)
    for parameter in adapters.parameters():
        parameter.data = (0.3 * torch.randn(parameter.shape, generator=generator)).half().float()
    return adapters


@contextmanager
def attached(unet: SpaceTimeUNet, adapters: Adapters) -> Iterator[None]:
    handles = attach(unet, adapters)
    yield
    for handle in handles:
        handle.remove()


@torch.no_grad()
def answer(unet: SpaceTimeUNet, *, image: bool = False) -> Tensor:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(1, 12, 2, 4, 4, generator=generator)
    content = torch.randn(1, 1, 1, unet.config.cross_attention_dim, generator=generator)
    return unet(x, torch.tensor([300.0]), content, image=image)


def test_a_lora_file_gives_what_the_adapters_gave_in_training(tmp_path: Path) -> None:
    gen1, path = tiny_gen1(), tmp_path / "look.safetensors"
    config = replace(gen1.unet.config, content_embedding=True)
    unet = randomised(SpaceTimeUNet(config), 3)
    assert isinstance(unet, SpaceTimeUNet)
    gen1 = replace(gen1, unet=unet)
    base, adapters = answer(unet), adapted(unet)
    with attached(unet, adapters):
        taught = answer(unet)
    save_lora(path, adapters, LoraConfig(rank=4), metadata={"steps": 1})
    loaded = with_lora(gen1, path)
    assert relative_error(answer(loaded.unet), taught) < 1e-5 < 0.05 < relative_error(base, taught)
    torch.testing.assert_close(answer(unet), base, rtol=0, atol=0)  # the model that was given is as it was
    torch.testing.assert_close(answer(with_lora(gen1, path, weight=0.0).unet), base, rtol=0, atol=0)
    assert relative_error(answer(with_lora(gen1, path, weight=0.5).unet), taught) > 0.02
    # Every layer of the spatial transformers, where the content joins, and none that knows of time.
    names = set(lora_layers(unet))
    wanted = {name for name, layer in unet.named_modules() if isinstance(layer, nn.Linear) and ".transformer_" in name}
    assert names == {name for name in wanted if "temporal" not in name} | {
        "content_embedding.linear_1", "content_embedding.linear_2",
    }  # fmt: skip
    found = identify_path(path)
    assert (found.kind, found.supported, found.layout) == ("lora", True, "kohya")
    assert set(load_lora(path).unet) == set(adapters) and json.loads(read_file(path).metadata["recipe"]) == {"steps": 1}


def test_new_adapters_change_nothing_and_others_are_held_for_a_while() -> None:
    unet = randomised(SpaceTimeUNet(SMALL))
    assert isinstance(unet, SpaceTimeUNet)
    base, new, old = answer(unet), adapters_for(unet, LoraConfig(rank=2), seed=0), adapted(unet, rank=2)
    with attached(unet, new):
        torch.testing.assert_close(answer(unet), base, rtol=0, atol=0)
        with holding(new, old):
            assert relative_error(answer(unet), base) > 0.02
        torch.testing.assert_close(answer(unet), base, rtol=0, atol=0)
    again = adapters_for(unet, LoraConfig(rank=2), seed=0).state_dict()
    assert all(torch.equal(value, again[name]) for name, value in new.state_dict().items())


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_model(tiny_gen1(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty pictures of two shapes, and one that is none."""
    folder = tmp_path_factory.mktemp("pictures")
    for number in range(20):
        size = (40, 32) if number % 2 else (32, 64)
        Image.new("RGB", size, (200 + number, 20, 10 * number)).save(folder / f"{number:02d}.png")
    (folder / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    return folder


def command(images: Path, out: Path, model: Path, *more: str) -> list[str]:
    options = {"--weights": model, "--steps": 3, "--batch": 8, "--clips": 4, "--rank": 4, "--threads": 1}
    return ["customize", str(images), "-o", str(out), *(str(x) for pair in options.items() for x in pair), *more]


def test_the_command_makes_a_lora_that_an_edit_takes(
    model: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "look.safetensors"
    assert main(command(images, out, model)) == 0
    assert "broken.png is left out" in caplog.text and "the paper takes 15 to 30" not in caplog.text
    recipe = json.loads(read_file(out).metadata["recipe"])
    assert (recipe["pictures"], recipe["steps"], recipe["finished"]) == (20, 3, True)
    told = recipe["measured"]
    assert told["pictures"] != told["pictures_before"] and told["original"] != told["original_before"]
    assert (tmp_path / "look-training" / "sheet-000003.png").exists()
    refused = tmp_path / "b.mp4"
    edit = [
        "edit",
        str(images / "00.png"),
        "--prompt",
        "gold",
        "--model",
        str(model),
        "--device",
        "cpu",
        "--steps",
        "1",
    ]
    assert main([*edit, "-o", str(tmp_path / "a.mp4"), "--lora", f"{out}:3"]) == 0
    assert open_video(tmp_path / "a.mp4").num_frames == 1
    capsys.readouterr()
    assert main([*edit, "-o", str(refused), "--lora", str(model / "clip.safetensors")]) == 2
    assert "a LoRA is needed" in capsys.readouterr().err and not refused.exists()


def test_the_command_makes_a_model_that_loads(
    model: Path, images: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out, base = tmp_path / "mine", load_gen1(model)
    few = tmp_path / "few"
    few.mkdir()
    for number in range(5):
        (few / f"{number}.png").write_bytes((images / f"{number:02d}.png").read_bytes())
    assert main(command(few, out, model, "--method", "full")) == 0
    assert "5 pictures: the paper takes 15 to 30" in caplog.text
    for part in PARTS:
        same = (out / f"{part}.safetensors").read_bytes() == (model / f"{part}.safetensors").read_bytes()
        assert same == (part != "unet")
    made = load_gen1(out)
    assert made.diffusion == base.diffusion and made.defaults == base.defaults
    assert made.unet.config == base.unet.config
    assert relative_error(answer(made.unet), answer(base.unet)) > 1e-4
    # Given again it is finished; with other pictures it is another run.
    before = (out / "unet.safetensors").read_bytes()
    assert main(command(few, out, model, "--method", "full")) == 0
    after = read_file(out / "unet.safetensors").tensors
    (tmp_path / "old.safetensors").write_bytes(before)
    assert all(
        torch.equal(value, after[name]) for name, value in read_file(tmp_path / "old.safetensors").tensors.items()
    )
    (few / "0.png").write_bytes((images / "10.png").read_bytes())
    assert main(command(few, out, model, "--method", "full")) == 2


def work_of(images: Path, out: Path, model: Path, **others: object) -> CustomWork:
    told = {"folder": out.with_name("work"), "clips": 4, **others}
    return CustomWork(images=(str(images),), out=out, weights=str(model), **told)  # pyright: ignore[reportArgumentType]


def test_prepared_data_takes_the_place_of_the_world(model: Path, images: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    config = PrepareConfig(size=32, frames=4, stride=1, multiple=16)
    prepare(["world:3"], data, config, NetworkFiles(model=str(model)))
    out = tmp_path / "look.safetensors"
    outcome = customize(plan_of("lora", steps=1, batch=8), work_of(images, out, model, regularisation=(data,)))
    assert outcome.finished and not (tmp_path / "work" / "bank").exists()
    assert json.loads(read_file(out).metadata["recipe"])["original"] == [str(data)]
    foreign = write_folder(tmp_path / "foreign")
    with pytest.raises(ValueError, match="prepare it again with --weights of this model"):
        customize(plan_of("lora", steps=1, batch=8), work_of(images, out, model, regularisation=(foreign,)))


def test_what_cannot_be_customized_is_refused(model: Path, images: Path, tmp_path: Path) -> None:
    lora, full = plan_of("lora", steps=1, batch=8), plan_of("full", steps=1, batch=8)
    out, three = tmp_path / "look.safetensors", tmp_path / "three"
    three.mkdir()
    with pytest.raises(ValueError, match="check the spelling"):
        customize(lora, work_of(tmp_path / "nowhere", out, model))
    with pytest.raises(ValueError, match="holds no video and no picture"):
        customize(lora, work_of(three, out, model))
    for number in range(3):
        (three / f"{number}.png").write_bytes((images / f"{number:02d}.png").read_bytes())
    with pytest.raises(ValueError, match="3 pictures were given.*give at least 4"):
        customize(lora, work_of(three, out, model))
    (three / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match="only 3 of the pictures can be read.*give at least 4"):
        customize(lora, work_of(three, out, model))
    with pytest.raises(ValueError, match="name one of tiny or a folder"):
        customize(lora, work_of(images, out, tmp_path / "no model"))
    with pytest.raises(ValueError, match="let it end in .safetensors"):
        customize(lora, work_of(images, tmp_path / "look", model))
    with pytest.raises(ValueError, match="name a folder"):
        customize(full, work_of(images, out, model))
    with pytest.raises(ValueError, match="it would be lost; name another folder"):
        customize(full, work_of(images, model, model))
    with pytest.raises(ValueError, match="give at most 15, or fine-tune all weights"):
        customize(replace(lora, lora=LoraConfig(rank=16)), work_of(images, out, model))
    with pytest.raises(ValueError, match="give a batch of 8, or a multiple of it"):
        customize(replace(lora, fit=replace(lora.fit, batch=12)), work_of(images, out, model))
    with pytest.raises(ValueError, match="give an even number"):
        plan_of("lora", steps=1, batch=7)
    with pytest.raises(ValueError, match="give 1 or more, or prepared data"):
        work_of(images, out, model, clips=0)
    assert not out.exists()
