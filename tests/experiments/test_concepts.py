"""What a grid's concepts may be: folders, held-out emoji, subjects of DreamBench."""

from pathlib import Path

import numpy as np
import pytest
from dreambench_folder import write_folder
from evaluation_world import NAMES

from ldm.emoji.captions import STYLES
from ldm.emoji.sprites import Concept, write
from ldm.errors import UserError
from ldm.experiments.concepts import as_plain, collect, from_plain


@pytest.fixture
def emoji(tmp_path: Path) -> dict[str, object]:
    """Twenty concepts of the judge's own codes, each a filled square; all are held out."""
    concepts = [
        Concept(f"{0x1F400 + i:x}", name, (), "animals-nature", "animal-mammal")
        for i, name in enumerate(NAMES)
    ]
    colours = np.random.default_rng(0).integers(256, size=(len(NAMES), 3))
    drawings = []
    for colour in colours:
        square = np.full((64, 64, 4), 255, dtype=np.uint8)
        square[..., :3] = colour
        drawings.append([square] * len(STYLES))
    write(tmp_path / "data", concepts, drawings)
    (tmp_path / "holdout.txt").write_text("".join(f"{concept.hex}\n" for concept in concepts))
    return {"data": str(tmp_path / "data"), "holdout": str(tmp_path / "holdout.txt"), "n": 3, "pictures": 2}


def test_held_out_emoji_are_drawn_once_and_alike(emoji: dict[str, object], tmp_path: Path) -> None:
    found = collect({"emoji": emoji}, tmp_path / "out", 16)
    assert len(found) == 3 and {one.name for one in found} <= set(NAMES)
    assert all(one.kind == "training pictures" and one.init == "animal" for one in found)
    before = [one.hashes() for one in found]
    assert len(before[0]) == 2 and collect({"emoji": emoji}, tmp_path / "other", 16)[0].hashes() == before[0]
    more = collect({"emoji": {**emoji, "references": 4}}, tmp_path / "out", 16)
    assert [one.hashes() for one in more] == before  # what is learned from is the same
    assert all(one.kind == "held out" and len(one.references) == 4 for one in more)
    assert not set(more[0].reference_hashes()) & {line.split()[1] for line in before[0]}


def test_subjects_of_dreambench_bring_prompts_and_classes(tmp_path: Path) -> None:
    root = write_folder(tmp_path / "data")
    toy, dog, house = collect({"dreambench": {"root": str(root)}}, tmp_path / "out", 16)
    assert (dog.name, dog.class_word, dog.init, dog.kind) == ("small_dog", "dog", "dog", "training pictures")
    assert dog.prompts == ("a {} in the snow", "a {} in the car") and len(dog.references) == 4
    assert toy.settings == {"init": "toy"} and house.word == "<tree_house>"
    some = {"root": str(root), "only": ["red_toy"], "train_pictures": 3, "init": "mean", "with_class": True}
    (one,) = collect({"dreambench": some}, tmp_path / "out", 16)
    assert one.settings == {"train_pictures": 3} and one.kind == "held out"
    assert [path.name for path in one.references] == ["03.jpg"] and len(one.hashes()) == 3
    assert one.prompts == ("a {} toy in the snow", "a red {} toy")
    assert from_plain(as_plain(one)) == one
    with pytest.raises(UserError, match="no subject 'cup'; it has red_toy, small_dog, tree_house"):
        collect({"dreambench": {"root": str(root), "only": ["cup"]}}, tmp_path / "out", 16)


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"emoji": {"holdout": "nowhere.txt"}}, "no file nowhere.txt"),
        ({"emoji": {"count": 3}}, "unknown config key 'grid.concepts.emoji.count'"),
        ({"dreambench": {"root": "nowhere"}}, "is no DreamBench"),
        ({"cup": {"image": "cups"}}, "did you mean 'images'"),
    ],
)
def test_what_is_wrong_is_said(given: dict[str, object], told: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=told):
        collect(given, tmp_path, 16)
