"""Optimiser and learning-rate schedule, and the official learning-rate scaling rule."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
from torch import nn

from ldm.ranges import Amount, Count, Factor, Range
from ldm.training.muon import Muon, matrices_and_others
from ldm.words.kind import Word
from ldm.words.optimizer import WordOptimizer

Beta = Annotated[float, Range(0, 1, below=True)]


@dataclass(frozen=True)
class OptimConfig:
    """The optimiser and its learning-rate schedule.

    Attributes:
        lr: Highest learning rate; for a word the base rate, before ``scale_lr``.
        schedule: What the rate does after the warm-up: it stays, or it falls along a cosine or a line to
            ``lr_final_ratio`` x ``lr`` at the last step.
        warmup_steps: First steps, in which the rate rises in a line to ``lr``.
        lr_final_ratio: The rate at the last step as a share of ``lr``.
        weight_decay: Decoupled weight decay. The official inversion code has 0.01, which shrinks a word.
        betas: Decay rates of AdamW's two running means. With Muon they hold for what AdamW learns beside it.
        eps: Term that keeps AdamW from dividing by 0.
        clip_norm: Largest norm of the gradient; longer ones are scaled down. 0 switches it off.
        kind: ``adamw``, or ``muon`` for the weight matrices of a network in pretraining
            (``ldm.training.muon``); a word is a vector and always learned by AdamW.
    """

    lr: Amount = 1e-3
    schedule: Literal["constant", "cosine", "linear"] = "cosine"
    warmup_steps: Count = 0
    lr_final_ratio: Amount = 0.0
    weight_decay: Amount = 0.0
    betas: tuple[Beta, Beta] = (0.9, 0.999)
    eps: Factor = 1e-8
    clip_norm: Amount = 0.0
    kind: Literal["adamw", "muon"] = "adamw"


def scale_lr(lr_base: float, *, accumulate: int, devices: int, batch_size: int) -> float:
    """Official rule: lr_effective = accumulate x devices x batch x lr_base."""
    return accumulate * devices * batch_size * lr_base


def lr_factor(step: int, total: int, config: OptimConfig) -> float:
    """Learning rate at an optimiser step, as a share of the peak."""
    if step < config.warmup_steps:
        return (step + 1) / config.warmup_steps
    if config.schedule == "constant":
        return 1.0
    progress = min(1.0, (step - config.warmup_steps) / max(1, total - config.warmup_steps))
    shape = 0.5 * (1 + math.cos(math.pi * progress)) if config.schedule == "cosine" else 1 - progress
    return config.lr_final_ratio + (1 - config.lr_final_ratio) * shape


def configure(
    parameters: Iterable[nn.Parameter] | Iterable[dict[str, Any]],
    config: OptimConfig,
    total_steps: int,
    lr: float | None = None,
    *,
    words: Sequence[Word] = (),
) -> dict[str, Any]:
    """What ``LightningModule.configure_optimizers`` returns.

    Args:
        parameters: what trains, or groups ``{"params": ..., "lr": ...}``, which follow the same schedule.
        config: the optimiser and its schedule.
        total_steps: optimiser steps, for the schedule.
        lr: the peak rate instead of ``config.lr``.
        words: learned words among the parameters, some of which may move by a rule of their own.
    """
    settings: dict[str, Any] = {
        "lr": config.lr if lr is None else lr,
        "betas": (config.betas[0], config.betas[1]),
        "eps": config.eps,
        "weight_decay": config.weight_decay,
    }
    optimizer: torch.optim.Optimizer
    if any(word.steps_itself for word in words):
        optimizer = WordOptimizer(parameters, words, **settings)
    else:  # fused: Lightning cannot clip for an optimiser that unscales by itself
        optimizer = torch.optim.AdamW(parameters, **settings, fused=not config.clip_norm)
    return _scheduled(optimizer, config, total_steps)


def configure_network(
    modules: Sequence[nn.Module], config: OptimConfig, total_steps: int, ends: Sequence[nn.Module] = ()
) -> dict[str, Any]:
    """As :func:`configure`, for networks; ``ends`` are first and last layers, which Muon leaves to AdamW."""
    if config.kind == "adamw":
        return configure([p for module in modules for p in module.parameters()], config, total_steps)
    optimizer = Muon(
        matrices_and_others(modules, ends),
        lr=config.lr,
        betas=(config.betas[0], config.betas[1]),
        eps=config.eps,
        weight_decay=config.weight_decay,
    )
    return _scheduled(optimizer, config, total_steps)


def _scheduled(optimizer: torch.optim.Optimizer, config: OptimConfig, total_steps: int) -> dict[str, Any]:
    scheduler = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda step: lr_factor(step, total_steps, config)
    )
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}
