"""A kind of word for tests: it varies with time and with layers, has a rule and parts of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ldm.words.kind import Fit, Word


@dataclass(frozen=True)
class TwoHalvesSettings:
    """Settings of the toy kind.

    Attributes:
        size: The factor on the late vector.
    """

    size: float = 1.0


class TwoHalves(Word):
    """A vector, to which at late timesteps something is added for the last layer alone.

    What is added is a part of its file, and both move by plain gradient descent.
    """

    kind = "two_halves"
    Settings = TwoHalvesSettings
    varies_with_time = True
    own_step = True

    def __init__(self, fit: Fit, count: int, settings: Any) -> None:
        super().__init__(fit, count, settings)
        self.base = nn.Parameter(torch.zeros(count, fit.width))
        self.late = nn.Parameter(torch.zeros(count, fit.width))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.count, self.fit.width

    def table(self) -> Tensor:
        return self.base

    def parts(self) -> dict[str, Tensor]:
        return {"late": self.late}

    def fill(self, vectors: Tensor, parts: Mapping[str, Tensor], vocabulary: Tensor | None) -> None:
        self.base.data.copy_(self.fitting(vectors, self.shape))
        if parts:
            self.late.data.copy_(parts["late"])

    def forward(self, t: Tensor | None) -> Tensor:
        assert t is not None
        last = torch.arange(self.fit.layers, device=t.device) == self.fit.layers - 1
        is_late = (t >= self.fit.timesteps // 2)[:, None] & last  # (B, n)
        return self.base + self.settings.size * is_late[..., None, None] * self.late

    def moment(self, t: int) -> int:
        return int(t >= self.fit.timesteps // 2)

    def move(self, lr: float, state: dict[str, Any]) -> None:
        state["turns"] = state.get("turns", 0) + 1
        assert state["turns"] == state["step"]
        for p in self.parameters():
            p.sub_(lr * p.grad / state["turns"])
