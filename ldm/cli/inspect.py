"""``ldm inspect``: what an embedding file holds, or a drawn picture, and which words it is near."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common, embeddings

if TYPE_CHECKING:
    from ldm.backbone.model import LatentDiffusion
    from ldm.io.embeddings import Embedding
    from ldm.io.recipes import Recipe

EXAMPLE = """\
  ldm inspect runs/my-run/embeddings.safetensors
  ldm inspect out/00_a-photo-of-cat-toy_0_00.png
"""


def register(subparsers: Any) -> None:
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
    parser.add_argument("file", type=Path, metavar="FILE", help=".safetensors, .pt, .bin or .png")
    parser.add_argument("--top", type=int, default=5, help="nearest words shown (default: 5)")
    common.add_model(parser, default=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a table a word, and one of a picture's recipe."""
    from ldm.backbone.loading import load
    from ldm.io.embeddings import check_width, load_embeddings
    from ldm.io.recipes import has_recipe, load_recipe

    if has_recipe(args.file):
        recipe = load_recipe(args.file)
        embeddings.print_table(args.file.name, _recipe(recipe))
        words = list(recipe.embeddings)
        if not words:
            return
    else:
        words = load_embeddings(args.file)
    model = load(args.model or "emoji", args.checkpoint, common.torch_device(args.device))
    if args.model:  # asked for: then it must fit
        for word in words:
            check_width(word, model.text.width)
    for word in words:
        rows = [*_facts(word, model), *_neighbours(word, model, args.top)]
        embeddings.print_table(word.placeholder, rows)


def _recipe(recipe: Recipe) -> list[tuple[str, str]]:
    """What the chunks of a picture say, but for the vectors."""
    from dataclasses import asdict

    from ldm.io.recipes import to_text

    rows = {k: v for k, v in to_text(recipe).items() if k not in ("embeddings", "edit")}
    if recipe.edit:
        rows |= {f"edit: {k}": "" if v is None else str(v) for k, v in asdict(recipe.edit).items()}
    if recipe.embeddings:
        rows["embeddings"] = ", ".join(
            f"{word.placeholder} ({word.metadata['file']}, sha256 {word.metadata['sha256']})"
            for word in recipe.embeddings
        )
    return [(key.replace("_", " "), value or "none") for key, value in rows.items()]


def _facts(word: Embedding, model: LatentDiffusion) -> list[tuple[str, str]]:
    rows = embeddings.facts(word, model.fingerprint())
    if word.D == model.text.width:
        usual = model.text.token_table.detach().float().norm(dim=1).median()
        rows.append(("norm of the model's own words", f"{usual:.3f} (median)"))
    return rows


def _neighbours(word: Embedding, model: LatentDiffusion, top: int) -> list[tuple[str, str]]:
    from ldm.words.start import nearest_words

    if word.D != model.text.width:
        return [("nearest words", "give the model that it was learned on by --model")]
    found = nearest_words(word.vectors, model.text.token_table, model.text.tokenizer.decode_id, max(1, top))
    names = [f"nearest to vector {i + 1}" for i in range(word.K)] if word.K > 1 else ["nearest words"]
    if word.layers:
        names = [f"{name}, layer {i + 1}" for i in range(word.layers) for name in names]
    return [
        (name, ", ".join(f"{n.word} {n.cosine:.2f}" for n in row))
        for name, row in zip(names, found, strict=True)
    ]
