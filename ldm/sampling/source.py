"""Pictures to start from: image-to-image, inpainting, and the noise behind a photo.

A `Source` goes into ``ldm.sample(..., source=...)``: without a mask that is SDEdit (Meng et al.
2022), with one it is blended latent diffusion (Gal et al. 2022, Sec. 4.6). `find_noise` is the
DDIM inversion of App. A: what it returns goes into ``ldm.sample(..., x_T=...)``.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import torch
from PIL import Image, ImageOps
from torch import Tensor
from torch.nn import functional as F

from ldm.backbone.model import LatentDiffusion
from ldm.diffusion import samplers
from ldm.errors import UserError
from ldm.io.decode import decode, flatten, picture_size, turned_size
from ldm.io.pictures import Framing, load_pictures
from ldm.paths import found

log = logging.getLogger(__name__)

BLACK = (0, 0, 0)


@dataclass(frozen=True, eq=False)
class Source:
    """A picture to draw from; made by `load_source`.

    Attributes:
        image: (3, S, S) in [-1, 1], S the model's ``image_size``.
        strength: in (0, 1], share of the noise schedule that the picture goes back up before it is
            drawn anew; 1 forgets it.
        mask: (1, S, S) in [0, 1]: 1 is painted, 0 is kept; None paints all.
        keep_pixels: outside the mask return the picture's own pixels, not the autoencoder's.
    """

    image: Tensor
    strength: float = 1.0
    mask: Tensor | None = None
    keep_pixels: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.strength <= 1:
            raise UserError(f"strength must be above 0 and at most 1, not {self.strength}")
        if self.mask is not None and self.mask.shape != (1, *self.image.shape[1:]):
            raise UserError(
                f"the mask has shape {tuple(self.mask.shape)} and the picture "
                f"{tuple(self.image.shape)}; give a mask (1, S, S) of the same size"
            )

    def latents(self, model: LatentDiffusion) -> Tensor:
        """The picture's scaled latents (1, C, h, w), float32: the posterior's mean."""
        return model.encode(self.image[None]).mean.float() * model.scale_factor

    def latent_mask(self, model: LatentDiffusion) -> Tensor | None:
        """(1, 1, h, w) of zeros and ones: a latent is painted where any of its pixels is."""
        if self.mask is None:
            return None
        painted = (self.mask >= 0.5).float().to(model.device)
        return F.adaptive_max_pool2d(painted, model.latent_shape[1:])[None]

    def paste(self, images: Tensor) -> Tensor:
        """Pictures (B, 3, S, S) inside the mask, this one outside; soft edges of a mask mix them."""
        if self.mask is None or not self.keep_pixels:
            return images
        mask, image = self.mask.to(images), self.image.to(images)
        return mask * images + (1 - mask) * image


def load_source(
    model: LatentDiffusion,
    image: str | Path | Image.Image | Tensor,
    *,
    strength: float | None = None,
    mask: str | Path | Image.Image | Tensor | None = None,
    keep_pixels: bool = True,
    fit: str = "crop",
    background: str = "white",
) -> Source:
    """A picture, and maybe a mask, at the size of a model.

    Args:
        model: from ``ldm.load``.
        image: a file, a PIL picture (any size; EXIF applied, aspect kept), or a tensor
            (3, S, S) in [-1, 1].
        strength: see `Source`; by default 0.6, and 1 with a mask.
        mask: white where to paint, black where to keep; laid over the picture and cropped or padded with
            it. One of another aspect is stretched to the picture's, with a warning; a square one is laid
            over the square that is left of it. A tensor is (1, S, S) in [0, 1].
        keep_pixels: see `Source`.
        fit: "crop" keeps the middle square, "pad" fills up with ``background``, which
            transparent parts are laid on as well (in a mask: always black).

    Raises:
        UserError: a picture that cannot be read, or a strength or shape that is not possible.
    """
    size = model.image_size
    image = found(image) if isinstance(image, str | Path) else image
    mask = found(mask) if isinstance(mask, str | Path) else mask
    if strength is None:
        strength = 0.6 if mask is None else 1.0
    pixels = _square(image, size, fit, background)
    if mask is None or isinstance(mask, Tensor):
        return Source(pixels, strength, mask, keep_pixels)
    grey = _square(_over(mask, image, size), size, fit, "black").mean(0, keepdim=True)
    return Source(pixels, strength, (grey / 2 + 0.5).clamp(0, 1), keep_pixels)


def _over(
    mask: str | Path | Image.Image, image: str | Path | Image.Image | Tensor, size: int
) -> str | Path | Image.Image:
    """The mask, or where it has another aspect than the picture, one that is stretched to the picture's."""
    width, height = (1, 1) if isinstance(image, Tensor) else _size(image)
    mask_width, mask_height = _size(mask)
    sides = abs(mask_width * height / width - mask_height), abs(mask_height * width / height - mask_width)
    if min(sides) <= 1 or mask_width == mask_height:  # a pixel more or less is rounding
        return mask
    log.warning("the mask of %d x %d pixels has not the aspect of the picture, %d x %d: it is stretched",
                mask_width, mask_height, width, height)  # fmt: skip
    scale = 4 * size / max(width, height)
    stretched = (max(1, round(width * scale)), max(1, round(height * scale)))
    if not isinstance(mask, Image.Image):
        flat = decode(mask, size, BLACK, True)
    else:
        flat = flatten(ImageOps.exif_transpose(mask), BLACK)
    return flat.resize(stretched, Image.Resampling.BICUBIC)


def _size(image: str | Path | Image.Image) -> tuple[int, int]:
    return turned_size(image) if isinstance(image, Image.Image) else picture_size(image)


def _square(image: str | Path | Image.Image | Tensor, size: int, fit: str, background: str) -> Tensor:
    pictures = image[None] if isinstance(image, Tensor) else [image]
    return load_pictures(pictures, size, Framing(fit=fit, background=background))[0]


@torch.no_grad()
def find_noise(
    model: LatentDiffusion,
    source: Source,
    prompt: str = "",
    *,
    steps: int = 50,
    scale: float = 1.0,
    negative_prompt: str = "",
    iterations: int = 5,
    progress: bool = False,
    truncate: int | None = None,
) -> Tensor:
    """The noise from which DDIM draws a picture: DDIM inversion (Gal et al. 2022, App. A).

    ``ldm.sample(model, prompt, x_T=..., steps=steps, scale=scale)`` returns to the picture;
    another prompt, or a learned word in it, draws that in the picture's layout.

    Args:
        model: What ``ldm.load`` returned.
        source: The picture, from ``ldm.load_source``; its strength and mask play no part.
        prompt: What the picture shows.
        steps: Steps of DDIM; draw with the same number.
        scale: Guidance scale; draw with the same.
        negative_prompt: As in ``ldm.sample``.
        iterations: Network calls in each step. One is the usual inversion; more come nearer to the exact
            inverse.
        progress: Show a progress bar.
        truncate: As in ``ldm.sample``.

    Returns:
        x_T (1, C, h, w) float32.
    """
    return samplers.invert(
        model.eps,
        source.latents(model),
        cond=model.condition([prompt], truncate=truncate),
        uncond=model.condition([negative_prompt], truncate=truncate) if scale != 1 else None,
        scale=scale,
        schedule=model.schedule,
        steps=steps,
        iterations=iterations,
        progress=progress,
    )
