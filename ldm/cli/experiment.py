"""``ldm experiment``: concepts x setups x seeds from one YAML file, resumed, compared and shown."""

from __future__ import annotations

import argparse
import os
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common
from ldm.errors import UserError
from ldm.text.english import counted

if TYPE_CHECKING:
    from ldm.experiments.config import ExperimentConfig
    from ldm.experiments.plan import Plan
    from ldm.experiments.runner import Standing

EXAMPLE = """\
  ldm experiment run experiments/smoke.yaml                  # again after an interruption: it goes on
  ldm experiment run experiments/smoke.yaml --preset quick --workers 2 --only 'owl/*/0'
  ldm experiment status experiments/smoke.yaml
  ldm experiment table experiments/smoke.yaml
  ldm experiment report experiments/smoke.yaml
  ldm experiment score experiments/smoke.yaml --scorer clip:ViT-B-32/openai
  ldm experiment export experiments/smoke.yaml --to samples/
"""
ACTIONS = ("run", "status", "table", "report", "score", "export")


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "experiment",
        "run, compare and show a grid of concepts, settings and seeds",
        "Learn every concept of a YAML file with every setup and seed, draw and score the same prompts\n"
        "with each, and compare the setups. Finished cells are skipped, begun ones go on, and one that\n"
        "fails stops no other.\n\n"
        "run     learn, draw and score what is not finished\n"
        "status  say where every cell stands\n"
        "table   compare the setups, with intervals over concepts; writes table.csv and cells.csv\n"
        "report  write report.html: the figure, the expected orders, the pictures behind each point\n"
        "score   judge the pictures that are there by another scorer, without drawing\n"
        "export  copy the pictures into the folders that DreamBench++'s judge reads",
        EXAMPLE,
    )
    add = parser.add_argument
    add("action", choices=ACTIONS, metavar="|".join(ACTIONS))
    add("file", type=Path, metavar="FILE", help="the experiment's YAML")
    add("--preset", metavar="NAME", help="one of the file's presets, whose keys win over its own")
    common.add_settings(parser, "keys of the file, such as score.samples=2 base.steps=50")
    add("--out", type=Path, metavar="DIR", help="folder (default: runs/experiments/<file>[-<preset>])")
    add(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where scorers compute (default: auto); where words are learned is base.accelerator",
    )
    add("--allow-download", action="store_true", help="fetch weights of scorers that are not here")
    group = parser.add_argument_group("of run")
    add = group.add_argument
    add(
        "--only",
        action="append",
        default=[],
        metavar="PATTERN",
        help="only cells like 'owl/*/0' (concept/setup/seed); may be given several times",
    )
    add("--dry-run", action="store_true", help="say what would be done, and do nothing")
    add(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="processes beside each other (default: 1)",
    )
    add("--address", metavar="local|auto|HOST:PORT", help="learn on a Ray cluster instead")
    add("--cpus-per-task", type=int, default=1, metavar="N", help="of a Ray task (default: 1)")
    add("--gpus-per-task", type=float, metavar="X", help="(default: 1 if the cluster has GPUs, else 0)")
    group = parser.add_argument_group("of score and export")
    add = group.add_argument
    add("--scorer", action="append", default=[], metavar="NAME", help="may be given several times")
    add("--to", type=Path, metavar="DIR", help="of export: where the folders go")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Do what the action says."""
    from ldm.experiments.config import read

    common.typed(args.set)
    config = read(args.file, args.preset, args.set)
    name = args.file.stem + (f"-{args.preset}" if args.preset else "")
    out = args.out or Path("runs", "experiments", name)
    if args.action == "run":
        _run(args, config, out)
        return
    plan = _kept(config, out)
    actions: dict[str, Callable[[argparse.Namespace, Plan], None]] = {
        "status": _status, "table": _table, "report": _report, "score": _score, "export": _export,
    }  # fmt: skip
    actions[args.action](args, plan)


def _kept(config: ExperimentConfig, out: Path) -> Plan:
    """What was run in the folder; says so if the file has changed since."""
    import logging

    from ldm.experiments.plan import kept_experiment, load_plan

    plan = load_plan(out)
    if kept_experiment(config) != kept_experiment(plan.config):
        logging.getLogger(__name__).warning(
            "the file has changed since %s was run: this is what was run then; run it again", out
        )
    return plan


def _run(args: argparse.Namespace, config: ExperimentConfig, out: Path) -> None:
    from ldm.experiments import runner
    from ldm.experiments.cells import make_plan
    from ldm.experiments.rows import write_tables
    from ldm.experiments.scores import load_scorers

    common.resume_by(lambda: "give the same command again; what is finished is kept")
    if args.workers < 1:
        raise UserError(f"--workers is {args.workers}; give at least 1")
    device = common.torch_device(args.device)
    scorers = load_scorers(config.score.scorers, device, allow_download=args.allow_download)
    identities = {name: scorer.identity for name, scorer in scorers.items()}
    with common.output(out, out):
        plan = make_plan(config, out, identities)
        cells = runner.chosen(plan, args.only)
        if args.dry_run:
            _say_plan(plan, [runner.standing(plan, cell) for cell in cells])
            return
        plan.save()
        found = runner.run(plan, list(scorers.values()), only=args.only, workers=_workers(args))
        rows, files = write_tables(plan)
    _print_rows(rows)
    common.say(*(f"  {path}" for path in files))
    _end(found)


def _workers(args: argparse.Namespace) -> Callable[[], Any] | None:
    """What makes the executor that the options describe."""
    from ldm.experiments.workers import Processes
    from ldm.inversion.many.ray_workers import RayWorkers

    if args.address is not None:
        return partial(
            RayWorkers, args.address, cpus=args.cpus_per_task, gpus=args.gpus_per_task, verbose=args.verbose
        )
    if args.workers == 1:
        return None
    return partial(Processes, args.workers, max(1, (os.cpu_count() or 1) // args.workers))


def _say_plan(plan: Plan, found: Sequence[Standing]) -> None:
    from ldm.experiments.cells import groups

    states = {one.cell.name: one.state for one in found}
    for number, group in enumerate(groups(plan, [one.cell for one in found]), start=1):
        what = f"pack of {len(group)}" if len(group) > 1 else "alone"
        common.heading(f"group {number}, {what}, {sum(cell.steps for cell in group)} steps")
        common.say(*(f"  {states[cell.name]:8}  {cell.title}" for cell in group))
    todo = sum(one.state != "finished" for one in found)
    pictures = sum(len(plan.album(one.cell).shots) for one in found if one.state != "finished")
    common.say(f"{todo} of {len(found)} cells would be worked on, and {pictures} pictures drawn")


def _end(found: Sequence[Standing]) -> None:
    """Raise what failed."""
    failed = [one for one in found if one.state == "failed"]
    if failed:
        first = failed[0]
        raise UserError(
            f"{len(failed)} of {len(found)} cells failed, the first being {first.cell.title} ({first.error})"
            "; put it right, then give the same command again"
        )


def _status(args: argparse.Namespace, plan: Plan) -> None:
    from ldm.experiments.runner import standing

    found = [standing(plan, cell) for cell in plan.cells]
    counts: Counter[str] = Counter(one.state for one in found)
    states = ("finished", "begun", "waiting", "failed")
    common.heading(f"{len(found)} cells in {plan.out}: " + ", ".join(f"{counts[s]} {s}" for s in states))
    for one in found:
        if one.state != "finished":
            common.say(f"  {one.state:8}  {one.cell.title}{': ' if one.error else ''}{one.error}")


def _table(args: argparse.Namespace, plan: Plan) -> None:
    from ldm.experiments.rows import write_tables

    rows, files = write_tables(plan)
    if not rows:
        raise UserError(f"nothing of {plan.out} has been scored yet; see ldm experiment status")
    _print_rows(rows)
    _print_verdicts(plan)
    common.say(*(f"  {path}" for path in files))


def _print_rows(rows: Sequence[Mapping[str, Any]]) -> None:
    """A small table for each figure."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    kinds = dict.fromkeys((row["scorer"], row["metric"], row["references"]) for row in rows)
    for scorer, metric, references in kinds:
        own = [row for row in rows if (row["scorer"], row["metric"]) == (scorer, metric)]
        own = [row for row in own if row["references"] == references]
        against = f", against {references}" if references else ""
        common.heading(f"{metric}, {scorer}{against}, {counted(own[0]['concepts'], 'concept')}")
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for name in ("setup", "figure", "95 %", "to " + own[0]["baseline"], "95 %", "ceiling", "n"):
            table.add_column(Text(name), justify="left" if name == "setup" else "right", overflow="fold")
        for row in own:
            table.add_row(*map(Text, _shown(row)))
        Console().print(table)


