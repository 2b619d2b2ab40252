"""A learned word, measured with a sampler whose faults are known."""

import json
from pathlib import Path

import pytest
import torch
from evaluation_world import NAMES, CentreJudge, StubModel, code, sample

from ldm.evaluation.word import evaluate_embedding, without_word
from ldm.io.embeddings import Embedding
from ldm.sampling.sample import Sampling

QUICK = Sampling(steps=1)


def test_a_word_is_measured(tmp_path: Path) -> None:
    judge = CentreJudge(NAMES)
    model = StubModel(judge)
    vector = code("odd cat")
    training = torch.zeros(3, 3, 64, 64)
    training[:, :, 30:34, 30:34] = vector.view(3, 4, 4)
    model.wrong_colours = 0.0
    values = evaluate_embedding(
        model, Embedding("<toy>", vector[None]), training, sample=sample, scorers=[judge], n=2,
        sampling=QUICK, out=tmp_path, progress=False,
    )  # fmt: skip
    figures = {row["metric"]: row for row in values["scores"]}
    assert figures["reconstruction (paper)"]["figure"] == pytest.approx(1, abs=1e-5)
    assert figures["reconstruction (official evaluator)"]["ceiling"] == pytest.approx(1, abs=1e-5)
    assert values["backgrounds"]["right"] == values["backgrounds"]["n"] == 12
    assert len(values["by_prompt"]["centre"]) == 5
    assert abs(figures["editability (official evaluator)"]["figure"]) < 0.9  # bare prompts have no such name
    assert json.dumps(values) and "<toy>" in model.placeholders
    kept = json.loads((tmp_path / "result.json").read_text())
    assert kept["manifest"]["base_model"] == model.fingerprint()
    assert {k: v for k, v in kept.items() if k != "manifest"} == values
    page = (tmp_path / "report.html").read_text()
    assert "a photo of &lt;toy&gt; on the beach" in page and page.count("data:image/png") == 3


def test_without_the_word_nothing_else_changes() -> None:
    assert without_word("a photo of {} on the beach") == "a photo of on the beach"
