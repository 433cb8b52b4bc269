"""The U-Net as public files compose it, each piece against diffusers: frames are the batch of its image model."""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import fixture, nested
from diffusers import UNet2DConditionModel, UNetMotionModel
from diffusers.loaders.single_file_utils import convert_animatediff_checkpoint_to_diffusers
from einops import repeat
from models.references import adapter, image_unet, inputs, motion_unet, randomise, run_image, run_motion, set_scales
from parts import relative_error
from torch import Tensor

from gen1_core.checkpoints.adapters import attention_for_unet, read_adapter
from gen1_core.checkpoints.files import load_module
from gen1_core.checkpoints.motion import motion_from, with_motion
from gen1_core.models.motion import MotionConfig
from gen1_core.models.unet import Residuals, SpaceTimeUNet, UNetConfig

FULL_SIZE = UNetConfig(in_channels=4, temporal=False)
SD1 = replace(FULL_SIZE, block_out_channels=(32, 64, 128, 128), cross_attention_dim=192)
SD2 = replace(SD1, block_out_channels=(64, 128, 128), attention=(True, True, False), num_attention_heads=(1, 2, 4))
SD2 = replace(SD2, use_linear_projection=True, layers_per_block=1)
MIXED = replace(SD1, block_out_channels=(32, 64, 64), attention=(True, False, True), layers_per_block=1)

MODULES = ("mm_sd_v15", "mm_sd_v15_v2", "v3_sd15_mm", "animatelcm_sd15_t2v", "long_animatediff_64")
FRAMES = {"mm_sd_v15": 24, "mm_sd_v15_v2": 32, "v3_sd15_mm": 32, "animatelcm_sd15_t2v": 64, "long_animatediff_64": 64}
PATH = Path("weights.safetensors")
ADAPTERS = ("ip_adapter_sd15", "ip_adapter_plus_sd15")
CPU = torch.device("cpu")


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What the U-Net reads of a picture, without the null that only guidance needs."""

    tokens: Tensor
    scales: tuple[float, ...] = (1.0,)


def ours_of(config: UNetConfig, tensors: dict[str, Tensor]) -> SpaceTimeUNet:
    return load_module(lambda: SpaceTimeUNet(config), tensors, device=CPU, dtype=torch.float32, path=PATH)


def image_pair(config: UNetConfig) -> tuple[SpaceTimeUNet, UNet2DConditionModel]:
    """An image model of both, which share the weights."""
    with torch.device("meta"):
        theirs, ours = image_unet(config), SpaceTimeUNet(config)
    randomise(theirs.to_empty(device="cpu"))
    ours.load_state_dict(theirs.state_dict(), strict=True, assign=True)
    return ours.eval(), theirs


def video_pair(name: str, base: UNetConfig = SD1, *, small: bool = True) -> tuple[SpaceTimeUNet, UNetMotionModel]:
    """An image model and a file of motion modules, renamed by us and by diffusers; both share the weights."""
    file = fixture(name, small=small)
    modules, config = motion_of(file, base)
    with torch.device("meta"):
        image, ours = image_unet(base), SpaceTimeUNet(config)
        theirs = motion_unet(image, adapter(base, config.motion or MotionConfig()), load_weights=False)
    randomise(image.to_empty(device="cpu"))
    theirs.load_state_dict({**image.state_dict(), **converted(file, modules)}, strict=True, assign=True)
    ours.load_state_dict({**image.state_dict(), **modules}, strict=True, assign=True)
    return ours.eval(), theirs.eval()


def motion_of(file: dict[str, Tensor], base: UNetConfig) -> tuple[dict[str, Tensor], UNetConfig]:
    """Modules under our names, normalised as diffusers does it."""
    modules, motion = motion_from(file, PATH)
    return modules, with_motion(base, modules, replace(motion, joint_norm=True), path=PATH)


def converted(file: dict[str, Tensor], modules: dict[str, Tensor]) -> dict[str, Tensor]:
    """The file as diffusers renames it; positions, which it computes, are the file's."""
    positions = {key: value for key, value in modules.items() if key.endswith(".pe")}
    return {**convert_animatediff_checkpoint_to_diffusers(file), **positions}


