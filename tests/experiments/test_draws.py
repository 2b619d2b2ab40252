"""What a setup can draw beside a learned word: references, candidates, pictures to start from, two words."""

import csv
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.scorers import Identity
from ldm.experiments.cells import groups, make_plan
from ldm.experiments.concepts import GridConcept
from ldm.experiments.config import ScoreConfig, read
from ldm.experiments.draws import FROM_NOISE, DrawConfig, called, of_setup, say
from ldm.experiments.measures import attribute_scores, together_scores
from ldm.experiments.plan import Plan, load_plan
from ldm.experiments.ranking import Ranker
from ldm.experiments.shots import shots
from ldm.io.recipes import load_recipe

DOG = GridConcept(
    "my dog", Path("."), (), "held out", class_word="dog", short_caption="a dog", long_caption="a brown dog"
)


# ------------------------------------------------------------------ what stands in a prompt
@pytest.mark.parametrize(
    ("reference", "prompt"),
    [
        (None, "a photo of <my-dog> on the beach"),
        ("prompt", "a photo of on the beach"),
        ("class", "a photo of dog on the beach"),
        ("short caption", "a photo of a dog on the beach"),
        ("long caption", "a photo of a brown dog on the beach"),
    ],
)
def test_a_reference_puts_its_text_where_the_word_would_be(reference: Any, prompt: str) -> None:
    assert say("a photo of {} on the beach", called(DrawConfig(reference=reference), [DOG])) == prompt


def test_two_concepts_have_two_places() -> None:
    both = GridConcept("both", Path("."), (), "held out", members=("my dog", "cat"))
    found = shots(ScoreConfig(samples=2, together=("{1} and {0}",), backgrounds=True), both)
    assert [shot.kind for shot in found] == ["together"] * 2
    cat = GridConcept("cat", Path("."), (), "held out", class_word="cat")
    assert say(found[0].prompt, called(DrawConfig(reference="class"), [DOG, cat])) == "cat and dog"
    with pytest.raises(UserError, match="'cat' has no short caption; give it as short_caption"):
        called(DrawConfig(reference="short caption"), [DOG, cat])


