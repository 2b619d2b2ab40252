"""What a grid's ``concepts:`` name: folders of pictures, held-out emoji, and the subjects of DreamBench.

::

    concepts:
      koala: pictures/koala                                   # a folder; it is the reference too
      owl: {images: pictures/owl, init: bird, class: bird, references: pictures/owl-more}
      emoji: {holdout: configs/emoji/holdout.txt, n: 3, seed: 0}
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm.config import resolve
from ldm.errors import UserError
from ldm.evaluation.scorers import HELD_OUT, TRAINING
from ldm.io.atomic import file_sha256
from ldm.io.images import save_png
from ldm.io.pictures import caption_files, list_pictures
from ldm.io.runs import slug
from ldm.paths import found as found_path
from ldm.ranges import Count, Positive, Seed


@dataclass(frozen=True)
class GridConcept:
    """One concept of a grid.

    Attributes:
        name: in tables.
        images: the folder that is learned from.
        references: the pictures that samples are compared with.
        kind: which these are, ``held out`` or ``training pictures``.
        init: the phrase that words start from, if the setup gives none.
        class_word: what the thing is; CLIP-T's text has it in place of the word.
        prompts: edits of its data set; ``None``: it has none of its own.
        train_pictures: how many of the folder's pictures are learned from, the first by name; ``None``: all.
    """

    name: str
    images: Path
    references: tuple[Path, ...]
    kind: str
    init: str | None = None
    class_word: str | None = None
    prompts: tuple[str, ...] | None = None
    train_pictures: int | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of an inversion that are the concept's, which base and setups win over."""
        own = {"init": self.init, "train_pictures": self.train_pictures}
        return {key: value for key, value in own.items() if value is not None}

    @property
    def word(self) -> str:
        """The placeholder that stands for it in every cell, so that batches and noise are the same."""
        return f"<{slug(self.name).lower()}>"

    def hashes(self) -> list[str]:
        """Of what is learned from: names and sha256 of pictures and their captions."""
        pictures = list_pictures(self.images)[: self.train_pictures]
        files = sorted({*pictures, *caption_files(pictures).values()})
        return [f"{path.name} {file_sha256(path)}" for path in files]

    def reference_hashes(self) -> list[str]:
        """sha256 of the references."""
        return [file_sha256(path) for path in self.references]


@dataclass(frozen=True)
class FolderConfig:
    """A concept of the user's own.

    Attributes:
        images: its folder of pictures.
        references: a folder of pictures that are not learned from,
        train_pictures: or learn from the first so many of ``images``, the rest being references.
        init: the phrase that words start from.
        class_word: ``class`` in the YAML: what the thing is, for texts; ``init`` if not given.
    """

    images: Path
    references: Path | None = None
    train_pictures: Positive | None = None
    init: str | None = None
    class_word: str | None = None


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
class DreamBenchConfig:
    """The subjects of a folder that ``ldm data dreambench`` wrote, or of its shape.

    Attributes:
        root: the folder.
        only: names of subjects; empty: all.
        train_pictures: how many of each are learned from, the rest being references; ``None``: all are both.
        init: what words start from: the class word, or nothing.
        with_class: put the class word after the word in prompts, as DreamBooth does.
    """

    root: Path = Path("data/dreambench")
    only: tuple[str, ...] = ()
    train_pictures: Positive | None = None
    init: Literal["class", "mean"] = "class"
    with_class: bool = False


def collect(concepts: Mapping[str, Any], out: Path, image_size: int) -> list[GridConcept]:
    """The concepts of a grid, in its order.

    Args:
        concepts: as the YAML has them.
        out: the experiment's folder; pictures that are made go to ``out/concepts``.
        image_size: pixels a side of those.

    Raises:
        UserError: a folder or a key is wrong, or two concepts have one name.
    """
    found: list[GridConcept] = []
    for name, given in concepts.items():
        if name == "emoji" and isinstance(given, Mapping | None):
            config = resolve(EmojiConfig, given, "grid.concepts.emoji.")
            found += _emoji(config, out / "concepts", image_size)
        elif name == "dreambench" and isinstance(given, Mapping | None):
            found += _dreambench(resolve(DreamBenchConfig, given, "grid.concepts.dreambench."))
        else:
            found.append(_folder(name, given))
    words: dict[str, str] = {}
    for concept in found:
        if concept.word in words:
            raise UserError(
                f"the concepts {words[concept.word]!r} and {concept.name!r} have one name but for signs and "
                "case; give another one"
            )
        words[concept.word] = concept.name
    return found


