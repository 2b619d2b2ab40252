"""The measured promises, with a sampler whose faults are known."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_world import NAMES, CentreJudge, StubModel, code, invert, sample

from ldm.emoji.heldout import COLUMNS, choose_concepts, evaluate_inversion
from ldm.emoji.prompts_obeyed import (
    Sampling,
    base_prompts,
    evaluate_base,
)
from ldm.emoji.sprites import EmojiSprites
from ldm.errors import UserError
from ldm.evaluation.clip_judge import Named
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.metrics import Share
from ldm.evaluation.word import evaluate_embedding, without_word
from ldm.io.embeddings import Embedding

pytestmark = pytest.mark.slow

CONCEPTS = [Named(f"{i:x}", "objects", "tool", name) for i, name in enumerate(NAMES)]
QUICK = Sampling(steps=1)


def test_a_perfect_model_passes_and_leaves_its_report(
    model: StubModel, judge: CentreJudge, tmp_path: Path
) -> None:
    result = evaluate_base(
        model, sample, judge, concepts=CONCEPTS, n=24, among=20, sampling=QUICK, out=tmp_path, progress=False
    )
    assert result.background == Share(24, 24) and result.caption == Share(24, 24)
    assert result.median_rank == 1
    # this judge reads the name alone, so the 8 pictures whose names come twice are ties
    assert result.prompt == Share(16, 24)
    kept = json.loads((tmp_path / "result.json").read_text())
    assert len(kept["pictures"]) == 24 and kept["seed"] == 0
    assert (tmp_path / "report.html").stat().st_size > 2000 and (tmp_path / "samples.png").is_file()


def test_faults_are_counted(model: StubModel, judge: CentreJudge) -> None:
    model.wrong_colours, model.wrong_names = 0.25, 0.5
    result = evaluate_base(
        model, sample, judge, concepts=CONCEPTS, n=20, among=20, sampling=QUICK, progress=False
    )
    assert result.background == Share(15, 20)
    assert 10 <= result.caption.right <= 12  # a wrong picture may be first by chance
    assert [row["obeyed"] for row in result.rows] == [False] * 5 + [True] * 15
    assert 10 <= result.prompt.right <= 12


def test_held_out_concepts_are_neither_asked_for_nor_offered(model: StubModel, judge: CentreJudge) -> None:
    out = {c.hex for c in CONCEPTS[:5]}
    names = {c.label for c in CONCEPTS[:5]}
    result = evaluate_base(
        model, sample, judge, concepts=CONCEPTS, holdout=out, n=30, among=15, sampling=QUICK, progress=False
    )
    assert not any(name in row["prompt"] for row in result.rows for name in names)
    with pytest.raises(UserError, match="15 concepts are too few for 16"):
        evaluate_base(model, sample, judge, concepts=CONCEPTS, holdout=out, among=16, progress=False)


def test_prompts_are_seeded_balanced_and_distinct() -> None:
    prompts = base_prompts(CONCEPTS, 24, seed=3)
    assert prompts == base_prompts(CONCEPTS, 24, seed=3) != base_prompts(CONCEPTS, 24, seed=4)
    assert len({name for _, name, _ in prompts[:20]}) == 20
    assert sorted(c for _, _, c in prompts) == sorted(COLOUR_NAMES * 2)
    assert all(t.count("{}") == 1 and f"{c} background" in t for t, _, c in prompts)


def test_by_default_the_judges_own_concepts_are_asked_for(model: StubModel, judge: CentreJudge) -> None:
    judge.concepts = CONCEPTS[:6]
    result = evaluate_base(model, sample, judge, n=6, among=6, sampling=QUICK, progress=False)
    asked = {name for row in result.rows for name in NAMES if name in row["prompt"]}
    assert asked == {c.label for c in CONCEPTS[:6]}


def test_a_word_is_measured(model: StubModel, judge: CentreJudge, tmp_path: Path) -> None:
    vector = code("odd cat")
    training = torch.zeros(3, 3, 64, 64)
    training[:, :, 30:34, 30:34] = vector.view(3, 4, 4)
    model.wrong_colours = 0.0
    values = evaluate_embedding(
        model, Embedding("<toy>", vector[None]), training, sample=sample, clip=judge, n=2,
        sampling=QUICK, out=tmp_path, progress=False,
    )  # fmt: skip
    assert values["reconstruction"]["cosine_of_means"] == pytest.approx(1, abs=1e-5)
    assert values["between_training_pictures"] == pytest.approx(1, abs=1e-5)
    assert values["backgrounds"]["right"] == values["backgrounds"]["n"] == 12
    assert len(values["editability_by_prompt"]) == 4
    assert abs(values["editability"]["mean_of_cosines"]) < 0.9  # bare prompts have no such name
    assert json.dumps(values) and "<toy>" in model.placeholders
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["manifest"]["base_model"] == model.fingerprint()
    assert {k: v for k, v in kept.items() if k != "manifest"} == values
    page = (tmp_path / "report.html").read_text()
    assert "a photo of &lt;toy&gt; on the beach" in page and page.count("data:image/png") == 3


def test_without_the_word_nothing_else_changes() -> None:
    assert without_word("a photo of {} on the beach") == "a photo of on the beach"


def benchmark(model: StubModel, judge: CentreJudge, sprites: EmojiSprites, out: Path, **changes):  # noqa: ANN201
    settings = {"concepts": 4, "pictures": 2, "samples": 4, "sampling": QUICK, "progress": False} | changes
    holdout = {c.hex for c in sprites.concepts[:10]}
    learn = settings.pop("invert", invert)
    return evaluate_inversion(model, sample, learn, judge, sprites, holdout, out, **settings)


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
