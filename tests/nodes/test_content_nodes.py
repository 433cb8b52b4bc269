"""The content nodes: every input changes the content in the direction its tooltip says."""

import json
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from einops import rearrange
from parts import randomised
from torch import Tensor
from torch.nn import functional as F

SAND, SNOW = "golden desert sand at dusk", "snow and blue ice in winter"
SIZE, WIDTH, EMBED, CONTEXT = 16, 128, 24, 16
"""Of the small public model: its vision tower's picture, states and embedding, and what its U-Net reads."""

WORDS = {"prompt": "", "negative": "", "seed": 0, "per_frame": False}


@pytest.fixture(scope="module")
def tiny(pack: Any) -> Any:
    """GEN1_ENCODER of the embedded model."""
    return pack("nodes.host").encoder_wire(pack("gen1_core.loading").load_gen1("tiny").describer)


@pytest.fixture(scope="module")
def tower(pack: Any) -> Any:
    clip = pack("gen1_core.models.clip")
    config = clip.CLIPConfig(
        embed_dim=EMBED,
        image_size=SIZE,
        patch_size=4,
        vision_width=WIDTH,
        vision_layers=3,
        vision_heads=2,
        mlp_ratio=4.0,
    )
    return randomised(clip.VisionTransformer(config), 1)


@pytest.fixture(scope="module")
def public(pack: Any, tower: Any) -> Any:
    """GEN1_ENCODER of public weights with two kinds of IP-Adapter, random and small."""
    adapter, picture = pack("gen1_core.models.adapter"), pack("gen1_core.content.picture")
    plain = adapter.ImageProjectionConfig(input_width=EMBED, context_width=CONTEXT)
    plus = adapter.ResamplerConfig(
        input_width=WIDTH, width=40, context_width=CONTEXT, tokens=5, depth=2, heads=2, mlp_width=160
    )
    encoders = [
        picture.PictureEncoder(tower, randomised(adapter.build_projection(config), 2 + k), scales=(0.5 + k,))
        for k, config in enumerate((plain, plus))
    ]
    return reader(pack, adapters=tuple(encoders))


@pytest.fixture(scope="module")
def unclip(pack: Any, tower: Any) -> Any:
    """GEN1_ENCODER of a small SD-unCLIP that gives up much of the picture."""
    encoder = pack("gen1_core.content.picture").UnclipEncoder
    mean, std = torch.full((EMBED,), 0.3), torch.full((EMBED,), 1.5)
    return reader(pack, unclip=(encoder(tower, mean=mean, std=std, noise_level=300),))


def reader(pack: Any, **parts: Any) -> Any:
    clip, text = pack("gen1_core.models.clip"), pack("gen1_core.content.text")
    config = clip.CLIPConfig(
        text_width=CONTEXT, text_heads=2, text_layers=1, vocab_size=49408, context_length=77, quick_gelu=True
    )
    encoder = text.sd_text_encoder(randomised(clip.TextTower(config), 9))
    return pack("nodes.host").encoder_wire(pack("gen1_core.content.describe").PublicDescriber(text=encoder, **parts))


@pytest.fixture(scope="module")
def run(pack: Any) -> Callable[..., Any]:
    """One node by its class name; its content."""

    def execute(name: str, **inputs: Any) -> Any:
        with torch.inference_mode():
            return getattr(pack("nodes.content"), name).execute(**inputs).result[0]

    return execute


@pytest.fixture(scope="module")
def from_text(run: Callable[..., Any]) -> Callable[..., Any]:
    def execute(encoder: Any, prompt: str, *, negative: str = "", seed: int = 0) -> Any:
        return run("ContentFromText", encoder=encoder, prompt=prompt, negative=negative, seed=seed)

    return execute


@pytest.fixture(scope="module")
def from_image(run: Callable[..., Any]) -> Callable[..., Any]:
    def execute(encoder: Any, **inputs: Any) -> Any:
        return run("ContentFromImage", encoder=encoder, **{**WORDS, **inputs})

    return execute


