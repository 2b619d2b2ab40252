"""Settings of the pretraining stages: the keys of the YAML files of ``ldm train``."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from ldm.backbone.model import ModelConfig
from ldm.device import Precision
from ldm.pretraining.autoencoder import AutoencoderLossConfig
from ldm.ranges import Batch, Count, Positive, Range, Seed, Share
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig
from ldm.training.timesteps import TimestepConfig


@dataclass(frozen=True)
class AutoencoderStage:
    """``ldm train autoencoder``: all keys of ``configs/emoji/autoencoder.yaml``.

    Attributes:
        autoencoder: ``{target: class, params: {...}}`` of the autoencoder.
        data: ``{target: class, params: {...}}`` of the source of pictures.
        start_from: Run folder of an autoencoder to go on from, for example to train its decoder alone.
        compiled: Train through ``torch.compile``; on a CPU it needs a C++ compiler.
        linear_pictures: Number of pictures whose principal components an autoencoder with a linear path
            starts from.
        workers: Processes that make batches ahead; 0 makes them in the training process.
        batch_size: Pictures in a batch.
        seed: Pictures and noise are functions of it and of the step.
        loss: Weights of the loss.
        optim: Optimiser and learning-rate schedule.
        trainer: Number of steps, precision, device, and how often to log, checkpoint and draw.
        logging: Where curves are written to.
    """

    autoencoder: dict
    data: dict
    start_from: Path | None = None
    compiled: bool = False
    linear_pictures: Batch = 4096
    workers: Count = 0
    batch_size: Batch = 32
    seed: Seed = 0
    loss: AutoencoderLossConfig = field(default_factory=AutoencoderLossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)


@dataclass(frozen=True)
class LatentsStage:
    """``ldm train latents``: encode pictures once; all keys of ``configs/emoji/latents.yaml``.

    Attributes:
        autoencoder: ``{target: class, params: {...}}`` of the autoencoder.
        autoencoder_run: Run folder of the trained autoencoder, or a model folder.
        data: ``{target: class, params: {...}}`` of the source of pictures.
        count: Number of pictures.
        batch_size: Pictures encoded at once.
        seed: Pictures are functions of it.
        precision: As ``trainer.precision``.
    """

    autoencoder: dict
    autoencoder_run: Path
    data: dict
    count: Positive = 100_000
    batch_size: Batch = 64
    seed: Seed = 0
    precision: Precision = "auto"


@dataclass(frozen=True)
class DiffusionStage:
    """``ldm train diffusion``: all keys of ``configs/emoji/diffusion.yaml``.

    Attributes:
        model: The model to train, as ``ldm.load`` reads it.
        autoencoder_run: Run folder of the trained autoencoder, or a model folder; it is exported with the
            UNet.
        latents: Files of ``ldm train latents``. Every picture of all of them is drawn equally often. Give
            these or ``data``.
        data: ``{target: class, params: {...}}`` of a source of pictures, which are drawn anew and encoded in
            each step.
        workers: Processes that make batches ahead; 0 makes them in the training process.
        start_from: Model folder or run folder whose UNet and text encoder go on learning.
        decoder_run: Run folder of a decoder that went on learning, to be exported instead of
            ``autoencoder_run``'s.
        inversion: Settings that suit words of this model; they are written into its ``config.yaml`` at
            export.
        batch_size: Pictures in a batch.
        caption_dropout: Share of the captions that are empty, for classifier-free guidance.
        timesteps: Which noise levels training looks at most.
        compiled: Train through ``torch.compile``; on a CPU it needs a C++ compiler.
        picture_words: Allow captions that leave a thing's name out; a code of its portraits tells what it
            is.
        ema_decay: Decay of the averaged weights, which are the ones that are exported.
        ema_every: Optimiser steps between two updates of the averaged weights.
        seed: Pictures, captions and noise are functions of it and of the step.
        prompts: Prompts to draw every ``trainer.image_every`` steps from the weights as they are then.
        sample_scale: Guidance scale for these pictures.
        optim: Optimiser and learning-rate schedule.
        trainer: Number of steps, precision, device, and how often to log, checkpoint and draw.
        logging: Where curves are written to.
    """

    model: ModelConfig
    autoencoder_run: Path
    latents: tuple[Path, ...] = ()
    data: dict | None = None
    workers: Count = 0
    start_from: Path | None = None
    decoder_run: Path | None = None
    inversion: dict = field(default_factory=dict)
    batch_size: Batch = 64
    caption_dropout: Share = 0.1
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    compiled: bool = False
    picture_words: bool = False
    ema_decay: Annotated[float, Range(0, 1, below=True)] = 0.999
    ema_every: Positive = 1
    seed: Seed = 0
    prompts: tuple[str, ...] = ("",)
    sample_scale: float = 4.0
    optim: OptimConfig = field(default_factory=OptimConfig)
    trainer: TrainerConfig = field(default_factory=TrainerConfig)
    logging: LoggingConfig = field(default_factory=LoggingConfig)
