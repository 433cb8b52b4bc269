"""The parts of the training: what a batch holds, what a loss measures, the whole recipe in small."""

import argparse
import json
import logging
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from parts import encoder_of
from PIL import Image
from shard_folder import write_folder

from gen1_core.checkpoints.files import read_file
from gen1_core.content.tokenizer import Tokenizer
from gen1_core.diffusion.condition import Condition
from gen1_core.diffusion.schedule import Schedule
from gen1_core.evaluation.methods import load_unstructured
from gen1_core.gen1 import Diffusion
from gen1_core.loading import load_gen1
from gen1_core.metrics import psnr
from gen1_core.models.autoencoder import Autoencoder, AutoencoderConfig
from gen1_core.models.unet import UNetConfig
from gen1_core.recipes import tiny
from gen1_core.recipes.tiny import TINY, add_arguments, main, run_from, shards_from, smoke
from gen1_core.structure.blur import level_channels
from gen1_core.training.autoencoder import AutoencoderPlan, draw_images, normalised
from gen1_core.training.bank import Bank, BankConfig, join, load_bank, render_bank, shard_path, write_shard
from gen1_core.training.clip import CLIPPlan, add_foreign, caption_words, contrastive_losses, read_captions
from gen1_core.training.depth import DepthPlan, aligned, augment, depth_losses
from gen1_core.training.draws import WHOLE, Share
from gen1_core.training.latents import LatentBank, encode_shards, fingerprint, load_latents
from gen1_core.training.loop import generator_at
from gen1_core.training.prepare.networks import NetworkFiles
from gen1_core.training.prepare.run import prepare
from gen1_core.training.prepare.sources import PrepareConfig
from gen1_core.training.recipe import Recipe, Work, load_autoencoder, recipe_with_steps, run
from gen1_core.training.sheets import write_sheet
from gen1_core.training.stages import Fit, Rate, Stage
from gen1_core.training.state import read_records
from gen1_core.training.unet import UNetPlan, draw_batch, from_stage, read_batch, unet_task, until_stage, with_steps

CPU = torch.device("cpu")
FIT = Fit(steps=10, batch=40, rate=Rate(peak=1e-3))
SMALL_BANK = BankConfig(name="train", seed=3, shards=2, clips=1, frames=2, size=32, supersample=1, captions=2)
DETAIL = Stage(name="x", steps=4, batch=64, image_fraction=0.0, structure="detail", rate=Rate(peak=1e-3))


TINIEST = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_scale=1.0)


def tiny_recipe() -> Recipe:
    """The recipe with a bank and an autoencoder that take no time."""
    fit = Fit(steps=2, batch=2, rate=Rate(peak=1e-2, warmup=0))
    plan = AutoencoderPlan(fit=fit, crop=16, full_batch=1)
    return replace(
        TINY,
        bank=SMALL_BANK,
        held_out=replace(SMALL_BANK, name="held_out", seed=4),
        autoencoder=TINIEST,
        autoencoder_plan=plan,
        decoder_plan=replace(plan, pooled_weight=2.0),
    )


def random_bank(clips: int = 3) -> Bank:
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)  # noqa: E731
    return Bank(
        rgb=draw(clips, 2, 2, 3, 32, 32),
        depth=draw(clips, 2, 1, 32, 32),
        captions=[[["a red castle", "castle"], ["a blue car", "cars of ice"]]] * clips,
        looks=[["red", "blue"]] * clips,
        families=["castle", "car", "castle"][:clips],
    )


def numbered_latents(clips: int = 5, frames: int = 8) -> LatentBank:
    """Latents whose values say where they come from: clip, style, frame, level."""
    grid = lambda *sizes: torch.meshgrid(*(torch.arange(s) for s in sizes), indexing="ij")  # noqa: E731
    m, k, f = grid(clips, 2, frames)
    number = (100 * m + 10 * k + f).half()
    n, level, g = grid(clips, 2, frames)
    depth = (1000 * level + 100 * n + g).half()
    return LatentBank(
        rgb=number[:, :, None, :, None, None].repeat(1, 1, 4, 1, 2, 2),
        depth=depth[:, :, None, :, None, None].repeat(1, 1, 4, 1, 2, 2),
        level=torch.arange(clips) % 7 + 1,
        images=(number[..., None] + 1).repeat(1, 1, 1, 16),
        texts=torch.randn(clips, 2, 2, 16).half(),
        flat=torch.full((4, 2, 2), -7.0).half(),
    )


