"""The ``gen1`` command: edit, depth, info, train, demo. One short function each; all choices of hardware are here."""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from fractions import Fraction
from pathlib import Path

import torch
from tqdm import tqdm

from .demo import run_demo
from .diffusion.samplers import SAMPLERS
from .editing import MaskOptions
from .loading import describe_file, load_depth_estimator, load_gen1
from .pipeline import EditOptions, Gen1, depth_frames, describe, edit, read_depth, size_for
from .presets import DEMO_CLIP, MODELS
from .recipes.tiny import add_arguments, run_from
from .structure.estimator import save_depth
from .tensors import Bytes, to_float
from .video.clip import Clip, each_frame
from .video.read import Video, open_video
from .video.sheet import beside
from .video.write import write_video

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; a ValueError becomes one line on standard error and exit status 2."""
    options = parser().parse_args(arguments)
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    try:
        options.command(options)
    except ValueError as error:
        print(f"gen1: {error}", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("gen1: cancelled; nothing was written", file=sys.stderr)
        return 130
    return 0


def parser() -> argparse.ArgumentParser:
    """The options of every command, with their help."""
    top = argparse.ArgumentParser(prog="gen1", description="Keep the structure of a clip, replace its content.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_edit(commands.add_parser("edit", help="restyle a clip by a text prompt or a picture"))
    add_depth(commands.add_parser("depth", help="write the depth of a clip as a video or a safetensors file"))
    info = commands.add_parser("info", help="say what a weights file is")
    info.add_argument("file", type=Path)
    info.set_defaults(command=info_command)
    add_train(commands.add_parser("train", help="train the small model on the procedural world; resumes"))
    demo = commands.add_parser("demo", help="edit the embedded clip with three prompts")
    demo.add_argument("--out", type=Path, default=Path("demo"), help="folder for the results")
    add_hardware(demo)
    demo.set_defaults(command=demo_command)
    return top


def add_hardware(command: argparse.ArgumentParser) -> None:
    """Options about the model and where it runs."""
    command.add_argument("--model", default="tiny", help=f"{', '.join(MODELS)}, or a folder of weights")
    command.add_argument(
        "--depth",
        type=Path,
        help="MiDaS DPT-Large instead of the model's own: the .pt file or a transformers folder",
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    command.add_argument("--dtype", choices=DTYPES, default="float32")


def add_source(command: argparse.ArgumentParser) -> None:
    """Options about which frames of which clip."""
    command.add_argument("input", type=Path, metavar="IN", help="video, animated WebP or GIF, or a folder of pictures")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    command.add_argument("--start", type=float, default=0.0, help="seconds into the clip")
    command.add_argument("--end", type=float, default=float("inf"), help="seconds into the clip")
    command.add_argument("--stride", type=int, default=1, help="take every n-th frame")
    command.add_argument(
        "--fps", type=Fraction, default=Fraction(0), help="resample to this rate, e.g. 12 or 30000/1001; 0 keeps it"
    )
    command.add_argument("--max-size", type=int, default=0, help="longest side in pixels; 0 keeps the size")


def add_edit(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 edit``; sliders left out take the model's own defaults."""
    add_source(command)
    command.add_argument("--prompt", help="the new content in words")
    command.add_argument("--image", type=Path, help="the new content as a picture")
    command.add_argument("--blur-level", type=int, help="t_s, 0..7: how much detail of the shapes is given up")
    command.add_argument("--structure-strength", type=float, help="0..1: how much the depth counts at all")
    command.add_argument("--content-scale", type=float, help="omega: how strongly the content is followed; 1 is off")
    command.add_argument(
        "--temporal-scale", type=float, help="omega_t: below 1 livelier, above 1 smoother over time; 1 is off"
    )
    command.add_argument("--steps", type=int, help="denoising steps: more is slower and finer")
    command.add_argument("--sampler", choices=sorted(SAMPLERS))
    command.add_argument("--strength", type=float, help="0..1: below 1 starts from the source's own picture")
    command.add_argument("--seed", type=int, help="another seed, another variation")
    command.add_argument("--window", type=int, help="frames denoised together; 0: as trained")
    command.add_argument("--overlap", type=int, help="frames that neighbouring windows share")
    command.add_argument("--mask", type=Path, help="picture or video: white is edited, black stays the source")
    command.add_argument("--mask-grow", type=int, default=0, metavar="PX", help="widen the mask; negative narrows it")
    command.add_argument("--mask-feather", type=float, default=2.0, metavar="PX", help="soften its edge")
    command.add_argument("--mask-invert", action="store_true")
    command.add_argument("--compare", action="store_true", help="write source, depth and result side by side")
    add_hardware(command)
    command.set_defaults(command=edit_command)


