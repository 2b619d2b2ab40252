"""What the tests of the pretraining stages share: small settings, and a machine that goes down."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig

TRAINER = TrainerConfig(max_steps=4, accelerator="cpu", checkpoint_every=2, image_every=100)
OPTIM = OptimConfig(lr=1e-3, warmup_steps=1, lr_final_ratio=0.1, clip_norm=1.0)
LOGGING = LoggingConfig(loggers=("csv",))
WORDS = ("red", "green", "blue", "white", "black")


class Interrupted(Exception):
    pass


def interrupt(monkeypatch: pytest.MonkeyPatch, owner: type, name: str, at: int) -> None:
    """Make ``owner.name(step, ...)`` fail at a step, as a machine that goes down would."""
    original = getattr(owner, name)

    def failing(self: Any, step: int, *args: Any) -> Any:
        if step == at:
            raise Interrupted
        return original(self, step, *args)

    monkeypatch.setattr(owner, name, failing)


def checkpoint(path: Path) -> dict[str, Any]:
    return torch.load(path, weights_only=False)


def assert_same(a: dict[str, Tensor], b: dict[str, Tensor]) -> None:
    assert a.keys() == b.keys()
    for key in a:
        torch.testing.assert_close(a[key], b[key], rtol=0, atol=0, msg=key)
