"""``ldm bench``: rank ways of learning a word on things that the shipped model never saw."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.experiments import leaderboard

EXAMPLE = """\
  ldm train data --out data/emoji            # once: the drawings
  ldm bench dti                              # a preset (ldm presets lists them) against the paper's settings
  ldm bench my-settings.yaml my_kind.py      # settings of yours, and a kind of word of yours
  ldm bench dti --write results/bench.md     # also write the leaderboard
"""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "bench",
        "rank ways of learning a word on held-out concepts",
        "Learn held-out concepts by each method, draw and score the same prompts from the same noise, and\n"
        "rank the methods by likeness times editability. A method is the name of a preset, a YAML file of\n"
        "settings, or a Python file that registers one kind of word. All are compared with the preset\n"
        "paper. The folder remembers its methods and their finished cells, so that a further method costs\n"
        "only its own time.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("method", nargs="*", metavar="METHOD", help="a preset, a YAML file, or a Python file")
    add("--concepts", type=int, default=8, metavar="N", help="held-out concepts (default: 8)")
    add("--seeds", type=int, default=1, metavar="N", help="trainings of each, seeds 0 to N - 1 (default: 1)")
    add(
        "--pictures",
        type=int,
        default=1200,
        metavar="N",
        help="most pictures that a method sees for a word; 0: its own number of steps (default: 1200)",
    )
    add("--samples", type=int, default=2, metavar="N", help="pictures of each prompt (default: 2)")
    add("--sampling-steps", type=int, default=20, metavar="N", help="steps of the sampler (default: 20)")
    add("--model", default="emoji", metavar="NAME|PATH", help="the base model (default: emoji)")
    add("--data", type=Path, default=Path("data/emoji"), help="the drawings (default: data/emoji)")
    add("--holdout", type=Path, default=Path("configs/emoji/holdout.txt"), help="hex codes of the concepts")
    add("--out", type=Path, default=Path("runs/bench"), metavar="DIR", help="folder (default: runs/bench)")
    add(
        "--write",
        type=Path,
        metavar="FILE",
        help="write the leaderboard there, as Markdown",
    )
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Measure what is not measured, and print the ranking."""
    from ldm.experiments import bench, leaderboard, runner
    from ldm.experiments.cells import make_plan
    from ldm.experiments.rows import write_tables
    from ldm.experiments.scores import load_scorers
    from ldm.io.atomic import write_text

    for option in ("concepts", "seeds", "samples", "sampling_steps"):
        if getattr(args, option) < 1:
            raise UserError(f"--{option.replace('_', '-')} is {getattr(args, option)}; give at least 1")
    if args.pictures < 0:
        raise UserError(f"--pictures is {args.pictures}; give 0 or more")
    common.resume_by(lambda: "give the same command again; what is finished is kept")
    asked = bench.BenchConfig(
        args.concepts,
        tuple(range(args.seeds)),
        args.pictures,
        args.samples,
        str(args.data),
        str(args.holdout),
        args.model,
        args.sampling_steps,
    )
    with common.output(args.out, args.out):
        methods = bench.methods_of(args.method, args.out)
        config = bench.experiment(asked, methods)
        scorers = load_scorers(config.score.scorers)
        plan = make_plan(config, args.out, {name: scorer.identity for name, scorer in scorers.items()})
        plan.save()
        bench.remember(args.out, methods)
        found = runner.run(plan, list(scorers.values()))
        _, files = write_tables(plan)
        page = leaderboard.markdown(plan, methods, asked, common.command(_again(args)))
        if args.write is not None:
            write_text(args.write, page)
    _print(leaderboard.standings(plan))
    common.say(*(f"  {path}" for path in (*files, *([args.write] if args.write else []))))
    failed = [one for one in found if one.state == "failed"]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(found)} cells failed: {failed[0].cell.title} ({failed[0].error})"
        )


def _again(args: argparse.Namespace) -> list[str | Path]:
    """The command that makes the same leaderboard."""
    words: list[str | Path] = ["ldm", "bench", *args.method]
    usual = {"concepts": 8, "seeds": 1, "pictures": 1200, "samples": 2, "sampling_steps": 20}
    for option, value in usual.items():
        if getattr(args, option) != value:
            words += [f"--{option.replace('_', '-')}", str(getattr(args, option))]
    return [*words, *(["--write", args.write] if args.write else [])]


def _print(found: list[leaderboard.Standing]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from ldm.experiments.leaderboard import FIGURES

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in ("rank", "method", *FIGURES, "seconds"):
        table.add_column(Text(name), overflow="fold")
    for rank, one in enumerate(found, start=1):
        cells = [str(rank), one.method]
        for column in FIGURES:
            row = one.rows.get(column)
            difference = "" if row is None or row["difference"] is None else f" ({row['difference']:+.3f})"
            cells.append("" if row is None else f"{row['figure']:.3f}{difference}")
        table.add_row(*map(Text, (*cells, f"{one.rows['likeness']['seconds']:.1f}")))
    Console().print(table)
