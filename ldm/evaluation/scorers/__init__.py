"""Scorers by name, and the figures that are made of their features.

A scorer is a frozen network with an :class:`Identity`; metrics are ``torchmetrics`` metrics
(:mod:`ldm.evaluation.scorers.metrics`). Nothing is downloaded unless that is allowed.
"""

from __future__ import annotations

from pathlib import Path

from ldm.evaluation.scorers.base import Scorer
from ldm.evaluation.scorers.identity import (
    COSINE_OF_MEANS,
    HELD_OUT,
    MEAN_OF_COSINES,
    TRAINING,
    Identity,
    Score,
    require_same,
)

__all__ = [
    "COSINE_OF_MEANS",
    "HELD_OUT",
    "MEAN_OF_COSINES",
    "SHIPPED",
    "TRAINING",
    "Identity",
    "Score",
    "Scorer",
    "is_blind_to_text",
    "load_scorer",
    "require_same",
]

SHIPPED = "emoji-clip"


def is_blind_to_text(name: str | Path) -> bool:
    """Whether a scorer of that name reads no text, as far as can be said before it is loaded."""
    return str(name).startswith("dino:")


def load_scorer(name: str | Path = SHIPPED, device: str = "cpu", *, allow_download: bool = False) -> Scorer:
    """A scorer by its name.

    Args:
        name: ``clip:MODEL/TAG`` or ``clip:MODEL/FILE`` of open_clip, ``dino:NAME`` or ``dino:NAME/FILE`` of
            timm, ``emoji-clip``, or a folder that ``ldm train clip`` wrote.
        device: where it computes.
        allow_download: whether weights that are not on this machine may be fetched.

    Raises:
        UserError: an unknown name, or weights that are not here or do not fit.
    """
    kind, colon, rest = str(name).partition(":")
    if colon and kind == "clip":
        from ldm.evaluation.scorers.clip import load_clip_scorer

        scorer = load_clip_scorer(str(name), rest, allow_download=allow_download)
        scorer.network.to(device)
        return scorer
    if colon and kind == "dino":
        from ldm.evaluation.scorers.dino import load_dino_scorer

        other = load_dino_scorer(str(name), rest, allow_download=allow_download)
        other.network.to(device)
        return other
    from ldm.evaluation.clip_judge import load_clip

    return load_clip(name, device)
