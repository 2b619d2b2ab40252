"""What a step costs as things grow: time, memory, start-up against batch, vectors, words, prompts, packs.

    python benchmarks/growth.py --size emoji [--threads 2] [--plot growth.png]
    python benchmarks/growth.py --size mid --axis batch "batch, checkpointing"
    python benchmarks/growth.py --size sd1 --device cuda --precision bf16-mixed

Every point is a process of its own that trains as ``ldm invert`` does (``benchmarks/step.py``) with one
floor step after each of its own, so that what the machine does besides hits both; or makes the joint
steps of ``ldm invert --concepts``, whose floor has the samples of all concepts. Prints one Markdown
table: medians of ``--steps`` steps; peak memory; seconds from the program's start to the end of the first
step.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

BORN = time.perf_counter()  # before anything heavy is imported

import torch  # noqa: E402
from pack import concept, together  # noqa: E402
from pytorch_lightning.callbacks import Callback  # noqa: E402
from sizes import BATCHES, Size, build_model, conditions, markdown, shapes  # noqa: E402
from step import WARM_UP, Clock, Rivals, autocast, dtype_of, floor, learn, peak  # noqa: E402

from ldm.backbone.forms import stored_in  # noqa: E402
from ldm.backbone.model import LatentDiffusion  # noqa: E402
from ldm.cli.common import add_settings  # noqa: E402
from ldm.config import load_yaml  # noqa: E402
from ldm.inversion.many.learner import Learner  # noqa: E402
from ldm.io.atomic import atomic_write  # noqa: E402
from ldm.training.fit import attention_kernel  # noqa: E402
from ldm.training.memory import freed_memory_kept  # noqa: E402

#: axis -> its points; what a point sets is in ``settings``
AXES: dict[str, Sequence[int]] = {
    "batch": (1, 2, 4, 8, 16),
    "batch, checkpointing": (1, 2, 4, 8, 16),
    "vectors a word": (1, 2, 4, 8),
    "known words": (1, 100, 1_000, 10_000),
    "words a prompt": (4, 8, 16, 24),
    "concepts a pass": (1, 2, 4, 8, 16),
}


def settings(axis: str, point: int) -> list[str]:
    """The inversion's settings of a point, as ``key=value``."""
    return {
        "batch": [f"batch_size={point}"],
        "batch, checkpointing": [f"batch_size={point}", "compute.checkpointing=true"],
        "vectors a word": [f"num_vectors={point}"],
    }.get(axis, [])


class Watch(Callback):
    """Seconds from the program's start to the end of the first step; peak memory before the report."""

    start: float | None = None
    peak = 0.0

    def on_train_batch_end(self, *_: Any) -> None:
        self.start = self.start or time.perf_counter() - BORN
        self.peak = peak()


def measure(axis: str, point: int, args: argparse.Namespace) -> dict[str, Any]:
    """One point, in this process."""
    size = Size(args.size, BATCHES[args.size] * (point if axis == "concepts a pass" else 1), args.tiny)
    size = replace(size, batch=point) if axis.startswith("batch") else size
    model, clock = build_model(size, args.device, dtype_of(args)), Clock(args.device)
    chunk = 1 if args.device == "cpu" else 10
    rivals = Rivals({"floor": lambda: floor(autocast(args), model, size)}, clock, chunk)
    if axis == "concepts a pass":
        found = packed(model, point, args, rivals)
    else:
        found = alone(model, size, axis, point, args, rivals)
    seconds = []
    for _ in range(20):
        start = clock()
        model.condition(["a photo of <word>"])
        seconds.append(clock() - start)
    return {
        "step": rivals.median("ours"),
        "floor": rivals.median("floor"),
        "text": statistics.median(seconds),
        "shapes": shapes(model, BATCHES[args.size]),
        **found,
        **conditions(args.device, args.precision),
    }


def alone(
    model: LatentDiffusion, size: Size, axis: str, point: int, args: argparse.Namespace, rivals: Rivals
) -> dict[str, Any]:
    """Train a word as ``ldm invert`` does."""
    watch = Watch()
    if axis == "known words":
        rng = torch.Generator().manual_seed(0)
        for i, vector in enumerate(torch.randn(point - 1, model.text.width, generator=rng)):
            model.add_placeholder(f"<known-{i}>", vector)
    captions = [[" ".join(["<word>", *["photo"] * (point - 1)])]] * 5 if axis == "words a prompt" else None
    args.set = [*args.set, *settings(axis, point)]
    steps = (args.steps + WARM_UP + 1) * rivals.chunk
    learn(model, size, args, steps, watch, rivals, captions=captions)
    return {"peak": watch.peak, "start": watch.start}


