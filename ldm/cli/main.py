"""The console script ``ldm``: the argument tree, and one line for every error a user can cause.

Nothing heavy is imported before a subcommand runs, so that ``ldm --help`` takes milliseconds.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path

from ldm import interrupt
from ldm._version import __version__
from ldm.cli import (
    bench,
    cluster,
    common,
    data,
    edit,
    embeddings,
    evaluate,
    experiment,
    inspect,
    invert,
    presets,
    runs,
    sample,
    sweep,
    train,
)
from ldm.errors import UserError
from ldm.io.files import printable
from ldm.paths import expanded

EXAMPLE = """\
example:
  ldm invert --model emoji --images my-pictures/ --name "<cat-toy>" --init "cat toy"
  ldm sample --embedding runs/.../embeddings.safetensors --prompt "a photo of <cat-toy> on grass"
"""


def build_parser() -> argparse.ArgumentParser:
    """The whole argument tree."""
    parser = argparse.ArgumentParser(
        prog="ldm",
        description="Textual Inversion: teach a text-to-image model a new word from 3-5 pictures.",
        epilog=EXAMPLE,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"ldm {__version__}")
    common.add_verbose(parser)
    subparsers = parser.add_subparsers(title="subcommands", metavar="COMMAND", required=True)
    for module in (
        invert, cluster, sample, edit, evaluate, experiment, bench, sweep, presets, runs, inspect, embeddings,
        train, data,
    ):  # fmt: skip
        module.register(subparsers)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line; returns the exit status: 0, 2 for bad input, ``ldm.interrupt``'s for a signal."""

    def whole() -> int:
        args = _parsed(argv)
        return guarded(args.run, args)

    return interruptible(whole)


def interruptible(whole: Callable[[], int]) -> int:
    """The status of a whole command; of one that is interrupted outside of its own work, before its options
    are read or after it has ended, too."""
    common.nothing_begun()
    with interrupt.listening():
        try:
            return whole()
        except KeyboardInterrupt as error:
            return _interrupted(error)


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    common.print_anything()
    parser = build_parser()
    args, rest = parser.parse_known_args(argv)
    overrides = [item for item in rest if "=" in item and not item.startswith("-")]
    if not hasattr(args, "overrides"):
        overrides = []
    if len(overrides) < len(rest):
        unknown = next(item for item in rest if item not in overrides)
        parser.error(f"unrecognized argument {unknown}; see the --help of the subcommand")
    if overrides:
        args.overrides = [*args.overrides, *overrides]
    return args


#: options that are paths, or may be, beside those that are parsed as one
PATHS = (
    "model", "checkpoint", "prompts_file", "base", "models", "data_root", "actual_resume",
    "embedding_manager_ckpt",
)  # fmt: skip


def expand(args: argparse.Namespace) -> None:
    """Put the home folder in place of ``~`` in every path: a shell leaves it as it is in ``--out=~/x``."""
    for name, value in vars(args).items():
        values = value if isinstance(value, list) else [value]
        new = [expanded(one) if isinstance(one, Path) else
               os.path.expanduser(one) if name in PATHS and isinstance(one, str) else one
               for one in values]  # fmt: skip
        setattr(args, name, new if isinstance(value, list) else new[0])


def guarded(run: Callable[[argparse.Namespace], None], args: argparse.Namespace) -> int:
    """Call ``run(args)``; an error that the user caused is one line on stderr, not a traceback."""
    common.nothing_begun()
    with interrupt.listening():
        try:
            _log_to_stderr(args.verbose)
            expand(args)
            run(args)
            return 0
        except BrokenPipeError:  # the reader of our output has gone, as with `| head`
            sys.stderr.close()
            return 1
        except BaseException as error:
            # also what libraries make of a signal that reached them: an ImportError, a plain exit
            if isinstance(error, KeyboardInterrupt) or interrupt.noted() is not None:
                return _interrupted(error)
            message = _explain(error)
            if message is None:
                raise
            return _fail(message, args.verbose)


def _explain(error: BaseException) -> str | None:
    """The line for bad input, a full disk, a refused write or a full GPU; ``None`` for anything else."""
    from ldm.io.atomic import write_error

    if isinstance(error, UserError):
        return str(error)
    if type(error).__name__ == "OutOfMemoryError":
        return "the GPU's memory is full: lower --batch-size, or use --precision bf16-mixed"
    written = write_error(getattr(error, "filename", None) or "the output", error)
    return str(written) if written else None


def _fail(message: str, verbose: bool) -> int:
    if verbose:
        traceback.print_exc()
    sys.stderr.write(f"ldm: error: {' '.join(message.split())}\n")
    return 2


def _interrupted(error: BaseException) -> int:
    stopped = error
    if not isinstance(stopped, interrupt.Interrupted):
        stopped = interrupt.Interrupted(interrupt.noted() or signal.SIGINT)
    sys.stderr.write(f"\nldm: interrupted by {stopped.name}: {common.how_to_resume()}\n")
    return stopped.status


class _OneLine(logging.Formatter):
    def format(self, record: logging.LogRecord) -> str:
        return f"ldm: {record.levelname.lower()}: {' '.join(printable(record.getMessage()).split())}"


def _log_to_stderr(verbose: bool) -> None:
    """Warnings of the library (with ``verbose`` its notes too) as lines on stderr."""
    logger = logging.getLogger("ldm")
    logger.setLevel(logging.INFO if verbose else logging.WARNING)
    logger.propagate = False
    for handler in [h for h in logger.handlers if isinstance(h.formatter, _OneLine)]:
        logger.removeHandler(handler)
    handler = logging.StreamHandler()
    handler.setFormatter(_OneLine())
    logger.addHandler(handler)


if __name__ == "__main__":
    sys.exit(main())
