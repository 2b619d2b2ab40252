"""What one inversion depends on: the keys of an inversion YAML, and what cannot be asked for."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from ldm.config import merge, recheck, resolve
from ldm.diffusion.samplers import SAMPLERS
from ldm.errors import UserError
from ldm.inversion.captions import contains_placeholder, joined
from ldm.inversion.presets import layered
from ldm.inversion.sections import (
    CaptionsConfig,
    ComputeConfig,
    ContextConfig,
    InitPicturesConfig,
    PicturesConfig,
    ShowConfig,
    StopConfig,
)
from ldm.io.embeddings import check_names
from ldm.io.pictures import Framing
from ldm.names import normal
from ldm.official.quirks import FIXED, CompatConfig, growth_steps, settings_of, switches
from ldm.ranges import Amount, Batch, Count, Factor, Positive, Range, Seed
from ldm.shorthand import spelled
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig
from ldm.training.timesteps import TimestepConfig
from ldm.words.kinds import KINDS, choose
from ldm.words.regularize import Form

#: the value of ``init`` that leaves it to the pictures
PICTURES = "pictures"


@dataclass(frozen=True)
class InversionConfig:
    """Everything that an inversion depends on; the keys of an inversion YAML.

    Attributes:
        images: Folder of the three to five pictures.
        train_pictures: Learn from this many of them, the first by name; the others are references to score
            the word with. ``null`` learns from all.
        placeholder: The new word, any string.
        model: A shipped model's name, a model's folder, YAML or checkpoint file, or the mapping itself.
        checkpoint: Weights to use instead of the model's own.
        strict: Refuse weights of which some are missing or too many. If false, that is only a warning, and
            what is missing is random; a loss that looks untrained is only warned of, too.
        clip_skip: Which of the last blocks of a CLIP text encoder is used, counted as web UIs do: 1 is the
            last one. ``null`` is the model's own choice.
        init: A phrase whose token embeddings are the start of the word. ``null`` starts near the mean of the
            vocabulary, and ``pictures`` from the words that are nearest to the pictures.
        init_pictures: How ``init: pictures`` chooses them.
        init_from: What of the phrase is the start: its token embeddings (``embedding``), or what the text
            encoder gives for them (``encoder``; CrossInit, arXiv 2312.15905), which is nearer in length and
            direction to what is learned.
        init_scale: Factor on the start. Text encoders normalise what they are given, so a short vector turns
            further in one step; below 1 the init phrase binds less.
        more_words: Further words that are learned from the same pictures, as a mapping of name to init
            phrase or ``null``. A word that no prompt contains is left out with a warning.
        subject: The text that ``{}`` stands for in templates, caption files and ``show.prompts``, such as
            "<cat> on a <mug>". ``null`` is the placeholder.
        init_embedding: An embedding file whose vectors are the start instead of ``init``; it must have
            ``num_vectors`` of them.
        num_vectors: Number K of vectors of each word. More come nearer to the pictures and obey prompts
            less.
        word: The kind of word that is learned, and the kind's own settings, as in ``{kind: per_layer,
            shared_steps: 100}`` (``ldm.words.kinds`` has them all). A name alone, ``word: per_layer``, takes
            the kind's defaults, and so does ``per_layer: true``.
        progressive: The K - 1 optimiser steps at which the second, third ... vector of a word comes into
            use. Empty: all are used from the start.
        captions: The sentences that the word is learned in.
        pictures: How the pictures become what the model is shown.
        regularization: Weight of the distance between a word and its start, which is added to the loss; above
            0 the word obeys prompts more and resembles the pictures less.
        regularization_form: That distance: ``squared`` as in the paper, or ``norm`` as in CrossInit; the mean
            over the vectors of a word.
        context: A pull on what the rest of a prompt says.
        attention_loss: Weight of the squared difference between where the UNet reads a word, its
            cross-attention divided by its maximum, and the word's mask (Break-A-Scene, arXiv 2305.16311, has
            0.01). It keeps several words of one picture apart, and is added to the loss.
        model_lr: Learning rate, never scaled, of UNet and text encoder, which then train as well; the tuned
            model is written to the folder ``model`` of the run. 0 keeps them frozen.
        compat: ``official`` reproduces every quirk of the official code, a mapping single ones. A switch
            that is only another value of a setting becomes that value, unless the setting is given.
        batch_size: Pictures in a batch on each device.
        timesteps: Which noise levels training looks at; all alike by default, as in the paper.
        seed: Everything random is a function of it, of the concept and of the step.
        scale_lr: Multiply ``optim.lr`` by accumulated batches x devices x batch size, as the official code
            does.
        show: The pictures that the run draws with the word.
        stop: How the run is watched, and when it ends before its last step.
        compute: Time against memory.
        formats: Formats of the embeddings in ``checkpoints``: ``safetensors``, ``pt`` (the official one) or
            both.
        optim: Optimiser and learning-rate schedule.
        trainer: Number of steps, precision, devices, and how often to log, checkpoint and draw.
        logging: Where curves are written to.
    """

    images: Path
    placeholder: str
    model: Any = "emoji"
    checkpoint: str | None = None
    train_pictures: Positive | None = None
    strict: bool = True
    clip_skip: Positive | None = None
    init: str | None = None
    init_pictures: InitPicturesConfig = field(default_factory=InitPicturesConfig)
    init_from: Literal["embedding", "encoder"] = "embedding"
    init_scale: Factor = 1.0
    more_words: dict = field(default_factory=dict)
    subject: str | None = None
    init_embedding: Path | None = None
    num_vectors: Annotated[int, Range(1, 1024)] = 1
    word: dict = field(default_factory=dict)
    progressive: tuple[Count, ...] = ()
    captions: CaptionsConfig = field(default_factory=CaptionsConfig)
    pictures: PicturesConfig = field(default_factory=PicturesConfig)
    regularization: Amount = 0.0
    regularization_form: Form = "squared"
    context: ContextConfig = field(default_factory=ContextConfig)
    attention_loss: Amount = 0.0
    model_lr: Amount = 0.0
    compat: Literal["official"] | CompatConfig = FIXED
    batch_size: Batch = 4
    timesteps: TimestepConfig = field(default_factory=TimestepConfig)
    seed: Seed = 23
    scale_lr: bool = True
    show: ShowConfig = field(default_factory=ShowConfig)
    stop: StopConfig = field(default_factory=StopConfig)
    compute: ComputeConfig = field(default_factory=ComputeConfig)
    formats: tuple[Literal["safetensors", "pt"], ...] = ("safetensors",)
    optim: OptimConfig = field(default_factory=lambda: OptimConfig(lr=0.005, schedule="constant"))
    trainer: TrainerConfig = field(default_factory=lambda: TrainerConfig(max_steps=5000))
    logging: LoggingConfig = field(default_factory=LoggingConfig)

    def __post_init__(self) -> None:
        object.__setattr__(self, "placeholder", normal(self.placeholder))  # by its one spelling, as all names
        words = {normal(w) if isinstance(w, str) else w: init for w, init in self.more_words.items()}
        object.__setattr__(self, "more_words", words)
        object.__setattr__(self, "word", choose(self.word).plain())  # every setting of its kind
        if self.subject is not None:
            object.__setattr__(self, "subject", normal(self.subject))
        for name, value in settings_of(self.compat).items():
            section, _, key = name.rpartition(".")
            holder = getattr(self, section) if section else self
            if getattr(holder, key) == getattr(type(holder), key):  # its default
                changed = replace(holder, **{key: value}) if section else value
                object.__setattr__(self, section or key, changed)

    @property
    def words(self) -> dict[str, str | None]:
        """Every new word and its init phrase, ``placeholder`` first; the pictures' one once it is chosen."""
        init = self.init_pictures.chosen if self.init == PICTURES else self.init
        return {self.placeholder: init, **self.more_words}

    def class_of(self, word: str) -> str | None:
        """The class word that a word's contexts are compared with."""
        return (self.context.class_word if word == self.placeholder else None) or self.words[word]

    @property
    def called(self) -> str:
        """What ``{}`` stands for."""
        if self.captions.subsets and not self.subject:
            return joined(self.words)
        return self.subject or self.placeholder

    @property
    def drawn(self) -> tuple[str, ...]:
        """``show.prompts`` with what they name: with ``captions.subsets`` each of the words, then all."""
        several = self.captions.subsets and len(self.words) > 1
        names = (*self.words, self.called) if several else (self.called,)
        each = ((prompt, names if "{}" in prompt else names[:1]) for prompt in self.show.prompts)
        return tuple(prompt.replace("{}", name) for prompt, own in each for name in own)

    def framing(self) -> Framing:
        """How the pictures are found and made squares of."""
        pictures = self.pictures
        return Framing(
            fit=pictures.fit or "crop",
            background=pictures.background,
            upright=pictures.upright,
            interpolation=pictures.interpolation,
            every_file=pictures.every_file,
            first=self.train_pictures,
            mask=pictures.mask,
        )


