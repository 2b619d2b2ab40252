"""Plain words: K vectors for a placeholder, the same for all layers and timesteps (Gal et al. 2022).

v(t, l) = v*,   v* in R^(K x D)
"""

from __future__ import annotations

from einops import rearrange
from torch import Tensor

from ldm.words.kind import Table, register


@register
class Plain(Table):
    """The paper's word: vectors that any tool can use."""

    kind = "plain"
    other_tools = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.count, self.fit.width

    def forward(self, t: Tensor | None) -> Tensor:
        return rearrange(self.v_star, "k d -> 1 1 k d")
