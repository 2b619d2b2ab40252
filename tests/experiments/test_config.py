"""The YAML of an experiment: presets, overrides, and errors in one line that name what is wrong."""

from pathlib import Path
from typing import Any

import pytest

from ldm.errors import UserError
from ldm.experiments.config import read

ROOT = Path(__file__).parents[2]


def test_presets_and_overrides_win_in_this_order(world: Any) -> None:
    file = world.experiment()
    assert read(file).grid.seeds == (0, 1)
    assert read(file, "one").grid.seeds == (0,)
    assert read(file, "one", ["grid.seeds=[7]"]).grid.seeds == (7,)
    assert read(file).compared_with == "plain"
    assert read(file).expect[0].order == ("layers", "plain")


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"grid": {"seed": [0]}}, "did you mean 'grid.seeds'|grid.seed"),
        ({"grid": {"seeds": []}}, "grid.seeds is empty"),
        ({"grid": {"seeds": [0, 0]}}, "a seed twice"),
        ({"grid": {"setups": {"plain": 3}}}, "the setup 'plain' is 3"),
        ({"score": {"prompts": ["a cat"]}}, "has no {}"),
        ({"score": {"protocol": "other"}}, "choose one of paper, dreambench"),
        ({"score": {"neutral": []}}, "score.neutral is empty"),
        ({"score": {"scorers": []}}, "score.scorers is empty"),
        ({"baseline": "nobody"}, "there is no setup 'nobody'"),
        ({"expect": [{"metric": "m", "order": "plain > nobody"}]}, "there is no setup 'nobody'"),
        ({"expect": [{"metric": "m", "order": "plain"}]}, "needs two setups"),
    ],
)
def test_what_is_wrong_is_said(world: Any, changes: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told):
        read(world.experiment(**changes))


def test_an_unknown_preset_names_those_that_there_are(world: Any) -> None:
    with pytest.raises(UserError, match="no preset 'slow'; it has one"):
        read(world.experiment(), "slow")


@pytest.mark.parametrize("file", sorted((ROOT / "experiments").glob("*.yaml")), ids=lambda file: file.stem)
def test_the_experiments_of_the_project_and_their_quick_presets_are_read(file: Path) -> None:
    assert read(file).grid.setups
    assert read(file, "quick").grid.setups
