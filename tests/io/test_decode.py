"""Pictures of any kind: colours by their profile, transparency at any depth, bounds, the true reason."""

import io
import logging
import os
import struct
import sys
import types
import warnings
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.inversion.concept import concept_of
from ldm.io import decode
from ldm.io.pictures import Framing, list_pictures, load_picture

pytestmark = pytest.mark.slow

# ------------------------------------------------------------------------------ profiles
#: red, green and blue in XYZ of the white D50, and the curve to light
ADOBE = (((0.60974, 0.31111, 0.01947), (0.20528, 0.62567, 0.06087), (0.14919, 0.06322, 0.74457)), "gamma")
P3 = (((0.51512, 0.24120, -0.00105), (0.29198, 0.69225, 0.04189), (0.15710, 0.06657, 0.78407)), "srgb")


def icc(primaries: tuple, curve: str) -> bytes:
    """A small matrix profile (ICC.1:2022): header, primaries, white point and one curve."""

    def fixed(*values: float) -> bytes:
        return struct.pack(f">{len(values)}i", *(round(v * 65536) for v in values))

    gamma = b"curv" + bytes(4) + struct.pack(">IHxx", 1, round(563 / 256 * 256))
    bend = fixed(2.4, 1 / 1.055, 0.055 / 1.055, 1 / 12.92, 0.04045)
    para = b"para" + bytes(4) + struct.pack(">Hxx", 3) + bend
    values = {
        "desc": b"desc" + bytes(4) + struct.pack(">I", 5) + b"test\0" + bytes(79),
        "wtpt": b"XYZ " + bytes(4) + fixed(0.9642, 1.0, 0.8249),
        **{n + "XYZ": b"XYZ " + bytes(4) + fixed(*p) for n, p in zip("rgb", primaries, strict=True)},
        **{n + "TRC": gamma if curve == "gamma" else para for n in "rgb"},
    }
    table, data, at = struct.pack(">I", len(values)), b"", 128 + 4 + 12 * len(values)
    for name, value in values.items():
        value += bytes(-len(value) % 4)
        table += name.encode() + struct.pack(">II", at + len(data), len(value))
        data += value
    size = at + len(data)
    head = struct.pack(">I4xI4s4s4s12x4s", size, 0x04300000, b"mntr", b"RGB ", b"XYZ ", b"acsp")
    head += bytes(28) + fixed(0.9642, 1.0, 0.8249)
    return head.ljust(128, b"\0") + table + data


def encoded(srgb: tuple[int, int, int], primaries: tuple, curve: str) -> tuple[int, ...]:
    """A colour of sRGB as the numbers that another profile has for it."""
    red, green, blue = [0.43607, 0.22249, 0.01392], [0.38515, 0.71687, 0.09708], [0.14307, 0.06061, 0.71410]
    to_xyz = np.array([red, green, blue]).T
    x = np.array(srgb) / 255
    light = np.where(x <= 0.04045, x / 12.92, ((x + 0.055) / 1.055) ** 2.4)
    other = (np.linalg.inv(np.array(primaries).T) @ to_xyz @ light).clip(0, 1)
    if curve == "gamma":
        return tuple((other ** (256 / 563) * 255).round().astype(int).tolist())
    bent = np.where(other <= 0.0031308, other * 12.92, 1.055 * other ** (1 / 2.4) - 0.055)
    return tuple((bent * 255).round().astype(int).tolist())


def middle(image: torch.Tensor) -> list[int]:
    return ((image[:, 4, 4] + 1) * 127.5).round().int().tolist()


@pytest.mark.parametrize("kind", ["png", "jpg", "webp", "tif", "avif", "rgba.png", "palette.png"])
@pytest.mark.parametrize("profile", [ADOBE, P3], ids=["Adobe RGB", "Display P3"])
def test_colours_are_those_of_the_profile(tmp_path: Path, profile: tuple, kind: str) -> None:
    numbers = encoded((0, 160, 0), *profile)
    assert max(numbers) - 160 < 3 and numbers[0] > 60  # far from (0, 160, 0) if they are taken for sRGB
    image = Image.new("RGB", (16, 16), numbers)
    if kind == "rgba.png":
        image = image.convert("RGBA")
    if kind == "palette.png":
        image = image.quantize(4)
    image.save(tmp_path / f"a.{kind}", icc_profile=icc(*profile), quality=100)
    found = middle(load_picture(tmp_path / f"a.{kind}", 8))
    assert max(abs(a - b) for a, b in zip(found, (0, 160, 0), strict=True)) <= 4, found
    # the official code does not look at profiles
    as_stored = middle(load_picture(tmp_path / f"a.{kind}", 8, Framing(upright=False)))
    assert max(abs(a - b) for a, b in zip(as_stored, numbers, strict=True)) <= 4


