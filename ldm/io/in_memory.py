"""Pictures that are given in Python: PIL's, arrays and tensors, one or several."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ldm.errors import UserError

log = logging.getLogger(__name__)

One = str | Path | Image.Image | np.ndarray | Tensor
Pictures = One | Iterable[One]

_KINDS = "a folder, files, PIL pictures, arrays or tensors"


def listed(images: Pictures) -> list[One]:
    """One picture as a list of one, and a batch as its pictures.

    Raises:
        UserError: there are none, or it is nothing of the kind.
    """
    if isinstance(images, np.ndarray | Tensor):
        if not 2 <= images.ndim <= 4:
            raise UserError(f"pictures of shape {tuple(images.shape)} are none; give (N, 3, H, W) or a list")
        images = [images] if images.ndim < 4 else list(images)
    elif isinstance(images, str | Path | Image.Image):
        images = [images]
    elif not isinstance(images, Iterable):
        raise UserError(f"pictures cannot be a {type(images).__name__}; give {_KINDS}")
    items = list(images)
    if not items:
        raise UserError("no pictures: give 3 to 5")
    return items


def picture(item: One) -> Image.Image | Tensor:
    """A picture of 8 bits as PIL's, one of floats as a tensor (3, H, W).

    Args:
        item: PIL's; an array (H, W), (H, W, C) or a tensor (C, H, W) of uint8; or floats (3, H, W). The
            axis that has 1, 3 or 4 entries is that of the colours.

    Raises:
        UserError: another type or shape.
    """
    if isinstance(item, Image.Image):
        return item
    if not isinstance(item, np.ndarray | Tensor):
        raise UserError(f"a picture cannot be a {type(item).__name__}; give {_KINDS}")
    array = item.detach().cpu().numpy() if isinstance(item, Tensor) and item.dtype != torch.bfloat16 else item
    array = array.float().cpu().numpy() if isinstance(array, Tensor) else array
    if array.ndim == 3:
        first, last = (array.shape[axis] in (1, 3, 4) for axis in (0, -1))
        if first and (isinstance(item, Tensor) or not last):
            array = np.moveaxis(array, 0, -1)
    if array.ndim == 3 and array.shape[-1] == 1:
        array = array[..., 0]
    if array.size == 0 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[-1] not in (3, 4)):
        raise UserError(f"{tuple(item.shape)} is no picture's shape; give (H, W, 3), or a tensor (3, H, W)")
    if array.dtype == np.uint8:
        return Image.fromarray(np.ascontiguousarray(array))
    if array.dtype == bool or not np.issubdtype(array.dtype, np.floating):
        raise UserError(f"a picture of {array.dtype} is not read; give uint8, or floats in [-1, 1]")
    if array.ndim != 3 or array.shape[-1] != 3:
        raise UserError(f"a picture of floats has shape {tuple(item.shape)}; give three colours, or uint8")
    return torch.from_numpy(np.ascontiguousarray(np.moveaxis(array, -1, 0))).float()


def floats(pictures: Sequence[Tensor], size: int) -> Tensor:
    """Pictures of floats as (N, 3, S, S).

    Raises:
        UserError: one has another size, or values outside [-1, 1].
    """
    for one in pictures:
        if one.shape != (3, size, size):
            raise UserError(f"a picture of floats has shape {tuple(one.shape)}; give (3, {size}, {size}), or "
                            "uint8, which is brought to that size")  # fmt: skip
        if not one.abs().max() <= 1.001:  # nor NaN
            raise UserError(f"a picture of floats has values from {one.min():g} to {one.max():g}; give "
                            "[-1, 1], or uint8")  # fmt: skip
    found = torch.stack(list(pictures))
    if found.min() >= 0 and found.max() > found.min():
        log.warning("no value of the pictures is below 0: they are taken to be in [-1, 1], not in [0, 1]")
    return found
