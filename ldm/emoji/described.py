"""Captions of an emoji by program, as a person would write them who sees the drawing: short and long ones."""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.emoji.captions import COARSE, STYLE_WORDS
from ldm.emoji.sprites import Concept
from ldm.evaluation.colours import COLOUR_NAMES, COLOURS
from ldm.evaluation.metrics import srgb_to_lab
from ldm.text.english import article

#: The share of a drawing that a colour needs to be named, and how many are named at most.
_NAMED, _MOST = 0.1, 3


def main_colours(sprite: Tensor) -> list[str]:
    """Names of the colours that a drawing mostly has, the largest first.

    Args:
        sprite: (S, S, 4) uint8 premultiplied RGBA.
    """
    pixels = sprite.reshape(-1, 4).double()
    solid = pixels[pixels[:, 3] > 127]
    if not len(solid):
        return []
    rgb = (solid[:, :3] / solid[:, 3:]).clamp(0, 1)
    table = srgb_to_lab(torch.tensor(list(COLOURS.values()), dtype=torch.float64) / 255)
    nearest = torch.cdist(srgb_to_lab(rgb), table).argmin(1)
    shares = torch.bincount(nearest, minlength=len(table)).double() / len(nearest)
    order = shares.argsort(descending=True, stable=True)[:_MOST].tolist()
    return [COLOUR_NAMES[i] for i in order if shares[i] >= _NAMED]


def short_caption(concept: Concept) -> str:
    """The name: ``volcano``."""
    return concept.label


def long_caption(concept: Concept, style: str, sprite: Tensor) -> str:
    """Name, group, colours and kind of drawing: ``volcano, a landscape in brown and red, drawn as an emoji``.

    Args:
        style: of ``ldm.emoji.captions.STYLES``.
        sprite: (S, S, 4) uint8 premultiplied RGBA, in this style.
    """
    coarse, drawn = COARSE.get(concept.subgroup, "object"), STYLE_WORDS[style][0]
    colours = main_colours(sprite)
    listed = " and ".join(part for part in (", ".join(colours[:-1]), *colours[-1:]) if part)
    coloured = f" in {listed}" if listed else ""
    return f"{concept.label}, {article(coarse)}{coarse}{coloured}, drawn as {article(drawn)}{drawn}"
