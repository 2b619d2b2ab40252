"""What ``ldm sample`` and ``ldm edit`` share: which pictures are asked for, and drawing them.

Every picture has a recipe (``ldm.io.recipes``) that is known before it is drawn and is written into
its PNG. So a picture that is there already is not drawn again, and any picture can be.
"""

from __future__ import annotations

import argparse
import logging
import math
import re
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from ldm._version import __version__
from ldm.cli import common
from ldm.errors import UserError
from ldm.io.runs import slug, stamp
from ldm.paths import found
from ldm.sampling import prompts as words

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.backbone.model import LatentDiffusion
    from ldm.io.embeddings import Embedding
    from ldm.io.recipes import Edit, Recipe
    from ldm.sampling.source import Source

log = logging.getLogger(__name__)

MAX_PICTURES = 100_000
#: Options that a picture's own recipe answers.
_OF_RECIPE = (
    "embedding", "n", "seed", "seeds", "negative_prompt", "steps", "scale", "sampler", "eta", "clip_skip",
)  # fmt: skip


class Wanted(NamedTuple):
    """One picture, and where it goes."""

    path: Path
    recipe: Recipe


def add_options(parser: argparse.ArgumentParser) -> None:
    """Everything but what the pictures start from."""
    common.add_model(parser, default=None)
    add = parser.add_argument
    add(
        "--embedding",
        type=Path,
        nargs="+",
        action="extend",
        metavar="FILE",
        help="learned words, of this program or any other (.safetensors, .pt, .bin, .png)",
    )
    add(
        "--prompt",
        action="append",
        metavar="TEXT",
        help="{} stands for the learned word; may be given several times, with the word and without",
    )
    add(
        "--prompts-file",
        metavar="FILE",
        help="more prompts, one a line, # begins a comment line; - reads them from the input",
    )
    add(
        "--again",
        type=Path,
        metavar="PNG",
        help="draw the very picture of this PNG again, by the recipe in it, and nothing else",
    )
    add("--negative-prompt", metavar="TEXT", help="what to stay away from; a learned word may be here alone")
    add("--n", type=int, help="pictures of each prompt and seed (default: 4, or 1 with --seeds)")
    seeds = parser.add_mutually_exclusive_group()
    seeds.add_argument("--seed", type=int, help="(default: 0)")
    seeds.add_argument("--seeds", metavar="LIST", help="several, as in 1,2,5-8")
    common.add_sampling(parser)
    add("--eta", type=float, help="noise of ddim, 0 to 1 (default: 0)")
    common.add_clip_skip(parser, "the one that the words were learned with, else the model's own")
    add("--batch-size", type=int, help="pictures drawn at once (default: 64, fewer of large ones)")
    add("--out", type=Path, metavar="DIR", help="folder of the pictures (default: out/<date>)")
    add("--grid", action=argparse.BooleanOptionalAction, default=True, help="grid.png with all pictures")
    add("--columns", type=int, help="of the grid (default: a row a prompt; 8 with one prompt)")
    add("--force", action="store_true", help="use an embedding that was learned on another model")


# ------------------------------------------------------------------------------ what is asked for
def check(args: argparse.Namespace) -> None:
    """Refuse what cannot be meant, before anything heavy is loaded.

    Raises:
        UserError: no prompts at all, or an option beside ``--again`` that the recipe answers.
    """
    if args.again is None:
        if not args.prompt and not args.prompts_file:
            raise UserError("give a --prompt, a --prompts-file, or --again with a picture")
    else:
        given = [o for o in ("prompt", "prompts_file", *_OF_RECIPE) if getattr(args, o) is not None]
        if given:
            option = given[0].replace("_", "-")
            raise UserError(f"--again draws the very same picture: leave out --{option}")
    for option in ("n", "batch_size", "columns"):
        value = getattr(args, option)
        if value is not None and value < 1:
            raise UserError(f"--{option.replace('_', '-')} is {value}; give at least 1")
    if args.seed is not None and args.seed < 0:
        raise UserError(f"--seed is {args.seed}; give at least 0")
    for option in ("scale", "eta"):
        value = getattr(args, option)
        if value is not None and not math.isfinite(value):
            raise UserError(f"--{option} is {value}; give a number")


