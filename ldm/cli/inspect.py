"""``ldm inspect``: what an embedding file holds, or a drawn picture, and which words it is near."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common, embeddings

if TYPE_CHECKING:
    from ldm.backbone.model import LatentDiffusion
    from ldm.io.embeddings import Embedding

EXAMPLE = """\
  ldm inspect runs/my-run/embeddings.safetensors
  ldm inspect out/00_a-photo-of-cat-toy_0_00.png
  ldm inspect cat.safetensors dog.pt      # several, one table each
"""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "inspect",
        "look into an embedding file or a drawn picture",
        "Provenance, size and norms of the words in an embedding file (of this program or any\n"
        "other), and the vocabulary's words that are nearest to them. Of a PNG that this program\n"
        "drew: its recipe, and the words in it.",
        EXAMPLE,
    )
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help=".safetensors, .pt, .bin or .png")
    parser.add_argument("--top", type=int, default=5, help="nearest words shown (default: 5)")
    common.add_model(parser, default=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a table a word, and one of a picture's recipe."""
    from ldm.backbone.loading import load
    from ldm.io.embeddings import check_width

    recipes, words = [], []
    for file in args.files:  # all are read before anything is shown
        recipe, found = _read(file)
        recipes += [(file.name, recipe)] if recipe else []
        words += found
    for name, rows in recipes:
        embeddings.print_table(name, rows)
    if not words:
        return
    model = load(args.model or "emoji", args.checkpoint, common.torch_device(args.device))
    if args.model:  # named: then it must fit
        for word in words:
            check_width(word, model.text.width)
    for word in words:
        embeddings.print_table(word.placeholder, _rows(word, model, max(1, args.top)))


def _read(file: Path) -> tuple[list[tuple[str, str]], list[Embedding]]:
    """A picture's recipe as rows, of an embedding file none; and the words that the file holds."""
    from ldm.io import recipes
    from ldm.io.embeddings import load_embeddings

    if not recipes.has_recipe(file):
        return [], load_embeddings(file)
    recipe = recipes.load_recipe(file)
    return recipes.facts(recipe), list(recipe.embeddings)


def _rows(word: Embedding, model: LatentDiffusion, top: int) -> list[tuple[str, str]]:
    from ldm.words.facts import facts, neighbours, usual_norm

    rows = facts(word, model.fingerprint())
    if word.D != model.text.width:
        return [*rows, ("nearest words", "give the model that it was learned on by --model")]
    rows.append(("norm of the model's own words", f"{usual_norm(model.text):.3f} (median)"))
    for which, found in neighbours(word, model.text, top).items():
        title = f"nearest to {which}" if which else "nearest words"
        rows.append((title, ", ".join(f"{n.word} {n.cosine:.2f}" for n in found)))
    return rows
