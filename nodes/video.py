"""Videos in and out: the chosen frames of a clip as a stream, and a file that keeps rate, times, sound and workflow."""

import shutil
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from math import inf
from pathlib import Path
from typing import Any

from comfy_api.latest import io
from torch import Tensor

from ..gen1_core.presets import DEMO_CLIP
from ..gen1_core.video.clip import Clip
from ..gen1_core.video.timing import ReadOptions
from . import host

DEMO = "gen1_bunny.mp4 [temp]"
"""The embedded clip as the canvas can show it: a copy in ComfyUI's temp folder, made again whenever it is gone."""

IMAGES, AUDIO = 1, 2
"""Places among the outputs of Load Video: what costs memory and time, and is left out where nothing takes it."""

DAY_S = 86400.0
MOST_FRAMES = 10_000_000
FRAME_RATE = 24.0
NOTHING = "neither images nor a video is connected, so there is nothing to save; connect images, a video, or both."


def offered() -> list[str]:
    """The files to choose from: the input folder's, and the embedded clip."""
    copy = host.temp_path(".mp4").with_name("gen1_bunny.mp4")
    if not copy.exists():
        with suppress(OSError):  # then the canvas has no preview, and the clip is read from the pack
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(DEMO_CLIP, copy)
    return [*host.input_videos(), DEMO]


def path_of(file: str) -> Path:
    """The file of a name in the list. Raises ValueError where it is gone."""
    return DEMO_CLIP if file == DEMO else host.input_path(file)


