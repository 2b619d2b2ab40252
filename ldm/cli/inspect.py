"""``ldm inspect``: what an embedding file holds, where it comes from, which words it is near."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common, embeddings

if TYPE_CHECKING:
    from ldm.io.embeddings import Embedding
    from ldm.model import LatentDiffusion

EXAMPLE = """\
  ldm inspect runs/my-run/embeddings.safetensors
"""


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "inspect",
        "look into an embedding file",
        "Provenance, size and norms of the words in an embedding file (of this program or any\n"
        "other), and the vocabulary's words that are nearest to them.",
        EXAMPLE,
    )
    parser.add_argument("file", type=Path, metavar="FILE", help=".safetensors, .pt, .bin or .png")
    parser.add_argument("--top", type=int, default=5, help="nearest words shown (default: 5)")
    common.add_model(parser, default=None)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Print a table a word."""
    from ldm.io.embeddings import check_width, load_embeddings
    from ldm.loading import load

    words = load_embeddings(args.file)
    model = load(args.model or "emoji", args.checkpoint, common.torch_device(args.device))
    if args.model:  # asked for: then it must fit
        for word in words:
            check_width(word, model.text.width)
    for word in words:
        rows = [*_facts(word, model), *_neighbours(word, model, args.top)]
        embeddings.print_table(word.placeholder, rows)


def _facts(word: Embedding, model: LatentDiffusion) -> list[tuple[str, str]]:
    rows = embeddings.facts(word, model.fingerprint())
    if word.D == model.text.width:
        usual = model.text.token_table.detach().float().norm(dim=1).median()
        rows.append(("norm of the model's own words", f"{usual:.3f} (median)"))
    return rows


def _neighbours(word: Embedding, model: LatentDiffusion, top: int) -> list[tuple[str, str]]:
    from ldm.inversion.init import nearest_words

    if word.D != model.text.width:
        return [("nearest words", "give the model that it was learned on by --model")]
    found = nearest_words(
        word.vectors, model.text.token_table, model.text.tokenizer.decode_id, max(1, top)
    )
    names = ["nearest words"] if word.K == 1 else [f"nearest to vector {i + 1}" for i in range(word.K)]
    return [
        (name, ", ".join(f"{n.word} {n.cosine:.2f}" for n in row))
        for name, row in zip(names, found, strict=True)
    ]