def report(text: str) -> None:
    """Figures for whoever runs with ``-s`` or ``-rP``."""
    sys.stdout.write(f"relative error {text}\n")


def check_video(ours: SpaceTimeUNet, theirs: UNetMotionModel, *, frames: int, size: int = 8) -> None:
    x, timestep, content = inputs(ours.config, frames=frames, size=size)
    out = ours(x, timestep, content)
    error = relative_error(out, run_motion(theirs, x, timestep, content))
    part = relative_error(ours(x, timestep, content, image=True), out)
    report(f"{error:.1e}, motion modules change {part:.2f}")
    assert error <= 1e-5
    assert part > 0.01


@torch.no_grad()
@pytest.mark.parametrize("name", MODULES)
def test_motion_modules_equal_diffusers(name: str) -> None:
    ours, theirs = video_pair(name)
    assert ours.config.longest == FRAMES[name]
    check_video(ours, theirs, frames=4)


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", ["mm_sd_v15", "mm_sd_v15_v2", "v3_sd15_mm"])
def test_motion_modules_equal_diffusers_at_full_size(name: str) -> None:
    check_video(*video_pair(name, FULL_SIZE, small=False), frames=4)


@torch.no_grad()
def test_diffusers_puts_the_same_parts_together() -> None:
    """Its own way from an image model and a motion adapter, without sharing anything but the files."""
    file = fixture("mm_sd_v15_v2")
    modules, config = motion_of(file, SD1)
    image, modular = image_unet(SD1), adapter(SD1, config.motion or MotionConfig())
    randomise(image)
    modular.load_state_dict(converted(file, modules), strict=True)
    theirs = motion_unet(image, modular, load_weights=True).eval()
    check_video(ours_of(config, {**image.state_dict(), **modules}), theirs, frames=3)


def with_pictures(
    ours: SpaceTimeUNet,
    theirs: UNet2DConditionModel | UNetMotionModel,
    names: Sequence[str],
    *,
    small: bool = True,
) -> tuple[SpaceTimeUNet, list[Tensor]]:
    """Both with these IP-Adapter files, and what diffusers' own projections make of random embeddings."""
    files = [fixture(name, seed=seed, small=small) for seed, name in enumerate(names)]
    theirs._load_ip_adapter_weights([nested(file) for file in files], low_cpu_mem_usage=False)
    config = replace(ours.config, picture_adapters=len(files))
    tensors = ours.state_dict()
    for index, file in enumerate(files):
        attention = attention_for_unet(read_adapter(file, path=PATH), config, index=index, path=PATH)
        tensors.update({name: tensor.float() for name, tensor in attention.items()})
    generator = torch.Generator().manual_seed(5)
    # The plain adapter reads one embedding, the plus adapter a grid of them; here of 3 x 3.
    plain = [file["image_proj.proj.weight"].shape[1:] for file in files if "image_proj.proj.weight" in file]
    plus = [(9, *file["image_proj.proj_in.weight"].shape[1:]) for file in files if "image_proj.latents" in file]
    with torch.device("meta"):
        ours = SpaceTimeUNet(config).eval()
    ours.load_state_dict(tensors, strict=True, assign=True)
    return ours, [torch.randn(2, 1, *shape, generator=generator) for shape in [*plain, *plus]]


def pictures_of(
    theirs: UNet2DConditionModel | UNetMotionModel, embeddings: Sequence[Tensor], scales: Sequence[Sequence[float]]
) -> list[Picture]:
    """The tokens that diffusers' projections make, as our U-Net takes them."""
    tokens = theirs.encoder_hid_proj(list(embeddings))
    return [Picture(tokens=t, scales=tuple(s)) for t, s in zip(tokens, scales, strict=True)]


