"""``ldm embeddings``: look into embedding files of any tool, convert and merge them. No model needed."""

from __future__ import annotations

import argparse
import logging
import sys
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common
from ldm.errors import UserError
from ldm.names import normal

if TYPE_CHECKING:
    from ldm.io.embeddings import Embedding

log = logging.getLogger(__name__)

SHOW = """\
  ldm embeddings show runs/my-run/embeddings.safetensors learned_embeds.bin shared-by-a-friend.png
"""
CONVERT = """\
  ldm embeddings convert embeddings.safetensors cat.pt --to a1111-pt --name my-cat
  ldm embeddings convert shared.png learned_embeds.safetensors --name "<cat-toy>"
  ldm embeddings convert learned_embeds.safetensors learned_embeds_2.safetensors cat.safetensors
"""
MERGE = """\
  ldm embeddings merge cat.safetensors dog.pt --rename "*=<dog>" --out both.safetensors
  ldm embeddings merge a.pt b.pt --rename "a.pt:*=cat" "b.pt:*=dog" --out both.safetensors
  ldm embeddings merge a.pt b.pt --compat official --out both.pt    # asks for another name than "*"
"""
FORMATS = """\
Formats by the suffix of OUT: .safetensors is diffusers (SDXL: sdxl), .pt official, .bin diffusers-bin,
.png a1111-png. Others by --to: a1111-pt, kohya, onetrainer, clip-l, sdxl-pivotal, sdxl-diffusers (two files).
Where the word came from (model, step, seed, pictures) is kept in .safetensors files alone; the
official code calls the word in an official .pt by "*", whatever its name, where FILE does not say
another token id for it (ldm embeddings show)."""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand and, below it, one for each thing to do."""
    parser = common.add_parser(
        subparsers,
        "embeddings",
        "show, convert and merge embedding files of any tool",
        "Look into embedding files of any tool, convert and merge them. No pickled code is run.",
        SHOW + CONVERT + MERGE,
    )
    actions = parser.add_subparsers(title="actions", metavar="ACTION", required=True)
    _register_show(actions)
    _register_convert(actions)
    _register_merge(actions)


def _register_show(actions: common.Subparsers) -> None:
    parser = common.add_parser(
        actions, "show", "what a file holds", "Format, words, sizes, norms and notes of each file.", SHOW
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.set_defaults(run=run_show)


def _register_convert(actions: common.Subparsers) -> None:
    parser = common.add_parser(
        actions,
        "convert",
        "write a file in another tool's format",
        "Write the words of FILE to OUT in another format. Two files of diffusers that are the halves\n"
        f"of one word of SDXL are given together.\n\n{FORMATS}",
        CONVERT,
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE")
    add("out", type=Path, metavar="OUT")
    add("--to", metavar="FORMAT", help="format of OUT (default: the usual one of its suffix)")
    add("--word", metavar="WORD", help="take this word alone out of a file that holds several")
    add("--name", metavar="NAME", help="what the word is called in OUT")
    _add_force(parser)
    parser.set_defaults(run=run_convert)


def _register_merge(actions: common.Subparsers) -> None:
    parser = common.add_parser(
        actions,
        "merge",
        "write the words of several files into one",
        "Write the words of several files, of one base model, into one.",
        MERGE,
    )
    add = parser.add_argument
    add("files", type=Path, nargs="+", metavar="FILE")
    add("--out", type=Path, required=True, help="the new file: .safetensors, .pt (official) or .bin")
    add("--rename", nargs="+", action="extend", default=[], metavar="OLD=NEW",
        help="a new name for a word; FILE:OLD=NEW for the word of one file")  # fmt: skip
    add("--compat", choices=("official",), help="as the official script does: of two words of one name, the "
        "later file's gets the name that is typed on a terminal, and without one it replaces the earlier; "
        "OUT is overwritten")  # fmt: skip
    _add_force(parser)
    parser.set_defaults(run=run_merge)


def _add_force(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--force", action="store_true", help="overwrite a file that exists")


# -------------------------------------------------------------------------------- show
def run_show(args: argparse.Namespace) -> None:
    """Print a table for each word."""
    from ldm.io.embeddings import read_file
    from ldm.words.facts import facts

    for found in [read_file(path) for path in args.files]:
        for word in found.words:
            rows = [("file", str(found.path)), ("format", f"{found.format.name} ({found.format.title})")]
            print_table(word.placeholder, [*rows, *facts(word)])


def print_table(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print named values; what a file says is shown without its control characters, and cut."""
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=Text(title), show_header=False, title_justify="left")
    table.add_column("what", style="bold", no_wrap=True)
    table.add_column("value", overflow="fold")
    for key, value in rows:
        table.add_row(Text(_printable(key)[:60]), Text(_printable(value)[:2000]))
    Console().print(table)


