"""Extended Textual Inversion: vectors of its own for each cross-attention layer (Voynov et al. 2023, P+,
arXiv 2303.09522).

    v(t, l) = v*_l,   v* in R^(n x K x D)
"""

from __future__ import annotations

from dataclasses import dataclass

from einops import rearrange, reduce, repeat
from torch import Tensor

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
