"""The ``gen1`` command: edit, depth, info, inflate, train, demo. Short functions; all choices of hardware are here."""

import argparse
import dataclasses
import logging
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from fractions import Fraction
from pathlib import Path

import torch

from .checkpoints.files import dtype_of
from .checkpoints.search import find
from .commands.customize import add_customize
from .commands.eval import add_eval
from .commands.prepare import add_prepare
from .commands.train import add_train
from .demo import run_demo
from .devices import pick_device
from .diffusion.samplers import SAMPLERS
from .editing import MaskOptions
from .frames import depth_frames, read_depth
from .gen1 import EditOptions, Gen1
from .loading import describe_file, inflate_checkpoint, is_depth_map, load_depth_estimator, load_gen1, with_lora
from .models.storage import FP8
from .pipeline import check_content, check_sliders, describe, edit
from .presets import DEMO_CLIP, MODELS
from .progress import progress
from .recipes.sd15 import compose
from .recipes.sd15 import read as read_public
from .recipes.sd15_files import add_public, files_from, lora_from
from .structure.estimator import load_depth, save_depth
from .tensors import Bytes, OnStep, to_float
from .video.clip import each_frame
from .video.read import Video, open_video
from .video.sheet import beside
from .video.write import write_video

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
KEEP = "keep"

logger = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; what is refused becomes one line on standard error and exit status 2."""
    options = parser().parse_args(arguments)
    logging.basicConfig(format="%(message)s")
    logging.getLogger("gen1_core").setLevel(logging.INFO)
    try:
        options.command(options)
    except torch.cuda.OutOfMemoryError as error:
        reason = str(error).splitlines()[0]
        return refuse(f"the device has too little memory ({reason}); {less_memory(options)}.")
    except (ValueError, OSError) as error:
        return refuse(str(error))
    except KeyboardInterrupt:
        print("gen1: cancelled; files that were there before are unchanged", file=sys.stderr)
        return 130
    return 0


def less_memory(options: argparse.Namespace) -> str:
    """What a command offers that needs less memory."""
    offers = {
        "window": "use --dtype bfloat16, or a lower --window",
        "checkpointing": "use --checkpointing, a higher --accumulate, or a smaller --batch",
        "clips": "use a smaller --size, or fewer --frames",
    }
    return next((offer for name, offer in offers.items() if hasattr(options, name)), "use a smaller --size")


def refuse(message: str) -> int:
    """Says why nothing was done, and gives the exit status."""
    print(f"gen1: {message}", file=sys.stderr)
    return 2


def rate(text: str) -> Fraction:
    """A frame rate on the command line: 12, 29.97 or 30000/1001."""
    try:
        return Fraction(text)
    except (ValueError, ZeroDivisionError) as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no frame rate; give 12 or 30000/1001") from error


def parser() -> argparse.ArgumentParser:
    """The options of every command, with their help."""
    top = argparse.ArgumentParser(prog="gen1", description="Keep the structure of a clip, replace its content.")
    commands = top.add_subparsers(required=True, metavar="COMMAND")
    add_edit(commands.add_parser("edit", help="restyle a clip by a text prompt or a picture"))
    add_depth(commands.add_parser("depth", help="write the depth of a clip as a video or a safetensors file"))
    info = commands.add_parser("info", help="say what a weights file is")
    info.add_argument("file", type=Path)
    info.set_defaults(command=info_command)
    inflate = commands.add_parser("inflate", help="make a Stable Diffusion checkpoint a U-Net to train a Gen-1 from")
    inflate.add_argument("checkpoint", type=Path)
    inflate.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    inflate.add_argument("--motion", type=Path, metavar="FILE", help="take the temporal layers of a motion module")
    inflate.add_argument("--frames", type=int, default=8, help="frames of a training clip")
    inflate.add_argument(
        "--prediction",
        choices=("v", "eps"),
        default="v",
        help="what training will predict: v as the paper, or the noise",
    )
    inflate.set_defaults(command=inflate_command)
    add_prepare(commands.add_parser("prepare", help="make training data of videos, pictures and the procedural world"))
    add_train(commands.add_parser("train", help="train the small model or the full-size one; resumes"))
    add_customize(
        commands.add_parser("customize", help="teach a model a subject or a style by a few pictures; resumes")
    )
    add_eval(commands.add_parser("eval", help="judge a model on scenes of known truth; makes a report"))
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
        metavar="FILE",
        help="a depth network (MiDaS, Depth Anything V2) instead of the model's own; or, to edit with, the depth that "
        "`gen1 depth -o FILE.safetensors` wrote",
    )
    command.add_argument(
        "--size",
        type=int,
        metavar="PX",
        help="short side of the picture the model works on; left out: as it was trained",
    )
    command.add_argument("--device", default="auto", help="auto, cpu, cuda, mps")
    command.add_argument(
        "--dtype",
        choices=[*DTYPES, KEEP],
        default="float32",
        help=f"{KEEP}: as the public checkpoint is stored",
    )


def add_source(command: argparse.ArgumentParser) -> None:
    """Options about which frames of which clip."""
    command.add_argument("input", type=Path, metavar="IN", help="video, animated WebP or GIF, or a folder of pictures")
    command.add_argument("-o", "--output", type=Path, required=True, metavar="OUT")
    command.add_argument("--start", type=float, default=0.0, help="seconds into the clip")
    command.add_argument("--end", type=float, default=float("inf"), help="seconds into the clip")
    command.add_argument("--stride", type=int, default=1, help="take every n-th frame")
    command.add_argument(
        "--fps", type=rate, default=Fraction(0), help="resample to this rate, e.g. 12 or 30000/1001; 0 keeps it"
    )
    command.add_argument("--max-size", type=int, default=0, help="longest side in pixels; 0 keeps the size")


def add_edit(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 edit``; sliders left out take the model's own defaults."""
    add_source(command)
    command.add_argument("--prompt", help="the new content in words")
    command.add_argument("--image", type=Path, help="the new content as a picture")
    command.add_argument("--negative", default="", help="what to keep away from, in words")
    command.add_argument("--blur-level", type=int, help="t_s, 0..7: how much detail of the shapes is given up")
    command.add_argument("--structure-strength", type=float, help="0..1: how much the depth counts at all")
    command.add_argument("--content-scale", type=float, help="omega: how strongly the content is followed; 1 is off")
    command.add_argument(
        "--temporal-scale", type=float, help="omega_t: below 1 livelier, above 1 smoother over time; 1 is off"
    )
    command.add_argument("--structure-scale", type=float, help="above 1 draws the shapes more clearly; 1 is off")
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
    add_public(command)
    add_hardware(command)
    command.set_defaults(command=edit_command)