def test_the_background_of_a_transparent_picture_is_srgb(tmp_path: Path) -> None:
    Image.new("RGBA", (8, 8), (0, 0, 0, 0)).save(tmp_path / "a.png", icc_profile=icc(*P3))
    assert middle(load_picture(tmp_path / "a.png", 8, Framing(background="#00a000"))) == [0, 160, 0]


@pytest.mark.parametrize("profile", [b"no profile", icc(*P3)[:200], b"\0" * 5_000_000])
def test_a_broken_profile_is_left_aside_with_a_warning(
    tmp_path: Path, profile: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    image = Image.new("RGB", (8, 8), (10, 200, 30))
    image.save(tmp_path / "a.tif", icc_profile=profile)
    assert middle(load_picture(tmp_path / "a.tif", 8)) == [10, 200, 30]
    assert "a.tif" in caplog.text and "taken for sRGB" in caplog.text


def test_a_profile_of_other_colours_is_left_aside(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "a.tif", icc_profile=icc(*P3))
    assert middle(load_picture(tmp_path / "a.tif", 8)) == [255, 0, 0]
    assert "it is for RGB, the picture is CMYK" in caplog.text


# ------------------------------------------------------------------------------ transparency
def png(depth: int, samples: list, key: object) -> bytes:
    """A PNG 8 pixels wide and 8 high whose left half is ``samples[0]``, the right one ``samples[1]``."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    row = [samples[0]] * 4 + [samples[1]] * 4
    flat = [v for pixel in row for v in (pixel if isinstance(pixel, tuple) else (pixel,))]
    bits = "".join(format(v, f"0{depth}b") for v in flat)
    line = b"\0" + int(bits, 2).to_bytes(len(bits) // 8)
    trns = struct.pack(">3H", *key) if isinstance(key, tuple) else struct.pack(">H", key)
    head = struct.pack(">IIBBBBB", 8, 8, depth, 2 if isinstance(key, tuple) else 0, 0, 0, 0)
    body = chunk(b"IHDR", head) + chunk(b"tRNS", trns) + chunk(b"IDAT", zlib.compress(line * 8))
    return b"\x89PNG\r\n\x1a\n" + body + chunk(b"IEND", b"")


@pytest.mark.parametrize("depth", [1, 2, 4, 8, 16])
def test_a_transparent_grey_is_the_background_at_every_depth(tmp_path: Path, depth: int) -> None:
    top = 2**depth - 1
    for key, kept in ((top, 0), (0, top)):
        (tmp_path / "a.png").write_bytes(png(depth, [kept, key], key))
        image = load_picture(tmp_path / "a.png", 8, Framing(background="#0000ff"))
        assert ((image[:, 4, 6] + 1) * 127.5).round().tolist() == [0, 0, 255]
        assert ((image[:, 4, 1] + 1) * 127.5).round().tolist() == [255 * (kept > 0)] * 3


@pytest.mark.parametrize("depth", [8, 16])
def test_a_transparent_colour_is_the_background_at_every_depth(tmp_path: Path, depth: int) -> None:
    key = (0, 2 ** (depth - 1), 2**depth - 1)
    (tmp_path / "a.png").write_bytes(png(depth, [(0, 0, 0), key], key))
    image = load_picture(tmp_path / "a.png", 8, Framing(background="#ff0000"))
    assert ((image[:, 4, 6] + 1) * 127.5).round().tolist() == [255, 0, 0]
    assert ((image[:, 4, 1] + 1) * 127.5).round().tolist() == [0, 0, 0]


# ------------------------------------------------------------------------------ size
@pytest.mark.parametrize("kind", ["JPEG", "MPO"])
@pytest.mark.parametrize("limit", [3000, 1000])  # Pillow warns at its limit, and refuses at twice of it
def test_a_large_jpeg_is_decoded_smaller_and_nothing_is_printed(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    recwarn: pytest.WarningsRecorder,
    limit: int,
    kind: str,
) -> None:
    ramp = np.linspace(0, 255, 64).astype(np.uint8)[None].repeat(64, 0)
    image = Image.fromarray(ramp).convert("RGB")
    more = {"save_all": True, "append_images": [image]} if kind == "MPO" else {}  # of two lenses
    image.save(tmp_path / "a.jpg", kind, quality=100, **more)
    whole = load_picture(tmp_path / "a.jpg", 4)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1100)
    sizes = []
    monkeypatch.setattr(decode, "flatten", lambda image, *a, **k: sizes.append(image.size) or image)
    small = load_picture(tmp_path / "a.jpg", 4)
    assert sizes == [(16, 16)]  # an eighth would be less than four times what is needed
    assert torch.allclose(small, whole, atol=0.1)
    assert not recwarn.list


@pytest.mark.parametrize("suffix", ["png", "webp", "tif", "bmp", "gif", "jpg"])
def test_what_cannot_be_decoded_smaller_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder, suffix: str
) -> None:
    Image.new("RGB", (64, 64)).save(tmp_path / f"a.{suffix}", progressive=True)
    monkeypatch.setattr(decode, "MAX_PIXELS", 1000)
    monkeypatch.setattr(Image.Image, "load", lambda self: pytest.fail("it was decoded"))
    for limit in (10_000, 3000, 1000):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(UserError, match="million.*scale it down") as caught:
            load_picture(tmp_path / f"a.{suffix}", 4)
        assert f"a.{suffix}" in str(caught.value) and "\n" not in str(caught.value)
    assert not recwarn.list


# ------------------------------------------------------------------------------ the true reason
def test_a_folder_a_pipe_and_a_download_that_failed_are_named(tmp_path: Path) -> None:
    (tmp_path / "a.png").mkdir()
    os.mkfifo(tmp_path / "b.png")
    contents = {
        "c.png": (b"", "is empty"),
        "d.png": (b"<!DOCTYPE html><html>", "is a web page"),
        "e.png": (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        "f.png": (b"\x00\x00\x00\x18ftypisom\0\0\0\0", "is a video"),
        "g.png": (b"%PDF-1.7", "a PDF"),
        "h.png": (b"\x89PNG\r\n\x1a\nbroken", "corrupt"),
    }
    for name, (data, _) in contents.items():
        (tmp_path / name).write_bytes(data)
    said = {"a.png": "is a folder", "b.png": "is a pipe", "none.png": "there is no picture"}
    for name, words in {**said, **{n: w for n, (_, w) in contents.items()}}.items():
        with pytest.raises(UserError, match=words) as caught:
            load_picture(tmp_path / name, 8)
        assert name in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(("number", "words"), [(13, "permission denied"), (5, "nput/output error")])
def test_a_picture_that_may_not_be_read_is_not_called_corrupt(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, words: str
) -> None:
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")

    def refuse(*_: object, **__: object) -> None:
        raise OSError(number, os.strerror(number), "a.png")

    monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(UserError, match=f"a.png.*{words}") as caught:
        concept_of(tmp_path, 8)
    assert "corrupt" not in str(caught.value)


# ------------------------------------------------------------------------------ HEIC
HEIC = b"\x00\x00\x00\x18ftypheic\0\0\0\0mif1heic"


def test_a_heic_picture_says_how_to_convert_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(decode, "heif", lambda: False)
    (tmp_path / "a.HEIC").write_bytes(HEIC)
    for name in ("a.HEIC", "b.jpg"):  # phones call them .jpg as well
        (tmp_path / name).write_bytes(HEIC)
        with pytest.raises(UserError, match=r"HEIC.*pip install pillow-heif.*convert the picture to JPEG"):
            load_picture(tmp_path / name, 8)
    (tmp_path / "b.jpg").unlink()
    with pytest.raises(UserError, match=r"no pictures.*a.HEIC.*pip install pillow-heif.*convert it to JPEG"):
        list_pictures(tmp_path)
    Image.new("RGB", (8, 8)).save(tmp_path / "c.png")
    caplog.clear()
    assert len(concept_of(tmp_path, 8)) == 1
    assert "a.HEIC" in caplog.text and "convert it to JPEG" in caplog.text


def test_heic_is_read_where_pillow_heif_is_installed(tmp_path: Path) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.register_heif_opener()
    Image.new("RGB", (64, 64), encoded((0, 160, 0), *P3)).save(tmp_path / "a.HEIC", icc_profile=icc(*P3))
    found = middle(concept_of(tmp_path, 8).images[0])
    assert max(abs(a - b) for a, b in zip(found, (0, 160, 0), strict=True)) <= 8


def test_pillow_heif_is_registered_once_it_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    called: list[int] = []
    stub = types.SimpleNamespace(register_heif_opener=lambda: called.append(1))
    monkeypatch.setitem(sys.modules, "pillow_heif", stub)
    assert decode.heif.__wrapped__() and called == [1]


# ------------------------------------------------------------------------------ memory in the header's name
def test_a_small_file_of_many_pixels_is_refused_before_it_takes_memory(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("1", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = struct.pack(">II", 9000, 9000)
    data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
    (tmp_path / "a.png").write_bytes(data)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(UserError, match="9000 x 9000 pixels, more than the 67 million"):
            load_picture(tmp_path / "a.png", 8)


def test_a_folder_is_listed_in_linear_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Membership is looked up, not searched: comparisons of paths stay few."""
    for i in range(400):
        (tmp_path / f"{i}.png").touch()
        (tmp_path / f"{i}.txt").touch()
        (tmp_path / f"{i}.xyz").touch()
    compared = 0
    equal = Path.__eq__

    def counted(self: Path, other: object) -> bool:
        nonlocal compared
        compared += 1
        return equal(self, other)

    kind = type(tmp_path)
    with pytest.MonkeyPatch.context() as patch, caplog.at_level(logging.WARNING):
        patch.setattr(kind, "__eq__", counted, raising=False)
        assert len(list_pictures(tmp_path)) == 400
    assert compared < 10 * 1200
    assert len(caplog.records) == 21 and "380 more" in caplog.text
