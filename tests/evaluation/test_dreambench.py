"""DreamBench: its file of prompts, fetching at a commit, and a run of three made subjects end to end."""

import json
import subprocess
from pathlib import Path

import pytest
import tiny
import torch
from dreambench_folder import COLOURS, LISTED, write_folder

import ldm
from ldm.cli.main import main
from ldm.errors import UserError
from ldm.evaluation import dreambench
from ldm.evaluation.dreambench import (
    RECORD,
    draw_subject,
    fetch_dreambench,
    over_subjects,
    read_dreambench,
    read_prompts,
    retrieval,
    score_subject,
)
from ldm.evaluation.scorers import Score, load_scorer
from ldm.sampling.sample import Sampling


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Three subjects of four pictures."""
    return write_folder(tmp_path / "dataset")


@pytest.fixture
def repository(folder: Path, tmp_path: Path) -> tuple[Path, str]:
    """A git repository with the folder as its ``dataset``, and its commit."""
    path = tmp_path / "repository"
    path.mkdir()
    folder.rename(path / "dataset")

    def git(*words: str) -> str:
        own = ["-c", "user.name=a", "-c", "user.email=a@b", "-c", "commit.gpgsign=false"]
        command = ["git", "-C", str(path), *own, *words]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    git("init", "--quiet")
    git("config", "uploadpack.allowAnySHA1InWant", "true")
    git("add", "--all")
    git("commit", "--quiet", "-m", "pictures")
    return path, git("rev-parse", "HEAD")


def test_the_text_file_gives_classes_and_both_lists_of_prompts():
    classes, objects, live = read_prompts(LISTED)
    assert classes == {"red_toy": "toy", "small_dog": "dog", "tree_house": "stuffed animal"}
    assert objects == ("a {0} {1} in the snow", "a red {0} {1}")
    assert live == ("a {0} {1} in the snow", "a {0} {1} in the car")


def test_a_subject_has_the_prompts_of_its_class(folder):
    toy, dog, house = read_dreambench(folder)
    assert [s.live for s in (toy, dog, house)] == [False, True, False]
    assert dog.prompts() == ("a {} in the snow", "a {} in the car")
    assert house.prompts(with_class=True) == ("a {} stuffed animal in the snow", "a red {} stuffed animal")
    assert toy.texts() == ("a toy in the snow", "a red toy")
    assert [p.name for p in toy.pictures] == ["00.jpg", "01.jpg", "02.jpg", "03.jpg"]
    training, references, kind = toy.split(3)
    assert (training, references, kind) == (toy.pictures[:3], toy.pictures[3:], "held out")
    assert toy.split(None) == (toy.pictures, toy.pictures, "training pictures")
    with pytest.raises(UserError, match="red_toy has 4 pictures: train on 1 to 3 of them, not 4"):
        toy.split(4)


def test_a_folder_of_another_shape_is_refused(folder, tmp_path):
    with pytest.raises(UserError, match="is no DreamBench, it has no prompts_and_classes.txt"):
        read_dreambench(tmp_path)
    (folder / "prompts_and_classes.txt").write_text("Classes\n")
    with pytest.raises(UserError, match="names no classes"):
        read_dreambench(folder)


def test_it_is_fetched_at_a_commit_and_checked(repository, tmp_path):
    source, commit = repository
    out = fetch_dreambench(tmp_path / "data" / "out", str(source), commit)
    assert [s.name for s in read_dreambench(out)] == list(COLOURS)
    record = json.loads((out / RECORD).read_text())
    assert record["commit"] == commit and len(record["sha256"]) == 14
    assert sorted(p.name for p in out.parent.iterdir()) == ["out"]  # no clone is left
    source.rename(tmp_path / "gone")
    assert fetch_dreambench(out, str(source), commit) == out  # checked, not fetched again
    (out / "red_toy" / "01.jpg").write_bytes(b"other")
    with pytest.raises(UserError, match="01.jpg is missing or not what was fetched"):
        fetch_dreambench(out, str(source), commit)


def test_the_command_fetches_the_pinned_commit(repository, tmp_path, monkeypatch, capsys):
    source, commit = repository
    words = ["data", "dreambench", "--out", str(tmp_path / "out"), "--repository", str(source)]
    assert main(words) == 2  # the repository has another commit
    assert "git fetch failed" in capsys.readouterr().err and not (tmp_path / "out").exists()
    monkeypatch.setattr(dreambench, "COMMIT", commit)
    for _ in range(2):
        assert main(words) == 0
        assert "3 subjects with 12 pictures in" in capsys.readouterr().out


def test_what_cannot_be_fetched_leaves_nothing(repository, tmp_path):
    source, _ = repository
    for where, commit in ((source, "0" * 40), (tmp_path / "nowhere", "0" * 40)):
        with pytest.raises(UserError, match="git fetch failed") as error:
            fetch_dreambench(tmp_path / "data" / "out", str(where), commit)
        assert "\n" not in str(error.value)
        assert list((tmp_path / "data").iterdir()) == []
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "a").write_text("a")
    with pytest.raises(UserError, match="holds something else"):
        fetch_dreambench(tmp_path / "full")


def test_three_made_subjects_end_to_end(folder, tiny_model, tiny_scorers, tmp_path):
    """Learned from two pictures each, drawn, scored with CLIP and DINO of random weights."""
    scorers = [load_scorer(name) for name in tiny_scorers]
    subjects = read_dreambench(folder)
    pictures, scores = {}, {}
    for subject in subjects:
        training, references, _ = subject.split(2)
        word = f"<{subject.name}>"
        init = subject.class_word if subject.class_word in tiny.WORDS else "toy"
        ldm.invert(tiny_model, training, word, init, progress=False, **tiny.QUICK)
        drawn = draw_subject(tiny_model, ldm.sample, subject, word, samples=2, sampling=Sampling(2))
        assert drawn.shape == (4, 3, 16, 16)
        pictures[subject.name] = drawn
        scores[subject.name] = score_subject(subject, drawn, scorers, train_pictures=2)
        assert [s.metric for s in scores[subject.name]] == ["CLIP-I", "CLIP-T", "DINO-I"]
        assert all(s.n == 4 for s in scores[subject.name])
    rows = over_subjects(scores)
    assert [(row["metric"], row["subjects"], row["n"]) for row in rows] == [
        ("CLIP-I", 3, 12), ("CLIP-T", 3, 12), ("DINO-I", 3, 12),
    ]  # fmt: skip
    for row in rows:
        mean = sum(s.figure for one in scores.values() for s in one if s.metric == row["metric"]) / 3
        assert row["figure"] == pytest.approx(mean) and row["low"] <= mean <= row["high"]
        assert len(row["weights"]) == 64 and row["references"] in ("held out", "")
        assert Score.from_row(row).identity.weights == row["weights"]
    assert rows[1]["text"].startswith("the prompt with the class word alone; SimpleTokenizer")
    found = retrieval(scorers[1], pictures, subjects, train_pictures=2)
    assert set(found) == {"first", "mAP", "ceiling first", "ceiling mAP"}
    assert found["ceiling first"] == 1  # the subjects' own pictures are told apart by colour


def test_kept_pictures_are_scored_again_without_drawing(folder, tiny_scorers, tmp_path):
    from ldm.io.images import save_png

    scorer = load_scorer(tiny_scorers[0])
    subject = read_dreambench(folder)[0]
    drawn = torch.rand(4, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    files = [save_png(picture, tmp_path / f"{i}.png") for i, picture in enumerate(drawn)]
    for now, then in zip(
        score_subject(subject, drawn, [scorer]), score_subject(subject, files, [scorer]), strict=True
    ):
        assert now == then
    with pytest.raises(ValueError, match="3 pictures of 2 prompts"):
        score_subject(subject, drawn[:3], [scorer])
