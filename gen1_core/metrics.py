"""The paper's two metrics (section 4.2, Table S1), on any content encoder, and distances to what is known to be true.

Compare only numbers of one encoder.
"""

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from .content.encoder import ContentEncoder
from .tensors import Images


def frame_consistency(embeddings: Float[Tensor, "f d"]) -> float:
    """Mean cosine similarity of the image embeddings of consecutive frames; 1 for a still clip.

    Raises ValueError below two frames, where it is not defined.
    """
    if embeddings.shape[0] < 2:
        raise ValueError(
            f"{embeddings.shape[0]} frame has no consecutive pair, so frame consistency is undefined; give two or more."
        )
    return F.cosine_similarity(embeddings[1:], embeddings[:-1], dim=-1).mean().item()


def prompt_consistency(embeddings: Float[Tensor, "f d"], text: Float[Tensor, "1 d"]) -> float:
    """Mean cosine similarity between the prompt's text embedding and the image embedding of every frame."""
    return F.cosine_similarity(embeddings, text, dim=-1).mean().item()


@torch.inference_mode()
def clip_scores(encoder: ContentEncoder, frames: Images, prompt: str) -> dict[str, float]:
    """Both metrics of one edited clip."""
    embeddings = encoder.encode_images(frames)
    text = encoder.encode_texts([prompt])
    return {
        "frame_consistency": frame_consistency(embeddings),
        "prompt_consistency": prompt_consistency(embeddings, text),
    }


def psnr(images: Float[Tensor, "*axes"], truth: Float[Tensor, "*axes"]) -> float:
    """Peak signal-to-noise ratio in dB of values 0..1, the mean over the first axis; equal pictures count as 100 dB."""
    error = rearrange((images.clamp(0, 1) - truth).square(), "n ... -> n (...)").mean(dim=1)
    return float((-10 * error.clamp(min=1e-10).log10()).mean())


def depth_error(edited: Float[Tensor, "b 1 f h w"], source: Float[Tensor, "b 1 f h w"]) -> float:
    """Mean absolute difference of two depth maps in 0..1: how much of the structure an edit lost."""
    return (edited - source).abs().mean().item()
