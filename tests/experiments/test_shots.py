"""Which pictures are drawn for a protocol, with which texts, and that a stopped album ends the same."""

from pathlib import Path

import tiny

from ldm.backbone.model import LatentDiffusion
from ldm.evaluation.word import EDIT_PROMPTS
from ldm.experiments.concepts import GridConcept
from ldm.experiments.config import ScoreConfig
from ldm.experiments.shots import Album, noise_seed, shots
from ldm.io.recipes import load_recipe
from ldm.sampling.prompts import load, teach
from ldm.sampling.sample import Sampling

CONCEPT = GridConcept("my dog", Path("."), (), "held out", class_word="dog", prompts=("a {} in the snow",))


def test_the_paper_asks_for_neutral_prompts_edits_and_backgrounds() -> None:
    found = shots(ScoreConfig(samples=2, prompts=("a {} on grass",), backgrounds=True), CONCEPT)
    assert [shot.kind for shot in found] == ["neutral"] * 2 + ["edit"] * 2 + ["background"] * 12
    assert [shot.index for shot in found] == list(range(16))
    assert found[2].text == "a on grass" and found[4].colour == "red"
    assert len({shot.name for shot in found}) == 16


def test_dreambench_asks_for_the_prompts_of_the_data_set_with_the_class_word_in_the_text() -> None:
    found = shots(ScoreConfig(protocol="dreambench", samples=4), CONCEPT)
    assert len(found) == 4 and {shot.text for shot in found} == {"a dog in the snow"}
    with_class = GridConcept("d", Path("."), (), "", class_word="dog", prompts=("a {} dog in the snow",))
    assert shots(ScoreConfig(protocol="dreambench"), with_class)[0].text == "a dog in the snow"


def test_the_usual_edits_where_a_concept_has_none() -> None:
    bare = GridConcept("x", Path("."), (), "")
    assert [s.prompt for s in shots(ScoreConfig(samples=1), bare)][1:] == list(EDIT_PROMPTS)


def test_noise_is_of_the_concept_and_the_seed() -> None:
    score = ScoreConfig()
    assert noise_seed(score, "a", 0) == noise_seed(score, "a", 0)
    assert len({noise_seed(score, c, s) for c in "ab" for s in (0, 1)}) == 4


def test_an_album_that_was_stopped_ends_as_one_that_was_not(
    tiny_model: LatentDiffusion, tmp_path: Path
) -> None:
    words = load([tiny.write_word(tmp_path / "toy.safetensors", tiny_model)])
    teach(tiny_model, words)
    wanted = tuple(shots(ScoreConfig(samples=2, prompts=()), CONCEPT))
    whole, stopped = (
        Album(tmp_path / name, wanted, 5, Sampling(2, "ddim", 3.0), "tiny") for name in ("whole", "stopped")
    )
    whole.draw(tiny_model, words, "<toy>")
    stopped.draw(tiny_model, words, "<toy>")
    assert whole.complete and stopped.complete
    stopped.files[0].unlink()
    assert not stopped.complete
    stopped.draw(tiny_model, words, "<toy>")
    for a, b in zip(whole.files, stopped.files, strict=True):
        assert a.read_bytes() == b.read_bytes()
    recipe = load_recipe(whole.files[1])
    assert (recipe.prompt, recipe.seed, recipe.index) == ("a photo of <toy>", 5, 1)
    assert recipe.embeddings[0].metadata["sha256"] == words[0].metadata["sha256"]
