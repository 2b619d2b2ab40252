"""Extended Textual Inversion: vectors of its own for each cross-attention layer (Voynov et al. 2023, P+,
arXiv 2303.09522).

    v(t, l) = v*_l,   v* in R^(n x K x D)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce, repeat
from torch import Tensor

from ldm.errors import UserError
from ldm.io.embeddings import Embedding
from ldm.ranges import Count
from ldm.words.kind import Table, register


@dataclass(frozen=True)
class PerLayerSettings:
    """Settings of words with vectors for each layer.

    Attributes:
        shared_steps: The optimiser step at which the layers' vectors part. Before it all of them move as one,
            so that together they first learn what one vector learns.
    """

    shared_steps: Count = 0


@register
class PerLayer(Table):
    """Coarse layers come to say shape, fine ones appearance."""

    kind = "per_layer"
    Settings = PerLayerSettings

    @property
    def shape(self) -> tuple[int, ...]:
        return self.fit.layers, self.count, self.fit.width

    def forward(self, t: Tensor | None) -> Tensor:
        return rearrange(self.v_star, "n k d -> 1 n k d")

    def prepare_gradient(self, step: int) -> None:
        grad = self.v_star.grad
        if step < self.settings.shared_steps and grad is not None:
            mean = reduce(grad, "n k d -> k d", "mean")
            self.v_star.grad = repeat(mean, "k d -> n k d", n=len(grad)).clone()  # clipping writes into it


def mix(a: Embedding, b: Embedding, layers: Sequence[int], placeholder: str | None = None) -> Embedding:
    """A word whose layers are those of two: P+'s mixing of one word's shape with another's appearance.

    The layers in the middle of the network, which see the coarsest grid, decide on shape; those at its ends
    decide on appearance.

    Args:
        a, b: words of K vectors for one model; one without layers says the same in each.
        layers: those that are ``b``'s, 0 the first in the order of computation.
        placeholder: the new word's name; ``a``'s unless given.

    Raises:
        UserError: neither word has layers, they do not fit each other, or there is no such layer.
    """
    counts = {word.layers for word in (a, b)} - {None}
    models = {word.metadata["base_model"] for word in (a, b) if word.metadata.get("base_model")}
    known = all(word.kind in ("plain", "directional", "per_layer") for word in (a, b))
    alike = (a.K, a.widths) == (b.K, b.widths) and len(a.widths) == 1 and len(models) < 2
    if not known or not alike or len(counts) != 1:
        raise UserError(
            f"{a.placeholder} is {a.size} and {b.placeholder} is {b.size}: to mix layers, give two words of "
            "as many vectors for one model, of which at least one has layers"
        )
    (n,) = (count for count in counts if count is not None)
    wrong = [layer for layer in layers if not 0 <= layer < n]
    if wrong:
        raise UserError(f"there is no layer {wrong[0]}: they are 0 to {n - 1}")
    chosen = torch.zeros(n, 1, 1, dtype=torch.bool)
    chosen[list(layers)] = True
    named = ", ".join(map(str, sorted(set(layers))))
    notes = {"base_model": next(iter(models), ""), "kind": "per_layer"}
    notes["mixed"] = f"layers {named} of {b.placeholder}, the others of {a.placeholder}"
    return Embedding(placeholder or a.placeholder, torch.where(chosen, b.vectors, a.vectors), notes)
