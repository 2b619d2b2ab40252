"""Pull towards the coarse word (Gal et al. 2022, figure 10, "regularised").

The loss gains weight x || v* - v_coarse ||^2, which keeps the learned word near a real one and so
trades reconstruction for editability. CrossInit (arXiv 2312.15905) adds weight x || v* - v_coarse || instead,
whose pull is as strong near the start as far from it.
"""

from collections.abc import Iterable
from typing import Literal

import torch
from torch import Tensor

from ldm.words.manager import EmbeddingManager

Form = Literal["squared", "norm"]
"""The distance that is minimised: ||v - c||^2, or ||v - c||."""


def coarse_distance(
    vectors: Tensor, coarse: Tensor, *, form: Form = "squared", summed_drift: bool = False
) -> Tensor:
    """Mean over the vectors of their distance to the coarse word, a scalar.

    Args:
        vectors: (k, D), or (n, k, D) of a word with vectors for each of n layers.
        coarse: the same, or (D,).
        form: "squared", or "norm", whose gradient at the start is 0.
        summed_drift: the official code's || sum_k (v_k - c_k) ||^2 / k^2 instead, in which opposite
            drifts cancel. Both agree for one vector.
    """
    drift = vectors - coarse
    if summed_drift:
        drift = drift.mean(dim=-2, keepdim=True)
    lengths = drift.square().sum(dim=-1) if form == "squared" else drift.norm(dim=-1)
    return lengths.mean()


def regularization(
    manager: EmbeddingManager,
    step: int | None = None,
    placeholders: Iterable[str] | None = None,
    *,
    form: Form = "squared",
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
            manager.vectors(name, step),
            manager.init_vectors(name, step),
            form=form,
            summed_drift=summed_drift,
        )
        for name in names
    ]
    return torch.stack(terms).mean()