def pictures(count: int, *, size: int = SIZE, seed: int = 4) -> Tensor:
    """IMAGE of 8 bits."""
    return torch.randint(0, 256, (count, size, size, 3), generator=torch.Generator().manual_seed(seed)) / 255


def alike(a: Tensor, b: Tensor) -> float:
    return F.cosine_similarity(a.flatten(), b.flatten(), dim=0).item()


def tensors(content: Any) -> list[Tensor]:
    found = [content.tokens, content.null]
    found += [each for picture in content.pictures for each in (picture.tokens, picture.null)]
    return found + ([content.embedding, content.embedding_null] if content.embedding is not None else [])


def require_equal(ours: Any, wanted: Any) -> None:
    assert ours.kind == wanted.kind and len(tensors(ours)) == len(tensors(wanted))
    assert [picture.scales for picture in ours.pictures] == [picture.scales for picture in wanted.pictures]
    for one, other in zip(tensors(ours), tensors(wanted), strict=True):
        torch.testing.assert_close(one, other)


# Gen-1 Content from Text.


def test_content_of_a_prompt_is_that_of_the_library(pack, tiny, from_text):
    gen1 = pack("gen1_core.loading").load_gen1("tiny")
    wanted = pack("gen1_core.pipeline").describe(gen1, prompt=SAND, negative=SNOW, seed=3)
    ours = from_text(tiny, SAND, negative=SNOW, seed=3)
    assert torch.equal(ours.tokens, wanted.tokens) and torch.equal(ours.null, wanted.null)


def test_prompt_says_the_look(tiny, from_text):
    """The content is nearer to the words it was made of than to others, both ways."""
    texts = tiny.describer.encoder.encode_texts([SAND, SNOW])
    for prompt, own, other in ((SAND, 0, 1), (SNOW, 1, 0)):
        tokens = from_text(tiny, prompt).tokens
        assert alike(tokens, texts[own]) > alike(tokens, texts[other]) + 0.2


def test_negative_takes_the_place_of_nothing(tiny, from_text):
    plain, away = from_text(tiny, SAND), from_text(tiny, SAND, negative=SNOW)
    assert not plain.null.any() and torch.equal(plain.tokens, away.tokens)
    assert torch.equal(away.null, from_text(tiny, SNOW).tokens)


