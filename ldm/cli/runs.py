"""``ldm runs``: all runs of a folder in a table, in the terminal or as a page."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.report.runs import Run

EXAMPLE = """\
  ldm runs                                    # of the folder runs/
  ldm runs experiments/out --html runs.html   # sortable, with curves and pictures
  ldm runs --html runs.html --watch 30        # written again every 30 seconds while runs go on
"""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "runs",
        "list all runs: state, step, loss, scores",
        "Every run in a folder and below it: its state, steps, loss on the fixed batch, scores of\n"
        "evaluations that were written into it, and the settings in which the runs differ. No\n"
        "account and no server: all is read from the run folders.",
        EXAMPLE,
    )
    parser.add_argument("folder", nargs="?", type=Path, default=Path("runs"), metavar="DIR",
                        help="where the runs are (default: runs)")  # fmt: skip
    parser.add_argument("--html", type=Path, metavar="FILE", help="write a page instead of a table")
    parser.add_argument(
        "--watch", type=_seconds, metavar="SECONDS", help="do it again and again, until Ctrl-C"
    )
    parser.set_defaults(run=run)


def _seconds(text: str) -> int:
    try:
        seconds = int(text)
    except ValueError:
        seconds = 0
    if seconds < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number of seconds: give 1 or more")
    return seconds


def run(args: argparse.Namespace) -> None:
    """Print the table or write the page, once or until interrupted."""
    if args.html is not None and args.html.is_dir():
        raise UserError(f"{args.html} is a folder: give a file, such as {args.html / 'runs.html'}")
    common.resume_by(lambda: "the page stays as it was written last" if args.html else "nothing was changed")
    while True:
        _once(args.folder, args.html, args.watch or 0)
        if not args.watch:
            return
        time.sleep(args.watch)


def _once(folder: Path, page: Path | None, refresh: int) -> None:
    from ldm.report.runs import find_runs, write_runs

    if page is not None:
        runs = write_runs(folder, page, refresh)
        common.say(f"wrote {page}: {len(runs)} run{'' if len(runs) == 1 else 's'}")
        return
    _print(find_runs(folder), folder)


def _print(runs: Sequence[Run], folder: Path) -> None:
    from rich.console import Console
    from rich.table import Table

    from ldm.report.html import show
    from ldm.report.runs import columns

    if not runs:
        common.say(f"no runs in {folder}: ldm invert --out {folder}/NAME makes one")
        return
    head, rows = columns(runs)
    table = Table(title=f"{len(runs)} run{'' if len(runs) == 1 else 's'} in {folder}")
    for name in head:
        table.add_column(name, overflow="fold", justify="right" if name in ("loss", "seconds") else "left")
    for row in rows:
        table.add_row(*(show(value) for value in row))
    Console().print(table, markup=False)