def test_a_shard_is_a_function_of_its_seed_and_number(tmp_path: Path) -> None:
    render_bank(SMALL_BANK, tmp_path / "a", shards=range(2), device=CPU)
    render_bank(SMALL_BANK, tmp_path / "b", shards=[1], device=CPU)
    a, b = (
        load_bank(SMALL_BANK, tmp_path / "a", shards=[1]),
        load_bank(SMALL_BANK, tmp_path / "b", shards=[1]),
    )
    assert torch.equal(a.rgb, b.rgb) and torch.equal(a.depth, b.depth) and a.captions == b.captions
    both = load_bank(SMALL_BANK, tmp_path / "a", shards=range(2))
    assert both.rgb.shape == (2, 2, 2, 3, 32, 32) and both.families[0] != both.families[1]
    assert not torch.equal(both.rgb[:, 0], both.rgb[:, 1]), "two styles of a clip look the same"
    assert int(both.depth.amax()) == 255

    before = shard_path(tmp_path / "a", SMALL_BANK, 0).stat().st_mtime_ns
    render_bank(SMALL_BANK, tmp_path / "a", shards=range(2), device=CPU)
    assert shard_path(tmp_path / "a", SMALL_BANK, 0).stat().st_mtime_ns == before


def test_missing_or_foreign_shards_are_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="run the part `bank` first"):
        load_bank(SMALL_BANK, tmp_path, shards=[0])
    render_bank(SMALL_BANK, tmp_path, shards=[0], device=CPU)
    with pytest.raises(ValueError, match="remove it or use another folder"):
        load_bank(replace(SMALL_BANK, seed=4), tmp_path, shards=[0])


def test_a_shard_that_cannot_be_written_leaves_nothing_behind(tmp_path: Path) -> None:
    path = shard_path(tmp_path, SMALL_BANK, 0)
    path.mkdir()
    with pytest.raises(ValueError, match="free some space"):
        write_shard(path, SMALL_BANK, random_bank())
    assert list(tmp_path.iterdir()) == [path]


def test_autoencoder_batches_mix_frames_and_depth_and_end_with_whole_frames() -> None:
    bank, plan = random_bank(), AutoencoderPlan(fit=FIT, crop=16, full_batch=2)
    images = draw_images(bank, plan, 0, generator_at(0, "a", 0))
    assert images.shape == (40, 3, 16, 16) and images.min() >= -1 and images.max() <= 1
    grey = (images == images[:, :1]).flatten(1).all(dim=1)
    assert 1 <= int(grey.sum()) <= 20
    assert torch.equal(images, draw_images(bank, plan, 0, generator_at(0, "a", 0)))
    assert draw_images(bank, plan, 9, generator_at(0, "a", 9)).shape == (2, 3, 32, 32)


def test_measured_mean_and_scale_normalise_the_latents() -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4, latent_scale=1.0)
    bank = random_bank()
    measured = normalised(Autoencoder(config), bank, frames=64, seed=0)
    torch.manual_seed(0)
    latents = Autoencoder(measured).encode(bank.rgb.flatten(0, 2).float() / 127.5 - 1).detach()
    torch.testing.assert_close(latents.mean(dim=(0, 2, 3)), torch.zeros(4), atol=0.2, rtol=0)
    assert float(latents.std()) == pytest.approx(1, abs=0.2) and measured.latent_scale != 1


