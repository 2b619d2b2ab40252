"""Lightning's precision plugins, for steps that no Trainer of Lightning's makes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from pytorch_lightning.plugins.precision import DoublePrecision, HalfPrecision, MixedPrecision, Precision
from torch import Tensor


def precision_plugin(name: str, device: torch.device) -> Precision:
    """The plugin that a Trainer takes for one of Lightning's names on one device."""
    match name:
        case "bf16-true" | "16-true":
            return HalfPrecision(name)
        case "64-true":
            return DoublePrecision()
        case "bf16-mixed" | "16-mixed":
            return MixedPrecision(name, device.type)
    return Precision()


def scaled(loss: Tensor, precision: Precision) -> Tensor:
    """The loss as its gradient is taken: times the plugin's scale, where it has one (16-mixed)."""
    scaler = _scaler(precision)
    return loss if scaler is None else scaler.scale(loss)


def _scaler(precision: Precision) -> torch.amp.GradScaler | None:
    return precision.scaler if isinstance(precision, MixedPrecision) else None


def optimizer_step(
    optimizer: torch.optim.Optimizer, precision: Precision, clip_norm: float, before: Callable[[], None]
) -> None:
    """A step as Lightning makes it: unscaled gradients, ``before``, clipping, the step. With a scale, a step
    whose gradients are not finite is left out, and the scale made smaller."""
    scaler = _scaler(precision)
    if scaler is None:
        before()
        precision.clip_gradients(optimizer, clip_norm)
        optimizer.step()
        return
    if not getattr(optimizer, "_step_supports_amp_scaling", False):  # else it unscales by itself
        scaler.unscale_(optimizer)
    before()
    precision.clip_gradients(optimizer, clip_norm)
    scaler.step(optimizer)
    scaler.update()