def add_depth(command: argparse.ArgumentParser) -> None:
    """Options of ``gen1 depth``."""
    add_source(command)
    add_hardware(command)
    command.set_defaults(command=depth_command)


def edit_command(options: argparse.Namespace) -> None:
    """``gen1 edit``: checks everything cheap first; the target is opened before the heavy work begins."""
    clip = open_source(options)
    picture = None if options.image is None else first_frame(options.image)
    mask = None if options.mask is None else open_mask(options)
    masking = MaskOptions(grow_px=options.mask_grow, feather_px=options.mask_feather, invert=options.mask_invert)
    if options.prompt is None and options.image is None:
        raise ValueError("there is no content: neither --prompt nor --image was given; give a prompt or an image.")
    network = depth_file(options)
    given = None
    if network is not None and is_depth_map(network):
        given, network = load_depth(network)[0], None
    gen1 = load(options, depth=network)
    check_content(options.prompt, options.image, describer=gen1.describer)
    sliders = edit_options(gen1, options)
    check_sliders(gen1, sliders)

    def frames(on_step: OnStep) -> Iterator[Bytes]:
        content = describe(gen1, prompt=options.prompt, image=picture, negative=options.negative, seed=sliders.seed)
        depth = given
        if given is None and (gen1.reads_structure or options.compare):
            depth, _ = read_depth(gen1, clip, chunk=sliders.chunk, on_step=on_step)
        edited = edit(gen1, clip, content, sliders, depth=depth, mask=mask, mask_options=masking, on_step=on_step)
        if not options.compare or depth is None:
            return edited
        streams = [clip, depth_frames(gen1, depth, clip), edited]
        return beside(streams, ["source", "depth", options.prompt or options.image.name], columns=3)

    save(clip, frames, options.output)


def depth_command(options: argparse.Namespace) -> None:
    """``gen1 depth``: white is near; ``.safetensors`` keeps the values, anything else is a video."""
    clip = open_source(options)
    gen1 = load(options, depth=options.depth)
    if options.output.suffix == ".safetensors":
        with progress() as on_step:
            save_depth(options.output, *read_depth(gen1, clip, on_step=on_step))
        print(f"written: {options.output}, depth 0..1, 1 is near, for `gen1 edit --depth`")
        return

    def frames(on_step: OnStep) -> Iterator[Bytes]:
        return depth_frames(gen1, read_depth(gen1, clip, on_step=on_step)[0], clip)

    save(clip, frames, options.output)


def info_command(options: argparse.Namespace) -> None:
    """``gen1 info``."""
    for line in describe_file(options.file):
        print(line)


def inflate_command(options: argparse.Namespace) -> None:
    """``gen1 inflate``."""
    config = inflate_checkpoint(
        options.checkpoint, options.output, options.motion, frames=options.frames, prediction=options.prediction
    )
    kind = "layers of the motion module" if config.motion else "new temporal layers that do nothing yet"
    print(f"written: {options.output}, a U-Net of {config.in_channels} input channels with {kind}")