@pytest.mark.parametrize(
    ("setup", "told"),
    [
        ({"draw": "prompt"}, "give a mapping"),
        ({"draw": {"reference": "picture"}}, "reference"),
        ({"draw": {"reference": "prompt"}, "steps": 5}, "leave steps out"),
        ({"draw": {"reference": "images", "candidates": 4}}, "not drawn"),
        ({"draw": {"box": [0, 0, 1, 1]}}, "give image"),
        ({"draw": {"image": "own", "box": [0, 0, 0, 1]}}, "left, top, right, bottom"),
        ({"draw": {"image": "own", "box": [0, 0, 1, 1], "mask": "m.png"}}, "give one of them"),
        ({"draw": {"image": "own", "invert": "{}", "strength": 0.5}}, "leave out strength"),
        ({"draw": {"candidate": 4}}, "candidate"),
    ],
)
def test_what_does_not_go_together_is_refused(setup: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        of_setup("one", setup)


def test_a_setup_without_draw_is_drawn_from_noise() -> None:
    assert of_setup("one", {"num_vectors": 2}) == ({"num_vectors": 2}, FROM_NOISE)
    assert of_setup("one", None) == ({}, FROM_NOISE) and FROM_NOISE.identity(DOG) == []


# ------------------------------------------------------------------ figures and ranks, by hand
class Axes:
    """A scorer whose features are the mean colour: red, green and blue are the axes."""

    name, reads_text = "axes", True
    identity = Identity("axes", "none", "none")

    def image_features(self, images: torch.Tensor) -> torch.Tensor:
        mean = images.mean((2, 3)) / 2 + 0.5
        return mean / mean.norm(dim=1, keepdim=True)

    def text_features(self, texts: Any) -> torch.Tensor:
        return torch.stack([torch.eye(3)[("red", "green", "blue").index(text)] for text in texts])


def plain(*colours: tuple[float, float, float]) -> torch.Tensor:
    return torch.tensor(colours)[:, :, None, None].expand(-1, 3, 8, 8) * 2 - 1


def test_the_best_candidate_is_like_the_references_and_the_text(tmp_path: Path) -> None:
    Image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    ranker = Ranker(Axes(), [tmp_path / "red.png"])
    pictures = plain((0, 0, 1), (1, 0.1, 0), (1, 0, 1))
    assert ranker.best(pictures) == 1
    assert ranker.best(pictures, "blue") == 2


def test_the_lesser_likeness_counts_where_two_concepts_are_asked_for() -> None:
    red, blue = torch.eye(3)[[0]], torch.eye(3)[[2]]
    half = 0.5**0.5
    (score,) = together_scores(Axes(), torch.tensor([[1.0, 0, 0], [half, 0, half]]), [red, blue], "held out")
    assert score.metric == "both shown" and score.figure == pytest.approx(half / 2)


def test_an_attribute_is_even_where_all_values_are_as_frequent() -> None:
    colours = torch.eye(3)
    even = attribute_scores(Axes(), colours, ("red", "green", "blue"))
    assert [score.figure for score in even] == pytest.approx([1, 1 / 3, 1 / 3, 1 / 3])
    one = attribute_scores(Axes(), colours[[2, 2]], ("red", "green", "blue"))
    assert [score.figure for score in one] == [0, 0, 0, 1]
    assert one[3].metric == "share of 'blue'"


# ------------------------------------------------------------------ a whole grid
SETUPS = {
    "plain": {},
    "two": {},  # of the world's own setups, those that learn more are not needed here
    "layers": {},
    "images": {"draw": {"reference": "images"}},
    "prompt": {"draw": {"reference": "prompt"}},
    "best of 3": {"draw": {"candidates": 3}},
    "in a box": {"draw": {"image": "own", "box": [0.25, 0.25, 0.75, 0.75]}},
    "inverted": {"draw": {"image": "own", "invert": "a photo of {}"}},
}


def test_every_way_of_drawing_has_its_pictures_and_figures(world: Any, cli: Any) -> None:
    file = world.experiment(
        grid={"concepts": {"one and two": {"together": ["one", "two"]}}, "setups": SETUPS, "seeds": [0]},
        score={
            "backgrounds": False,
            "attribute": ["a red thing", "a blue thing"],
            "together": ["{0} and {1}"],
        },
        expect=[],
    )
    text = file.read_text().replace("num_vectors: 2", "{}").replace("per_layer: true", "{}")
    file.write_text(text)
    values = read(file)
    out = world.path / "out"
    assert values.grid.setups["prompt"] == SETUPS["prompt"]
    status, _, err = cli("run", file, "--out", out, "--only", "*/[!tl]*/0")
    assert status == 0, err
    plan = load_plan(out)
    cells = {(cell.concept, cell.setup): cell for cell in plan.cells}
    one = cells["one", "plain"]
    assert cells["one", "best of 3"].runs == cells["one", "inverted"].runs == one.runs == (one.name,)
    assert cells["one and two", "plain"].runs == (one.name, cells["two", "plain"].name)
    assert cells["one", "prompt"].runs == () and cells["one", "prompt"].steps == 0
    assert len({cell.drawn_name for cell in plan.cells}) == len(plan.cells)

    def recipe(concept: str, setup: str) -> Any:
        return load_recipe(plan.album(cells[concept, setup]).files[0])

    assert (
        recipe("one", "plain").prompt == "a photo of <one>" and recipe("one", "prompt").prompt == "a photo of"
    )
    assert recipe("one", "plain").edit is None and recipe("one", "in a box").edit.mask == "mask.png"
    assert recipe("one", "inverted").edit.invert == "a photo of <one>"
    assert recipe("one", "best of 3").batch_rows == 6  # three of each of two prompts
    both = recipe("one and two", "plain")
    assert both.prompt == "<one> and <two>" and [w.placeholder for w in both.embeddings] == ["<one>", "<two>"]
    with Image.open(plan.album(cells["one", "images"]).files[0]) as copied:
        assert copied.size == (16, 16) and copied.getpixel((8, 8)) == (255, 0, 0)
    with open(out / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {row["metric"] for row in rows} >= {"both shown", "attribute evenness", "share of 'a red thing'"}
    of = {row["setup"]: row for row in rows if row["metric"] == "reconstruction (paper)"}
    assert set(of) == {"plain", "images", "prompt", "best of 3", "in a box", "inverted"}
    assert {row["concepts"] for row in of.values()} == {"3"}
    pictures = {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")}
    assert cli("run", file, "--out", out, "--only", "*/[!tl]*/0")[0] == 0
    assert {path: path.stat().st_mtime_ns for path in (out / "pictures").rglob("*.png")} == pictures


def plan_of(world: Any, **changes: Any) -> Plan:
    return make_plan(read(world.experiment(**changes)), world.path / "out", {})


def test_cells_that_learn_nothing_come_last_and_one_run_is_learned_once(world: Any) -> None:
    setups = {"again": {"draw": {"candidates": 2}}, "prompt": {"draw": {"reference": "prompt"}}}
    concepts = {"both": {"together": ["one", "three"]}}
    plan = plan_of(world, grid={"setups": setups, "concepts": concepts, "seeds": [0]})
    found = groups(plan, plan.cells)
    assert all(cell.steps == 0 for group in found[1:] for cell in group) and all(c.steps for c in found[0])
    assert (
        len({cell.runs for cell in found[0]}) == 9 and len(found[0]) == 12
    )  # "again" draws the word of "plain"
    assert sum(len(group) for group in found) == len(plan.cells)
    with pytest.raises(UserError, match="both/tuned/0: model_lr tunes a model for one"):
        plan_of(world, grid={"setups": {"tuned": {"model_lr": 1e-6}}, "concepts": concepts, "seeds": [0]})
    with pytest.raises(UserError, match="'both' is of 'four', which is none of one, two, three"):
        plan_of(world, grid={"concepts": {"both": {"together": ["one", "four"]}}})