def add_depth(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 depth``."""
    add_source(command)
    add_hardware(command)
    command.set_defaults(command=depth_command)


def add_train(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 train``."""
    add_arguments(command)
    command.set_defaults(command=run_from)


def edit_command(options: argparse.Namespace) -> None:
    """``gen1 edit``: checks everything cheap first, then loads, edits and writes."""
    clip = open_source(options)
    picture = None if options.image is None else first_frame(options.image)
    gen1 = load(options)
    with progress() as on_step:
        content = describe(gen1, prompt=options.prompt, image=picture, seed=options.seed or 0)
        sliders = edit_options(gen1, options)
        mask = None if options.mask is None else open_video(options.mask)
        masking = MaskOptions(grow_px=options.mask_grow, feather_px=options.mask_feather, invert=options.mask_invert)
        report_sizes(gen1, clip)
        depth, _ = read_depth(gen1, clip, chunk=sliders.chunk, on_step=on_step)
        frames = edit(gen1, clip, content, sliders, depth=depth, mask=mask, mask_options=masking, on_step=on_step)
        if options.compare:
            streams = [clip, depth_frames(gen1, depth, clip), frames]
            frames = beside(streams, ["source", "depth", options.prompt or str(options.image)], columns=3)
        save(clip, frames, options.output)


def depth_command(options: argparse.Namespace) -> None:
    """``gen1 depth``: white is near; ``.safetensors`` keeps the values, anything else is a video."""
    clip = open_source(options)
    gen1 = load(options)
    with progress() as on_step:
        depth, depth_range = read_depth(gen1, clip, on_step=on_step)
    if options.output.suffix == ".safetensors":
        save_depth(options.output, depth, depth_range)
        print(f"{options.output}: depth {tuple(depth.shape)}, 0..1, 1 is near")
    else:
        save(clip, depth_frames(gen1, depth, clip), options.output)


def info_command(options: argparse.Namespace) -> None:
    """``gen1 info``."""
    info = describe_file(options.file)
    print(f"{info.path}: {info.kind}, {info.tensors} tensors, {info.parameters:,} parameters, {info.megabytes:.1f} MB")
    for name, value in {**info.config, **info.recipe}.items():
        print(f"  {name}: {value}")


def demo_command(options: argparse.Namespace) -> None:
    """``gen1 demo``: what ``make demo`` runs."""
    started = time.perf_counter()
    gen1 = load(options)
    with progress() as on_step:
        video, sheet = run_demo(gen1, DEMO_CLIP, options.out, on_step=on_step)
    print(f"comparison video: {video}\ncontact sheet:    {sheet}\ntook {time.perf_counter() - started:.1f} s")


def load(options: argparse.Namespace) -> Gen1:
    """The model that the options name, where the options say."""
    device, dtype = pick_device(options.device), DTYPES[options.dtype]
    gen1 = load_gen1(options.model, device=device, dtype=dtype)
    if options.depth is None:
        return gen1
    return dataclasses.replace(gen1, depth=load_depth_estimator(options.depth, device=device))


def pick_device(name: str) -> torch.device:
    """``auto`` is the accelerator if there is one.

    Raises ValueError for a device that this machine does not have.
    """
    if name == "auto":
        if torch.cuda.is_available():
            return torch.device("cuda")
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"--device {name} cannot be used here ({reason}); give auto or cpu.") from error
    return device


def edit_options(gen1: Gen1, options: argparse.Namespace) -> EditOptions:
    """The model's defaults, with what was said on the command line."""
    names = {field.name for field in dataclasses.fields(EditOptions)}
    said = {name: value for name, value in vars(options).items() if name in names and value is not None}
    # One pass at a time costs a CPU nothing and halves its memory; a GPU is faster with both in one call.
    return dataclasses.replace(gen1.defaults, passes=1 if gen1.device.type == "cpu" else 2, **said)


def open_source(options: argparse.Namespace) -> Video:
    """The clip that the options name, checked before anything heavy."""
    return open_video(
        options.input,
        start_s=options.start,
        end_s=options.end,
        stride=options.stride,
        fps=options.fps,
        max_size=options.max_size,
    )


def first_frame(path: Path) -> torch.Tensor:
    """The first picture of a file, 0..1, ``[1 3 h w]``.

    Raises ValueError where the file is missing or no picture.
    """
    return to_float(next(each_frame(open_video(path)))[None])


def report_sizes(gen1: Gen1, clip: Clip) -> None:
    """Says at which size the clip is edited; the source and the result have the other one."""
    size = size_for(gen1, clip)
    print(f"{clip.num_frames} frames of {clip.width}x{clip.height}, edited at {size.width}x{size.height}")


def save(clip: Video, frames: Iterator[Bytes], path: Path) -> None:
    """Writes frames with the clip's own times and sound, and says what happened to them."""
    notes = write_video(
        path,
        frames,
        frame_rate=clip.frame_rate,
        time_stamps=clip.time_stamps,
        audio_from=clip,
        pixel_aspect=clip.pixel_aspect,
    )
    for note in [*clip.notes, *notes]:
        print(note)
    print(f"written: {path}")


@contextmanager
def progress() -> Iterator[Callable[[str, int, int], None]]:
    """A bar for every stage, on standard error."""
    bars: dict[str, tqdm] = {}

    def on_step(stage: str, done: int, total: int) -> None:
        bar = bars.get(stage)
        if bar is None or done < bar.n:
            if bar is not None:
                bar.close()
            bar = bars[stage] = tqdm(total=total, desc=stage, delay=0.5)
        bar.update(done - bar.n)
        if done == total:
            bar.close()
            del bars[stage]

    try:
        yield on_step
    finally:
        for bar in bars.values():
            bar.close()
