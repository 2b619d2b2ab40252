"""What a drawn PNG says about itself: all that is needed to draw it again.

A recipe lies in the text chunks (iTXt) before the pixels, one chunk a value. It holds the learned
words with their vectors, so that the picture alone suffices; of the model, and of a picture that
was edited, it holds name and hash only. A PNG may come from anyone: only the head of the file is
read, every value is checked, and none of them is a path that is opened.
"""

from __future__ import annotations

import base64
import io
import json
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError
from ldm.io.embeddings import Embedding
from ldm.io.files import opened, printable
from ldm.paths import expanded

RECIPE_VERSION = 1
#: Of a picture with settings that versions before would ignore.
_WITH_CLIP_SKIP, _WITH_PRECISION, _WITH_TRUNCATE = 2, 3, 4
#: The chunk that says that the others are a recipe.
_MARK = "recipe"
#: Text chunks are looked for in this much of a file; a word of 77 vectors of width 1280 takes 0.5 MB.
_HEAD_BYTES = 16 << 20
#: More pictures than this were never drawn at once.
MAX_BATCH = 1024
#: Fields that are a chunk of the same name, in the order in which they are written.
_PLAIN = (
    "prompt", "negative_prompt", "seed", "index", "sampler", "steps", "scale", "eta", "size", "model",
    "base_model", "batch_row", "batch_rows",
)  # fmt: skip
#: Notes of a word that say how its vectors are used.
_OF_KIND = ("kind", "kind_settings")
#: Chunks that do not change what the picture shows.
_INCIDENTAL = {"batch_row", "batch_rows", "Software"}


@dataclass(frozen=True)
class Edit:
    """How a picture was made from another one.

    Attributes:
        image, mask: names of the files (no mask: ""), and their sha256.
        strength, keep_pixels: see ``ldm.sampling.source.Source``.
        invert: the description under which the picture's noise was found, or ``None``.
        fit, background: how the files came to the model's size.
    """

    image: str
    image_sha256: str
    mask: str = ""
    mask_sha256: str = ""
    strength: float = 1.0
    keep_pixels: bool = True
    invert: str | None = None
    fit: str = "crop"
    background: str = "white"


@dataclass(frozen=True, eq=False)
class Recipe:
    """How one picture was drawn.

    Attributes:
        seed, index: its noise is that of ``generator(seed, "x_T", index)``.
        size: pixels a side.
        model, base_model: the model's name, without folders, and its fingerprint.
        batch_row, batch_rows: its place among the pictures drawn with it: a batch of another size
            may round differently in the last bit.
        embeddings: the learned words in its prompts; metadata has "file" and "sha256".
        edit: ``None`` if it was drawn from noise alone.
        clip_skip: see ``ldm.load``; ``None``: the model's own.
        precision: what UNet and text conditioner computed in; "model": as the model was loaded.
        truncate: how many units counted of words that can be cut; ``None``: all.
        version: of the program that drew it.
    """

    prompt: str
    negative_prompt: str
    seed: int
    index: int
    sampler: str
    steps: int
    scale: float
    eta: float
    size: int
    model: str
    base_model: str
    version: str
    batch_row: int = 0
    batch_rows: int = 1
    embeddings: tuple[Embedding, ...] = field(default=())
    edit: Edit | None = None
    clip_skip: int | None = None
    precision: str = "model"
    truncate: int | None = None

    def same_picture(self, other: Recipe) -> bool:
        """Whether both describe one picture, whatever was drawn beside it, by whichever version."""
        ours, theirs = to_text(self), to_text(other)
        return all(ours.get(k) == theirs.get(k) for k in (ours.keys() | theirs.keys()) - _INCIDENTAL)


# ------------------------------------------------------------------------------ writing
def to_text(recipe: Recipe) -> dict[str, str]:
    """The recipe as text chunks, for ``ldm.io.images.save_png``."""
    text = {key: str(getattr(recipe, key)) for key in _PLAIN}
    text |= {_MARK: str(RECIPE_VERSION), "Software": recipe.version}
    if recipe.embeddings:
        text["embeddings"] = json.dumps([_word(word) for word in recipe.embeddings], ensure_ascii=False)
    if recipe.clip_skip is not None:
        text |= {_MARK: str(_WITH_CLIP_SKIP), "clip_skip": str(recipe.clip_skip)}
    if recipe.precision != "model":
        text |= {_MARK: str(_WITH_PRECISION), "precision": recipe.precision}
    if recipe.truncate is not None:
        text |= {_MARK: str(_WITH_TRUNCATE), "truncate": str(recipe.truncate)}
    if recipe.edit is not None:
        text["edit"] = json.dumps(asdict(recipe.edit), ensure_ascii=False)
    return {key: printable(value) for key, value in text.items()}  # a file's name may be no Unicode


def _word(word: Embedding) -> dict[str, Any]:
    notes = {key: word.metadata.get(key, "") for key in ("file", "sha256")}
    more: dict[str, Any] = {"layers": word.sets} if word.sets else {}
    more |= {key: word.metadata[key] for key in _OF_KIND if key in word.metadata}
    if word.parts:
        more["parts"] = {name: [*part.shape, _base64(part)] for name, part in word.parts.items()}
    vectors = _base64(word.vectors)
    return {"name": word.placeholder, **notes, **more, "K": word.K, "D": word.D, "float32": vectors}