def test_seed_draws_another_picture_of_the_same_words(tiny, from_text):
    first, again, other = (from_text(tiny, SAND, seed=seed).tokens for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    assert alike(first, other) > alike(first, from_text(tiny, SNOW, seed=1).tokens)


def test_seed_changes_nothing_where_the_words_themselves_are_read(public, from_text):
    require_equal(from_text(public, SAND, seed=1), from_text(public, SAND, seed=2))
    assert not torch.equal(from_text(public, SAND).tokens, from_text(public, SNOW).tokens)


def test_encoder_makes_the_content_of_its_own_model(tiny, public, from_text):
    assert from_text(tiny, SAND).tokens.shape == (1, 1, 1, 128)
    content = from_text(public, SAND)
    assert content.tokens.shape == (1, 1, 77, CONTEXT) and [p.scales for p in content.pictures] == [(0.0,), (0.0,)]


def test_words_the_model_does_not_know_are_said_on_the_node(pack, tiny, from_text, monkeypatch):
    said: list[str] = []
    monkeypatch.setattr(pack("nodes.host"), "say", lambda node, text: said.append(text))
    from_text(tiny, SAND)
    assert not said
    from_text(tiny, "a hovercraft of snow")
    assert said == ["Not among the words this model learnt: hovercraft"]


def test_an_empty_prompt_is_refused_before_anything_runs(pack, tiny, from_text):
    node = pack("nodes.content").ContentFromText
    assert node.validate_inputs() is True and node.validate_inputs(prompt="snow") is True
    assert "say what the clip should show" in node.validate_inputs(prompt=" \n")
    with pytest.raises(ValueError, match="give a prompt or an image"):
        from_text(tiny, "")


# Gen-1 Content from Image.


def test_image_gives_the_look_of_the_picture(pack, tiny, from_image, from_text):
    gen1 = pack("gen1_core.loading").load_gen1("tiny")
    image, other = pictures(1, size=90), torch.full((1, 70, 90, 3), 0.8)
    wanted = pack("gen1_core.pipeline").describe(gen1, image=rearrange(image, "n h w c -> n c h w"))
    content = from_image(tiny, image=image)
    assert torch.equal(content.tokens, wanted.tokens) and not content.null.any()
    assert alike(content.tokens, from_image(tiny, image=image.roll(9, dims=2)).tokens) > 0.9
    assert alike(content.tokens, from_image(tiny, image=other).tokens) < 0.9


def test_prompt_goes_beside_the_picture(public, from_image, from_text):
    image = pictures(1)
    content, silent = from_image(public, image=image, prompt=SAND), from_image(public, image=image)
    assert torch.equal(content.tokens, from_text(public, SAND).tokens)
    assert not torch.equal(content.tokens, silent.tokens)
    assert [picture.tokens.shape[2] for picture in content.pictures] == [4, 5]


def test_several_pictures_go_together_in_an_ip_adapter(public, from_image):
    content = from_image(public, image=pictures(3))
    assert [picture.tokens.shape[1:3] for picture in content.pictures] == [(1, 12), (1, 15)]


def test_negative_and_seed_of_a_picture(tiny, public, unclip, from_image, from_text):
    image = pictures(1)
    away = from_image(tiny, image=image, negative=SNOW, seed=5)
    assert torch.equal(away.null, from_text(tiny, SNOW, seed=5).tokens)
    assert not torch.equal(away.null, from_image(tiny, image=image, negative=SNOW, seed=6).null)
    assert torch.equal(from_image(public, image=image, negative=SNOW).null, from_text(public, SAND, negative=SNOW).null)
    first, again, other = (from_image(unclip, image=image, seed=seed).embedding for seed in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)
    require_equal(from_image(tiny, image=image, seed=1), from_image(tiny, image=image, seed=2))


@pytest.mark.parametrize("kind", ["tiny", "public", "unclip"])
def test_per_frame_lets_each_frame_follow_its_own(kind, request, from_image):
    encoder, images = request.getfixturevalue(kind), pictures(3)
    words = {"negative": SNOW, "seed": 7, "prompt": "" if kind == "tiny" else SAND}
    each = from_image(encoder, image=images, per_frame=True, **words)
    for frame in range(3):
        alone = from_image(encoder, image=images[frame : frame + 1], **words)
        for ours, wanted in zip(tensors(each), tensors(alone), strict=True):
            at = frame if ours.shape[1] == 3 else 0
            torch.testing.assert_close(ours[:, at], wanted[:, 0])
    assert 3 in {one.shape[1] for one in tensors(each)}


def seen_by_core(pack: Any, tower: Any, folder: Path, image: Tensor) -> Any:
    """CLIP_VISION_OUTPUT of the core's own network with the weights of our tower."""
    import comfy.clip_vision as core

    config = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 3,
        "num_attention_heads": 2,
        "image_size": SIZE,
        "patch_size": 4,
        "projection_dim": EMBED,
        "hidden_act": "gelu",
        "num_channels": 3,
        "model_type": "clip_vision_model",
    }
    file = folder / "config.json"
    file.write_text(json.dumps(config), encoding="utf-8")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the core's own
        model = core.ClipVisionModel(str(file))
        model.model.float()  # the core keeps it in half precision, which is 1e-4 away
        state = {f"visual.{name}": tensor.clone() for name, tensor in tower.state_dict().items()}
        missing, unexpected = model.load_sd(core.convert_to_transformers(state, "visual."))
        assert not missing and not unexpected
        with torch.inference_mode():
            return model.encode_image(image)


