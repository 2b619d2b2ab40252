"""``report.html`` of an inversion: what was shown, what the word draws now, curves, nearest words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from ldm.report.curves import line_chart
from ldm.report.html import LARGEST, flat, picture, write_page

#: A vector's neighbours in the vocabulary, nearest first: word, cosine, distance.
Neighbours = Sequence[tuple[str, float, float]]


@dataclass(frozen=True)
class InversionReport:
    """What the page of one inversion shows.

    Attributes:
        title: text.
        placeholders: the learned words.
        summary: a few settings and results, shown as cards.
        training_images: the concept's pictures.
        cut_outs: what counts of them, where they have masks: a caption, and the picture.
        samples_by_step: step -> pictures or grids drawn then.
        prompts: prompt -> its final pictures.
        curves: name -> points (step, value).
        nearest_words: placeholder -> the neighbours of each of its vectors.
        manifest: of the run; nested mappings are shown flat.
        metrics: name -> value, where an evaluation was made.
    """

    title: str
    placeholders: Sequence[str]
    summary: Mapping[str, object] = field(default_factory=dict)
    training_images: Sequence[Path] = ()
    cut_outs: Sequence[tuple[str, Path]] = ()
    samples_by_step: Mapping[int, Sequence[Path]] = field(default_factory=dict)
    prompts: Mapping[str, Sequence[Path]] = field(default_factory=dict)
    curves: Mapping[str, Sequence[tuple[float, float]]] = field(default_factory=dict)
    nearest_words: Mapping[str, Sequence[Neighbours]] = field(default_factory=dict)
    manifest: Mapping[str, object] = field(default_factory=dict)
    metrics: Mapping[str, object] = field(default_factory=dict)


def write_inversion_report(report: InversionReport, path: Path) -> Path:
    """Write the page of an inversion atomically; returns ``path``."""
    words = [
        (f"{name}, " * (len(report.nearest_words) > 1) + f"vector {k}",
         [(word, f"{cosine:.2f}") for word, cosine, _ in row])
        for name, rows in report.nearest_words.items()
        for k, row in enumerate(rows, start=1)
    ]  # fmt: skip
    return write_page(
        "inversion",
        path,
        report,
        training=[picture(p) for p in report.training_images],
        cut_outs=[(caption, picture(p)) for caption, p in report.cut_outs],
        prompts=[(name, [picture(p) for p in files]) for name, files in report.prompts.items()],
        steps=[
            (step, [picture(p, LARGEST) for p in files])
            for step, files in sorted(report.samples_by_step.items())
        ],
        curves=[(name, line_chart(name, points)) for name, points in report.curves.items()],
        words=words,
        metrics=flat(report.metrics),
    )