def settle(*layers: Mapping[str, Any]) -> InversionConfig:
    """The one way from settings to a config: the model's own <- preset <- file <- options <- overrides.

    Args:
        layers: nested mappings, the later one wins, key by key and level by level; the first one is the
            model's own. A key may be written ``trainer.max_steps``, or by its short name (``ldm.shorthand``).
            ``preset`` names a preset (``ldm.inversion.presets``), which any layer but the first wins over.

    Raises:
        UserError: an unknown key, a value of another type or out of its range, or settings that do not
            go together.
    """
    values: dict[str, Any] = {}
    for layer in map(spelled, layered(layers)):
        values = merge(_of_its_kind(values, layer), layer)
    config = resolve(InversionConfig, values)
    _check_together(config)
    return config


def _of_its_kind(values: Mapping[str, Any], layer: Mapping[str, Any]) -> Mapping[str, Any]:
    """``values`` without the settings of a kind of word that ``layer`` puts another kind in place of."""
    before, now = values.get("word"), layer.get("word")
    if not isinstance(before, Mapping) or not isinstance(now, Mapping) or "kind" not in now:
        return values
    return values if before.get("kind", "plain") == now["kind"] else {**values, "word": {}}


def check(config: InversionConfig) -> None:
    """What ``settle`` refuses, of a config that was made in Python."""
    recheck(config)
    _check_together(config)


