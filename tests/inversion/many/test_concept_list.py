"""A list of concepts: reading it, the copy that its folder keeps, and learning all of it."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import yaml

from ldm.errors import UserError
from ldm.inversion.many.concept_list import Refused, learn_list, read_jobs
from ldm.inversion.many.jobs import Job, Result
from ldm.io.embeddings import Embedding, load_embeddings, save_embeddings

pytestmark = pytest.mark.slow

TWO = [{"name": "<cat>", "images": "cats"}, {"name": "<dog>", "images": "dogs"}]


@pytest.fixture
def model_folder(tiny_model, tiny_config, tmp_path) -> Path:
    return tiny.write_model(tmp_path / "tiny", tiny_model, tiny_config)


def listed(path: Path, concepts: Any, **defaults: Any) -> Path:
    path.write_text(yaml.safe_dump({"defaults": defaults, "concepts": concepts}, allow_unicode=True))
    return path


# ------------------------------------------------------------------------------ reading
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


def test_a_part_of_a_list_and_one_with_nothing_in_it(model_folder, tmp_path):
    path = listed(tmp_path / "c.yaml", TWO)
    (second,) = read_jobs(path, model=str(model_folder), part=slice(1, None, 2))
    assert second.word == "<dog>" if isinstance(second, Refused) else second.config.placeholder == "<dog>"
    with pytest.raises(UserError, match="fewer concepts"):
        read_jobs(path, model=str(model_folder), part=slice(2, None, 3))


def test_a_wrong_entry_takes_no_other_down(model_folder, tmp_path, caplog):
    path = listed(tmp_path / "c.yaml", [TWO[0], {"name": "<bad>"}])
    good, bad = read_jobs(path, model=str(model_folder))
    assert isinstance(good, Job) and isinstance(bad, Refused)
    assert (bad.name, bad.word, bad.entry) == ("bad", "<bad>", {"name": "<bad>"})
    assert "lacks 'images'" in bad.error and "left out" in caplog.text


# ------------------------------------------------------------------------------ learning
class Learner:
    """Learns at once: a word of ones, in a run folder that says it was begun."""

    def __init__(self, *failing: str) -> None:
        self.failing, self.learned = failing, list[str]()

    def __call__(self, jobs: Any, out: Path) -> list[Result]:
        results = []
        for job in jobs:
            folder, word = out / job.name, job.config.placeholder
            folder.mkdir(parents=True, exist_ok=True)
            (folder / "config.yaml").write_text("")
            self.learned.append(job.name)
            if job.name in self.failing:
                results.append(Result(job.name, word, "failed", folder, error="no luck"))
                continue
            save_embeddings(
                Embedding(word, torch.ones(1, 4)), folder / "embeddings.safetensors", overwrite=True
            )
            results.append(Result(job.name, word, "learned", folder, steps=3))
        return results


def test_a_list_is_learned_and_its_folder_keeps_it(model_folder, tmp_path):
    path = listed(tmp_path / "c.yaml", [*TWO, {"name": "<bad>"}], seed=7)
    entries, learner, out = read_jobs(path, model=str(model_folder)), Learner("dog"), tmp_path / "all"
    results = learn_list(entries, out, learner)
    assert learner.learned == ["cat", "dog"]
    assert [(result.word, result.status) for result in results] == [
        ("<cat>", "learned"), ("<dog>", "failed"), ("<bad>", "failed")
    ]  # fmt: skip
    assert "lacks 'images'" in str(results[2].error) and results[1].error == "no luck"
    assert [word.placeholder for word in load_embeddings(out / "embeddings.safetensors")] == ["<cat>"]
    assert [row["word"] for row in json.loads((out / "concepts.json").read_text())["concepts"]] == [
        "<cat>", "<dog>", "<bad>"
    ]  # fmt: skip
    again = read_jobs(out / "concepts.yaml")
    assert [one.config for one in again[:2]] == [one.config for one in entries[:2]]
    assert again[2] == entries[2]


def test_a_folder_that_holds_something_needs_resume(model_folder, tmp_path):
    entries = read_jobs(listed(tmp_path / "c.yaml", TWO), model=str(model_folder))
    learn_list(entries, tmp_path / "all", Learner())
    with pytest.raises(UserError, match="is not empty"):
        learn_list(entries, tmp_path / "all", Learner())
    assert len(learn_list(entries, tmp_path / "all", Learner(), resume=True)) == 2


def test_another_list_does_not_go_on_in_a_folder(model_folder, tmp_path):
    entries, out = read_jobs(listed(tmp_path / "c.yaml", TWO), model=str(model_folder)), tmp_path / "all"
    learn_list(entries, out, Learner())
    with pytest.raises(UserError, match="holds <dog> too, which this list lacks"):
        learn_list(entries[:1], out, Learner(), resume=True)
    cat = entries[0]
    assert isinstance(cat, Job)
    other = replace(cat, config=replace(cat.config, seed=cat.config.seed + 1))
    with pytest.raises(UserError, match="<cat> was begun in .* with other settings: .*seed"):
        learn_list([other, entries[1]], out, Learner(), resume=True)


def test_concepts_that_were_not_begun_may_change(model_folder, tmp_path):
    path = listed(tmp_path / "c.yaml", TWO)
    entries, out = read_jobs(path, model=str(model_folder)), tmp_path / "all"
    learn_list(entries, out, Learner())
    (out / "dog" / "config.yaml").unlink()
    assert len(learn_list(entries[:1], out, Learner(), resume=True)) == 1
