"""``ldm sample``: draw pictures of prompts, with learned words or without."""

from __future__ import annotations

import argparse

from ldm.cli import common, drawing
from ldm.errors import UserError

EXAMPLE = """\
  ldm sample --embedding runs/my-run/embeddings.safetensors \\
             --prompt "a photo of {} on a red background" --prompt "two {} on the beach" --n 8
  ldm sample --embedding cat.safetensors box.safetensors --prompt "<cat-toy> in <box>" --seeds 1,2,5-8
  ldm sample --prompts-file prompts.txt --n 1 --out out/all      # once more goes on where it stopped
  ldm sample --again out/all/00_a-red-apple_0_00.png
"""


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "sample",
        "draw pictures of prompts",
        "Draw pictures of prompts: one PNG each, and grid.png with a row per prompt. Picture j of a\n"
        "prompt depends on (prompt, seed, j) alone. Each PNG holds its recipe in its text chunks,\n"
        "the learned words with it: --again draws it anew, ldm inspect shows it. A picture that is\n"
        "in --out already, by the same recipe, is not drawn again. ldm edit starts from a picture.",
        EXAMPLE,
    )
    drawing.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw, write, and say where the pictures are."""
    options = drawing.read(args)
    if args.again is None:
        drawing.draw(options, *drawing.load(options))
        return
    from ldm.io.recipes import load_recipe

    recipe = load_recipe(args.again)
    if recipe.edit:
        raise UserError(
            f"{args.again} was made from the picture {recipe.edit.image!r}; give it: "
            f"ldm edit --again {args.again} --image FILE"
        )
    drawing.draw_again(options, drawing.load_again(options, recipe), args.again, recipe)
