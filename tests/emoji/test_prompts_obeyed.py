"""The measured promises, with a sampler whose faults are known."""

import json
from pathlib import Path

import pytest
from evaluation_world import NAMES, CentreJudge, StubModel, sample

from ldm.emoji.prompts_obeyed import base_prompts, evaluate_base
from ldm.errors import UserError
from ldm.evaluation.clip_judge import Named
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.metrics import Share
from ldm.sampling.sample import Sampling

pytestmark = pytest.mark.slow

CONCEPTS = [Named(f"{i:x}", "objects", "tool", name) for i, name in enumerate(NAMES)]
QUICK = {"sample": sample, "sampling": Sampling(steps=1), "progress": False}


def test_a_perfect_model_passes_and_leaves_its_report(
    model: StubModel, judge: CentreJudge, tmp_path: Path
) -> None:
    result = evaluate_base(model, judge, concepts=CONCEPTS, n=24, among=20, out=tmp_path, **QUICK)
    assert result.background == Share(24, 24) and result.caption == Share(24, 24)
    assert result.median_rank == 1
    # this judge reads the name alone, so the 8 pictures whose names come twice are ties
    assert result.prompt == Share(16, 24)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert len(kept["pictures"]) == 24 and kept["seed"] == 0
    assert (tmp_path / "report.html").stat().st_size > 2000 and (tmp_path / "samples.png").is_file()


def test_faults_are_counted(model: StubModel, judge: CentreJudge) -> None:
    model.wrong_colours, model.wrong_names = 0.25, 0.5
    result = evaluate_base(model, judge, concepts=CONCEPTS, n=20, among=20, **QUICK)
    assert result.background == Share(15, 20)
    assert 10 <= result.caption.right <= 12  # a wrong picture may be first by chance
    assert [row["obeyed"] for row in result.rows] == [False] * 5 + [True] * 15
    assert 10 <= result.prompt.right <= 12


def test_held_out_concepts_are_neither_asked_for_nor_offered(model: StubModel, judge: CentreJudge) -> None:
    out = {c.hex for c in CONCEPTS[:5]}
    names = {c.label for c in CONCEPTS[:5]}
    result = evaluate_base(
        model,
        judge,
        concepts=CONCEPTS,
        holdout=out,
        n=30,
        among=15,
        **QUICK,
    )
    assert not any(name in row["prompt"] for row in result.rows for name in names)
    with pytest.raises(UserError, match="15 concepts are too few for 16"):
        evaluate_base(model, judge, concepts=CONCEPTS, holdout=out, among=16, **QUICK)


def test_prompts_are_seeded_balanced_and_distinct() -> None:
    prompts = base_prompts(CONCEPTS, 24, seed=3)
    assert prompts == base_prompts(CONCEPTS, 24, seed=3) != base_prompts(CONCEPTS, 24, seed=4)
    assert len({name for _, name, _ in prompts[:20]}) == 20
    assert sorted(c for _, _, c in prompts) == sorted(COLOUR_NAMES * 2)
    assert all(t.count("{}") == 1 and f"{c} background" in t for t, _, c in prompts)


def test_by_default_the_judges_own_concepts_are_asked_for(model: StubModel, judge: CentreJudge) -> None:
    judge.concepts = CONCEPTS[:6]
    result = evaluate_base(model, judge, n=6, among=6, **QUICK)
    asked = {name for row in result.rows for name in NAMES if name in row["prompt"]}
    assert asked == {c.label for c in CONCEPTS[:6]}
