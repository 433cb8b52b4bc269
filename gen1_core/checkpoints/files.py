"""Files and tensors: safetensors with the config as JSON in the metadata; of pickles only plain tensors."""

import dataclasses
import json
import types
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as write_safetensors
from torch import Tensor, nn

from ..models.storage import FP8, convert
from ..whole import whole
from .header import container_of, read_header
from .pickles import read_pickle

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)

_RESERVED = ("kind", "config")


class Weights(NamedTuple):
    """What a file holds; ``metadata["config"]`` is the parsed config, ``kind`` is "" in a foreign file."""

    tensors: dict[str, Tensor]
    metadata: dict[str, Any]
    kind: str


def config_to_json(config: Any) -> str:
    """A frozen dataclass as JSON; tuples become lists."""
    return json.dumps(dataclasses.asdict(config))


def config_from_json(cls: type[Config], text: str) -> Config:
    """The inverse of config_to_json: lists become tuples again, and the class validates itself."""
    return config_from_plain(cls, json.loads(text))


def config_from_plain(cls: type[Config], values: Mapping[str, Any]) -> Config:
    """A config from parsed JSON. Fields that are missing take their defaults; unknown ones are an error."""
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls)]  # pyright: ignore[reportArgumentType]
    if unknown := sorted(set(values) - set(names)):
        raise ValueError(
            f"{cls.__name__} got the fields {unknown}, which it does not have ({', '.join(names)}); "
            "use weights made for this version and this network."
        )
    try:
        return cls(**{name: _field_value(hints[name], value) for name, value in values.items()})
    except TypeError as error:
        raise ValueError(
            f"{cls.__name__} got {dict(values)}, which does not fill it ({error}); "
            "use weights made for this version and this network."
        ) from error


def save_file(
    path: Path, tensors: Mapping[str, Tensor], *, kind: str, config: Any, metadata: Mapping[str, str]
) -> None:
    """Write tensors as they are (cast them before) with kind, config and metadata; whole or not at all.

    A file that was at ``path`` stays untouched until the new one is complete.
    """
    path = Path(path)
    if taken := sorted(set(metadata) & set(_RESERVED)):
        raise ValueError(f"metadata holds {taken}, which save_file writes itself; give them other names.")
    header = {**metadata, "kind": kind, "config": config_to_json(config)}
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with whole(path, also=(SafetensorError,)) as part:
        write_safetensors(plain, part, metadata=header)


def read_file(path: Path) -> Weights:
    """Read a safetensors file, or a PyTorch file of nothing but tensors; its content decides, not its name.

    The tensors map the file as long as they live (load_module copies them, unless it is told not to).
    """
    path = Path(path)
    container = container_of(path)
    if container == "safetensors":
        return _read_safetensors(path)
    if container == "torchscript":
        raise ValueError(
            f"{path} is a TorchScript archive, a program with its weights, and code in a file is never run; "
            "convert to safetensors with the program that made it, or download the model in that form."
        )
    return Weights(read_pickle(path, mapped=container == "zip"), {"config": {}}, "")


def dtype_of(tensors: Mapping[str, Tensor]) -> torch.dtype:
    """The floating-point type that most of the weights have: what ``dtype`` of load_module is to keep a file's own."""
    sizes: dict[torch.dtype, int] = {}
    for tensor in tensors.values():
        if tensor.is_floating_point():
            sizes[tensor.dtype] = sizes.get(tensor.dtype, 0) + tensor.numel()
    return max(sizes, key=lambda dtype: sizes[dtype], default=torch.float32)


def load_module(
    build: Callable[[], Module],
    tensors: Mapping[str, Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    path: Path,
    copy: bool = True,
) -> Module:
    """Build a module without memory for weights, give it these, and set it to evaluation mode.

    Strict: every name and shape must match. ``path`` is only named in errors. With ``copy`` the module owns its
    weights, and the file can be replaced or deleted afterwards, on Windows too. Without, what has the right type and
    device already stays mapped, so that a large file takes its size once. Layers that store their weights in 8 bits
    (models/storage.py) keep that type; ``dtype`` is for all others.
    """
    with torch.device("meta"):
        module = build()
    wanted = module.state_dict()
    _check_names(wanted, tensors, path=path, name=type(module).__name__)
    own = {
        name: convert(tensor, device=device, dtype=_dtype_for(wanted[name], tensor, dtype), copy=copy)
        for name, tensor in tensors.items()
    }
    module.load_state_dict(own, strict=True, assign=True)
    return module.to(device).eval()


def _dtype_for(place: Tensor, tensor: Tensor, dtype: torch.dtype) -> torch.dtype:
    if place.dtype == FP8:
        return FP8
    return dtype if tensor.is_floating_point() else tensor.dtype


def _check_names(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor], *, path: Path, name: str) -> None:
    missing = [key for key in wanted if key not in given]
    unexpected = [key for key in given if key not in wanted]
    shapes = [
        f"{key} {list(given[key].shape)} instead of {list(wanted[key].shape)}"
        for key in wanted
        if key in given and given[key].shape != wanted[key].shape
    ]
    groups = (("missing", missing), ("unexpected", unexpected), ("of another shape", shapes))
    found = "; ".join(f"{len(keys)} {label} ({_some(keys)})" for label, keys in groups if keys)
    if found:
        raise ValueError(
            f"{path} holds {len(given)} tensors that do not fit {name}: {found}; "
            "use a file made for this network and this config."
        )


def _some(keys: list[str]) -> str:
    return ", ".join(keys[:4]) + (", ..." if len(keys) > 4 else "")


def _field_value(hint: Any, value: Any) -> Any:
    if isinstance(hint, types.UnionType) and isinstance(value, Mapping):
        hint = next((choice for choice in get_args(hint) if dataclasses.is_dataclass(choice)), hint)
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return config_from_plain(hint, value)
    if isinstance(value, list):
        return _as_tuple(hint, value)
    return value


def _as_tuple(hint: Any, values: list[Any]) -> tuple[Any, ...]:
    if isinstance(hint, types.UnionType):
        hint = next((choice for choice in get_args(hint) if get_args(choice)), hint)
    inner = get_args(hint)
    hints = inner if len(inner) == len(values) and Ellipsis not in inner else inner[:1] * len(values)
    return tuple(_field_value(one, value) for one, value in zip(hints or [Any] * len(values), values, strict=True))


def _read_safetensors(path: Path) -> Weights:
    header = read_header(path).metadata
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} looks like a safetensors file that is cut short or damaged ({error}); copy or download it again."
        ) from error
    return Weights(tensors, {**header, "config": _parsed_config(header, path)}, header.get("kind", ""))


def _parsed_config(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        return json.loads(header.get("config", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} holds a config that is not JSON ({error}); save it again with the program that wrote it."
        ) from error
