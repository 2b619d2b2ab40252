"""Simple procedural scenes to put emoji in front of: a bank of variants, drawn once.

Every painter takes (n, S, S) coordinate planes in [0, 1] (y down) and a generator, and returns
n variants (n, 3, S, S) in [0, 1], vectorised over them.
"""

from collections.abc import Callable
from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Scene -> the phrases a caption may use for it.
SCENES: dict[str, tuple[str, ...]] = {
    "grass": ("on grass", "on the grass", "in a green field"),
    "beach": ("on the beach", "at the beach"),
    "night": ("under a night sky", "under a starry night sky", "at night"),
    "table": ("on a wooden table", "on a wooden floor"),
    "snow": ("in the snow", "in snow"),
    "city": ("in the city", "on a city street"),
    "forest": ("in the forest", "in a forest"),
    "mountain": ("in front of a mountain", "in the mountains"),
    "desert": ("in the desert", "in a desert"),
    "underwater": ("under water", "in the sea"),
    "sunset": ("at sunset", "in front of a sunset"),
    "brick wall": ("in front of a brick wall",),
}
VARIANTS = 64

Painter = Callable[[Tensor, Tensor, torch.Generator], Tensor]


def _rgb(*value: int) -> Tensor:
    return torch.tensor(value, dtype=torch.float32).view(1, 3, 1, 1) / 255


def _uniform(n: int, low: float, high: float, g: torch.Generator) -> Tensor:
    return low + (high - low) * torch.rand(n, 1, 1, generator=g)


def _noise(x: Tensor, cells: int, g: torch.Generator) -> Tensor:
    """Smooth noise (n, 1, S, S) in [-1, 1] with about ``cells`` bumps a side."""
    coarse = torch.rand(x.shape[0], 1, cells, cells, generator=g) * 2 - 1
    return F.interpolate(coarse, size=x.shape[-2:], mode="bilinear", align_corners=False)


def _mix(a: Tensor, b: Tensor, mask: Tensor) -> Tensor:
    """a where mask is 0, b where it is 1; mask (n, S, S)."""
    return a + (b - a) * mask[:, None].to(torch.float32)


def _sky(y: Tensor, top: Tensor, bottom: Tensor) -> Tensor:
    return _mix(top, bottom, y)


