"""``ldm sweep``: learn one word with every combination of settings in a W&B sweep file, without W&B."""

from __future__ import annotations

import argparse
from pathlib import Path

from ldm.cli import common
from ldm.errors import UserError

EXAMPLE = """\
  ldm sweep configs/sweeps/learning-rate.yaml --images my-pictures/ --name "<cat-toy>" --init "cat toy"
  ldm sweep configs/sweeps/words.yaml --images my-pictures/ --name "<cat-toy>" --set steps=200
"""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "sweep",
        "learn one word with every combination of a sweep file",
        "Learn one word with every combination of settings in a file of W&B's sweep form (grid or random),\n"
        "side by side where they may share a batch, and print them by the file's metric. Finished runs are\n"
        "kept when the command is given again. No account and no network is needed; with\n"
        "--set logging.loggers=[csv,wandb] each is a run on W&B too, all in one group.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("file", type=Path, metavar="FILE", help="the sweep's YAML")
    common.add_model(parser, default="emoji")
    add("--images", type=Path, metavar="DIR", required=True, help="folder with the pictures")
    add("--name", metavar="WORD", required=True, help="the new word, any string")
    add("--init", metavar="PHRASE", help="known words to start from")
    add("--seed", type=int, default=0, help="of a random sweep's choices (default: 0)")
    add("--out", type=Path, metavar="DIR", help="folder (default: runs/sweeps/<file>)")
    add("--dry-run", action="store_true", help="print the combinations, and learn nothing")
    common.add_settings(parser, "settings that all runs have, such as steps=200")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Learn, then print the table."""
    from ldm.backbone.loading import inversion_defaults
    from ldm.config import nested
    from ldm.experiments import sweep as sweeps
    from ldm.shorthand import spelled

    sweep = sweeps.read(args.file)
    own = {
        "model": args.model,
        "checkpoint": args.checkpoint,
        "images": str(args.images),
        "placeholder": args.name,
        "init": args.init,
    }
    layers = [inversion_defaults(args.model), nested(own), spelled(common.typed(args.set))]
    todo = sweeps.jobs(sweep, layers, args.seed)
    if args.dry_run:
        for job, row in zip(todo, sweep.combinations(args.seed), strict=True):
            common.say(f"{job.name}  " + "  ".join(f"{key}={value}" for key, value in row.items()))
        return
    common.resume_by(lambda: "give the same command again; what is finished is kept")
    out = args.out or Path("runs", "sweeps", args.file.stem)
    with common.output(out, out):
        rows = sweeps.run(sweep, todo, out, seed=args.seed)
    _print(rows)
    common.say(f"  table  {out / sweeps.TABLE}")
    failed = [row for row in rows if row["error"]]
    if failed:
        raise UserError(
            f"{len(failed)} of {len(rows)} runs failed, such as {failed[0]['run']}: {failed[0]['error']}"
        )


def _print(rows: list[dict[str, object]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for name in rows[0]:
        table.add_column(Text(name))
    for row in rows:
        shown = (f"{v:.4g}" if isinstance(v, float) else "" if v is None else str(v) for v in row.values())
        table.add_row(*map(Text, shown))
    Console().print(table)