def _folder(name: str, given: Any) -> GridConcept:
    if isinstance(given, str | Path):
        given = {"images": str(given)}
    if not isinstance(given, Mapping):
        raise UserError(f"the concept {name!r} is {given!r}; give a folder, or a mapping with images")
    values = {("class_word" if key == "class" else key): value for key, value in given.items()}
    config = resolve(FolderConfig, values, f"grid.concepts.{name}.")
    pictures, k = list_pictures(config.images), config.train_pictures
    references, kind = pictures, TRAINING
    if config.references is not None:
        references, kind = list_pictures(config.references), HELD_OUT
    elif k is not None:
        references, kind = pictures[k:], HELD_OUT
    if not references:
        raise UserError(
            f"the concept {name!r} has {len(pictures)} pictures: train_pictures must leave references"
        )
    return GridConcept(
        name, config.images, tuple(references), kind, config.init, config.class_word or config.init, None, k
    )


def _emoji(config: EmojiConfig, folder: Path, image_size: int) -> list[GridConcept]:
    from ldm.emoji.captions import COARSE, STYLES
    from ldm.emoji.compose import concept_pictures
    from ldm.emoji.heldout import choose_concepts
    from ldm.emoji.sprites import EmojiSprites, load_holdout
    from ldm.evaluation.clip_judge import load_clip

    if not found_path(config.holdout).is_file():
        raise UserError(
            f"there is no file {config.holdout}; give grid.concepts.emoji.holdout the held-out hex codes"
        )
    sprites, holdout = EmojiSprites.load(config.data), load_holdout(config.holdout)
    judged = {known.hex for known in load_clip(config.judge).concepts}
    found = []
    for i, concept in enumerate(choose_concepts(sprites, holdout, judged, config.n, config.seed)):
        style = STYLES[i % len(STYLES)]

        def pictures(kind: str, n: int, seed: int, code: str = concept.hex, style: str = style) -> Path:
            place = folder / code / f"{kind}-{n}-{seed}-{style}-{image_size}"
            if len(list(place.glob("*.png"))) != n:
                drawn = concept_pictures(sprites, code, n, style, seed=seed, image_size=image_size)
                for j, image in enumerate(drawn):
                    save_png(image, place / f"{j:02d}.png")
            return place

        training = pictures("training", config.pictures, config.seed)
        held_out = pictures("references", config.references, config.seed + 1) if config.references else None
        coarse = COARSE.get(concept.subgroup, "object")
        references = tuple(list_pictures(held_out or training))
        found.append(
            GridConcept(
                concept.label, training, references, HELD_OUT if held_out else TRAINING, coarse, concept.label
            )
        )
    return found


def _dreambench(config: DreamBenchConfig) -> list[GridConcept]:
    from ldm.evaluation.dreambench import read_dreambench

    subjects = read_dreambench(config.root)
    names = [subject.name for subject in subjects]
    for name in config.only:
        if name not in names:
            raise UserError(f"DreamBench has no subject {name!r}; it has {', '.join(names)}")
    found = []
    for subject in subjects:
        if not config.only or subject.name in config.only:
            _, references, kind = subject.split(config.train_pictures)
            found.append(
                GridConcept(
                    subject.name,
                    config.root / subject.name,
                    references,
                    kind,
                    subject.class_word if config.init == "class" else None,
                    subject.class_word,
                    subject.prompts(config.with_class),
                    config.train_pictures,
                )
            )
    return found


def from_plain(values: Mapping[str, Any]) -> GridConcept:
    """What :func:`as_plain` gave."""
    paths = {"images": Path(values["images"]), "references": tuple(map(Path, values["references"]))}
    prompts = values["prompts"]
    return GridConcept(**{**values, **paths, "prompts": None if prompts is None else tuple(prompts)})


def as_plain(concept: GridConcept) -> dict[str, Any]:
    """For JSON."""
    return {
        **vars(concept),
        "images": str(concept.images),
        "references": [str(path) for path in concept.references],
        "prompts": None if concept.prompts is None else list(concept.prompts),
    }
