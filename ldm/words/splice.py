"""Where vectors go in a prompt: the arithmetic of putting words in, without a loop over words or rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm.device import carry
from ldm.words.kind import Word

NEVER = torch.iinfo(torch.int64).max


class Placed(NamedTuple):
    """B prompts with their words in place: ids (B, L), embeds (B, n, L, D), and aside (B, n, L, D), what the
    words say to the values of cross-attention alone, ``None`` where none does."""

    ids: Tensor
    embeds: Tensor
    aside: Tensor | None = None


def join(prompts: Sequence[Placed]) -> Placed:
    """The rows of several as one, with as many layers as any of them has."""
    n = max(one.embeds.shape[1] for one in prompts)

    def stacked(parts: Sequence[Tensor]) -> Tensor:
        return torch.cat([part.expand(-1, n, -1, -1) for part in parts])

    said = [torch.zeros_like(one.embeds) if one.aside is None else one.aside for one in prompts]
    return Placed(
        torch.cat([one.ids for one in prompts]),
        stacked([one.embeds for one in prompts]),
        None if all(one.aside is None for one in prompts) else stacked(said),
    )


class Index(NamedTuple):
    """Finds P placeholders in ids: their sorted ids (P,), the rows where their vectors begin when all are one
    table (P,), and the step from which each vector is used (P, max K)."""

    ids: Tensor
    first_row: Tensor
    starts_at: Tensor


def index_of(
    ids: Sequence[int], counts: Sequence[int], growth: Sequence[Sequence[int]], device: torch.device
) -> Index:
    """The index of P placeholders by rising id.

    Args:
        ids: their private ids.
        counts: K of each.
        growth: for each, the K - 1 steps at which the second, third, ... vector comes into use; empty: none
            has to wait.
        device: where prompts are looked at.
    """
    starts_at = torch.full((len(ids), max(counts)), NEVER)  # NEVER for the vectors that do not exist
    for i, (count, steps) in enumerate(zip(counts, growth, strict=True)):
        starts_at[i, :count] = torch.tensor((-NEVER, *(steps or (-NEVER,) * (count - 1))))
    rows = torch.tensor([0, *counts]).cumsum(dim=0)[:-1]
    return Index(torch.tensor(ids).to(device), rows.to(device), starts_at.to(device))


def places(
    ids: Tensor, index: Index, step: int | Tensor | None, kept_end: int | None
) -> tuple[Tensor, Tensor]:
    """What stands at every position once each placeholder has become its vectors in use.

    Args:
        ids: (B, L) int64.
        index: of the placeholders.
        step: optimiser step, one for all or a (B,) tensor; ``None``: all vectors are in use.
        kept_end: id of the end token where it stays the last position of a prompt that is cut.

    Returns:
        source (B, L), which input token stands there, and row (B, L), which row of the joined tables, or -1
        for an ordinary token.
    """
    now: int | Tensor = NEVER - 1 if step is None else step
    if isinstance(now, Tensor):
        now = rearrange(now, "b -> b 1 1").to(ids.device)
    slot = torch.searchsorted(index.ids, ids.contiguous()).clamp(max=len(index.ids) - 1)
    is_ours = index.ids[slot] == ids
    in_use = (index.starts_at[slot] <= now).sum(dim=2)
    width = torch.where(is_ours, in_use, 1)  # (B, L) positions that an input token takes
    begin = width.cumsum(dim=1) - width  # (B, L) its first one; rises strictly

    position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).contiguous()
    source = torch.searchsorted(begin, position, right=True) - 1
    if kept_end is not None:
        source = _with_end(ids == kept_end, begin, source)
    vector = position - begin.gather(1, source)
    row = torch.where(is_ours.gather(1, source), index.first_row[slot].gather(1, source) + vector, -1)
    return source, row


def _with_end(is_end: Tensor, begin: Tensor, source: Tensor) -> Tensor:
    """Show the end token at the last position of the rows where it would fall off."""
    end = is_end.int().argmax(dim=1, keepdim=True)  # the first one
    fell_off = is_end.any(dim=1, keepdim=True) & (begin.gather(1, end) >= is_end.shape[1])
    last = torch.where(fell_off, end, source[:, -1:])
    return torch.cat([source[:, :-1], last], dim=1)


def look_up(
    words: Sequence[Word], rows: Tensor, t: Tensor | None, kept: Tensor | None = None
) -> tuple[Tensor, Tensor | None]:
    """What rows (B, L) of the words' joined tables name, at timesteps t (B,).

    Args:
        kept: (B,) how many units count of the words that have any.

    Returns:
        Vectors (B, n or 1, L, D), and in the same shape what they say to the values of cross-attention alone,
        ``None`` where no word says anything.

    Raises:
        ValueError: there is no ``t``, and a word varies with time.
    """
    varying = any(word.varies_with_time for word in words)
    if varying and t is None:
        raise ValueError("a word that varies with time needs the timesteps t")
    t = carry(t, rows.device) if varying and t is not None else None
    kept = None if kept is None else carry(kept, rows.device)
    own = [word(t, kept) if word.units else word(t) for word in words]  # each (B or 1, n or 1, K, D), or two
    pairs = [said if isinstance(said, tuple) else (said, None) for said in own]
    vectors = _rows_of([v for v, _ in pairs], rows)
    if all(aside is None for _, aside in pairs):
        return vectors, None
    return vectors, _rows_of([torch.zeros_like(v) if aside is None else aside for v, aside in pairs], rows)


def _rows_of(tables: Sequence[Tensor], rows: Tensor) -> Tensor:
    """Rows (B, L) of joined tables, each (B or 1, n or 1, K, D): (B, n or 1, L, D)."""
    times, layers = max(len(v) for v in tables), max(v.shape[1] for v in tables)
    table = torch.cat([v.expand(times, layers, -1, -1) for v in tables], dim=2)  # (B or 1, n, R, D)
    first = table.shape[2] * torch.arange(times * layers, device=rows.device)
    where = rearrange(first, "(b n) -> b n 1", n=layers) + rearrange(rows, "b l -> b 1 l")
    return F.embedding(where, rearrange(table, "b n r d -> (b n r) d"))