def per_layer(config: UNetConfig, seed: int) -> list[float]:
    """A scale of its own for every cross-attention, some of them 0."""
    count = sum(config.cross_attentions)
    scales = (torch.rand(count, generator=torch.Generator().manual_seed(seed)) + 0.3).tolist()
    return [0.0 if place % 5 == 4 else scale for place, scale in enumerate(scales)]


@torch.no_grad()
@pytest.mark.parametrize("names", [ADAPTERS[:1], ADAPTERS[1:], ADAPTERS], ids=["4 tokens", "16 tokens", "both"])
def test_ip_adapters_in_a_video_equal_diffusers(names: tuple[str, ...]) -> None:
    ours, theirs = video_pair("v3_sd15_mm")
    ours, embeddings = with_pictures(ours, theirs, names)
    scales = [per_layer(ours.config, seed) for seed in range(len(names))]
    set_scales(theirs, scales)
    x, timestep, content = inputs(ours.config, frames=3)
    expected = run_motion(theirs, x, timestep, content, added_cond_kwargs={"image_embeds": list(embeddings)})
    pictures = pictures_of(theirs, embeddings, scales)
    assert relative_error(ours(x, timestep, content, pictures=pictures), expected) <= 1e-5
    for index in range(len(names)):
        silent = [replace(each, scales=(0.0,)) if index == i else each for i, each in enumerate(pictures)]
        assert relative_error(ours(x, timestep, content, pictures=silent), expected) > 0.01


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
def test_ip_adapters_equal_diffusers_at_full_size() -> None:
    ours, theirs = image_pair(FULL_SIZE)
    ours, embeddings = with_pictures(ours, theirs, ADAPTERS, small=False)
    scales = [per_layer(ours.config, seed) for seed in range(2)]
    set_scales(theirs, scales)
    x, timestep, content = inputs(ours.config, frames=1, tokens=77)
    expected = run_image(theirs, x, timestep, content, added_cond_kwargs={"image_embeds": list(embeddings)})
    pictures = pictures_of(theirs, embeddings, scales)
    error = relative_error(ours(x, timestep, content, pictures=pictures), expected)
    for index in range(2):
        silent = [replace(each, scales=(0.0,)) if index == i else each for i, each in enumerate(pictures)]
        part = relative_error(ours(x, timestep, content, pictures=silent), expected)
        report(f"{error:.1e}, {ADAPTERS[index]} changes {part:.2f}")
        assert part > 0.01
    assert error <= 1e-5


@torch.no_grad()
def test_ip_adapter_numbers_go_down_up_middle() -> None:
    """Of each cross-attention alone: only the one of that number listens."""
    ours, theirs = image_pair(SD1)
    ours, embeddings = with_pictures(ours, theirs, ADAPTERS[:1])
    x, timestep, content = inputs(SD1, frames=1, batch=1, size=8)
    count = sum(SD1.cross_attentions)
    assert count == 16
    embeddings = [embedding[:1] for embedding in embeddings]
    for number in (0, 1, 5, 6, 14, 15):
        scales = [[float(place == number) for place in range(count)]]
        set_scales(theirs, scales)
        expected = run_image(theirs, x, timestep, content, added_cond_kwargs={"image_embeds": embeddings})
        out = ours(x, timestep, content, pictures=pictures_of(theirs, embeddings, scales))
        assert relative_error(out, expected) <= 1e-5