def test_the_decoder_learns_alone_and_latents_stay_valid(tmp_path: Path) -> None:
    work = Work(folder=tmp_path, shards=range(2), minutes=1e9, device=CPU)
    run(tiny_recipe(), ["bank", "autoencoder"], work)
    before = load_autoencoder(work)
    run(tiny_recipe(), ["decoder"], work)
    after = load_autoencoder(work)
    same = {name: torch.equal(value, after.state_dict()[name]) for name, value in before.state_dict().items()}
    decoder = {name for name in same if name.startswith(("decoder.", "post_quant_conv."))}
    assert decoder and all(same[name] for name in same if name not in decoder)
    assert not same["decoder.conv_out.weight"] and not same["post_quant_conv.bias"]
    assert after.config == before.config != TINIEST and fingerprint(after) == fingerprint(before)
    with torch.no_grad():
        after.quant_conv.bias.add_(1)
    assert fingerprint(after) != fingerprint(before)

    metadata = read_file(tmp_path / "weights" / "autoencoder.safetensors").metadata
    assert json.loads(metadata["recipe"])["plan"]["pooled_weight"] == 2
    assert json.loads(metadata["recipe_autoencoder"])["plan"]["pooled_weight"] == 1

    run(tiny_recipe(), ["autoencoder", "decoder"], work)  # both are finished: exported again from their checkpoints
    again = load_autoencoder(work).state_dict()
    after.quant_conv.load_state_dict(before.quant_conv.state_dict())
    assert all(torch.equal(value, again[name]) for name, value in after.state_dict().items())


def test_a_decoder_of_another_encoder_is_refused(tmp_path: Path) -> None:
    work = Work(folder=tmp_path, shards=range(1), minutes=1e9, device=CPU)
    run(tiny_recipe(), ["bank", "autoencoder", "decoder"], work)
    longer = recipe_with_steps(tiny_recipe(), "autoencoder", 3)
    with pytest.raises(ValueError, match="remove the folder .*decoder to train it anew"):
        run(longer, ["autoencoder", "decoder"], work)


