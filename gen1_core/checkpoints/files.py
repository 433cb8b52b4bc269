"""Files and tensors: safetensors with the config as JSON in the metadata; of pickles only plain tensors."""

import dataclasses
import json
import logging
import os
import pickle
import types
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar, get_args, get_type_hints

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file as write_safetensors
from torch import Tensor, nn

logger = logging.getLogger(__name__)

Config = TypeVar("Config")
Module = TypeVar("Module", bound=nn.Module)

_RESERVED = ("kind", "config")
_MAGIC = (
    (b"PK\x03\x04", "a zip archive"),
    (b"GGUF", "a GGUF file"),
    (
        b"version https://git-lfs",
        "a Git LFS pointer, a text that stands for the file (git lfs pull brings the file)",
    ),
    (b"<", "a web page or XML, as a failed download leaves it"),
    (b"\x89PNG", "a PNG picture"),
    (b"\xff\xd8\xff", "a JPEG picture"),
    (b"GIF8", "a GIF"),
    (b"RIFF", "a WebP, WAV or AVI file"),
    (b"\x1a\x45\xdf\xa3", "a Matroska or WebM video"),
    (b"\x89HDF", "an HDF5 file"),
)


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
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        write_safetensors(plain, temporary, metadata=header)
        os.replace(temporary, path)
    except (OSError, SafetensorError) as error:
        raise ValueError(
            f"{path} could not be written ({error}), and what was there before is unchanged; "
            "free some space, or choose a folder that exists and may be written to."
        ) from error
    finally:
        temporary.unlink(missing_ok=True)


def read_file(path: Path) -> Weights:
    """Read a safetensors file, or a PyTorch file of nothing but tensors; its content decides, not its name.

    The tensors map the file as long as they live (load_module copies them).
    """
    path = Path(path)
    head = _head(path)
    if head[8:9] == b"{":
        return _read_safetensors(path, header_bytes=int.from_bytes(head[:8], "little"))
    if head[:4] == b"PK\x03\x04" or head[:1] == b"\x80":
        return _read_pickle(path)
    raise ValueError(
        f"{path} cannot be read as weights: it looks like {_looks_like(head)}; "
        "give a .safetensors file (or a .pt or .ckpt file that holds only tensors)."
    )


def load_module(
    build: Callable[[], Module],
    tensors: Mapping[str, Tensor],
    *,
    device: torch.device,
    dtype: torch.dtype,
    path: Path,
) -> Module:
    """Build a module without memory for weights, give it copies of these, and set it to evaluation mode.

    Strict: every name and shape must match. ``path`` is only named in errors.
    """
    with torch.device("meta"):
        module = build()
    _check_names(module.state_dict(), tensors, path=path, name=type(module).__name__)
    # A copy, because a mapped file cannot be replaced on Windows as long as a tensor lives in it.
    own = {name: _owned(tensor, device, dtype) for name, tensor in tensors.items()}
    module.load_state_dict(own, strict=True, assign=True)
    return module.to(device).eval()


def _owned(tensor: Tensor, device: torch.device, dtype: torch.dtype) -> Tensor:
    return tensor.to(device, dtype if tensor.is_floating_point() else tensor.dtype, copy=True)


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


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise ValueError(f"{path} cannot be opened ({error.strerror}); give the path of a weights file.") from error


def _looks_like(head: bytes) -> str:
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp":
        return "an MP4 or QuickTime video"
    return next((name for magic, name in _MAGIC if head.startswith(magic)), "nothing known here")


def _read_safetensors(path: Path, *, header_bytes: int) -> Weights:
    try:
        # safe_open checks the header against the length of the file.
        with safe_open(path, framework="pt", device="cpu") as file:
            header = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}
    except (SafetensorError, OSError) as error:
        raise ValueError(
            f"{path} ({path.stat().st_size} bytes, header of {header_bytes}) looks like a safetensors file "
            f"that is cut short or damaged ({error}); copy or download it again."
        ) from error
    return Weights(tensors, {**header, "config": _parsed_config(header, path)}, header.get("kind", ""))


def _parsed_config(header: Mapping[str, str], path: Path) -> dict[str, Any]:
    try:
        return json.loads(header.get("config", "{}"))
    except json.JSONDecodeError as error:
        raise ValueError(
            f"{path} holds a config that is not JSON ({error}); save it again with the program that wrote it."
        ) from error


def _read_pickle(path: Path) -> Weights:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of old pickle protocols: what cannot be read is an error below
            content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, KeyError, AttributeError) as error:
        raise ValueError(
            f"{path} is a pickle or zip archive that holds code, or more than tensors, or is cut short "
            f"({_first_line(error)}), and code in a file is never run; "
            "convert to safetensors with the program that made it, where you trust it."
        ) from error
    tensors = _unwrapped(content)
    if not tensors:
        raise ValueError(f"{path} holds no named tensors; give the file with the weights, or convert to safetensors.")
    return Weights(tensors, {"config": {}}, "")


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0]


def _unwrapped(content: Any) -> dict[str, Tensor]:
    """The tensors of a state dict, which training programs like to keep under a name of its own."""
    if not isinstance(content, Mapping):
        return {}
    for name in ("state_dict", "model"):
        if isinstance(content.get(name), Mapping):
            content = content[name]
    if skipped := [name for name, value in content.items() if not isinstance(value, Tensor)]:
        logger.info("skipped what is not a tensor: %s", _some([str(name) for name in skipped]))
    return {name: value for name, value in content.items() if isinstance(value, Tensor)}
