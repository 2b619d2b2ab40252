"""One optimiser for a run whose words do not all move alike: AdamW, and each kind's own rule."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch

from ldm.words.kind import Word


class WordOptimizer(torch.optim.AdamW):
    """AdamW for all parameters but those of words that move by a rule of their own (``Word.own_step``).

    A word's rule is given the scheduled rate and a state that checkpoints keep. After every step all words
    put right what must not change (``Word.after_step``).

    Args:
        groups: parameter groups ``{"params": ...}``, as AdamW takes them.
        words: the words whose parameters are among them.
        settings: AdamW's.
    """

    def __init__(self, groups: Iterable[Any], words: Sequence[Word], **settings: Any) -> None:
        self.words = list(words)
        self.own = [word for word in words if word.own_step]
        theirs = {id(p) for word in self.own for p in word.parameters()}
        groups = [
            {**group, "params": [p for p in group["params"] if id(p) not in theirs]} for group in groups
        ]
        groups += [{"params": list(word.parameters()), "weight_decay": 0.0} for word in self.own]
        super().__init__(groups, **settings)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = self.param_groups
        shared = len(groups) - len(self.own)
        self.param_groups = groups[:shared]
        try:
            super().step()
        finally:
            self.param_groups = groups
        for word, group in zip(self.own, groups[shared:], strict=True):
            if all(p.grad is not None for p in group["params"]):
                state = self.state[group["params"][0]]
                state["step"] = (
                    state.get("step", torch.tensor(0.0)) + 1
                )  # under the name that AdamW looks for
                word.move(group["lr"], state)
        for word in self.words:
            word.after_step()
        return loss
