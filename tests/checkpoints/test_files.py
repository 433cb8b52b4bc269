import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from checkpoints.layouts import write
from safetensors.torch import save_file as plain_save
from torch import nn
from torch.testing import assert_close

from gen1_core.checkpoints.files import (
    config_from_json,
    config_from_plain,
    config_to_json,
    dtype_of,
    load_module,
    read_file,
    save_file,
)
from gen1_core.models.autoencoder import AutoencoderConfig
from gen1_core.models.depth import DepthNet, DepthNetConfig
from gen1_core.models.unet import UNetConfig

CPU = torch.device("cpu")
SMALL = DepthNetConfig(channels=(8, 16), norm_num_groups=4, train_size=32)


@dataclass(frozen=True, kw_only=True)
class Inner:
    sizes: tuple[int, ...] = (1, 2)


@dataclass(frozen=True, kw_only=True)
class Outer:
    name: str
    inner: Inner = Inner()
    pairs: tuple[tuple[int, int], ...] = ((1, 2), (3, 4))
    inners: tuple[Inner, ...] = (Inner(), Inner(sizes=(5,)))
    one_or_more: int | tuple[int, ...] = 3
    mixed: tuple[str, float] = ("a", 0.5)


def save_net(path: Path, config: DepthNetConfig = SMALL) -> DepthNet:
    torch.manual_seed(0)
    net = DepthNet(config).eval()
    save_file(path, net.state_dict(), kind="depth", config=config, metadata={"recipe": "tiny ö"})
    return net


def open_net(path: Path, config: DepthNetConfig = SMALL, dtype: torch.dtype = torch.float32) -> DepthNet:
    return load_module(lambda: DepthNet(config), read_file(path).tensors, device=CPU, dtype=dtype, path=path)


@pytest.mark.parametrize(
    "config",
    [
        Outer(name="ü"),
        Outer(name="x", pairs=(), one_or_more=(4, 5), inner=Inner(sizes=())),
        SMALL,
        AutoencoderConfig(latent_mean=(0.1, 0.2, 0.3, 0.4)),
        UNetConfig(),
    ],
    ids=lambda config: type(config).__name__,
)
def test_configs_come_back_equal(config: object) -> None:
    assert config_from_json(type(config), config_to_json(config)) == config


def test_missing_fields_take_their_defaults() -> None:
    assert config_from_json(Outer, '{"name": "n"}') == Outer(name="n")


@pytest.mark.parametrize("values", [{"name": "n", "new_field": 1}, {"name": "n", "inner": {"other": 1}}, {}])
def test_config_of_another_class_is_refused(values: dict) -> None:
    with pytest.raises(ValueError, match="use weights made for this version"):
        config_from_plain(Outer, values)


def test_a_module_comes_back_with_its_config(tmp_path: Path) -> None:
    path = tmp_path / "tiefe ü.safetensors"
    net = save_net(path)
    tensors, metadata, kind = read_file(path)
    assert kind == "depth"
    assert metadata["recipe"] == "tiny ö"
    config = config_from_plain(DepthNetConfig, metadata["config"])
    assert config == SMALL
    loaded = load_module(lambda: DepthNet(config), tensors, device=CPU, dtype=torch.float32, path=path)
    assert not loaded.training
    images = torch.rand(1, 3, 32, 32)
    assert_close(loaded(images), net(images), rtol=0, atol=0)


def test_half_precision_is_the_callers_choice(tmp_path: Path) -> None:
    tensors = {"weight": torch.randn(5).half(), "steps": torch.tensor(7)}
    save_file(tmp_path / "w", tensors, kind="x", config=Inner(), metadata={})
    found = read_file(tmp_path / "w").tensors
    assert {name: value.dtype for name, value in found.items()} == {
        "weight": torch.half,
        "steps": torch.int64,
    }
    save_net(tmp_path / "net")
    net = open_net(tmp_path / "net", dtype=torch.bfloat16)
    assert {parameter.dtype for parameter in net.parameters()} == {torch.bfloat16}


