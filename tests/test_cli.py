"""The command line on a whole model of random weights: files in, files out, and every refusal."""

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import pytest
import torch
from parts import AUTOENCODER, tiny_gen1, write_model
from PIL import Image

from gen1_core.checkpoints.files import read_file, save_file
from gen1_core.cli import edit_options, main, parser
from gen1_core.loading import load_gen1
from gen1_core.structure.estimator import load_depth
from gen1_core.video.read import open_video
from gen1_core.video.write import write_video


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return write_model(tiny_gen1(), tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    """Five frames of 48x40 at 30000/1001."""
    path = tmp_path_factory.mktemp("clip") / "clip é.mp4"
    frames = torch.zeros(5, 3, 40, 48, dtype=torch.uint8)
    for number in range(5):
        frames[number, :, 10:30, 4 + 4 * number : 20 + 4 * number] = 200
    write_video(path, [frames], frame_rate=Fraction(30000, 1001))
    return path


def test_edit_writes_a_clip_like_the_source(model, source, tmp_path, capsys, caplog):
    out = tmp_path / "out.mp4"
    assert (
        main(["edit", str(source), "-o", str(out), "--prompt", "gold", "--model", str(model), "--device", "cpu"]) == 0
    )
    made = open_video(out)
    assert (made.num_frames, made.width, made.height) == (5, 48, 40)
    assert made.frame_rate == Fraction(30000, 1001)
    assert "5 frames of 48x40, edited at 38x32, padded to 48x32" in caplog.text
    assert str(out) in capsys.readouterr().out


def test_every_slider_of_an_edit_is_an_option():
    """But those of speed and memory; what is not said is as the model prefers."""
    gen1, given = tiny_gen1(), ["edit", "in.mp4", "-o", "out.mp4", "--prompt", "gold"]
    assert edit_options(gen1, parser().parse_args(given)) == replace(gen1.defaults, passes=1)
    for slider, value in {"content_scale": 3.5, "temporal_scale": 1.5, "structure_scale": 2.5, "blur_level": 3}.items():
        said = parser().parse_args([*given, f"--{slider.replace('_', '-')}", str(value)])
        assert edit_options(gen1, said) == replace(gen1.defaults, passes=1, **{slider: value})


def test_compare_puts_source_depth_and_result_side_by_side(model, source, tmp_path):
    out = tmp_path / "out.mp4"
    arguments = ["edit", str(source), "-o", str(out), "--prompt", "gold", "--compare", "--steps", "1"]
    assert main([*arguments, "--model", str(model), "--device", "cpu"]) == 0
    made = open_video(out)
    assert made.num_frames == 5 and made.width == 3 * 48 and made.height > 40


def test_an_image_gives_the_content_and_a_mask_keeps_the_rest(model, source, tmp_path):
    look, mask = tmp_path / "look.png", tmp_path / "mask.png"
    Image.new("RGB", (40, 30), (200, 80, 20)).save(look)
    Image.new("RGB", (48, 40), (0, 0, 0)).save(mask)
    out = tmp_path / "out.mp4"
    arguments = ["edit", str(source), "-o", str(out), "--image", str(look), "--mask", str(mask), "--steps", "1"]
    assert main([*arguments, "--model", str(model), "--device", "cpu"]) == 0
    kept, original = (torch.cat(list(open_video(path))).float() for path in (out, source))
    assert (kept - original).abs().mean() < 3


def test_depth_is_written_as_a_picture_or_as_values(model, source, tmp_path):
    for name in ("depth.mp4", "depth.safetensors"):
        assert main(["depth", str(source), "-o", str(tmp_path / name), "--model", str(model), "--device", "cpu"]) == 0
    assert open_video(tmp_path / "depth.mp4").num_frames == 5
    depth, depth_range = load_depth(tmp_path / "depth.safetensors")
    assert depth.shape == (1, 1, 5, 32, 48) and depth_range.low < depth_range.high


def test_written_depth_gives_the_same_edit(model, source, tmp_path):
    values = tmp_path / "depth.safetensors"
    assert main(["depth", str(source), "-o", str(values), "--model", str(model), "--device", "cpu"]) == 0
    common = ["--prompt", "gold", "--steps", "1", "--model", str(model), "--device", "cpu"]
    assert main(["edit", str(source), "-o", str(tmp_path / "a.mp4"), *common]) == 0
    assert main(["edit", str(source), "-o", str(tmp_path / "b.mp4"), "--depth", str(values), *common]) == 0
    a, b = (torch.cat(list(open_video(tmp_path / name))) for name in ("a.mp4", "b.mp4"))
    torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_target_that_cannot_be_written_is_refused_before_the_work(model, source, tmp_path, capsys, monkeypatch):
    def work(*_, **__):
        raise AssertionError("depth was estimated for a file that cannot be written")

    monkeypatch.setattr("gen1_core.cli.read_depth", work)
    common = ["--prompt", "gold", "--model", model, "--device", "cpu"]
    for target in (tmp_path / "no folder" / "out.mp4", tmp_path / "out.txt"):
        assert "out" in refused(capsys, "edit", source, "-o", target, *common)


def test_cancelling_leaves_no_half_file(model, source, tmp_path, capsys, monkeypatch):
    def interrupted(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr("gen1_core.frames.decode_clip", interrupted)
    out = tmp_path / "out.mp4"
    arguments = ["edit", str(source), "-o", str(out), "--prompt", "gold", "--steps", "1"]
    assert main([*arguments, "--model", str(model), "--device", "cpu"]) == 130
    assert list(tmp_path.iterdir()) == []
    assert "cancelled" in capsys.readouterr().err


def test_info_names_kind_size_and_config(model, capsys):
    assert main(["info", str(model / "unet.safetensors")]) == 0
    said = capsys.readouterr().out
    assert "unet" in said and "block_out_channels" in said and "parameters" in said


def refused(capsys, *arguments: object) -> str:
    """What is said on standard error when a command refuses."""
    assert main([str(argument) for argument in arguments]) == 2
    return capsys.readouterr().err


def test_bad_input_says_what_to_do(model, source, tmp_path, capsys):
    common = ["-o", tmp_path / "out.mp4", "--model", model, "--device", "cpu"]
    assert "give a prompt or an image" in refused(capsys, "edit", source, *common)
    assert "give a prompt or an image" in refused(capsys, "edit", source, *common, "--prompt", "a", "--image", source)
    assert "prompt" in refused(capsys, "edit", source, *common, "--prompt", " ")
    assert "does not exist" in refused(capsys, "edit", tmp_path / "none.mp4", *common, "--prompt", "gold")
    assert "does not exist" in refused(capsys, "edit", source, *common, "--image", tmp_path / "none.png")
    text = tmp_path / "text.mp4"
    text.write_text("not a video", encoding="utf-8")
    assert "text.mp4" in refused(capsys, "edit", text, *common, "--prompt", "gold")
    assert "give cpu or one that is there" in refused(
        capsys, "edit", source, *common, "--prompt", "gold", "--device", "warp"
    )
    assert not (tmp_path / "out.mp4").exists()


def test_a_missing_or_misplaced_weights_file_is_named(model, source, tmp_path, capsys):
    arguments = ["edit", source, "-o", tmp_path / "out.mp4", "--prompt", "gold", "--device", "cpu", "--model"]
    assert "name one of tiny" in refused(capsys, *arguments, tmp_path / "nowhere")
    wrong = tmp_path / "wrong"
    wrong.mkdir()
    for part in model.iterdir():
        (wrong / part.name).write_bytes(part.read_bytes())
    (wrong / "prior.safetensors").write_bytes((model / "depth.safetensors").read_bytes())
    assert "put the right file there" in refused(capsys, *arguments, wrong)


def test_weights_of_another_config_are_refused(model, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    for part in model.iterdir():
        (other / part.name).write_bytes(part.read_bytes())
    file = read_file(model / "autoencoder.safetensors")
    tensors = {name: tensor.clone() for name, tensor in file.tensors.items()}
    tensors["decoder.conv_in.weight"] = torch.zeros(3, 3)
    save_file(other / "autoencoder.safetensors", tensors, kind="autoencoder", config=AUTOENCODER, metadata={})
    with pytest.raises(ValueError, match="use a file made for this network"):
        load_gen1(other)


def test_what_is_on_disk_survives_a_failed_edit(model, source, tmp_path, capsys):
    out = tmp_path / "out.mp4"
    out.write_bytes(b"precious")
    broken = tiny_gen1()
    with torch.no_grad():
        broken.unet.conv_out.bias[0] = float("nan")
    folder = write_model(broken, tmp_path / "broken")
    said = refused(capsys, "edit", source, "-o", out, "--prompt", "gold", "--model", folder, "--device", "cpu")
    assert "run in float32" in said
    assert out.read_bytes() == b"precious"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["broken", "out.mp4"]
