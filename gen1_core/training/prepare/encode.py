"""One unit to one sample: frames, depth, and what autoencoder and CLIP make of them, exactly as the pipeline would."""

import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace

import torch
from einops import rearrange
from jaxtyping import Float, UInt8
from torch import Tensor

from ...models.autoencoder import encode_clip
from ...structure.blur import LEVEL_CHANNELS, encode_depth
from ...structure.estimator import MAX_BLUR_LEVEL, range_of, scale_depth
from ...tensors import Bytes, Depth, to_bytes, to_float
from ...video.geometry import resize
from ...video.read import Video
from ..bank import BankConfig, any_style, look_of, render_clip
from ..loop import generator_at
from ..world import caption, render_reliefs
from .networks import Networks
from .sources import PrepareConfig, Unit

NAMED_SHARE = 0.6
"""Of the styles that a relief is shown in, the share of named ones; the others are composed."""


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What a unit shows: its frames in one look or several, its depth where that is known, and what is said of it."""

    rgb: UInt8[Tensor, "k f 3 h w"]
    depth: Depth | None
    captions: list[list[str]]
    looks: list[str]
    family: str


@dataclass
class Clock:
    """Seconds by part of the work: what a run reports about itself, and nothing in a shard."""

    seconds: dict[str, float] = field(default_factory=dict)

    @contextmanager
    def part(self, name: str) -> Iterator[None]:
        """Adds the time of a block."""
        began = time.perf_counter()
        yield
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - began


def read_scene(video: Video, unit: Unit) -> Scene:
    """The frames of a unit at its bucket's size.

    Raises whatever a decoder raises for a file that cannot be read.
    """
    numbers = range(unit.first, unit.first + (unit.frames - 1) * unit.stride + 1, unit.stride)
    source = video.source
    frames = []
    for pixels in source.read_frames(list(numbers), source.width, source.height):
        # Contiguous, as the pipeline reads frames: with channels last, convolutions round otherwise.
        whole = rearrange(torch.from_numpy(pixels.copy()), "h w c -> 1 c h w").contiguous()
        frames.append(fit(whole, height=unit.height, width=unit.width))
    rgb = rearrange(torch.cat(frames), "f c h w -> 1 f c h w")
    return Scene(rgb=rgb, depth=None, captions=[list(unit.captions)], looks=[""], family="")


def render_scene(unit: Unit, config: PrepareConfig, *, device: torch.device) -> Scene:
    """A clip of the procedural world, in several looks, with its exact depth."""
    seed = int(unit.source.partition(":")[2])
    bank = BankConfig(
        name="world",
        seed=seed,
        shards=1,
        styles=config.looks,
        captions=config.captions,
        frames=unit.frames,
        size=unit.height,
    )
    clip = render_clip(bank, unit.first, device=device)
    depth = rearrange(clip.depth[0].float() / 255, "f 1 h w -> 1 1 f h w")
    return Scene(rgb=clip.rgb[0], depth=depth, captions=clip.captions[0], looks=clip.looks[0], family=clip.families[0])


@torch.inference_mode()
def with_reliefs(
    scene: Scene, unit: Unit, config: PrepareConfig, networks: Networks, clock: Clock, *, device: torch.device
) -> Scene:
    """The scene of a real clip also in styles of the world: its depth as a relief, with as many captions each."""
    generator = generator_at(config.seed, f"relief {unit.source}", unit.first)
    styles = [any_style(generator, NAMED_SHARE) for _ in range(config.reliefs)]
    with clock.part("depth"):
        depth = estimate(to_float(scene.rgb[0].to(device)), networks, chunk=config.chunk)
    with clock.part("render"):
        reliefs = render_reliefs(rearrange(depth, "1 1 f h w -> f h w"), styles)
    said = [[caption(style, None, generator) for _ in scene.captions[0]] for style in styles]
    return replace(
        scene,
        rgb=torch.cat([scene.rgb, reliefs.cpu()]),
        depth=depth,
        captions=[*scene.captions, *said],
        looks=[*scene.looks, *(look_of(style) for style in styles)],
    )


def fit(frames: Bytes, *, height: int, width: int) -> UInt8[Tensor, "n 3 height width"]:
    """Frames resampled until they cover the bucket, as little as that takes, and cropped around their centre.

    An edit pads instead; but what is padded repeats the border, and training shall not learn to draw that.
    """
    high, wide = frames.shape[-2:]
    scale = max(height / high, width / wide)
    high, wide = max(height, round(high * scale)), max(width, round(wide * scale))
    covering = resize(to_float(frames), width=wide, height=high)
    top, left = (high - height) // 2, (wide - width) // 2
    return to_bytes(covering[..., top : top + height, left : left + width])


def levels_of(unit: Unit, config: PrepareConfig) -> tuple[int, ...]:
    """The t_s at which the depth of a unit is encoded: 0 and one that follows from the seed and the unit, or all."""
    if config.levels == "all":
        return tuple(range(MAX_BLUR_LEVEL + 1))
    generator = generator_at(config.seed, f"level {unit.source}", unit.first)
    return 0, int(torch.randint(1, MAX_BLUR_LEVEL + 1, (1,), generator=generator))


@torch.inference_mode()
def encode_scene(
    scene: Scene, levels: Sequence[int], networks: Networks, clock: Clock, *, device: torch.device, chunk: int
) -> dict[str, Tensor]:
    """``rgb`` [k c f h w], ``depth`` [v c f h w], ``images`` [k f d], ``texts`` [k j d], in float16 on the CPU.

    Raises ValueError where a network answers with NaN.
    """
    looks, frames = scene.rgb.shape[:2]
    images = to_float(rearrange(scene.rgb, "k f c h w -> (k f) c h w").to(device))
    with clock.part("latents"):
        rgb = encode_clip(networks.autoencoder, images, chunk=chunk)
    depth = scene.depth
    if depth is None:
        with clock.part("depth"):
            depth = estimate(images, networks, chunk=chunk)
    with clock.part("structure"):
        encoded = [
            encode_depth(networks.autoencoder, depth.to(device), level, chunk)[:, :-LEVEL_CHANNELS] for level in levels
        ]
    with clock.part("clip"):
        embedded = networks.encoder.encode_images(images)
        texts = embed_texts(scene.captions, networks)
    return {
        "rgb": _kept(rearrange(rgb, "(k f) c h w -> k c f h w", k=looks)),
        "depth": _kept(torch.cat(encoded)),
        "images": _kept(rearrange(embedded, "(k f) d -> k f d", f=frames)),
        "texts": _kept(texts),
    }


def estimate(images: Float[Tensor, "f 3 h w"], networks: Networks, *, chunk: int) -> Depth:
    """Depth of a clip, 0..1 with near 1, by one range for all its frames."""
    raw = torch.cat([networks.depth(part) for part in images.split(chunk)])
    return rearrange(scale_depth(raw, range_of(raw)), "f 1 h w -> 1 1 f h w")


def embed_texts(captions: Sequence[Sequence[str]], networks: Networks) -> Float[Tensor, "k j d"]:
    """Embeddings of the captions of each look; j is 0 where there are none."""
    texts = [text for look in captions for text in look]
    if not texts:
        return torch.zeros(len(captions), 0, networks.encoder.dim)
    return rearrange(networks.encoder.encode_texts(texts), "(k j) d -> k j d", k=len(captions))


def _kept(values: Tensor) -> Tensor:
    half = values.float().cpu().half().contiguous()
    if not torch.isfinite(half).all():
        raise ValueError(
            "a network answered with NaN or with values beyond float16, which would spoil the training; "
            "encode with dtype float32, or leave this file out."
        )
    return half