def test_a_loaded_module_trains_and_owns_its_weights(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_net(path)
    tensors = read_file(path).tensors
    net = load_module(lambda: DepthNet(SMALL), tensors, device=CPU, dtype=torch.float32, path=path)
    net(torch.rand(1, 3, 32, 32)).sum().backward()
    assert all(parameter.grad is not None for parameter in net.parameters())
    shared = {value.data_ptr() for value in tensors.values()} & {value.data_ptr() for value in net.parameters()}
    assert shared == set()


def test_a_file_that_is_read_can_be_replaced(tmp_path: Path) -> None:
    path = tmp_path / "net.safetensors"
    save_net(path)
    net = open_net(path)
    save_file(path, net.state_dict(), kind="depth", config=SMALL, metadata={})
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["net.safetensors"]


def test_weights_for_another_config_are_refused(tmp_path: Path) -> None:
    save_net(tmp_path / "net")
    with pytest.raises(ValueError, match=r"of another shape.*use a file made for this network and this config"):
        open_net(tmp_path / "net", DepthNetConfig(channels=(4, 16), norm_num_groups=4, train_size=32))


def test_weights_of_another_network_are_refused(tmp_path: Path) -> None:
    save_file(tmp_path / "w", {"stem.weight": torch.zeros(2)}, kind="x", config=Inner(), metadata={})
    with pytest.raises(ValueError, match=r"missing \(.*\.\.\.\).*use a file made for this network"):
        open_net(tmp_path / "w")
    torch.manual_seed(0)
    extra = {**DepthNet(SMALL).state_dict(), "lora.up": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"1 unexpected \(lora\.up\).*use a file made for this network"):
        load_module(lambda: DepthNet(SMALL), extra, device=CPU, dtype=torch.float32, path=tmp_path)


def test_reserved_metadata_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="give them other names"):
        save_file(tmp_path / "w", {}, kind="x", config=Inner(), metadata={"kind": "y"})


def test_foreign_safetensors_are_read_without_a_kind(tmp_path: Path) -> None:
    plain_save({"a": torch.ones(2)}, tmp_path / "w")
    weights = read_file(tmp_path / "w")
    assert weights.kind == "" and weights.metadata["config"] == {}
    assert_close(weights.tensors["a"], torch.ones(2))


def test_a_config_that_is_not_json_is_named(tmp_path: Path) -> None:
    plain_save({"a": torch.ones(2)}, tmp_path / "w", metadata={"config": "{"})
    with pytest.raises(ValueError, match="save it again"):
        read_file(tmp_path / "w")


@pytest.mark.parametrize("kept", [0.5, 0.9, 0.999])
def test_a_truncated_file_is_refused(tmp_path: Path, kept: float) -> None:
    path = tmp_path / "net.safetensors"
    save_net(path)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * kept)])
    with pytest.raises(ValueError, match="cut short or damaged.*copy or download it again"):
        read_file(path)


@pytest.mark.parametrize(
    ("head", "looks_like"),
    [
        (b"", "an empty file"),
        (b"<!DOCTYPE html><html>", "a web page"),
        (b"version https://git-lfs.github.com/spec/v1", "a Git LFS pointer"),
        (b"\x89PNG\r\n\x1a\n", "a PNG picture"),
        (b"\x00\x00\x00\x20ftypisom", "an MP4 or QuickTime video"),
        (b"GGUF\x03\x00", "a GGUF file"),
        (b"hello", "nothing known here"),
    ],
)
def test_foreign_files_are_named(tmp_path: Path, head: bytes, looks_like: str) -> None:
    path = tmp_path / "w.safetensors"
    path.write_bytes(head)
    with pytest.raises(ValueError, match=rf"looks like {looks_like}.*give a \.safetensors file"):
        read_file(path)


def test_a_missing_file_and_a_folder_are_named(tmp_path: Path) -> None:
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(ValueError, match="give the path of a weights file"):
            read_file(path)