@pytest.mark.parametrize("kind", ["public", "unclip"])
@pytest.mark.parametrize("frames", [1, 3])
def test_clip_vision_gives_what_the_picture_gives(pack, tower, kind, frames, request, from_image, tmp_path):
    encoder, images = request.getfixturevalue(kind), pictures(frames)
    given = {"prompt": SAND, "negative": SNOW, "seed": 3, "per_frame": frames > 1}
    seen = seen_by_core(pack, tower, tmp_path, images)
    content = from_image(encoder, clip_vision=seen, **given)
    wanted = from_image(encoder, image=images, **given)
    for ours, other in zip(tensors(content), tensors(wanted), strict=True):
        assert ours.shape == other.shape
        assert (ours - other).norm() <= 1e-5 * other.norm()
    assert [picture.scales for picture in content.pictures] == [picture.scales for picture in wanted.pictures]


def test_clip_vision_of_the_papers_kind(pack, tiny, from_image):
    """The embedded model's own tower in the place of a CLIP Vision file."""
    from comfy.clip_vision import Output

    clip = tiny.describer.encoder.clip
    images = pictures(2, size=clip.config.image_size)
    pixels = pack("gen1_core.models.clip").preprocess(rearrange(images, "n h w c -> n c h w"), clip.config.image_size)
    seen = Output()
    with torch.inference_mode():
        seen["image_embeds"], seen["penultimate_hidden_states"] = (
            clip.visual(pixels),
            clip.visual.hidden(pixels, skip=1),
        )
    ours = from_image(tiny, clip_vision=seen, per_frame=True, negative=SNOW)
    require_equal(ours, from_image(tiny, image=images, per_frame=True, negative=SNOW))


def test_what_cannot_be_read_is_refused(pack, tiny, public, tower, from_image, tmp_path):
    image, seen = pictures(1), seen_by_core(pack, tower, tmp_path, pictures(2))
    text_only = reader(pack)
    refused = [
        (tiny, {}, "wire a picture into image"),
        (tiny, {"image": image, "clip_vision": seen}, "wire a picture into image"),
        (tiny, {"image": image, "prompt": SAND}, "give a prompt or an image"),
        (tiny, {"image": image, "prompt": SAND, "per_frame": True}, "give a prompt or an image"),
        (tiny, {"image": pictures(2)}, "switch per_frame on .* and mix them with Gen-1 Blend Content"),
        (tiny, {"clip_vision": seen, "per_frame": True}, "wire the picture into image instead"),
        (public, {"clip_vision": seen}, "switch per_frame on"),
        (text_only, {"image": image}, "choose an ip_adapter and its clip_vision in Gen-1 Load Public Weights"),
        (text_only, {"clip_vision": seen, "per_frame": True}, "choose an ip_adapter and its clip_vision in"),
    ]
    for encoder, given, advice in refused:
        with pytest.raises(ValueError, match=advice) as caught:
            from_image(encoder, **given)
        assert "--" not in str(caught.value) and "()" not in str(caught.value)


def test_a_describer_of_another_kind_is_refused_only_where_it_must_be(pack, tiny, from_image):
    class Other:
        reads_both, reads_pictures = False, True

        def __call__(self, **given: Any) -> Any:
            return tiny.describer(**given)

    encoder = replace(tiny, describer=Other())
    require_equal(from_image(encoder, image=pictures(1)), from_image(tiny, image=pictures(1)))
    with pytest.raises(ValueError, match="switch per_frame off"):
        from_image(encoder, image=pictures(2), per_frame=True)


# Gen-1 Blend Content and Gen-1 Schedule Content.


def test_weight_is_the_share_of_b(tiny, run, from_text):
    a, b = from_text(tiny, SAND), from_text(tiny, SNOW)
    made = [run("BlendContent", a=a, b=b, weight=weight) for weight in (0.0, 0.25, 0.5, 1.0)]
    assert torch.equal(made[0].tokens, a.tokens) and torch.equal(made[3].tokens, b.tokens)
    torch.testing.assert_close(made[1].tokens, 0.75 * a.tokens + 0.25 * b.tokens)
    to_b = [alike(each.tokens, b.tokens) for each in made]
    assert to_b == sorted(to_b) and to_b[0] < to_b[1] < to_b[2] < to_b[3]
    torch.testing.assert_close(run("BlendContent", a=b, b=a, weight=0.25).tokens, 0.25 * a.tokens + 0.75 * b.tokens)


