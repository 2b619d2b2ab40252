"""Any picture file as upright 8-bit sRGB: orientation, colour profile, depth and transparency applied.

What a picture costs is bounded by its header, before it is decoded: at most :data:`MAX_PIXELS`. A larger
JPEG, as phones of 108 and 200 megapixels write them, is decoded at a half, a quarter or an eighth.
"""

from __future__ import annotations

import functools
import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageCms, ImageOps, JpegImagePlugin

from ldm.errors import UserError
from ldm.io.files import HEAD, kind_of, opened, unreadable

log = logging.getLogger(__name__)

#: What is taken for a picture by its name. The content decides how it is decoded.
SUFFIXES = frozenset(
    {
        ".jpg",
        ".jpeg",
        ".jfif",
        ".png",
        ".webp",
        ".gif",
        ".bmp",
        ".tif",
        ".tiff",
        ".avif",
        ".jp2",
        ".ppm",
        ".pgm",
        ".tga",
    }
)
#: As well, where the package pillow-heif is installed.
HEIF_SUFFIXES = frozenset({".heic", ".heif", ".hif"})
#: Pillow's decoders for these: none of them starts another program, as the one for EPS does.
_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
#: pixels that are decoded at most; 1.2 GB of memory with transparency or 16 bits, 0.3 GB without
MAX_PIXELS = 2**26
#: pixels of a JPEG that is decoded at an eighth of its size
MAX_JPEG_PIXELS = 2**30
#: bytes of a colour profile; those of printers have up to 2 MB
_MAX_PROFILE = 2**22
_SRGB = ImageCms.createProfile("sRGB")
#: The mode of Pillow that a profile's colour space is about.
_SPACES = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK", "Lab": "LAB"}
#: Pillow scales the samples of a PNG to 8 bits, but not its transparent sample: factor, right shift.
_KEY_SCALES = {"L;2": (85, 0), "L;4": (17, 0), "RGB;16B": (1, 8)}


@functools.cache
def heif() -> bool:
    """Whether HEIC pictures can be read: the optional package pillow-heif is there."""
    try:
        import pillow_heif
    except ImportError:
        return False
    pillow_heif.register_heif_opener()
    return True


def suffixes() -> frozenset[str]:
    """Endings, in small letters, of the names of files that are taken for pictures."""
    return SUFFIXES | HEIF_SUFFIXES if heif() else SUFFIXES


def decode(path: Path | str, side: int, background: tuple[int, int, int], upright: bool) -> Image.Image:
    """A file as 8-bit RGB; :func:`flatten` says how.

    Args:
        side: pixels that are needed along the shorter side. Only a JPEG of more than :data:`MAX_PIXELS` is
            decoded smaller than it is, where the limit allows to no less than four times that.
        background: what transparent parts are laid on.
        upright: turn it as its EXIF orientation says, and obey its colour profile.

    Raises:
        UserError: names the file and says what is wrong with it.
    """
    with _loaded(path, side, upright) as image:
        return flatten(image, background, managed=upright, name=str(path))


def decode_alpha(path: Path | str, side: int, upright: bool) -> Image.Image | None:
    """How opaque a file's pixels are, as 8-bit grey; ``None`` if it has no transparency. See :func:`decode`.

    Raises:
        UserError: names the file and says what is wrong with it.
    """
    with _loaded(path, side, upright) as image:
        return alpha_of(image)


@contextmanager
def _loaded(path: Path | str, side: int, upright: bool) -> Iterator[Image.Image]:
    """A picture file with its pixels decoded, in whatever mode it has; errors within name the file."""
    with opened(path, "picture") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, about sizes and broken notes
        try:
            with _open(handle) as image:
                _bound(image, side)
                tile = getattr(image, "tile", None)
                scale = _KEY_SCALES.get(str(tile[0][3])) if tile else None
                image.load()  # the first frame of an animation
                if scale:
                    _scale_key(image, *scale)
                if upright:
                    ImageOps.exif_transpose(image, in_place=True)
                yield image
        except UserError as error:
            raise UserError(f"cannot use the picture {path}: {error}") from error
        except MemoryError as error:
            raise UserError(f"cannot decode the picture {path}: there is not enough memory; scale it "
                            "down") from error  # fmt: skip
        except Exception as error:  # decoders raise nearly anything on broken bytes
            if isinstance(error, OSError) and error.errno:
                raise unreadable(path, error, "picture") from error
            handle.seek(0)
            kind = kind_of(handle.read(HEAD))
            if kind and kind[0] != "a picture" and not ("HEIC" in kind[0] and heif()):
                raise UserError(f"the picture {path} is {kind[0]}: remove or replace it "
                                f"({kind[1]})") from error  # fmt: skip
            raise UserError(f"cannot decode the picture {path}: it is corrupt or of an unknown kind; "
                            "remove or replace it") from error  # fmt: skip


def picture_size(path: Path | str, upright: bool = True) -> tuple[int, int]:
    """Width and height of a picture file, by its header alone.

    Args:
        upright: once it is turned as its EXIF orientation says.

    Raises:
        UserError: it cannot be read.
    """
    with opened(path, "picture") as handle, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            with _open(handle) as image:
                return turned_size(image) if upright else image.size
        except UserError as error:
            raise UserError(f"cannot use the picture {path}: {error}") from error
        except Exception as error:
            raise UserError(f"cannot decode the picture {path}: it is corrupt or of an unknown kind; "
                            "remove or replace it") from error  # fmt: skip


def turned_size(image: Image.Image) -> tuple[int, int]:
    """Width and height of a picture once it is turned as its EXIF orientation says."""
    width, height = image.size
    lying = image.getexif().get(ExifTags.Base.Orientation, 1) in range(5, 9)
    return (height, width) if lying else (width, height)


