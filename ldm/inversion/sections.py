"""The sections of an inversion's settings: init_pictures, captions, context, pictures, show, stop, ..."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Literal

from ldm.inversion.templates import SETS, read_templates, templates
from ldm.ranges import Amount, Count, Positive, Range, Share
from ldm.sampling.sample import Sampling

DEFAULT_PROMPTS = (
    "a photo of {}",
    "a photo of {} on a red background",
    "a photo of {} on a blue background",
    "a photo of two {} on the beach",
)


@dataclass(frozen=True)
class InitPicturesConfig:
    """``init_pictures:``, how ``init: pictures`` chooses the words that are nearest to the pictures.

    Candidates are the whole words of the model's vocabulary that the model has learned and the scorer knows.
    They are compared as "a photo of a WORD" with the mean of the pictures' features.

    Attributes:
        scorer: Who compares; it must read texts. ``emoji-clip`` knows emoji alone: for photos use such as
            ``clip:ViT-B-32/openai``. Its weights must be on this machine.
        words: Number of words, the nearest first, that the word starts from as from a phrase.
        chosen: The phrase that was chosen. A run writes it into its ``config.yaml``, by which the same word
            is learned again without the scorer. ``null`` chooses.
    """

    scorer: str = "emoji-clip"
    words: Annotated[int, Range(1, 64)] = 1
    chosen: str | None = None


@dataclass(frozen=True)
class CaptionsConfig:
    """``captions:``, the sentences that the word is learned in.

    Attributes:
        templates: Caption templates: ``object``, ``style``, ``photo``, ``plain`` or another set by name, a
            list of sentences with ``{}`` for the word, or a text file with one sentence a line. The run keeps
            the sentences of the file, which may change before it is resumed.
        coarse_class: A word that templates put before the placeholder ("a photo of a cat S*").
        files: Whether to use the caption files ``name.txt`` beside the pictures. ``null`` uses them if
            there are any.
        per_image_tokens: Learn one more word for each picture ("a photo of S* with S_i"), which takes up
            what is special about that picture and is dropped at the end.
        mixing_prob: With ``per_image_tokens``, the share of the captions that contain the picture's own word.
        subsets: Name in each caption a random subset of the words that its picture has masks of, as in "a
            photo of <cat> and <mug>" (Break-A-Scene, arXiv 2305.16311); ``{}`` in a template is where they
            stand, and ``{}`` in ``show.prompts`` is drawn for each word and for all of them.
    """

    templates: str | tuple[str, ...] = "object"
    coarse_class: str | None = None
    files: bool | None = None
    per_image_tokens: bool = False
    mixing_prob: Share = 0.25
    subsets: bool = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", _sentences(self.templates))


@dataclass(frozen=True)
class ContextConfig:
    """``context:``, a pull that leaves the rest of a prompt what it is beside an ordinary word.

    Each step compares what the text encoder gives for the other tokens of a context prompt, once with the
    learned word in it and once with its class word: CoRe's first term (arXiv 2408.15914). No picture is
    needed.

    Attributes:
        weight: Weight of the mean of 1 - cosine, which is added to the loss so that prompts are obeyed more.
            The published weight is 0.00015; 0 switches it off.
        class_word: What the placeholder is compared with. ``null`` is its init phrase; words of
            ``more_words`` are compared with theirs.
        templates: The context prompts: a set by name, a list of sentences with ``{}`` for the word, or a text
            file with one a line.
        prompts: Prompts that a step compares, drawn at random.
    """

    weight: Amount = 0.0
    class_word: str | None = None
    templates: str | tuple[str, ...] = "context"
    prompts: Annotated[int, Range(1, 1024)] = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "templates", _sentences(self.templates))


def _sentences(given: str | tuple[str, ...]) -> str | tuple[str, ...]:
    """The name of a set of templates, or one's own sentences, those of a file read."""
    if not isinstance(given, str):
        return templates(given)
    return given if given in SETS else read_templates(given)


