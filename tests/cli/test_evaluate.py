"""``ldm evaluate``: what each of its three measurements prints and leaves behind."""

import csv
import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.errors import UserError
from ldm.evaluation import clip_judge as features
from ldm.evaluation.scorers import Identity, Score, require_same
from ldm.io.embeddings import load_embedding

pytestmark = pytest.mark.slow


class MeanColour:
    """A judge that sees the mean colour, and reads a text as any colour."""

    name, reads_text = "emoji-clip", True
    identity = Identity("mean colour", "0" * 64, "none", "hashes")
    concepts = [features.Named(f"a{i}", "objects", "tool", f"thing{i}") for i in range(8)]

    def image_features(self, images: Tensor) -> Tensor:
        return F.normalize(images.float().mean((2, 3)) + 1e-3, dim=1)

    def text_features(self, texts: list[str]) -> Tensor:
        seeds = [int(hashlib.sha256(t.encode()).hexdigest()[:8], 16) for t in texts]
        rows = [torch.randn(3, generator=torch.Generator().manual_seed(s)) for s in seeds]
        return F.normalize(torch.stack(rows), dim=1)


@pytest.fixture(autouse=True)
def judge(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(features, "load_clip", lambda *_: MeanColour())


@pytest.fixture
def holdout(tmp_path: Path) -> Path:
    path = tmp_path / "holdout.txt"
    path.write_text("a0  # kept away\na1\n")
    return path


def rows_of(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.open()))


def test_a_word_is_measured(cli, model_folder, embedding, pictures):
    words = ["evaluate", "--model", model_folder, "--embedding", embedding, "--images", pictures]
    result = cli(*words, "--n", 2, "--out", "out")
    assert result.code == 0, result.err
    for figure in ("reconstruction", "editability", "(ceiling", "backgrounds"):
        assert figure in result.out
    figures = json.loads(Path("out/result.json").read_text())
    assert figures["placeholder"] == "<toy>"
    how = {"steps": 2, "sampler": "ddim", "scale": 5.0, "precision": "model"}
    assert figures["measured"] == {"samples": 2, "seed": 0, **how}
    rows = [Score.from_row(row) for row in rows_of(Path("out/table.csv"))]
    assert rows == [Score.from_row(row) for row in figures["scores"]] and len(rows) == 4
    assert rows[0].references == "training pictures" and rows[0].ceiling is not None
    assert figures["scores"][0]["weights"] == "0" * 64
    assert "0000000000" in Path("out/report.html").read_text()


def test_scorers_by_name_with_held_out_references(cli, model_folder, pictures, tiny_scorers):
    """Learned from two of three pictures: the third is what all scorers compare with."""
    shared = ["--model", model_folder, "--images", pictures]
    result = cli("invert", *shared, "--name", "<toy>", "--init", "cat", "--train-pictures", 1, "--out", "run")
    assert result.code == 0, result.err
    clip, dino = tiny_scorers
    words = ["evaluate", *shared, "--embedding", "run/embeddings.safetensors", "--n", 2]
    result = cli(*words, "--scorer", clip, "--scorer", dino, "--out", "out")
    assert result.code == 0, result.err
    rows = [Score.from_row(row) for row in rows_of(Path("out/table.csv"))]
    assert [(row.scorer, row.metric.partition(" ")[0]) for row in rows] == [
        (clip, "reconstruction"), (clip, "reconstruction"), (clip, "editability"), (clip, "editability"),
        (dino, "reconstruction"), (dino, "reconstruction"),
    ]  # fmt: skip
    measured = [row for row in rows if row.metric.startswith("reconstruction")]
    assert all(row.references == "held out" and row.ceiling is not None for row in measured)
    assert rows[0].identity.architecture == "open_clip tiny-ours" and len(rows[0].identity.weights) == 64
    with pytest.raises(UserError, match="cannot be compared, their architecture differs"):
        require_same([rows[0], rows[4]])
    result = cli(*words, "--scorer", "clip:tiny-ours/openai")
    assert result.code == 2 and result.err.count("\n") == 1 and "no weights openai" in result.err


def test_a_base_model_is_measured(cli, model_folder, holdout):
    words = ["evaluate", "base", "--model", model_folder, "--holdout", holdout, "--steps", 1]
    result = cli(*words, "--n", 7, "--among", 4)
    assert result.code == 0, result.err
    out = Path("runs/evaluation/base")
    rows = rows_of(out / "table.csv")
    assert len(rows) == 7 and not [r for r in rows if "thing0" in r["prompt"] or "thing1" in r["prompt"]]
    assert (out / "report.html").is_file() and (out / "samples.png").is_file()
    assert "background obeyed" in result.out and str(out / "report.html") in result.out


def test_held_out_concepts_are_learned_and_measured(cli, model_folder, holdout, tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    concepts = [
        {"hex": f"a{i}", "label": f"thing {i}", "tags": [], "group": "objects", "subgroup": "tool"}
        for i in range(3)
    ]
    (data / "concepts.json").write_text(json.dumps(concepts))
    sprites = np.random.default_rng(0).integers(0, 255, (3, 3, 64, 64, 4), dtype=np.uint8)
    sprites[..., 3] = 255
    np.savez(data / "sprites.npz", sprites=sprites)
    words = ["evaluate", "inversion", "--model", model_folder, "--holdout", holdout, "--data", data,
             "--concepts", 2, "--pictures", 2, "--n", 2, "--steps", 1,
             "--set", "trainer.max_steps=1", "--set", "num_vectors=2"]  # fmt: skip
    result = cli(*words, "--out", "out")
    assert result.code == 0, result.err
    assert sorted(r["hex"] for r in rows_of(Path("out/table.csv"))) == ["a0", "a1"]
    assert Path("out/contact_sheet.png").is_file() and Path("out/report.html").is_file()
    assert "own concept nearest of 2" in result.out
    assert load_embedding("out/concepts/a0/embedding.safetensors").K == 2


@pytest.mark.parametrize(("words", "says"), [
    (["--images", "x"], "--embedding is missing"),
    (["--embedding", "x"], "--images is missing"),
    (["base", "--scorer", "a", "--scorer", "b"], "ldm evaluate base takes one --scorer"),
    (["base", "--n", 0], "--n is 0; give at least 1"),
    (["base", "--holdout", "none.txt"], "there is no file none.txt"),
    (["inversion", "--data", "nowhere"], "no prepared emoji"),
], ids=str)  # fmt: skip
def test_what_is_missing_is_said_in_one_line(cli, model_folder, words, says):
    result = cli("evaluate", *words, "--model", model_folder)
    assert result.code == 2 and result.err.count("\n") == 1 and says in result.err
    assert not Path("runs").exists()
