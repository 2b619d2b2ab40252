"""Which noise levels a training looks at, and how often."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from torch import Tensor

from ldm.ranges import Factor, Range


@dataclass(frozen=True)
class TimestepConfig:
    """A distribution of the timesteps t that training looks at.

    Attributes:
        kind: ``uniform``, or ``logit_normal`` (Esser et al. 2024, section 3.1): t / T is the logistic
            function of a normal variable, so that the middle, where shape is decided, is seen most.
        mean: Mean of that normal variable; above 0 it leans towards more noise.
        std: Standard deviation of that normal variable.
        lowest: The cleanest level that is looked at, as a share of the schedule in [0, 1). Where little
            noise is left the picture itself says what it shows, and a word learns nothing.
    """

    kind: Literal["uniform", "logit_normal"] = "uniform"
    mean: float = 0.0
    std: Factor = 1.0
    lowest: Annotated[float, Range(0, 1, below=True)] = 0.0


def draw_timesteps(n: int, total: int, config: TimestepConfig, rng: torch.Generator) -> Tensor:
    """``n`` timesteps (n,) int64 in [0, total), in random order.

    One comes from each of n strata of equal probability: the loss has less variance than with plain
    draws.
    """
    u = (torch.arange(n) + torch.rand(n, generator=rng)) / n
    if config.kind == "logit_normal":
        u = torch.sigmoid(config.mean + config.std * torch.special.ndtri(u.double())).float()
    u = config.lowest + (1 - config.lowest) * u
    t = (u * total).long().clamp_(max=total - 1)
    return t[torch.randperm(n, generator=rng)]
