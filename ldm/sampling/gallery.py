"""A folder of pictures: which ones belong in it, which are missing, drawing those, and drawing one again.

Every picture has a recipe (:mod:`ldm.io.recipes`) that is known before the picture is drawn and that is
written into its PNG. So a picture that the folder holds already is not drawn a second time, and any picture
can be drawn again::

    wanted = gallery.plan(model, ["a photo of <toy>"], Path("out"), learned=words, seeds=[1, 2], n=4)
    gallery.draw_into(model, wanted, grid=Path("out/grid.png"))

    recipe = load_recipe("out/00_a-photo-of-toy_1_00.png")
    model = gallery.model_of(recipe)
    prompts.teach(model, recipe.embeddings, clip_skip=recipe.clip_skip)
    gallery.draw_again(model, recipe, Path("again.png"))
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from ldm._version import __version__
from ldm.backbone.loading import load, shipped
from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.io.embeddings import Embedding
from ldm.io.images import save_grid, save_png
from ldm.io.pictures import to_tensor
from ldm.io.recipes import MAX_BATCH, Edit, Recipe, load_recipe, to_text
from ldm.io.runs import slug
from ldm.io.secrets import redacted
from ldm.sampling import prompts as words
from ldm.sampling.sample import BrokenPictures, Sampling, sample, usual_batch
from ldm.sampling.source import Source

log = logging.getLogger(__name__)

#: A plan of more pictures than this is refused: it is a slip of the keyboard.
MAX_PICTURES = 100_000
#: Columns of the grid of a single prompt.
COLUMNS = 8


class Wanted(NamedTuple):
    """One picture that a folder should hold.

    Attributes:
        path: where it goes.
        recipe: how it is drawn.
    """

    path: Path
    recipe: Recipe


# ------------------------------------------------------------------------------ planning
def plan(
    model: LatentDiffusion,
    prompts: Sequence[str],
    out: Path,
    *,
    learned: Sequence[Embedding] = (),
    negative_prompt: str = "",
    seeds: Sequence[int] = (0,),
    n: int = 4,
    sampling: Sampling | None = None,
    eta: float = 0.0,
    model_name: str = "emoji",
    edit: Edit | None = None,
    truncate: int | None = None,
) -> list[Wanted]:
    """Every picture of some prompts and seeds: those of a prompt together, and in them those of a seed.

    Args:
        model: knows the learned words already (``ldm.sampling.prompts.teach``).
        prompts: in them ``{}`` stands for the one learned word.
        out: folder of the pictures; nothing is written yet.
        learned: words as ``ldm.sampling.prompts.load`` returns them.
        negative_prompt: what the pictures stay away from.
        seeds, n: each prompt is drawn ``n`` times with each seed; picture i is that of (seed, i).
        sampling: steps, sampler, scale and precision; by default what suits the model.
        eta: as of ``ldm.sample``.
        model_name: what recipes call the model; of a path, its last part.
        edit: how the pictures are made from another picture, if they are.
        truncate: as of ``ldm.sample``.

    Raises:
        UserError: ``{}`` where no one word is meant, learned words that nothing uses, nothing that
            ``truncate`` could cut, or too many pictures.
    """
    prompts = [words.put(prompt, learned) for prompt in prompts]
    negative = words.put(negative_prompt, learned)
    beside = f"{negative}\n{edit.invert or ''}" if edit else negative
    words.check_used(model, [*prompts, beside], learned)
    words.check_truncate(model, [*prompts, beside], learned, truncate)
    if len(prompts) * len(seeds) * n > MAX_PICTURES:
        raise UserError(f"that makes {len(prompts) * len(seeds) * n} pictures; draw fewer at once")
    how = sampling or Sampling.of(model)
    if negative and how.scale == 1:
        log.warning("the negative prompt has no effect at scale 1; give a higher one")
    base_model, name = model.fingerprint(), redacted(Path(model_name).name)
    wanted = []
    for number, prompt in enumerate(prompts):
        used = tuple(words.used_in(model, f"{prompt}\n{beside}", learned))
        for seed, index in ((s, i) for s in seeds for i in range(n)):
            recipe = Recipe(
                prompt=prompt,
                negative_prompt=negative,
                seed=seed,
                index=index,
                sampler=how.sampler,
                steps=how.steps,
                scale=float(how.scale),
                precision=how.precision,
                eta=eta,
                size=model.image_size,
                model=name,
                base_model=base_model,
                version=f"ldm {__version__}",
                embeddings=used,
                edit=edit,
                clip_skip=model.text.other_clip_skip,
                truncate=truncate,
            )
            wanted.append(Wanted(out / f"{number:02d}_{slug(prompt)}_{seed}_{index:02d}.png", recipe))
    return wanted


def missing(wanted: Sequence[Wanted]) -> list[Wanted]:
    """Those pictures that are not in place: no file, half a file, or one that another recipe drew."""
    return [one for one in wanted if not _is_there(one)]


def _is_there(one: Wanted) -> bool:
    try:
        if not one.path.is_file() or not load_recipe(one.path).same_picture(one.recipe):
            return False
        with Image.open(one.path) as picture:
            picture.load()  # to its end: the recipe stands before the pixels
        return True
    except (UserError, OSError, SyntaxError):  # half a picture, or another program's
        return False


# ------------------------------------------------------------------------------ drawing
def draw_into(
    model: LatentDiffusion,
    wanted: Sequence[Wanted],
    *,
    batch_size: int | None = None,
    grid: Path | None = None,
    columns: int | None = None,
    source: Source | None = None,
    x_T: Tensor | None = None,
    progress: bool = False,
) -> int:
    """Draw and write the pictures that are missing, then the grid of all.

    Each picture is written as soon as its batch is drawn, so that an interrupted call loses one batch.

    Args:
        wanted: from :func:`plan`, of this model.
        batch_size: pictures drawn at once; by default as many as ``ldm.sample`` draws.
        grid: file of one picture that shows all; ``None``: none is written.
        columns: of the grid, see :func:`write_grid`.
        source, x_T: as of ``ldm.sample``, for edited pictures.
        progress: show a bar.

    Returns:
        How many of the pictures were there before.

    Raises:
        UserError: some pictures are nothing but overflow; all others, and their grid, are written.
    """
    size = min(batch_size or usual_batch(model.image_size), MAX_BATCH)
    absent = missing(wanted)
    lost: dict[Path, BrokenPictures] = {}
    for batch in (absent[i : i + size] for i in range(0, len(absent), size)):
        try:
            images = _draw(model, [one.recipe for one in batch], source, x_T, progress)
        except BrokenPictures as error:
            images = error.drawn
            lost |= {batch[row].path: error for row in error.broken}
        for row, (one, image) in enumerate(zip(batch, images, strict=True)):
            if one.path not in lost:
                recipe = replace(one.recipe, batch_row=row, batch_rows=len(batch))
                save_png(image, one.path, to_text(recipe))
    drawn = [one for one in wanted if one.path not in lost]
    if grid and drawn:
        write_grid(drawn, grid, columns)
    if lost:
        path, error = next(iter(lost.items()))
        raise UserError(f"{error}; {len(lost)} pictures are not in {path.parent}, {len(drawn)} are")
    return len(wanted) - len(absent)


def write_grid(wanted: Sequence[Wanted], path: Path, columns: int | None = None) -> Path:
    """Write one picture that shows all of ``wanted``, which are read from their files.

    Args:
        columns: by default a row a prompt, and of a single prompt rows of :data:`COLUMNS`.
    """
    rows = len({one.path.name.partition("_")[0] for one in wanted})  # the prompts' numbers
    images = []
    for one in wanted:
        with Image.open(one.path) as picture:
            images.append(to_tensor(picture.convert("RGB")))
    return save_grid(torch.stack(images), path, columns or (len(wanted) // rows if rows > 1 else COLUMNS))


# ------------------------------------------------------------------------- drawing again
def model_of(
    recipe: Recipe, source: str | None = None, checkpoint: str | None = None, device: str = "cpu"
) -> LatentDiffusion:
    """Load the model that a picture was drawn by, as its fingerprint proves.

    Args:
        source: a model as of ``ldm.load``; by default the shipped one that the recipe names. A name in a
            picture, which may come from anyone, is never taken for a path.
        checkpoint, device: as of ``ldm.load``.

    Raises:
        UserError: the recipe's model does not come with the program, or ``source`` is another model.
    """
    if not source and recipe.model not in shipped():
        raise UserError(f"the picture was drawn by the model {recipe.model!r}; give it by --model")
    source = source or recipe.model
    model = load(source, checkpoint, device)
    if recipe.base_model != model.fingerprint():
        raise UserError(
            f"the picture was drawn by another model ({recipe.model!r}, {recipe.base_model[:12]!r}...) "
            f"than {source} ({model.fingerprint()[:12]}...); give that one by --model"
        )
    return model


def draw_again(
    model: LatentDiffusion,
    recipe: Recipe,
    path: Path,
    *,
    batch_size: int | None = None,
    source: Source | None = None,
    x_T: Tensor | None = None,
    progress: bool = False,
) -> Path:
    """Draw the picture of a recipe, in a batch of the size that it was drawn in, and write it to ``path``.

    Args:
        model: from :func:`model_of`; it knows the recipe's words.
        batch_size: at most so many are drawn at once, by default as many as ``ldm.sample`` draws: a recipe
            may come from anyone, and name any number.
        source, x_T: as of ``ldm.sample``, for an edited picture.
        progress: show a bar.

    Returns:
        ``path``.

    Raises:
        UserError: the recipe is of a picture of another size than the model's.
    """
    if recipe.size != model.image_size:
        raise UserError(f"the recipe is of a picture of {recipe.size} pixels, not {model.image_size}")
    most = batch_size or usual_batch(model.image_size)
    if recipe.batch_rows > most:
        log.warning("the picture was drawn with %d others; %d are drawn now, which may round the last bits "
                    "otherwise: a batch size of %d draws it as it was",
                    recipe.batch_rows - 1, most, recipe.batch_rows)  # fmt: skip
    images = _draw(model, [recipe] * min(recipe.batch_rows, most), source, x_T, progress)
    return save_png(images[min(recipe.batch_row, most - 1)], path, to_text(recipe))


def _draw(
    model: LatentDiffusion,
    recipes: Sequence[Recipe],
    source: Source | None,
    x_T: Tensor | None,
    progress: bool,
) -> Tensor:
    """Pictures (B, 3, H, W) of B recipes that differ in prompt, seed and index alone."""
    shared = recipes[0]
    return sample(
        model,
        [recipe.prompt for recipe in recipes],
        negative_prompt=shared.negative_prompt,
        draws=[(recipe.seed, recipe.index) for recipe in recipes],
        sampler=shared.sampler,
        steps=shared.steps,
        scale=shared.scale,
        precision=shared.precision,
        eta=shared.eta,
        batch_size=len(recipes),
        source=source,
        x_T=x_T,
        progress=progress,
        truncate=shared.truncate,
    )
