"""The context prompts of an inversion (``context.weight``): which there are, and which a step compares."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.inversion.templates import render, templates
from ldm.words.context import context_distance


@dataclass(frozen=True)
class ContextTerm:
    """What the loss gains by CoRe's first term (``ldm.words.context``).

    Attributes:
        weight: of the term.
        prompts: how many a step compares.
        ids: word -> its context prompts (T, L) int64, on the host.
        classes: word -> the tokens of its class word.
    """

    weight: float
    prompts: int
    ids: Mapping[str, Tensor]
    classes: Mapping[str, Sequence[int]]

    def distance(self, model: LatentDiffusion, step: int, rng: torch.Generator) -> Tensor:
        """Scalar: the mean over the words, of prompts (and timesteps, for words that vary with them) that
        ``rng`` draws."""
        found = []
        t = torch.randint(model.schedule.num_timesteps, (self.prompts,), generator=rng)
        for word, ids in self.ids.items():
            rows = torch.randint(len(ids), (self.prompts,), generator=rng)
            found.append(
                context_distance(model.text, model.manager, ids[rows], word, self.classes[word], step, t)
            )
        return torch.stack(found).mean()


def context_term(model: LatentDiffusion, config: InversionConfig, words: Sequence[str]) -> ContextTerm | None:
    """The term of the config for ``words``, which the model knows; ``None`` where its weight is 0.

    Raises:
        UserError: a class word that the model does not know, or a template that has no room for a word or
            holds one by itself.
    """
    wish = config.context
    if not wish.weight:
        return None
    ids, classes = {}, {}
    for word in words:
        prompts = [render(line, word) for line in templates(wish.templates)]
        model.cuts.tell(model.text.tokenizer, model.manager, prompts)
        ids[word] = model.text.tokenize(prompts)
        for prompt, row in zip(prompts, ids[word], strict=True):
            _refuse(model, prompt, row)
        classes[word] = _class_ids(model, config.class_of(word) or "")
    return ContextTerm(wish.weight, wish.prompts, ids, classes)


def _refuse(model: LatentDiffusion, prompt: str, row: Tensor) -> None:
    """One line about a context prompt in which the word is not there once."""
    held = int((row >= model.manager.vocab_size).sum())
    if not held:
        raise UserError(
            f"context.templates: {prompt!r} is longer than the {model.text.max_length} tokens this model "
            "reads, and the word is cut off; write less before it"
        )
    if held > 1:
        raise UserError(
            f"context.templates: {prompt!r} holds a learned word twice; give another name, or other templates"
        )


def _class_ids(model: LatentDiffusion, name: str) -> list[int]:
    tokenizer = model.text.tokenizer
    found = tokenizer.words(name)
    known = all(i < model.manager.vocab_size and i != tokenizer.unknown_id for i in found)
    if not found or not known or len(found) > model.text.max_length - 3:
        raise UserError(f"the class word {name!r} is not one that this model knows; set context.class_word")
    return found
