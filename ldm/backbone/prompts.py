"""Prompts to conditions: tokens, the learned words in their places, and the text encoder."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ldm.device import carry
from ldm.diffusion.condition import Condition, Context, Varying, cat_contexts
from ldm.text.conditioner import TextConditioner
from ldm.words.manager import EmbeddingManager

#: bytes of contexts that a condition which varies with time keeps for the next steps
MOST_KEPT = 2**28


def encode(
    text: TextConditioner,
    manager: EmbeddingManager,
    prompts: Sequence[str],
    step: int | Tensor | None,
    truncate: int | None = None,
) -> Condition:
    """The condition of B prompts, each different one encoded once.

    Args:
        text: tokenizer and text encoder.
        manager: the learned words.
        prompts: B prompts.
        step: optimiser step of progressive words, one for all or a (B,) tensor; ``None``: fully grown.
        truncate: how many units count of words that can be cut; ``None``: all.

    Raises:
        UserError: such a word has fewer units than that.
    """
    steps = step.tolist() if isinstance(step, Tensor) else [step] * len(prompts)
    places = {key: i for i, key in enumerate(dict.fromkeys(zip(prompts, steps, strict=True)))}
    if isinstance(step, Tensor):
        step = torch.tensor([s for _, s in places])
    ids = text.tokenize([prompt for prompt, _ in places])  # stays on the host, which works out where v* goes
    rows = torch.tensor([places[key] for key in zip(prompts, steps, strict=True)])
    if truncate is not None:
        manager.check_cut(ids, truncate)
    if manager.varies_with_time(ids):
        return Varying(_AtEachTime(text, manager, ids, step, truncate), rows)
    context = _context(text, manager, ids, step)
    return context if len(places) == len(prompts) else context[carry(rows, context.tokens.device)]


def _context(
    text: TextConditioner,
    manager: EmbeddingManager,
    ids: Tensor,
    step: int | Tensor | None,
    t: Tensor | None = None,
    kept: Tensor | None = None,
) -> Context:
    """The context of looked-up ids (B, L), at timesteps t (B,), of the ``kept`` (B,) first units."""
    placed = manager(ids, text.embed(ids), step, t, kept)
    return Context(*text.keys_and_values(placed.embeds, placed.ids, placed.aside))


class _AtEachTime:
    """Encodes prompts for the timesteps that it is asked about, each different one once.

    Without gradients, what was found is kept: sampling asks for a stage of the schedule, or for a timestep,
    more than once. What is kept of long prompts and many timesteps is bounded by ``MOST_KEPT``.

    Args:
        ids: (U, L) tokens of the different prompts.
        step: as of :func:`encode`, one for all or (U,).
        truncate: as of :func:`encode`.
    """

    def __init__(
        self,
        text: TextConditioner,
        manager: EmbeddingManager,
        ids: Tensor,
        step: int | Tensor | None,
        truncate: int | None = None,
    ) -> None:
        self.text, self.manager, self.ids, self.step, self.truncate = text, manager, ids, step, truncate
        self.clip_skip = text.clip_skip  # the one of this moment, whenever it is asked
        self._kept: dict[tuple[int, ...], Context] = {}

    def __call__(self, rows: Tensor, t: Tensor) -> Context:
        asked = list(zip(rows.tolist(), t.tolist(), strict=True))
        keys = [(row, *self.manager.moments(self.ids[row], time)) for row, time in asked]
        different = dict(zip(keys, asked, strict=True))
        kept = {} if torch.is_grad_enabled() else self._kept
        missing = [key for key in different if key not in kept]
        if missing:
            found = self._encoded([different[key] for key in missing])
            if len(kept) * _size(found[:1]) > MOST_KEPT:
                kept = self._kept = {key: kept[key] for key in different if key in kept}
            kept.update((key, found[i : i + 1]) for i, key in enumerate(missing))
        places = {key: i for i, key in enumerate(different)}
        together = cat_contexts([kept[key] for key in different])
        return together[carry(torch.tensor([places[key] for key in keys]), together.tokens.device)]

    def _encoded(self, asked: Sequence[tuple[int, int]]) -> Context:
        rows, t = torch.tensor(asked).T
        step = self.step[rows] if isinstance(self.step, Tensor) else self.step
        kept = None if self.truncate is None else torch.full_like(t, self.truncate)
        with self.text.skipping(self.clip_skip):
            return _context(self.text, self.manager, self.ids[rows], step, t, kept)


def _size(context: Context) -> int:
    return context.tokens.nbytes + (0 if context.values is None else context.values.nbytes)
