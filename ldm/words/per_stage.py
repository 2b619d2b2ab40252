"""ProSpect (Zhang et al. 2023, arXiv 2305.16225): vectors for each stage of the noise schedule.

    v(t, l) = v*_i,   i = floor(S t / T),   v* in R^(S x K x D)

The noisy stages decide on layout, the middle ones on content, the last ones on material; a word for each lets
them be learned, and taken over into other prompts, one by one. The paper has S = 10 stages.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

from einops import rearrange
from torch import Tensor

from ldm.ranges import Range
from ldm.words.kind import Table, register


@dataclass(frozen=True)
class PerStageSettings:
    """Settings of words with vectors for each stage.

    Attributes:
        stages: Number of equal stages of the noise schedule.
    """

    stages: Annotated[int, Range(1, 100)] = 10


@register
class PerStage(Table):
    """Stage 0 has the least noise, and is the last one that a picture goes through."""

    kind = "per_stage"
    Settings = PerStageSettings
    varies_with_time = True

    @property
    def shape(self) -> tuple[int, ...]:
        return self.settings.stages, self.count, self.fit.width

    def stage(self, t: Tensor) -> Tensor:
        """Stages (B,) of timesteps (B,)."""
        return t * self.settings.stages // self.fit.timesteps

    def forward(self, t: Tensor | None) -> Tensor:
        assert t is not None
        return rearrange(self.v_star[self.stage(t)], "b k d -> b 1 k d")

    def moment(self, t: int) -> int:
        """The stage's first timestep."""
        stage = t * self.settings.stages // self.fit.timesteps
        return -(-stage * self.fit.timesteps // self.settings.stages)
