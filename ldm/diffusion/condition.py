"""Condition: what a denoiser is told beside z_t and t.

A text-to-image network reads a context of token features in each of its cross-attention layers. Most
prompts give one context for every layer and every timestep. A learned word may say something else in each
layer (Voynov et al. 2023, arXiv 2303.09522), or at each noise level (Zhang et al. 2023, arXiv 2305.16225).
A condition answers both questions: ``at(t)`` is the :class:`Context` at a timestep, and the context says
what each layer reads.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from einops import rearrange
from torch import Tensor

from ldm.errors import UserError

Layer = Tensor | tuple[Tensor, Tensor]
"""What one cross-attention reads: (B, L, D), or a pair of them, for its keys and for its values."""


class Condition(ABC):
    """B rows, one a picture, of what a denoiser is told; a frozen value.

    ``len(condition)`` is B, and ``condition[rows]`` holds some of the rows, chosen by a slice or by a tensor
    of indices (b,).
    """

    @abstractmethod
    def at(self, t: Tensor) -> Context:
        """The context at timesteps t (B,) int64, one a row."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __getitem__(self, rows: slice | Tensor) -> Condition: ...

    def expand(self, rows: int, name: str = "cond") -> Condition:
        """As many rows: one row serves all of them.

        Raises:
            UserError: it has another number of rows; ``name`` is what the message calls it.
        """
        if len(self) == rows:
            return self
        if len(self) == 1:
            return self[torch.zeros(rows, dtype=torch.int64)]
        raise wrong_rows(name, len(self), rows)


@dataclass(frozen=True, eq=False)
class Context(Condition):
    """What the network reads at one timestep, or at all of them where nothing varies with it.

    Attributes:
        tokens: (B, n, L, D) features of the prompt's L positions, for each of the network's n
            cross-attention layers in the order of computation; n = 1 serves all layers.
        values: (B, n, L, D) where attention takes its values from other features than its keys.
        pooled: (B, P) one vector a prompt, for networks that read the text as a whole too.
    """

    tokens: Tensor
    values: Tensor | None = None
    pooled: Tensor | None = None

    @classmethod
    def of(cls, given: Context | Tensor) -> Context:
        """A plain tensor (B, L, D), one context for all layers, as a context; a context as it is.

        Raises:
            UserError: a tensor of another shape.
        """
        if isinstance(given, Context):
            return given
        if len(given.shape) != 3:
            raise UserError(
                f"a condition of shape {tuple(given.shape)} is none: give (B, L, D), or "
                "ldm.diffusion.condition.Context(tokens) with tokens (B, n, L, D), one context for each layer"
            )
        return cls(rearrange(given, "b l d -> b 1 l d"))

    @property
    def layers(self) -> tuple[Layer, ...]:
        """What each layer reads: n entries, or one for all."""
        keys = self.tokens.unbind(1)
        return keys if self.values is None else tuple(zip(keys, self.values.unbind(1), strict=True))

    @property
    def size(self) -> tuple[int, int]:
        """(L, D), positions and their width."""
        return self.tokens.shape[-2], self.tokens.shape[-1]

    def at(self, t: Tensor | None = None) -> Context:
        return self

    def to(self, like: Tensor | torch.dtype | torch.device) -> Context:
        """In another precision or on another device, or in those of a tensor."""
        return self._each(lambda part: part.to(like))

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, rows: slice | Tensor) -> Context:
        return self._each(lambda part: part[rows])

    def expand(self, rows: int, name: str = "cond") -> Context:
        if len(self) == 1 != rows:
            return self._each(lambda part: part.expand(rows, *part.shape[1:]))
        super().expand(rows, name)
        return self

    def _each(self, change: Callable[[Tensor], Tensor]) -> Context:
        parts = {name: part for name, part in vars(self).items() if part is not None}
        return replace(self, **{name: change(part) for name, part in parts.items()})


@dataclass(frozen=True, eq=False)
class Varying(Condition):
    """A condition that is another one at other noise levels.

    Attributes:
        encode: rows (b,), t (b,), both int64 -> the context of b rows. It is called by every ``at``, and
            may keep what it has found.
        rows: (B,) int64 on the host, which of ``encode``'s rows these are.
    """

    encode: Callable[[Tensor, Tensor], Context]
    rows: Tensor

    def at(self, t: Tensor) -> Context:
        return self.encode(self.rows, t)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, rows: slice | Tensor) -> Varying:
        return replace(self, rows=self.rows[rows if isinstance(rows, slice) else rows.cpu()])


def wrong_rows(name: str, found: int, wanted: int) -> UserError:
    """The error for a condition that has neither one row for each of the latents nor a single one."""
    return UserError(f"{name} has {found} rows for {wanted} latents: give {wanted} rows, or 1")


def condition_of(given: Condition | Tensor) -> Condition:
    """A condition as it is, and a plain tensor (B, L, D) as the :class:`Context` of all layers."""
    return given if isinstance(given, Condition) else Context.of(given)


def cat(conditions: Sequence[Condition]) -> Condition:
    """The rows of several conditions as one.

    Where one of them has a context for each layer, all do in the result; where one varies with time, the
    result does.

    Raises:
        UserError: they have prompts of several lengths or widths.
    """
    contexts = [one for one in conditions if isinstance(one, Context)]
    return cat_contexts(contexts) if len(contexts) == len(conditions) else _cat_varying(conditions)


def cat_contexts(contexts: Sequence[Context]) -> Context:
    """:func:`cat` of what does not vary with time."""
    if len(contexts) == 1:
        return contexts[0]
    if len({one.size for one in contexts}) > 1:
        shapes = " and ".join(str(tuple(one.tokens.shape)) for one in contexts)
        raise UserError(f"contexts of shapes {shapes} must have one length and width")
    n = max(one.tokens.shape[1] for one in contexts)
    apart = any(one.values is not None for one in contexts)

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.expand(-1, n, -1, -1) for part in parts])

    pooled = [one.pooled for one in contexts if one.pooled is not None]
    if pooled and len(pooled) < len(contexts):
        raise UserError("some conditions have pooled text and others have none: make them alike")
    return Context(
        stacked([one.tokens for one in contexts]),
        stacked([one.tokens if one.values is None else one.values for one in contexts]) if apart else None,
        torch.cat(pooled) if pooled else None,
    )


def _cat_varying(conditions: Sequence[Condition]) -> Varying:
    part = torch.cat([torch.full((len(one),), i) for i, one in enumerate(conditions)])
    own = torch.cat([torch.arange(len(one)) for one in conditions])

    def encode(rows: Tensor, t: Tensor) -> Context:
        found, places = [], []
        for i, one in enumerate(conditions):
            (mine,) = torch.where(part[rows] == i)
            if len(mine):
                found.append(one[own[rows[mine]]].at(t[mine.to(t.device)]))
                places.append(mine)
        return cat_contexts(found)[torch.cat(places).argsort()]

    return Varying(encode, torch.arange(len(part)))
