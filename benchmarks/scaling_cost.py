"""What a million concepts would cost on 8, 64 and 512 GPUs, and what would break first.

    python benchmarks/scaling_cost.py --run runs/all                    # as measured by a run on one device
    python benchmarks/scaling_cost.py --seconds-per-concept-step 0.01 --steps 500 --watts 700 --price 2

``--run`` is the folder of a finished ``ldm invert --concepts`` that learned on one device: its seconds, files
and bytes a concept are taken, and options win over them. Prints Markdown: what was assumed, the cost, and
the needs as shares of the limits, the largest first. A calculation: no GPU is used (docs/scaling.md).
"""

from __future__ import annotations

import argparse
import json
import math
import statistics
import sys
import tempfile
import tracemalloc
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import datetime
from pathlib import Path

HOUR, DAY = 3600.0, 86400.0
#: file system operations of a small file that is written atomically: create, flush, rename, flush the folder
OPERATIONS = 4
PROBE = 50


@dataclass(frozen=True)
class Concept:
    """What one concept takes, on one device in a full pack.

    Attributes:
        seconds_per_concept_step: a step of the pack divided by its concepts.
        steps: optimiser steps.
        overhead: seconds beside the steps: encoding, last pictures, report.
        files, bytes: in its run folder.
    """

    seconds_per_concept_step: float
    steps: int
    overhead: float
    files: float
    bytes: float

    @property
    def seconds(self) -> float:
        return self.steps * self.seconds_per_concept_step + self.overhead


@dataclass(frozen=True)
class Plan:
    """How many, how they are handed out, and what there is. Every value is an option.

    Attributes:
        concepts: to learn.
        task_size: concepts a task.
        start: seconds until a worker has imported the libraries and loaded the model,
        model_gb: of so many gigabytes,
        storage_gb_s: which all workers read from storage of this rate at once.
        death_hours: GPU-hours between two failures of a worker; each loses half a task.
        watts, price: of a GPU with its share of the machine, and of a GPU-hour.
        file_limit, storage_gb: of the shared storage; a project's quota, as a rule,
        operations: and what it does a second with small files.
        driver_gb: memory of the machine that hands out, and
        entry_bytes: what an entry of the list takes there; None: measured now.
        tasks_s: tasks a second that can be handed out.
    """

    concepts: int = 1_000_000
    task_size: int = 64
    start: float = 60.0
    model_gb: float = 4.0
    storage_gb_s: float = 5.0
    death_hours: float = 20_000.0
    watts: float | None = None
    price: float | None = None
    file_limit: float = 10e6
    storage_gb: float = 10_000.0
    operations: float = 5_000.0
    driver_gb: float = 64.0
    entry_bytes: float | None = None
    tasks_s: float = 200.0

    @property
    def tasks(self) -> int:
        return math.ceil(self.concepts / self.task_size)


@dataclass(frozen=True)
class Cost:
    """Of a plan on so many GPUs: wall-clock seconds, GPU-hours paid for, the share of them that idles
    at the start and in the last round, and expected deaths of workers."""

    wall: float
    gpu_hours: float
    idle: float
    deaths: float


def cost(concept: Concept, plan: Plan, gpus: int) -> Cost:
    """Tasks are done in rounds of one a GPU; the last round may leave GPUs without one."""
    task = plan.task_size * concept.seconds
    start = max(plan.start, gpus * plan.model_gb / plan.storage_gb_s)
    wall = start + math.ceil(plan.tasks / gpus) * task
    deaths = gpus * wall / HOUR / plan.death_hours
    wall += deaths * (start + task / 2) / gpus  # done again, beside all others
    gpu_hours = gpus * wall / HOUR
    idle = 1 - plan.concepts * concept.seconds / HOUR / gpu_hours
    return Cost(wall, gpu_hours, idle, deaths)


def limits(concept: Concept, plan: Plan, gpus: int) -> list[tuple[str, float, float]]:
    """(what, need, limit), the one that is nearest to its limit or furthest beyond it first."""
    wall = cost(concept, plan, gpus).wall
    files = plan.concepts * concept.files
    entry = entry_bytes() if plan.entry_bytes is None else plan.entry_bytes
    rows = [
        ("files (inodes) on the shared storage", files, plan.file_limit),
        ("gigabytes on the shared storage", plan.concepts * concept.bytes / 1e9, plan.storage_gb),
        ("file operations a second", OPERATIONS * files / wall, plan.operations),
        ("gigabytes of memory, where the list is read", plan.concepts * entry / 1e9, plan.driver_gb),
        ("tasks a second to hand out", plan.tasks / wall, plan.tasks_s),
        ("tasks for all GPUs to have one", gpus, plan.tasks),
    ]
    return sorted(rows, key=lambda row: row[1] / row[2], reverse=True)


