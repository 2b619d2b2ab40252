"""What the subcommands share: options, merging of settings, and the lines they print."""

from __future__ import annotations

import argparse
import io
import shlex
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from ldm.errors import UserError

#: What ``ArgumentParser.add_subparsers`` returns.
Subparsers = argparse._SubParsersAction

_how_to_resume: ContextVar[Callable[[], str]] = ContextVar("how_to_resume")


def resume_by(how: Callable[[], str]) -> None:
    """From here on, a command that is interrupted says ``how()`` it goes on."""
    _how_to_resume.set(how)


def nothing_begun() -> None:
    """From here on, a command that is interrupted says that it has begun nothing."""
    resume_by(lambda: "nothing was begun; give it again")


def resume_once(there: Path, again: str) -> None:
    """From here on, a command that is interrupted goes on by ``again`` once ``there`` is written, the file
    that ``again`` takes its settings from; before, it has begun nothing."""
    begun, nothing = f"continue with: {again}", "nothing was begun; give the same command again"
    resume_by(lambda: begun if there.is_file() else nothing)


def how_to_resume() -> str:
    """How a command that is interrupted now goes on."""
    return _how_to_resume.get()()


def add_parser(
    subparsers: Subparsers, name: str, summary: str, description: str, example: str
) -> argparse.ArgumentParser:
    """A subcommand's parser; its ``--help`` ends with an example."""
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=description,
        epilog=f"example:\n{example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_verbose(parser, default=argparse.SUPPRESS)
    return parser


def add_verbose(parser: argparse.ArgumentParser, default: bool | str = False) -> None:
    parser.add_argument(
        "-v",
        "--verbose",
        action="store_true",
        default=default,
        help="show all messages, Lightning's too, and the traceback of an error",
    )


def add_model(parser: argparse.ArgumentParser, default: str | None = "emoji") -> None:
    """``--model``, ``--checkpoint`` and ``--device``."""
    add_weights(parser, default)
    parser.add_argument(
        "--device",
        choices=("auto", "cpu", "cuda"),
        default="auto",
        help="where to compute (default: auto)",
    )


def add_weights(parser: argparse.ArgumentParser, default: str | None = "emoji") -> None:
    """``--model`` and ``--checkpoint``."""
    parser.add_argument(
        "--model",
        default=default,
        metavar="NAME|PATH",
        help="a shipped model's name, a model's YAML or folder (also diffusers'), or its checkpoint file, "
        "whose kind is recognised (default: emoji)",
    )
    parser.add_argument("--checkpoint", metavar="FILE", help="weights instead of the model's own")


def add_settings(parser: argparse._ActionsContainer, what: str) -> None:
    """``--set``, of one setting or several, and as often as one likes; ``args.set`` has them all."""
    parser.add_argument(
        "--set", nargs="+", action="extend", default=[], type=_setting, metavar="KEY=VALUE", help=what
    )


def _setting(word: str) -> str:
    if "=" not in word:
        raise argparse.ArgumentTypeError(f"{word!r} is not KEY=VALUE")
    return word


def typed(words: Sequence[str]) -> dict[str, Any]:
    """What ``KEY=VALUE`` words say; the loggers that they name may be any classes, unlike those of a file."""
    from ldm.config import load_yaml

    values = load_yaml([], words)
    if any("loggers" in word for word in words):
        from ldm.training.loggers import trust_settings

        trust_settings(values)
    return values


def add_sampling(parser: argparse.ArgumentParser) -> None:
    """``--steps``, ``--scale``, ``--sampler``, ``--precision``: what is not given suits the model."""
    own = "(default: the model's own, else {})"
    parser.add_argument("--steps", type=int, help=f"sampling steps {own.format(50)}")
    parser.add_argument("--scale", type=float, help=f"guidance; 1 is none {own.format(5)}")
    parser.add_argument("--sampler", help=f"ddim, plms or dpm++ {own.format('ddim')}")
    parser.add_argument(
        "--precision",
        metavar="BITS",
        help="compute in bf16 (faster where the device has it), 16 or 32 (default: as the model is loaded)",
    )


def add_clip_skip(parser: argparse.ArgumentParser, default: str) -> None:
    """``--clip-skip``."""
    parser.add_argument(
        "--clip-skip",
        type=int,
        metavar="N",
        help="use the N-th last block of a CLIP text encoder, as web UIs count: 1 is the last one (default: "
        f"{default})",
    )


def torch_device(name: str) -> str:
    """The torch device of a ``--device`` value.

    Raises:
        UserError: a GPU is asked for and there is none.
    """
    import torch

    found = torch.cuda.is_available()
    if name == "cuda" and not found:
        raise UserError("no GPU that torch can use was found; leave out --device, or give cpu")
    return "cuda" if found and name != "cpu" else "cpu"


def output(
    given: Path | None,
    usual: str | Path,
    *,
    half: Callable[[Path], bool] | None = None,
    deep: bool = True,
) -> AbstractContextManager[Path]:
    """The folder of ``--out``, claimed (``ldm.io.claims``); else a new one: ``usual``, ``usual-2``, ...

    What killed processes left is removed from its subfolders too, unless the command makes none (``deep``).
    """
    from ldm.io.claims import claimed, claimed_new

    if given is None:
        return claimed_new(Path(usual), half=half, deep=deep)
    return claimed(given, half=half, deep=deep)


def no_checkpoint(run: Path) -> bool:
    """Whether a run has come to no checkpoint: one that fails then leaves nothing worth keeping."""
    return not any(run.glob("checkpoints/*"))


def whole_or_nothing(_: Path) -> bool:
    """Of a folder whose files are of use only together."""
    return True


def print_anything() -> None:
    """Print an escape for what the console has no letter for (names of files, words), not a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")


def say(*lines: str) -> None:
    """Print lines as they are: no wrapping, so that paths and commands can be copied."""
    for line in lines:
        sys.stdout.write(line + "\n")
    sys.stdout.flush()


def heading(text: str) -> None:
    """A line that stands out on a terminal."""
    from rich.console import Console
    from rich.text import Text

    Console(soft_wrap=True).print(Text(text, style="bold green"))


def command(words: Sequence[str | Path]) -> str:
    """Words as a shell command that can be pasted."""
    return shlex.join(map(str, words))