def demo_command(options: argparse.Namespace) -> None:
    """``gen1 demo``: what ``make demo`` runs."""
    started = time.perf_counter()
    gen1 = load(options, depth=options.depth)
    with progress() as on_step:
        video, sheet = run_demo(gen1, DEMO_CLIP, options.out, edit_options(gen1, options), on_step=on_step)
    print(f"comparison video: {video}\ncontact sheet:    {sheet}\ntook {time.perf_counter() - started:.1f} s")


def depth_file(options: argparse.Namespace) -> Path | None:
    """The file that ``--depth`` means: a path, or a name below ``--models``."""
    if options.depth is None or options.depth.exists() or not options.models:
        return options.depth
    return find("depth", name=str(options.depth), folders=options.models, option="--depth").path


def load(options: argparse.Namespace, *, depth: Path | None) -> Gen1:
    """The model that the options name, where the options say; ``depth`` is another depth network than its own."""
    gen1 = load_parts(options, depth=depth)
    if options.size is None:
        return gen1
    return dataclasses.replace(gen1, diffusion=dataclasses.replace(gen1.diffusion, working_size=options.size))


def load_parts(options: argparse.Namespace, *, depth: Path | None) -> Gen1:
    """The same at the size that it was trained at: public files where they are named, else a model of our own."""
    device = pick_device(options.device)
    files = files_from(options, depth) if "checkpoint" in options else None
    if files is not None:
        plan = read_public(files, prediction=options.prediction)
        dtype = dtype_of(plan.parts["unet"]) if options.dtype == KEEP else DTYPES[options.dtype]
        if files.ip_adapters and options.image is None:
            logger.warning("The IP-Adapter has nothing to look at, so it changes nothing; give --image.")
        # What is stored in 8 bits computes in 16: no network computes in 8.
        small = dtype == FP8
        return compose(plan, device=device, dtype=torch.bfloat16 if small else dtype, fp8=options.fp8 or small)
    if options.dtype == KEEP:
        raise ValueError(f"--dtype {KEEP} is for public weights, and none are given; name one of {', '.join(DTYPES)}.")
    gen1 = load_gen1(options.model, device=device, dtype=DTYPES[options.dtype])
    for text in options.lora if "lora" in options else ():
        path, weight = lora_from(text, options.models)
        gen1 = with_lora(gen1, path, weight=weight)
    if depth is None:
        return gen1
    return dataclasses.replace(gen1, depth=load_depth_estimator(depth, device=device))


def edit_options(gen1: Gen1, options: argparse.Namespace) -> EditOptions:
    """The model's defaults, with what was said on the command line."""
    names = {field.name for field in dataclasses.fields(EditOptions)}
    said = {name: value for name, value in vars(options).items() if name in names and value is not None}
    # One pass at a time costs a CPU nothing and halves its memory; a GPU is faster with both in one call.
    return dataclasses.replace(gen1.defaults, passes=1 if gen1.device.type == "cpu" else 2, **said)


def open_source(options: argparse.Namespace) -> Video:
    """The clip that the options name, checked before anything heavy; says what a person may want to know of it."""
    clip = open_video(
        options.input,
        start_s=options.start,
        end_s=options.end,
        stride=options.stride,
        fps=options.fps,
        max_size=options.max_size,
    )
    for note in clip.notes:
        print(note)
    return clip


def open_mask(options: argparse.Namespace) -> Video:
    """The mask that the options name; of a mask video the same part is taken as of the clip."""
    mask = open_video(options.mask)
    if mask.num_frames == 1:
        return mask
    return open_video(options.mask, start_s=options.start, end_s=options.end, stride=options.stride, fps=options.fps)


def first_frame(path: Path) -> torch.Tensor:
    """The first picture of a file, 0..1, ``[1 3 h w]``.

    Raises ValueError where the file is missing or no picture.
    """
    return to_float(next(each_frame(open_video(path)))[None])


def save(clip: Video, frames: Callable[[OnStep], Iterator[Bytes]], path: Path) -> None:
    """Writes frames with the clip's own times and sound, and says what happened to them.

    ``frames`` is called once the target is known to be writable, so no work is done for nothing.
    """
    with progress() as on_step:

        def counted() -> Iterator[Bytes]:
            done = 0
            for chunk in frames(on_step):
                yield chunk
                done += len(chunk)
                on_step("write", done, clip.num_frames)

        notes = write_video(
            path,
            counted(),
            frame_rate=clip.frame_rate,
            time_stamps=clip.time_stamps,
            audio_from=clip,
            pixel_aspect=clip.pixel_aspect,
        )
    for note in notes:
        print(note)
    print(f"written: {path}")