# ------------------------------------------------------------------ measured
def measured(out: Path) -> Concept:
    """A concept of a finished ``ldm invert --concepts`` in ``out``; medians, overhead the mean."""
    rows = [row for row in json.loads((out / "concepts.json").read_text())["concepts"] if row["seconds"] > 0]
    if not rows:
        raise SystemExit(f"{out} holds no concept that was learned; give another --run")
    runs = [out / row["path"] for row in rows]
    found = [[path for path in run.rglob("*") if path.is_file()] for run in runs]
    manifests = [json.loads((run / "manifest.json").read_text()) for run in runs]
    first, last = (
        pick(datetime.fromisoformat(manifest[key]) for manifest in manifests)
        for pick, key in ((min, "started"), (max, "finished"))
    )
    beside = (last - first).total_seconds() - sum(row["seconds"] for row in rows)
    return Concept(
        statistics.median(row["seconds"] / row["steps"] for row in rows),
        round(statistics.median(row["steps"] for row in rows)),
        max(0.0, beside / len(rows)),
        statistics.median(map(len, found)),
        statistics.median(sum(path.stat().st_size for path in paths) for paths in found),
    )


def entry_bytes() -> float:
    """Memory of one entry of a list, as `ldm cluster` and `ldm invert --concepts` hold it."""
    from ldm.inversion.many.concept_list import read_jobs

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "concepts.yaml"
        entries = (f"  - {{name: '<{i}>', images: pictures/{i}, init: cat}}\n" for i in range(PROBE))
        path.write_text("concepts:\n" + "".join(entries))
        read_jobs(path, {})  # what is made once
        tracemalloc.start()
        jobs = read_jobs(path, {})
        taken = tracemalloc.get_traced_memory()[0] / len(jobs)
        tracemalloc.stop()
    return taken


# ------------------------------------------------------------------ printed
def report(concept: Concept, plan: Plan, gpus: Sequence[int], source: str) -> str:
    """All of it as Markdown."""
    costs = [cost(concept, plan, n) for n in gpus]
    table = [
        ["GPU-hours", *(f"{c.gpu_hours:,.0f}" for c in costs)],
        ["wall-clock", *(_duration(c.wall) for c in costs)],
        ["of these not spent on learning", *(f"{c.idle:.1%}" for c in costs)],
        ["workers that die", *(f"{c.deaths:,.1f}" for c in costs)],
    ]
    if plan.watts is not None:
        table.append(["energy, MWh", *(f"{c.gpu_hours * plan.watts / 1e6:,.1f}" for c in costs)])
    if plan.price is not None:
        table.append(["price", *(f"{c.gpu_hours * plan.price:,.0f}" for c in costs)])
    needs = [
        [what, _figure(need), _figure(limit), f"{need / limit:.2g}"]
        for what, need, limit in limits(concept, plan, max(gpus))
    ]
    return "\n".join(
        [
            f"{plan.concepts:,} concepts of {concept.steps} steps, "
            f"{concept.seconds_per_concept_step:.4g} s a concept-step and {concept.overhead:.3g} s beside "
            f"them ({source}), {concept.files:.0f} files and {concept.bytes / 1e3:.0f} kB each; "
            f"{plan.tasks:,} tasks of {plan.task_size}:",
            "",
            *_markdown(["", *(f"{n} GPUs" for n in gpus)], table),
            "",
            f"Needs on {max(gpus)} GPUs:",
            "",
            *_markdown(["what", "needed", "limit assumed", "share"], needs),
        ]
    )


def _duration(seconds: float) -> str:
    return f"{seconds / DAY:,.1f} days" if seconds >= 2 * DAY else f"{seconds / HOUR:,.1f} hours"


def _figure(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _markdown(head: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    return [f"| {' | '.join(row)} |" for row in (head, ["---"] * len(head), *rows)]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--run", type=Path, metavar="RUNS", help="take a concept's figures from this folder")
    parser.add_argument("--gpus", type=int, nargs="+", default=[8, 64, 512])
    sizes = {"steps": int, "concepts": int, "task_size": int}
    for field in (*fields(Concept), *fields(Plan)):
        kind = sizes.get(field.name, float)
        parser.add_argument(f"--{field.name.replace('_', '-')}", type=kind, metavar="N")
    args = parser.parse_args(argv)
    given = {name: value for name, value in vars(args).items() if value is not None}
    own, plan = ({f.name: given[f.name] for f in fields(cls) if f.name in given} for cls in (Concept, Plan))
    if args.run is not None:
        concept, source = replace(measured(args.run), **own), f"from {args.run.name}"
    elif "seconds_per_concept_step" in own:
        usual = {"steps": 500, "overhead": 0.0, "files": 16, "bytes": 160e3}
        concept, source = Concept(**{**usual, **own}), "assumed"  # type: ignore[arg-type]
    else:
        parser.error("give --run, or --seconds-per-concept-step")
    text = report(concept, Plan(**plan), args.gpus, source)  # type: ignore[arg-type]
    sys.stdout.write(text + "\n")


if __name__ == "__main__":
    main()
