"""``ldm cluster``, and the parts of ``ldm invert --concepts`` that the tasks of a job array take."""

import json
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import yaml

from ldm.inversion.many import ray_workers
from ldm.io.embeddings import load_embeddings

pytestmark = pytest.mark.slow


@pytest.fixture
def concepts(tmp_path: Path, model_folder: Path, pictures: Path) -> Path:
    """A list of three concepts, for a model in miniature."""
    settings = {"init": "cat", "show": {"samples_per_prompt": 0}, "trainer": {"image_every": 0}}
    values = {
        "defaults": {"model": str(model_folder), **settings},
        "concepts": [{"name": name, "images": str(pictures)} for name in ("<a>", "<b>", "<c>")],
    }
    path = tmp_path / "concepts.yaml"
    path.write_text(yaml.safe_dump(values))
    return path


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> list[tuple[object, ...]]:
    """A thread in place of Ray; gets what Ray would be asked for."""
    asked: list[tuple[object, ...]] = []

    def workers(address: str, **limits: object) -> ThreadPoolExecutor:
        asked.append((address, limits["cpus"], limits["gpus"]))
        return ThreadPoolExecutor(1)

    monkeypatch.setattr(ray_workers, "RayWorkers", workers)
    return asked


def test_a_list_is_learned_by_tasks_into_one_place_and_resumed(cli, concepts, threads):
    words = ("cluster", "--concepts", concepts, "--out", "runs", "--task-size", 2)
    done = cli(*words, "--gpus-per-task", 0.5, "--cpus-per-task", 3)
    assert done.code == 0, done.err
    assert "learned 3 of 3 concepts" in done.out and threads == [("local", 3, 0.5)]
    words_learned = [word.placeholder for word in load_embeddings("runs/embeddings.safetensors")]
    assert words_learned == ["<a>", "<b>", "<c>"]
    summary = json.loads(Path("runs/concepts.json").read_text())
    assert {row["status"] for row in summary["concepts"]} == {"learned"}
    again = cli(*words)
    assert again.code == 2 and "--resume" in again.err
    assert cli("cluster", "--resume", "--out", "runs").code == 0
    summary = json.loads(Path("runs/concepts.json").read_text())
    assert {row["status"] for row in summary["concepts"]} == {"kept"}


def test_a_concept_that_failed_is_named_at_the_end(cli, concepts, threads):
    values = yaml.safe_load(concepts.read_text())
    values["concepts"] = [*values["concepts"][:2], {"name": "<lost>", "images": "nowhere"}]
    concepts.write_text(yaml.safe_dump(values))
    result = cli("cluster", "--concepts", concepts, "--out", "runs")
    assert result.code == 2 and "1 of 3 concepts failed" in result.err and "<lost>" in result.err
    assert len(load_embeddings("runs/embeddings.safetensors")) == 2


def test_without_ray_one_line_says_how_to_install_it(cli, concepts, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    result = cli("cluster", "--concepts", concepts, "--out", "runs")
    assert result.code == 2 and "pip install" in result.err and result.err.count("\n") == 1
    assert not Path("runs").exists()


def test_a_list_is_asked_for(cli):
    result = cli("cluster", "--out", "runs")
    assert result.code == 2 and "--concepts is missing" in result.err


def test_parts_of_a_list_are_learned_apart_and_make_the_whole(cli, concepts):
    learned = []
    for number in range(2):
        out = f"runs/{number}"
        result = cli("invert", "--concepts", concepts, "--part", f"{number}/2", "--out", out, "--resume")
        assert result.code == 0, result.err
        learned.append([word.placeholder for word in load_embeddings(f"{out}/embeddings.safetensors")])
    assert learned == [["<a>", "<c>"], ["<b>"]]


@pytest.mark.parametrize("part", ["2/2", "1", "a/b", "-1/3", "7/9"])
def test_parts_that_are_none_are_refused(cli, concepts, part):
    result = cli("invert", "--concepts", concepts, "--part", part, "--out", "runs")
    assert result.code == 2 and "part" in result.err and not Path("runs").exists()
