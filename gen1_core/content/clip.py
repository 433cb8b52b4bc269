"""CLIP as a content encoder: the embedded pair, an open_clip model from a local file, a transformers folder.

open_clip and transformers are imported only in the function that loads their files; nothing is downloaded.
"""

import json
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from ..models.clip import CLIP, CLIP_MEAN, CLIP_STD, Colour, preprocess
from ..tensors import Images
from .encoder import CLIP_IMAGE, Scaling, scale_embeddings, unfamiliar_words
from .tokenizer import Tokenizer

EncodeImage = Callable[[Tensor], Tensor]
EncodeText = Callable[[Tensor], Tensor]
Tokenize = Callable[[list[str]], Tensor]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """What an image tower wants to see: a square of this size, normalised with these colours."""

    size: int
    mean: Colour = CLIP_MEAN
    std: Colour = CLIP_STD


def encode_in_chunks(
    encode: EncodeImage, images: Images, *, picture: Picture, like: Tensor, chunk: int
) -> Float[Tensor, "n ..."]:
    """Preprocess and encode a few images at a time, on the device and in the dtype of ``like``.

    What ``encode`` gives for an image is its embedding [d], or a state of another shape.
    """
    if not len(images):
        raise ValueError("0 images were given, so there is nothing to encode; give at least one.")
    parts = []
    for part in images.split(chunk):
        pixels = preprocess(part.to(like.device), picture.size, mean=picture.mean, std=picture.std)
        parts.append(encode(pixels.to(like.dtype)))
    return torch.cat(parts)


