"""``ldm invert --concepts``: the list, what goes wrong in it, and a whole command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm.cli.concepts import read_jobs
from ldm.errors import UserError
from ldm.io.embeddings import load_embeddings

pytestmark = pytest.mark.slow


def listed(path: Path, concepts: Any, **defaults: Any) -> Path:
    path.write_text(yaml.safe_dump({"defaults": defaults, "concepts": concepts}, allow_unicode=True))
    return path


def test_an_entry_wins_over_defaults_these_over_the_models_own_and_options_over_all(model_folder, tmp_path):
    entries = [
        {"name": "<cat>", "images": "cats", "trainer": {"max_steps": 7}, "num_vectors": 2},
        {"name": "cat", "images": "more", "init": "dog"},
    ]
    path = listed(tmp_path / "c.yaml", entries, init="cat", batch_size=3, trainer={"max_steps": 5})
    one, two = read_jobs(path, {"seed": 9, "batch_size": 1}, str(model_folder))
    assert (one.name, two.name) == ("cat", "cat-2")  # folders
    assert (one.config.placeholder, one.config.images) == ("<cat>", Path("cats"))
    assert [job.config.trainer.max_steps for job in (one, two)] == [7, 5]
    assert [job.config.init for job in (one, two)] == ["cat", "dog"]
    assert [job.config.batch_size for job in (one, two)] == [1, 1] and one.config.seed == 9
    assert one.config.trainer.checkpoint_every == 2  # the model's own
    assert one.config.model == str(model_folder)
    assert (one.config.num_vectors, two.config.num_vectors) == (2, 1)


def test_the_model_may_stand_in_the_list(model_folder, tmp_path):
    entries = [{"name": "<cat>", "images": "cats"}]
    (job,) = read_jobs(listed(tmp_path / "c.yaml", entries, model=str(model_folder)), {})
    assert job.config.model == str(model_folder) and job.config.trainer.max_steps == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("concepts: []", "needs a list"),
        ("concepts: {name: a}", "needs a list"),
        ("consepts: []", "did you mean 'concepts'"),
        ("concepts: [a]", "concept 1 is 'a'"),
        ("concepts: [{images: x}]", "concept 1 is"),
        ("concepts: [{name: <a>}, {name: <b>, images: x, seed: -1}]", "concept 1 .<a>.: config lacks 'ima"),
        ("concepts: [{name: <a>, images: x, num_vektors: 2}]", "<a>.*did you mean 'num_vectors'"),
        ("concepts: [{name: <a>, images: x, optim: {lr: [1]}}]", "<a>.*optim.lr"),
        ("defaults: {seeds: 1}\nconcepts: [{name: <a>, images: x}]", "<a>.*did you mean 'seed'"),
        ("defaults: 1\nconcepts: [{name: <a>, images: x}]", "needs a list"),
        ("[", "YAML"),
    ],
)
def test_what_is_wrong_in_a_list_is_one_line_that_names_the_entry(model_folder, tmp_path, text, words):
    (tmp_path / "c.yaml").write_text(text)
    with pytest.raises(UserError, match=words):
        read_jobs(tmp_path / "c.yaml", {}, str(model_folder))


def test_a_list_is_learned_what_fails_is_named_and_resume_does_it(cli, model_folder, pictures, tmp_path):
    shutil.copytree(pictures, tmp_path / "broken")
    (tmp_path / "broken" / "1.png").write_text("no picture")
    entries = [
        {"name": "<toy>", "images": str(pictures), "init": "cat"},
        {"name": "<broken>", "images": "broken"},
        {"name": "<big>", "images": str(pictures), "num_vectors": 2},
    ]
    words = ("invert", "--concepts", listed(tmp_path / "c.yaml", entries), "--model", model_folder)
    first = cli(*words, "--out", "all", "--steps", 2, "--pack", 2)
    assert first.code == 2 and "1 of 3 concepts failed" in first.err and "1.png" in first.err
    assert "learned 2 of 3" in first.out and "--resume" in first.err
    for name in ("config.yaml", "embeddings.safetensors", "manifest.json", "report.html"):
        assert (Path("all") / "toy" / name).is_file(), name
    assert not Path("all/broken").exists()
    assert [word.placeholder for word in load_embeddings("all/embeddings.safetensors")] == ["<toy>", "<big>"]
    again = cli(*words, "--out", "all", "--steps", 2)
    assert again.code == 2 and "not empty" in again.err

    shutil.copy(pictures / "0.png", tmp_path / "broken" / "1.png")
    second = cli("invert", "--resume", "--out", "all")
    assert second.code == 0, second.err
    rows = json.loads(Path("all/concepts.json").read_text())["concepts"]
    assert [row["status"] for row in rows] == ["kept", "learned", "kept"]
    assert len(load_embeddings("all/embeddings.safetensors")) == 3
    drawn = cli("sample", "--model", model_folder, "--embedding", "all/embeddings.safetensors", "--prompt",
                "a photo of <toy> and <big>", "--n", 1, "--steps", 1, "--out", "out")  # fmt: skip
    assert drawn.code == 0, drawn.err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--images", "x"), "--images belongs to a single concept"),
        (("--name", "<a>"), "--name belongs to a single concept"),
        (("--resume",), "--resume needs --out"),
        (("--pack", "0"), "--pack"),
        (("--pack", "many"), "--pack"),
    ],
)
def test_options_that_do_not_go_with_a_list(cli, model_folder, pictures, tmp_path, words, message):
    path = listed(tmp_path / "c.yaml", [{"name": "<toy>", "images": str(pictures)}], model=str(model_folder))
    result = cli("invert", "--concepts", path, *words)
    assert result.code == 2 and message in result.err
    assert not Path("runs").exists()


def test_an_interrupted_list_says_how_to_go_on(cli, model_folder, pictures, monkeypatch, tmp_path):
    path = listed(tmp_path / "c.yaml", [{"name": "<toy>", "images": str(pictures)}])

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("ldm.inversion.many.pack.joint_gradients", interrupted)
        result = cli("invert", "--concepts", path, "--model", model_folder, "--out", "all", "--pack", 1)
    assert result.code == 130 and "--out all" in result.err and "--resume" in result.err
    line = next(line for line in result.err.splitlines() if "continue with" in line)
    assert cli(*line.split("continue with: ldm ")[1].split()).code == 0
