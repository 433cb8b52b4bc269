"""Part of the adapter: gen1_core's ``OnStep`` as a bar, a preview and the place where cancel takes effect."""

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import comfy.model_management
import comfy.utils
import torch
from comfy.cli_args import LatentPreviewMethod, args
from comfy_api.latest import io
from einops import rearrange
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from ..gen1_core.models.autoencoder import FrameCodec
from ..gen1_core.structure.feeds import PIXELS_PER_LATENT
from ..gen1_core.tensors import Bytes, Latents, OnLatents, to_bytes
from ..gen1_core.video.clip import Clip
from .host_sampling import LatentFormat

UNITS = 1000
SHARES = {"sample": 6}
"""How long a stage usually takes beside the others, which count once."""

SHOWN_FRAMES = 4
EVERY_S = 0.2
"""A preview is a picture over the network: no more than five a second."""


class Progress:
    """An ``OnStep`` for one node: ``Progress("depth", "sample", "decode")`` shows one bar over all its stages.

    A stage that it does not know only looks for cancel.
    """

    def __init__(self, *stages: str):
        shares = [UNITS * SHARES.get(stage, 1) for stage in stages]
        self._begins = {stage: sum(shares[:place]) for place, stage in enumerate(stages)}
        self._shares = dict(zip(stages, shares, strict=True))
        self._total = sum(shares) or UNITS
        self._bar = comfy.utils.ProgressBar(self._total)
        self._preview: tuple[str, Image.Image, int] | None = None
        self._shown_at = 0.0

    def __call__(self, stage: str, done: int, total: int) -> None:
        """Moves the bar; raises ComfyUI's interruption where the user cancelled."""
        check_cancel()
        if stage in self._begins:
            value = self._begins[stage] + round(self._shares[stage] * done / max(total, 1))
            preview, self._preview = self._preview, None
            self._bar.update_absolute(value, self._total, preview)

    def show(self, frames: Bytes) -> None:
        """Several of these frames beside one another as the preview of the next step."""
        if not len(frames) or time.monotonic() - self._shown_at < EVERY_S:
            return
        self._shown_at = time.monotonic()
        self._preview = ("JPEG", sheet(frames), args.preview_size)

    def previewing(self, codec: FrameCodec, model: Any = None) -> OnLatents:
        """Shows latents ``[1 c f h w]`` in the U-Net's scale as such a preview; a MODEL knows its colours already."""
        known = LatentFormat(codec) if model is None else model.model.latent_format

        def show(latents: Latents) -> None:
            if time.monotonic() - self._shown_at >= EVERY_S:
                self.show(coloured(latents, known))

        return show


def several_frames(latent_format: LatentFormat) -> Callable[..., Tensor]:
    """A wrapper (OUTER_SAMPLE) for any of the core's samplers: its previews show several frames, not the first alone.

    Only where previews are on, which is ComfyUI's setting.
    """

    def sample_shown(
        sample: Any,
        noise: Any,
        latent: Any,
        sampler: Any,
        sigmas: Any,
        mask: Any,
        callback: Any,
        *rest: Any,
        **more: Any,
    ) -> Tensor:
        # Newer versions hand on more than 0.3.64 does.
        if args.preview_method == LatentPreviewMethod.NoPreviews:
            return sample(noise, latent, sampler, sigmas, mask, callback, *rest, **more)
        bar = comfy.utils.ProgressBar(len(sigmas) - 1)

        def seen(step: int, clean: Tensor, noisy: Tensor, total: int) -> None:
            if callback is not None:
                callback(step, clean, noisy, total)
            frames = coloured(rearrange(clean, "f c h w -> 1 c f h w"), latent_format)
            bar.update_absolute(step + 1, total, ("JPEG", sheet(frames), args.preview_size))

        return sample(noise, latent, sampler, sigmas, mask, seen, *rest, **more)

    return sample_shown


def coloured(latents: Latents, latent_format: LatentFormat) -> Bytes:
    """Some frames of latents in the U-Net's scale as pictures, by the format's linear colours."""
    by_frame = rearrange(latents[:, :, places(latents.shape[2])], "1 c f h w -> f c h w").float().cpu()
    factors, constant = (torch.tensor(part) for part in latent_format.colours)
    colours = torch.einsum("fchw,ck->fkhw", by_frame, factors) + constant[:, None, None]
    return to_bytes(F.interpolate((colours + 1) / 2, scale_factor=PIXELS_PER_LATENT, mode="bilinear"))


def on_step(*stages: str) -> Progress:
    """Progress for a node with these stages in their order (depth, encode, structure, sample, decode, write, ...)."""
    return Progress(*stages)


def check_cancel() -> None:
    """Raises ComfyUI's interruption where the user cancelled; for loops without a bar."""
    comfy.model_management.throw_exception_if_processing_interrupted()


@contextmanager
def cancellable(*networks: nn.Module) -> Iterator[None]:
    """Inside, cancel takes effect between the layers of networks: on a CPU a call takes longer than a person waits."""
    layers = [layer for network in networks for layer in network.modules() if isinstance(layer, nn.Conv2d | nn.Linear)]
    handles = [layer.register_forward_pre_hook(lambda *_: check_cancel()) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def ticking(chunks: Iterable[Bytes], progress: Progress, stage: str, *, frames: int) -> Iterator[Bytes]:
    """The same chunks, counted, cancellable and shown as they pass."""
    done = 0
    for chunk in chunks:
        done += len(chunk)
        progress.show(chunk)
        progress(stage, done, frames)
        yield chunk


def counted(clip: Clip, progress: Progress, stage: str) -> Iterator[Bytes]:
    """The clip's chunks with a bar and no preview: one would stay on the node in place of the video that it saved."""
    done = 0
    for chunk in clip:
        done += len(chunk)
        progress(stage, done, clip.num_frames)
        yield chunk


def say(node: type[io.ComfyNode], text: str) -> None:
    """A line of text on the node itself; its schema needs ``hidden=[io.Hidden.unique_id]``."""
    if node.hidden is not None and node.hidden.unique_id is not None:
        from server import PromptServer  # there is none where the nodes run without a server

        PromptServer.instance.send_progress_text(text, node.hidden.unique_id)


def places(frames: int) -> list[int]:
    """Some frames from the first to the last."""
    count = min(frames, SHOWN_FRAMES)
    return [round(k * (frames - 1) / max(count - 1, 1)) for k in range(count)]


def sheet(frames: Tensor) -> Image.Image:
    """Up to four frames, two in a row, as one picture."""
    shown = frames[places(len(frames))].cpu()
    columns = 1 if len(shown) == 1 else 2
    shown = torch.cat([shown, torch.zeros_like(shown[: -len(shown) % columns])])
    return Image.fromarray(rearrange(shown, "(r k) c h w -> (r h) (k w) c", k=columns).contiguous().numpy())
