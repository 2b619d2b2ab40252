"""A user's concept: the few pictures that show what a new word shall mean."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from ldm.io import in_memory
from ldm.io.atomic import file_sha256
from ldm.io.pictures import AS_USUAL, Framing, load_pictures


@dataclass(frozen=True, eq=False)
class Concept:
    """images: (N, 3, S, S) float32 in [-1, 1]; paths and sha256 of the files, in the same order."""

    images: Tensor
    paths: tuple[Path, ...]
    hashes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_hashes(self) -> dict[str, str]:
        """File name -> sha256 hex, for a run's manifest."""
        return {path.name: digest for path, digest in zip(self.paths, self.hashes, strict=True)}


def concept_of(images: in_memory.Pictures, size: int, framing: Framing = AS_USUAL) -> Concept:
    """A concept of pictures as they are given in Python: a folder, files, PIL pictures, arrays or tensors.

    Args:
        images: see ``ldm.io.pictures.load_pictures``, whose errors are raised here.
        size: side S in pixels.
        framing: how the pictures are found and made squares of.
    """
    found, paths = load_pictures(images, size, framing)
    return Concept(found, paths, tuple(file_sha256(path) for path in paths))
