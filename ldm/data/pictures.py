"""Sources of captioned pictures for pretraining: the emoji composer, or a folder of one's own."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.seeding import generator


class Pictures(NamedTuple):
    """A batch: images (n, 3, S, S) in [-1, 1] and one caption each."""

    images: Tensor
    captions: list[str]


class PictureSource(Protocol):
    """Anything that draws batches as a pure function of (step, seed)."""

    def batch(self, step: int, n: int, seed: int) -> Pictures: ...


class EmojiPictures:
    """Composed emoji: sprites on colours, gradients and scenes, captioned compositionally.

    Args:
        root: folder that ``ldm train data`` prepared.
        groups: emoji groups to draw from (``None``: all).
        holdout: file of hex codes never drawn (``None``: nothing is held out).
        image_size: pixels a side.
    """

    def __init__(
        self,
        root: str,
        groups: list[str] | None = None,
        holdout: str | None = None,
        image_size: int = 64,
    ) -> None:
        from ldm.data.emoji import EmojiSprites, load_holdout
        from ldm.data.emoji_compose import Composer

        exclude = load_holdout(Path(holdout)) if holdout else frozenset()
        self.composer = Composer(EmojiSprites.load(Path(root), groups, exclude), image_size)

    def batch(self, step: int, n: int, seed: int) -> Pictures:
        drawn = self.composer.batch(n, generator(seed, "pictures", step))
        return Pictures(drawn.images, drawn.captions)


class FolderPictures:
    """Pictures of a folder with ``name.txt`` captions beside them; mirrored half of the time.

    Raises:
        UserError: no pictures, or a picture without its caption.
    """

    def __init__(self, root: str, image_size: int = 64, flip_p: float = 0.5) -> None:
        from ldm.data.concept import load_concept

        concept = load_concept(Path(root), image_size)
        self.images, self.flip_p = concept.images, flip_p
        self.captions: list[str] = []
        for path in concept.paths:
            caption = path.with_suffix(".txt")
            if not caption.is_file():
                raise UserError(f"{path.name} has no caption; write one into {caption.name}")
            self.captions.append(" ".join(caption.read_text().split()))

    def batch(self, step: int, n: int, seed: int) -> Pictures:
        rng = generator(seed, "pictures", step)
        chosen = torch.randint(len(self.images), (n,), generator=rng)
        images = self.images[chosen]
        flip = torch.rand(n, generator=rng) < self.flip_p
        images = torch.where(flip[:, None, None, None], images.flip(-1), images)
        return Pictures(images, [self.captions[i] for i in chosen.tolist()])
