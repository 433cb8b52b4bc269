"""Is video flat in memory? Peak above ``import gen1_core`` of reading a 720p clip and writing it again.

Run: python benchmarks/video_memory.py [--frames 200 2000]
The clips are made first (a gradient with a moving bar); each is then copied by a process of its own.
Unix only: Windows does not tell a process its peak.
"""

import argparse
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path

WIDTH, HEIGHT, RATE, CHUNK = 1280, 720, 30, 16
LOOP = 20
LIMIT_MB, LIMIT_GROWTH = 350, 0.05


def peak_mb() -> float:
    """The most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / 2**20 if sys.platform == "darwin" else peak / 2**10


def make(path: Path, frames: int) -> None:
    """Write the clip that is measured: a short one, its packets repeated, so that nothing long is encoded."""
    import av
    import torch

    from gen1_core.video.write import write_video

    gradient = torch.linspace(0, 255, WIDTH).to(torch.uint8).expand(3, HEIGHT, WIDTH)

    def chunks() -> Iterator[torch.Tensor]:
        for frame in range(LOOP):
            picture = gradient.clone()
            picture[:, 200:520, frame * 50 : frame * 50 + 64] = 255 - frame * 10
            yield picture[None]

    short = path.with_name("short.mp4")
    write_video(short, chunks(), frame_rate=Fraction(RATE))
    with av.open(str(path), "w") as output:
        written, stream = 0, None
        while written < frames:
            with av.open(str(short)) as source:
                template = source.streams.video[0]
                stream = stream or output.add_stream_from_template(template)
                shift = round(written / RATE / template.time_base)
                for packet in source.demux(template):
                    if packet.pts is None or packet.dts is None:
                        continue
                    packet.pts, packet.dts = packet.pts + shift, packet.dts + shift
                    packet.stream = stream
                    output.mux(packet)
                    written += 1


def copy(source: Path, target: Path) -> None:
    """Read and write in this process, and say what it took."""
    import gen1_core  # noqa: F401
    from gen1_core.video.read import open_video
    from gen1_core.video.write import write_video

    before, start = peak_mb(), time.perf_counter()
    video = open_video(source, chunk=CHUNK)
    write_video(target, video, frame_rate=video.frame_rate, time_stamps=video.time_stamps, audio_from=video)
    if open_video(target).num_frames != video.num_frames:
        raise SystemExit("the copy has another number of frames than its source; look at the writer.")
    print(f"{video.num_frames} {before:.1f} {peak_mb():.1f} {time.perf_counter() - start:.1f}")


def child(*arguments: str | Path) -> str:
    """Run this file in a fresh process: a peak never comes down within one."""
    command = [sys.executable, __file__, *map(str, arguments)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, encoding="utf-8").stdout


def main() -> None:
    """Measure the clips of ``--frames`` and compare."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--frames", type=int, nargs="+", default=[200, 2000])
    parser.add_argument("--make", nargs=2, metavar=("PATH", "FRAMES"), help=argparse.SUPPRESS)
    parser.add_argument("--copy", nargs=2, metavar=("SOURCE", "TARGET"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.make:
        return make(Path(options.make[0]), int(options.make[1]))
    if options.copy:
        return copy(Path(options.copy[0]), Path(options.copy[1]))
    above = []
    with tempfile.TemporaryDirectory() as folder:
        for frames in options.frames:
            source, target = Path(folder, f"{frames}.mp4"), Path(folder, f"{frames}-copy.mp4")
            child("--make", source, str(frames))
            count, before, peak, seconds = child("--copy", source, target).split()
            above.append(float(peak) - float(before))
            print(f"{count} frames {WIDTH}x{HEIGHT}: {above[-1]:.0f} MB above {before} MB, {seconds} s")
    growth = max(above) / above[0] - 1
    print(f"limit {LIMIT_MB} MB, growth {growth:+.1%} (limit {LIMIT_GROWTH:.0%})")
    if max(above) > LIMIT_MB or growth > LIMIT_GROWTH:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
