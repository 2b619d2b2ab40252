"""The benchmark of held-out concepts, with a sampler and a learner whose faults are known."""

from pathlib import Path

import pytest
from evaluation_world import CentreJudge, StubModel, invert, sample

from ldm.emoji.heldout import COLUMNS, choose_concepts, evaluate_inversion
from ldm.emoji.sprites import EmojiSprites
from ldm.errors import UserError
from ldm.evaluation.metrics import Share
from ldm.sampling.sample import Sampling

pytestmark = pytest.mark.slow

QUICK = Sampling(steps=1)


def benchmark(model: StubModel, judge: CentreJudge, sprites: EmojiSprites, out: Path, **changes):  # noqa: ANN201
    settings = {"concepts": 4, "pictures": 2, "samples": 4, "sampling": QUICK, "progress": False} | changes
    holdout = {c.hex for c in sprites.concepts[:10]}
    learn = settings.pop("invert", invert)
    return evaluate_inversion(model, judge, sprites, holdout, out, sample=sample, invert=learn, **settings)


def test_held_out_benchmark_measures_and_reports(
    model: StubModel, judge: CentreJudge, sprites: EmojiSprites, tmp_path: Path
) -> None:
    result = benchmark(model, judge, sprites, tmp_path)
    assert result.nearest == Share(4 * (4 + 12), 4 * (4 + 12))
    assert result.background == Share(48, 48) and result.ceiling == Share(8, 8)
    assert not model.placeholders, "the model forgets the words"
    lines = (tmp_path / "table.csv").read_text().splitlines()
    assert lines[0] == ",".join(COLUMNS) and len(lines) == 5
    for name in ("contact_sheet.png", "report.html", "result.json"):
        assert (tmp_path / name).stat().st_size > 500
    assert len(list(tmp_path.glob("concepts/*/embedding.safetensors"))) == 4


def test_an_interrupted_benchmark_goes_on_where_it_stopped(
    model: StubModel, judge: CentreJudge, sprites: EmojiSprites, tmp_path: Path
) -> None:
    def fails_at_the_third(*args, **kwargs):  # noqa: ANN002, ANN003, ANN202
        if len(model.learned) == 2:
            raise KeyboardInterrupt
        return invert(*args, **kwargs)

    with pytest.raises(KeyboardInterrupt):
        benchmark(model, judge, sprites, tmp_path / "a", invert=fails_at_the_third)
    first = list(model.learned)
    resumed = benchmark(model, judge, sprites, tmp_path / "a")
    assert len(model.learned) == 4 and model.learned[:2] == first
    assert resumed.rows == benchmark(model, judge, sprites, tmp_path / "b").rows
    before = len(model.learned)
    benchmark(model, judge, sprites, tmp_path / "a")
    assert len(model.learned) == before, "nothing is learned twice"
    benchmark(model, judge, sprites, tmp_path / "a", seed=1, concepts=2)
    assert len(model.learned) == before + 2, "other settings are another benchmark"


def test_choice_of_concepts_is_seeded_held_out_and_known(sprites: EmojiSprites) -> None:
    holdout = {c.hex for c in sprites.concepts[:10]}
    chosen = choose_concepts(sprites, holdout, (), 5, seed=0)
    assert chosen == choose_concepts(sprites, holdout, (), 5, seed=0)
    assert chosen != choose_concepts(sprites, holdout, (), 5, seed=1)
    assert {c.hex for c in chosen} <= holdout
    known = {c.hex for c in sprites.concepts[5:]}
    assert {c.hex for c in choose_concepts(sprites, holdout, known, 5, seed=0)} == holdout & known
    with pytest.raises(UserError, match="knows 5 held-out"):
        choose_concepts(sprites, holdout, known, 6, seed=0)
