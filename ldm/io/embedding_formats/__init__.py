"""The embedding formats of the tools that people use: one table.

A file's format is told by what it holds, never by its suffix: the first row of :data:`FORMATS`
that recognises the content reads it. A format to write is asked for by name, else it is the
usual one of the new file's suffix.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch.nn import ParameterDict

from ldm.errors import UserError
from ldm.io.embedding_formats import layouts
from ldm.io.embedding_formats.content import Content
from ldm.io.embedding_formats.layouts import Reader, Writer


@dataclass(frozen=True)
class Format:
    """One format. encoders: text encoders that its words have vectors for. several: words a file.
    every_kind: it has a place for words of every kind, not for (K, D) alone."""

    name: str
    suffix: str
    title: str
    recognises: Callable[[Content], bool]
    read: Reader
    write: Writer
    encoders: int = 1
    several: bool = False
    every_kind: bool = False


def _has(*names: str) -> Callable[[Content], bool]:
    return lambda content: any(name in content.values for name in names)


def _official(content: Content) -> bool:
    return isinstance(content.values.get("string_to_param"), ParameterDict) and "name" not in content.values


def _clip_l(content: Content) -> bool:
    return "clip_l" in content.values and not {"clip_g", "clip_g_out"} & set(content.values)


def _never(_: Content) -> bool:
    return False  # its files read as two of one text encoder each


_PAIR, _PIVOTAL = ("clip_l", "clip_g"), ("text_encoders_0", "text_encoders_1")

FORMATS = (
    Format(
        "official",
        ".pt",
        "Textual Inversion's own code",
        _official,
        layouts.read_string_to_param,
        layouts.write_official,
        several=True,
    ),
    Format(
        "a1111-png",
        ".png",
        "AUTOMATIC1111 web UI, in a picture",
        lambda content: content.container == "picture",
        layouts.read_string_to_param,
        layouts.write_a1111("picture"),
    ),
    Format(
        "a1111-pt",
        ".pt",
        "AUTOMATIC1111 web UI",
        _has("string_to_param"),
        layouts.read_string_to_param,
        layouts.write_a1111("pickle"),
    ),
    Format(
        "clip-l",
        ".safetensors",
        "CLIP ViT-L alone, as SDXL's and SD3's tools call it",
        _clip_l,
        layouts.read_unnamed("clip_l"),
        layouts.write_unnamed("clip_l"),
    ),
    Format(
        "sdxl",
        ".safetensors",
        "SDXL in one file: kohya, OneTrainer, web UIs",
        _has(*_PAIR, *(f"{name}_out" for name in _PAIR)),
        layouts.read_pair(*_PAIR),
        layouts.write_pair(*_PAIR),
        encoders=2,
    ),
    Format(
        "sdxl-pivotal",
        ".safetensors",
        "SDXL pivotal tuning",
        _has(*_PIVOTAL),
        layouts.read_pair(*_PIVOTAL),
        layouts.write_pair(*_PIVOTAL),
        encoders=2,
    ),
    Format(
        "sdxl-diffusers",
        ".safetensors",
        "SDXL in two files, of diffusers",
        _never,
        layouts.read_named,
        layouts.write_named_twice,
        encoders=2,
    ),
    Format(
        "onetrainer",
        ".safetensors",
        "OneTrainer",
        _has("emp_params", "emp_params_out"),
        layouts.read_unnamed("emp_params"),
        layouts.write_unnamed("emp_params"),
    ),
    Format(
        "kohya",
        ".safetensors",
        "kohya's sd-scripts",
        _has("emb_params"),
        layouts.read_unnamed("emb_params"),
        layouts.write_unnamed("emb_params"),
    ),
    Format(
        "diffusers-bin",
        ".bin",
        "diffusers, pickled",
        lambda content: content.container == "pickle",
        layouts.read_named,
        layouts.write_named("pickle"),
        several=True,
    ),
    Format(
        "diffusers",
        ".safetensors",
        "ours, and diffusers",
        lambda _: True,
        layouts.read_named,
        layouts.write_named("safetensors"),
        several=True,
        every_kind=True,
    ),
)

#: (suffix, text encoders) -> the format that is written where none is asked for.
_USUAL = {
    (".safetensors", 1): "diffusers",
    (".pt", 1): "official",
    (".bin", 1): "diffusers-bin",
    (".png", 1): "a1111-png",
    (".safetensors", 2): "sdxl",
}


def recognise(content: Content) -> Format:
    """The format of a file that holds ``content``."""
    return next(known for known in FORMATS if known.recognises(content))


def to_write(path: Path, encoders: int, name: str | None = None) -> Format:
    """The format called ``name``, else the usual one of ``path``'s suffix, for so many encoders.

    :class:`UserError` if there is none, or if the suffix or the encoders do not suit it: the tools
    that read a format choose their reader by the suffix.
    """
    wanted = name or _USUAL.get((path.suffix, encoders))
    found = next((known for known in FORMATS if known.name == wanted), None)
    if found is None and name:
        raise UserError(
            f"there is no embedding format {name!r}; the formats are "
            f"{', '.join(known.name for known in FORMATS)}"
        )
    if found is None:
        suffixes = [suffix for suffix, n in _USUAL if n == encoders]
        raise UserError(f"cannot write {path}: name it {' or '.join(suffixes)}, or give a format")
    if found.encoders != encoders:
        others = ", ".join(known.name for known in FORMATS if known.encoders == encoders)
        raise UserError(
            f"cannot write {path} as {found.name}: that is for models with "
            f"{found.encoders} text encoder(s), the embedding is for {encoders}; "
            f"choose {others}"
        )
    if path.suffix != found.suffix:
        raise UserError(
            f"cannot write {path} as {found.name}: its readers go by the suffix, "
            f"name it {path.stem}{found.suffix}"
        )
    return found