@dataclass(frozen=True)
class PicturesConfig:
    """``pictures:``, how the user's pictures are made into what the model is shown.

    Attributes:
        fit: How a picture becomes a square: ``crop`` keeps the middle, ``pad`` adds ``background``,
            ``squash`` ignores the aspect. ``null`` is ``crop``.
        background: Colour of padding and of what lies behind transparent parts.
        interpolation: Filter with which pictures are scaled.
        upright: Turn photos as their EXIF orientation says, and apply their colour profile.
        every_file: Take every file of the folder for a picture, hidden ones and masks too; the first one that
            is none stops the run. Without, other files are skipped with a warning.
        mask: Where in a picture the concept is; only there does the loss count. ``file`` reads a mask beside
            the picture, ``cat.mask.png`` for ``cat.jpg``, white where the concept is, or masks of single
            words, ``cat.WORD.mask.png``, of which those count that the caption names. ``alpha`` takes what is
            opaque in the picture. A picture without a mask counts whole. ``ignore`` counts all of every
            picture.
        flip_p: Probability that a picture is mirrored.
    """

    fit: Literal["crop", "pad", "squash"] | None = None
    background: str = "white"
    interpolation: Literal["bicubic", "bilinear", "lanczos"] = "bicubic"
    upright: bool = True
    every_file: bool = False
    mask: Literal["file", "alpha", "ignore"] = "file"
    flip_p: Share = 0.5


@dataclass(frozen=True)
class ShowConfig:
    """``show:``, the pictures that a run draws with the word, for people to look at.

    Attributes:
        prompts: Prompts to draw while the word is learned and at the end; ``{}`` is the subject.
        samples_per_prompt: Pictures of each prompt at the end; 0 draws none.
        steps: Steps of the sampler.
        scale: Guidance scale; 1 is none.
        sampler: Sampler at the end: ``ddim``, ``plms`` or ``dpm++``.
    """

    prompts: tuple[str, ...] = DEFAULT_PROMPTS
    samples_per_prompt: Annotated[int, Range(0, 10_000)] = 4
    steps: Positive = Sampling.steps
    scale: float = Sampling.scale
    sampler: str = Sampling.sampler


@dataclass(frozen=True)
class StopConfig:
    """``stop:``, how a run is watched, and when it ends before its last step.

    The loss is measured on a fixed batch: the same pictures, captions, noise and timesteps each time.

    Attributes:
        monitor_every: Optimiser steps between two measurements.
        rule: ``patience`` ends a run where the loss no longer falls, ``dvar`` where it no longer
            varies (Voronov et al. 2023, arXiv 2302.04841); the paper measures after every step. ``score``
            ends it where the word's scores no longer rise: the product of reconstruction and editability,
            which are drawn and measured every ``score_every`` steps.
        patience: Stop once this many measurements in a row have not lowered the lowest loss before them (with
            ``score``: raised the highest score) by ``min_improvement``. 0 never stops early.
        min_improvement: The improvement that ``patience`` counts, as a share of the best figure so far: 0.01
            is one per cent.
        dvar_window: Optimiser steps whose losses ``dvar`` compares with all losses. At least three
            measurements lie in it.
        dvar_threshold: Share of the variance of all losses below which that of the window ends the run.
        allow_untrained: Accept a base model whose loss at the start is that of an untrained network.
        score_every: Optimiser steps between two scores of the word: it is saved, drawn as ``ldm evaluate
            curve`` does, and its reconstruction and editability are logged. The report ``curve`` and
            ``best.safetensors``, the best step's word, are written at the end. 0 scores nothing.
        scorer: Who scores; its weights must be on this machine.
    """

    monitor_every: Positive = 25
    rule: Literal["patience", "dvar", "score"] = "patience"
    patience: Count = 0
    min_improvement: Annotated[float, Range(0, 1, below=True)] = 0.0
    dvar_window: Positive = 310
    dvar_threshold: Annotated[float, Range(0, 1)] = 0.15
    allow_untrained: bool = False
    score_every: Count = 0
    scorer: str = "emoji-clip"


@dataclass(frozen=True)
class ComputeConfig:
    """``compute:``, time against memory; the word that is learned is the same.

    Attributes:
        checkpointing: Recompute the UNet's activations in the backward pass: much less memory, about a third
            more time. ``null`` does as ``use_checkpoint`` of the model's config says.
        compiled: Train through ``torch.compile``, which pays after minutes; on a CPU it needs a C++
            compiler.
        cuda_graphs: With ``compiled``, record the step as CUDA graphs and replay them.
    """

    checkpointing: bool | None = None
    compiled: bool = False
    cuda_graphs: bool = False