def _base64(tensor: Tensor) -> str:
    return base64.b64encode(tensor.numpy().astype("<f4").tobytes()).decode()


def _tensor(text: str, shape: Sequence[int]) -> Tensor:
    data = np.frombuffer(base64.b64decode(text, validate=True), dtype="<f4")
    return torch.from_numpy(data.astype(np.float32)).reshape(*shape)


def facts(recipe: Recipe) -> list[tuple[str, str]]:
    """What a recipe says, but for the vectors, to be read by people: rows (what, value) of text."""
    rows = {k: v for k, v in to_text(recipe).items() if k not in ("embeddings", "edit")}
    if recipe.edit:
        rows |= {f"edit: {k}": "" if v is None else str(v) for k, v in asdict(recipe.edit).items()}
    if recipe.embeddings:
        rows["embeddings"] = ", ".join(
            f"{word.placeholder} ({word.metadata['file']}, sha256 {word.metadata['sha256']})"
            for word in recipe.embeddings
        )
    return [(key.replace("_", " "), value or "none") for key, value in rows.items()]


# ------------------------------------------------------------------------------ reading
def has_recipe(path: Path | str) -> bool:
    """Whether a file is a PNG that says how it was drawn; False if it cannot be read."""
    try:
        return _MARK in png_text(path)
    except UserError:
        return False


def png_text(path: Path | str) -> dict[str, str]:
    """The text chunks before a PNG's pixels, which are not decoded; at most 16 MB are read.

    Raises:
        UserError: no such file, no PNG, or a broken one.
    """
    with opened(expanded(path), "picture") as handle:
        head = io.BytesIO(handle.read(_HEAD_BYTES))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of a size that is not decoded here
            with Image.open(head, formats=("PNG",)) as picture:
                return {str(k): str(v) for k, v in picture.info.items() if isinstance(v, str)}
    except Exception as error:  # decoders raise nearly anything on broken bytes
        raise UserError(f"{path} is no PNG picture, or a broken one; fetch it again") from error


def load_recipe(path: Path | str) -> Recipe:
    """How the picture in a PNG was drawn.

    Raises:
        UserError: a file that is no PNG, has no recipe, or a broken one.
    """
    text = png_text(path)
    if _MARK not in text:
        raise UserError(
            f"{path} does not say how it was drawn: it is not by this program, or another program "
            "has saved it since"
        )
    if text[_MARK] not in map(str, range(RECIPE_VERSION, _WITH_TRUNCATE + 1)):
        raise UserError(f"{path} has a recipe of version {text[_MARK][:20]!r}: use a newer ldm")
    try:
        return _from_text(text)
    except Exception as error:  # anything may be wrong with what anyone may have written
        raise UserError(f"the recipe in {path} is broken; fetch the picture again") from error


def _from_text(text: Mapping[str, str]) -> Recipe:
    recipe = Recipe(
        prompt=text["prompt"],
        negative_prompt=text["negative_prompt"],
        seed=int(text["seed"]),
        index=int(text["index"]),
        sampler=text["sampler"],
        steps=int(text["steps"]),
        scale=_finite(text["scale"]),
        eta=_finite(text["eta"]),
        size=int(text["size"]),
        model=text["model"],
        base_model=text["base_model"],
        version=text["Software"],
        batch_row=int(text["batch_row"]),
        batch_rows=int(text["batch_rows"]),
        embeddings=tuple(_words(json.loads(text.get("embeddings", "[]")))),
        edit=_edit(json.loads(text["edit"])) if "edit" in text else None,
        clip_skip=int(text["clip_skip"]) if _says(text, "clip_skip", _WITH_CLIP_SKIP) else None,
        precision=_precision(text["precision"]) if _says(text, "precision", _WITH_PRECISION) else "model",
        truncate=int(text["truncate"]) if _says(text, "truncate", _WITH_TRUNCATE) else None,
    )
    if not (0 <= recipe.batch_row < recipe.batch_rows <= MAX_BATCH):
        raise ValueError("no such place in a batch")
    return recipe


def _says(text: Mapping[str, str], key: str, form: int) -> bool:
    """Whether a recipe has a value that came with a form: that one must have it, newer ones may."""
    version = int(text[_MARK])
    return version == form or version > form and key in text


def _precision(text: str) -> str:
    if text not in ("bf16", "16", "32"):
        raise ValueError("no precision")
    return text


def _finite(text: str | float) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError("not a finite number")
    return value


def _words(items: Sequence[Mapping[str, Any]]) -> list[Embedding]:
    words = []
    for item in items:
        vectors = _tensor(item["float32"], [item[key] for key in ("layers", "K", "D") if key in item])
        notes = {key: str(item[key]) for key in ("file", "sha256")}
        notes |= {key: str(item[key]) for key in _OF_KIND if key in item}
        parts = {str(k): _tensor(text, shape) for k, (*shape, text) in item.get("parts", {}).items()}
        words.append(Embedding(str(item["name"]), vectors, notes, parts=parts))
    return words


def _edit(value: Mapping[str, Any]) -> Edit:
    invert = value["invert"]
    return Edit(
        image=str(value["image"]),
        image_sha256=str(value["image_sha256"]),
        mask=str(value["mask"]),
        mask_sha256=str(value["mask_sha256"]),
        strength=_finite(value["strength"]),
        keep_pixels=bool(value["keep_pixels"]),
        invert=None if invert is None else str(invert),
        fit=str(value["fit"]),
        background=str(value["background"]),
    )
