"""The folders that the judge of DreamBench++ reads (Peng et al. 2025): one set for each setup.

::

    SETUP/src_image/CONCEPT/PROMPT_SAMPLE.jpg    a reference picture
    SETUP/text/CONCEPT/PROMPT_SAMPLE.txt         what the picture shall show
    SETUP/tgt_image/CONCEPT/PROMPT_SAMPLE.jpg    the picture that was drawn
"""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ldm.errors import UserError
from ldm.experiments.plan import Plan
from ldm.io.atomic import atomic_write, write_text
from ldm.io.decode import decode
from ldm.io.runs import slug
from ldm.paths import expanded

#: Pixels of the shorter side that a reference keeps at least.
_SIDE = 1024


def export(plan: Plan, out: Path) -> list[Path]:
    """Write every finished cell of the first seed; returns the folders, one a setup.

    Only edits are written: the judge asks how well a prompt was followed. Prompts are numbered from 0 for
    each concept, and samples for each prompt.

    Raises:
        UserError: nothing has been drawn yet, or no prompt is an edit.
    """
    out, folders, seen = expanded(out), list[Path](), set[tuple[str, str]]()
    for cell in plan.cells:
        album, concept = plan.album(cell), plan.concepts[cell.concept]
        if (cell.setup, cell.concept) in seen or not album.complete:
            continue
        seen.add((cell.setup, cell.concept))
        folder = out / slug(cell.setup)
        edits = [shot for shot in album.shots if shot.kind == "edit"]
        first = min((shot.number for shot in edits), default=0)
        source = decode(concept.references[0], _SIDE, (255, 255, 255), True)
        for shot in edits:
            name = Path(slug(cell.concept), f"{shot.number - first}_{shot.sample}")
            with Image.open(album.folder / shot.name) as picture:
                _jpeg(picture.convert("RGB"), folder / "tgt_image" / name.with_suffix(".jpg"))
            _jpeg(source, folder / "src_image" / name.with_suffix(".jpg"))
            told = concept.class_word or concept.name
            write_text(folder / "text" / name.with_suffix(".txt"), shot.prompt.replace("{}", told) + "\n")
        if edits and folder not in folders:
            folders.append(folder)
    if not folders:
        raise UserError(f"there is nothing to export: no cell of {plan.out} has pictures of an edit")
    return folders


def _jpeg(picture: Image.Image, path: Path) -> None:
    with atomic_write(path) as temporary:
        picture.save(temporary, format="JPEG", quality=95)
