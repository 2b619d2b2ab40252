"""Where v* starts: a phrase's token embeddings, its encoder outputs, or nowhere in particular.

Textual Inversion starts from the embedding of one coarse word (Gal et al. 2022, section 4). Here
any phrase will do, and several vectors do not start as identical copies, which would receive
nearly identical gradients. The official rules are ``copies`` and ``uniform`` (``CompatConfig``).
CrossInit (arXiv 2312.15905) starts from the phrase's *output* embeddings, which learned vectors come near to
in length and direction.

All functions that make a start take a table of embeddings (V, D) and an explicit generator, and return
float32 vectors on the table's device.
"""

import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Generator, Tensor

from ldm.errors import UserError
from ldm.official.quirks import FIXED, CompatConfig
from ldm.text.conditioner import TextConditioner


class Neighbour(NamedTuple):
    """A vocabulary word near a learned vector."""

    word: str
    cosine: float
    distance: float  # euclidean


def from_phrase(
    table: Tensor, ids: Sequence[int], k: int, generator: Generator, noise: float = 0.05
) -> Tensor:
    """K vectors from the tokens of a phrase, (k, D).

    Tokens are cycled to K; a token's second and later copies get Gaussian noise whose norm is the
    fraction ``noise`` of the token's. A phrase with more tokens than K is cut into K runs, and each
    vector is the mean of a run, at the mean norm of its tokens.

    Args:
        table: token embeddings (V, D).
        ids: the phrase's token ids, without frame and padding.

    Raises:
        UserError: the phrase has no tokens.
    """
    if not ids:
        raise UserError("the init phrase has no words; give one, or leave it out")
    words = _rows(table, ids)
    if len(words) >= k:
        return torch.stack([_mean_word(run) for run in torch.tensor_split(words, k)])
    turn = torch.arange(k, device=words.device)
    vectors = words[turn % len(words)]
    size = noise * vectors.norm(dim=1, keepdim=True) / math.sqrt(vectors.shape[1])
    repeated = (turn >= len(words))[:, None]
    return vectors + repeated * size * _randn(vectors, generator)


@torch.no_grad()
def encoder_outputs(text: TextConditioner, phrase: str) -> Tensor:
    """What the text encoder gives at the tokens of a phrase, (n, D) float32: CrossInit's start.

    The phrase is encoded as a prompt of its own, between the start and the end token. It is a table for
    :func:`from_phrase`, whose row i belongs to token i.
    """
    ids = text.tokenize([phrase])  # (1, L)
    n = min(len(text.tokenizer.words(phrase)), text.max_length - 2)
    return text.encode(text.embed(ids), ids)[0, 1 : 1 + n].float()


def from_vocabulary(table: Tensor, k: int, generator: Generator) -> Tensor:
    """K random words, (k, D): around the vocabulary's mean, at the vocabulary's median norm.

    The noise has the vocabulary's standard deviation in every dimension.
    """
    table = table.detach().float()
    vectors = table.mean(dim=0).expand(k, -1)
    vectors = vectors + table.std(dim=0) * _randn(vectors, generator)
    return F.normalize(vectors, dim=1) * table.norm(dim=1).median()


def copies(table: Tensor, ids: Sequence[int], k: int) -> Tensor:
    """The official rule (compat): K identical copies of one word, or of a phrase's mean, (k, D)."""
    return _mean_word(_rows(table, ids)).repeat(k, 1)


def uniform(table: Tensor, k: int, generator: Generator) -> Tensor:
    """The official rule without an init word (compat): uniform on [0, 1), (k, D).

    Its norm, about sqrt(D / 3), is far above any real word's.
    """
    device = generator.device
    return torch.rand(k, table.shape[1], generator=generator, device=device).to(table.device)


def initial_vectors(
    table: Tensor,
    ids: Sequence[int],
    k: int,
    generator: Generator,
    *,
    compat: CompatConfig = FIXED,
    position: Tensor | None = None,
) -> Tensor:
    """Start of v*, (k, D): from the tokens of a phrase, or from the vocabulary without any.

    Args:
        compat: ``one_token``, ``copies``, ``position`` and ``uniform`` are looked at.
        position: (D,) the embedding of position 0 where the official code adds it (CLIP).

    Raises:
        UserError: ``one_token`` and a phrase of several.
    """
    if not ids:
        return uniform(table, k, generator) if compat.uniform else from_vocabulary(table, k, generator)
    if compat.one_token and len(ids) != 1:
        raise UserError(
            f"the init phrase has {len(ids)} tokens, the official code takes one; give another word, "
            "or set compat.one_token=false"
        )
    start = copies(table, ids, k) if compat.copies else from_phrase(table, ids, k, generator)
    if compat.position and position is not None:
        start = start + position.detach().float().to(start.device)
    return start


def nearest_words(
    vectors: Tensor, table: Tensor, decode: Callable[[int], str], k: int = 5
) -> list[list[Neighbour]]:
    """The k words of largest cosine with each vector, the nearest first.

    Args:
        vectors: (D,), (N, D), or (n, K, D), which is read as (n K, D).
        table: token embeddings (V, D).
        decode: id -> word, e.g. ``tokenizer.decode_id``.

    Returns:
        One list for each vector, with cosines in [-1, 1] and euclidean distances.
    """
    table = table.detach().float()
    vectors = vectors.detach().reshape(-1, table.shape[1]).to(table.device, torch.float32)
    cosines = F.normalize(vectors, dim=1) @ F.normalize(table, dim=1).T  # (N, V)
    best = cosines.topk(min(k, len(table)), dim=1)
    found = []
    for vector, cosine, ids in zip(vectors, best.values, best.indices, strict=True):
        distance = (table[ids] - vector).norm(dim=1)
        rows = zip(ids.tolist(), cosine.tolist(), distance.tolist(), strict=True)
        found.append([Neighbour(decode(i), c, d) for i, c, d in rows])
    return found


def _rows(table: Tensor, ids: Sequence[int]) -> Tensor:
    return table.detach()[torch.tensor(ids, device=table.device)].float()


def _mean_word(words: Tensor) -> Tensor:
    """Direction of the mean at the mean norm: (n, D) -> (D,). Exact for one word."""
    if len(words) == 1:
        return words[0]
    return F.normalize(words.mean(dim=0), dim=0) * words.norm(dim=1).mean()


def _randn(like: Tensor, generator: Generator) -> Tensor:
    """Drawn where the generator lives, so that a seed gives the same vectors on every device."""
    return torch.randn(like.shape, generator=generator, device=generator.device).to(like.device)
