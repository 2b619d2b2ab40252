"""Keys of cells follow what is learned, drawn and judged; groups follow the cells alone."""

from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.errors import UserError
from ldm.evaluation.scorers import Identity
from ldm.experiments.cells import groups, make_plan
from ldm.experiments.config import read
from ldm.experiments.plan import Plan, load_plan

JUDGE = {"judge": Identity("a", "b", "c")}


def plan_of(world: Any, scorers: dict[str, Identity] = JUDGE, **changes: Any) -> Plan:
    return make_plan(read(world.experiment(**changes)), world.path / "out", scorers)


def test_a_key_changes_with_what_it_stands_for(world: Any) -> None:
    def keys(**changes: Any) -> tuple[str, str, str, str]:
        cell = plan_of(world, **changes).cells[0]
        return cell.run_key, cell.draw_key, cell.score_key, cell.key

    before = keys()
    assert keys() == before
    assert keys(base={"logging": {"loggers": []}}) == before  # of what is shown, not of what is learned
    learned = keys(base={"steps": 3})
    assert all(a != b for a, b in zip(learned, before, strict=True))
    drawn = keys(score={"samples": 2})
    assert drawn[0] == before[0] and drawn[1] != before[1]
    judged = keys(scorers={"judge": Identity("a", "other weights", "c")})
    assert judged[:3] == before[:3] and judged[3] != before[3]
    Image.new("RGB", (24, 20), "white").save(world.path / "one" / "2.png")  # a reference, not learned from
    moved = keys()
    assert moved[:2] == before[:2] and moved[2] != before[2]
    Image.new("RGB", (24, 20), "white").save(world.path / "one" / "0.png")
    assert keys()[0] != before[0]


def test_every_concept_has_one_word_in_all_cells_and_the_same_noise_in_all_setups(world: Any) -> None:
    plan = plan_of(world)
    assert len(plan.cells) == 18 and len({cell.key for cell in plan.cells}) == 18
    for concept in ("one", "two", "three"):
        of = [cell for cell in plan.cells if cell.concept == concept]
        assert {plan.inversions[cell.name].placeholder for cell in of} == {f"<{concept}>"}
        assert {(cell.seed, cell.noise) for cell in of} == {
            (c.seed, c.noise) for c in of if c.setup == "plain"
        }
        assert len({cell.noise for cell in of}) == 2  # one a seed


def test_groups_are_even_packs_that_what_is_done_does_not_change(world: Any) -> None:
    plan = plan_of(world, pack=16)
    assert [len(group) for group in groups(plan, plan.cells)] == [9, 9]
    tuned = {"tuned": {"model_lr": 1e-6}, "skip": {"trainer": {"precision": "bf16-mixed"}}}
    other = plan_of(world, pack=16, grid={"setups": tuned, "seeds": [0]})
    found = groups(other, other.cells)
    assert [len(group) for group in found] == [9, 3, 1, 1, 1]
    assert {cell.setup for group in found[2:] for cell in group} == {"tuned"}


def test_a_plan_is_read_back_as_it_was(world: Any) -> None:
    plan = plan_of(world)
    plan.save()
    kept = load_plan(plan.out)
    assert kept.cells == plan.cells and kept.concepts == plan.concepts
    assert kept.config == plan.config and kept.scorers == plan.scorers
    assert [kept.album(cell) for cell in kept.cells] == [plan.album(cell) for cell in plan.cells]


def test_references_are_what_was_held_out(world: Any) -> None:
    plan = plan_of(world)
    assert [path.name for path in plan.concepts["one"].references] == ["2.png"]
    assert plan.concepts["one"].kind == "held out"


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"base": {"seed": 1}}, "seed is the grid's to choose"),
        ({"grid": {"setups": {"plain": {"num_vector": 1}}}}, "one/plain/0: .*num_vectors"),
        ({"grid": {"concepts": {"one": {"images": "nowhere"}}}}, "no folder nowhere"),
        ({"grid": {"concepts": {"One": {"images": "{}"}}}}, "one name but for signs"),
        ({"grid": {"concepts": {"one": 5}}}, "give a folder, or a mapping"),
        ({"grid": {"concepts": {"one": {"train_pictures": 3}}}}, "must leave references"),
        ({"score": {"sampler": "euler"}}, "unknown sampler"),
    ],
)
def test_what_no_cell_can_be_made_of_is_refused(world: Any, changes: dict[str, Any], told: str) -> None:
    concepts = changes.get("grid", {}).get("concepts", {})
    if "One" in concepts:
        concepts["One"] = {"images": str(world.path / "one")}
    with pytest.raises(UserError, match=told):
        plan_of(world, **changes)


def test_a_folder_without_a_plan_is_no_experiment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no experiment yet"):
        load_plan(tmp_path)
    (tmp_path / "plan.json").write_text("{}")
    with pytest.raises(UserError, match="is broken"):
        load_plan(tmp_path)
