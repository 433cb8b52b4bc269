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
from ..models.clip import CLIP
from ..structure.blur import NO_STRUCTURE_DEPTH, blur
from ..structure.estimator import MAX_BLUR_LEVEL, DepthEstimator, range_of, scale_depth
from ..tensors import OnStep, ignore_progress
from .bank import Bank, BankConfig, load_bank, pictures, shard_path
from .shards import Shards
from .sources import Clips, Picks
from .task import generator_at


@dataclass(frozen=True, kw_only=True)
class LatentBank:
    """Clips encoded, in float16.

    ``depth`` holds two encodings of each clip: its full detail (t_s = 0), and the one at ``level`` (1..7, random).
    ``flat`` is the encoding of a flat map: no structure.
    """

    rgb: Float[Tensor, "m k c f h w"]
    depth: Float[Tensor, "m two c f h w"]
    level: Int[Tensor, " m"]
    images: Float[Tensor, "m k f d"]
    texts: Float[Tensor, "m k j d"]
    flat: Float[Tensor, "c h w"]

    def draw(self, step: int, *, count: int, frames: int, generator: torch.Generator) -> Picks:
        """A batch of random clips (sources.py).

        Raises ValueError where they have fewer frames.
        """
        clips, looks, _, length = self.rgb.shape[:4]
        if frames > length:
            raise ValueError(
                f"frames={frames}, but the clips of this bank have {length}; render and encode longer ones, or train "
                "a network of fewer frames."
            )
        draw = lambda most: torch.randint(0, most, (count,), generator=generator)  # noqa: E731
        return Picks(
            clip=draw(clips),
            look=draw(looks),
            first=draw(length - frames + 1),
            shown=draw(length),
            level=draw(MAX_BLUR_LEVEL + 1),
            frames=frames,
        )

    def read(self, picks: Picks, device: torch.device) -> Clips:
        """The picked clips; those with a wanted t_s above 0 get the one level that was encoded for them."""
        blurred = (picks.level > 0).long()
        level = torch.where(picks.level > 0, self.level.cpu()[picks.clip], 0)
        at = repeat(picks.first, "n -> n f", f=picks.frames) + torch.arange(picks.frames)
        row = rearrange(torch.arange(len(at)), "n -> n 1")
        on = lambda part: part.to(device, torch.float32)  # noqa: E731
        cut = lambda part: rearrange(part[row, :, at], "n f c h w -> n c f h w")  # noqa: E731
        return Clips(
            rgb=on(cut(self.rgb[picks.clip, picks.look])),
            depth=on(cut(self.depth[picks.clip, blurred])),
            level=level,
            content=on(self.images[picks.clip, picks.look, picks.shown]),
            flat=on(self.flat),
        )

    def names(self, picks: Picks) -> list[str]:
        """Clip and style of each row."""
        return [
            f"clip {clip} style {look}" for clip, look in zip(picks.clip.tolist(), picks.look.tolist(), strict=True)
        ]

    def longest(self) -> int:
        """Frames of a clip."""
        return self.rgb.shape[3]

    def to(self, device: torch.device) -> "LatentBank":
        """The bank on a device, so that no step waits for the CPU's memory."""
        return LatentBank(**{name: tensor.to(device) for name, tensor in vars(self).items()})


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


def check_weights(shards: Shards, folder: Path, autoencoder: Autoencoder, clip: CLIP) -> None:
    """Refuses prepared data that was encoded with another autoencoder or CLIP; its depth may be anyone's.

    Raises ValueError that names ``folder`` and the network.
    """
    own = {"autoencoder": fingerprint(autoencoder), "clip": fingerprint(clip)}
    if different := [name for name, value in own.items() if shards.weights.get(name) != value]:
        raise ValueError(
            f"{folder} was encoded with another {' and another '.join(different)} than this model's, and its latents "
            "mean something else here; prepare it again with --weights of this model."
        )


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
    estimate: DepthEstimator | None = None,
    on_step: OnStep = ignore_progress,
) -> None:
    """Encode the shards that have not been encoded with these weights; ``weights`` is their fingerprint.

    With ``estimate``, half of the clips show their depth as it finds it in one of their looks, and not the renderer's.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = list(shards)
    for done, index in enumerate(wanted):
        path = shard_path(folder, config, index)
        if not (path.exists() and _fingerprint_of(path) == weights):
            generator = generator_at(config.seed, "blur", index)
            bank = load_bank(config, bank_folder, shards=[index])
            encoded = encode_bank(bank, autoencoder, encoder, generator, estimate=estimate)
            _write(path, config, encoded, weights)
        on_step(f"encode {config.name}", done + 1, len(wanted))


def encode_bank(
    bank: Bank,
    autoencoder: Autoencoder,
    encoder: ContentEncoder,
    generator: torch.Generator,
    *,
    estimate: DepthEstimator | None = None,
    chunk: int = 8,
) -> LatentBank:
    """All clips of a bank, a few frames at a time."""
    device = next(autoencoder.parameters()).device
    m, k, f = bank.rgb.shape[:3]
    level = torch.randint(1, MAX_BLUR_LEVEL + 1, (m,), generator=generator)
    guessed = torch.rand(m, generator=generator) < 0.5
    looked_at = torch.randint(0, k, (m,), generator=generator)

    def latents(images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c2 h8 w8"]:
        return encode_clip(autoencoder, images, chunk=chunk).cpu().half()

    rgb, embeddings, depths = [], [], []
    for clip in range(m):
        images = pictures(rearrange(bank.rgb[clip], "k f c h w -> (k f) c h w"), device)
        rgb.append(latents(images))
        embeddings.append(encoder.encode_images(images).cpu().half())
        depth = bank.depth[clip].to(device, torch.float32) / 255
        if estimate and guessed[clip]:
            seen = rearrange(images, "(k f) c h w -> k f c h w", k=k)[looked_at[clip]]
            raw = torch.cat([estimate(part) for part in seen.split(chunk)])
            depth = scale_depth(raw, range_of(raw))
        full = rearrange(depth, "f 1 h w -> 1 1 f h w")
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
