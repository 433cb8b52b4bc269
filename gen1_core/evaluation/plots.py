"""Plots as inline SVG: a line of means with their standard errors, drawn without any package."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 230, 150
LEFT, RIGHT, TOP, BOTTOM = 46, 8, 20, 22


def line_plot(title: str, values: Sequence[float | int], means: Sequence[float], errors: Sequence[float]) -> str:
    """One figure over one slider; the axis spans the means and their errors.

    Raises ValueError where the three are not of one length, or empty.
    """
    if not values or not len(values) == len(means) == len(errors):
        raise ValueError(
            f"{len(values)} values, {len(means)} means and {len(errors)} errors make no line; give as many of each, "
            "at least one."
        )
    low = min(mean - error for mean, error in zip(means, errors, strict=True))
    high = max(mean + error for mean, error in zip(means, errors, strict=True))
    room = (high - low) * 0.08 or max(abs(high), 1.0) * 0.01
    low, high = low - room, high + room
    first, span = min(values), (max(values) - min(values)) or 1

    def x(value: float | int) -> float:
        return LEFT + (value - first) / span * (WIDTH - LEFT - RIGHT)

    def y(value: float) -> float:
        return TOP + (high - value) / (high - low) * (HEIGHT - TOP - BOTTOM)

    points = " ".join(f"{x(value):.1f},{y(mean):.1f}" for value, mean in zip(values, means, strict=True))
    marks = "".join(
        f'<line x1="{x(value):.1f}" x2="{x(value):.1f}" y1="{y(mean - error):.1f}" y2="{y(mean + error):.1f}" '
        f'class="error"/><circle cx="{x(value):.1f}" cy="{y(mean):.1f}" r="2.6"/>'
        for value, mean, error in zip(values, means, errors, strict=True)
    )
    ticks = "".join(f'<text x="{x(value):.1f}" y="{HEIGHT - 6}" class="x">{value:g}</text>' for value in values)
    ends = "".join(
        f'<text x="{LEFT - 4}" y="{y(level) + 4:.1f}" class="y">{level:.4g}</text>'
        f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y(level):.1f}" y2="{y(level):.1f}" class="grid"/>'
        for level in (low + room, (low + high) / 2, high - room)
    )
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" width="{WIDTH}" height="{HEIGHT}" role="img">'
        f"<title>{escape(title)}</title>"
        f'<text x="{WIDTH / 2:.0f}" y="13" class="t">{escape(title)}</text>{ends}{ticks}'
        f'<polyline points="{points}"/>{marks}</svg>'
    )
