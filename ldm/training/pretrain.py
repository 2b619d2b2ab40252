"""The pretraining stages, each one config and one resumable run folder: autoencoder, latents, diffusion."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ldm.config import dump_yaml, instantiate, to_plain
from ldm.data.pictures import PictureSource
from ldm.errors import UserError
from ldm.io.runs import write_text
from ldm.training.autoencoder import AutoencoderLossConfig, AutoencoderTraining
from ldm.training.callbacks import ImageLogger
from ldm.training.fit import LoggingConfig, TrainerConfig, fit
from ldm.training.optim import OptimConfig


@dataclass(frozen=True)
class AutoencoderStage:
    """``ldm train autoencoder``: all of ``configs/emoji/autoencoder.yaml``."""

    autoencoder: dict
    data: dict
    batch_size: int = 32
    seed: int = 0
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


def last_checkpoint(folder: Path) -> Path | None:
    """The newest checkpoint of a run folder, to resume from."""
    path = folder / "checkpoints" / "last.ckpt"
    return path if path.is_file() else None


def start(folder: Path, config: Any, resume: bool) -> Path | None:
    """Make the run folder, write its config, and find what to resume from.

    Raises:
        UserError: the folder already holds a run and ``resume`` is false.
    """
    checkpoint = last_checkpoint(folder)
    if checkpoint is not None and not resume:
        raise UserError(f"{folder} already holds a run; add --resume to continue it or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / "config.yaml", dump_yaml(to_plain(config)))
    return checkpoint


def train_autoencoder(config: AutoencoderStage, folder: Path, resume: bool = False) -> Path:
    """Train the autoencoder; returns the last checkpoint."""
    checkpoint = start(folder, config, resume)
    source: PictureSource = instantiate(config.data)
    torch.manual_seed(config.seed)
    module = AutoencoderTraining(
        instantiate(config.autoencoder),
        lambda step: source.batch(step, config.batch_size, config.seed).images,
        config.optim,
        config.loss,
        config.trainer.max_steps,
    )
    fixed = source.batch(0, 16, config.seed + 1).images

    def draw(module: Any) -> dict[str, Tensor]:
        x = fixed.to(module.device)
        decoded = module.autoencoder.decode(module.autoencoder.encode(x).mode())
        return {"reconstructions": torch.cat([x, decoded.float()])}

    images = ImageLogger(draw, folder / "images", config.trainer.image_every, columns=16)
    fit(
        module,
        folder,
        config.trainer,
        config.logging,
        seed=config.seed,
        callbacks=[images],
        clip_norm=0.0 if module.adversarial else config.optim.clip_norm,
        resume=checkpoint,
    )
    return folder / "checkpoints" / "last.ckpt"
