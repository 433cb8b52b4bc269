from fractions import Fraction

import pytest

from gen1_core.video.timing import ReadOptions, pick_frames, steady

NTSC = Fraction(30000, 1001)
TIMES = tuple(Fraction(k, 25) for k in range(50))


def test_everything_by_default() -> None:
    picks = pick_frames(TIMES, Fraction(25), ReadOptions())
    assert (picks.numbers, picks.time_stamps, picks.frame_rate) == (tuple(range(50)), TIMES, 25)


def test_start_end_and_stride_keep_times() -> None:
    picks = pick_frames(TIMES, Fraction(25), ReadOptions(start_s=0.28, end_s=0.6, stride=3))
    assert picks.numbers == (7, 10, 13)
    assert picks.time_stamps == (0, Fraction(3, 25), Fraction(6, 25))
    assert picks.frame_rate == Fraction(25, 3)


@pytest.mark.parametrize(("fps", "count"), [(12, 24), (25, 50), (50, 100), (NTSC, 60)])
def test_fps_keeps_the_duration(fps: Fraction, count: int) -> None:
    picks = pick_frames(TIMES, Fraction(25), ReadOptions(fps=Fraction(fps)))
    assert len(picks.numbers) == count
    assert all(
        TIMES[n] <= t < TIMES[n] + Fraction(1, 25) for n, t in zip(picks.numbers, picks.time_stamps, strict=True)
    )


def test_fps_on_varying_times_shows_what_is_on_screen() -> None:
    times = (Fraction(0), Fraction(1, 10), Fraction(1, 2))
    assert pick_frames(times, Fraction(10), ReadOptions(fps=Fraction(10))).numbers == (0, 1, 1, 1, 1, 2)


def test_milliseconds_become_the_rate_that_was_meant() -> None:
    rounded = [Fraction(round(k * 1000 / NTSC), 1000) for k in range(100)]
    times, rate = steady(rounded, Fraction(1, 1000), [Fraction(30), NTSC])
    assert rate == NTSC
    assert times[99] == 99 / NTSC


def test_varying_times_stay_as_they_are() -> None:
    stamps = (Fraction(0), Fraction(40, 1000), Fraction(100, 1000), Fraction(140, 1000))
    times, rate = steady(stamps, Fraction(1, 1000), [Fraction(25)])
    assert times == stamps
    assert abs(rate - Fraction(3000, 140)) < Fraction(1, 1000)


def test_a_coarse_clock_is_taken_at_its_word() -> None:
    stamps = tuple(Fraction(k, 10) for k in (0, 1, 3, 4))
    assert steady(stamps, Fraction(1, 10), [Fraction(30, 4)])[0] == stamps


@pytest.mark.parametrize(
    ("options", "advice"),
    [
        ({"start_s": 2.0, "end_s": 1.0}, "choose 0 <= start_s < end_s"),
        ({"stride": 0}, "choose 1"),
        ({"fps": Fraction(-1)}, "0 to keep"),
        ({"max_size": -5}, "0 to keep"),
    ],
)
def test_bad_options(options: dict, advice: str) -> None:
    with pytest.raises(ValueError, match=advice):
        ReadOptions(**options)


def test_start_beyond_the_end() -> None:
    with pytest.raises(ValueError, match="lower start_s"):
        pick_frames(TIMES, Fraction(25), ReadOptions(start_s=9.0))