@torch.no_grad()
def test_one_scale_is_for_all_layers_and_each_frame_can_have_a_picture() -> None:
    ours, theirs = image_pair(SD1)
    ours, embeddings = with_pictures(ours, theirs, ADAPTERS[1:])
    x, timestep, content = inputs(SD1, frames=3, batch=1)
    tokens = torch.randn(1, 3, 16, SD1.cross_attention_dim, generator=torch.Generator().manual_seed(9))
    out = ours(x, timestep, content, pictures=[Picture(tokens=tokens, scales=(0.7,))])
    all_layers = Picture(tokens=tokens, scales=(0.7,) * sum(SD1.cross_attentions))
    torch.testing.assert_close(ours(x, timestep, content, pictures=[all_layers]), out, rtol=0, atol=0)
    for frame in range(3):
        alone = ours(x, timestep, content, pictures=[Picture(tokens=tokens[:, frame : frame + 1], scales=(0.7,))])
        assert relative_error(alone[:, :, frame], out[:, :, frame]) <= 1e-5
        assert relative_error(alone[:, :, frame - 1], out[:, :, frame - 1]) > 0.01


FULL_SIZE_2 = replace(
    FULL_SIZE, num_attention_heads=(5, 10, 20, 20), cross_attention_dim=1024, use_linear_projection=True
)
FULL_SIZES = {
    "sd1": FULL_SIZE,
    "sd2 with depth": replace(FULL_SIZE_2, in_channels=5),
    "unclip h": replace(FULL_SIZE_2, class_embedding_width=2048),
}
CONFIGS = {
    "sd1": MIXED,
    "sd2, heads per level": SD2,
    "sd2 with depth": replace(SD2, in_channels=5),
    "paper's channels": replace(SD1, in_channels=12, layers_per_block=1),
}


@torch.no_grad()
@pytest.mark.parametrize("name", CONFIGS)
def test_image_model_equals_diffusers(name: str) -> None:
    config = CONFIGS[name]
    ours, theirs = image_pair(config)
    x, timestep, content = inputs(config, frames=3, size=9)
    expected = run_image(theirs, x, timestep, content)
    assert relative_error(ours(x, timestep, content), expected) <= 1e-5
    assert relative_error(ours(x, timestep, -content), expected) > 0.01
    if config.in_channels == 5:
        x[:, 4] = -x[:, 4]
        assert relative_error(ours(x, timestep, content), expected) > 0.01


@torch.no_grad()
@pytest.mark.slow
@pytest.mark.real
@pytest.mark.parametrize("name", FULL_SIZES)
def test_image_model_equals_diffusers_at_full_size(name: str) -> None:
    config = FULL_SIZES[name]
    ours, theirs = image_pair(config)
    x, timestep, content = inputs(config, frames=2, tokens=77, batch=1)
    embedding, labels = None, {}
    if config.class_embedding_width:
        embedding = torch.randn(1, 1, config.class_embedding_width, generator=torch.Generator().manual_seed(7))
        labels = {"class_labels": repeat(embedding, "b 1 e -> (b f) e", f=2)}
    expected = run_image(theirs, x, timestep, content, **labels)
    error = relative_error(ours(x, timestep, content, embedding=embedding), expected)
    without = None if embedding is None else torch.zeros_like(embedding)
    part = relative_error(ours(x, timestep, content if labels else -content, embedding=without), expected)
    report(f"{error:.1e}, {'image embedding' if labels else 'sign of the content'} changes {part:.2f}")
    assert error <= 1e-5
    assert part > 0.01


