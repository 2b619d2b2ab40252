"""``init: pictures``: the words that are nearest, by a made scorer, in a run, a pack and after a resume."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
import torch.nn.functional as F
from learning import BASE, TRAINER
from torch import Tensor

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import load_yaml
from ldm.errors import UserError
from ldm.evaluation.scorers import Identity, load_scorer
from ldm.inversion import scores
from ldm.inversion.concept import Concept
from ldm.inversion.config import settle
from ldm.inversion.many.jobs import Job
from ldm.inversion.many.pack import learn_many
from ldm.inversion.nearest_init import candidates, nearest, with_chosen_init
from ldm.inversion.run import run_inversion
from ldm.inversion.task import read_pictures
from ldm.io.embeddings import load_embedding

#: features of "a photo of a WORD"; all other words have the last one
DIRECTIONS = {"cat": (1.0, 0.0, 0.0), "dog": (0.8, 0.6, 0.0), "toy": (0.8, 0.6, 0.0), "car": (0.0, 1.0, 0.0)}
REST = {"images": "p", "placeholder": "<a>"}


class MadeScorer:
    """Pictures look like (0.9, 0.1, 0) and (0.7, 0.7, 0), whose mean direction is nearest to dog and toy."""

    name, reads_text, identity = "made", True, Identity("made", "made", "made")

    def image_features(self, images: Tensor) -> Tensor:
        turns = torch.tensor([[0.9, 0.1, 0.0], [0.7, 0.7, 0.0]])
        return F.normalize(turns[torch.arange(len(images)) % 2], dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        assert all(text.startswith("a photo of ") for text in texts)
        return torch.tensor([DIRECTIONS.get(text.split()[-1], (0.0, 0.0, 1.0)) for text in texts])


class Blind(MadeScorer):
    reads_text = False


class Picky(MadeScorer):
    words: Sequence[str] = ("car", "cat", "tree")

    def knows(self, word: str) -> bool:
        return word in self.words


@pytest.fixture
def concept() -> Concept:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    return Concept(images, (Path("a.png"), Path("b.png")), ("1", "2"))


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    return tiny.write_pictures(tmp_path / "pictures")


def scored_by(scorer: Any, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(scores, "_scorer", lambda *_: scorer)


def chosen(model: LatentDiffusion, concept: Concept, **settings: Any) -> str | None:
    wish = replace(BASE.init_pictures, **settings)
    return with_chosen_init(replace(BASE, init="pictures", init_pictures=wish), model, concept).words["<toy>"]


def test_the_nearest_words_are_chosen_by_the_mean_of_the_pictures(
    tiny_model: LatentDiffusion, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_by(MadeScorer(), monkeypatch)
    assert chosen(tiny_model, concept) == "dog"  # as near as toy, which comes later in the vocabulary
    assert chosen(tiny_model, concept, words=3) == "dog toy cat"
    best, cosine = nearest(("car", "cat", "dog"), concept.images, MadeScorer())[0]
    mean = F.normalize(MadeScorer().image_features(concept.images).mean(0), dim=0)
    assert best == "dog" and cosine == pytest.approx(float(mean @ torch.tensor(DIRECTIONS["dog"])))
    scored_by(Picky(), monkeypatch)
    assert chosen(tiny_model, concept) == "cat"
    assert with_chosen_init(BASE, tiny_model, concept) is BASE  # a phrase is left as it is


def test_candidates_are_whole_words_that_the_model_has_learned(tiny_model: LatentDiffusion) -> None:
    found = candidates(tiny_model, MadeScorer())
    assert {"cat", "dog", "beach"} <= set(found)
    assert not {"a", "the", "and", "of", "[PAD]", "##a", "b"} & set(found)
    ids = tiny_model.text.tokenizer.whole_words()
    with torch.no_grad():
        tiny_model.text.token_table[ids["cat"]] *= 0.05  # as short as a row that training never came to
    tiny_model.add_placeholder("dog", init="tree")  # not the vocabulary's any more
    assert set(found) - set(candidates(tiny_model, MadeScorer())) == {"cat", "dog"}


def test_what_cannot_choose_is_refused_in_one_line(
    tiny_model: LatentDiffusion, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(scores, "_scorer", none)  # before any weights are looked for
    with pytest.raises(UserError, match="dino:x reads no text: set init_pictures.scorer"):
        chosen(tiny_model, concept, scorer="dino:x")
    scored_by(Blind(), monkeypatch)
    with pytest.raises(UserError, match="folder reads no text"):
        chosen(tiny_model, concept, scorer="folder")
    scored_by(Picky(), monkeypatch)
    monkeypatch.setattr(Picky, "words", ())
    with pytest.raises(UserError, match="knows no word"):
        chosen(tiny_model, concept)
    with pytest.raises(UserError, match="leave out one of them"):
        settle(REST, {"init": "pictures", "init_embedding": "a.safetensors"})
    with pytest.raises(UserError, match="for the placeholder alone"):
        settle(REST, {"init": "cat", "more_words": {"<b>": "pictures"}})


def test_crossinit_and_core_take_what_the_pictures_choose(
    tiny_model: LatentDiffusion, concept: Concept, monkeypatch: pytest.MonkeyPatch
) -> None:
    scored_by(MadeScorer(), monkeypatch)
    config = settle(REST, {"preset": "crossinit", "init": "pictures"}, {"context": {"weight": 1}})
    assert config.class_of("<a>") is None
    assert with_chosen_init(config, tiny_model, concept).class_of("<a>") == "dog"


def none(*_: Any) -> None:
    raise AssertionError("there is nothing to choose")


@pytest.mark.slow
def test_the_choice_stands_in_config_file_and_report_and_is_made_once(
    tiny_model: LatentDiffusion,
    tiny_config: ModelConfig,
    pictures: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = tiny.write_model(tmp_path / "model", tiny_model, tiny_config)
    own: dict[str, Any] = {
        **tiny.QUICK, "images": str(pictures), "model": str(folder), "placeholder": "<a>"
    }  # fmt: skip
    scored_by(MadeScorer(), monkeypatch)
    config = settle(own, {"init": "pictures"})
    learned = run_inversion(config, tmp_path / "run", progress=False)
    assert learned.metadata["init"] == "dog"
    kept = load_yaml([tmp_path / "run" / "config.yaml"])
    assert kept["init"] == "pictures" and kept["init_pictures"]["chosen"] == "dog"
    assert "dog (nearest to the pictures by emoji-clip)" in (tmp_path / "run" / "report.html").read_text()
    by_hand = run_inversion(settle(own, {"init": "dog"}), tmp_path / "by hand", progress=False)
    assert torch.equal(learned.vectors, by_hand.vectors)
    monkeypatch.setattr(scores, "_scorer", none)
    further = replace(config, trainer=replace(config.trainer, max_steps=5))
    assert run_inversion(further, tmp_path / "run", resume=True, progress=False).metadata["init"] == "dog"
    again = run_inversion(settle(kept, {}), tmp_path / "again", progress=False)
    assert torch.equal(again.vectors, learned.vectors)


@pytest.mark.slow
def test_a_member_of_a_pack_chooses_as_a_run_of_its_own_does(
    tiny_model: LatentDiffusion, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ldm.inversion.run import learn

    scored_by(MadeScorer(), monkeypatch)
    config = replace(
        BASE, images=pictures, init="pictures", show=replace(BASE.show, samples_per_prompt=0),
        trainer=replace(TRAINER, max_steps=3, image_every=0),
    )  # fmt: skip
    alone = learn(tiny_model.with_own_words(), read_pictures(config, 16)[0], config, progress=False)
    for steps, resume in ((2, False), (3, True)):
        job = Job("one", replace(config, trainer=replace(config.trainer, max_steps=steps)))
        (result,) = learn_many(tiny_model, [job], tmp_path / "all", pack=1, resume=resume, progress=False)
        assert result.error is None and result.steps == steps
        monkeypatch.setattr(scores, "_scorer", none)
    packed = load_embedding(tmp_path / "all" / "one" / "embeddings.safetensors")
    assert alone.metadata["init"] == packed.metadata["init"] == "dog"
    assert torch.equal(alone.vectors, packed.vectors)


@pytest.mark.slow
def test_the_shipped_model_and_judge_choose_a_word_that_both_have_learned() -> None:
    import ldm

    model, config = ldm.load("emoji"), settle(REST, {"init": "pictures"})
    folder = Path(__file__).parents[2] / "configs" / "emoji" / "concepts" / "mushroom"
    concept, _ = read_pictures(replace(config, images=folder), 64)
    word = with_chosen_init(config, model, concept).words["<a>"]
    assert word in candidates(model, load_scorer("emoji-clip"))
    assert word == with_chosen_init(config, model, concept).words["<a>"]
