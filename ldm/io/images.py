"""Pictures between tensors in [-1, 1] and files."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from einops import rearrange
from PIL import Image, PngImagePlugin
from torch import Tensor

from ldm.io.atomic import atomic_write


def to_uint8(images: Tensor) -> np.ndarray:
    """(..., 3, H, W) in [-1, 1], clamped, to (..., H, W, 3) bytes."""
    scaled = images.detach().float().clamp(-1, 1).add(1).mul(127.5).round()
    return rearrange(scaled.to(torch.uint8), "... c h w -> ... h w c").cpu().numpy()


def to_pil(image: Tensor) -> Image.Image:
    """One picture (3, H, W) in [-1, 1]."""
    return Image.fromarray(to_uint8(image))


def save_png(image: Tensor | Image.Image, path: Path, text: dict[str, str] | None = None) -> Path:
    """Write one picture atomically, with ``text`` (prompt, seed, ...) as PNG text chunks."""
    picture = to_pil(image) if isinstance(image, Tensor) else image
    info = PngImagePlugin.PngInfo()
    for key, value in (text or {}).items():
        info.add_itxt(key, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(path) as temporary:
        picture.save(temporary, format="PNG", pnginfo=info)
    return path


def grid(images: Tensor, columns: int, pad: int = 2) -> Image.Image:
    """(N, 3, H, W) in [-1, 1] as one picture of N / columns rows on white."""
    data = to_uint8(images)
    columns = max(1, min(columns, len(data)))
    empty = -len(data) % columns  # places of the last row without a picture
    padded = np.pad(data, ((0, empty), (pad, 0), (pad, 0), (0, 0)), constant_values=255)
    sheet = rearrange(padded, "(rows columns) h w c -> (rows h) (columns w) c", columns=columns)
    return Image.fromarray(np.pad(sheet, ((0, pad), (0, pad), (0, 0)), constant_values=255))


def on_squares(image: Tensor, mask: Tensor, squares: int = 16) -> Tensor:
    """A picture (3, S, S) where its mask (1, S, S) is 1, and ``squares`` x ``squares`` grey ones where it is
    0."""
    places = torch.arange(image.shape[-1]) * squares // image.shape[-1]
    grey = ((places[:, None] + places) % 2 * 0.3 + 0.3).to(image)
    return mask * image + (1 - mask) * grey


def save_grid(images: Tensor, path: Path, columns: int = 8) -> Path:
    """``grid`` written atomically as PNG."""
    return save_png(grid(images, columns), path)