def _grass(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    horizon = _uniform(len(x), 0.40, 0.60, g)
    sky = _sky(y, _rgb(95, 175, 240), _rgb(200, 230, 250))
    ground = _sky(y, _rgb(125, 200, 80), _rgb(60, 140, 45)) + 0.08 * _noise(x, 32, g)
    return _mix(sky, ground, y > horizon + 0.03 * torch.sin(6 * x + 20 * horizon))


def _beach(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    sea_from, sand_from = _uniform(len(x), 0.28, 0.40, g), _uniform(len(x), 0.55, 0.70, g)
    sky = _sky(y, _rgb(120, 200, 245), _rgb(215, 240, 250))
    sea = _sky(y, _rgb(30, 120, 190), _rgb(60, 200, 210))
    picture = _mix(sky, sea, y > sea_from)
    shore = sand_from + 0.02 * torch.sin(9 * x + 30 * sand_from)
    picture = _mix(picture, _rgb(245, 250, 250), y > shore - 0.025)
    return _mix(picture, _rgb(240, 215, 160) + 0.03 * _noise(x, 48, g), y > shore)


def _night(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    sky = _sky(y, _rgb(8, 10, 45), _rgb(40, 40, 105))
    stars = (torch.rand(x.shape, generator=g) > 0.985).float()
    return _mix(sky, _rgb(255, 250, 215), stars * (0.5 + 0.5 * torch.rand(x.shape, generator=g)))


def _table(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    planks = torch.floor(y * _uniform(len(x), 4, 6, g))
    tone = 0.05 * torch.sin(planks * 2.4 + _uniform(len(x), 0, 6, g))
    grain = F.interpolate(
        torch.rand(len(x), 1, 48, 4, generator=g) * 2 - 1, size=x.shape[-2:], mode="bilinear"
    )
    wood = _rgb(175, 115, 65) + tone[:, None] + 0.06 * grain
    seam = torch.diff(planks, dim=1, prepend=planks[:, :1]) > 0
    return _mix(wood, _rgb(95, 58, 30), seam)


def _snow(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    horizon = _uniform(len(x), 0.45, 0.65, g)
    sky = _sky(y, _rgb(150, 180, 210), _rgb(205, 220, 235))
    ground = _rgb(243, 247, 252) + 0.02 * _noise(x, 8, g)
    picture = _mix(sky, ground, y > horizon + 0.05 * torch.sin(5 * x + 25 * horizon))
    flakes = F.max_pool2d((torch.rand(len(x), 1, *x.shape[1:], generator=g) > 0.99).float(), 2, 1)
    return _mix(picture, _rgb(255, 255, 255), F.pad(flakes, (0, 1, 0, 1))[:, 0])


def _city(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    n, columns = len(x), 8
    heights = 0.15 + 0.45 * torch.rand(n, columns, generator=g)
    column = (x * columns).long().clamp_(max=columns - 1)
    roof = heights.gather(1, column.flatten(1)).view_as(x)
    shade = torch.rand(n, columns, generator=g).gather(1, column.flatten(1)).view_as(x)
    sky = _sky(y, _rgb(150, 195, 235), _rgb(235, 225, 210))
    houses = _mix(_rgb(95, 105, 130), _rgb(150, 150, 165), shade)
    windows = ((x * 32).long() % 2 == 1) & ((y * 24).long() % 2 == 1)
    houses = _mix(houses, _rgb(250, 225, 140), windows & (torch.frac(shade * 7 + y * 3) > 0.4))
    picture = _mix(sky, houses, y > roof)
    dashes = ((y - 0.88).abs() < 0.02) & (torch.frac(x * 4) < 0.5)
    road = _mix(_rgb(75, 75, 80), _rgb(235, 235, 235), dashes)
    return _mix(picture, road, y > 0.74)


def _forest(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    picture = _sky(y, _rgb(160, 205, 160), _rgb(70, 130, 70))
    for row, colour in enumerate((_rgb(70, 130, 75), _rgb(45, 105, 55), _rgb(25, 80, 40))):
        count = _uniform(len(x), 3.5, 5.5, g)
        phase = torch.frac(x * count + _uniform(len(x), 0, 1, g))
        tip = 0.05 + 0.14 * row
        width = (y - tip) * 1.1
        trees = ((phase - 0.5).abs() * 2 < width.clamp(max=0.95)) & (y > tip)
        picture = _mix(picture, colour, trees & (y < tip + 0.75))
    return _mix(picture, _rgb(70, 95, 45) + 0.05 * _noise(x, 24, g), y > 0.82)


def _mountain(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    picture = _sky(y, _rgb(110, 170, 230), _rgb(215, 230, 245))
    for low in (0.12, 0.25):
        peak, top = _uniform(len(x), 0.15, 0.85, g), _uniform(len(x), low, low + 0.12, g)
        edge = top + (x - peak).abs() * _uniform(len(x), 0.8, 1.1, g)
        edge = edge + 0.015 * torch.sin(40 * x)
        picture = _mix(picture, _rgb(110, 115, 135) + 0.05 * _noise(x, 16, g), y > edge)
        picture = _mix(picture, _rgb(245, 248, 252), (y > edge) & (y < top + 0.13))
    return _mix(picture, _rgb(90, 145, 80) + 0.04 * _noise(x, 24, g), y > 0.80)


def _desert(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    picture = _sky(y, _rgb(130, 195, 235), _rgb(250, 225, 180))
    for row, colour in enumerate((_rgb(225, 175, 105), _rgb(235, 190, 120), _rgb(215, 160, 90))):
        height = 0.45 + 0.16 * row
        wave = torch.sin(_uniform(len(x), 3, 6, g) * x + _uniform(len(x), 0, 6, g))
        picture = _mix(picture, colour + 0.015 * _noise(x, 40, g), y > height + 0.06 * wave)
    return picture


def _underwater(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    water = _sky(y, _rgb(60, 175, 220), _rgb(8, 55, 120))
    rays = torch.sin((x + 0.35 * y) * _uniform(len(x), 14, 22, g) + _uniform(len(x), 0, 6, g))
    water = water + (0.07 * rays * (1 - y))[:, None]
    for _ in range(8):
        cx, cy = _uniform(len(x), 0, 1, g), _uniform(len(x), 0, 1, g)
        ring = (((x - cx) ** 2 + (y - cy) ** 2).sqrt() - _uniform(len(x), 0.015, 0.04, g)).abs()
        water = _mix(water, _rgb(205, 240, 250), ring < 0.009)
    return water


def _sunset(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    sky = _sky(y * 1.5, _rgb(110, 55, 130), _rgb(255, 150, 60))
    cx, horizon = _uniform(len(x), 0.2, 0.8, g), _uniform(len(x), 0.62, 0.75, g)
    sun = ((x - cx) ** 2 + (y - horizon) ** 2).sqrt() < _uniform(len(x), 0.14, 0.22, g)
    picture = _mix(sky, _rgb(255, 225, 110), sun)
    sea = _sky(y, _rgb(150, 70, 110), _rgb(70, 35, 95)) + 0.05 * _noise(y.transpose(1, 2), 16, g)
    glitter = ((x - cx).abs() < 0.12) & (torch.frac(y * 16) < 0.4)
    return _mix(picture, _mix(sea, _rgb(255, 190, 110), glitter), y > horizon)


def _bricks(x: Tensor, y: Tensor, g: torch.Generator) -> Tensor:
    rows = _uniform(len(x), 7, 10, g)
    row = torch.floor(y * rows)
    across = x * rows * 0.5 + 0.5 * (row % 2)
    tone = torch.frac(torch.sin(torch.floor(across) * 12.9 + row * 78.2) * 43.7)
    wall = _rgb(170, 80, 60) + 0.06 * tone[:, None] + 0.03 * _noise(x, 32, g)
    mortar = (torch.frac(y * rows) < 0.16) | (torch.frac(across) < 0.08)
    return _mix(wall, _rgb(205, 195, 185), mortar)


_PAINTERS: dict[str, Painter] = {
    "grass": _grass, "beach": _beach, "night": _night, "table": _table, "snow": _snow,
    "city": _city, "forest": _forest, "mountain": _mountain, "desert": _desert,
    "underwater": _underwater, "sunset": _sunset, "brick wall": _bricks,
}  # fmt: skip


@lru_cache(maxsize=2)
def scene_bank(size: int = 64, variants: int = VARIANTS) -> Tensor:
    """(len(SCENES), variants, 3, size, size) uint8, always the same pictures."""
    axis = (torch.arange(size) + 0.5) / size
    x = axis[None, None, :].expand(variants, size, size)
    y = axis[None, :, None].expand(variants, size, size)
    pictures = []
    for i, name in enumerate(SCENES):
        generator = torch.Generator().manual_seed(1000 + i)
        pictures.append((_PAINTERS[name](x, y, generator).clamp(0, 1) * 255).round().byte())
    return torch.stack(pictures)
