"""A learned word in memory, and what its width says about the model that it belongs to."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldm.errors import UserError
from ldm.names import normal

#: Bounds of what a file may claim; the largest known embeddings are 77 vectors of width 4096.
MAX_VALUES = 2**24
MAX_NAME = 1000

#: Widths of the token embeddings of one or two text encoders -> the base models that have them.
_BASES = {
    (256,): "the shipped emoji model",
    (768,): "Stable Diffusion v1",
    (1024,): "Stable Diffusion v2",
    (1280,): "LDM with BERT, or clip_g of SDXL",
    (768, 1280): "SDXL",
    (4096,): "T5-XXL of Stable Diffusion 3 or FLUX",
}


def likely_base(*widths: int) -> str:
    """The base model whose text encoder(s) have these widths, in words; empty if none is known."""
    return _BASES.get(widths, "")


def width_in_words(*widths: int) -> str:
    """``768 (Stable Diffusion v1)``; the width alone where no model of that width is known."""
    base = likely_base(*widths)
    return " + ".join(map(str, widths)) + (f" ({base})" if base else "")


@dataclass(frozen=True, eq=False)
class Embedding:
    """One learned word.

    Attributes:
        placeholder: Its name, in the one spelling that names have.
        vectors: (K, D) float32 on the CPU; or (m, K, D), m sets of vectors, one for each of the UNet's
            cross-attention layers or for whatever the kind of word says.
        metadata: Where the word came from: base model, step, seed, init, hashes of the pictures; and its
            ``kind``, if it is not plain.
        second: Of a word of SDXL the (K, D') vectors of the second text encoder, else ``None``.
        parts: What a kind of word needs beside its vectors, float32 tensors by name.
        dtype: The type that the vectors were given in.

    Raises:
        UserError: the vectors are not K >= 1 finite rows, the two sets are not of one shape but for their
            width, or the name is empty or cannot be printed.
    """

    placeholder: str
    vectors: Tensor
    metadata: dict[str, str] = field(default_factory=dict)
    second: Tensor | None = None
    parts: Mapping[str, Tensor] = field(default_factory=dict)
    dtype: torch.dtype = field(init=False)

    def __post_init__(self) -> None:
        name = normal(self.placeholder)
        if not name:
            raise UserError("an embedding needs a name: give a placeholder that is not empty")
        if len(name) > MAX_NAME or any(unicodedata.category(c) in {"Cc", "Cs"} for c in name):
            raise UserError(
                f"{name[:40]!r} is no name for an embedding: it is longer than "
                f"{MAX_NAME} characters or holds control characters"
            )
        object.__setattr__(self, "placeholder", name)
        metadata = {_utf8(key): _utf8(value) for key, value in self.metadata.items()}
        object.__setattr__(self, "metadata", metadata)
        object.__setattr__(self, "dtype", self.vectors.dtype)
        object.__setattr__(self, "vectors", _rows(name, self.vectors))
        parts = {name: _part(self.placeholder, part) for name, part in self.parts.items()}
        object.__setattr__(self, "parts", parts)
        if self.second is not None:
            object.__setattr__(self, "second", _rows(name, self.second))
            if self.second.shape[:-1] != self.vectors.shape[:-1]:
                raise UserError(
                    f"the embedding {name!r} has {self.K} vectors for the first text "
                    f"encoder and {self.second.shape[-2]} for the second: it is damaged"
                )

    @property
    def K(self) -> int:
        """Number of vectors, that is of tokens the word takes in a prompt."""
        return self.vectors.shape[-2]

    @property
    def D(self) -> int:
        """Width of the (first) text encoder's token embeddings."""
        return self.vectors.shape[-1]

    @property
    def sets(self) -> int | None:
        """m, how many sets of K vectors it has; ``None``: a single one, which any tool can use."""
        return self.vectors.shape[0] if self.vectors.ndim == 3 else None

    @property
    def kind(self) -> str:
        """The kind of word (``ldm.words.kinds``)."""
        return self.metadata.get("kind") or ("per_layer" if self.sets else "plain")

    @property
    def layers(self) -> int | None:
        """Layers of the denoiser that have vectors of their own; None: all read the same."""
        return self.sets if self.kind == "per_layer" else None

    @property
    def set_names(self) -> list[str]:
        """What each set of vectors is called: "layer 3", or "per_stage 3"; empty for a single one."""
        name = "layer" if self.kind in ("per_layer", "space_time") else self.kind
        return [f"{name} {i + 1}" for i in range(self.sets or 0)]

    @property
    def only_ours(self) -> bool:
        """Whether other tools have no place for what makes it a word."""
        return self.sets is not None or bool(self.parts)

    @property
    def widths(self) -> tuple[int, ...]:
        """(D,), or (D, D') of SDXL's two text encoders."""
        return (self.D,) if self.second is None else (self.D, self.second.shape[-1])

    @property
    def size(self) -> str:
        """How many vectors of which width, in words: ``2 of width 768 (Stable Diffusion v1)``."""
        each = f", for each of {self.layers} layers" if self.layers else ""
        each = each or (f", {self.sets} times ({self.kind})" if self.sets else "")
        return f"{self.K} of width {width_in_words(*self.widths)}{each}"


def _utf8(text: str) -> str:
    """``text`` with "?" for lone surrogates, which pickles and JSON can hold and files cannot."""
    return text.encode("utf-8", "replace").decode()


def _part(name: str, part: Tensor) -> Tensor:
    """A float32 copy of finite numbers of any shape."""
    part = part.detach()
    plain = part.is_floating_point() and part.layout is torch.strided and not part.is_meta
    if not plain or not 0 < part.numel() <= MAX_VALUES:
        raise UserError(f"the embedding {name!r} holds a part of shape {tuple(part.shape)}, which is none")
    part = part.to("cpu", torch.float32, copy=True).contiguous()
    if not part.isfinite().all():
        raise UserError(f"the embedding {name!r} holds parts that are not finite: use an earlier step")
    return part


def _rows(name: str, vectors: Tensor) -> Tensor:
    """A float32 copy of finite numbers (n, K, D), (K, D) or (D,), the last as (1, D). Sizes are checked
    before values."""
    vectors = vectors.detach()
    vectors = vectors[None] if vectors.ndim == 1 else vectors  # old diffusers files hold (D,)
    dense = vectors.layout is torch.strided and not vectors.is_meta
    if vectors.ndim not in (2, 3) or 0 in vectors.shape or not vectors.is_floating_point() or not dense:
        raise UserError(
            f"the embedding {name!r} is no set of vectors: it has "
            f"shape {tuple(vectors.shape)} and type {vectors.dtype}"
        )
    if vectors.numel() > MAX_VALUES:
        raise UserError(f"the embedding {name!r} is too large to be one: it has shape {tuple(vectors.shape)}")
    vectors = vectors.to("cpu", torch.float32, copy=True).contiguous()
    if not vectors.isfinite().all():
        raise UserError(
            f"the embedding {name!r} holds values that are not finite: "
            "its training diverged, use an earlier step"
        )
    return vectors
