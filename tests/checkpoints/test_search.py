"""Files are found by path, by name, or by content; and what is missing or doubtful is said with what is there."""

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from checkpoints.layouts import layout, scaled, write_empty

from gen1_core.checkpoints.catalogue.row import Kind
from gen1_core.checkpoints.formats import Format
from gen1_core.checkpoints.search import anything, files_below, find, scan

TREE = {
    "checkpoints/dreamshaper_8.safetensors": "sd15_single_file",
    "checkpoints/notes.safetensors": "",
    "animatediff_models/mm.ckpt": "v3_sd15_mm",
    "animatediff_models/xl.safetensors": "mm_sdxl_v10_beta",
    "controlnet/1.5/depth.safetensors": "controlnet_sd15",
    "ipadapter/plus.safetensors": "ip_adapter_plus_sd15",
    "ipadapter/sd15.safetensors": "ip_adapter_sd15",
    "clip_vision/model.safetensors": "clip_vit_h_14_vision",
    "loras/SD1.5/lcm/pytorch_lora_weights.safetensors": "lcm_lora_sd15",
    "loras/other/pytorch_lora_weights.safetensors": "lora_peft_sd15",
    "vae/vae.safetensors": "vae_ft_mse_single_file",
}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    for name, what in TREE.items():
        if what:
            write_empty(tmp_path / name, scaled(layout(what)))
        else:
            (tmp_path / name).write_bytes(b"<html>not found</html>")
    (tmp_path / "checkpoints" / "put_checkpoints_here").write_bytes(b"")
    return tmp_path


def search(models: Path, kind: Kind, name: str = "", accept: Callable[[Format], bool] = anything) -> str:
    found = find(kind, name=name, folders=[models], option=f"--{kind}", accept=accept)
    return found.path.relative_to(models).as_posix()


@pytest.mark.parametrize(
    ("kind", "file"),
    [
        ("checkpoint", "checkpoints/dreamshaper_8.safetensors"),
        ("motion", "animatediff_models/mm.ckpt"),
        ("controlnet", "controlnet/1.5/depth.safetensors"),
        ("clip_vision", "clip_vision/model.safetensors"),
        ("vae", "vae/vae.safetensors"),
    ],
)
def test_the_only_usable_file_of_a_kind_is_found_by_content(models: Path, kind: Kind, file: str) -> None:
    assert search(models, kind) == file


def test_a_path_is_taken_as_given_and_checked(models: Path) -> None:
    path = models / "vae" / "vae.safetensors"
    found = find("vae", name=str(path), folders=[], option="--vae")
    assert found.path == path and found.format.layout == "ldm"
    with pytest.raises(ValueError, match=r"is an autoencoder.*motion module is needed.*give the file of"):
        find("motion", name=str(path), folders=[], option="--motion")
    with pytest.raises(ValueError, match=r"motion module for SDXL\), which cannot be used.*for SD 1\.5"):
        find("motion", name="XL", folders=[models], option="--motion")


@pytest.mark.parametrize(
    "name", ["plus.safetensors", "PLUS", "ipadapter/plus", "plus.SAFETENSORS", "ipadapter/plus.safetensors"]
)
def test_a_name_is_found_anywhere(models: Path, name: str) -> None:
    assert search(models, "ip_adapter", name) == "ipadapter/plus.safetensors"


def test_a_name_that_two_files_share_needs_more_of_its_path(models: Path) -> None:
    with pytest.raises(ValueError, match=r"is the name of 2 files.*as much of its end as tells them apart"):
        search(models, "lora", "pytorch_lora_weights.safetensors")
    found = search(models, "lora", "lcm/pytorch_lora_weights.safetensors")
    assert found == "loras/SD1.5/lcm/pytorch_lora_weights.safetensors"


def test_a_shared_name_is_settled_by_kind(models: Path) -> None:
    write_empty(models / "unet" / "model.safetensors", scaled(layout("sd15_diffusers_unet")))
    assert search(models, "clip_vision", "model") == "clip_vision/model.safetensors"


def test_two_files_of_one_kind_are_listed_with_the_option(models: Path) -> None:
    with pytest.raises(ValueError, match=r"2 files that could serve as an IP-Adapter.*plus.*sd15.*with --ip_adapter"):
        search(models, "ip_adapter")


def test_what_is_asked_for_settles_two_files(models: Path) -> None:
    def four_tokens(form: Format) -> bool:
        return form.number("tokens") == 4

    assert search(models, "ip_adapter", accept=four_tokens) == "ipadapter/sd15.safetensors"


def test_a_missing_name_says_where_it_was_looked_for_and_what_is_near(models: Path) -> None:
    with pytest.raises(ValueError) as caught:
        search(models, "checkpoint", "dreamshaper_7.safetensors")
    message = str(caught.value)
    assert str(models) in message and "Near it:" in message and "dreamshaper_8.safetensors" in message
    assert "Give --checkpoint a path" in message


def test_a_missing_kind_says_what_is_there_instead(models: Path) -> None:
    (models / "animatediff_models" / "mm.ckpt").unlink()
    with pytest.raises(ValueError, match=r"none that fits \(xl\.safetensors is.*SDXL\); put the file there.*--motion"):
        search(models, "motion")
    with pytest.raises(ValueError, match=r"a depth estimator is needed, and of \d+ files.*none.*; put the file"):
        search(models, "depth")
    with pytest.raises(ValueError, match=r"no folder \(none was given\)"):
        find("depth", name="", folders=[], option="--depth")


def test_a_whole_clip_serves_as_vision_only_where_there_is_no_other(models: Path) -> None:
    write_empty(models / "clip_vision" / "whole.safetensors", scaled(layout("clip_vit_large_patch14")))
    assert search(models, "clip_vision") == "clip_vision/model.safetensors"
    (models / "clip_vision" / "model.safetensors").unlink()
    assert search(models, "clip_vision") == "clip_vision/whole.safetensors"


def test_a_folder_of_diffusers_is_one_thing(tmp_path: Path) -> None:
    unet = scaled(layout("sd15_diffusers_unet"))
    write_empty(tmp_path / "diffusers" / "sd" / "unet" / "diffusion_pytorch_model.safetensors", unet)
    (tmp_path / "diffusers" / "sd" / "model_index.json").write_text("{}", encoding="utf-8")
    assert [one.relative_to(tmp_path).as_posix() for one in files_below([tmp_path])] == ["diffusers/sd"]
    assert search(tmp_path, "checkpoint") == "diffusers/sd"


@pytest.mark.skipif(sys.platform == "win32", reason="links need a right of their own on Windows")
def test_links_are_followed_and_loops_end(models: Path, tmp_path: Path) -> None:
    os.symlink(models / "vae", models / "loop")
    os.symlink(models, models / "vae" / "round")
    assert len(list(files_below([models]))) == len(TREE)
    assert search(models, "vae").endswith("vae.safetensors")


def test_damaged_files_do_not_stop_a_search(models: Path) -> None:
    assert len(scan([models])) == len(TREE) - 1