def _open(handle: BinaryIO) -> Image.Image:
    """The picture in an open file, its header read; one that Pillow takes for a bomb if it is a JPEG."""
    try:
        return Image.open(handle, formats=(*_FORMATS, "HEIF") if heif() else _FORMATS)
    except Image.DecompressionBombError as error:
        handle.seek(0)
        if handle.read(3) != b"\xff\xd8\xff":
            raise _too_large() from error
        handle.seek(0)
        try:
            return JpegImagePlugin.JpegImageFile(handle)
        except SyntaxError:
            raise _too_large() from error


def _too_large(size: str = "") -> UserError:
    return UserError(f"it has {size}more than the {MAX_PIXELS / 1e6:.0f} million pixels that are decoded; "
                     "scale it down")  # fmt: skip


def _bound(image: Image.Image, side: int) -> None:
    """Ask a large JPEG for less; refuse what would still be too large."""
    width, height = image.size
    pixels = width * height
    if pixels > MAX_PIXELS and image.format in ("JPEG", "MPO"):
        if "progressive" in image.info:  # its coefficients are all held at once
            raise UserError(f"it is a progressive JPEG of {width} x {height} pixels, of which more than "
                            f"{MAX_PIXELS / 1e6:.0f} million are not decoded; scale it down")  # fmt: skip
        if pixels <= MAX_JPEG_PIXELS:
            needed = next((f for f in (2, 4, 8) if pixels / f**2 <= MAX_PIXELS), 8)
            factor = max([needed, *(f for f in (4, 8) if 4 * side * f <= min(width, height))])
            image.draft(None, (width // factor, height // factor))
    if image.width * image.height > MAX_PIXELS:
        raise _too_large(f"{width} x {height} pixels, ")


def _scale_key(image: Image.Image, factor: int, shift: int) -> None:
    """Bring the transparent sample that a PNG names to the 8 bits of its pixels."""
    key = image.info.get("transparency")
    if isinstance(key, int):
        image.info["transparency"] = key * factor >> shift
    elif isinstance(key, tuple):
        image.info["transparency"] = tuple(value * factor >> shift for value in key)


# ------------------------------------------------------------------------------ any mode to sRGB
def flatten(
    image: Image.Image, background: tuple[int, int, int], *, managed: bool = True, name: str = "a picture"
) -> Image.Image:
    """Any mode to 8-bit sRGB: deep greys scaled, colours translated, transparency laid on a colour.

    Args:
        managed: translate the colours from the picture's ICC profile; without one they are sRGB.
        name: of the picture, for a warning about its profile.
    """
    profile = image.info.get("icc_profile") if managed else None
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey8(image)
    alpha = alpha_of(image)
    if alpha is None:
        return _to_srgb(image, profile, name)
    grey = image.mode in ("1", "L", "LA", "La")
    layered = image if image.mode == "RGBA" else image.convert("RGBA")
    colours = _to_srgb(layered.convert("L" if grey else "RGB"), profile, name)
    canvas = Image.new("RGB", image.size, background)
    canvas.paste(colours, mask=alpha)
    return canvas


def alpha_of(image: Image.Image) -> Image.Image | None:
    """How opaque the pixels of a picture of any mode are, as 8-bit grey; ``None``: it has no transparency."""
    if image.mode.startswith("I") or image.mode == "F":
        image = _grey8(image)
    if not image.has_transparency_data:
        return None
    return (image if image.mode == "RGBA" else image.convert("RGBA")).getchannel("A")


def _to_srgb(image: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """An opaque picture as RGB; a profile that does not belong to its kind of colours is left aside."""
    if image.mode == "LAB":
        profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("LAB")).tobytes()
    if not profile:
        return image if image.mode == "RGB" else image.convert("RGB")
    try:
        if len(profile) > _MAX_PROFILE:
            raise ValueError(f"more than {_MAX_PROFILE} bytes")
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        mode = _SPACES[source.profile.xcolor_space.strip()]
        colours = ("1", "L", "P", "RGB", "RGBX", "YCbCr", "HSV")
        if image.mode not in {"L": ("1", "L"), "RGB": colours}.get(mode, (mode,)):
            raise ValueError(f"it is for {mode}, the picture is {image.mode}")
        translated = ImageCms.profileToProfile(
            image.convert(mode),
            source,
            _SRGB,
            renderingIntent=ImageCms.Intent.RELATIVE_COLORIMETRIC,
            outputMode="RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except Exception as error:  # a profile is foreign data of its own
        log.warning("the colour profile of %s cannot be used (%s): its colours are taken for sRGB",
                    name, error)  # fmt: skip
        return image.convert("RGB")
    assert translated is not None  # it was not done in place
    return translated


def _grey8(image: Image.Image) -> Image.Image:
    """Greys of 16 or 32 bits or floats to 8 bits. Pillow's own conversion cuts them off at 255.

    Their full scale is not recorded: it is 1 for floats up to 1, 255 for values up to that, and
    else 65535. A value that is called transparent is so before the scaling.
    """
    values = np.asarray(image)
    key = image.info.get("transparency")
    top = np.nanmax(values) if values.size else 0.0
    full = 65535.0
    if image.mode == "F" and top <= 1:
        full = 1.0
    elif not image.mode.startswith("I;16") and top <= 255:
        full = 255.0
    scaled = np.nan_to_num(values).clip(0, full).astype(np.float32)
    scaled *= np.float32(255.0 / full)
    grey = Image.fromarray(scaled.round().astype(np.uint8))
    if isinstance(key, int):
        grey.putalpha(Image.fromarray(np.where(values == key, 0, 255).astype(np.uint8)))
    if "icc_profile" in image.info:
        grey.info["icc_profile"] = image.info["icc_profile"]
    return grey
