"""``ldm cluster``: learn a list of concepts on many workers, by Ray."""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path

from ldm.cli import common, concepts
from ldm.errors import UserError

EXAMPLE = """\
  ldm cluster --concepts concepts.yaml --out runs/all                          # all cores of this machine
  ldm cluster --concepts concepts.yaml --out /shared/all --address auto
  ldm cluster --resume --out /shared/all --address auto                        # after an interruption
"""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "cluster",
        "learn many words on many machines",
        "Learn the list of `ldm invert --concepts` on a Ray cluster, or on one of this machine's cores and\n"
        "GPUs that is started for it. A task learns some concepts in packs; one whose worker dies is done\n"
        "again. Folder, pictures and model must be at the same paths on all machines.",
        EXAMPLE,
    )
    common.add_weights(parser, default=None)
    add = parser.add_argument
    add("--concepts", type=Path, metavar="YAML", help="as of `ldm invert --help`")
    add("--out", type=Path, metavar="RUNS", help="folder of all runs (default: runs/<date>_<name>)")
    add("--resume", action="store_true", help="go on in --out, whose list is kept there")
    add("--address", default="local", metavar="local|auto|HOST:PORT", help="of the cluster (default: local)")
    add("--task-size", type=int, default=64, metavar="N", help="concepts a task (default: 64)")
    add(
        "--pack",
        type=concepts.pack_size,
        default="auto",
        metavar="N",
        help="concepts a pass (default: auto, what there is memory for)",
    )
    add("--cpus-per-task", type=int, default=1, metavar="N", help="also its threads (default: 1)")
    add("--gpus-per-task", type=float, metavar="X", help="(default: 1 if the cluster has GPUs, else 0)")
    add("--retries", type=int, default=2, metavar="N", help="of a task that fails (default: 2)")
    common.add_settings(parser, "settings of all concepts")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Learn all, say what became of each; an error at the end if any failed."""
    from ldm.config import merge, nested
    from ldm.inversion.many.cluster import learn_on
    from ldm.inversion.many.ray_workers import RayWorkers
    from ldm.shorthand import spelled

    listed = concepts.kept_list(args.concepts, args.out, args.resume)
    if listed is None:
        raise UserError("--concepts is missing: give the list, or --resume with the --out of one")
    options = merge(nested({"checkpoint": args.checkpoint}), spelled(common.typed(args.set)))
    handed_out = {option: getattr(args, option) for option in concepts.HANDING_OUT}
    # first of all: where no worker can be had, nothing is written
    with RayWorkers(
        args.address, cpus=args.cpus_per_task, gpus=args.gpus_per_task, verbose=args.verbose
    ) as workers:
        concepts.learn(
            listed,
            args.out,
            command=concepts.resuming("cluster", **handed_out),
            learn=partial(learn_on, workers, task_size=args.task_size, pack=args.pack, retries=args.retries),
            options=options,
            model=args.model,
            resume=args.resume,
        )
