"""``gen1 prepare``: samples are what the pipeline computes, and no interruption, worker or bad file changes them."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from einops import rearrange
from parts import encoder_of, tiny_gen1, write_model
from PIL import Image
from safetensors.torch import load
from small_run import one_thread
from torch import Tensor
from torch.nn import functional as F
from torch.testing import assert_close

from gen1_core.checkpoints.files import config_from_plain
from gen1_core.cli import main
from gen1_core.frames import encode_source, read_depth
from gen1_core.loading import load_gen1
from gen1_core.models.autoencoder import Autoencoder
from gen1_core.structure.blur import encode_depth
from gen1_core.training.bank import BankConfig, render_clip
from gen1_core.training.latents import fingerprint
from gen1_core.training.prepare.cuts import CutConfig, find_scenes
from gen1_core.training.prepare.encode import fit
from gen1_core.training.prepare.networks import NetworkFiles
from gen1_core.training.prepare.run import Summary, in_turn, prepare
from gen1_core.training.prepare.sources import PrepareConfig, snap
from gen1_core.training.shards import open_shards
from gen1_core.training.world import Style, render_reliefs
from gen1_core.video.clip import MemoryClip

SMALL = PrepareConfig(size=32, frames=3, stride=2, hop=5, multiple=16, shard=2, captions=2)
ROOT = Path(__file__).resolve().parents[2]


def scene(frames: int, *, height: int = 32, width: int = 48, seed: int = 0) -> Tensor:
    """Bytes ``[f 3 h w]``: a soft texture that moves two pixels a frame; another seed, another place."""
    generator = torch.Generator().manual_seed(seed)
    coarse = torch.rand(1, 3, height // 8, width // 8 + frames, generator=generator)
    wide = F.interpolate(coarse, size=(height, width + 8 * frames), mode="bicubic", align_corners=False)
    crops = [wide[0, :, :, 2 * k : 2 * k + width] for k in range(frames)]
    return (torch.stack(crops).clamp(0, 1) * 255).round().to(torch.uint8)


def write_animation(path: Path, frames: Tensor) -> Path:
    """An animated WebP, or a still picture where there is one frame."""
    pictures = [Image.fromarray(rearrange(frame, "c h w -> h w c").numpy()) for frame in frames]
    if len(pictures) == 1:
        pictures[0].save(path, lossless=True)
    else:
        pictures[0].save(path, save_all=True, append_images=pictures[1:], duration=40, lossless=True)
    return path


@pytest.fixture(scope="session")
def files(tmp_path_factory: pytest.TempPathFactory) -> NetworkFiles:
    return NetworkFiles(model=str(write_model(tiny_gen1(), tmp_path_factory.mktemp("model"))))


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Two videos of one scene, one with a cut after frame 7, a picture, each of another size or content."""
    folder = tmp_path / "clips"
    (folder / "below").mkdir(parents=True)
    write_animation(folder / "a.webp", scene(11, seed=1))
    write_animation(folder / "below" / "b.webp", scene(6, seed=2, height=48, width=32))
    write_animation(folder / "c.webp", torch.cat([scene(7, seed=3), scene(6, seed=4)]))
    write_animation(folder / "d.png", scene(1, seed=5))
    (folder / "a.txt").write_text("a moving texture\n\nsoft colours\n", encoding="utf-8")
    return folder


