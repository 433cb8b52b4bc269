"""The three CLIP encoders: embedded, open_clip, transformers; all three agree on the same weights."""

import gzip
import json
import sys
from itertools import islice
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
import transformers
from einops import rearrange
from PIL import Image
from safetensors.torch import save_file

from gen1_core.content.clip import EmbeddedClip, LoadedClip, load_open_clip, load_transformers_clip
from gen1_core.content.encoder import ContentEncoder
from gen1_core.content.tokenizer import Tokenizer, read_merges
from gen1_core.models.clip import CLIP, CLIPConfig

SETTINGS = dict(
    embed_dim=12,
    vision_cfg=dict(image_size=16, patch_size=8, width=16, layers=2, head_width=8, mlp_ratio=2.0),
    text_cfg=dict(context_length=10, vocab_size=49408, width=16, heads=2, layers=2, mlp_ratio=2.0),
)
TEXTS = ["a castle made of lava", "neon city, it's night", "word " * 30, "café 日本語"]
IMAGES = torch.rand(5, 3, 21, 30, generator=torch.Generator().manual_seed(0))


def ratio(a: torch.Tensor, b: torch.Tensor) -> float:
    return ((a - b).norm() / b.norm()).item()


@pytest.fixture(scope="module")
def merges() -> list[tuple[str, str]]:
    path = Path(open_clip.__file__).parent / "bpe_simple_vocab_16e6.txt.gz"
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return read_merges("".join(islice(file, 1 + 49152 - 256 - 2)))


def random_reference(*, quick_gelu: bool) -> open_clip.CLIP:
    model = open_clip.CLIP(**SETTINGS, quick_gelu=quick_gelu).eval()
    generator = torch.Generator().manual_seed(0)
    for parameter in model.parameters():
        parameter.data = 0.3 * torch.randn(parameter.shape, generator=generator)
    return model


