"""Training pictures of the shipped model: emoji sprites on named backgrounds, with captions.

:class:`Composer` draws whole batches with one affine warp of premultiplied RGBA sprites and one
"over" (Porter and Duff 1984: ``out = object + (1 - alpha) * background``).  All randomness comes
from the ``torch.Generator`` that is passed in, which lives on the CPU on any device, so a seed
names the same batch everywhere.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.emoji.captions import STYLES, Background, Captioner
from ldm.emoji.drawings import EmojiDrawings
from ldm.emoji.scenes import SCENES, scene_bank
from ldm.emoji.sets import SETS, VENDORS
from ldm.emoji.sprites import Concept, EmojiSprites
from ldm.errors import UserError
from ldm.evaluation.colours import COLOUR_NAMES, COLOURS
from ldm.pretraining.sources import UNNAMED

JITTER = 10.0  # per channel, of 255
KINDS = ("solid", "gradient", "scene")
KIND_SHARES = (0.70, 0.15, 0.15)


@dataclass(frozen=True)
class EmojiBatch:
    """``images`` (n, 3, S, S) float32 in [-1, 1]; ``background``: the colour's name where solid,
    else None; ``concepts`` and ``styles`` (n,) int64 indices (of the sprites' concepts and of STYLES or
    the drawings' styles); ``drawings`` (n,) int64: the same number is the same drawing."""

    images: Tensor
    captions: list[str]
    background: list[str | None]
    concepts: Tensor
    styles: Tensor
    drawings: Tensor


def _table(device: torch.device) -> Tensor:
    return torch.tensor(list(COLOURS.values()), dtype=torch.float32, device=device) / 255


def warp(sprites: Tensor, scale: Tensor, angle: Tensor, centre: Tensor, size: int) -> Tensor:
    """Place sprites on an empty canvas.

    sprites (n, 64, 64, 4) uint8 premultiplied; scale (n,) side of the sprite as a part of the
    canvas; angle (n,) degrees, counter-clockwise; centre (n, 2) x, y in [-1, 1], y down.
    Returns (n, 4, size, size) float32 premultiplied in [0, 1].
    """
    n = sprites.shape[0]
    radians = angle * (math.pi / 180)
    cos, sin = radians.cos() / scale, radians.sin() / scale
    # affine_grid wants the inverse map, canvas -> sprite: R(-angle) (p - centre) / scale.
    linear = torch.stack([cos, -sin, sin, cos], dim=1).view(n, 2, 2)
    theta = torch.cat([linear, -linear @ centre[:, :, None]], dim=2)
    grid = F.affine_grid(theta, [n, 4, size, size], align_corners=False)
    rgba = sprites.permute(0, 3, 1, 2).float().div_(255)
    return F.grid_sample(rgba, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def over(rgba: Tensor, background: Tensor) -> Tensor:
    """(n, 4, S, S) premultiplied over (n, 3, S, S), both in [0, 1] -> images in [-1, 1]."""
    picture = torch.addcmul(rgba[:, :3], 1 - rgba[:, 3:], background)
    return picture.clamp_(0, 1).mul_(2).sub_(1)


def gradients(first: Tensor, second: Tensor, turn: Tensor, size: int) -> Tensor:
    """Linear gradients (n, 3, size, size) from ``first`` (n, 3), at the top or the left, to
    ``second``; ``turn`` (n,) in [0, 1] goes from left-right to top-down."""
    axis = torch.linspace(0, 1, size, device=first.device)
    dx, dy = (turn * (math.pi / 2)).cos(), (turn * (math.pi / 2)).sin()
    ramp = dx[:, None, None] * axis[None, None, :] + dy[:, None, None] * axis[None, :, None]
    ramp = (ramp / (dx + dy)[:, None, None])[:, None]  # (n, 1, S, S) in [0, 1]
    return torch.lerp(first[:, :, None, None], second[:, :, None, None], ramp)


def _stretch(u: Tensor, low: float, high: float) -> Tensor:
    return low + (high - low) * u


class Composer:
    """Endless captioned pictures of ``sprites``; see :meth:`batch`.

    ``image_size``: pixels a side; ``device``: where pictures are drawn and returned (the random
    numbers stay on the CPU); ``styles``: which of :data:`STYLES` to draw; ``unnamed``: share of
    captions that call the thing :data:`UNNAMED` and not by its name.
    """

    def __init__(
        self,
        sprites: EmojiSprites,
        image_size: int = 64,
        device: torch.device | str = "cpu",
        styles: Sequence[str] = STYLES,
        unnamed: float = 0.0,
    ) -> None:
        if unknown := set(styles) - set(STYLES):
            raise UserError(f"unknown emoji style {min(unknown)}: use {', '.join(STYLES)}")
        self.sprites = sprites
        self.image_size, self.unnamed = image_size, unnamed
        self.device = torch.device(device)
        self.style_ids = torch.tensor([STYLES.index(s) for s in styles])
        self.captioner = Captioner(*_words(sprites.concepts), sprites.reserved)
        self._pixels = sprites.sprites.flatten(0, 1).to(self.device)
        self._bank = scene_bank(image_size).to(self.device)  # (scenes, variants, 3, S, S) uint8
        self._colours = _table(self.device)

    def batch(self, n: int, generator: torch.Generator) -> EmojiBatch:
        """Draw ``n`` pictures; the (CPU) generator alone decides which."""
        concepts = torch.randint(len(self.sprites), (n,), generator=generator)
        styles = self.style_ids[torch.randint(len(self.style_ids), (n,), generator=generator)]
        return self.draw(concepts, styles, generator)

    def draw(self, concepts: Tensor, styles: Tensor, generator: torch.Generator) -> EmojiBatch:
        """As :meth:`batch`, of given ``concepts`` and ``styles`` (n,) int64 on the CPU."""
        return self._compose(concepts, styles, STYLES, concepts * len(STYLES) + styles, generator)

    def _compose(
        self,
        concepts: Tensor,
        styles: Tensor,
        names_of_styles: Sequence[str],
        drawings: Tensor,
        generator: torch.Generator,
    ) -> EmojiBatch:
        n = concepts.shape[0]
        u = torch.rand(n, 9 + Captioner.NUMBERS, generator=generator)
        unnamed = torch.rand(n, generator=generator) < self.unnamed if self.unnamed else torch.zeros(n)
        rare = u[:, 0] < 0.15  # some leave the usual sizes, angles and the middle
        scale = torch.where(rare, _stretch(u[:, 1], 0.50, 0.95), _stretch(u[:, 1], 0.72, 0.90))
        angle = torch.where(rare, _stretch(u[:, 2], -20, 20), _stretch(u[:, 2], -6, 6))
        room = (1 - scale) * torch.where(rare, 1.0, 0.5)  # how far from the middle, in half canvases
        centre = (u[:, 3:5] * 2 - 1) * room[:, None]
        kinds = torch.bucketize(u[:, 5].contiguous(), torch.tensor(KIND_SHARES).cumsum(0)[:2], right=True)
        pixels, described = self._backgrounds(kinds, u[:, 6:9], generator)
        chosen = self._pixels[drawings.to(self.device)]
        where = scale.to(self.device), angle.to(self.device), centre.to(self.device)
        images = over(warp(chosen, *where, self.image_size), pixels)
        captions = [
            self.captioner.caption(
                c, names_of_styles[s], size, place, numbers, UNNAMED if hidden else None
            )
            for c, s, size, place, numbers, hidden in zip(
                concepts.tolist(), styles.tolist(), scale.tolist(), described, u[:, 9:].tolist(),
                unnamed.tolist(), strict=True,
            )
        ]  # fmt: skip
        names = [b.words[0] if b.kind == "solid" else None for b in described]
        return EmojiBatch(images, captions, names, concepts, styles, drawings)

    def _backgrounds(
        self, kinds: Tensor, u: Tensor, generator: torch.Generator
    ) -> tuple[Tensor, list[Background]]:
        """Pixels (n, 3, S, S) in [0, 1] and the words for kinds (n,) and uniform u (n, 3)."""
        n, size, count = kinds.shape[0], self.image_size, len(COLOUR_NAMES)
        first = (u[:, 0] * count).long().clamp_(max=count - 1)
        step = (u[:, 1] * (count - 1)).long().clamp_(max=count - 2) + 1
        second = (first + step) % count  # never the first one again
        noise = (torch.rand(n, 2, 3, generator=generator) * 2 - 1).to(self.device) * (JITTER / 255)
        colours = self._colours[torch.stack([first, second], 1).to(self.device)] + noise
        colours = colours.clamp_(0, 1)
        pixels = colours[:, 0, :, None, None].expand(n, 3, size, size).contiguous()
        two = (kinds == 1).nonzero()[:, 0].to(self.device)
        pixels[two] = gradients(colours[two, 0], colours[two, 1], u[:, 2].to(self.device)[two], size)
        scene = (u[:, 0] * len(SCENES)).long().clamp_(max=len(SCENES) - 1)
        variant = (u[:, 2] * self._bank.shape[1]).long().clamp_(max=self._bank.shape[1] - 1)
        drawn = (kinds == 2).nonzero()[:, 0]
        pictures = self._bank[scene[drawn].to(self.device), variant[drawn].to(self.device)]
        pixels[drawn.to(self.device)] = pictures.float().div_(255)
        phrases = list(SCENES.values())
        described = []
        for kind, a, b, s in zip(
            kinds.tolist(), first.tolist(), second.tolist(), scene.tolist(), strict=True
        ):
            words = ((COLOUR_NAMES[a],), (COLOUR_NAMES[a], COLOUR_NAMES[b]), phrases[s])[kind]
            described.append(Background(KINDS[kind], words))
        return pixels, described


class DrawingComposer(Composer):
    """Endless captioned pictures of all drawings of many sets.

    A thing is drawn the oftener the more drawings there are of it: in proportion to their number to the
    power 1 - ``balance`` (0: every drawing as often as another; 1: every thing).
    """

    def __init__(
        self,
        drawings: EmojiDrawings,
        image_size: int = 64,
        device: torch.device | str = "cpu",
        unnamed: float = 0.0,
        balance: float = 0.5,
    ) -> None:
        if not 0 <= balance <= 1:
            raise UserError(f"balance {balance}: use 0 (drawings alike) to 1 (things alike)")
        self.drawings = drawings
        self.image_size, self.unnamed = image_size, unnamed
        self.device = torch.device(device)
        sets = {name: (SETS | VENDORS)[name] for name in drawings.styles}
        words = {name: drawn.words for name, drawn in sets.items()}
        always = [name for name, drawn in sets.items() if not drawn.painted]
        self.captioner = Captioner(*_words(drawings.concepts), drawings.reserved, words, always)
        self._pixels = drawings.sprites.to(self.device)
        self._bank = scene_bank(image_size).to(self.device)
        self._colours = _table(self.device)
        self._often = drawings.concept.bincount().double().pow(-balance)[drawings.concept]

    def batch(self, n: int, generator: torch.Generator) -> EmojiBatch:
        return self.draw_drawings(
            torch.multinomial(self._often, n, replacement=True, generator=generator), generator
        )

    def draw_drawings(self, chosen: Tensor, generator: torch.Generator) -> EmojiBatch:
        """As :meth:`batch`, of given drawings (n,) int64 on the CPU."""
        drawings = self.drawings
        concepts, styles = drawings.concept[chosen], drawings.style[chosen]
        return self._compose(concepts, styles, drawings.styles, chosen, generator)


def _words(concepts: Sequence[Concept]) -> tuple[list[str], list[tuple[str, ...]], list[str]]:
    return [c.label for c in concepts], [c.tags for c in concepts], [c.subgroup for c in concepts]


def background_pixels(background: str, size: int = 64) -> Tensor:
    """(3, size, size) in [0, 1] for a colour name, ``"#rrggbb"`` or the name of a scene."""
    if background in COLOURS:
        rgb: Sequence[int] = COLOURS[background]
    elif re.fullmatch("#[0-9a-fA-F]{6}", background):
        rgb = [int(background[i : i + 2], 16) for i in (1, 3, 5)]
    elif background in SCENES:
        return scene_bank(size)[list(SCENES).index(background), 0].float() / 255
    else:
        known = ", ".join((*COLOURS, *SCENES))
        raise UserError(f"unknown background {background}: use #rrggbb or one of {known}")
    return (torch.tensor(rgb, dtype=torch.float32) / 255)[:, None, None].expand(3, size, size)


def render(
    sprites: EmojiSprites,
    concept: str,
    style: str = "noto",
    background: str = "white",
    scale: float = 0.8,
    angle: float = 0.0,
    centre: tuple[float, float] = (0.0, 0.0),
    image_size: int = 64,
) -> Tensor:
    """One picture (3, image_size, image_size) in [-1, 1], nothing random.

    ``concept``: hex code or label; ``scale``: part of the canvas; ``angle``: degrees,
    counter-clockwise; ``centre``: x, y in [-1, 1], y down.
    """
    if style not in STYLES:
        raise UserError(f"unknown emoji style {style}: use {', '.join(STYLES)}")
    pixels = sprites.sprites[sprites.index(concept), STYLES.index(style)][None]
    where = torch.tensor([scale]), torch.tensor([angle]), torch.tensor([centre])
    rgba = warp(pixels, *where, image_size)
    return over(rgba, background_pixels(background, image_size)[None])[0]


def portraits(sprites: Tensor, image_size: int) -> Tensor:
    """Sprites (n, 64, 64, 4) uint8 premultiplied alone, upright and in the middle: (n, 2, 3, S, S) in
    [-1, 1], on black and on white."""
    n = len(sprites)
    alone = warp(sprites, torch.full((n,), 0.75), torch.zeros(n), torch.zeros(n, 2), image_size)
    black = torch.zeros(n, 3, image_size, image_size)
    return torch.stack([over(alone, black), over(alone, black + 1)], 1)


def concept_pictures(
    sprites: EmojiSprites,
    concept: str,
    n: int = 5,
    style: str = "noto",
    seed: int = 0,
    image_size: int = 64,
) -> Tensor:
    """(n, 3, S, S) in [-1, 1]: what a user's photos of one concept would be.

    One style, plain backgrounds of different colours (which come again after 12), sizes, places and small
    rotations.
    """
    if n < 1:
        raise UserError(f"{n} example pictures: give 1 or more")
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(COLOUR_NAMES), generator=generator).tolist()
    colours = [order[i % len(order)] for i in range(n)]
    numbers = torch.rand(n, 4, generator=generator).tolist()
    pictures = []
    for colour, (a, b, x, y) in zip(colours, numbers, strict=True):
        scale = 0.65 + 0.25 * a
        room = 1 - scale
        centre = ((2 * x - 1) * room, (2 * y - 1) * room)
        name = COLOUR_NAMES[colour]
        picture = render(sprites, concept, style, name, scale, 20 * b - 10, centre, image_size)
        pictures.append(picture)
    return torch.stack(pictures)
