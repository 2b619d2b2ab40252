"""``draw:`` of a setup: what its pictures show and start from, if not a learned word and noise.

::

    setups:
      one word: {}
      captions: {draw: {reference: long caption}}     # no word: a text stands in its place
      best of 16: {draw: {candidates: 16}}            # the best of 16 pictures is kept
      in a mask: {draw: {image: scene.png, box: [0.2, 0.2, 0.8, 0.8]}}
      inverted: {draw: {image: own, invert: "a photo of {}"}}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from ldm.config import resolve
from ldm.errors import UserError
from ldm.experiments.concepts import GridConcept
from ldm.io.atomic import file_sha256
from ldm.io.embeddings import Embedding
from ldm.paths import found
from ldm.ranges import Positive, Range, Share

if TYPE_CHECKING:
    from torch import Tensor

    from ldm.backbone.model import LatentDiffusion
    from ldm.io.recipes import Edit
    from ldm.sampling.sample import Sampling
    from ldm.sampling.source import Source

KEY = "draw"
OWN = "own"
IMAGES, CLASS, PROMPT, SHORT, LONG = "images", "class", "prompt", "short caption", "long caption"


@dataclass(frozen=True)
class DrawConfig:
    """``draw:`` of a setup.

    Attributes:
        reference: Learn no word. ``images`` takes the training pictures as samples; in prompts ``class``
            puts the concept's class word in the word's place, ``prompt`` leaves the place empty, and
            ``short caption`` and ``long caption`` put the concept's captions there.
        candidates: How many pictures are drawn of each that is kept, the best one.
        ranked_by: The scorer that chooses among candidates, by likeness to the training pictures and, of
            edits, to the prompt without the word.
        image: A picture to draw from instead of noise alone; ``own`` is the concept's first training picture.
        mask: Paint only where this picture is white (blended latent diffusion).
        box: The same as a rectangle: left, top, right and bottom as shares of the side.
        strength: Share of the noise schedule that ``image`` goes back up, as in ``ldm edit``.
        invert: What ``image`` shows; drawing starts from the noise behind it (DDIM inversion). All samples of
            a prompt are then the same picture.
    """

    reference: Literal["images", "class", "prompt", "short caption", "long caption"] | None = None
    candidates: Positive = 1
    ranked_by: str = "emoji-clip"
    image: str | None = None
    mask: Path | None = None
    box: tuple[Share, ...] = ()
    strength: Annotated[float, Range(0, 1, above=True)] | None = None
    invert: str | None = None

    def identity(self, concept: GridConcept) -> list[Any]:
        """What pictures depend on beside the word; nothing, if they are drawn as usual."""
        if self == FROM_NOISE:
            return []
        image = file_sha256(self.picture(concept)) if self.image else None
        mask = file_sha256(found(self.mask)) if self.mask else None
        ranked = [self.candidates, self.ranked_by] if self.candidates > 1 else []
        return [self.reference, ranked, image, mask, self.box, self.strength, self.invert]

    def picture(self, concept: GridConcept) -> Path:
        """The file of ``image``."""
        assert self.image is not None
        return concept.pictures()[0] if self.image == OWN else found(self.image)


FROM_NOISE = DrawConfig()


def of_setup(name: str, setup: Mapping[str, Any] | None) -> tuple[dict[str, Any], DrawConfig]:
    """A setup's settings of an inversion, and how it draws.

    Raises:
        UserError: an unknown key of ``draw``, or some that do not go together.
    """
    settings = dict(setup or {})
    given = settings.pop(KEY, None)
    if given is None:
        return settings, FROM_NOISE
    where = f"grid.setups.{name}.{KEY}"
    if not isinstance(given, Mapping):
        raise UserError(f"{where} is {given!r}; give a mapping, such as {{reference: prompt}}")
    draw = resolve(DrawConfig, given, f"{where}.")
    if draw.reference and settings:
        raise UserError(f"{where}.reference learns no word: leave {next(iter(settings))} out of the setup")
    if draw.reference == IMAGES and (draw.image or draw.candidates > 1):
        raise UserError(f"{where}: the reference images are not drawn; leave out image and candidates")
    for key in ("mask", "box", "strength", "invert"):
        if getattr(draw, key) and not draw.image:
            raise UserError(f"{where}.{key} is of a picture to draw from; give image")
        if getattr(draw, key) and draw.invert and key != "invert":
            raise UserError(f"{where}: invert starts from the noise behind the picture; leave out {key}")
    if draw.mask and draw.box:
        raise UserError(f"{where} has a mask and a box; give one of them")
    if draw.box and not (len(draw.box) == 4 and draw.box[0] < draw.box[2] and draw.box[1] < draw.box[3]):
        raise UserError(
            f"{where}.box is {list(draw.box)}; give left, top, right, bottom, such as [0, 0, 0.5, 1]"
        )
    return settings, draw


def called(draw: DrawConfig, concepts: Sequence[GridConcept]) -> tuple[str, ...]:
    """What stands where a prompt names each of the concepts.

    Raises:
        UserError: a concept has no such text.
    """
    return tuple(_called(draw.reference, concept) for concept in concepts)


def _called(reference: str | None, concept: GridConcept) -> str:
    if reference is None or reference == IMAGES:
        return concept.word
    if reference == PROMPT:
        return ""
    texts = {CLASS: concept.class_word, SHORT: concept.short_caption, LONG: concept.long_caption}
    text = texts[reference]
    if not text:
        key = CLASS if reference == CLASS else reference.replace(" ", "_")
        raise UserError(f"the concept {concept.name!r} has no {reference}; give it as {key}")
    return text


def say(prompt: str, names: Sequence[str]) -> str:
    """A prompt with its names: ``{0}`` and ``{1}`` are one each, ``{}`` is all of them, joined by "and"."""
    prompt = prompt.replace("{}", " and ".join(filter(None, names)))
    for number, name in enumerate(names):
        prompt = prompt.replace(f"{{{number}}}", name)
    return prompt if all(names) else " ".join(prompt.split())


@dataclass(frozen=True, eq=False)
class Start:
    """What pictures start from: noise alone, a picture, or the noise behind one; ``edit`` is for recipes."""

    source: Source | None = None
    x_T: Tensor | None = None
    edit: Edit | None = None


def start(
    model: LatentDiffusion,
    draw: DrawConfig,
    concept: GridConcept,
    folder: Path,
    names: Sequence[str],
    sampling: Sampling,
    words: Sequence[Embedding] = (),
) -> Start:
    """What the pictures of a cell start from.

    Args:
        folder: of the cell's pictures; a box is written there as a mask.
        names: what ``{}`` of ``invert`` stands for.

    Raises:
        UserError: a picture that cannot be read, or a sampler that cannot be inverted.
    """
    if draw.image is None:
        return Start()
    from ldm.sampling.editing import edit_of
    from ldm.sampling.source import find_noise, load_source

    image = draw.picture(concept)
    mask = found(draw.mask) if draw.mask else _box(draw.box, folder / "mask.png") if draw.box else None
    strength = 1.0 if draw.invert else draw.strength
    source = load_source(model, image, mask=mask, strength=strength)
    if draw.invert is None:
        return Start(source, None, edit_of(source, image, mask, learned=words))
    if sampling.sampler != "ddim":
        raise UserError(f"invert is of the sampler ddim; score.sampler is {sampling.sampler}")
    told = say(draw.invert, names)
    x_T = find_noise(model, source, told, steps=sampling.steps, scale=sampling.scale)
    return Start(None, x_T, edit_of(source, image, invert=told, learned=words))


def _box(box: Sequence[float], path: Path) -> Path:
    """A rectangle as a mask: white inside, 256 pixels a side."""
    from PIL import Image, ImageDraw

    from ldm.io.atomic import atomic_write

    mask = Image.new("L", (256, 256), 0)
    left, top, right, bottom = (round(share * 256) for share in box)
    ImageDraw.Draw(mask).rectangle((left, top, right - 1, bottom - 1), fill=255)
    with atomic_write(path) as temporary:
        mask.save(temporary, format="PNG")
    return path


def training_pictures(concepts: Sequence[GridConcept]) -> list[Path]:
    """What ``reference: images`` takes as samples; of several concepts in turn."""
    own = [concept.pictures() for concept in concepts]
    return [pictures[i] for i in range(max(map(len, own))) for pictures in own if i < len(pictures)]
