"""Pictures made from another picture: what their recipe says of it, and what drawing starts from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.io.atomic import file_sha256
from ldm.io.embeddings import Embedding
from ldm.io.recipes import Edit, Recipe
from ldm.io.secrets import redacted
from ldm.sampling.prompts import put
from ldm.sampling.source import Source, find_noise


def edit_of(
    source: Source,
    image: Path,
    mask: Path | None = None,
    *,
    invert: str | None = None,
    fit: str = "crop",
    background: str = "white",
    learned: Sequence[Embedding] = (),
) -> Edit:
    """What a recipe says of the picture that others are made from: names, hashes and settings, no pixels.

    Args:
        source: made from the files by ``ldm.load_source`` with the same ``fit`` and ``background``.
        image, mask: the files.
        invert: what the picture shows, where its noise is to be found; ``{}`` stands for the learned word.
        learned: the words that ``{}`` may stand for.

    Raises:
        UserError: ``{}`` where no one word is meant.
    """
    return Edit(
        image=redacted(image.name),
        image_sha256=file_sha256(image),
        mask=redacted(mask.name) if mask else "",
        mask_sha256=file_sha256(mask) if mask else "",
        strength=source.strength,
        keep_pixels=source.keep_pixels,
        invert=put(invert, learned) if invert is not None else None,
        fit=fit,
        background=background,
    )


def check_files(edit: Edit, image: Path, mask: Path | None) -> None:
    """Refuse files that are not those that a picture was made from.

    Raises:
        UserError: a mask too many or too few, or a file of other content; names the one in the recipe.
    """
    if bool(mask) != bool(edit.mask):
        raise UserError(f"give the mask {edit.mask!r} by --mask" if edit.mask else "leave out --mask")
    given = ((image, edit.image, edit.image_sha256), (mask, edit.mask, edit.mask_sha256))
    for path, name, sha256 in given:
        if path and file_sha256(path) != sha256:
            raise UserError(f"{path} is not the file {name!r} that the picture was made from")


def start(model: LatentDiffusion, source: Source, recipe: Recipe) -> tuple[Source | None, Tensor | None]:
    """What the pictures of an edit start from: the source, or the noise behind it (which replaces it).

    Returns:
        ``source`` and ``x_T`` (1, C, h, w) as ``ldm.sample`` takes them; one of the two is ``None``.
    """
    if recipe.edit is None or recipe.edit.invert is None:
        return source, None
    x_T = find_noise(
        model,
        source,
        recipe.edit.invert,
        steps=recipe.steps,
        scale=recipe.scale,
        negative_prompt=recipe.negative_prompt,
        truncate=recipe.truncate,
    )
    return None, x_T
