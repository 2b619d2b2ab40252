"""What ``ldm sample`` and ``ldm edit`` share: options, and what is printed.

Which pictures are missing and how they are drawn is in :mod:`ldm.sampling.gallery`.
"""

from __future__ import annotations

import argparse
import math
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.cli import common
from ldm.errors import UserError
from ldm.io.runs import stamp
from ldm.paths import found

if TYPE_CHECKING:
    from ldm.backbone.model import LatentDiffusion
    from ldm.io.embeddings import Embedding
    from ldm.io.recipes import Edit, Recipe
    from ldm.sampling.source import Source

#: A list of seeds has no more than this; ``ldm.sampling.gallery`` counts the pictures.
MAX_SEEDS = 100_000
#: Options that a picture's own recipe answers.
_OF_RECIPE = (
    "prompt", "prompts_file", "embedding", "n", "seed", "seeds", "negative_prompt", "steps", "scale",
    "sampler", "precision", "eta", "clip_skip", "truncate",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """The checked values of :func:`add_options`; ``None`` is what was not given."""

    model: str | None
    checkpoint: str | None
    device: str
    embeddings: Sequence[Path]
    prompts: Sequence[str]
    negative_prompt: str
    seeds: Sequence[int]
    n: int
    steps: int | None
    scale: float | None
    sampler: str | None
    precision: str | None
    eta: float
    clip_skip: int | None
    truncate: int | None
    batch_size: int | None
    out: Path | None
    grid: bool
    columns: int | None
    force: bool


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
    add(
        "--truncate",
        type=int,
        metavar="N",
        help="draw by the N first units of a word of kind space_time, which has 128 (default: all)",
    )
    add("--batch-size", type=int, help="pictures drawn at once (default: 64, fewer of large ones)")
    add("--out", type=Path, metavar="DIR", help="folder of the pictures (default: out/<date>)")
    add("--grid", action=argparse.BooleanOptionalAction, default=True, help="grid.png with all pictures")
    add("--columns", type=int, help="of the grid (default: a row a prompt; 8 with one prompt)")
    add("--force", action="store_true", help="use an embedding that was learned on another model")


# ------------------------------------------------------------------------------ reading them
def read(args: argparse.Namespace) -> Options:
    """The options, checked before anything heavy is loaded.

    Raises:
        UserError: no prompts at all, an option beside ``--again`` that the recipe answers, a value that
            cannot be meant, or a file of prompts that cannot be read.
    """
    if args.again is not None:
        refuse_given(args, _OF_RECIPE)
    elif not args.prompt and not args.prompts_file:
        raise UserError("give a --prompt, a --prompts-file, or --again with a picture")
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
    negative = args.negative_prompt or ""
    return Options(
        model=args.model,
        checkpoint=args.checkpoint,
        device=args.device,
        embeddings=args.embedding or [],
        prompts=[] if args.again else read_prompts(args.prompt or [], args.prompts_file, negative),
        negative_prompt=negative,
        seeds=[args.seed or 0] if args.seeds is None else read_seeds(args.seeds),
        n=args.n or (1 if args.seeds else 4),
        steps=args.steps,
        scale=args.scale,
        sampler=args.sampler,
        precision=args.precision,
        eta=args.eta or 0.0,
        clip_skip=args.clip_skip,
        truncate=args.truncate,
        batch_size=args.batch_size,
        out=args.out,
        grid=args.grid,
        columns=args.columns,
        force=args.force,
    )


def refuse_given(args: argparse.Namespace, answered: Sequence[str]) -> None:
    """Refuse options that the recipe of ``--again`` answers.

    Raises:
        UserError: names the first one.
    """
    given = [option for option in answered if getattr(args, option) is not None]
    if given:
        raise UserError(f"--again draws the very same picture: leave out --{given[0].replace('_', '-')}")


def read_prompts(given: Sequence[str], file: str | None, negative: str) -> list[str]:
    """The prompts of ``--prompt``, then those of ``--prompts-file``.

    Raises:
        UserError: a file that cannot be read or holds no prompt, or text that is no Unicode.
    """
    prompts = list(given)
    if file:
        try:
            text = sys.stdin.read() if file == "-" else found(file).read_text(encoding="utf-8-sig")
        except (OSError, UnicodeError) as error:
            why = error.strerror if isinstance(error, OSError) else "it is no text in UTF-8"
            raise UserError(f"cannot read the prompts {file}: {why}") from error
        lines = [line.strip() for line in text.split("\n")]
        prompts += [line for line in lines if line and not line.startswith("#")]
    if not prompts:
        raise UserError(f"there is no prompt in {file}: write one a line")
    for prompt in [*prompts, negative]:
        try:
            prompt.encode()
        except UnicodeError as error:
            raise UserError(f"the prompt {prompt!r} is no text in UTF-8") from error
    return prompts


def read_seeds(text: str) -> list[int]:
    """The seeds of ``--seeds``, as in ``1,2,5-8``, in the order given, each once.

    Raises:
        UserError: not a list of numbers and ranges, or too long a one.
    """
    seeds: dict[int, None] = {}
    for part in text.split(","):
        match = re.fullmatch(r"\s*(\d{1,18})\s*(?:-\s*(\d{1,18})\s*)?", part, re.ASCII)
        first, last = (int(match[1]), int(match[2] or match[1])) if match else (1, 0)
        if not first <= last < first + MAX_SEEDS:
            raise UserError(f"--seeds {text!r} is no list of numbers and ranges, as in 1,2,5-8")
        seeds |= dict.fromkeys(range(first, last + 1))
    return list(seeds)


# ------------------------------------------------------------------------------ drawing
def load(options: Options) -> tuple[LatentDiffusion, list[Embedding]]:
    """The model, which knows the learned words, and these words.

    Raises:
        UserError: a file that cannot be read, or a word that does not fit the model.
    """
    from ldm.backbone import loading
    from ldm.sampling import prompts

    learned = prompts.load(options.embeddings)
    device = common.torch_device(options.device)
    model = loading.load(options.model or "emoji", options.checkpoint, device)
    prompts.teach(model, learned, force=options.force, clip_skip=options.clip_skip)
    return model, learned


def draw(
    options: Options,
    model: LatentDiffusion,
    learned: Sequence[Embedding],
    edit: Edit | None = None,
    source: Source | None = None,
) -> None:
    """Draw the pictures that the folder lacks, from noise or from a source; say where all are."""
    from ldm.sampling import editing, gallery
    from ldm.sampling.sample import Sampling

    how = Sampling.of(
        model,
        steps=options.steps,
        sampler=options.sampler,
        scale=options.scale,
        precision=options.precision,
    )
    with common.output(options.out, Path("out", stamp()), deep=False) as out:
        wanted = gallery.plan(
            model,
            options.prompts,
            out,
            learned=learned,
            negative_prompt=options.negative_prompt,
            seeds=options.seeds,
            n=options.n,
            sampling=how,
            eta=options.eta,
            model_name=options.model or "emoji",
            edit=edit,
            truncate=options.truncate,
        )
        start = editing.start(model, source, wanted[0].recipe) if source else (None, None)
        common.resume_by(lambda: f"the same command with --out {common.command([out])} goes on")
        grid = out / "grid.png" if options.grid else None
        before = gallery.draw_into(
            model,
            wanted,
            batch_size=options.batch_size,
            grid=grid,
            columns=options.columns,
            source=start[0],
            x_T=start[1],
            progress=sys.stderr.isatty(),
        )
        common.heading(f"{len(wanted)} pictures in {out}" + (f", {before} were there" if before else ""))
        if grid:
            common.say(f"  all at once  {grid}")


def load_again(options: Options, recipe: Recipe) -> LatentDiffusion:
    """The model that a picture was drawn by; it knows the recipe's words.

    Raises:
        UserError: the recipe's model does not come with the program, or ``--model`` is another one.
    """
    from ldm.sampling import gallery, prompts

    device = common.torch_device(options.device)
    model = gallery.model_of(recipe, options.model, options.checkpoint, device)
    prompts.teach(model, recipe.embeddings, clip_skip=recipe.clip_skip)
    return model


def draw_again(
    options: Options,
    model: LatentDiffusion,
    picture: Path,
    recipe: Recipe,
    source: Source | None = None,
) -> None:
    """Draw the ``picture`` of ``--again`` into the folder of ``--out``; say where it is.

    Raises:
        UserError: the picture would be overwritten, or is of another size.
    """
    from ldm.sampling import editing, gallery

    out = options.out
    if out and (out / picture.name).resolve() == picture.resolve():
        raise UserError(f"{picture} would be overwritten by its copy; give another folder by --out")
    start = editing.start(model, source, recipe) if source else (None, None)
    with common.output(out, Path("out", stamp()), deep=False) as folder:
        path = gallery.draw_again(
            model,
            recipe,
            folder / picture.name,
            batch_size=options.batch_size,
            source=start[0],
            x_T=start[1],
            progress=sys.stderr.isatty(),
        )
    common.heading(f"drawn again: {path}")
