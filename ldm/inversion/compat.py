"""Quirks of the official implementation (Gal et al. 2022, their code), one switch each.

The default of this project is the corrected behaviour. A switch brings a quirk back where published
numbers may depend on it. Plain defects that no number depends on have none: questions on the terminal,
weights loaded with ``strict=False``, a crash on files that are no pictures and their unsorted order,
``use_checkpoint`` that does nothing, checkpoints that cannot resume, a data set whose placeholder
differs from the learned one (zero gradient), and a placeholder that takes away a vocabulary's word.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Literal

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
        end_falls_off: the end token falls off a prompt that K vectors make too long.
        encoder_calls: ``progressive`` counts calls of the text encoder, validation and image logs
            included (see ``encoder_calls``), not optimiser steps. A resumed run counts on: the official
            code, which would begin at 0, cannot resume one.
        summed_drift: the regulariser sums the K drifts before it squares, so that opposite ones cancel.
        weight_decay: AdamW decays v* (and an unfrozen model) by 0.01 x learning rate a step.
        squash: pictures are scaled to a square without regard to their aspect.
        ignore_orientation: the EXIF orientation of photos is ignored.
    """

    copies: bool = False
    position: bool = False
    one_token: bool = False
    uniform: bool = False
    end_falls_off: bool = False
    encoder_calls: bool = False
    summed_drift: bool = False
    weight_decay: bool = False
    squash: bool = False
    ignore_orientation: bool = False


FIXED = CompatConfig()
OFFICIAL = CompatConfig(**{field.name: True for field in fields(CompatConfig)})


def switches(compat: Literal["official"] | CompatConfig) -> CompatConfig:
    """The switches of a config's ``compat`` key."""
    return OFFICIAL if compat == "official" else compat  # type: ignore[return-value]


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
