"""Short versions of the scripts that kill commands, pair them and fill their disk."""

import random
from dataclasses import replace
from pathlib import Path

import pytest
from full_disk import many_sizes
from harness import World, build_world
from kills import kill_at_points, kill_at_random, works
from pairs import many_pairs

from ldm.config import dump_yaml, load_yaml

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> World:
    return build_world(tmp_path_factory.mktemp("torture") / "world")


@pytest.mark.parametrize(("name", "n"), [("single", 2), ("sample", 3), ("convert", 3), ("stage", 2)])
def test_a_kill_in_a_write_loses_nothing(world: World, tmp_path: Path, name: str, n: int) -> None:
    (work,) = [work for work in works(world) if work.name == name]
    row = kill_at_points(work, tmp_path, n, random.Random(1))
    assert row.times == n and not row.lost, row.lost


def test_a_kill_of_a_pack_loses_nothing(world: World, tmp_path: Path) -> None:
    (work,) = [work for work in works(world) if work.name == "pack"]
    row = kill_at_points(work, tmp_path, 1, random.Random(2))
    assert row.times == 1 and not row.lost, row.lost


def test_a_killed_experiment_ends_with_the_same_table(world: World, tmp_path: Path) -> None:
    """Of four cells in two packs."""
    values = load_yaml([world.experiment])
    grid = values["grid"]
    grid["seeds"] = [0]
    del grid["concepts"]["tree"], grid["setups"]["two"]
    few = tmp_path / "few.yaml"
    few.write_text(dump_yaml({**values, "pack": 2}))
    (work,) = [work for work in works(world) if work.name == "experiment"]
    words = tuple(few if word == world.experiment else word for word in work.words)
    assert words != work.words
    work = replace(work, words=words)
    row = kill_at_points(work, tmp_path, 1, random.Random(4))
    assert row.times == 1 and not row.lost, row.lost


def test_a_kill_at_any_moment_loses_nothing(world: World, tmp_path: Path) -> None:
    row = kill_at_random(works(world)[0], tmp_path, 2, random.Random(0))
    assert row.times == 2 and not row.lost, row.lost


def test_of_two_commands_on_one_folder_none_loses_anything() -> None:
    row = many_pairs(2, 0)
    assert row.times == 2 and not row.lost, row.lost


def test_a_full_disk_loses_nothing() -> None:
    row = many_sizes(3)
    assert row.times == 3 and not row.lost, row.lost