def test_saving_into_a_missing_folder_says_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="choose a folder that exists"):
        save_net(tmp_path / "none" / "net.safetensors")


class Cancelled(BaseException):
    pass


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), Cancelled(), RuntimeError("boom")])
def test_a_failure_half_way_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    path = tmp_path / "net.safetensors"
    save_net(path)
    before = path.read_bytes()

    def fail(tensors: object, target: Path, metadata: object) -> None:
        target.write_bytes(b"half")
        raise error

    monkeypatch.setattr("gen1_core.checkpoints.files.write_safetensors", fail)
    with pytest.raises((ValueError, Cancelled, RuntimeError)) as caught:
        save_net(path)
    if isinstance(error, OSError):
        assert "free some space" in str(caught.value)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["net.safetensors"]


@pytest.mark.skipif(sys.platform == "win32", reason="Windows has no limit on file sizes")
def test_a_full_disk_leaves_the_old_file(tmp_path: Path) -> None:
    import resource

    path = tmp_path / "w.safetensors"
    path.write_bytes(b"old")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, limits[1]))
    try:
        with pytest.raises(ValueError, match="free some space"):
            save_file(path, {"w": torch.zeros(99_999)}, kind="x", config=Inner(), metadata={})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["w.safetensors"]


class Buffered(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(3))
        self.register_buffer("steps", torch.tensor(0))


def test_whole_numbers_keep_their_type(tmp_path: Path) -> None:
    tensors = {"weight": torch.ones(3), "steps": torch.tensor(5)}
    module = load_module(Buffered, tensors, device=CPU, dtype=torch.float16, path=tmp_path)
    assert module.steps.dtype == torch.int64 and module.weight.dtype == torch.float16


def addresses(tensors: Mapping[str, torch.Tensor]) -> set[int]:
    return {tensor.data_ptr() for tensor in tensors.values()}


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
def test_without_a_copy_weights_stay_in_the_file(tmp_path: Path, suffix: str) -> None:
    torch.manual_seed(0)
    state = DepthNet(SMALL).state_dict()
    path = write(tmp_path / f"w{suffix}", state)
    tensors = read_file(path).tensors

    def build() -> DepthNet:
        return DepthNet(SMALL)

    mapped = load_module(build, tensors, device=CPU, dtype=dtype_of(tensors), path=path, copy=False)
    assert addresses(mapped.state_dict()) == addresses(tensors)
    assert_close(mapped.state_dict(), state)
    other = load_module(build, tensors, device=CPU, dtype=torch.float16, path=path, copy=False)
    assert not addresses(other.state_dict()) & addresses(tensors)
    assert {parameter.dtype for parameter in other.parameters()} == {torch.float16}


def test_the_type_of_most_weights_is_the_type_of_the_file() -> None:
    tensors = {"a": torch.zeros(9).half(), "norm": torch.zeros(3), "steps": torch.zeros(99, dtype=torch.int64)}
    assert dtype_of(tensors) == torch.float16 and dtype_of({}) == torch.float32


@pytest.mark.slow
@pytest.mark.real
@pytest.mark.skipif(sys.platform == "win32", reason="Windows does not tell a process its peak of memory")
def test_a_checkpoint_of_4_gb_takes_its_size_once(tmp_path: Path, root: Path) -> None:
    script = [sys.executable, str(root / "benchmarks" / "loading.py")]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    subprocess.run([*script, "--make", str(tmp_path / "w.safetensors")], check=True, env=environment)
    command = [*script, "--one", "ours, as it is, mapped", str(tmp_path / "w.safetensors")]
    found = json.loads(subprocess.run(command, check=True, capture_output=True, env=environment).stdout)
    size = (tmp_path / "w.safetensors").stat().st_size / 2**20
    (tmp_path / "w.safetensors").unlink()
    assert size > 4000 and found["weights"] > 3500
    assert found["weights"] * 0.9 < found["used"] < 1.15 * size
