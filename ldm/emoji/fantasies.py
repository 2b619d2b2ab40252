"""Things that do not exist: recoloured, stretched, turned and joined emoji sprites.

A denoiser that has seen some hundred things knows some hundred points of its word space; a word that
is learned later lies between them. These sprites fill the space (``ldm.pretraining.portrait_words``).
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.emoji.drawings import EmojiDrawings
from ldm.emoji.sets import SETS
from ldm.emoji.sprites import Concept, EmojiSprites
from ldm.errors import UserError

RECOLOURED, STRETCHED, TURNED, JOINED = 0.6, 0.6, 0.4, 0.5  # shares of the things
CHUNK = 256  # things at a time


def imagine(
    sprites: EmojiSprites, count: int, name: str, generator: torch.Generator, warp: float = 0.0
) -> EmojiSprites:
    """``count`` new things made of those of ``sprites``, each in the three styles of its models.

    Every change is the same in the three styles, so that a thing stays one thing. All are called
    ``name``. ``warp``: the standard deviation of a smooth displacement that bends them too, in sides
    of a sprite.
    """
    pixels = torch.cat(
        [_some(sprites.sprites, min(CHUNK, count - done), generator, warp) for done in range(0, count, CHUNK)]
    )
    concepts = tuple(Concept(f"fantasy-{i}", name, (), "fantasy", "") for i in range(count))
    return EmojiSprites(concepts, pixels, sprites.reserved | {name})


def imagine_drawings(
    drawings: EmojiDrawings, count: int, name: str, generator: torch.Generator, warp: float = 0.0
) -> EmojiDrawings:
    """``count`` new things, each made of drawings of one set whose colours are the things' own, so that
    the words for its style stay true. All are called ``name``; see :func:`imagine`."""
    painted = torch.tensor([SETS[style].painted for style in drawings.styles])
    of_set = {int(k): (drawings.style == k).nonzero()[:, 0] for k in drawings.style.unique() if painted[k]}
    if not of_set:
        raise UserError("no set is left whose drawings can be changed: add one in the things' own colours")
    models = torch.cat(list(of_set.values()))
    pixels, styles = [], []
    for done in range(0, count, CHUNK):
        n = min(CHUNK, count - done)
        u = torch.rand(n, 14, generator=generator)
        first = models[(u[:, 12] * len(models)).long()]
        styles.append(drawings.style[first])
        partners = [of_set[int(k)] for k in styles[-1]]
        second = torch.stack([p[int(x * len(p))] for p, x in zip(partners, u[:, 13].tolist(), strict=True)])
        things, others = (drawings.sprites[i].permute(0, 3, 1, 2).float() / 255 for i in (first, second))
        pixels.append(_changed(things, others, u[:, :12], 1, generator, warp)[:, 0])
    concepts = tuple(Concept(f"fantasy-{i}", name, (), "fantasy", "") for i in range(count))
    reserved = drawings.reserved | {name}
    return EmojiDrawings(
        concepts, torch.cat(pixels), torch.arange(count), torch.cat(styles), drawings.styles, reserved
    )


def _some(sprites: Tensor, n: int, generator: torch.Generator, warp: float) -> Tensor:
    """(n, 3, S, S, 4) uint8 from sprites (N, 3, S, S, 4) uint8, premultiplied both."""
    u = torch.rand(n, 12, generator=generator)

    def pick(u: Tensor) -> Tensor:  # (n * styles, 4, S, S) in [0, 1]
        chosen = sprites[(u * len(sprites)).long()].flatten(0, 1)
        return chosen.permute(0, 3, 1, 2).float() / 255

    return _changed(pick(u[:, 0]), pick(u[:, 1]), u, sprites.shape[1], generator, warp)


def _changed(
    things: Tensor, others: Tensor, u: Tensor, styles: int, generator: torch.Generator, warp: float
) -> Tensor:
    """Change ``things`` (n * styles, 4, S, S) in [0, 1] by uniform numbers ``u`` (n, 12), some by joining
    them with ``others`` of the same shape; (n, styles, S, S, 4) uint8."""
    n = len(u)

    def each(x: Tensor) -> Tensor:  # per thing -> per sprite
        return x.repeat_interleave(styles, 0)

    joined = _join(things, others, each(u[:, 2]), each(u[:, 3]))
    things = torch.where(each(u[:, 4] < JOINED)[:, None, None, None], joined, things)
    things = _rotate_hue(things, each(torch.where(u[:, 5] < RECOLOURED, u[:, 6], 0.0)))
    stretch = torch.where(u[:, 7] < STRETCHED, 0.55 + 0.45 * u[:, 8], 1.0)
    angle = torch.where(u[:, 9] < TURNED, u[:, 10], 0.0) * 2 * math.pi
    placed = _place(things, each(stretch), each(angle), each(u[:, 11]) < 0.5)
    if warp:
        placed = _bend(placed, each(2 * warp * torch.randn(n, 2, 4, 4, generator=generator)))
    return (placed * 255).round().to(torch.uint8).permute(0, 2, 3, 1).unflatten(0, (n, styles))


def _join(first: Tensor, second: Tensor, kind: Tensor, where: Tensor) -> Tensor:
    """Halves of two sprites, above each other or side by side, or a small second one on the first.

    first, second (n, 4, S, S); kind (n,) uniform; where (n,) uniform: the seam.
    """
    side = first.shape[-1]
    seam = (0.35 + 0.3 * where)[:, None, None, None] * side
    axis = torch.arange(side)
    rows, columns = axis[None, None, :, None] < seam, axis[None, None, None, :] < seam
    kind = kind[:, None, None, None]
    cut = torch.where(rows.where(kind < 0.33, columns), first, second)
    small = F.pad(F.avg_pool2d(second, 2), [side // 4] * 4)  # in the middle
    on_top = small + (1 - small[:, 3:]) * first
    return torch.where(kind < 0.66, cut, on_top)


def _rotate_hue(sprites: Tensor, turn: Tensor) -> Tensor:
    """Turn colours about the gray axis by ``turn`` (n,) of a circle (Rodrigues' formula).

    Linear, so right for premultiplied colours; what leaves the colour cube is cut at alpha.
    """
    angle = (turn * 2 * math.pi)[:, None, None]
    axis = torch.full((3,), 3**-0.5)
    cross = torch.linalg.cross(torch.eye(3), axis.expand(3, 3)).T
    matrix = angle.cos() * torch.eye(3) + (1 - angle.cos()) * axis.outer(axis) + angle.sin() * cross
    rgb = torch.einsum("nij,njhw->nihw", matrix, sprites[:, :3])
    alpha = sprites[:, 3:]
    return torch.cat([rgb.clamp(min=0).minimum(alpha), alpha], 1)


def _place(sprites: Tensor, stretch: Tensor, angle: Tensor, mirrored: Tensor) -> Tensor:
    """Narrow by ``stretch`` (n,), mirror where asked, turn by ``angle`` (n,) radians; no resizing else."""
    sign = torch.where(mirrored, -1.0, 1.0)
    cos, sin = angle.cos(), angle.sin()
    narrow = 1 / (stretch * sign)  # the inverse map: canvas -> sprite
    rows = torch.stack([cos * narrow, -sin * narrow, sin, cos], 1).view(-1, 2, 2)
    theta = torch.cat([rows, torch.zeros(len(rows), 2, 1)], 2)
    grid = F.affine_grid(theta, list(sprites.shape), align_corners=False)
    return F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)


def _bend(sprites: Tensor, shifts: Tensor) -> Tensor:
    """Displace by ``shifts`` (n, 2, 4, 4), in half sides, at a grid of places and smoothly between these."""
    identity = torch.eye(2, 3).expand(len(sprites), -1, -1)
    grid = F.affine_grid(identity, list(sprites.shape), align_corners=False)
    field = F.interpolate(shifts, sprites.shape[-2:], mode="bicubic", align_corners=True)
    grid = grid + field.permute(0, 2, 3, 1)
    return F.grid_sample(sprites, grid, mode="bilinear", padding_mode="zeros", align_corners=False)
