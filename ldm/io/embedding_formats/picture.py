"""Pictures that carry an embedding, as the AUTOMATIC1111 web UI shares them.

The data is JSON with tensors as ``{"TORCHTENSOR": nested list}``, twice: in base64 as the text
chunk ``sd-ti-embedding``, and, for sites that strip such chunks, compressed in the low four bits
of two blocks of pixels left and right of the picture. Both are read; the chunk is written.
"""

from __future__ import annotations

import base64
import json
import warnings
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, PngImagePlugin
from torch import Tensor

from ldm.errors import UserError

CHUNK = "sd-ti-embedding"
MAX_PIXELS = 2**24
MAX_JSON = 2**24  # bytes; 77 vectors of width 4096 take 7 MB
_SIGNATURE = b"\x89PNG\r\n\x1a\n"


def is_picture(head: bytes) -> bool:
    """Whether a file that begins with ``head`` is a PNG."""
    return head.startswith(_SIGNATURE)


def read(path: Path) -> dict[str, Any]:
    """The values in the PNG at ``path``, ``string_to_param`` among them as tensors.

    :class:`UserError` if the picture carries none or is too large; other errors if it is broken.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        try:
            image = Image.open(path, formats=("PNG",))
        except Image.DecompressionBombError as error:
            raise UserError("it is too large for a picture that carries an embedding") from error
    with image:
        if image.width * image.height > MAX_PIXELS:
            raise UserError(
                f"{image.width} x {image.height} is too large for a picture that carries an embedding"
            )
        chunk = image.text.get(CHUNK)  # type: ignore[attr-defined]
        if chunk is None:
            text = _from_pixels(np.asarray(image.convert("RGB")))
        else:
            text = base64.b64decode(chunk[: 2 * MAX_JSON])
    if text is None:
        raise UserError(
            f"it is a picture without an embedding: it has no text chunk {CHUNK} and no "
            "data in its pixels; a copy that was scaled or saved anew loses both"
        )
    if len(text) > MAX_JSON:
        raise UserError("it carries too much data to be an embedding")
    values = json.loads(text)
    params = values["string_to_param"]
    return {**values, "string_to_param": {name: _tensor(p) for name, p in params.items()}}


def _tensor(value: Mapping[str, Any]) -> Tensor:
    return torch.tensor(value["TORCHTENSOR"], dtype=torch.float32)


def write(values: Mapping[str, Any], path: Path) -> None:
    """Writes ``values`` as the text chunk of a PNG that shows the vectors as rows of grey."""
    text = json.dumps(values, default=lambda tensor: {"TORCHTENSOR": tensor.tolist()})
    info = PngImagePlugin.PngInfo()
    info.add_text(CHUNK, base64.b64encode(text.encode()).decode())
    rows = next(iter(values["string_to_param"].values())).abs()
    grey = (rows / rows.max().clamp(min=1e-12) * 255).to(torch.uint8).numpy()
    Image.fromarray(grey).resize((512, 512), Image.Resampling.NEAREST).save(path, "PNG", pnginfo=info)


# ------------------------------------------------------------------------------- pixels
def _from_pixels(pixels: np.ndarray) -> bytes | None:
    """The JSON in pixels (H, W, 3) uint8, or None if there is none.

    From left to right: a block with the low halves of the bytes, a black column, the picture, a
    black column, a block with the high halves. "Black" is what has no low four bits.
    """
    nibbles = _without_dark_margins(pixels) & 0x0F
    black = np.flatnonzero(~nibbles.any(axis=(0, 2)))
    if len(black) < 2:
        return None
    low, high = nibbles[:, : black[0]], nibbles[:, black[-1] + 1 :]
    if low.shape != high.shape or not low.size:
        return None
    low, high = low.reshape(-1), high.reshape(-1)
    noise = _noise(low.size)
    data = ((high ^ noise) << 4 | (low ^ noise)).tobytes()
    try:
        return zlib.decompressobj().decompress(data, MAX_JSON + 1)  # trailing bytes fill the block
    except zlib.error:
        return None


def _without_dark_margins(pixels: np.ndarray) -> np.ndarray:
    """``pixels`` without rows and columns at the edge that have no pixel lit in all channels."""
    lit = pixels.min(axis=2) > 0
    rows, columns = np.flatnonzero(lit.any(axis=1)), np.flatnonzero(lit.any(axis=0))
    if not rows.size:
        return pixels[:0]
    return pixels[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]


def _noise(n: int) -> np.ndarray:
    """n half bytes that hide the data's regularity: x <- 1664525 x + 1013904223 mod 2^32 from 0.

    The n-th state is 1013904223 (1 + a + ... + a^(n-1)); unsigned sums and products wrap as wanted.
    """
    powers = np.full(n, 1664525, dtype=np.uint32)
    powers[:1] = 1
    powers = np.cumprod(powers, dtype=np.uint32)
    states = np.cumsum(powers, dtype=np.uint32) * np.uint32(1013904223)
    return (states % 255).astype(np.uint8) & 0x0F