def as_transformers(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """open_clip's keys as transformers' keys."""
    renames = [
        ("visual.transformer.resblocks.", "vision_model.encoder.layers."),
        ("transformer.resblocks.", "text_model.encoder.layers."),
        ("visual.conv1", "vision_model.embeddings.patch_embedding"),
        ("visual.class_embedding", "vision_model.embeddings.class_embedding"),
        ("visual.positional_embedding", "vision_model.embeddings.position_embedding.weight"),
        ("visual.ln_pre", "vision_model.pre_layrnorm"),
        ("visual.ln_post", "vision_model.post_layernorm"),
        ("visual.proj", "visual_projection.weight"),
        ("token_embedding", "text_model.embeddings.token_embedding"),
        ("positional_embedding", "text_model.embeddings.position_embedding.weight"),
        ("ln_final", "text_model.final_layer_norm"),
        ("text_projection", "text_projection.weight"),
    ]
    inner = [("ln_1", "layer_norm1"), ("ln_2", "layer_norm2"), ("c_fc", "fc1"), ("c_proj", "fc2")]
    inner += [("attn.", "self_attn.")]
    renamed = {}
    for key, value in state.items():
        new = next((key.replace(old, new, 1) for old, new in renames if key.startswith(old)), key)
        for old, to in inner:
            new = new.replace(old, to)
        if new in ("visual_projection.weight", "text_projection.weight"):
            value = value.T
        if "in_proj_" in new:
            parts = rearrange(value, "(three d) ... -> three d ...", three=3)
            renamed |= {new.replace("in_proj_", f"{n}_proj."): p for n, p in zip("qkv", parts, strict=True)}
        else:
            renamed[new] = value
    return {key: value.clone().contiguous() for key, value in renamed.items()}


def write_folder(folder: Path, merges, *, quick_gelu: bool, eos_token_id: int) -> Path:
    """What CLIPModel and CLIPTokenizer save, in OpenAI's layout."""
    shared = dict(intermediate_size=32, hidden_size=16, num_attention_heads=2, num_hidden_layers=2)
    shared |= dict(hidden_act="quick_gelu" if quick_gelu else "gelu", projection_dim=12)
    config = transformers.CLIPConfig(
        text_config=shared
        | dict(
            vocab_size=49408,
            max_position_embeddings=10,
            eos_token_id=eos_token_id,
            bos_token_id=0,
            pad_token_id=1,
        ),
        vision_config=shared | dict(image_size=16, patch_size=8),
        projection_dim=12,
    )
    folder.mkdir()
    config.architectures = ["CLIPModel"]
    config.save_pretrained(folder)
    state = as_transformers(random_reference(quick_gelu=quick_gelu).state_dict())
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    tokenizer = Tokenizer(merges, context_length=10)
    ids = tokenizer.ids | {"<|startoftext|>": tokenizer.start_token, "<|endoftext|>": tokenizer.end_token}
    (folder / "vocab.json").write_text(json.dumps(ids), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(merge) for merge in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("quick_gelu, eos_token_id", [(True, 2), (False, 49407)])
def test_the_three_encoders_agree(tmp_path, merges, quick_gelu, eos_token_id):
    reference = random_reference(quick_gelu=quick_gelu)
    save_file(reference.state_dict(), tmp_path / "clip.safetensors")
    opened = load_open_clip(SETTINGS | dict(quick_gelu=quick_gelu), tmp_path / "clip.safetensors", chunk=2)
    folder = write_folder(tmp_path / "ordner-ä", merges, quick_gelu=quick_gelu, eos_token_id=eos_token_id)
    transformed = load_transformers_clip(folder)
    own = embedded(reference, merges, quick_gelu=quick_gelu)
    for encoder in (opened, transformed, own):
        assert isinstance(encoder, ContentEncoder) and encoder.dim == 12
    expected_texts = reference.encode_text(open_clip.SimpleTokenizer(context_length=10)(TEXTS)).detach()
    for encoder in (opened, transformed, own):
        assert ratio(encoder.encode_texts(TEXTS), expected_texts) <= 1e-5
        assert ratio(encoder.encode_images(IMAGES), own.encode_images(IMAGES)) <= 1e-5
    other = embedded(reference, merges, quick_gelu=not quick_gelu)
    assert ratio(other.encode_texts(TEXTS), expected_texts) > 1e-3
    padded = transformed.tokenize(["castle"])[0]
    assert padded[-1] == 49407 and opened.tokenize(["castle"])[0, -1] == 0


def embedded(reference: open_clip.CLIP, merges, *, quick_gelu: bool) -> EmbeddedClip:
    sizes = dict(vision_width=16, vision_layers=2, vision_heads=2, text_width=16, text_layers=2, text_heads=2)
    config = CLIPConfig(
        embed_dim=12,
        image_size=16,
        patch_size=8,
        context_length=10,
        vocab_size=49408,
        mlp_ratio=2.0,
        quick_gelu=quick_gelu,
        **sizes,
    )
    clip = CLIP(config).eval()
    clip.load_state_dict(reference.state_dict(), strict=True)
    return EmbeddedClip(clip, Tokenizer(merges, context_length=10), scaling="raw")


def test_images_equal_open_clips_own_preprocessing(merges):
    reference = random_reference(quick_gelu=False)
    coarse = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((70, 50), Image.Resampling.BICUBIC)
    expected = reference.encode_image(open_clip.image_transform(16, is_train=False)(picture)[None]).detach()
    images = rearrange(torch.from_numpy(np.array(picture)), "h w c -> 1 c h w").float() / 255
    ours = embedded(reference, merges, quick_gelu=False).encode_images(images)
    assert ratio(ours, expected) < 0.02  # open_clip rounds the resized picture to bytes


@pytest.fixture(scope="module")
def small() -> EmbeddedClip:
    torch.manual_seed(0)
    sizes = dict(vision_width=16, vision_layers=1, vision_heads=2, text_width=16, text_layers=1, text_heads=2)
    clip = CLIP(CLIPConfig(embed_dim=12, image_size=16, patch_size=8, context_length=8, **sizes)).eval()
    return EmbeddedClip(clip, Tokenizer.embedded(8), words=frozenset({"castle"}), chunk=2)


def test_chunks_do_not_change_the_embeddings(small):
    whole = EmbeddedClip(small.clip, small.tokenizer, chunk=100)
    torch.testing.assert_close(small.encode_images(IMAGES), whole.encode_images(IMAGES))


def test_the_embedded_model_lives_on_the_sphere(small):
    for embeddings in (small.encode_images(IMAGES), small.encode_texts(TEXTS)):
        torch.testing.assert_close(embeddings.square().mean(dim=-1), torch.ones(len(embeddings)))
        assert not embeddings.requires_grad


def test_half_precision_towers_give_float32(small):
    clip = CLIP(small.clip.config).to(torch.bfloat16)
    clip.load_state_dict(small.clip.state_dict())
    half = EmbeddedClip(clip, small.tokenizer)
    images, texts = half.encode_images(IMAGES), half.encode_texts(TEXTS)
    assert images.dtype == texts.dtype == torch.float32
    assert ratio(images, small.encode_images(IMAGES)) < 0.05
    assert ratio(texts, small.encode_texts(TEXTS)) < 0.05


def test_unfamiliar_words(small):
    assert small.unfamiliar("the castles of Spain") == ["spain"]
    assert small.unfamiliar("a tax return") == ["tax", "return"]
    assert EmbeddedClip(small.clip, small.tokenizer).unfamiliar("anything, where no words were recorded") == []


def test_the_embedded_model_refuses_a_foreign_tokenizer(small):
    with pytest.raises(ValueError, match="give the merges that the weights were trained with"):
        EmbeddedClip(small.clip, Tokenizer([], context_length=8))


def test_no_images_are_refused(small):
    with pytest.raises(ValueError, match="give at least one"):
        small.encode_images(IMAGES[:0])


@pytest.mark.parametrize(
    "config, advice",
    [
        ("hf-hub:laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "choose one from open_clip.list_models"),
        ("ViT-B-16-SigLIP", "choose a config with CLIP's own tokenizer"),
        ("roberta-ViT-B-32", "choose a config with CLIP's own tokenizer"),
        (SETTINGS | dict(text_cfg=dict(vocab_size=32000)), "choose a config with CLIP's vocabulary"),
        (SETTINGS, "give the path of the weights"),
    ],
)
def test_open_clip_refuses_what_it_would_have_to_download(tmp_path, config, advice):
    with pytest.raises(ValueError, match=advice):
        load_open_clip(config, tmp_path / "missing.safetensors")


def test_open_clip_refuses_weights_for_another_config(tmp_path):
    state = random_reference(quick_gelu=False).state_dict()
    save_file({key: value for key, value in state.items() if "ln_final" not in key}, tmp_path / "short.safetensors")
    with pytest.raises(ValueError, match="give the config that the file was trained with"):
        load_open_clip(SETTINGS, tmp_path / "short.safetensors")


class Rocket:
    """A pickle that would run code."""

    def __reduce__(self):
        return (Path.touch, (Path("launched"),))


def test_open_clip_never_runs_code_of_a_pickle(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": Rocket()}, tmp_path / "rocket.pt")
    with pytest.raises(ValueError, match="give a safetensors file or a plain state dict"):
        load_open_clip(SETTINGS, tmp_path / "rocket.pt")
    assert not (tmp_path / "launched").exists()


def test_transformers_refuses_folders_that_are_not_whole(tmp_path):
    with pytest.raises(ValueError, match="give the folder of a CLIPModel"):
        load_transformers_clip(tmp_path)
    transformers.CLIPConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="beside config.json"):
        load_transformers_clip(tmp_path)
    (tmp_path / "vocab.json").write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match=r"put model\.safetensors there"):
        load_transformers_clip(tmp_path)


def test_transformers_refuses_missing_weights(tmp_path, merges):
    folder = write_folder(tmp_path / "clip", merges, quick_gelu=True, eos_token_id=2)
    state = as_transformers(random_reference(quick_gelu=True).state_dict())
    del state["text_projection.weight"]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match="give a folder with both towers"):
        load_transformers_clip(folder)


def test_the_embedded_model_needs_neither_package(monkeypatch, tmp_path, small):
    for name in ("open_clip", "transformers", "timm"):
        monkeypatch.setitem(sys.modules, name, None)
    assert small.encode_texts(TEXTS).shape == (4, 12)
    with pytest.raises(ValueError, match="pip install open_clip_torch"):
        load_open_clip("ViT-L-14", tmp_path / "x.safetensors")
    for name in ("config.json", "vocab.json"):
        (tmp_path / name).write_text("{}", encoding="utf-8")
    with pytest.raises(ValueError, match="pip install transformers"):
        load_transformers_clip(tmp_path)


def test_public_weights_know_every_word(tmp_path):
    save_file(random_reference(quick_gelu=False).state_dict(), tmp_path / "clip.safetensors")
    encoder = load_open_clip(SETTINGS, tmp_path / "clip.safetensors")
    assert isinstance(encoder, LoadedClip) and encoder.unfamiliar("quarterly tax return") == []
