"""Rules that end a run before its last step: by the loss on the fixed batch, or by the word's scores.

A rule is a function of what was measured so far; it keeps nothing, so that a run that
goes on from a checkpoint stops where it would have stopped.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from functools import partial

from ldm.inversion.sections import StopConfig

StopRule = Callable[[Sequence[int], Sequence[float]], bool]
"""(steps, losses) of all measurements, oldest first -> whether the run ends here."""

ScoreRule = Callable[[Sequence[float]], bool]
"""All scores, oldest first -> whether the run ends here."""


def no_longer_falls(
    steps: Sequence[int], losses: Sequence[float], *, patience: int, min_improvement: float
) -> bool:
    """Whether none of the last ``patience`` losses is below the best one before them, by a share of at
    least ``min_improvement``. Never, with a patience of 0."""
    if not patience or len(losses) <= patience:
        return False
    return min(losses[-patience:]) > (1 - min_improvement) * min(losses[:-patience])


def no_longer_varies(steps: Sequence[int], losses: Sequence[float], *, window: int, threshold: float) -> bool:
    """DVAR (Voronov et al. 2023, arXiv 2302.04841): Var(losses of the last ``window`` steps) / Var(all) <
    ``threshold``.

    Never before ``window`` steps have been made, nor with fewer than three measurements in the window.
    """
    recent = [loss for step, loss in zip(steps, losses, strict=True) if step > steps[-1] - window]
    if len(recent) < 3 or len(recent) == len(losses):
        return False
    whole = statistics.pvariance(losses)
    return whole > 0 and statistics.pvariance(recent) < threshold * whole


def no_longer_rises(scores: Sequence[float], *, patience: int, min_improvement: float) -> bool:
    """Whether none of the last ``patience`` scores is above the best one before them, by a share of at least
    ``min_improvement``. Never, with a patience of 0."""
    if not patience or len(scores) <= patience:
        return False
    best = max(scores[:-patience])
    return max(scores[-patience:]) < best + min_improvement * abs(best)


def score_rule(config: StopConfig) -> ScoreRule | None:
    """The rule of ``stop.rule: score``; ``None`` where scores end nothing."""
    if config.rule != "score":
        return None
    return partial(no_longer_rises, patience=config.patience, min_improvement=config.min_improvement)


def stop_rule(config: StopConfig) -> StopRule | None:
    """The rule of the other values of ``stop.rule``; ``None`` where the loss ends nothing."""
    if config.rule == "score":
        return None
    if config.rule == "dvar":
        return partial(no_longer_varies, window=config.dvar_window, threshold=config.dvar_threshold)
    if config.patience:
        return partial(no_longer_falls, patience=config.patience, min_improvement=config.min_improvement)
    return None