def test_the_chain_ends_at_a_part_that_is_not_finished(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    work = Work(folder=tmp_path, shards=range(1), minutes=0.0, device=CPU)
    run(tiny_recipe(), ["bank", "autoencoder", "clip"], work)
    assert "autoencoder is not finished; the same command goes on" in caplog.text
    assert (tmp_path / "weights" / "autoencoder.safetensors").exists() and not (tmp_path / "clip").exists()


@pytest.mark.parametrize(
    ("arguments", "advice"),
    [
        ("all --steps 3", "name a part or leave --steps out"),
        ("bank --steps 3", "give steps to one that is trained"),
        ("unet --shards 3:3", "give first:last within 0:32"),
        ("unet --shards 0:33", "give first:last within 0:32"),
        ("unet --shards 3", "give first:last within 0:32"),
        ("bank --device warp", "give cpu or one that is there"),
        ("bank --threads 0", "give 1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(tmp_path: Path, arguments: str, advice: str) -> None:
    parser = argparse.ArgumentParser()
    add_arguments(parser)
    with pytest.raises(ValueError, match=advice):
        run_from(parser.parse_args([*arguments.split(), "--folder", str(tmp_path)]))
    assert list(tmp_path.iterdir()) == []


def test_shards_are_first_and_last() -> None:
    assert shards_from("3:5", 32) == range(3, 5) and shards_from(":", 32) == range(32)
    assert shards_from("3:", 32) == range(3, 32) and shards_from(":3", 32) == range(3)


def test_equal_looks_are_positives_of_each_other() -> None:
    captions = read_captions(random_bank(), Tokenizer.embedded(32))
    assert captions.looks[0, 0] == captions.looks[2, 0] != captions.looks[1, 0]
    assert captions.texts[0, 0, 0] == captions.texts[1, 0, 0] != captions.texts[0, 0, 1]
    assert caption_words(random_bank()) == "blue car cars castle ice red"
    embeddings = torch.eye(3)[torch.tensor([0, 1, 0])]
    same = torch.tensor([[1, 0, 1], [0, 1, 0], [1, 0, 1]]).bool()
    right = contrastive_losses(embeddings, embeddings, same, scale=torch.tensor(50.0))
    naive = contrastive_losses(embeddings, embeddings, torch.eye(3).bool(), scale=torch.tensor(50.0))
    torch.testing.assert_close(right["loss"], naive["loss"])
    assert float(right["hits"]) == 1
    wrong = contrastive_losses(embeddings, embeddings.roll(1, 0), same, scale=torch.tensor(50.0))
    assert float(wrong["loss"]) > 10


def test_foreign_pieces_come_in_and_the_text_stays_whole() -> None:
    tokenizer = Tokenizer.embedded(32)
    captions = read_captions(random_bank(), tokenizer)
    tokens = captions.tokens[:, 0, 0]
    plan = CLIPPlan(fit=FIT, foreign_share=1.0)
    changed = add_foreign(tokens, captions.foreign, plan, generator_at(0, "t", 0))
    for before, after in zip(tokens, changed, strict=True):
        kept = [t for t in after.tolist() if t not in set(captions.foreign.tolist())]
        assert [t for t in kept if t] == [t for t in before.tolist() if t]
        assert int((after > 0).sum()) > int((before > 0).sum())
    untouched = add_foreign(tokens, captions.foreign, replace(plan, foreign_share=0.0), generator_at(0, "t", 0))
    assert torch.equal(untouched, tokens)


def test_depth_loss_and_augmentation() -> None:
    plan = DepthPlan(fit=FIT)
    depth = torch.rand(2, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    assert float(depth_losses(depth, depth, plan)["loss"]) == 0
    shifted = depth_losses(depth + 0.25, depth, plan)
    torch.testing.assert_close(shifted["loss"], torch.tensor(0.25))
    assert float(depth_losses(depth.flip(-1), depth, plan)["loss"]) > 0.5
    torch.testing.assert_close(aligned(depth * -3 + 1, depth), depth)
    images = torch.rand(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    other = augment(images, plan, generator_at(0, "d", 0))
    assert other.shape == images.shape and other.min() >= 0 and other.max() <= 1
    assert not torch.allclose(other, images, atol=0.05)


def test_encoded_shards_belong_to_their_weights(tmp_path: Path) -> None:
    torch.manual_seed(0)
    config = AutoencoderConfig(block_out_channels=(8, 8, 8, 8), layers_per_block=1, norm_num_groups=4)
    autoencoder = Autoencoder(config).eval()

    class Mean:
        """Mean colours stand for an embedding."""

        dim, kind, scaling = 3, "mean", "raw"

        def encode_images(self, images):
            return images.mean(dim=(2, 3))

        def encode_texts(self, texts):
            return torch.tensor([[float(len(text))] * 3 for text in texts])

        def unfamiliar(self, prompt: str) -> list[str]:
            return []

    render_bank(SMALL_BANK, tmp_path, shards=range(2), device=CPU)
    weights = fingerprint(autoencoder)
    folder = tmp_path / "latents"
    encode_shards(SMALL_BANK, tmp_path, folder, autoencoder, Mean(), shards=range(2), weights=weights)
    latents = load_latents(SMALL_BANK, folder, shards=range(2), weights=weights)
    bank = load_bank(SMALL_BANK, tmp_path, shards=range(2))
    with torch.no_grad():
        frame = autoencoder.encode(bank.rgb[1, 1, 1][None].float() / 127.5 - 1)
        full = autoencoder.encode(bank.depth[1, 1][None].float().repeat(1, 3, 1, 1) / 127.5 - 1)
    torch.testing.assert_close(latents.rgb[1, 1, :, 1][None].float(), frame, atol=1e-3, rtol=1e-2)
    torch.testing.assert_close(latents.depth[1, 0, :, 1][None].float(), full, atol=1e-3, rtol=1e-2)
    assert not torch.allclose(latents.depth[1, 1].float(), latents.depth[1, 0].float(), atol=1e-3)
    assert latents.texts[1, 0, 1, 0] == len(bank.captions[1][0][1])
    torch.testing.assert_close(
        latents.images[0, 1, 1].float(),
        bank.rgb[0, 1, 1].float().mean(dim=(1, 2)) / 255,
        atol=1e-3,
        rtol=1e-2,
    )
    with torch.no_grad():
        autoencoder.quant_conv.bias.add_(1)
    assert fingerprint(autoencoder) != weights
    with pytest.raises(ValueError, match="run the part `encode` first"):
        load_latents(SMALL_BANK, folder, shards=[0], weights=fingerprint(autoencoder))


def drawn(
    latents: LatentBank, stage: Stage, *, dropout: float = 0.0, share: Share = WHOLE, frames: int = 8
) -> tuple[torch.Tensor, Condition]:
    """The batch of step 0 of one stage."""
    plan = UNetPlan(fit=replace(FIT, steps=stage.steps), stages=(stage,), content_dropout=dropout)
    return read_batch(draw_batch([latents], plan, 0, generator_at(0, "u", 0), frames=frames), share, CPU)


def test_unet_batches_keep_clip_style_frame_and_depth_together() -> None:
    latents = numbered_latents()
    clean, condition = drawn(latents, DETAIL)
    assert clean.shape == (8, 4, 8, 2, 2) and not condition.image
    clip, style = clean[:, 0, 0, 0, 0] // 100, clean[:, 0, 0, 0, 0] % 100 // 10
    torch.testing.assert_close(condition.structure[:, 0, :, 0, 0], 100 * clip[:, None] + torch.arange(8.0))
    shown = condition.content[:, 0, 0, 0] - 1
    torch.testing.assert_close(shown // 10, 10 * clip + style)
    torch.testing.assert_close(condition.structure[:, 4:], level_channels(0, condition.structure[:, :4]))

    images = replace(DETAIL, image_fraction=1.0)
    clean, condition = drawn(latents, images)
    assert clean.shape == (64, 4, 1, 2, 2) and condition.image
    number = clean[:, 0, 0, 0, 0]
    torch.testing.assert_close(condition.structure[:, 0, 0, 0, 0], number - 10 * (number % 100 // 10))
    assert len(set((number % 10).tolist())) == 8


def test_a_network_of_fewer_frames_sees_parts_of_the_clips_and_shares_are_rows() -> None:
    latents = numbered_latents()
    clean, condition = drawn(latents, DETAIL, frames=4)
    assert clean.shape == (16, 4, 4, 2, 2)
    first = clean[:, 0, 0, 0, 0] % 10
    torch.testing.assert_close(clean[:, 0, :, 0, 0] % 10, first[:, None] + torch.arange(4.0))
    torch.testing.assert_close(condition.structure[:, 0, :, 0, 0] % 10, clean[:, 0, :, 0, 0] % 10)
    assert set(first.tolist()) == {0, 1, 2, 3, 4}
    for index in range(2):
        part, told = drawn(latents, DETAIL, frames=4, share=Share(index=index, count=2))
        assert torch.equal(part, clean[index::2]) and torch.equal(told.content, condition.content[index::2])
    with pytest.raises(ValueError, match="train a network of fewer frames"):
        drawn(latents, DETAIL, frames=9)


def test_stages_decide_structure_and_content_is_dropped() -> None:
    latents = numbered_latents()
    levels = replace(DETAIL, structure="levels", batch=8 * 400)
    _, condition = drawn(latents, levels, dropout=0.1)
    encoded = condition.structure[:, 0, 0, 0, 0]
    detail = encoded < 1000
    assert 0.05 < float(detail.float().mean()) < 0.22  # one in eight
    clip = (encoded % 1000 / 100).round()
    level = torch.where(detail, 0, latents.level[clip.long()])
    torch.testing.assert_close(condition.structure[:, 4:], level_channels(level, condition.structure[:, :4]))
    dropped = (condition.content == 0).flatten(1).all(dim=1)
    assert 0.05 < float(dropped.float().mean()) < 0.16 and torch.equal(condition.null, 0 * condition.null)

    _, condition = drawn(latents, replace(DETAIL, structure="none"))
    assert bool((condition.structure[:, :4] == -7).all())
    torch.testing.assert_close(condition.structure[:, 4:], level_channels(7, condition.structure[:, :4]))


def test_image_stage_leaves_the_temporal_layers_alone() -> None:
    stages = (
        replace(DETAIL, image_fraction=1.0, steps=2, batch=8),
        replace(DETAIL, steps=2, batch=8, rate=Rate(peak=5e-4, warmup=0)),
    )
    plan = UNetPlan(fit=replace(FIT, steps=4), stages=stages)
    config = UNetConfig(
        block_out_channels=(16,), layers_per_block=1, attention=(True,), num_attention_heads=1,
        cross_attention_dim=16, norm_num_groups=4, frames=8,
    )  # fmt: skip
    diffusion = Diffusion(working_size=32, prediction="v", schedule=Schedule(zero_terminal_snr=True))
    task = unet_task(config, plan, diffusion, numbered_latents(), evaluate=lambda m, s: {}, seed=0, device=CPU)
    got = []
    for step in (1, 2):
        task.model.zero_grad(set_to_none=True)
        losses = task.losses(step, generator_at(0, "unet", step))
        losses["loss"].backward()
        got.append({name for name, p in task.model.named_parameters() if p.grad is not None and "temporal" in name})
        assert torch.isfinite(losses["loss"])
    assert not got[0] and got[1]
    assert task.rate(0) < task.rate(1) and task.rate(2) == pytest.approx(5e-4)


def test_a_plan_can_begin_at_a_later_stage() -> None:
    plan = TINY.unet_plan
    assert from_stage(plan, "images") == replace(
        plan, stages=(replace(plan.stages[0], rate=replace(plan.stages[0].rate, warmup=100)), *plan.stages[1:])
    )
    later = from_stage(plan, "structure")
    assert [stage.name for stage in later.stages] == ["structure", "levels"]
    assert later.fit.steps == sum(stage.steps for stage in later.stages) and later.stages[1] == plan.stages[3]
    peak = plan.stages[2].rate.peak
    assert later.stages[0].rate.at(0, later.fit.steps) < peak / 50 and plan.stages[2].rate.at(0, 9) == peak
    assert with_steps(from_stage(plan, "levels"), 20).stages[0].steps == 20
    with pytest.raises(ValueError, match="choose one of images, temporal, structure, levels"):
        from_stage(plan, "blur")


def test_a_plan_can_end_at_an_earlier_stage() -> None:
    plan = TINY.unet_plan
    assert until_stage(plan, "levels") == plan
    earlier = until_stage(plan, "temporal")
    assert earlier.stages == plan.stages[:2]
    assert earlier.fit.steps == plan.stages[0].steps + plan.stages[1].steps
    alone = with_steps(until_stage(from_stage(plan, "temporal"), "temporal"), 300)
    assert [(stage.name, stage.steps, stage.structure, stage.keep) for stage in alone.stages] == [
        ("temporal", 300, "none", True)
    ]
    with pytest.raises(ValueError, match="choose one of structure, levels"):
        until_stage(from_stage(plan, "structure"), "temporal")


def test_steps_can_be_given_for_each_part() -> None:
    shorter = recipe_with_steps(TINY, "unet", 600)
    assert shorter.unet_plan.fit.steps == 600 == sum(stage.steps for stage in shorter.unet_plan.stages)
    assert with_steps(TINY.unet_plan, TINY.unet_plan.fit.steps) == TINY.unet_plan
    assert recipe_with_steps(TINY, "depth", 7).depth_plan.fit.steps == 7
    with pytest.raises(ValueError, match="give steps to one that is trained"):
        recipe_with_steps(TINY, "bank", 7)
    with pytest.raises(ValueError, match="give them different seeds"):
        replace(TINY, held_out=TINY.bank)
    with pytest.raises(ValueError, match="give the sum"):
        replace(TINY.unet_plan, fit=replace(TINY.unet_plan.fit, steps=1))
    assert smoke(TINY).unet == TINY.unet


def test_sheets_and_psnr(tmp_path: Path) -> None:
    red = torch.tensor([1.0, 0, 0])[None, :, None, None].expand(2, 3, 4, 5)
    write_sheet(tmp_path / "sheet.png", [red, torch.full((2, 1, 4, 5), 0.5)])
    with Image.open(tmp_path / "sheet.png") as picture:
        assert picture.size == (10, 8)
        assert picture.getpixel((0, 7)) == (255, 0, 0) and picture.getpixel((9, 0)) == (128, 128, 128)
    assert psnr(torch.full((1, 3, 4, 4), 0.5), torch.full((1, 3, 4, 4), 0.6)) == pytest.approx(20, abs=1e-3)
    assert join([random_bank(1), random_bank(2)]).rgb.shape[0] == 3


@pytest.mark.slow
def test_the_whole_recipe_runs_and_resumes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Networks of their real widths; clips of half the size, a quarter of the time."""
    half = replace(TINY, bank=replace(TINY.bank, size=64), held_out=replace(TINY.held_out, size=64))
    monkeypatch.setattr(tiny, "TINY", half)
    run = ["all", "--smoke", "--folder", str(tmp_path), "--threads", "1"]
    main(run)
    names = {path.stem for path in (tmp_path / "weights").glob("*.safetensors")}
    assert names == {"autoencoder", "clip", "depth", "prior", "unet"}
    assert sum(path.stat().st_size for path in (tmp_path / "weights").iterdir()) < 32e6

    unet = read_file(tmp_path / "weights" / "unet.safetensors")
    assert json.loads(unet.metadata["recipe"])["finished"] is True
    assert next(iter(unet.tensors.values())).dtype == torch.float16
    gen1 = load_gen1(tmp_path / "weights")
    words = read_file(tmp_path / "weights" / "clip.safetensors").metadata["words"].split()
    assert encoder_of(gen1).unfamiliar(words[0]) == [] and gen1.diffusion == TINY.diffusion
    assert [r["step"] for r in read_records(tmp_path / "unet" / "log.jsonl") if "evaluation" in r] == [8]
    assert (tmp_path / "unet" / "sheet-000008.png").exists()
    kept = read_file(tmp_path / "unet" / "stage-temporal.safetensors")
    assert kept.kind == "unet" and json.loads(kept.metadata["recipe"])["stage"] == "temporal"
    main(run)
    assert [r["step"] for r in read_records(tmp_path / "unet" / "log.jsonl") if "evaluation" in r] == [8]

    data, second, third = (tmp_path / name for name in ("data", "second", "third"))
    prepare(
        ["world:2"], data, PrepareConfig(size=64, frames=16, stride=1), NetworkFiles(model=str(tmp_path / "weights"))
    )
    for name in ("bank", "latents"):
        shutil.copytree(tmp_path / name, second / name)
        shutil.copytree(tmp_path / name, third / name)
    more = ["unet", "--smoke", "--folder", str(second), "--from", str(tmp_path / "weights"), "--threads", "1"]
    with pytest.raises(SystemExit):
        main([*more, "--data", str(write_folder(tmp_path / "foreign"))])
    assert "foreign was encoded with another autoencoder and another clip" in capsys.readouterr().err
    assert not (second / "unet").exists()
    main([*more, "--data", str(data)])
    assert json.loads(read_file(second / "weights" / "unet.safetensors").metadata["recipe"])["finished"] is True

    # The video model without structure, made again from weights that have one.
    video = ["--folder", str(third), "--stage", "temporal", "--until", "temporal", "--steps", "1"]
    main([*more, *video])
    assert [r["step"] for r in read_records(third / "unet" / "log.jsonl") if "evaluation" in r] == [1]
    unstructured = load_unstructured(gen1, third / "unet" / "stage-temporal.safetensors")
    assert unstructured.unet.state_dict().keys() == gen1.unet.state_dict().keys()