def test_a_text_and_a_picture_blend_where_they_are_of_one_kind(tiny, public, run, from_text, from_image):
    text, image = from_text(tiny, SAND), from_image(tiny, image=pictures(1))
    torch.testing.assert_close(
        run("BlendContent", a=text, b=image, weight=0.5).tokens, (text.tokens + image.tokens) / 2
    )
    with pytest.raises(ValueError, match="with the same encoder"):
        run("BlendContent", a=text, b=from_text(public, SAND), weight=0.5)


def schedule(run: Callable[..., Any], a: Any, b: Any, first: int, last: int, frames: int) -> Tensor:
    """The share of b in each frame."""
    content = run("ScheduleContent", a=a, b=b, first_frame=first, last_frame=last, frames=frames)
    assert content.tokens.shape[1] == content.null.shape[1] == frames
    way = (b.tokens - a.tokens).flatten()
    return rearrange(content.tokens - a.tokens, "1 f n d -> f (n d)") @ way / (way @ way)


def test_the_look_passes_from_a_to_b(tiny, run, from_text):
    a, b = from_text(tiny, SAND), from_text(tiny, SNOW)

    def close(shares: Tensor, wanted: list[float]) -> None:
        torch.testing.assert_close(shares, torch.tensor(wanted, dtype=torch.float32), atol=1e-5, rtol=0)

    close(schedule(run, a, b, 1, 5, 8), [0, 0, 0.25, 0.5, 0.75, 1, 1, 1])
    close(schedule(run, a, b, 3, 5, 8), [0, 0, 0, 0, 0.5, 1, 1, 1])  # a later first_frame: b comes in later
    close(schedule(run, a, b, 1, 7, 8), [0, 0, 1 / 6, 1 / 3, 0.5, 2 / 3, 5 / 6, 1])  # a later last_frame: slower
    close(schedule(run, a, b, 2, 3, 6), [0, 0, 0, 1, 1, 1])  # one frame after the other: a cut
    close(schedule(run, a, b, 1, 5, 12), [0, 0, 0.25, 0.5, 0.75, *[1] * 7])  # frames: one look for each
    close(1 - schedule(run, b, a, 1, 5, 8), [1, 1, 0.75, 0.5, 0.25, 0, 0, 0])  # exchanged


def test_no_frames_are_those_of_the_clip(pack, tiny, run, from_text):
    """Known where the content meets the clip; blends and further schedules wait as well."""
    settled, (a, b) = pack("nodes.content").settled, (from_text(tiny, prompt) for prompt in (SAND, SNOW))
    given = {"first_frame": 1, "last_frame": 5}
    later = run("ScheduleContent", a=a, b=b, frames=0, **given)
    for frames in (6, 9):
        require_equal(settled(later, frames), run("ScheduleContent", a=a, b=b, frames=frames, **given))
    half = run("BlendContent", a=later, b=b, weight=0.5)
    torch.testing.assert_close(settled(half, 6).tokens, (settled(later, 6).tokens + b.tokens) / 2)
    chained = run("ScheduleContent", a=later, b=a, frames=0, first_frame=5, last_frame=7)
    torch.testing.assert_close(settled(chained, 8).tokens[:, :6], settled(later, 8).tokens[:, :6])
    at_once = run("ScheduleContent", a=later, b=a, frames=8, first_frame=5, last_frame=7)
    require_equal(at_once, settled(chained, 8))
    assert settled(a, 6) is a
    with pytest.raises(ValueError, match="ends with frame 4"):
        settled(later, 5)
    assert pack("nodes.content").ScheduleContent.validate_inputs(first_frame=40, last_frame=50, frames=0) is True


def test_schedules_follow_one_another(tiny, run, from_text):
    looks = [from_text(tiny, prompt) for prompt in (SAND, SNOW, "molten lava")]
    first = run("ScheduleContent", a=looks[0], b=looks[1], first_frame=0, last_frame=2, frames=6)
    both = run("ScheduleContent", a=first, b=looks[2], first_frame=3, last_frame=5, frames=6)
    torch.testing.assert_close(both.tokens[:, 2:4], looks[1].tokens.expand(1, 2, -1, -1))
    torch.testing.assert_close(both.tokens[:, 5], looks[2].tokens[:, 0])


