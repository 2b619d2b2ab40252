"""Rules that end a run early, on made curves, and in a run."""

import math
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

import ldm
from ldm.backbone.model import LatentDiffusion
from ldm.inversion.callbacks import FixedBatchMonitor
from ldm.inversion.config import settle
from ldm.inversion.sections import StopConfig
from ldm.inversion.stopping import no_longer_falls, no_longer_varies, stop_rule


@pytest.mark.parametrize(
    ("losses", "patience", "min_improvement", "stops"),
    [
        ([5.0, 4.0, 4.0, 4.0], 2, 0.0, False),  # as good as the best is not worse
        ([5.0, 4.0, 4.1, 4.1], 2, 0.0, True),
        ([5.0, 4.0, 4.1, 4.1], 3, 0.0, False),
        ([5.0, 4.0, 3.99, 3.98], 2, 0.01, True),
        ([5.0, 4.0, 3.99, 3.90], 2, 0.01, False),
        ([5.0, 6.0, 7.0], 0, 0.0, False),
        ([5.0], 1, 0.0, False),
    ],
)
def test_a_loss_has_converged_when_the_latest_ones_improve_too_little(
    losses: list[float], patience: int, min_improvement: float, stops: bool
) -> None:
    steps = list(range(len(losses)))
    assert no_longer_falls(steps, losses, patience=patience, min_improvement=min_improvement) is stops


def first_stop(curve: Callable[[int], float], every: int = 1, n: int = 4000) -> int | None:
    """The first step at which DVAR of the paper's settings ends a run with this curve."""
    steps: list[int] = []
    losses: list[float] = []
    for step in range(0, n, every):
        steps.append(step)
        losses.append(curve(step))
        if no_longer_varies(steps, losses, window=310, threshold=0.15):
            return step
    return None


def test_dvar_by_hand() -> None:
    # the last two of 1, 2, 3 have a pvariance of 1/4, all three one of 2/3: a ratio of 0.375; a window of two
    # holds too few measurements
    assert not no_longer_varies([0, 1, 2], [1.0, 2.0, 3.0], window=2, threshold=0.9)
    # the last three of 4, 1, 2, 3 have 2/3, all four 5/4: 0.533
    assert no_longer_varies([0, 1, 2, 3], [4.0, 1.0, 2.0, 3.0], window=3, threshold=0.534)
    assert not no_longer_varies([0, 1, 2, 3], [4.0, 1.0, 2.0, 3.0], window=3, threshold=0.533)


def test_dvar_on_curves_of_which_its_step_is_known() -> None:
    stopped = first_stop(lambda step: 0.3 * math.exp(-step / 150) + 0.001 * math.sin(step))
    assert stopped is not None and 310 < stopped < 800
    assert (
        first_stop(lambda step: 1.0 - step / 4000) is None or first_stop(lambda step: 1 - step / 4000) > 750
    )
    assert first_stop(lambda step: 0.5) is None  # nothing has moved: no variance to be a share of


def test_the_window_is_in_steps_however_often_the_loss_is_measured() -> None:
    often = first_stop(lambda step: 0.3 * math.exp(-step / 150))
    seldom = first_stop(lambda step: 0.3 * math.exp(-step / 150), every=10)
    assert often is not None and seldom is not None and abs(often - seldom) <= 100


def test_the_rule_of_a_config() -> None:
    assert stop_rule(StopConfig()) is None
    assert stop_rule(StopConfig(patience=1))([0, 1, 2], [1.0, 2.0, 2.0])  # type: ignore[misc]
    dvar = stop_rule(StopConfig(rule="dvar", dvar_window=3, dvar_threshold=0.534))
    assert dvar is not None and dvar([0, 1, 2, 3], [4.0, 1.0, 2.0, 3.0])
    config = settle({"images": "p", "placeholder": "<a>", "stop": {"rule": "dvar"}})
    assert (config.stop.dvar_window, config.stop.dvar_threshold) == (310, 0.15)


def test_a_rule_to_stop_is_given_more_samples_than_a_curve() -> None:
    rule = stop_rule(StopConfig(patience=3))
    assert FixedBatchMonitor(25).size == 8 and FixedBatchMonitor(25, stop=rule).size == 32
    assert FixedBatchMonitor(25, size=5, stop=rule).size == 5


def test_dvar_ends_a_run(tiny_model: LatentDiffusion, tmp_path: Path) -> None:
    for name in ("a", "b"):
        Image.effect_noise((16, 16), 60).convert("RGB").save(tmp_path / f"{name}.png")
    word = ldm.invert(
        tiny_model, tmp_path, "<toy>", "cat", steps=40, lr=0.0, progress=False, templates="plain",
        stop={"rule": "dvar", "monitor_every": 1, "dvar_window": 4, "dvar_threshold": 1.0,
              "allow_untrained": True},
        trainer={"accelerator": "cpu", "precision": "32-true"},
    )  # fmt: skip
    assert int(word.metadata["step"]) == 40  # a loss that never moves is no sign
    word = ldm.invert(
        tiny_model, tmp_path, "<toy>", "cat", steps=200, lr=0.05, progress=False, templates="plain",
        stop={"rule": "dvar", "monitor_every": 1, "dvar_window": 4, "dvar_threshold": 0.9,
              "allow_untrained": True},
        trainer={"accelerator": "cpu", "precision": "32-true"},
    )  # fmt: skip
    assert 4 <= int(word.metadata["step"]) < 200