def prompts_of(args: argparse.Namespace) -> list[str]:
    """The prompts of ``--prompt``, then those of ``--prompts-file``.

    Raises:
        UserError: a file that cannot be read or holds no prompt, or text that is no Unicode.
    """
    prompts = list(args.prompt or [])
    if args.prompts_file:
        try:
            if args.prompts_file == "-":
                text = sys.stdin.read()
            else:
                text = found(args.prompts_file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise UserError(f"cannot read the prompts {args.prompts_file}: {why}") from error
        lines = [line.strip() for line in text.split("\n")]
        prompts += [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"there is no prompt in {args.prompts_file}: write one a line")
    for prompt in [*prompts, args.negative_prompt or ""]:
        try:
            prompt.encode()
        except UnicodeError as error:
            raise UserError(f"the prompt {prompt!r} is no text in UTF-8") from error
    return prompts


def seeds_of(args: argparse.Namespace) -> list[int]:
    """The seeds of ``--seeds`` or ``--seed``, in the order given, each once.

    Raises:
        UserError: not a list of numbers and ranges, or too long a one.
    """
    if args.seeds is None:
        return [args.seed or 0]
    seeds: dict[int, None] = {}
    for part in args.seeds.split(","):
        found = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", part, re.ASCII)
        first, last = (int(found[1]), int(found[2] or found[1])) if found else (1, 0)
        if not first <= last < first + MAX_PICTURES:
            raise UserError(f"--seeds {args.seeds!r} is no list of numbers and ranges, as in 1,2,5-8")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


def plan(
    args: argparse.Namespace,
    model: LatentDiffusion,
    learned: Sequence[Embedding],
    out: Path,
    edit: Edit | None = None,
) -> list[Wanted]:
    """Every picture that the options ask for: a prompt's pictures together, a seed's within them.

    Raises:
        UserError: prompts or seeds that cannot be used, or too many pictures.
    """
    from ldm.io.recipes import Recipe
    from ldm.io.secrets import redacted

    prompts = [words.put(prompt, learned) for prompt in prompts_of(args)]
    negative = words.put(args.negative_prompt or "", learned)
    beside = f"{negative}\n{edit.invert or ''}" if edit else negative
    words.check_used(model, [*prompts, beside], learned)
    seeds, n = seeds_of(args), args.n or (1 if args.seeds else 4)
    if len(prompts) * len(seeds) * n > MAX_PICTURES:
        raise UserError(f"that makes {len(prompts) * len(seeds) * n} pictures; ask for fewer at once")
    common.own_sampling(args, model)
    if negative and args.scale == 1:
        log.warning("the negative prompt has no effect at --scale 1; give a higher one")
    wanted = []
    for number, prompt in enumerate(prompts):
        used = tuple(words.used_in(model, f"{prompt}\n{beside}", learned))
        for seed, index in ((s, i) for s in seeds for i in range(n)):
            recipe = Recipe(
                prompt=prompt,
                negative_prompt=negative,
                seed=seed,
                index=index,
                sampler=args.sampler,
                steps=args.steps,
                scale=float(args.scale),
                eta=args.eta or 0.0,
                size=model.image_size,
                model=redacted(Path(args.model or "emoji").name),
                base_model=model.fingerprint(),
                version=f"ldm {__version__}",
                embeddings=used,
                edit=edit,
                clip_skip=model.text.other_clip_skip,
            )
            name = f"{number:02d}_{slug(prompt)}_{seed}_{index:02d}.png"
            wanted.append(Wanted(out / name, recipe))
    return wanted


# ------------------------------------------------------------------------------ drawing
def output(args: argparse.Namespace) -> AbstractContextManager[Path]:
    """The folder of the pictures, claimed: what is drawn stays, whatever happens."""
    return common.output(args.out, Path("out", stamp()))


def load_model(args: argparse.Namespace, recipe: Recipe | None = None) -> LatentDiffusion:
    """The model of the options, or of the recipe if they name none.

    Raises:
        UserError: the recipe's model does not come with the program, or is another one.
    """
    from ldm.backbone.loading import load, shipped

    # a name that a picture brings is never taken for a path
    if recipe and not args.model and recipe.model not in shipped():
        raise UserError(f"the picture was drawn by the model {recipe.model!r}; give it by --model")
    source = args.model or (recipe.model if recipe else "emoji")
    model = load(source, args.checkpoint, common.torch_device(args.device))
    if recipe and recipe.base_model != model.fingerprint():
        raise UserError(
            f"the picture was drawn by another model ({recipe.model!r}, {recipe.base_model[:12]!r}...) "
            f"than {source} ({model.fingerprint()[:12]}...); give that one by --model"
        )
    return model


def draw_into(
    args: argparse.Namespace,
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    out: Path,
    source: Source | None = None,
    x_T: Tensor | None = None,
) -> None:
    """Draw and write the pictures that are not there yet, then the grid, and say where they are."""
    from dataclasses import replace

    from ldm.io.images import save_png
    from ldm.io.recipes import MAX_BATCH, to_text
    from ldm.sampling.sample import BrokenPictures, usual_batch

    size = min(args.batch_size or usual_batch(model.image_size), MAX_BATCH)
    args.how_to_resume = lambda: f"the same command with --out {common.command([out])} goes on"
    missing = [one for one in wanted if not _is_there(one)]
    lost: dict[Path, BrokenPictures] = {}
    for batch in (missing[i : i + size] for i in range(0, len(missing), size)):
        try:
            images = _sample(model, [one.recipe for one in batch], source, x_T)
        except BrokenPictures as error:
            images = error.drawn
            lost |= {batch[row].path: error for row in error.broken}
        for row, (one, image) in enumerate(zip(batch, images, strict=True)):
            if one.path in lost:
                continue
            recipe = replace(one.recipe, batch_row=row, batch_rows=len(batch))
            save_png(image, one.path, to_text(recipe))
    wanted = [one for one in wanted if one.path not in lost]
    if args.grid and wanted:
        _write_grid(wanted, args.columns, out / "grid.png")
    if lost:
        error = next(iter(lost.values()))
        raise UserError(f"{error}; {len(lost)} pictures are not in {out}, {len(wanted)} are")
    before = len(wanted) - len(missing)
    common.heading(f"{len(wanted)} pictures in {out}" + (f", {before} were there" if before else ""))
    if args.grid:
        common.say(f"  all at once  {out / 'grid.png'}")


def draw_again(
    args: argparse.Namespace,
    model: LatentDiffusion,
    recipe: Recipe,
    source: Source | None = None,
    x_T: Tensor | None = None,
) -> None:
    """Draw the picture of ``--again``, in a batch of the size that it was drawn in.

    A picture may come from anyone, so that no more are drawn at once than usual, or than ``--batch-size``.

    Raises:
        UserError: the picture would be overwritten, or is of another size.
    """
    from ldm.io.images import save_png
    from ldm.io.recipes import to_text
    from ldm.sampling.sample import usual_batch

    if args.out and (args.out / args.again.name).resolve() == args.again.resolve():
        raise UserError(f"{args.again} would be overwritten by its copy; give another folder by --out")
    if recipe.size != model.image_size:
        raise UserError(f"the recipe is of a picture of {recipe.size} pixels, not {model.image_size}")
    most = args.batch_size or usual_batch(model.image_size)
    if recipe.batch_rows > most:
        log.warning("the picture was drawn with %d others; %d are drawn now, which may round the last bits "
                    "otherwise: --batch-size %d draws it as it was",
                    recipe.batch_rows - 1, most, recipe.batch_rows)  # fmt: skip
    images = _sample(model, [recipe] * min(recipe.batch_rows, most), source, x_T)
    image = images[min(recipe.batch_row, most - 1)]
    with output(args) as out:
        path = save_png(image, out / args.again.name, to_text(recipe))
    common.heading(f"drawn again: {path}")


def _write_grid(wanted: Sequence[Wanted], columns: int | None, path: Path) -> None:
    """All pictures in one, read from their files: by default a row a prompt."""
    import torch
    from PIL import Image

    from ldm.io.images import save_grid
    from ldm.io.pictures import to_tensor

    rows = len({one.path.name.partition("_")[0] for one in wanted})
    images = []
    for one in wanted:
        with Image.open(one.path) as picture:
            images.append(to_tensor(picture.convert("RGB")))
    save_grid(torch.stack(images), path, columns or (len(wanted) // rows if rows > 1 else 8))


def _is_there(one: Wanted) -> bool:
    from PIL import Image

    from ldm.io.recipes import load_recipe

    try:
        if not one.path.is_file() or not load_recipe(one.path).same_picture(one.recipe):
            return False
        with Image.open(one.path) as picture:
            picture.load()  # to its end: the recipe stands before the pixels
        return True
    except (UserError, OSError, SyntaxError):  # half a picture, or another program's
        return False


def _sample(
    model: LatentDiffusion, recipes: Sequence[Recipe], source: Source | None, x_T: Tensor | None
) -> Tensor:
    from ldm.sampling.sample import sample

    shared = recipes[0]
    return sample(
        model,
        [recipe.prompt for recipe in recipes],
        negative_prompt=shared.negative_prompt,
        draws=[(recipe.seed, recipe.index) for recipe in recipes],
        sampler=shared.sampler,
        steps=shared.steps,
        scale=shared.scale,
        eta=shared.eta,
        batch_size=len(recipes),
        source=source,
        x_T=x_T,
        progress=sys.stderr.isatty(),
    )