def made(folder: Path) -> dict[str, bytes]:
    """Everything that training reads."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.name != "scan.jsonl"}


@contextmanager
def file_size_limit(size: int) -> Iterator[None]:
    """A full disk, as far as this process can tell."""
    resource = pytest.importorskip("resource", reason="limits on file sizes are a Unix thing")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def stopping_after(count: int) -> Callable:
    """A runner that is cut off when so many shards were made."""

    def run(make, setups, jobs):
        for done, result in enumerate(in_turn(make, setups, jobs)):
            yield result
            if done + 1 == count and "units" in jobs[0]:
                raise KeyboardInterrupt

    return run


@pytest.fixture
def whole(clips: Path, files: NetworkFiles, tmp_path: Path) -> tuple[Path, Summary]:
    """One run without interruption."""
    out = tmp_path / "whole"
    return out, prepare([str(clips), "world:2"], out, SMALL, files)


def test_samples_are_what_the_pipeline_computes(clips: Path, files: NetworkFiles, whole: tuple[Path, Summary]) -> None:
    gen1, shards = load_gen1(files.model), open_shards(whole[0])
    frames = scene(11, seed=1)
    for number, first in ((0, 0), (1, 5)):
        sample = shards.read(number)
        assert (sample.source, sample.first, sample.stride) == ((clips / "a.webp").as_posix(), first, 2)
        shown = frames[first : first + 5 : 2]
        clip = MemoryClip(shown)
        assert torch.equal(sample.rgb, encode_source(gen1, clip).half())
        depth, _ = read_depth(gen1, clip)
        with torch.inference_mode():
            structure = [encode_depth(gen1.autoencoder, depth, level, 8)[:, :4] for level in sample.levels]
        assert torch.equal(sample.depth, torch.cat(structure).half())
        assert not torch.equal(sample.depth[0], sample.depth[1])
        encoder = encoder_of(gen1)
        assert torch.equal(sample.images[0], encoder.encode_images(shown.float() / 255).half())
        assert sample.captions == [["a moving texture", "soft colours"]]
        assert torch.equal(sample.texts[0], encoder.encode_texts(sample.captions[0]).half())


def test_clips_keep_to_their_scenes_and_pictures_are_one_frame(clips: Path, whole: tuple[Path, Summary]) -> None:
    shards = open_shards(whole[0])
    told = [shards.read(number) for number in range(len(shards))]
    found = [(Path(s.source).name, s.kind, s.first, tuple(s.rgb.shape), s.height, s.width) for s in told]
    assert found == [
        ("a.webp", "video", 0, (1, 4, 3, 4, 6), 32, 48),
        ("a.webp", "video", 5, (1, 4, 3, 4, 6), 32, 48),
        ("b.webp", "video", 0, (1, 4, 3, 6, 4), 48, 32),
        ("c.webp", "video", 0, (1, 4, 3, 4, 6), 32, 48),
        ("c.webp", "video", 7, (1, 4, 3, 4, 6), 32, 48),
        ("d.png", "image", 0, (1, 4, 1, 4, 6), 32, 48),
        ("world:1", "world", 0, (2, 4, 3, 4, 4), 32, 32),
        ("world:1", "world", 1, (2, 4, 3, 4, 4), 32, 32),
    ]
    assert all(s.levels[0] == 0 and 1 <= s.levels[1] <= 7 for s in told)
    assert told[3].texts.shape == (1, 0, 16) and told[6].texts.shape == (2, 2, 16)
    assert whole[1].samples == 8 and whole[1].shards == 4 and whole[1].errors == []


def test_the_world_keeps_its_exact_depth(files: NetworkFiles, whole: tuple[Path, Summary]) -> None:
    gen1, sample = load_gen1(files.model), open_shards(whole[0]).read(7)
    bank = BankConfig(name="world", seed=1, shards=1, styles=2, captions=2, frames=3, size=32)
    clip = render_clip(bank, 1, device=torch.device("cpu"))
    for look in range(2):
        assert torch.equal(sample.rgb[look], encode_source(gen1, MemoryClip(clip.rgb[0, look]))[0].half())
    depth = rearrange(clip.depth[0].float() / 255, "f 1 h w -> 1 1 f h w")
    with torch.inference_mode():
        assert torch.equal(sample.depth[0], encode_depth(gen1.autoencoder, depth, 0, 8)[0, :4].half())
    assert (sample.captions, sample.looks, sample.family) == (clip.captions[0], clip.looks[0], clip.families[0])


def test_all_levels_can_be_kept(clips: Path, files: NetworkFiles, tmp_path: Path) -> None:
    prepare([str(clips / "a.webp")], tmp_path / "out", replace(SMALL, levels="all"), files)
    sample = open_shards(tmp_path / "out").read(0)
    assert sample.levels == tuple(range(8)) and len(sample.depth) == 8


def test_reliefs_show_the_depth_of_a_real_clip_in_styles_of_the_world(
    clips: Path, files: NetworkFiles, whole: tuple[Path, Summary], tmp_path: Path
) -> None:
    sources = [str(clips / name) for name in ("a.webp", "c.webp", "d.png")]
    prepare([*sources, "world:1"], tmp_path / "out", replace(SMALL, reliefs=2), files)
    plain, shards, gen1 = open_shards(whole[0]), open_shards(tmp_path / "out"), load_gen1(files.model)
    shown = [shards.read(number) for number in range(len(shards))]
    assert [(s.kind, len(s.rgb), len(s.looks)) for s in shown] == [
        *[("video", 3, 3)] * 4,
        ("image", 3, 3),
        ("world", 2, 2),
    ]
    for sample, number in ((shown[0], 0), (shown[3], 4)):
        # The clip itself, its depth and what is said of it are those of a run without reliefs.
        before = plain.read(number)
        # Other frames share its chunks, and convolutions of other batches may round otherwise.
        assert_close(sample.rgb[:1], before.rgb, rtol=0, atol=2e-3)
        assert_close(sample.images[:1], before.images, rtol=0, atol=2e-3)
        assert torch.equal(sample.depth, before.depth) and sample.levels == before.levels
        assert sample.captions[:1] == before.captions and sample.looks[0] == ""
    frames = scene(11, seed=1)[0:5:2]
    depth, _ = read_depth(gen1, MemoryClip(frames))
    styles = [config_from_plain(Style, json.loads(look)) for look in shown[0].looks[1:]]
    for look, made in enumerate(render_reliefs(depth[0, 0], styles), 1):
        assert_close(shown[0].rgb[look].float(), encode_source(gen1, MemoryClip(made))[0], rtol=0, atol=2e-3)
    assert [len(said) for said in shown[0].captions] == [2, 2, 2] and shown[0].texts.shape == (3, 2, 16)
    assert shown[2].captions == [[], [], []] and shown[2].texts.shape == (3, 0, 16)
    assert shown[0].looks[1:] != shown[1].looks[1:]


def test_lists_and_patterns_name_the_same_files(clips: Path, files: NetworkFiles, tmp_path: Path) -> None:
    (clips / "list.txt").write_text("# two of them\nd.png\n\nbelow/b.webp\n", encoding="utf-8")
    prepare([str(clips / "list.txt")], tmp_path / "list", SMALL, files)
    shards = open_shards(tmp_path / "list")
    assert [Path(shards.read(n).source).name for n in range(len(shards))] == ["d.png", "b.webp"]
    prepare([str(clips)], tmp_path / "match", SMALL, files, match="b*")
    assert len(open_shards(tmp_path / "match")) == 1
    with pytest.raises(ValueError, match="another pattern"):
        prepare([str(clips)], tmp_path / "none", SMALL, files, match="x*")
    with pytest.raises(ValueError, match="check the spelling"):
        prepare([str(clips / "missing")], tmp_path / "none", SMALL, files)
    with pytest.raises(ValueError, match="give world:CLIPS"):
        prepare(["world:0"], tmp_path / "none", SMALL, files)


def test_bad_files_are_reported_and_skipped(clips: Path, files: NetworkFiles, tmp_path: Path) -> None:
    (clips / "broken.mp4").write_bytes(b"no video at all")
    content = (clips / "a.webp").read_bytes()
    (clips / "cut.webp").write_bytes(content[: len(content) // 2])
    write_animation(clips / "short.webp", scene(4, seed=6))
    write_animation(clips / "strip.png", scene(1, height=8, width=320))
    out = tmp_path / "out"
    summary = prepare([str(clips)], out, SMALL, files)
    lines = [json.loads(line) for line in (out / "errors.jsonl").read_text(encoding="utf-8").splitlines()]
    assert lines == summary.errors and summary.samples == 6
    reasons = {Path(line["path"]).name: line["reason"] for line in lines}
    assert set(reasons) == {"broken.mp4", "cut.webp", "short.webp", "strip.png"}
    assert "is not a video" in reasons["broken.mp4"] and "damaged" in reasons["cut.webp"]
    assert "fewer frames" in reasons["short.webp"] and "crop the clip" in reasons["strip.png"]
    with pytest.raises(ValueError, match="none of 1 sources"):
        prepare([str(clips / "broken.mp4")], tmp_path / "none", SMALL, files)


def test_a_file_that_goes_bad_after_the_scan_costs_its_clips_alone(
    clips: Path, files: NetworkFiles, tmp_path: Path
) -> None:
    def run(make, setups, jobs):
        if "units" in jobs[0]:
            (clips / "a.webp").unlink()
        return in_turn(make, setups, jobs)

    summary = prepare([str(clips)], tmp_path / "out", SMALL, files, run=run)
    assert [Path(error["path"]).name for error in summary.errors] == ["a.webp", "a.webp"]
    assert summary.samples == 4 and len(open_shards(tmp_path / "out")) == 4


@pytest.mark.parametrize("reliefs", [0, 2])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    reliefs: int, clips: Path, files: NetworkFiles, tmp_path: Path
) -> None:
    out, uncut, config = tmp_path / "stopped", tmp_path / "uncut", replace(SMALL, reliefs=reliefs)
    prepare([str(clips), "world:2"], uncut, config, files)
    with pytest.raises(KeyboardInterrupt):
        prepare([str(clips), "world:2"], out, config, files, run=stopping_after(2))
    before = (out / "part-000001.tar").stat().st_mtime_ns
    assert not (out / "part-000002.tar").exists()
    # What a kill leaves: a file half written, a shard whose index is not there yet, half a line in the log.
    (out / ".part-000002.tar.7.part.tmp").write_bytes(b"half")
    (out / "part-000002.tar").write_bytes(b"no index")
    with (out / "scan.jsonl").open("ab") as log:
        log.write(b'{"path": "half')
    summary = prepare([str(clips), "world:2"], out, config, files)
    assert summary.kept == 2 and (out / "part-000001.tar").stat().st_mtime_ns == before
    assert made(out) == made(uncut)
    again = prepare([str(clips), "world:2"], out, config, files)
    assert again.kept == 4 and again.frames == 0 and made(out) == made(uncut)


def test_folders_that_are_older_than_reliefs_go_on(clips: Path, files: NetworkFiles, tmp_path: Path) -> None:
    """Their settings, and so the identities of their shards, hold nothing of reliefs."""
    out, source = tmp_path / "out", [str(clips / "a.webp")]
    prepare(source, out, SMALL, files)
    assert "reliefs" not in json.loads((out / "prepare.json").read_text(encoding="utf-8"))["config"]
    assert prepare(source, out, SMALL, files).kept == 1
    with pytest.raises(ValueError, match="reliefs differ"):
        prepare(source, out, replace(SMALL, reliefs=1), files)


def test_another_source_changes_only_its_shards(clips: Path, files: NetworkFiles, whole: tuple[Path, Summary]) -> None:
    write_animation(clips / "d.png", scene(1, seed=9, height=40))
    before = made(whole[0])
    summary = prepare([str(clips), "world:2"], whole[0], SMALL, files)
    changed = {name for name, content in made(whole[0]).items() if content != before[name]}
    assert changed == {"part-000002.tar", "part-000002.json"} and summary.kept == 3


def test_finished_samples_are_lost_only_on_request(
    clips: Path, files: NetworkFiles, whole: tuple[Path, Summary]
) -> None:
    before = made(whole[0])
    with pytest.raises(ValueError, match="would lose finished samples.*give --remove"):
        prepare([str(clips / "a.webp")], whole[0], SMALL, files)
    write_animation(clips / "c.webp", scene(6, seed=3))
    with pytest.raises(ValueError, match="2 of 8; the first is of .*c.webp"):
        prepare([str(clips), "world:1"], whole[0], SMALL, files)
    assert made(whole[0]) == before
    fewer = prepare([str(clips / "a.webp")], whole[0], SMALL, files, remove=True)
    assert fewer.samples == len(open_shards(whole[0])) == 2


def test_samples_inside_a_shard_that_stays_are_not_lost_either(files: NetworkFiles, tmp_path: Path) -> None:
    prepare(["world:2"], tmp_path, SMALL, files)
    before = made(tmp_path)
    with pytest.raises(ValueError, match="1 of 2; the first is of world:1"):
        prepare(["world:1"], tmp_path, SMALL, files)
    assert made(tmp_path) == before


@pytest.mark.parametrize(
    ("device", "cure"), [("nowhere", "give cpu or one that is there"), (",", "give cpu"), ("cpu,cpu", "--workers 2")]
)
def test_devices_are_looked_at_first(device: str, cure: str, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    assert main(["prepare", "world:1", "--out", str(tmp_path / "out"), "--device", device]) == 2
    assert cure in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_file_that_was_replaced_is_read_again(clips: Path, files: NetworkFiles, tmp_path: Path) -> None:
    picture, out = clips / "e.bmp", tmp_path / "bmp"
    Image.new("RGB", (48, 32), "red").save(picture)
    prepare([str(picture)], out, SMALL, files)
    first = open_shards(out).read(0).rgb
    Image.new("RGB", (48, 32), "blue").save(picture)  # as many bytes
    assert prepare([str(picture)], out, SMALL, files).kept == 0
    assert not torch.equal(open_shards(out).read(0).rgb, first)


def test_weights_are_the_same_in_any_dtype(clips: Path, files: NetworkFiles, tmp_path: Path) -> None:
    prepare([str(clips / "d.png")], tmp_path / "half", SMALL, replace(files, dtype="bfloat16"))
    gen1, shards = load_gen1(files.model), open_shards(tmp_path / "half")
    assert isinstance(gen1.autoencoder, Autoencoder)
    assert shards.weights["autoencoder"] == fingerprint(gen1.autoencoder)


def test_a_folder_keeps_to_one_way_of_preparing(clips: Path, files: NetworkFiles, whole: tuple[Path, Summary]) -> None:
    before = made(whole[0])
    with pytest.raises(ValueError, match=r"\(stride differ\).*give another --out"):
        prepare([str(clips)], whole[0], replace(SMALL, stride=1), files)
    other = NetworkFiles(model=str(write_model(tiny_gen1(7), clips / "other")))
    with pytest.raises(ValueError, match=r"\(autoencoder, clip differ\)"):
        prepare([str(clips)], whole[0], SMALL, other)
    assert made(whole[0]) == before


def test_a_full_disk_leaves_what_was_there(
    clips: Path, files: NetworkFiles, whole: tuple[Path, Summary], tmp_path: Path
) -> None:
    out = tmp_path / "full"
    with pytest.raises(KeyboardInterrupt):
        prepare([str(clips), "world:2"], out, SMALL, files, run=stopping_after(1))
    before = made(out)
    limit = (whole[0] / "part-000001.tar").stat().st_size // 2
    with file_size_limit(limit), pytest.raises(ValueError, match="free some space"):
        prepare([str(clips), "world:2"], out, SMALL, files)
    assert made(out) == before
    prepare([str(clips), "world:2"], out, SMALL, files)
    assert made(out) == made(whole[0])


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")
def test_webdatasets_own_loader_reads_the_shards(whole: tuple[Path, Summary]) -> None:
    from webdataset import WebDataset

    paths = sorted(str(path) for path in whole[0].glob("*.tar"))
    samples = list(WebDataset(paths, shardshuffle=False, empty_check=False))
    gc.collect()  # it leaves its files open
    shards = open_shards(whole[0])
    assert [sample["__key__"] for sample in samples] == [entry.key for entry in shards.entries]
    for number, sample in enumerate(samples):
        ours, theirs = shards.read(number), load(sample["safetensors"])
        assert torch.equal(ours.rgb, theirs["rgb"]) and torch.equal(ours.depth, theirs["depth"])
        assert json.loads(sample["json"])["source"] == ours.source


def command(out: Path, *sources: str, model: str, more: tuple[str, ...] = ()) -> list[str]:
    """``gen1 prepare`` with the settings of SMALL, in a process of its own."""
    words = f"--size 32 --frames 3 --stride 2 --multiple 16 --shard 2 --captions 2 --weights {model}".split()
    return [sys.executable, "-m", "gen1_core", "prepare", *sources, "--out", str(out), *words, *more]


@pytest.mark.slow
def test_workers_that_were_killed_go_on_to_the_bytes_of_one_process(
    clips: Path, files: NetworkFiles, tmp_path: Path
) -> None:
    """SIGKILL, which nothing can answer, while two workers write shards."""
    sources, out = [str(clips), "world:16"], tmp_path / "killed"
    with one_thread():
        prepare(sources, tmp_path / "whole", SMALL, files)
    words = command(out, *sources, model=files.model, more=("--workers", "2"))
    with subprocess.Popen(words, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as running:
        deadline = time.monotonic() + 300
        while len(list(out.glob("part-*.json"))) < 3 and time.monotonic() < deadline:
            assert running.poll() is None, "it was done before it could be killed"
            time.sleep(0.005)
        os.kill(running.pid, signal.SIGKILL)
    assert 3 <= len(list(out.glob("part-*.json"))) < 11
    subprocess.run(words, cwd=ROOT, check=True, capture_output=True)
    assert len(open_shards(out)) == 22
    assert made(out) == made(tmp_path / "whole") and not list(out.glob(".*"))


@pytest.mark.ray
def test_a_ray_cluster_makes_the_same_shards(clips: Path, files: NetworkFiles, tmp_path: Path) -> None:
    pytest.importorskip("ray", reason="ray (extra `distributed`) is not installed")
    told = partial(command, model=files.model)
    subprocess.run(told(tmp_path / "one", str(clips), "world:6"), cwd=ROOT, check=True, capture_output=True)
    words = told(tmp_path / "ray", str(clips), "world:6", more=("--ray", "local:2"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    assert "Ray: 2 workers" in done.stderr
    assert made(tmp_path / "ray") == made(tmp_path / "one")


def test_without_ray_the_command_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    from gen1_core.distributed.cluster import ray_cluster

    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[distributed\]'"), ray_cluster("local:2"):
        pass


@pytest.mark.parametrize(
    ("change", "advice"),
    [
        ({"frames": 0}, "at least 1"),
        ({"reliefs": -1}, "give 0 for none"),
        ({"size": 40}, "128 and 32, or 512 and 64"),
    ],
)
def test_settings_that_cannot_work_are_refused(change: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        replace(SMALL, **change)


@pytest.mark.parametrize(
    ("width", "height", "bucket"),
    [(64, 64, (32, 32)), (350, 350, (32, 32)), (1280, 720, (32, 64)), (720, 1280, (64, 32)), (36, 32, (32, 32))],
)
def test_sizes_snap_to_buckets(width: int, height: int, bucket: tuple[int, int]) -> None:
    assert snap(width, height, SMALL) == bucket


def test_frames_are_cropped_around_their_centre_and_not_stretched() -> None:
    across = torch.arange(64.0).expand(1, 3, 32, 64).to(torch.uint8)
    assert_close(fit(across, height=32, width=48), across[..., 8:56])
    half = fit(across, height=16, width=24).float()
    assert_close(half[0, 0, 5, 1:] - half[0, 0, 5, :-1], torch.full((23,), 2.0), atol=1.0, rtol=0)


def cuts(*parts: torch.Tensor) -> list[tuple[int, int]]:
    return find_scenes(MemoryClip(torch.cat(parts), chunk=5), CutConfig())


def test_a_cut_is_found_wherever_a_chunk_ends() -> None:
    assert cuts(scene(7, seed=1), scene(5, seed=2), scene(9, seed=3)) == [(0, 7), (7, 12), (12, 21)]
    assert cuts(scene(1, seed=1)) == [(0, 1)]


def test_motion_light_and_noise_are_no_cuts() -> None:
    moving = scene(20, seed=1)
    assert cuts(moving) == [(0, 20)]
    assert cuts(moving[::4]) == [(0, 5)]
    brightening = (moving.float() * torch.linspace(0.3, 1, 20)[:, None, None, None]).to(torch.uint8)
    assert cuts(brightening) == [(0, 20)]
    flicker = torch.randint(0, 256, (20, 3, 1, 1), generator=torch.Generator().manual_seed(0)).to(torch.uint8)
    assert cuts(flicker.expand(20, 3, 32, 48)) == [(0, 20)]


def test_the_same_colours_elsewhere_are_a_cut() -> None:
    """Histograms alone would miss it."""
    half = torch.zeros(6, 3, 32, 48, dtype=torch.uint8)
    half[..., :24] = 255
    assert cuts(half, half.flip(-1)) == [(0, 6), (6, 12)]
