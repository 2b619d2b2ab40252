"""What one inversion depends on: the keys of an inversion YAML, and what cannot be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ldm.config import merge, recheck, resolve
from ldm.diffusion.samplers import SAMPLERS
from ldm.errors import UserError
from ldm.inversion.captions import contains_placeholder
from ldm.inversion.templates import SETS, read_templates, templates
from ldm.io.embeddings import check_names
from ldm.io.pictures import Framing
from ldm.names import normal
from ldm.official.quirks import FIXED, WEIGHT_DECAY, CompatConfig, growth_steps, switches
from ldm.ranges import Amount, Batch, Count, Factor, Positive, Range, Seed, Share
from ldm.sampling.sample import Sampling
from ldm.shorthand import spelled
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig
from ldm.training.timesteps import TimestepConfig

DEFAULT_PROMPTS = (
    "a photo of {}",
    "a photo of {} on a red background",
    "a photo of {} on a blue background",
    "a photo of two {} on the beach",
)


@dataclass(frozen=True)
class InversionConfig:
    """Everything an inversion depends on; the keys of an inversion YAML.

    Attributes:
        model: a shipped model's name, a model folder or YAML, or the mapping itself.
        checkpoint: weights instead of the model's own.
        clip_skip: which of the last blocks of a CLIP text encoder is used, as web UIs count: 1 the last one;
            ``None``: the model's own.
        images: folder of 3-5 pictures.
        placeholder: the new word, any string.
        init: a phrase to start from; ``None`` starts at the vocabulary's mean.
        init_scale: factor on that start. Text conditioners normalise their input, so that a short vector
            turns further in a step: below 1 the phrase binds less.
        more_words: words that are learned beside it from the same pictures: name -> init phrase or null.
            Those that no prompt holds are left out, with a warning.
        subject: what ``{}`` stands for in templates, caption files and ``prompts``, such as
            "<cat> on a <mug>"; the placeholder unless given.
        init_embedding: an embedding file whose ``num_vectors`` vectors are the start instead.
        num_vectors, progressive: K of each word, and the K - 1 steps at which the second, third ... enter.
        per_layer: vectors of its own for each of the UNet's n transformers, n x K in all (extended Textual
            Inversion, Voynov et al. 2023); an ``init_embedding`` that has none starts all of them.
        shared_steps: steps before the layers part; until then their vectors move alike, as one.
        per_image_tokens: one more word per picture ("a photo of S* with S_i"), then dropped,
        mixing_prob: in this share of the prompts.
        templates: caption templates: a set (object, style, photo, plain, ...), or one's own sentences with
            ``{}`` for the word: a list, or a text file with one a line, whose sentences then stand here.
        coarse_class: a word that templates put before the placeholder ("a photo of a cat S*").
        captions: use ``name.txt`` files; ``None``: if there are any.
        regularization: weight of the squared distance to the init.
        model_lr: learning rate (never scaled) of UNet and text conditioner, which then train as well
            and are left as the model folder ``model``; 0 keeps them frozen.
        compat: "official", or single switches of ``CompatConfig``: quirks of the official code.
        flip_p: probability of a mirrored picture.
        fit, background: "crop" (the default), "pad" or "squash", and what transparent parts are laid on.
        interpolation: of the pictures when they are scaled: bicubic, bilinear or lanczos.
        batch_size: pictures of a batch, on each device.
        timesteps: which noise levels are looked at; all alike by default, as in the paper.
        scale_lr: multiply ``optim.lr`` by accumulate x devices x batch size.
        prompts: drawn as training goes and at the end; ``{}`` is the subject.
        samples_per_prompt: pictures of each prompt at the end.
        sample_steps, sample_scale, sampler: how they are drawn.
        monitor_every: steps between measurements on the fixed batch.
        patience: stop when so many measurements in a row have not brought the loss on the fixed batch
            down, 0: never,
        min_improvement: by this share of the lowest one before.
        allow_untrained: accept a base model whose loss looks untrained.
        checkpointing: recompute the UNet's activations in the backward pass: much less memory for a third
            more time.
        compiled: train through ``torch.compile`` (needs a C++ compiler on a CPU), which pays after minutes.
        cuda_graphs: and replay what was compiled as CUDA graphs.
        formats: of the embeddings in ``checkpoints``: safetensors, pt (the official one), or both.
    """

    images: Path
    placeholder: str
    model: Any = "emoji"
    checkpoint: str | None = None
    clip_skip: Positive | None = None
    init: str | None = None
    init_scale: Factor = 1.0
    more_words: dict = field(default_factory=dict)
    subject: str | None = None
    init_embedding: Path | None = None
    num_vectors: Annotated[int, Range(1, 1024)] = 1
    per_layer: bool = False
    shared_steps: Count = 0
    progressive: tuple[Count, ...] = ()
    per_image_tokens: bool = False
    mixing_prob: Share = 0.25
    templates: str | tuple[str, ...] = "object"
    coarse_class: str | None = None
    captions: bool | None = None
    regularization: Amount = 0.0
    model_lr: Amount = 0.0
    compat: Literal["official"] | CompatConfig = FIXED
    flip_p: Share = 0.5
    fit: Literal["crop", "pad", "squash"] | None = None
    background: str = "white"
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    batch_size: Batch = 4
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    seed: Seed = 23
    scale_lr: bool = True
    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    samples_per_prompt: Annotated[int, Range(0, 10_000)] = 4
    sample_steps: Positive = Sampling.steps
    sample_scale: float = Sampling.scale
    sampler: str = Sampling.sampler
    monitor_every: Positive = 25
    patience: Count = 0
    min_improvement: Annotated[float, Range(0, 1, below=True)] = 0.0
    allow_untrained: bool = False
    checkpointing: bool = False
    compiled: bool = False
    cuda_graphs: bool = False
    formats: tuple[Literal["safetensors", "pt"], ...] = ("safetensors",)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.005, schedule="constant"))
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_steps=5000))
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        own = self.templates
        if not isinstance(own, str):
            templates(own)
        elif own not in SETS:  # the sentences themselves: the file may change before the run is resumed
            object.__setattr__(self, "templates", read_templates(own))
        object.__setattr__(self, "placeholder", normal(self.placeholder))  # by its one spelling, as all names
        spelled = {normal(w) if isinstance(w, str) else w: init for w, init in self.more_words.items()}
        object.__setattr__(self, "more_words", spelled)
        if self.subject is not None:
            object.__setattr__(self, "subject", normal(self.subject))

    @property
    def words(self) -> dict[str, str | None]:
        """Every new word and its init phrase, ``placeholder`` first."""
        return {self.placeholder: self.init, **self.more_words}

    @property
    def called(self) -> str:
        """What ``{}`` stands for."""
        return self.subject or self.placeholder

    def framing(self) -> Framing:
        """How the pictures are found and made squares of."""
        quirks = switches(self.compat)
        fit = self.fit or ("squash" if quirks.squash else "crop")
        return Framing(
            fit=fit,
            background=self.background,
            upright=not quirks.ignore_orientation,
            interpolation=self.interpolation,
            every_file=quirks.every_file,
            unsorted=quirks.unsorted,
        )


def settle(*layers: Mapping[str, Any]) -> InversionConfig:
    """The one way from settings to a config: the model's own <- file <- options <- overrides.

    Args:
        layers: nested mappings, the later one wins, key by key and level by level. A key may be written
            ``trainer.max_steps``, or by its short name (``ldm.shorthand``).

    Raises:
        UserError: an unknown key, a value of another type or out of its range, or settings that do not
            go together.
    """
    config = resolve(InversionConfig, merge({}, *map(spelled, layers)))
    _check_together(config)
    return config


def check(config: InversionConfig) -> None:
    """What ``settle`` refuses, of a config that was made in Python."""
    recheck(config)
    _check_together(config)


def _check_together(config: InversionConfig) -> None:
    """Refuse what would only fail, or silently learn nothing, after minutes of work."""
    if config.sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {config.sampler!r}; use one of {', '.join(SAMPLERS)}")
    for word, init in config.more_words.items():
        if not (isinstance(word, str) and word.strip() and isinstance(init, str | None)):
            raise UserError(f"config more_words has {word!r}: {init!r}; give a name: init phrase, or null")
    if config.per_layer and "pt" in config.formats:
        raise UserError(
            "the official .pt has no place for vectors of each layer; use formats=[safetensors], or "
            "per_layer=false"
        )
    if config.shared_steps and not config.per_layer:
        raise UserError("shared_steps is of words with vectors for each layer; add per_layer=true or omit it")
    if config.placeholder in config.more_words:
        raise UserError(f"{config.placeholder} is the placeholder: leave it out of more_words")
    check_names(tuple(config.words), config.formats)
    for prompt in config.prompts:
        if "{}" not in prompt and not any(contains_placeholder(prompt, word) for word in config.words):
            raise UserError(
                f"the prompt {prompt!r} has no placeholder; write {{}} or {' or '.join(config.words)} in it"
            )


def as_official(config: InversionConfig, pictures: int) -> InversionConfig:
    """The settings with the quirks that are only other numbers: weight decay, progressive growth.

    What comes out says what trains, whatever it is asked again: growth is in optimiser steps, no more in
    calls of the text encoder.
    """
    quirks = switches(config.compat)
    if quirks.weight_decay:
        config = replace(config, optim=replace(config.optim, weight_decay=WEIGHT_DECAY))
    if quirks.encoder_calls and config.progressive:
        steps = growth_steps(
            config.progressive,
            pictures=pictures,
            batch_size=config.batch_size,
            accumulate=config.trainer.accumulate,
            image_every=config.trainer.image_every,
        )
        config = replace(config, progressive=steps, compat=replace(quirks, encoder_calls=False))
    return config
