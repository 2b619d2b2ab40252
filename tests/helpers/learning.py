"""How tests learn a word of the tiny model with Lightning, and what they learn it with."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ldm.backbone.model import LatentDiffusion
from ldm.inversion.captions import PromptSource
from ldm.inversion.concept import Concept
from ldm.inversion.config import InversionConfig
from ldm.inversion.latents import ConceptBatches, encode_latents
from ldm.inversion.module import TextualInversion
from ldm.inversion.run import learn
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.inversion.step import Objective
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig

TRAINER = TrainerConfig(max_steps=20, accelerator="cpu", checkpoint_every=5, image_every=10)


BASE = InversionConfig(
    images=Path(),
    placeholder="<toy>",
    init="cat",
    captions=CaptionsConfig(templates="plain"),
    show=ShowConfig(prompts=("a photo of {}",), samples_per_prompt=1, steps=2),
    stop=StopConfig(monitor_every=10, allow_untrained=True),
    optim=OptimConfig(lr=1e-3, schedule="constant"),
    trainer=TRAINER,
    logging=LoggingConfig(loggers=("csv",)),
)


def learn_word(model: LatentDiffusion, concept: Concept, **changes: Any) -> torch.Tensor:
    config = replace(BASE, **changes)
    return learn(model, concept, config, progress=False).vectors


def _module(model: LatentDiffusion, concept: Concept, **settings: Any) -> TextualInversion:
    if "<toy>" not in model.manager.placeholders:
        model.add_placeholder("<toy>", init="cat")
    cache = encode_latents(model.encode, concept.images, scale_factor=0.5, mirror=True)
    batches = ConceptBatches(cache, PromptSource("<toy>"), batch_size=2, seed=0, concept="<toy>")
    objective = Objective(model, batches, **settings)
    return TextualInversion(objective, OptimConfig(lr=1e-3), lr=1e-3, max_steps=9)
