"""The bank as the U-Net and the prior see it: latents, encoded depth, image and text embeddings, encoded once."""

import hashlib
import json
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from einops import rearrange, repeat
from jaxtyping import Float, Int
from safetensors import safe_open
from torch import Tensor, nn

from ..checkpoints.files import save_file
from ..content.encoder import ContentEncoder
from ..models.autoencoder import Autoencoder, encode_clip
from ..structure.blur import NO_STRUCTURE_DEPTH, blur
from ..structure.estimator import MAX_BLUR_LEVEL
from ..tensors import OnStep, ignore_progress
from .bank import Bank, BankConfig, load_bank, pictures, shard_path
from .loop import generator_at


@dataclass(frozen=True, kw_only=True)
class LatentBank:
    """Clips encoded, in float16.

    ``depth`` holds two encodings of each clip: its full detail (t_s = 0), and the one at ``level`` (1..7, random).
    ``flat`` is the encoding of a flat map: no structure.
    """

    rgb: Float[Tensor, "m k 4 f h w"]
    depth: Float[Tensor, "m two 4 f h w"]
    level: Int[Tensor, " m"]
    images: Float[Tensor, "m k f d"]
    texts: Float[Tensor, "m k j d"]
    flat: Float[Tensor, "4 h w"]


DECODER = ("decoder.", "post_quant_conv.")
"""The half of the autoencoder that latents do not depend on."""


def fingerprint(*modules: nn.Module) -> str:
    """A hash of the weights that latents are made with: those of other weights must not be used."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in sorted(module.state_dict().items()):
            if name.startswith(DECODER):
                continue
            digest.update(name.encode())
            digest.update(tensor.detach().float().cpu().numpy().tobytes())
        digest.update(str(getattr(module, "config", "")).encode())
    return digest.hexdigest()[:16]


@torch.no_grad()
def encode_shards(
    config: BankConfig,
    bank_folder: Path,
    folder: Path,
    autoencoder: Autoencoder,
    encoder: ContentEncoder,
    *,
    shards: Iterable[int],
    weights: str,
    on_step: OnStep = ignore_progress,
) -> None:
    """Encode the shards that have not been encoded with these weights; ``weights`` is their fingerprint."""
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(shards)
    for done, index in enumerate(wanted):
        path = shard_path(folder, config, index)
        if not (path.exists() and _fingerprint_of(path) == weights):
            generator = generator_at(config.seed, "blur", index)
            encoded = encode_bank(load_bank(config, bank_folder, shards=[index]), autoencoder, encoder, generator)
            _write(path, config, encoded, weights)
        on_step(f"encode {config.name}", done + 1, len(wanted))


def encode_bank(
    bank: Bank,
    autoencoder: Autoencoder,
    encoder: ContentEncoder,
    generator: torch.Generator,
    *,
    chunk: int = 8,
) -> LatentBank:
    """All clips of a bank, a few frames at a time."""
    device = next(autoencoder.parameters()).device
    m, k, f = bank.rgb.shape[:3]
    level = torch.randint(1, MAX_BLUR_LEVEL + 1, (m,), generator=generator)

    def latents(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n 4 h8 w8"]:
        return encode_clip(autoencoder, images, chunk=chunk).cpu().half()

    rgb, embeddings, depths = [], [], []
    for clip in range(m):
        images = pictures(rearrange(bank.rgb[clip], "k f c h w -> (k f) c h w"), device)
        rgb.append(latents(images))
        embeddings.append(encoder.encode_images(images).cpu().half())
        full = rearrange(bank.depth[clip].to(device, torch.float32) / 255, "f 1 h w -> 1 1 f h w")
        both = torch.cat([full, blur(full, int(level[clip]))])
        depths.append(latents(repeat(both, "two 1 f h w -> (two f) c h w", c=3)))
    texts = encoder.encode_texts([text for clip in bank.captions for captions in clip for text in captions])
    flat = torch.full((1, 3, *bank.rgb.shape[-2:]), NO_STRUCTURE_DEPTH, device=device)
    return LatentBank(
        rgb=rearrange(torch.cat(rgb), "(m k f) c h w -> m k c f h w", m=m, k=k),
        depth=rearrange(torch.cat(depths), "(m two f) c h w -> m two c f h w", m=m, two=2),
        level=level,
        images=rearrange(torch.cat(embeddings), "(m k f) d -> m k f d", m=m, k=k),
        texts=rearrange(texts.cpu().half(), "(m k j) d -> m k j d", m=m, k=k),
        flat=latents(flat)[0],
    )


def load_latents(config: BankConfig, folder: Path, *, shards: Iterable[int], weights: str) -> LatentBank:
    """Encoded shards, all of them in memory."""
    parts = []
    for index in shards:
        path = shard_path(folder, config, index)
        if not path.exists() or _fingerprint_of(path) != weights:
            raise ValueError(
                f"{path} has not been encoded with the autoencoder and CLIP weights that are there now; "
                "run the part `encode` first, or name other shards."
            )
        with safe_open(path, framework="pt") as file:
            parts.append({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
    joined = {name: torch.cat([part[name] for part in parts]) for name in parts[0] if name != "flat"}
    return LatentBank(**joined, flat=parts[0]["flat"])


def _write(path: Path, config: BankConfig, encoded: LatentBank, weights: str) -> None:
    """A file that is there whole or not at all."""
    made_with = json.dumps({"weights": weights})
    save_file(path, vars(encoded), kind="latents", config=config, metadata={"latents": made_with})


def _fingerprint_of(path: Path) -> str:
    with safe_open(path, framework="pt") as file:
        return json.loads(file.metadata()["latents"])["weights"]
