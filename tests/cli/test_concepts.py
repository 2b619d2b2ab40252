"""``ldm invert --concepts``: the list, what goes wrong in it, and a whole command."""

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm.io.embeddings import load_embeddings

pytestmark = pytest.mark.slow


def listed(path: Path, concepts: Any, **defaults: Any) -> Path:
    path.write_text(yaml.safe_dump({"defaults": defaults, "concepts": concepts}, allow_unicode=True))
    return path


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


@pytest.mark.parametrize(
    ("begins", "words"),
    [("many.concept_list.learn_list", ["--concepts", "c.yaml"]),
     ("run.run_inversion", ["--images", "pictures", "--name", "<toy>"])],
)  # fmt: skip
def test_what_was_interrupted_before_it_wrote_anything_is_not_to_be_resumed(
    cli, pictures, monkeypatch, tmp_path, begins, words
):
    listed(tmp_path / "c.yaml", [{"name": "<toy>", "images": str(pictures)}])

    def interrupted(*args: object, **options: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(f"ldm.inversion.{begins}", interrupted)
    result = cli("invert", *words, "--out", "all")
    assert result.code == 130 and "nothing was begun" in result.err and "--resume" not in result.err


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
