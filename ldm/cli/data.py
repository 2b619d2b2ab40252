"""``ldm data``: fetch a public data set at a pinned version."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import common

EXAMPLE = "  ldm data dreambench --out data/dreambench"


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand and, below it, one for each data set."""
    parser = common.add_parser(
        subparsers,
        "data",
        "fetch a public data set to measure with",
        "Fetch a public data set with git, at a pinned commit, and check its files.",
        EXAMPLE,
    )
    sets = parser.add_subparsers(title="data sets", metavar="SET", required=True)
    dreambench = common.add_parser(
        sets,
        "dreambench",
        "30 subjects with 25 prompts each (Ruiz et al. 2023)",
        "Fetch DreamBench: 30 subjects of 15 classes, four to six pictures each, and 25 prompts. Run\n"
        "again on the same folder, it checks the files without a connection.",
        EXAMPLE,
    )
    dreambench.add_argument("--out", type=Path, default=Path("data/dreambench"), metavar="DIR")
    dreambench.add_argument(
        "--repository", metavar="URL|DIR", help="a mirror or a clone that holds the pinned commit"
    )
    dreambench.set_defaults(run=run_dreambench)


def run_dreambench(args: argparse.Namespace) -> None:
    """Fetch or check DreamBench."""
    from ldm.evaluation import dreambench

    repository = args.repository or dreambench.REPOSITORY
    folder = dreambench.fetch_dreambench(args.out, repository, dreambench.COMMIT)
    subjects = dreambench.read_dreambench(folder)
    pictures = sum(len(subject.pictures) for subject in subjects)
    common.heading(f"{len(subjects)} subjects with {pictures} pictures in {folder}")
