"""``ldm edit``: draw a picture anew, paint into a part of it, or draw another thing in its layout."""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common, drawing
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.backbone.model import LatentDiffusion
    from ldm.sampling.source import Source

EXAMPLE = """\
  ldm edit --image photo.jpg --prompt "a photo of {} on the beach" --embedding cat.safetensors --strength 0.7
  ldm edit --image photo.jpg --mask mask.png --prompt "a photo of {}" --embedding cat.safetensors
  ldm edit --image photo.jpg --invert "a photo of a dog" --prompt "a photo of {}" --embedding cat.safetensors
  ldm edit --image photo.jpg --again out/edited.png
"""
#: Options that say how a picture is edited; a recipe answers them too.
_HOW = ("strength", "keep_pixels", "invert", "fit", "background")


def register(subparsers: common.Subparsers) -> None:
    """Add the subcommand."""
    parser = common.add_parser(
        subparsers,
        "edit",
        "draw from a picture instead of from noise alone",
        "Draw from a picture, in one of three ways:\n"
        "  --strength  noise it a part of the way and draw it anew by the prompt (the default)\n"
        "  --mask      paint the prompt where the mask is white, keep the rest\n"
        "  --invert    find the noise behind it, and draw the prompt from there, in its layout\n"
        "The picture comes to the model's size with its aspect kept. The PNGs hold their recipe, as\n"
        "those of ldm sample do, but of the picture and the mask only name and sha256.",
        EXAMPLE,
    )
    add = parser.add_argument
    add("--image", type=Path, required=True, metavar="FILE", help="the picture: any kind and size")
    add(
        "--mask",
        type=Path,
        metavar="FILE",
        help="white: paint, black: keep; of the aspect of --image (another is stretched to it), or a square",
    )
    add(
        "--strength",
        type=float,
        metavar="X",
        help="above 0 (nearly the picture) to 1 (nothing of it) (default: 0.6; 1 with --mask)",
    )
    add(
        "--invert",
        metavar="PROMPT",
        help="what the picture shows; its noise is found under this description (DDIM inversion); "
        "a low --scale stays nearest to it",
    )
    add(
        "--keep-pixels",
        action=argparse.BooleanOptionalAction,
        help="outside the mask the picture's own pixels, not the autoencoder's (default: yes)",
    )
    add("--fit", choices=("crop", "pad"), help="to the model's square (default: crop)")
    add("--background", metavar="COLOUR", help="of padding and transparent parts (default: white)")
    drawing.add_options(parser)
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> None:
    """Draw, write, and say where the pictures are."""
    options = drawing.read(args)
    _check(args)
    if args.again:
        drawing.refuse_given(args, _HOW)
        _again(options, args.again, args.image, args.mask)
        return
    if args.invert is not None:
        options = replace(options, sampler="ddim", n=1)
    from ldm.sampling.editing import edit_of

    framing = {"fit": args.fit or "crop", "background": args.background or "white"}
    model, learned = drawing.load(options)
    source = _source(
        model,
        args.image,
        args.mask,
        strength=args.strength if args.invert is None else 1.0,
        keep_pixels=args.keep_pixels is not False,
        **framing,
    )
    edit = edit_of(source, args.image, args.mask, invert=args.invert, learned=learned, **framing)
    drawing.draw(options, model, learned, edit, source)


def _check(args: argparse.Namespace) -> None:
    """Refuse options that do not go together.

    Raises:
        UserError: names them.
    """
    if args.keep_pixels is not None and not args.mask:
        raise UserError("--keep-pixels is about what lies outside a --mask; give one")
    if args.strength is not None and not 0 < args.strength <= 1:
        raise UserError(f"--strength must be above 0 and at most 1, not {args.strength}")
    if args.invert is None:
        return
    for option in ("mask", "strength", "n", "seeds", "seed", "eta"):
        if getattr(args, option) is not None:
            raise UserError(f"--invert finds the one noise behind the picture: leave out --{option}")
    if args.sampler not in (None, "ddim"):
        raise UserError(f"--invert is of the sampler ddim: leave out --sampler {args.sampler}")


def _source(
    model: LatentDiffusion,
    image: Path,
    mask: Path | None,
    *,
    strength: float | None,
    keep_pixels: bool,
    fit: str,
    background: str,
) -> Source:
    from ldm.sampling.source import load_source

    source = load_source(
        model,
        image,
        mask=mask,
        strength=strength,
        keep_pixels=keep_pixels,
        fit=fit,
        background=background,
    )
    if source.mask is not None and source.mask.max() < 0.5:
        raise UserError(f"the mask {mask} has nothing white: make white what is to be painted")
    return source


def _again(options: drawing.Options, picture: Path, image: Path, mask: Path | None) -> None:
    from ldm.io.recipes import load_recipe
    from ldm.sampling.editing import check_files

    recipe = load_recipe(picture)
    edit = recipe.edit
    if edit is None:
        raise UserError(f"{picture} was drawn from noise: ldm sample --again {picture}")
    check_files(edit, image, mask)
    model = drawing.load_again(options, recipe)
    source = _source(
        model,
        image,
        mask,
        strength=edit.strength,
        keep_pixels=edit.keep_pixels,
        fit=edit.fit,
        background=edit.background,
    )
    drawing.draw_again(options, model, picture, recipe, source)