def _check_together(config: InversionConfig) -> None:
    """Refuse what would only fail, or silently learn nothing, after minutes of work."""
    if config.show.sampler not in SAMPLERS:
        raise UserError(f"unknown sampler {config.show.sampler!r}; use one of {', '.join(SAMPLERS)}")
    for word, init in config.more_words.items():
        if not (isinstance(word, str) and word.strip() and isinstance(init, str | None)):
            raise UserError(f"config more_words has {word!r}: {init!r}; give a name: init phrase, or null")
    if config.init == PICTURES and config.init_embedding:
        raise UserError(
            "the word cannot start from the pictures and from init_embedding: leave out one of them"
        )
    if PICTURES in config.more_words.values():
        raise UserError("init=pictures is for the placeholder alone: give the words of more_words a phrase")
    to_be_chosen = {config.placeholder} if config.init == PICTURES else set()
    for word, init in config.words.items():
        if word in to_be_chosen:
            continue
        if config.init_from == "encoder" and not init:
            raise UserError(
                f"init_from=encoder starts {word} from what the text encoder makes of a phrase: give init"
            )
        if config.context.weight and not config.class_of(word):
            own = "init, or context.class_word" if word == config.placeholder else "an init phrase"
            raise UserError(f"context.weight compares {word} with the word for its class: give {own}")
    kind = config.word["kind"]
    if "pt" in config.formats and not KINDS[kind].other_tools:
        raise UserError(
            f"the official .pt has no place for a word of kind {kind}; use formats=[safetensors], or "
            "word=plain"
        )
    if config.stop.score_every and config.model_lr:
        raise UserError(
            "stop.score_every keeps the best word, but model_lr changes its model as well; use one of them"
        )
    if config.stop.rule == "score" and not (config.stop.score_every and config.stop.patience):
        raise UserError(
            "stop.rule=score ends a run after stop.patience scores without a better one: give stop.patience "
            "and stop.score_every"
        )
    _check_masks(config)
    if config.placeholder in config.more_words:
        raise UserError(f"{config.placeholder} is the placeholder: leave it out of more_words")
    check_names(tuple(config.words), config.formats)
    for prompt in config.show.prompts:
        if "{}" not in prompt and not any(contains_placeholder(prompt, word) for word in config.words):
            raise UserError(
                f"the prompt {prompt!r} has no placeholder; write {{}} or {' or '.join(config.words)} in it"
            )


def _check_masks(config: InversionConfig) -> None:
    """Refuse settings that need masks of words and do not read them, or that the masks leave no room for."""
    captions = config.captions
    for name, needed in (("captions.subsets", captions.subsets), ("attention_loss", config.attention_loss)):
        if needed and config.pictures.mask != "file":
            raise UserError(f"{name} needs the masks of words: set pictures.mask=file")
    others = {
        "subject": config.subject,
        "captions.coarse_class": captions.coarse_class,
        "captions.per_image_tokens": captions.per_image_tokens,
        "captions.files": captions.files,
    }
    for name, given in others.items():
        if captions.subsets and given:
            raise UserError(f"captions.subsets says what a caption names: leave out {name}")
    if config.attention_loss and (config.compute.compiled or config.compute.cuda_graphs):
        raise UserError(
            "attention_loss reads the attention of the UNet, which a compiled one does not tell: set "
            "compute.compiled and compute.cuda_graphs to false"
        )


def as_official(config: InversionConfig, pictures: int) -> InversionConfig:
    """The settings with ``progressive`` in optimiser steps, if it is in calls of the text encoder.

    Args:
        config: settings; those that count in steps already come out as they are.
        pictures: how many there are, which decides when the official code calls its text encoder.
    """
    quirks = switches(config.compat)
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