@torch.no_grad()
@pytest.mark.parametrize("frames", [1, 3], ids=["one embedding", "one per frame"])
def test_unclip_equals_diffusers(frames: int) -> None:
    config = replace(SD2, class_embedding_width=48)
    ours, theirs = image_pair(config)
    x, timestep, content = inputs(config, frames=3)
    embedding = torch.randn(2, frames, 48, generator=torch.Generator().manual_seed(7))
    labels = repeat(embedding, "b g e -> (b g f) e", f=3 // frames)
    expected = run_image(theirs, x, timestep, content, class_labels=labels)
    assert relative_error(ours(x, timestep, content, embedding=embedding), expected) <= 1e-5
    assert relative_error(ours(x, timestep, content, embedding=torch.zeros_like(embedding)), expected) > 0.01


def maps(config: UNetConfig, rows: int, size: int) -> tuple[list[Tensor], Tensor, list[Tensor]]:
    """Random residuals of the sizes that control networks give: skips, middle, and one feature per level."""
    generator = torch.Generator().manual_seed(11)

    def random(width: int, side: int) -> Tensor:
        # As large as the maps that they are added to, which grow along a network of random weights.
        return 30 * torch.randn(rows, width, side, side, generator=generator)

    widths = config.block_out_channels
    sides = [size]
    for _ in widths[1:]:
        sides.append((sides[-1] + 1) // 2)
    skips = [random(widths[0], size)]
    for level, width in enumerate(widths):
        skips += [random(width, sides[level]) for _ in range(config.layers_per_block)]
        skips += [random(width, sides[level + 1])] if level < len(widths) - 1 else []
    return skips, random(widths[-1], sides[-1]), [random(w, side) for w, side in zip(widths, sides, strict=True)]


@torch.no_grad()
def test_residuals_of_control_networks_equal_diffusers() -> None:
    ours, theirs = image_pair(SD1)
    x, timestep, content = inputs(SD1, frames=2, size=9)
    down, middle, _ = maps(SD1, rows=4, size=9)
    expected = run_image(
        theirs, x, timestep, content, down_block_additional_residuals=down, mid_block_additional_residual=middle
    )
    whole = Residuals(down=tuple(down), middle=middle)
    assert relative_error(ours(x, timestep, content, residuals=whole), expected) <= 1e-5
    for part in (replace(whole, middle=None), replace(whole, down=())):
        assert relative_error(ours(x, timestep, content, residuals=part), expected) > 0.01


@torch.no_grad()
def test_features_of_adapters_equal_diffusers() -> None:
    ours, theirs = image_pair(SD1)
    x, timestep, content = inputs(SD1, frames=2, size=8)
    _, _, features = maps(SD1, rows=4, size=8)
    # diffusers adds in place, which would change ours too.
    copies = [feature.clone() for feature in features]
    expected = run_image(theirs, x, timestep, content, down_intrablock_additional_residuals=copies)
    out = ours(x, timestep, content, residuals=Residuals(features=tuple(features)))
    assert relative_error(out, expected) <= 1e-5
    assert relative_error(ours(x, timestep, content), expected) > 0.01


@torch.no_grad()
def test_residuals_in_a_video_equal_diffusers() -> None:
    ours, theirs = video_pair("mm_sd_v15_v2")
    x, timestep, content = inputs(SD1, frames=3)
    down, middle, _ = maps(SD1, rows=6, size=8)
    expected = run_motion(
        theirs, x, timestep, content, down_block_additional_residuals=down, mid_block_additional_residual=middle
    )
    out = ours(x, timestep, content, residuals=Residuals(down=tuple(down), middle=middle))
    assert relative_error(out, expected) <= 1e-5
    assert relative_error(ours(x, timestep, content), expected) > 0.01


@torch.no_grad()
def test_image_mode_and_one_frame_are_the_image_model() -> None:
    """To the last bit: motion modules are not run at all."""
    ours, theirs = video_pair("mm_sd_v15_v2")
    base = replace(ours.config, motion=None)
    image = ours_of(base, {k: v for k, v in ours.state_dict().items() if "motion_modules" not in k})
    x, timestep, content = inputs(base, frames=3)
    expected = image(x, timestep, content)
    torch.testing.assert_close(ours(x, timestep, content, image=True), expected, rtol=0, atol=0)
    one = x[:, :, :1]
    torch.testing.assert_close(ours(one, timestep, content), image(one, timestep, content), rtol=0, atol=0)


@torch.no_grad()
def test_the_middle_has_its_own_motion() -> None:
    """One of 21 modules, at the lowest resolution: louder in both networks, which share it, so that it is heard."""
    ours, theirs = video_pair("mm_sd_v15_v2")
    ours.get_parameter("mid_block.motion_modules.0.proj_out.weight").mul_(20)
    x, timestep, content = inputs(SD1, frames=3)
    before = ours(x, timestep, content)
    assert relative_error(before, run_motion(theirs, x, timestep, content)) <= 1e-5
    for parameter in ours.mid_block.motion_modules.parameters():
        parameter.zero_()
    assert relative_error(ours(x, timestep, content), before) > 0.01


@torch.no_grad()
def test_new_motion_modules_change_nothing() -> None:
    torch.manual_seed(0)
    model = SpaceTimeUNet(replace(MIXED, motion=MotionConfig(frames=4, middle=True))).eval()
    x, timestep, content = inputs(MIXED, frames=4)
    torch.testing.assert_close(model(x, timestep, content), model(x, timestep, content, image=True), rtol=0, atol=0)


def test_the_longest_clip_is_the_shortest_that_any_layer_allows() -> None:
    motion = MotionConfig(frames=24)
    assert FULL_SIZE.longest > 10**9
    assert replace(FULL_SIZE, motion=motion).longest == 24
    assert replace(FULL_SIZE, motion=motion, temporal=True).longest == 8


def test_a_clip_longer_than_the_positions_is_refused() -> None:
    model = SpaceTimeUNet(replace(MIXED, motion=MotionConfig(frames=2)))
    x, timestep, content = inputs(MIXED, frames=3)
    with pytest.raises(ValueError, match="go through windows of at most that length"):
        model(x, timestep, content)
    assert model(x, timestep, content, image=True).shape[2] == 3


def test_what_does_not_fit_is_refused() -> None:
    x, timestep, content = inputs(MIXED, frames=3)
    model = SpaceTimeUNet(replace(MIXED, picture_adapters=1))
    tokens = torch.randn(2, 1, 4, MIXED.cross_attention_dim)
    with pytest.raises(ValueError, match="give one for each, of scale 0"):
        model(x, timestep, content)
    for wrong in (tokens[..., 1:], tokens.repeat(1, 2, 1, 1)):
        with pytest.raises(ValueError, match="from an IP-Adapter made for this base model"):
            model(x, timestep, content, pictures=[Picture(tokens=wrong)])
    with pytest.raises(ValueError, match="give one for all, or 7"):
        model(x, timestep, content, pictures=[Picture(tokens=tokens, scales=(1.0, 2.0))])
    unclip = SpaceTimeUNet(replace(MIXED, class_embedding_width=6))
    with pytest.raises(ValueError, match="give one to unCLIP models"):
        unclip(x, timestep, content)
    with pytest.raises(ValueError, match="give one frame of it, or one for each frame"):
        unclip(x, timestep, content, embedding=torch.randn(2, 2, 6))
    plain = SpaceTimeUNet(MIXED)
    with pytest.raises(ValueError, match="to no other"):
        plain(x, timestep, content, embedding=torch.randn(2, 1, 6))
    with pytest.raises(ValueError, match="use a ControlNet made for this base model"):
        plain(x, timestep, content, residuals=Residuals(down=(torch.randn(6, 32, 8, 8),)))
    with pytest.raises(ValueError, match="use a T2I adapter made for this base model"):
        plain(x, timestep, content, residuals=Residuals(features=(torch.randn(6, 32, 8, 8),)))


@pytest.mark.parametrize(
    ("wrong", "remedy"),
    [
        ({"class_embedding_width": -1}, "0 is none"),
        ({"picture_adapters": -1}, "0 is none"),
        ({"motion": MotionConfig(heads=7)}, "choose divisors of every width"),
        ({"motion": MotionConfig(norm_num_groups=48)}, "choose divisors of every width"),
    ],
)
def test_config_refuses_what_cannot_be_built(wrong: dict, remedy: str) -> None:
    with pytest.raises(ValueError, match=remedy):
        replace(FULL_SIZE, **wrong)