def _printable(text: str) -> str:
    return "".join("?" if unicodedata.category(c) in {"Cc", "Cs"} else c for c in text)


# ----------------------------------------------------------------------------- convert
def run_convert(args: argparse.Namespace) -> None:
    """Write the words of one file, or of the two halves of one, in another format."""
    from ldm.io.merging import joined, renamed

    words = joined(args.files)
    if args.word is not None:
        wanted, held = normal(args.word), ", ".join(repr(word.placeholder) for word in words)
        words = [word for word in words if word.placeholder == wanted]
        if not words:
            raise UserError(f"{args.files[0]} holds no {wanted!r}, but {held}")
    if args.name is not None:
        if len(words) > 1:
            raise UserError(f"--name is for one word, {args.files[0]} holds {len(words)}: say which "
                            "by --word, or give new names by ldm embeddings merge --rename")  # fmt: skip
        words = [renamed(words[0], args.name)]
    _write(words, args.out, args.to, args.force)


def _write(words: Sequence[Embedding], out: Path, to: str | None, force: bool) -> None:
    from ldm.io.claims import sweep
    from ldm.io.embeddings import save_embeddings

    sweep(out.parent)
    save_embeddings(words, out, format=to, overwrite=force)
    common.heading(f"{len(words)} {'word' if len(words) == 1 else 'words'} in {out}")
    for word in words:
        common.say(f"  {word.placeholder}  {word.size}")


# ------------------------------------------------------------------------------- merge
def run_merge(args: argparse.Namespace) -> None:
    """Write the words of several files into one, under names that do not collide."""
    from ldm.io.embeddings import read_file
    from ldm.io.merging import merge

    official = args.compat == "official"
    names = dict(_rule(text) for text in args.rename)
    files = [read_file(path) for path in args.files]
    words = merge(files, names, official_collision if official else None)
    _write(words, args.out, None, args.force or official)


def official_collision(word: Embedding, earlier: Path, later: Path) -> Embedding:
    """The official script's way: ask for a name until it is one token of the vocabulary.

    The vocabulary is BERT's for vectors of width 1280, else CLIP's. Without a terminal the name stays.
    """
    if not sys.stdin.isatty():
        log.warning("%r of %s replaces that of %s", word.placeholder, later, earlier)
        return word
    from dataclasses import replace

    from ldm.config import ASSETS
    from ldm.text.bpe import ClipTokenizer
    from ldm.text.tokenizer import Tokenizer

    tokenizer = Tokenizer(ASSETS / "bert" / "vocab.txt") if word.D == 1280 else ClipTokenizer(77)
    question = f"{later} holds {word.placeholder!r} as {earlier} does; another name for it: "
    while True:
        try:
            name = input(question).strip()
        except EOFError:
            raise UserError("no name was given: nothing is written") from None
        token_id = tokenizer.vocabulary_id(name)
        if token_id is not None:
            return replace(word, placeholder=name, metadata={**word.metadata, "token_id": str(token_id)})
        question = f"{name!r} is not one token of the vocabulary; another name: "


def _rule(text: str) -> tuple[str, str]:
    old, equals, new = text.partition("=")
    if not (old and equals and new) or "=" in new:
        raise UserError(f"--rename {text!r} is not of the form OLD=NEW")
    return old, new
