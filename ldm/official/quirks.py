"""Quirks of the official implementation (Gal et al. 2022, their code), one switch each.

The default of this project is the corrected behaviour; a switch brings a quirk back.

==================================================================  ====================================
quirk of the official code                                          switch of ``CompatConfig``
==================================================================  ====================================
K > 1 vectors start as identical copies of one word                 ``copies``
CLIP's init vector holds position embedding 0                       ``position``
the init word must be one token                                     ``one_token``
without an init word v* starts uniform on [0, 1)                    ``uniform``
the placeholder must be one token, and takes that word away         ``takes_word``
K vectors push the end token out                                    ``end_falls_off``
the progressive counter counts encoder calls, and is not saved      ``encoder_calls``, ``vectors_only``
the multi-vector regulariser lets opposite drifts cancel            ``summed_drift``
the data set's placeholder stays "*"                                ``star_prompts``
``use_checkpoint: true`` of a YAML file does nothing                ``ignore_checkpointing``
the saved checkpoint holds vectors only and cannot resume           ``vectors_only``
pictures are squashed, EXIF is ignored, a file that is no picture   ``squash``, ``ignore_orientation``,
crashes                                                             ``every_file``
weights are loaded with ``strict=False``                            ``loose_weights``
merging asks on the terminal and can overwrite silently             ``ldm embeddings merge --compat``
==================================================================  ====================================

And AdamW's default weight decay, ``weight_decay``. Nothing of it asks on the terminal in a training: where
the official code would ask or crash, the run is refused in one line.

A switch that is only another value of an ordinary setting becomes that value (``AS_SETTINGS``). Two more
quirks change nothing that is learned and have no switch: vectors of K > 1 are written into the ids that came
in, and pictures come in the order in which the file system lists them.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

#: decay of torch's AdamW when nothing else is said, as in the official code
WEIGHT_DECAY = 0.01
#: the data set repeats its pictures this often an epoch; Lightning tries so many batches beforehand
REPEATS, SANITY_BATCHES = 100, 2


@dataclass(frozen=True)
class CompatConfig:
    """Which quirks of the official code to reproduce; ``compat: official`` is all of them.

    Attributes:
        copies: K > 1 vectors start as identical copies.
        position: CLIP's position embedding 0 is added to an init word (and again in use).
        one_token: an init phrase of several tokens is refused.
        uniform: without an init word, v* starts uniform on [0, 1).
        takes_word: a placeholder that is not exactly one token of the vocabulary is refused; one that
            is stands for v* wherever the tokenizer gives that token, and means nothing else any more.
        end_falls_off: the end token falls off a prompt that K vectors make too long.
        encoder_calls: ``progressive`` counts calls of the text encoder, validation and image logs
            included (see ``encoder_calls``), not optimiser steps. The count of a resumed run goes on,
            unless ``vectors_only`` has it begin at 0.
        summed_drift: the regulariser sums the K drifts before it squares, so that opposite ones cancel.
        star_prompts: templates hold "*" whatever the placeholder is. v* of another one has no gradient and
            stays where it starts (but for ``weight_decay``), with a warning. Caption files and a ``subject``
            are used as they are.
        ignore_checkpointing: a UNet's ``use_checkpoint: true`` does nothing; a run's own
            ``checkpointing: true`` still does.
        vectors_only: ``last.ckpt`` holds the vectors and the base model's fingerprint; a resumed run
            takes the vectors and begins anew with all else: optimiser, steps, growth. As in the official
            code, a run that tunes the model too (``model_lr``) has whole checkpoints.
        weight_decay: AdamW decays v* (and an unfrozen model) by 0.01 x learning rate a step.
        squash: pictures are scaled to a square without regard to their aspect.
        ignore_orientation: the EXIF orientation and the colour profile of photos are ignored.
        every_file: everything in the folder, hidden files and captions too, is opened as a picture, and
            the first one that is none stops the run.
        loose_weights: weights that a checkpoint lacks or has too many are warned of, not refused, and
            the missing ones are random; so is a loss at the start that looks untrained.
    """

    copies: bool = False
    position: bool = False
    one_token: bool = False
    uniform: bool = False
    takes_word: bool = False
    end_falls_off: bool = False
    encoder_calls: bool = False
    summed_drift: bool = False
    star_prompts: bool = False
    ignore_checkpointing: bool = False
    vectors_only: bool = False
    weight_decay: bool = False
    squash: bool = False
    ignore_orientation: bool = False
    every_file: bool = False
    loose_weights: bool = False


#: switch -> the setting that it stands for, and its value; one that is given another value keeps it
AS_SETTINGS: dict[str, tuple[str, Any]] = {
    "weight_decay": ("optim.weight_decay", WEIGHT_DECAY),
    "squash": ("pictures.fit", "squash"),
    "ignore_orientation": ("pictures.upright", False),
    "every_file": ("pictures.every_file", True),
    "ignore_checkpointing": ("compute.checkpointing", False),
    "loose_weights": ("strict", False),
}

FIXED = CompatConfig()
OFFICIAL = CompatConfig(**{field.name: True for field in fields(CompatConfig)})


def switches(compat: Literal["official"] | CompatConfig) -> CompatConfig:
    """The switches of a config's ``compat`` key."""
    return OFFICIAL if compat == "official" else compat  # type: ignore[return-value]


def settings_of(compat: Literal["official"] | CompatConfig) -> dict[str, Any]:
    """Dotted names and values of the settings that the switches of ``compat`` stand for."""
    quirks = switches(compat)
    return {name: value for switch, (name, value) in AS_SETTINGS.items() if getattr(quirks, switch)}


def encoder_calls(
    step: int, *, pictures: int, batch_size: int, accumulate: int = 1, image_every: int = 0
) -> int:
    """Calls of the text encoder that the official code has made when optimiser step ``step`` begins.

    One for each batch; two (with and without averaged weights) for each validation batch, after each
    epoch and, for the first two, before training; two (prompt and empty prompt) for each image log.

    Args:
        step: counted from 0.
        pictures, batch_size, accumulate: an epoch shows the pictures 100 times.
        image_every: optimiser steps between image logs; 0: none.
    """
    batches = step * accumulate
    epoch = -(-REPEATS * pictures // batch_size)
    validation = -(-pictures // batch_size)
    logs = step // image_every if image_every else 0
    return batches + 2 * min(SANITY_BATCHES, validation) + 2 * validation * (batches // epoch) + 2 * logs


def growth_steps(
    thresholds: Sequence[int], *, pictures: int, batch_size: int, accumulate: int, image_every: int
) -> tuple[int, ...]:
    """Optimiser steps at which the count of encoder calls comes to each of ``thresholds``.

    Other arguments as ``encoder_calls``. The call that a step makes itself counts.
    """

    def calls(step: int) -> int:
        before = encoder_calls(
            step,
            pictures=pictures,
            batch_size=batch_size,
            accumulate=accumulate,
            image_every=image_every,
        )
        return before + 1

    return tuple(bisect_left(range(count), count, key=calls) for count in thresholds)
