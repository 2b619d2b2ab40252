"""Plain words: K vectors for a placeholder, the same for all layers and timesteps (Gal et al. 2022).

    v(t, l) = v*,   v* in R^(K x D)

Their length can be kept, as trainers of other tools do: after every optimiser step each vector is scaled back
to a length of the vocabulary's.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor

from ldm.errors import UserError
from ldm.words.kind import Fit, Table, register


@dataclass(frozen=True)
class PlainSettings:
    """Settings of plain words.

    Attributes:
        keep_norm: The length that vectors have from the start and after every step: ``median`` or ``mean`` of
            the text encoder's own token embeddings, or ``start``, the length of each vector's start. ``free``
            lets them grow, as in the paper.
    """

    keep_norm: Literal["free", "median", "mean", "start"] = "free"


@register
class Plain(Table):
    """The paper's word: vectors that any tool can use."""

    kind = "plain"
    Settings = PlainSettings
    other_tools = True
    norm: Tensor

    def __init__(self, fit: Fit, count: int, settings: Any) -> None:
        super().__init__(fit, count, settings)
        if self.steps_itself:
            self.register_buffer("norm", torch.zeros(count, 1))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.count, self.fit.width

    @property
    def steps_itself(self) -> bool:
        return self.settings.keep_norm != "free"

    def forward(self, t: Tensor | None) -> Tensor:
        return rearrange(self.v_star, "k d -> 1 1 k d")

    def fill(self, vectors: Tensor, parts: Mapping[str, Tensor], vocabulary: Tensor | None) -> None:
        super().fill(vectors, parts, vocabulary)
        if not self.steps_itself:
            return
        norms = self.v_star.detach().norm(dim=-1, keepdim=True)
        if not norms.all():
            raise UserError("a vector of length 0 has no direction, and its length cannot be kept")
        if self.settings.keep_norm != "start" and vocabulary is not None:
            own = vocabulary.detach().float().norm(dim=-1)
            norms = (own.median() if self.settings.keep_norm == "median" else own.mean()).expand_as(norms)
        self.norm.copy_(norms)
        self.after_step()

    @torch.no_grad()
    def after_step(self) -> None:
        if self.steps_itself:
            self.v_star.copy_(self.norm * F.normalize(self.v_star, dim=-1))
