"""The figure of an experiment as inline SVG: one point a setup, with the intervals of both of its figures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from ldm.report.curves import ticks

WIDTH, HEIGHT = 640, 420
LEFT, RIGHT, TOP, BOTTOM = 62, 24, 16, 48
LABEL, LINE = 130, 14  # a name is about so wide and so high
#: Hues that stay apart for people who see few colours (Okabe and Ito 2008).
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6f6f6f")


@dataclass(frozen=True)
class Interval:
    """A figure with its 95 % interval."""

    value: float
    low: float
    high: float


@dataclass(frozen=True)
class Point:
    """A setup: ``x`` how near its pictures are to the text, ``y`` to the reference pictures."""

    name: str
    x: Interval
    y: Interval
    link: str = ""


def scatter(title: str, points: Sequence[Point], x_label: str, y_label: str) -> Markup:
    """An ``<svg>`` of the points; the name of each stands beside it and links to its pictures."""
    x_low, x_high = _span([p.x for p in points])
    y_low, y_high = _span([p.y for p in points])

    def px(x: float) -> float:
        return round(LEFT + (x - x_low) / (x_high - x_low) * (WIDTH - LEFT - RIGHT), 1)

    def py(y: float) -> float:
        return round(HEIGHT - BOTTOM - (y - y_low) / (y_high - y_low) * (HEIGHT - TOP - BOTTOM), 1)

    parts = [
        f'<svg class="chart" style="max-width:{WIDTH}px" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="{escape(title)}"><title>{escape(title)}</title>'
    ]
    for y in ticks(y_low, y_high, 5):
        parts.append(f'<path class="grid" d="M{LEFT} {py(y)}H{WIDTH - RIGHT}"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{py(y)}" dy="4" text-anchor="end">{y:.4g}</text>')
    for x in ticks(x_low, x_high, 6):
        parts.append(f'<path class="grid" d="M{px(x)} {TOP}V{HEIGHT - BOTTOM}"/>')
        parts.append(f'<text x="{px(x)}" y="{HEIGHT - BOTTOM + 16}" text-anchor="middle">{x:.4g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle}" y="{HEIGHT - 8}" text-anchor="middle">{escape(x_label)}</text>')
    half = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text x="14" y="{half}" text-anchor="middle" transform="rotate(-90 14 {half})">'
        f"{escape(y_label)}</text>"
    )
    labels: list[tuple[float, float]] = []
    for number, point in enumerate(points):
        colour = COLOURS[number % len(COLOURS)]
        x, y = px(point.x.value), py(point.y.value)
        lines = f"M{px(point.x.low)} {y}H{px(point.x.high)}M{x} {py(point.y.low)}V{py(point.y.high)}"
        right = x < WIDTH * 0.7
        at, anchor = (x + 8, "start") if right else (x - 8, "end")
        height = y - 7
        while any(abs(at - a) < LABEL and abs(height - h) < LINE for a, h in labels):
            height += LINE
        labels.append((at, height))
        told = (
            f"{point.name}: {x_label} {point.x.value:.4f} {_ends(point.x)}, "
            f"{y_label} {point.y.value:.4f} {_ends(point.y)}"
        )
        parts.append(
            f'<a href="{escape(point.link)}"><title>{escape(told)}</title>'
            f'<path d="{lines}" style="stroke:{colour};stroke-width:1.5;fill:none"/>'
            f'<circle cx="{x}" cy="{y}" r="5" style="fill:{colour}"/>'
            f'<text x="{at}" y="{height}" text-anchor="{anchor}" style="fill:{colour};font-weight:600">'
            f"{escape(point.name)}</text></a>"
        )
    parts.append("</svg>")
    return Markup("".join(parts))


def _ends(one: Interval) -> str:
    """The interval in brackets, or that there is none."""
    return f"({one.low:.4f} to {one.high:.4f})" if one.high > one.low else "(no interval)"


def _span(intervals: Sequence[Interval]) -> tuple[float, float]:
    low, high = min(one.low for one in intervals), max(one.high for one in intervals)
    room = 0.08 * (high - low) or max(abs(high) * 0.05, 1e-3)
    return low - room, high + room
