"""The pictures that show a word, on the way and at the end; those of many words are drawn together.

A picture is a function of its order's model, prompt and settings, of its seed and its place in the order,
and not of what is drawn beside it: contexts and noise are made for each order, and only the network's
calls are shared.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.device import out_of_memory
from ldm.diffusion.condition import cat
from ldm.errors import UserError
from ldm.sampling.sample import sample, usual_batch

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Order:
    """Pictures to draw, one a prompt; picture i is that of (seed, i).

    Attributes:
        model: The model, which knows the words of the prompts.
        prompts: The prompts, one for each picture.
        sampler: The sampler's name.
        steps: The number of sampling steps.
        scale: The scale of classifier-free guidance.
        seed: The seed that the noise of every picture is made from, together with its number.
    """

    model: LatentDiffusion
    prompts: tuple[str, ...]
    sampler: str
    steps: int
    scale: float
    seed: int

    @property
    def manner(self) -> tuple[str, int, float]:
        """What pictures must have in common to be drawn together."""
        return self.sampler, self.steps, self.scale


def draw(order: Order, *, progress: bool = False) -> Tensor:
    """The pictures (n, 3, H, W) of one order, in [-1, 1], with a bar if there is ``progress``; raises what
    :func:`ldm.sample` raises."""
    return next(iter(_together([order], progress)))


def draw_together(orders: Iterable[Order]) -> Iterator[Tensor | UserError]:
    """The pictures of each order, or what is wrong with it, which stops no other.

    Orders that follow each other are drawn in one batch, as far as it takes them: the same pictures as
    those of each order alone, but for the rounding of sums over other batches.

    Args:
        orders: of one model, or of twins of it (``with_own_words``).
    """
    group: list[Order] = []
    for order in orders:
        if group and not _fits(order, group):
            yield from _drawn(group)
            group = []
        group.append(order)
    yield from _drawn(group)


def _fits(order: Order, group: Sequence[Order]) -> bool:
    pictures = sum(len(one.prompts) for one in (*group, order))
    return order.manner == group[0].manner and pictures <= usual_batch(order.model.image_size)


def _drawn(group: Sequence[Order]) -> list[Tensor | UserError]:
    try:
        return list(_together(group))
    except UserError as error:
        if len(group) == 1:
            return [error]
    return [drawn for order in group for drawn in _drawn([order])]


@torch.no_grad()
def _together(orders: Sequence[Order], progress: bool = False) -> Sequence[Tensor]:
    """The pictures of each order; out of memory is met by fewer at a time."""
    draws = [(order.seed, i) for order in orders for i in range(len(order.prompts))]
    if not draws:
        return [torch.empty(0)] * len(orders)
    first = orders[0]
    cond = cat([order.model.condition(list(order.prompts)) for order in orders if order.prompts])
    size = min(len(draws), usual_batch(first.model.image_size))
    while True:
        try:
            pictures = sample(
                first.model,
                cond=cond,
                draws=draws,
                sampler=first.sampler,
                steps=first.steps,
                scale=first.scale,
                batch_size=size,
                progress=progress,
            )
            return pictures.split([len(order.prompts) for order in orders])
        except Exception as error:
            if not out_of_memory(error):
                raise
        # not in the handler: its traceback keeps the activations
        if size == 1:
            raise UserError(
                "out of memory with one picture: draw none (samples_per_prompt=0 and "
                "trainer.image_every=0), and draw with the word elsewhere"
            )
        size //= 2
        log.warning("out of memory: drawing %d pictures at a time", size)
