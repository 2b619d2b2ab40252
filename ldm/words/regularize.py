"""Pull towards the coarse word (Gal et al. 2022, figure 10, "regularised").

The loss gains weight x || v* - v_coarse ||^2, which keeps the learned word near a real one and so
trades reconstruction for editability.
"""

from collections.abc import Iterable

import torch
from torch import Tensor

from ldm.words.manager import EmbeddingManager


def coarse_distance(vectors: Tensor, coarse: Tensor, *, summed_drift: bool = False) -> Tensor:
    """Mean over the vectors of their squared distance to the coarse word, a scalar.

    Args:
        vectors: (k, D), or (n, k, D) of a word with vectors for each of n layers.
        coarse: the same, or (D,).
        summed_drift: the official code's || sum_k (v_k - c_k) ||^2 / k^2 instead, in which opposite
            drifts cancel. Both agree for one vector.
    """
    drift = vectors - coarse
    if summed_drift:
        drift = drift.mean(dim=-2, keepdim=True)
    return drift.square().sum(dim=-1).mean()


def regularization(
    manager: EmbeddingManager,
    step: int | None = None,
    placeholders: Iterable[str] | None = None,
    *,
    summed_drift: bool = False,
) -> Tensor:
    """``coarse_distance`` of the vectors in use at a step, averaged over placeholders.

    Args:
        placeholders: which ones, e.g. those of one concept; all unless given.
    """
    names = tuple(manager.placeholders if placeholders is None else placeholders)
    if not names:
        raise ValueError("no placeholder to regularise")
    terms = [
        coarse_distance(
            manager.vectors(name, step), manager.init_vectors(name, step), summed_drift=summed_drift
        )
        for name in names
    ]
    return torch.stack(terms).mean()
