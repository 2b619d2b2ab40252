"""Damage of every kind: to bytes, parts of a zip, chunks of a PNG, a safetensors header, a text."""

from __future__ import annotations

import io
import random
import re
import struct
import zipfile
import zlib
from collections.abc import Callable

#: what a text may hold in place of a value
NASTY = (
    b"-1", b"0", b"1e309", b"-1e309", b"9223372036854775808", b"1" + b"0" * 400, b".nan", b"NaN", b"null",
    b"~", b"true", b"[]", b"{}", b"[[[[[[]]]]]]", b'""', b"''", b'"\\ud800"', b"\xff\xfe", b"\0",
    b"a" * 5000, b"\xe2\x80\xa8", b"${a}", b"${oc.env:HOME}", b"${model}", b"&a [*a]", b"*a",
    b"!!python/object/apply:os.mkdir [fuzzed]", b"!!binary abc", b"<<: x", b"../../etc/passwd", b"/dev/zero",
    b"/", b"ldm.errors.UserError", b"os.system", b"[" * 20_000, b'{"a":' * 20_000, b"- " * 3000,
    b"2001-01-01", b"0x1f", b"1_000", b"{{{", b"]", b"}", b":", b"- -", b"|", b"%",
    b"\xf0\x9f\x99\x82", b"\r",
)  # fmt: skip


def damaged(data: bytes, draw: random.Random) -> bytes:
    """The bytes cut, flipped, replaced, repeated or filled, often near their beginning."""
    if not data:
        return draw.randbytes(draw.randrange(64))
    at = draw.randrange(min(len(data), draw.choice((16, 64, 400, len(data)))))
    how = draw.randrange(7)
    if how == 0:
        return data[:at]
    if how == 1:
        end = min(len(data), at + draw.choice((1, 8, 100)))
        return data[:at] + data[end:]
    if how == 2:
        return data[:at] + data[at : at + draw.choice((1, 8, 100))] * draw.choice((2, 50)) + data[at:]
    if how == 3:
        fill = draw.choice((b"\0", b"\xff", b"\x80", b"[", b"{"))
        count = draw.choice((1, 4, 8, 64))
        return data[:at] + fill * count + data[at + count :]
    if how == 4:
        return data[:at] + draw.choice(NASTY) + data[at:]
    broken = bytearray(data)
    for _ in range(draw.choice((1, 1, 2, 4, 16))):
        at = draw.randrange(min(len(data), draw.choice((64, 400, len(data)))))
        broken[at] = broken[at] ^ 1 << draw.randrange(8) if how == 5 else draw.randrange(256)
    return bytes(broken)


def text(data: bytes, draw: random.Random) -> bytes:
    """A text with a word replaced, a line taken out, repeated, moved or indented, or damaged as bytes."""
    how = draw.randrange(6)
    words = list(re.finditer(rb"[^\s,:\[\]{}\"']+", data))
    if how <= 2 and words:
        for _ in range(draw.choice((1, 1, 3))):
            word = draw.choice(words)
            if draw.randrange(3):
                new = draw.choice(NASTY)
            else:
                new = draw.choice(words).group()
            data = data[: word.start()] + new + data[word.end() :]
        return data
    if how == 5:
        return damaged(data, draw)
    lines = data.split(b"\n")
    at = draw.randrange(len(lines))
    line = lines.pop(at)
    if how == 3:
        lines[draw.randrange(len(lines) + 1) : 0] = [line] * draw.choice((0, 1, 2))
    else:
        lines.insert(at, b" " * draw.choice((1, 2, 7)) + line)
    return b"\n".join(lines)


def safetensors(data: bytes, draw: random.Random) -> bytes:
    """Another header, of its true length, before the same tensors."""
    (size,) = struct.unpack("<Q", data[:8])
    header = text(data[8 : 8 + size], draw)
    return struct.pack("<Q", len(header)) + header + data[8 + size :]


def zipped(data: bytes, draw: random.Random) -> bytes:
    """One part damaged, in a zip that is whole; now and then two parts swapped or one left out."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        parts = [(part.filename, archive.read(part)) for part in archive.infolist()]
    at = next((i for i, (name, _) in enumerate(parts) if name.endswith("data.pkl")), 0)
    if draw.randrange(3) == 0:
        at = draw.randrange(len(parts))
    name, content = parts[at]
    how = draw.randrange(12)
    if how == 0:
        del parts[at]
    elif how == 1:
        parts[at] = (draw.choice(parts)[0], content)
    else:
        parts[at] = (name, (text if how < 5 else damaged)(content, draw))
    stream = io.BytesIO()
    packing = zipfile.ZIP_DEFLATED if draw.randrange(10) == 0 else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", packing) as archive:
        for name, content in {name: content for name, content in parts}.items():
            archive.writestr(name, content)
    return stream.getvalue()


def png(data: bytes, draw: random.Random) -> bytes:
    """One chunk damaged, its checksum right; or left out, repeated or moved."""
    chunks, at = [], 8
    while at + 12 <= len(data):
        (size,) = struct.unpack(">I", data[at : at + 4])
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + size]))
        at += 12 + size
    which = 0 if draw.randrange(4) == 0 else draw.randrange(len(chunks))
    name, content = chunks.pop(which)
    how = draw.randrange(8)
    if how == 0:
        chunks[draw.randrange(len(chunks) + 1) : 0] = [(name, content)] * draw.choice((0, 2))
    else:
        if name == b"IDAT" and how < 4:
            content = zlib.compress(damaged(zlib.decompress(content), draw))
        elif name == b"IHDR" and how < 6:
            sides = draw.choices((0, 1, 4, 300, 5000, 20_000, 2**31 - 1), k=2)
            content = struct.pack(">II", *sides) + content[8:]
        else:
            content = (text if name in (b"iTXt", b"tEXt") else damaged)(content, draw)
        chunks.insert(which, (name, content))
    packed = (struct.pack(">I", len(c)) + n + c + struct.pack(">I", zlib.crc32(n + c)) for n, c in chunks)
    return data[:8] + b"".join(packed)


def mutate(data: bytes, draw: random.Random) -> bytes:
    """Damage to what the bytes are, told by their beginning; or to the bytes."""
    own: Callable[[bytes, random.Random], bytes] = text
    if data.startswith(b"PK"):
        own = zipped
    elif data.startswith(b"\x89PNG"):
        own = png
    elif data[8:9] == b"{" and data[5:8] == b"\0\0\0":
        own = safetensors
    elif b"\0" in data[:4000]:
        own = damaged
    return (own if draw.randrange(3) else damaged)(data, draw)
