"""Sources of captioned pictures for pretraining: the emoji composer, or a folder of one's own."""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldm.paths import expanded
from ldm.seeding import generator

#: in a caption, stands for the name of a thing that only its portraits tell
#: (``ldm.pretraining.portrait_words``)
UNNAMED = "<this>"


class Pictures(NamedTuple):
    """A batch: images (n, 3, S, S) in [-1, 1], one caption each, and which thing each one shows.

    ``subjects`` (n,) int64: the same number is the same thing, drawn in the same style.
    """

    images: Tensor
    captions: list[str]
    subjects: Tensor


class PictureSource(Protocol):
    """Anything that draws batches as a pure function of (step, seed).

    Attributes:
        shares: (M,) float32, how often each of M things is drawn; only the ratios count.
    """

    shares: Tensor

    def batch(self, step: int, n: int, seed: int) -> Pictures: ...

    def portraits(self, n: int) -> Iterator[Tensor]:
        """Of every thing, in the order of ``Pictures.subjects``, two plain pictures, n things at a time.

        Yields (up to n, 2, 3, S, S) in [-1, 1]. Where the background is known, the thing is alone and
        upright, once on black and once on white, so that the two also tell its outline.
        """
        ...


class FolderPictures:
    """Pictures of a folder with captions beside them (``caption_files``); mirrored half of the time.

    Raises:
        UserError: no pictures, or a picture without its caption.
    """

    def __init__(self, root: str, image_size: int = 64, flip_p: float = 0.5) -> None:
        from ldm.inversion.captions import caption_of
        from ldm.inversion.concept import concept_of
        from ldm.io.beside import caption_files
        from ldm.io.files import read_text
        from ldm.io.pictures import list_pictures

        concept = concept_of(list_pictures(expanded(root)), image_size)
        self.images, self.flip_p = concept.images, flip_p
        self.shares = torch.ones(len(self.images))
        files = caption_files(concept.paths)
        texts = [read_text(caption_of(path, files), "caption") for path in concept.paths]
        self.captions = [" ".join(text.split()) for text in texts]

    def batch(self, step: int, n: int, seed: int) -> Pictures:
        rng = generator(seed, "pictures", step)
        chosen = torch.randint(len(self.images), (n,), generator=rng)
        images = self.images[chosen]
        flip = torch.rand(n, generator=rng) < self.flip_p
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        return Pictures(images, [self.captions[i] for i in chosen.tolist()], chosen)

    def portraits(self, n: int) -> Iterator[Tensor]:
        for images in self.images.split(n):
            yield images[:, None].expand(-1, 2, -1, -1, -1)
