"""Line charts as small inline SVG: no script, no font, and the colours of the page around them."""

from __future__ import annotations

import math
from collections.abc import Sequence

from markupsafe import Markup, escape

WIDTH, HEIGHT = 360, 190
LEFT, RIGHT, TOP, BOTTOM = 52, 12, 10, 26
Point = tuple[float, float]


def ticks(low: float, high: float, count: int = 4) -> list[float]:
    """About ``count`` round numbers inside [low, high]: steps of 1, 2 or 5 times a power of ten."""
    if not high > low:
        return [low]
    raw = (high - low) / count
    power = 10 ** math.floor(math.log10(raw))
    step = min((m * power for m in (1, 2, 5, 10)), key=lambda s: abs(s - raw))
    first = math.ceil(low / step - 1e-9)
    last = math.floor(high / step + 1e-9)
    return [i * step for i in range(first, last + 1)]


def _runs(points: Sequence[Point]) -> list[list[Point]]:
    """Stretches between values that are not finite."""
    runs: list[list[Point]] = [[]]
    for x, y in points:
        if math.isfinite(x) and math.isfinite(y):
            runs[-1].append((x, y))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _span(values: Sequence[float]) -> tuple[float, float]:
    low, high = min(values), max(values)
    room = 0.06 * (high - low) or max(abs(high) * 0.05, 1e-6)
    return low - room, high + room


def line_chart(
    title: str,
    points: Sequence[Point],
    x_label: str = "step",
    marks: Sequence[tuple[float, str]] = (),
) -> Markup:
    """An ``<svg>`` of (x, y) points; values that are not finite leave a gap.

    Args:
        title: what a reader of screens is told.
        points: the curve.
        x_label: what x counts.
        marks: places x that are marked by an upright line with a word beside it.
    """
    runs = _runs(points)
    box = f'class="chart" viewBox="0 0 {WIDTH} {HEIGHT}" role="img"'
    if not runs:
        empty = f'<text x="{WIDTH / 2}" y="{HEIGHT / 2}" text-anchor="middle">no values</text>'
        return Markup(f'<svg {box} aria-label="{escape(title)}">{empty}</svg>')
    xs = [x for run in runs for x, _ in run]
    ys = [y for run in runs for _, y in run]
    x_low, x_high = min(xs), max(xs) if max(xs) > min(xs) else min(xs) + 1
    y_low, y_high = _span(ys)

    def px(x: float) -> str:
        return f"{LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT):.1f}"

    def py(y: float) -> str:
        return f"{HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM):.1f}"

    parts = [f'<svg {box} aria-label="{escape(title)}">']
    parts.append(f"<title>{escape(title)}: {ys[0]:.4g} to {ys[-1]:.4g}</title>")
    for y in ticks(y_low, y_high):
        parts.append(f'<path class="grid" d="M{LEFT} {py(y)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 6}" y="{py(y)}" dy="4" text-anchor="end">{y:.6g}</text>')
    for x in ticks(x_low, x_high):
        parts.append(f'<text x="{px(x)}" y="{HEIGHT - 8}" text-anchor="middle">{x:.6g}</text>')
    parts.append(f'<text x="4" y="{HEIGHT - 8}">{escape(x_label)}</text>')
    for x, word in marks:
        parts.append(f'<path class="grid" stroke-dasharray="4 3" d="M{px(x)} {TOP}V{HEIGHT - BOTTOM}"/>')
        left = x - x_low > (x_high - x_low) / 2
        at, anchor = (-4, "end") if left else (4, "start")
        place = f'x="{px(x)}" dx="{at}" y="{TOP + 10}" text-anchor="{anchor}"'
        parts.append(f"<text {place}>{escape(word)}</text>")
    for run in runs:
        line = " ".join(f"{px(x)},{py(y)}" for x, y in run)
        parts.append(f'<polyline points="{line}"/>')
    # the end of the curve, and values that stand alone
    for x, y in [*(run[0] for run in runs if len(run) == 1), runs[-1][-1]]:
        parts.append(f'<circle cx="{px(x)}" cy="{py(y)}" r="3"/>')
    parts.append("</svg>")
    return Markup("".join(parts))
