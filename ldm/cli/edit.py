"""``ldm edit``: draw a picture anew, paint into a part of it, or draw another thing in its layout."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ldm.cli import common, drawing
from ldm.errors import UserError
from ldm.sampling import prompts as words

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.backbone.model import LatentDiffusion
    from ldm.io.embeddings import Embedding
    from ldm.io.recipes import Edit, Recipe
    from ldm.sampling.source import Source

EXAMPLE = """\
  ldm edit --image photo.jpg --prompt "a photo of {} on the beach" --embedding cat.safetensors --strength 0.7
  ldm edit --image photo.jpg --mask mask.png --prompt "a photo of {}" --embedding cat.safetensors
  ldm edit --image photo.jpg --invert "a photo of a dog" --prompt "a photo of {}" --embedding cat.safetensors
  ldm edit --image photo.jpg --again out/edited.png
"""
#: Options that say how a picture is edited; a recipe answers them too.
_HOW = ("strength", "keep_pixels", "invert", "fit", "background")


def register(subparsers: Any) -> None:
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
    drawing.check(args)
    _check(args)
    if args.again:
        _again(args)
        return
    learned = words.load(args.embedding or [])
    model = drawing.load_model(args)
    words.teach(model, learned, force=args.force, clip_skip=args.clip_skip)
    source = _source(args, model)
    with drawing.output(args) as out:
        wanted = drawing.plan(args, model, learned, out, _edit(args, source, learned))
        drawing.draw_into(args, model, wanted, out, *_start(model, source, wanted[0].recipe))


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
    args.sampler, args.n = "ddim", 1


def _source(args: argparse.Namespace, model: LatentDiffusion) -> Source:
    from ldm.sampling.source import load_source

    source = load_source(
        model,
        args.image,
        strength=args.strength if args.invert is None else 1.0,
        mask=args.mask,
        keep_pixels=args.keep_pixels is not False,
        fit=args.fit or "crop",
        background=args.background or "white",
    )
    if source.mask is not None and source.mask.max() < 0.5:
        raise UserError(f"the mask {args.mask} has nothing white: make white what is to be painted")
    return source


def _edit(args: argparse.Namespace, source: Source, learned: list[Embedding]) -> Edit:
    from ldm.io.atomic import file_sha256
    from ldm.io.recipes import Edit
    from ldm.io.secrets import redacted

    return Edit(
        image=redacted(args.image.name),
        image_sha256=file_sha256(args.image),
        mask=redacted(args.mask.name) if args.mask else "",
        mask_sha256=file_sha256(args.mask) if args.mask else "",
        strength=source.strength,
        keep_pixels=source.keep_pixels,
        invert=words.put(args.invert, learned) if args.invert is not None else None,
        fit=args.fit or "crop",
        background=args.background or "white",
    )


def _start(model: LatentDiffusion, source: Source, recipe: Recipe) -> tuple[Source | None, Tensor | None]:
    """What the pictures start from: the source, or the noise behind it (which replaces it)."""
    from ldm.sampling.source import find_noise

    assert recipe.edit
    if recipe.edit.invert is None:
        return source, None
    x_T = find_noise(
        model,
        source,
        recipe.edit.invert,
        steps=recipe.steps,
        scale=recipe.scale,
        negative_prompt=recipe.negative_prompt,
    )
    return None, x_T


def _again(args: argparse.Namespace) -> None:
    from ldm.io.atomic import file_sha256
    from ldm.io.recipes import load_recipe

    recipe = load_recipe(args.again)
    edit = recipe.edit
    if edit is None:
        raise UserError(f"{args.again} was drawn from noise: ldm sample --again {args.again}")
    given = [option for option in _HOW if getattr(args, option) is not None]
    if given:
        raise UserError(f"--again draws the very same picture: leave out --{given[0].replace('_', '-')}")
    if bool(args.mask) != bool(edit.mask):
        raise UserError(f"give the mask {edit.mask!r} by --mask" if edit.mask else "leave out --mask")
    for path, name, sha256 in ((args.image, edit.image, edit.image_sha256),
                               (args.mask, edit.mask, edit.mask_sha256)):  # fmt: skip
        if path and file_sha256(path) != sha256:
            raise UserError(f"{path} is not the file {name!r} that {args.again} was made from")
    for option in _HOW:
        setattr(args, option, getattr(edit, option))
    model = drawing.load_model(args, recipe)
    words.teach(model, recipe.embeddings, clip_skip=recipe.clip_skip)
    drawing.draw_again(args, model, recipe, *_start(model, _source(args, model), recipe))