def _shown(row: Mapping[str, Any]) -> list[str]:
    """A row as text."""
    difference, low, high = (row[k] for k in ("difference", "difference_low", "difference_high"))
    return [
        row["setup"],
        f"{row['figure']:.3f}",
        "" if row["low"] is None else f"{row['low']:.3f} to {row['high']:.3f}",
        "" if difference is None else f"{difference:+.3f}",
        "" if low is None else f"{low:+.3f} to {high:+.3f}",
        "" if row["ceiling"] is None else f"{row['ceiling']:.3f}",
        str(row["n"]),
    ]


def _print_verdicts(plan: Plan) -> None:
    from ldm.experiments.expect import judge
    from ldm.experiments.rows import scored

    for one in judge(plan.config.expect, scored(plan)):
        what = f"{one.name}: " if one.name else ""
        common.say(f"{one.verdict:9}  {what}{one.expectation.metric}: {one.order}  ({one.detail})")


def _report(args: argparse.Namespace, plan: Plan) -> None:
    from ldm.experiments.page import write_page

    common.say(f"  report  {write_page(plan)}")


def _score(args: argparse.Namespace, plan: Plan) -> None:
    from ldm.experiments.rows import write_tables
    from ldm.experiments.runner import score_again
    from ldm.experiments.scores import load_scorers

    if not args.scorer:
        raise UserError("--scorer is missing; name one, such as clip:ViT-B-32/openai")
    scorers = load_scorers(args.scorer, common.torch_device(args.device), allow_download=args.allow_download)
    with common.output(plan.out, plan.out):
        count = score_again(plan, list(scorers.values()))
        rows, files = write_tables(plan)
    _print_rows([row for row in rows if row["scorer"] in scorers])
    common.say(f"{count} cells scored by {', '.join(scorers)}", *(f"  {path}" for path in files))


def _export(args: argparse.Namespace, plan: Plan) -> None:
    from ldm.experiments.layout import export

    if args.to is None:
        raise UserError("--to is missing; give the folder that the pictures go to")
    folders = export(plan, args.to)
    common.say(*(f"  {folder}" for folder in folders))
