"""Keep what the rest of a prompt says (CoRe, arXiv 2408.15914, AAAI 2025, its first term).

A word that is well placed among the vocabulary leaves the tokens around it what they are beside an ordinary
word. With the text encoder's outputs h of a prompt with S*, and c of the same prompt with a class word,

    distance = mean over the other tokens i of 1 - cos(h_i, c_i)

Only the text encoder is run: no picture belongs to such a prompt. S* takes k positions and the class word m.
What follows them stands at other positions in the two prompts, and is paired by its place behind them.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.device import carry
from ldm.text.conditioner import TextConditioner
from ldm.words.manager import EmbeddingManager


def context_distance(
    text: TextConditioner,
    manager: EmbeddingManager,
    ids: Tensor,
    placeholder: str,
    class_ids: Sequence[int],
    step: int | None = None,
    t: Tensor | None = None,
) -> Tensor:
    """Mean of 1 - cos over the other tokens of B prompts, and over the denoiser's layers; a scalar.

    All positions but those of the two words count, padding included, since the denoiser reads them all.
    The gradient reaches the word; the prompts with the class word are constants.

    Args:
        ids: (B, L) int64 on the host: framed prompts that hold the placeholder once.
        placeholder: S*.
        class_ids: the class word's m tokens.
        step: optimiser step, by which a progressive word has k vectors.
        t: (B,) timesteps on the host, for words that vary with time.
    """
    private, k, m = manager.placeholders[placeholder], manager.count(placeholder, step), len(class_ids)
    begins = (ids == private).int().argmax(dim=1, keepdim=True)  # (B, 1)
    other_ids = _replaced(ids, begins, class_ids)
    own_ids, own, _ = manager(ids, text.embed(ids), step, t)  # (B, L), (B, n, L, D)
    h = text.contexts(own, own_ids)
    with torch.no_grad():  # after the other one: autocast keeps the weights that it was given first
        c = text.contexts(text.embed(other_ids)[:, None], other_ids)  # (B, 1, L, D)
    places = torch.arange(ids.shape[1] - max(k, m)).expand(len(ids), -1)  # (B, N) of those that are compared
    behind = places >= begins
    at, other_at = places + k * behind, places + m * behind
    same = own_ids.gather(1, at) == other_ids.gather(1, other_at)  # not where a prompt was cut
    distance = 1 - F.cosine_similarity(_take(h, at), _take(c, other_at), dim=-1)  # (B, n, N)
    weights = carry(same / (same.sum() * distance.shape[1]), distance.device)
    return (distance * weights[:, None]).sum()


def _replaced(ids: Tensor, begins: Tensor, words: Sequence[int]) -> Tensor:
    """Prompts (B, L) with ``words`` in place of the token at ``begins`` (B, 1), cut at L."""
    rows = zip(ids.tolist(), begins[:, 0].tolist(), strict=True)
    return torch.tensor([[*row[:at], *words, *row[at + 1 :]][: len(row)] for row, at in rows])


def _take(features: Tensor, at: Tensor) -> Tensor:
    """Rows ``at`` (B, N) of features (B, n, L, D), float32."""
    where = carry(at, features.device)[:, None, :, None]
    return features.take_along_dim(where, dim=2).float()