def packed(model: LatentDiffusion, n: int, args: argparse.Namespace, rivals: Rivals) -> dict[str, Any]:
    """Joint steps of n concepts, as of ``ldm invert --concepts``; the floor's batch is that of all."""
    given = {"batch_size": BATCHES[args.size], **load_yaml([], args.set)}
    start = None
    with tempfile.TemporaryDirectory() as folder, freed_memory_kept(), attention_kernel("auto"):
        tasks = [concept(model, i, Path(folder), args.precision, given) for i in range(n)]
        with stored_in(model, args.precision):
            learners = [Learner(task, model.device) for task in tasks]
            for _ in range(args.steps + WARM_UP):
                seconds = together(model, learners, rivals.chunk)
                start = start or time.perf_counter() - BORN
                rivals.seconds["ours"].append(sum(seconds) / rivals.chunk)
                rivals.let_others_run()
    return {"peak": peak(), "start": start}


def in_a_process_of_its_own(axis: str, point: int, args: argparse.Namespace) -> dict[str, Any]:
    words = ["--point", axis, str(point), "--size", args.size, "--device", args.device]
    words += ["--threads", str(args.threads), "--steps", str(args.steps), "--precision", args.precision]
    words += [*(["--tiny"] if args.tiny else []), *(f"--set={item}" for item in args.set)]
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def plot(found: dict[str, list[dict[str, Any]]], title: str, path: Path) -> None:
    """Seconds a step and peak memory against each axis, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4 * len(found), 3.6), layout="constrained")
    figure.suptitle(title.replace("; ", "\n", 1), fontsize=8)
    for place, (axis, rows) in enumerate(found.items()):
        seconds = figure.add_subplot(1, len(found), place + 1, xlabel=axis)
        memory = seconds.twinx()
        points = AXES[axis]
        for plane, key, label, style in (
            (seconds, "step", "step, s", "o-C0"),
            (seconds, "floor", "floor, s", "o:C0"),
            (memory, "peak", "peak memory, MiB", "s-C1"),
        ):
            plane.plot(points, [row[key] for row in rows], style, label=label, markersize=3)
        seconds.set_ylim(bottom=0)
        memory.set_ylim(bottom=0)
        if axis == "known words":
            seconds.set_xscale("log")
        if place == 0:
            seconds.set_ylabel("seconds (blue)")
        if place == len(found) - 1:
            memory.set_ylabel("MiB (orange)")
    seconds.legend(loc="lower right", fontsize=7)
    with atomic_write(path) as temporary:
        figure.savefig(temporary, dpi=120, format="png")


def table(found: dict[str, list[dict[str, Any]]]) -> str:
    """A row a point; the last column compares the step with that of the axis's first point."""
    columns: dict[str, Callable[[dict[str, Any]], str]] = {
        "step, s": lambda row: f"{row['step']:.4f}",
        "floor, s": lambda row: f"{row['floor']:.4f}",
        "step / floor": lambda row: f"{row['step'] / row['floor']:.3f}",
        "a prompt's text, s": lambda row: f"{row['text']:.5f}",
        "peak, MiB": lambda row: f"{row['peak']:,.0f}",
        "start to first step, s": lambda row: f"{row['start']:.1f}",
    }
    rows = []
    for axis, points in found.items():
        for point, row in zip(AXES[axis], points, strict=True):
            rows.append([axis, f"{point:,}", *(show(row) for show in columns.values())])
    return markdown(["grows", "to", *columns], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", default="emoji", choices=list(BATCHES), help="which model")
    add("--axis", nargs="+", default=list(AXES), choices=list(AXES), help="what grows (default: all)")
    add("--steps", type=int, default=12, help="measured steps of a point (on a GPU: tens of them)")
    add("--threads", type=int, default=2)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--precision", default="32-true", help="32-true, bf16-mixed or 16-mixed")
    add_settings(parser, "settings of the inversion")
    add("--tiny", action="store_true", help="all but emoji: the layout with little in it, to try it out")
    add("--plot", type=Path, metavar="PNG", help="draw the curves as well")
    add("--point", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.point:  # in the process of its own
        sys.stdout.write(json.dumps(measure(args.point[0], int(args.point[1]), args)) + "\n")
        return
    found = {axis: [in_a_process_of_its_own(axis, point, args) for point in AXES[axis]] for axis in args.axis}
    first = next(iter(found.values()))[0]
    title = f"{args.size}: {first['shapes']}; {first['machine']}; {first['precision']}; n = {args.steps}"
    sys.stdout.write(table(found).replace("| grows |", f"| grows ({title}) |", 1))
    if args.plot:
        plot(found, title, args.plot)


if __name__ == "__main__":
    main()