class LoadVideo(io.ComfyNode):
    """A file or a VIDEO, cut, thinned out and made smaller while it streams."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_LoadVideo",
            display_name="Gen-1 Load Video",
            category=host.CATEGORY,
            description="A video, or the part of it that is needed. VIDEO streams from the file whatever its length; "
            "frames are put into memory only where IMAGE is connected.",
            inputs=[
                io.Combo.Input(
                    "file",
                    options=offered(),
                    upload=io.UploadType.video,
                    tooltip="A video, animation or picture of ComfyUI's input folder; gen1_bunny.mp4 comes with the "
                    "pack. Not looked at where a video is connected.",
                ),
                io.Float.Input(
                    "start_s",
                    default=0.0,
                    min=0.0,
                    max=DAY_S,
                    step=0.01,
                    round=0.001,
                    tooltip="Seconds into the clip at which to begin: higher leaves out more of its start.",
                ),
                io.Float.Input(
                    "end_s",
                    default=0.0,
                    min=0.0,
                    max=DAY_S,
                    step=0.01,
                    round=0.001,
                    tooltip="Seconds into the clip at which to stop: lower keeps fewer frames. 0 is the end.",
                ),
                io.Int.Input(
                    "stride",
                    default=1,
                    min=1,
                    max=1000,
                    tooltip="Every n-th frame is kept, each at its own time: higher gives fewer frames a second.",
                ),
                io.Float.Input(
                    "fps",
                    default=0.0,
                    min=0.0,
                    max=240.0,
                    step=0.001,
                    round=0.001,
                    tooltip="Frames a second, reached by dropping or repeating frames; the duration stays. "
                    "0 keeps the clip's own.",
                ),
                io.Int.Input(
                    "max_size",
                    default=0,
                    min=0,
                    max=16384,
                    tooltip="Longest side in pixels: a larger clip is made smaller, a smaller one stays. 0 keeps all.",
                ),
                io.Video.Input("video", optional=True, tooltip="A VIDEO to take the frames from instead of the file."),
                io.Int.Input(
                    "max_frames",
                    optional=True,
                    default=0,
                    min=0,
                    max=MOST_FRAMES,
                    tooltip="At most so many frames, of those that the other inputs leave: lower keeps fewer of the "
                    "beginning. 0 keeps all.",
                ),
            ],
            outputs=[
                io.Video.Output("clip", display_name="VIDEO", tooltip="The chosen part, read when it is needed."),
                io.Image.Output("images", display_name="IMAGE", tooltip="Its frames, in memory."),
                io.Audio.Output("audio", display_name="AUDIO", tooltip="Its sound; nothing where it is silent."),
                io.Float.Output(
                    "frame_rate", display_name="frame_rate", tooltip="Frames a second; the mean if it varies."
                ),
                io.Int.Output("frame_count", display_name="frame_count", tooltip="How many frames it has, exactly."),
            ],
            hidden=[io.Hidden.unique_id],
            **host.aliases(
                *("open video", "import video", "trim", "fps", "resample", "video to images"),
                *("VHS", "frame_load_cap", "force_rate", "skip_first_frames", "select_every_nth", "custom_width"),
            ),
        )

    @classmethod
    def execute(
        cls,
        file: str,
        start_s: float,
        end_s: float,
        stride: int,
        fps: float,
        max_size: int,
        video: Any = None,
        max_frames: int = 0,
    ) -> io.NodeOutput:
        """Looks the clip through; frames and sound are decoded only where something takes them."""
        options = ReadOptions(
            start_s=start_s,
            end_s=end_s or inf,
            stride=stride,
            fps=host.rate_of(fps) if fps else Fraction(0),
            max_size=max_size,
        )
        given = video if video is not None else host.video_of(path_of(file))
        source = host.source_of_video(given, **vars(options))
        for note in source.notes:
            host.say(cls, note)
        fewer = 0 < max_frames < source.clip.num_frames
        source = beginning(source, max_frames) if fewer else source
        clip = host.video_from(source) if fewer or options != ReadOptions() else given
        wanted = host.linked_outputs(count=5)
        images = read_images(source.clip) if IMAGES in wanted else None
        audio = host.audio_of(source.audio) if AUDIO in wanted else None
        return io.NodeOutput(clip, images, audio, float(source.frame_rate), source.clip.num_frames)

    @classmethod
    def validate_inputs(cls, file: str | None, video: object = "none") -> bool | str:
        """Whether the file is there, before anything runs; a video that is connected is None here."""
        try:
            return file is None or video is None or bool(path_of(file))
        except ValueError as error:
            return str(error)

    @classmethod
    def fingerprint_inputs(cls, file: str | None = None, **others: Any) -> str:
        """Another file of the same name, or an output that nothing took before, means reading again."""
        wanted = sorted(host.linked_outputs(count=5) & {IMAGES, AUDIO})
        return f"{host.file_state(path_of(file)) if file and 'video' not in others else ''} {wanted}"


def beginning(source: host.Source, frames: int) -> host.Source:
    """The first frames of a clip, with their sound."""
    end_s = source.time_stamps[frames] if source.time_stamps else frames / source.frame_rate
    return host.source_of_video(host.video_from(source), end_s=float(end_s))


def read_images(clip: Clip) -> Tensor:
    """All frames as IMAGE. Raises ValueError where memory does not hold them."""
    frames = clip.num_frames
    host.require_memory(frames, clip.height, clip.width)
    return host.gather(host.ticking(clip, host.on_step("read"), "read", frames=frames), frames=frames)


class SaveVideo(io.ComfyNode):
    """Frames, or a VIDEO, into a file of the output folder."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        """The form."""
        return io.Schema(
            node_id="Gen1_SaveVideo",
            display_name="Gen-1 Save Video",
            category=host.CATEGORY,
            description="Images, a VIDEO, or both into an MP4 of the output folder: any size, the exact frame rate, "
            "colours tagged, sound and workflow inside. It appears when it is whole.",
            inputs=[
                io.String.Input(
                    "filename_prefix",
                    default="video/Gen-1",
                    tooltip="Folder and beginning of the file's name; %date:yyyy-MM-dd% and the like are filled in.",
                ),
                io.Float.Input(
                    "frame_rate",
                    default=FRAME_RATE,
                    min=0.01,
                    max=1000.0,
                    step=0.001,
                    round=0.001,
                    tooltip="Frames a second of the images: higher plays them faster. A connected video gives its own.",
                ),
                io.Float.Input(
                    "crf",
                    default=18.0,
                    min=0.0,
                    max=51.0,
                    step=1.0,
                    tooltip="Quality: 0 loses nothing, 18 hardly anything, higher makes smaller files. A video that is "
                    "H.264 in MP4 already is copied as it is.",
                ),
                io.Image.Input(
                    "images", optional=True, tooltip="Frames to save; a connected video's own are left out."
                ),
                io.Video.Input(
                    "video",
                    optional=True,
                    tooltip="A video to save; with images connected, only the frame rate, the times and the sound "
                    "that they get.",
                ),
                io.Audio.Input("audio", optional=True, tooltip="A sound in place of the video's own."),
            ],
            outputs=[io.Video.Output("saved", display_name="VIDEO", tooltip="The file that was written.")],
            hidden=[io.Hidden.prompt, io.Hidden.extra_pnginfo, io.Hidden.unique_id],
            is_output_node=True,
            **host.aliases("export video", "write video", "video combine", "images to video", "mp4"),
        )

    @classmethod
    def execute(
        cls,
        filename_prefix: str,
        frame_rate: float,
        crf: float,
        images: Tensor | None = None,
        video: Any = None,
        audio: dict[str, Any] | None = None,
    ) -> io.NodeOutput:
        """Copies the streams of an MP4; encodes everything else."""
        if images is None and video is None:
            raise ValueError(NOTHING)
        source = source_of(images, video, frame_rate=frame_rate)
        clip = source.clip
        file = host.output_file(filename_prefix, suffix=".mp4", width=clip.width, height=clip.height)
        same = host.playable(video) if images is None and audio is None else None
        if same is not None:
            host.copy_file(same, file.path, host.metadata(cls))
        else:
            source = source if audio is None else host.with_sound(source, audio)
            chunks = host.counted(clip, host.on_step("write"), "write")
            for note in host.write(file.path, chunks, source, metadata=host.metadata(cls), crf=crf):
                if audio is None or "pcm_f32le" not in note:  # AUDIO is never compressed: to encode it is no news
                    host.say(cls, note)
        if video is None and frame_rate == FRAME_RATE and not host.linked_input(cls, "frame_rate"):
            host.say(cls, f"Saved at {FRAME_RATE:g} frames a second; wire frame_rate or video to keep the source's.")
        return io.NodeOutput(host.video_of(file.path), ui=file.ui)

    @classmethod
    def validate_inputs(
        cls, filename_prefix: str | None, images: object = NOTHING, video: object = NOTHING
    ) -> bool | str:
        """Whether anything is connected; what is, is None here."""
        return NOTHING if images == video == NOTHING else True


def source_of(images: Tensor | None, video: Any, *, frame_rate: float) -> host.Source:
    """What is to be written: the images with the rate, times and sound of the video, or the video itself."""
    if images is None:
        return host.source_of_video(video)
    if video is None:
        return host.source_of_images(images, frame_rate=frame_rate)
    given, clip = host.source_of_video(video), host.clip_of(images)
    same = given.clip.num_frames == clip.num_frames
    return replace(given, clip=clip, time_stamps=given.time_stamps if same else None)
