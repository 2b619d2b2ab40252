"""What a grid's ``concepts:`` name: folders of pictures, held-out emoji, and the subjects of DreamBench.

::

    concepts:
      koala: pictures/koala                                   # a folder; it is the reference too
      owl: {images: pictures/owl, init: bird, class: bird, references: pictures/owl-more}
      emoji: {holdout: configs/emoji/holdout.txt, n: 3, seed: 0}      # many concepts
      fruit: {emoji: [red apple, banana, grapes], init: fruit}        # one concept of several emoji
      koala and owl: {together: [koala, owl]}                         # learned apart, drawn together
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ldm.config import resolve
from ldm.errors import UserError
from ldm.evaluation.scorers import HELD_OUT, TRAINING
from ldm.io.atomic import file_sha256
from ldm.io.beside import caption_files, masks_of
from ldm.io.pictures import list_pictures
from ldm.io.runs import slug
from ldm.ranges import Positive


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
        short_caption, long_caption: what a person would write who sees the pictures, if known.
        members: names of the two concepts that this one is, drawn together; its pictures are the first one's.
    """

    name: str
    images: Path
    references: tuple[Path, ...]
    kind: str
    init: str | None = None
    class_word: str | None = None
    prompts: tuple[str, ...] | None = None
    train_pictures: int | None = None
    short_caption: str | None = None
    long_caption: str | None = None
    members: tuple[str, ...] = ()

    @property
    def settings(self) -> dict[str, Any]:
        """Settings of an inversion that are the concept's, which base and setups win over."""
        own = {"init": self.init, "train_pictures": self.train_pictures}
        return {key: value for key, value in own.items() if value is not None}

    @property
    def word(self) -> str:
        """The placeholder that stands for it in every cell, so that batches and noise are the same."""
        return f"<{slug(self.name).lower()}>"

    def pictures(self) -> list[Path]:
        """The files that are learned from, by name."""
        return list_pictures(self.images)[: self.train_pictures]

    def hashes(self) -> list[str]:
        """Of what is learned from: names and sha256 of pictures, their captions and their masks."""
        pictures = self.pictures()
        files = sorted({*pictures, *caption_files(pictures).values(), *masks_of(pictures)})
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
        short_caption, long_caption: what a person would write who sees the pictures; references of a setup
            that learns nothing.
    """

    images: Path
    references: Path | None = None
    train_pictures: Positive | None = None
    init: str | None = None
    class_word: str | None = None
    short_caption: str | None = None
    long_caption: str | None = None


@dataclass(frozen=True)
class TogetherConfig:
    """Two concepts whose words are learned apart and stand in one prompt (``score.together``).

    Attributes:
        together: names of two other concepts of the grid.
    """

    together: tuple[str, ...]


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
    from ldm.experiments.emoji_concepts import EmojiConfig, EmojiSetConfig, emoji_set, held_out

    found: list[GridConcept] = []
    for name, given in concepts.items():
        where = f"grid.concepts.{name}."
        if isinstance(given, Mapping) and "together" in given:
            continue  # it needs the others
        if name == "emoji" and isinstance(given, Mapping | None):
            config = resolve(EmojiConfig, given, where)
            found += held_out(config, out / "concepts", image_size)
        elif isinstance(given, Mapping) and "emoji" in given:
            wanted = resolve(EmojiSetConfig, _with_class(given), where)
            found.append(emoji_set(name, wanted, out / "concepts", image_size))
        elif name == "dreambench" and isinstance(given, Mapping | None):
            found += _dreambench(resolve(DreamBenchConfig, given, "grid.concepts.dreambench."))
        else:
            found.append(_folder(name, given))
    for name, given in concepts.items():
        if isinstance(given, Mapping) and "together" in given:
            found.append(_together(name, resolve(TogetherConfig, given, f"grid.concepts.{name}."), found))
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
    config = resolve(FolderConfig, _with_class(given), f"grid.concepts.{name}.")
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
        name,
        config.images,
        tuple(references),
        kind,
        config.init,
        config.class_word or config.init,
        train_pictures=k,
        short_caption=config.short_caption,
        long_caption=config.long_caption,
    )


def _with_class(given: Mapping[str, Any]) -> dict[str, Any]:
    """``class`` by its name in Python."""
    return {("class_word" if key == "class" else key): value for key, value in given.items()}


def _together(name: str, config: TogetherConfig, known: Sequence[GridConcept]) -> GridConcept:
    by_name = {concept.name: concept for concept in known if not concept.members}
    for member in config.together:
        if member not in by_name:
            raise UserError(f"the concept {name!r} is of {member!r}, which is none of {', '.join(by_name)}")
    if len(set(config.together)) != 2:
        raise UserError(f"the concept {name!r} is of {list(config.together)}; give two others by name")
    members = [by_name[member] for member in config.together]
    references = tuple(path for member in members for path in member.references)
    return GridConcept(name, members[0].images, references, members[0].kind, members=config.together)


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
    prompts, members = values["prompts"], tuple(values["members"])
    own = {"prompts": None if prompts is None else tuple(prompts), "members": members}
    return GridConcept(**{**values, **paths, **own})


def as_plain(concept: GridConcept) -> dict[str, Any]:
    """For JSON."""
    return {
        **vars(concept),
        "images": str(concept.images),
        "references": [str(path) for path in concept.references],
        "prompts": None if concept.prompts is None else list(concept.prompts),
        "members": list(concept.members),
    }
