"""Rules that end a run early, on made curves, and in a run."""

import csv
import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest
import tiny
import torch
from learning import BASE
from PIL import Image
from torch import Tensor

import ldm
from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.evaluation.curve import CurveFolder, Moment
from ldm.evaluation.scorers import Identity
from ldm.inversion.callbacks import FixedBatchMonitor
from ldm.inversion.config import InversionConfig, settle
from ldm.inversion.many.jobs import Job
from ldm.inversion.many.pack import learn_many
from ldm.inversion.run import learn
from ldm.inversion.sections import StopConfig
from ldm.inversion.stopping import (
    no_longer_falls,
    no_longer_rises,
    no_longer_varies,
    score_rule,
    stop_rule,
)
from ldm.inversion.task import read_pictures
from ldm.io.embeddings import load_embedding
from ldm.io.runs import create_run


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
    straight = first_stop(lambda step: 1.0 - step / 4000)
    assert straight is None or straight > 750
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
        tiny_model, tmp_path, "<toy>", "cat", steps=12, lr=0.0, progress=False, templates="plain",
        stop={"rule": "dvar", "monitor_every": 1, "dvar_window": 4, "dvar_threshold": 1.0,
              "allow_untrained": True},
        trainer={"accelerator": "cpu", "precision": "32-true"},
    )  # fmt: skip
    assert int(word.metadata["step"]) == 12  # a loss that never moves is no sign
    word = ldm.invert(
        tiny_model, tmp_path, "<toy>", "cat", steps=200, lr=0.05, progress=False, templates="plain",
        stop={"rule": "dvar", "monitor_every": 1, "dvar_window": 4, "dvar_threshold": 0.9,
              "allow_untrained": True},
        trainer={"accelerator": "cpu", "precision": "32-true"},
    )  # fmt: skip
    assert 4 <= int(word.metadata["step"]) < 200


# ------------------------------------------------------------------------------ by the scores
@pytest.mark.parametrize(
    ("scores", "patience", "min_improvement", "stops"),
    [
        ([0.1, 0.5, 0.5, 0.5], 2, 0.0, False),  # as good as the best is not worse
        ([0.1, 0.5, 0.4, 0.4], 2, 0.0, True),
        ([0.1, 0.5, 0.4, 0.4], 3, 0.0, False),
        ([0.1, 0.5, 0.502, 0.504], 2, 0.01, True),
        ([0.1, 0.5, 0.502, 0.506], 2, 0.01, False),
        ([-0.1, -0.2, -0.2], 2, 0.0, True),
        ([0.5, 0.4, 0.3], 0, 0.0, False),
        ([0.5], 1, 0.0, False),
    ],
)
def test_a_score_has_converged_when_the_latest_ones_are_no_better(
    scores: list[float], patience: int, min_improvement: float, stops: bool
) -> None:
    assert no_longer_rises(scores, patience=patience, min_improvement=min_improvement) is stops


def test_the_score_rule_takes_the_place_of_the_others_and_needs_scores() -> None:
    config = StopConfig(rule="score", patience=1, score_every=5)
    rule = score_rule(config)
    assert stop_rule(config) is None and rule is not None and rule([0.5, 0.4])
    assert score_rule(StopConfig(patience=1)) is None
    for lacking in ({"patience": 2}, {"score_every": 5}):
        with pytest.raises(UserError, match="give stop.patience and stop.score_every"):
            settle({"images": "p", "placeholder": "<a>", "stop": {"rule": "score", **lacking}})


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.write_pictures(tmp_path / "pictures")


class MadeScorer:
    """A scorer to whom all pictures are alike."""

    name, reads_text = "made", False
    identity = Identity("made", "made", "made")

    def image_features(self, images: Tensor) -> Tensor:
        return torch.ones(len(images), 1)


@pytest.fixture
def made_curve(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Scores that are made up: of every second step, 2 is the best for long. The drawn steps are noted."""
    curve, drawn = {0: 0.1, 2: 0.5, 4: 0.4, 5: 0.9, 6: 0.3, 8: 0.9}, list[int]()

    def keep(folder: CurveFolder, step: int, saved: Path, pictures: Tensor) -> Moment:
        drawn.append(step)
        monkeypatch.setattr(made, "near", (curve[step],))
        return original(folder, step, saved, pictures)

    made, original = SimpleNamespace(near=(0.0,)), CurveFolder.keep
    monkeypatch.setattr(CurveFolder, "keep", keep)
    monkeypatch.setattr("ldm.evaluation.curve.measure", lambda step, *_: Moment(step, made.near, ()))
    monkeypatch.setattr("ldm.inversion.scores.draw", lambda *_: torch.zeros(1, 3, 4, 4))
    monkeypatch.setattr("ldm.inversion.scores._scorer", lambda *_: MadeScorer())
    return drawn


def steps_of(
    model: LatentDiffusion, config: InversionConfig, out: Path, *, packed: bool, resume: bool = False
) -> int:
    """The optimiser steps after which a run ends."""
    if packed:
        (result,) = learn_many(
            model, [Job(out.name, config)], out.parent, pack=1, resume=resume, progress=False
        )
        assert result.error is None
    else:
        concept, _ = read_pictures(config, model.image_size)
        run = create_run(out, resume=resume)
        learn(model.with_own_words(), concept, config, run=run, resume=resume, progress=False)
    return int(load_embedding(out / "embeddings.safetensors").metadata["step"])


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_scores_end_a_run_alone_in_a_pack_and_after_it_was_resumed(
    tiny_model: LatentDiffusion, pictures: Path, tmp_path: Path, made_curve: list[int], packed: bool
) -> None:
    stop = replace(BASE.stop, rule="score", patience=2, score_every=2, monitor_every=4)
    trainer = replace(BASE.trainer, max_steps=20, image_every=0, checkpoint_every=3)
    show = replace(BASE.show, samples_per_prompt=0)
    config = replace(BASE, images=pictures, stop=stop, trainer=trainer, show=show)
    assert steps_of(tiny_model, config, tmp_path / "whole", packed=packed) == 6
    assert made_curve == [0, 2, 4, 6]
    assert load_embedding(tmp_path / "whole" / "best.safetensors").metadata["step"] == "2"
    with open(tmp_path / "whole" / "curve" / "table.csv", newline="") as table:
        assert [row["step"] for row in csv.DictReader(table)] == list("0246")
    part = replace(
        config, trainer=replace(trainer, max_steps=5)
    )  # scored at its end, where a whole run is not
    assert steps_of(tiny_model, part, tmp_path / "cut", packed=packed) == 5
    assert steps_of(tiny_model, config, tmp_path / "cut", packed=packed, resume=True) == 6
    words = [load_embedding(tmp_path / name / "embeddings.safetensors").vectors for name in ("whole", "cut")]
    assert torch.equal(*words)


def test_a_word_without_a_folder_has_no_scores_to_stop_by(
    tiny_model: LatentDiffusion, pictures: Path
) -> None:
    with pytest.raises(UserError, match="in the run's folder"):
        ldm.invert(
            tiny_model, pictures, "<toy>", "cat", steps=4, progress=False,
            stop={"rule": "score", "patience": 1, "score_every": 1, "allow_untrained": True},
        )  # fmt: skip
