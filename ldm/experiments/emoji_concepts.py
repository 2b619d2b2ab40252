"""Concepts of a grid that are drawn by program: held-out emoji, and sets of emoji that a YAML names."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from ldm.errors import UserError
from ldm.evaluation.scorers import HELD_OUT, TRAINING
from ldm.experiments.concepts import GridConcept
from ldm.io.images import save_png
from ldm.io.pictures import list_pictures
from ldm.io.runs import slug
from ldm.paths import found as found_path
from ldm.ranges import Count, Positive, Seed

if TYPE_CHECKING:
    from ldm.emoji.sprites import EmojiSprites

Style = Literal["noto", "twemoji", "fluent"]


@dataclass(frozen=True)
class EmojiConfig:
    """Held-out concepts of the emoji bench, as ``ldm evaluate inversion`` chooses and draws them.

    Attributes:
        holdout: file of hex codes that the model never saw.
        data: folder that ``ldm train data`` wrote.
        n, seed: how many, and which.
        pictures: of each, that are learned from.
        references: further ones, drawn with other colours and places; 0: the pictures that are learned from.
        judge: the scorer whose concepts are chosen among.
    """

    holdout: Path = Path("configs/emoji/holdout.txt")
    data: Path = Path("data/emoji")
    n: Positive = 20
    seed: Seed = 0
    pictures: Positive = 5
    references: Count = 0
    judge: str = "emoji-clip"


@dataclass(frozen=True)
class EmojiSetConfig:
    """A concept whose pictures show several emoji: a style, or a class with all its kinds.

    Attributes:
        emoji: hex codes or names of those that are learned from.
        references: of others, which samples are compared with; empty: further pictures of the same ones.
        style: the one in which all are drawn; ``None``: all styles in turn.
        pictures: of each emoji.
        init: the phrase that words start from.
        class_word: ``class`` in the YAML: what the thing is called; ``init`` if not given.
        data: folder that ``ldm train data`` wrote.
        seed: of colours and places.
    """

    emoji: tuple[str, ...]
    references: tuple[str, ...] = ()
    style: Style | None = None
    pictures: Positive = 1
    init: str | None = None
    class_word: str | None = None
    data: Path = Path("data/emoji")
    seed: Seed = 0


def held_out(config: EmojiConfig, folder: Path, image_size: int) -> list[GridConcept]:
    """The concepts of ``emoji:``; their pictures are drawn into ``folder``.

    Raises:
        UserError: the drawings or the list of codes are missing.
    """
    from ldm.emoji.captions import COARSE, STYLES
    from ldm.emoji.described import long_caption, short_caption
    from ldm.emoji.heldout import choose_concepts
    from ldm.emoji.sprites import load_holdout
    from ldm.evaluation.clip_judge import load_clip

    if not found_path(config.holdout).is_file():
        raise UserError(
            f"there is no file {config.holdout}; give grid.concepts.emoji.holdout the held-out hex codes"
        )
    sprites, holdout = _sprites(config.data), load_holdout(config.holdout)
    judged = {known.hex for known in load_clip(config.judge).concepts}
    found = []
    for i, concept in enumerate(choose_concepts(sprites, holdout, judged, config.n, config.seed)):
        style = STYLES[i % len(STYLES)]

        def pictures(kind: str, n: int, seed: int, code: str = concept.hex, style: str = style) -> Path:
            place = folder / code / f"{kind}-{n}-{seed}-{style}-{image_size}"
            return _drawn(sprites, [(code, style, seed)], n, place, image_size)

        training = pictures("training", config.pictures, config.seed)
        other = pictures("references", config.references, config.seed + 1) if config.references else None
        sprite = sprites.sprites[sprites.index(concept.hex), STYLES.index(style)]
        found.append(
            GridConcept(
                concept.label,
                training,
                tuple(list_pictures(other or training)),
                HELD_OUT if other else TRAINING,
                COARSE.get(concept.subgroup, "object"),
                concept.label,
                short_caption=short_caption(concept),
                long_caption=long_caption(concept, style, sprite),
            )
        )
    return found


def emoji_set(name: str, config: EmojiSetConfig, folder: Path, image_size: int) -> GridConcept:
    """A concept of several emoji; its pictures are drawn into ``folder``.

    Raises:
        UserError: the drawings are missing, or there is no such emoji.
    """
    from ldm.emoji.captions import STYLES

    if not config.emoji:
        raise UserError(f"the concept {name!r} names no emoji; give hex codes or names")
    sprites = _sprites(config.data)

    def pictures(kind: str, codes: tuple[str, ...], seed: int) -> Path:
        styles = [config.style or STYLES[i % len(STYLES)] for i in range(len(codes))]
        wanted = [(code, style, seed + i) for i, (code, style) in enumerate(zip(codes, styles, strict=True))]
        what = "-".join(sprites.concepts[sprites.index(code)].hex for code in codes)
        place = folder / slug(name) / f"{kind}-{slug(what, 80)}-{config.style}-{config.pictures}-{seed}"
        return _drawn(sprites, wanted, config.pictures, place / str(image_size), image_size)

    other = pictures("references", config.references or config.emoji, config.seed + len(config.emoji))
    return GridConcept(
        name,
        pictures("training", config.emoji, config.seed),
        tuple(list_pictures(other)),
        HELD_OUT,
        config.init,
        config.class_word or config.init,
    )


def _drawn(
    sprites: EmojiSprites, wanted: list[tuple[str, str, int]], each: int, place: Path, image_size: int
) -> Path:
    """A folder with ``each`` pictures of every (emoji, style, seed), drawn unless they are there."""
    from ldm.emoji.compose import concept_pictures

    if len(list(place.glob("*.png"))) != each * len(wanted):
        for i, (code, style, seed) in enumerate(wanted):
            drawn = concept_pictures(sprites, code, each, style, seed=seed, image_size=image_size)
            for j, image in enumerate(drawn):
                save_png(image, place / f"{i * each + j:02d}.png")
    return place


def _sprites(data: Path) -> EmojiSprites:
    """The drawings, which ``ldm train data`` makes.

    Raises:
        UserError: they are not there.
    """
    from ldm.emoji.sprites import EmojiSprites

    if not (found_path(data) / "sprites.npz").is_file():
        raise UserError(
            f"{data} holds no emoji drawings: make them by ldm train data --out {data}, which fetches them "
            "once, or give the folder where they are as data"
        )
    return EmojiSprites.load(data)
