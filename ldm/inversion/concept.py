"""A user's concept: the few pictures that show what a new word shall mean."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from torch import Tensor

from ldm.io import in_memory
from ldm.io.atomic import file_sha256
from ldm.io.masks import load_masks
from ldm.io.pictures import AS_USUAL, Framing, listed_pictures, load_pictures


@dataclass(frozen=True, eq=False)
class Concept:
    """A concept's N pictures, and where in them it is.

    Attributes:
        images: (N, 3, S, S) float32 in [-1, 1].
        paths: The files, in the same order.
        hashes: Their sha256.
        masks: (N, 1, S, S) float32 in [0, 1], 1 where the concept is; ``None`` where no picture has a mask.
        word_masks: (N, W, S, S) float32 in [0, 1], 1 where each of its W words is, zeros where a picture has
            no mask of a word; ``None`` where none has one of any.
        mask_hashes: Name of a mask file -> its sha256.
    """

    images: Tensor
    paths: tuple[Path, ...]
    hashes: tuple[str, ...]
    masks: Tensor | None = None
    word_masks: Tensor | None = None
    mask_hashes: Mapping[str, str] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_hashes(self) -> dict[str, str]:
        """File name -> sha256 hex, for a run's manifest."""
        return {path.name: digest for path, digest in zip(self.paths, self.hashes, strict=True)}

    def masks_of(self, picture: int) -> dict[str, Tensor]:
        """The masks (1, S, S) of a picture that has any, by numbers for file names: "" or "_0", "_1" ..."""
        found = {}
        if self.word_masks is not None:
            own = enumerate(self.word_masks[picture])
            found = {f"_{number}": mask[None] for number, mask in own if mask.any()}
        return found if found or self.masks is None else {"": self.masks[picture]}


def concept_of(
    images: in_memory.Pictures, size: int, framing: Framing = AS_USUAL, words: Sequence[str] = ()
) -> Concept:
    """A concept of pictures as they are given in Python: a folder, files, PIL pictures, arrays or tensors.

    Args:
        images: see ``ldm.io.pictures.listed_pictures``, whose errors are raised here.
        size: side S in pixels.
        framing: how the pictures are found and made squares of, and where their masks are.
        words: the placeholders that masks may be of.
    """
    listed = listed_pictures(images, framing)
    paths = tuple(item for item in listed if isinstance(item, Path))
    masks = load_masks(listed, size, framing, words)
    return Concept(
        load_pictures(listed, size, replace(framing, first=None)),
        paths,
        tuple(file_sha256(path) for path in paths),
        masks.whole,
        masks.of_words,
        {path.name: file_sha256(path) for path in masks.files},
    )