class EmbeddedClip:
    """The embedded model's pair: plain torch. ``words`` are those it was trained on (empty: not known)."""

    def __init__(
        self,
        clip: CLIP,
        tokenizer: Tokenizer,
        *,
        words: frozenset[str] = frozenset(),
        scaling: Scaling = "sphere",
        chunk: int = 16,
    ) -> None:
        if tokenizer.vocab_size != clip.config.vocab_size:
            raise ValueError(
                f"A tokenizer of {tokenizer.vocab_size} ids does not belong to a CLIP of "
                f"{clip.config.vocab_size}; give the merges that the weights were trained with."
            )
        self.clip = clip
        self.tokenizer = tokenizer
        self.words = words
        self.scaling: Scaling = scaling
        self.chunk = chunk
        self.dim = clip.config.embed_dim
        self.kind = CLIP_IMAGE

    @torch.no_grad()
    def encode_images(self, images: Images) -> Float[Tensor, "n d"]:
        """Images 0..1 of any size to embeddings, a few at a time."""
        picture, like = Picture(size=self.clip.config.image_size), self.clip.text_projection
        embeddings = encode_in_chunks(self.clip.encode_image, images, picture=picture, like=like, chunk=self.chunk)
        return scale_embeddings(embeddings, self.scaling)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Texts to embeddings."""
        tokens = self.tokenizer(texts).to(self.clip.text_projection.device)
        return scale_embeddings(self.clip.encode_text(tokens), self.scaling)

    def unfamiliar(self, prompt: str) -> list[str]:
        """The content words of the prompt that were not in the training captions."""
        return unfamiliar_words(prompt, self.words) if self.words else []


class LoadedClip:
    """A CLIP of another library behind the same contract; its towers as functions, not normalised."""

    def __init__(
        self,
        module: nn.Module,
        *,
        encode_image: EncodeImage,
        encode_text: EncodeText,
        tokenize: Tokenize,
        picture: Picture,
        dim: int,
        scaling: Scaling,
        chunk: int,
    ) -> None:
        self.module = module
        self.image_tower = encode_image
        self.text_tower = encode_text
        self.tokenize = tokenize
        self.picture = picture
        self.dim = dim
        self.kind = CLIP_IMAGE
        self.scaling: Scaling = scaling
        self.chunk = chunk

    @torch.no_grad()
    def encode_images(self, images: Images) -> Float[Tensor, "n d"]:
        """Images 0..1 of any size to embeddings, a few at a time."""
        like = next(self.module.parameters())
        embeddings = encode_in_chunks(self.image_tower, images, picture=self.picture, like=like, chunk=self.chunk)
        return scale_embeddings(embeddings, self.scaling)

    @torch.no_grad()
    def encode_texts(self, texts: Sequence[str]) -> Float[Tensor, "n d"]:
        """Texts to embeddings."""
        tokens = self.tokenize(list(texts)).to(next(self.module.parameters()).device)
        return scale_embeddings(self.text_tower(tokens), self.scaling)

    def unfamiliar(self, prompt: str) -> list[str]:
        """None: public weights have seen about every word."""
        return []


def load_open_clip(
    config: str | dict[str, Any],
    weights: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    scaling: Scaling = "raw",
    mean: Colour = CLIP_MEAN,
    std: Colour = CLIP_STD,
    chunk: int = 16,
) -> LoadedClip:
    """An open_clip model from a local weights file, by the name of its config or by the config itself.

    A file does not tell which GELU its weights were trained with: OpenAI's need a config ending in ``-quickgelu``.
    Raises ValueError for a config whose tokenizer would have to be downloaded, and for a file that does not fit.
    """
    try:
        import open_clip
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise ValueError(_missing("open_clip", "open_clip_torch", error)) from error
    settings = _open_clip_settings(open_clip, config)
    text, vision = settings["text_cfg"], settings["vision_cfg"]
    tokenizer = open_clip.SimpleTokenizer(
        context_length=text.get("context_length", 77), **text.get("tokenizer_kwargs", {})
    )
    if text.get("vocab_size", tokenizer.vocab_size) < tokenizer.vocab_size:
        raise ValueError(
            f"A vocabulary of {text['vocab_size']} is smaller than the {tokenizer.vocab_size} of open_clip's "
            "own tokenizer, so it belongs to another one; choose a config with CLIP's vocabulary."
        )
    if "timm_model_name" in vision:
        vision["timm_model_pretrained"] = False  # weights come from the file; nothing is downloaded
    kind = open_clip.CLIP
    if settings.pop("custom_text", False):
        kind = open_clip.CoCa if "multimodal_cfg" in settings else open_clip.CustomTextCLIP
    model = kind(**settings)
    try:
        model.load_state_dict(_read_state(Path(weights)), strict=True)
    except RuntimeError as error:
        raise ValueError(
            f"{weights} does not hold the weights of this open_clip config: {str(error)[:400]}; "
            "give the config that the file was trained with."
        ) from error
    model = model.to(device=device, dtype=dtype).eval().requires_grad_(False)
    size = vision.get("image_size", 224)
    return LoadedClip(
        model,
        encode_image=lambda pixels: model.encode_image(pixels, normalize=False),
        encode_text=lambda tokens: model.encode_text(tokens, normalize=False),
        tokenize=tokenizer,
        picture=Picture(size=size if isinstance(size, int) else min(size), mean=mean, std=std),
        dim=settings["embed_dim"],
        scaling=scaling,
        chunk=chunk,
    )


def _open_clip_settings(open_clip: Any, config: str | dict[str, Any]) -> dict[str, Any]:
    """A copy of a config that open_clip can build without a download."""
    if isinstance(config, str) and config not in open_clip.list_models():
        raise ValueError(
            f"config={config!r} is not one of open_clip's own configs (a hub name would be downloaded); "
            "choose one from open_clip.list_models(), or give the config itself as a dict."
        )
    settings = deepcopy(open_clip.get_model_config(config) if isinstance(config, str) else config)
    text = settings["text_cfg"]
    foreign = text.get("hf_tokenizer_name") or text.get("hf_model_name")
    if foreign or (isinstance(config, str) and "siglip" in config.lower()):
        raise ValueError(
            f"This open_clip config needs the tokenizer of {foreign or 'SigLIP'}, which does not ship with "
            "open_clip and would have to be downloaded; choose a config with CLIP's own tokenizer, such as "
            "ViT-L-14, or load a transformers folder."
        )
    return settings


def _read_state(weights: Path) -> dict[str, Tensor]:
    """The tensors of a local file; a pickle is read for its tensors only."""
    if not weights.is_file():
        raise ValueError(f"{weights} is not a file, and nothing is downloaded; give the path of the weights.")
    try:
        if weights.suffix == ".safetensors":
            return load_file(weights)
        stored = torch.load(weights, map_location="cpu", weights_only=True)
    except (UnpicklingError, RuntimeError, SafetensorError, EOFError, KeyError) as error:
        raise ValueError(
            f"{weights} is damaged or holds more than tensors, and code in a file is never run "
            f"({str(error)[:200]}); give a safetensors file or a plain state dict."
        ) from error
    state = stored.get("state_dict", stored)
    return {key.removeprefix("module."): tensor for key, tensor in state.items()}


def load_transformers_clip(
    folder: str | Path,
    *,
    device: torch.device | str = "cpu",
    dtype: torch.dtype = torch.float32,
    scaling: Scaling = "raw",
    chunk: int = 16,
) -> LoadedClip:
    """A folder saved by transformers' CLIPModel and CLIPTokenizer; its config says which GELU it wants.

    Texts are padded with the folder's own padding token (OpenAI's: the end token, where open_clip pads with 0). It
    makes no difference: attention is causal and the embedding is taken at the first end token.
    """
    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise ValueError(
            f"{folder} holds no config.json, so it is no transformers folder; "
            "give the folder of a CLIPModel (config.json, model.safetensors, tokenizer.json)."
        )
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json")):
        raise ValueError(
            f"{folder} holds no tokenizer, and nothing is downloaded; put tokenizer.json, or vocab.json and "
            "merges.txt, beside config.json."
        )
    try:
        from transformers import CLIPModel, CLIPTokenizer
    except (ImportError, RuntimeError, OSError, AttributeError) as error:
        raise ValueError(_missing("transformers", "transformers", error)) from error
    try:
        loaded: Any = CLIPModel.from_pretrained(str(folder), local_files_only=True, output_loading_info=True)
    except OSError as error:
        raise ValueError(
            f"{folder} has no weights that transformers can read: {str(error)[:400]}; put model.safetensors there."
        ) from error
    model, report = loaded
    if report["missing_keys"] or report["mismatched_keys"]:
        raise ValueError(
            f"The weights in {folder} lack {sorted(report['missing_keys'])[:4]} or have them in other sizes; "
            "this is no whole CLIPModel, so give a folder with both towers and their projections."
        )
    tokenizer = CLIPTokenizer.from_pretrained(str(folder), local_files_only=True)
    return _behind_transformers(model.to(device=device, dtype=dtype), tokenizer, folder, scaling=scaling, chunk=chunk)


def _behind_transformers(model: Any, tokenizer: Any, folder: Path, *, scaling: Scaling, chunk: int) -> LoadedClip:
    """The contract over a CLIPModel, by its towers: what its own shortcuts return depends on the version."""
    model.eval().requires_grad_(False)
    length = model.config.text_config.max_position_embeddings

    def tokenize(texts: list[str]) -> Int[Tensor, "n k"]:
        rows = tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt")
        return rows["input_ids"]

    return LoadedClip(
        model,
        encode_image=lambda pixels: model.visual_projection(model.vision_model(pixels).pooler_output),
        encode_text=lambda tokens: model.text_projection(model.text_model(tokens).pooler_output),
        tokenize=tokenize,
        picture=_picture(folder, model.config.vision_config.image_size),
        dim=model.config.projection_dim,
        scaling=scaling,
        chunk=chunk,
    )


def _picture(folder: Path, size: int) -> Picture:
    """Size from the model, colours from the folder's preprocessor_config.json where there is one."""
    file = folder / "preprocessor_config.json"
    stored = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return Picture(
        size=size,
        mean=tuple(stored.get("image_mean", CLIP_MEAN)),
        std=tuple(stored.get("image_std", CLIP_STD)),
    )


def _missing(module: str, distribution: str, error: Exception) -> str:
    """Three parts for an optional package that cannot be imported."""
    return (
        f"These weights need the package {module}, which cannot be imported here "
        f"({type(error).__name__}: {error}); install it with `pip install {distribution}`, "
        "or use the embedded model, which needs neither."
    )
