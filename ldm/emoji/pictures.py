"""The emoji composer as a source of captioned pictures for pretraining."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.paths import expanded
from ldm.pretraining.sources import UNNAMED, Pictures
from ldm.seeding import generator


class EmojiPictures:
    """Composed emoji: sprites on colours, gradients and scenes, captioned compositionally.

    Args:
        root: folder that ``ldm train data`` prepared.
        groups: emoji groups to draw from (``None``: all).
        holdout: file of hex codes never drawn (``None``: nothing is held out).
        image_size: pixels a side.
        unnamed: share of captions without the thing's name, for ``picture_word`` in training.
        fantasies: draw this many things that do not exist in place of the emoji; none has a name.
        warp: how much these are bent (``emoji_fantasy.imagine``).
        sets: names of ``ldm.emoji.sets.SETS`` whose drawings are used, all that each has, or ``"all"``
            (``None``: one drawing a thing and style of the three main sets).
        balance: with ``sets``, how alike often things are drawn (``emoji_compose.DrawingComposer``).
    """

    def __init__(
        self,
        root: str,
        groups: list[str] | None = None,
        holdout: str | None = None,
        image_size: int = 64,
        unnamed: float = 0.0,
        fantasies: int = 0,
        warp: float = 0.0,
        sets: list[str] | str | None = None,
        balance: float = 0.5,
    ) -> None:
        from ldm.emoji.compose import Composer, DrawingComposer
        from ldm.emoji.drawings import EmojiDrawings
        from ldm.emoji.fantasies import imagine, imagine_drawings
        from ldm.emoji.sets import VENDORS
        from ldm.emoji.sprites import EmojiSprites, load_holdout

        exclude = load_holdout(Path(holdout)) if holdout else frozenset()
        rng = generator(0, "fantasies")
        self.composer: Composer
        if sets is None:
            sprites = EmojiSprites.load(expanded(root), groups, exclude)
            if fantasies:
                sprites = imagine(sprites, fantasies, UNNAMED, rng, warp)
            self.composer = Composer(sprites, image_size, unnamed=unnamed)
            self.drawings = sprites.sprites.flatten(0, 1)
        else:
            names = [sets] if isinstance(sets, str) and sets != "all" else sets
            drawings = EmojiDrawings.load(expanded(root), groups, exclude, None if names == "all" else names)
            if kept_for_tests := set(drawings.styles) & set(VENDORS):
                raise UserError(f"{min(kept_for_tests)} is a set to test with, never to train with")
            if fantasies:
                drawings = imagine_drawings(drawings, fantasies, UNNAMED, rng, warp)
            self.composer = DrawingComposer(drawings, image_size, unnamed=unnamed, balance=balance)
            self.drawings = drawings.sprites
        self.shares = torch.ones(len(self.drawings))

    def batch(self, step: int, n: int, seed: int) -> Pictures:
        drawn = self.composer.batch(n, generator(seed, "pictures", step))
        return Pictures(drawn.images, drawn.captions, drawn.drawings)

    def portraits(self, n: int) -> Iterator[Tensor]:
        from ldm.emoji.compose import portraits

        for sprites in self.drawings.split(n):
            yield portraits(sprites, self.composer.image_size)