@pytest.mark.parametrize(
    "frames, advice",
    [
        ({"first_frame": 4, "last_frame": 4, "frames": 8}, "give last_frame=5 or more"),
        ({"first_frame": -1, "last_frame": 3, "frames": 8}, "give last_frame=1 or more"),
        ({"first_frame": 2, "last_frame": 8, "frames": 8}, "the clip's frame_count as frames"),
        ({"first_frame": 2, "last_frame": 1_000_001, "frames": 0}, "give 1000000 at most"),
    ],
)
def test_frames_out_of_order_are_refused(pack, tiny, run, from_text, frames, advice):
    a = from_text(tiny, SAND)
    assert advice in pack("nodes.content").ScheduleContent.validate_inputs(**frames)
    with pytest.raises(ValueError, match=advice):
        run("ScheduleContent", a=a, b=a, **frames)


def test_what_is_wired_is_not_judged_before_it_is_known(pack):
    node = pack("nodes.content").ScheduleContent
    assert node.validate_inputs() is True
    assert node.validate_inputs(first_frame=3, last_frame=9) is True
    assert node.validate_inputs(first_frame=40, frames=48) is True
    assert "ends with frame 7" in node.validate_inputs(first_frame=8, frames=8)


# In a real server.


def graph(**changes: dict[str, Any]) -> dict[str, Any]:
    """A text and a picture, blended, then scheduled, into an edit of the demo clip by the embedded model."""
    nodes = {
        "model": ("Gen1_LoadModel", {"model": "tiny (embedded)"}),
        "clip": (
            "Gen1_LoadVideo",
            {"file": "bunny.mp4", "start_s": 0.8, "end_s": 0.96, "stride": 1, "fps": 0.0, "max_size": 0},
        ),
        "still": ("ImageFromBatch", {"image": ["clip", 1], "batch_index": 0, "length": 1}),
        "text": ("Gen1_ContentFromText", {"encoder": ["model", 2], "prompt": SAND, "negative": "", "seed": 0}),
        "image": ("Gen1_ContentFromImage", {"encoder": ["model", 2], "image": ["still", 0], **WORDS}),
        "blend": ("Gen1_BlendContent", {"a": ["text", 0], "b": ["image", 0], "weight": 0.5}),
        "schedule": (
            "Gen1_ScheduleContent",
            {"a": ["text", 0], "b": ["blend", 0], "first_frame": 0, "last_frame": 2, "frames": ["clip", 4]},
        ),
        "shown": ("PreviewAny", {"source": ["schedule", 0]}),
    }
    return {
        name: {"class_type": kind, "inputs": {**inputs, **changes.get(name, {})}}
        for name, (kind, inputs) in nodes.items()
    }


def test_in_the_server_contents_are_made_mixed_and_scheduled(server):
    result = server.run(graph())
    assert result.ok, result.message
    assert "Content(tokens=tensor(" in result.outputs["shown"]["text"][0]
    assert not result.texts, "it knows all of these words"
    unknown = server.run(graph(text={"prompt": "a hovercraft of snow"}))
    assert unknown.ok and any("hovercraft" in text for _, text in unknown.texts)


@pytest.mark.parametrize(
    "changes, advice",
    [
        ({"text": {"prompt": " "}}, "say what the clip should show"),
        ({"schedule": {"first_frame": 3}}, "give last_frame=4 or more"),
        ({"blend": {"weight": 1.5}}, "weight"),
    ],
)
def test_in_the_server_wrong_inputs_are_refused_before_anything_runs(server, changes, advice):
    result = server.run(graph(**changes))
    assert set(result.node_errors) >= set(changes) and not result.executed
    assert advice in result.message


def test_in_the_server_what_only_execution_can_tell_is_said_shortly(server):
    result = server.run(graph(schedule={"last_frame": 40}))
    assert result.status == "error" and "the clip's frame_count as frames" in result.message
    result = server.run(graph(image={"prompt": SAND}))
    assert result.status == "error" and "give a prompt or an image" in result.message
