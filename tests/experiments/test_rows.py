"""Tables: averaging over seeds, intervals over concepts, paired differences, expected orders."""

from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.scorers import Identity, Score
from ldm.experiments.config import Expectation, ExperimentConfig, GridConfig
from ldm.experiments.expect import judge
from ldm.experiments.plan import Cell, Plan
from ldm.experiments.rows import Scored, compare, setup_rows, write_rows
from ldm.sampling.sample import Sampling

IDENTITY = Identity("network", "hash", "resize")
CONCEPTS = ("cat", "dog", "cup", "hat")


def figures(by_setup: dict[str, list[float]], seeds: int = 2, spread: float = 0.1) -> list[Scored]:
    """One figure a concept; seeds lie ``spread`` above and below it."""
    found = []
    for setup, values in by_setup.items():
        for concept, value in zip(CONCEPTS, values, strict=True):
            for seed in range(seeds):
                cell = Cell(concept, setup, seed, "r", "d", "s", "k", 0, 1, 1, ("r",))
                figure = value + (spread if seed % 2 else -spread)
                found.append((cell, Score("judge", "CLIP-I", figure, 0.9, 4, "held out", IDENTITY)))
    return found


def plan(tmp_path: Path, *setups: str) -> Plan:
    config = ExperimentConfig(GridConfig({}, dict.fromkeys(setups, {})))
    return Plan(config, tmp_path, {}, (), {}, (), "tiny", Sampling())


def test_a_row_is_the_mean_over_concepts_of_the_mean_over_seeds(tmp_path: Path) -> None:
    values = {"a": [0.1, 0.2, 0.3, 0.4], "b": [0.2, 0.3, 0.4, 0.5]}
    one, other = setup_rows(plan(tmp_path, "a", "b"), figures(values))
    assert one["figure"] == pytest.approx(0.25) and one["ceiling"] == pytest.approx(0.9)
    assert (one["low"], one["high"]) == pytest.approx(metrics.bootstrap(values["a"]))
    assert (one["concepts"], one["cells"], one["n"]) == (4, 8, 32)
    assert one["difference"] is None and one["baseline"] == "a"
    assert other["difference"] == pytest.approx(0.1)  # of every pair alike: its interval has no width
    assert (other["difference_low"], other["difference_high"]) == pytest.approx((0.1, 0.1))


def test_only_pairs_of_one_concept_and_seed_are_compared() -> None:
    found = figures({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.2, 0.3, 0.4, 0.5]})
    left_out = [(c, s) for c, s in found if not (c.setup == "b" and (c.concept == "cat" or c.seed == 1))]
    result = compare(left_out, "b", "a")
    assert result is not None and result[2] == 3
    assert result[0] == pytest.approx(0.1)
    assert compare(found, "a", "nobody") is None


def test_figures_of_other_weights_are_never_put_in_one_row(tmp_path: Path) -> None:
    found = figures({"a": [0.1, 0.2, 0.3, 0.4], "b": [0.2, 0.3, 0.4, 0.5]})
    cell, score = found[-1]
    other = Score("judge", "CLIP-I", 0.5, 0.9, 4, "held out", Identity("network", "other", "resize"))
    with pytest.raises(UserError, match="cannot be compared, their weights differs"):
        setup_rows(plan(tmp_path, "a", "b"), [*found[:-1], (cell, other)])


def test_orders_are_held_not_held_or_undecided() -> None:
    found = figures({"low": [0.1, 0.2, 0.3, 0.4], "high": [0.2, 0.3, 0.4, 0.5], "odd": [0.0, 0.3, 0.1, 0.6]})
    orders = [("high", "low"), ("low", "high"), ("odd", "low"), ("high", "low", "odd")]
    judged = judge([Expectation("CLIP-I", order) for order in orders], found)
    assert [one.verdict for one in judged] == ["held", "not held", "undecided", "undecided"]
    assert "high - low: +0.1000" in judged[0].detail
    with pytest.raises(UserError, match="no scorer gave 'CLIP-T'; there are CLIP-I"):
        judge([Expectation("CLIP-T", ("high", "low"))], found)
    assert judge([Expectation("CLIP-I", ("high", "low"))], [])[0].verdict == "undecided"


def test_one_concept_has_no_interval_and_decides_nothing(tmp_path: Path) -> None:
    found = [(c, s) for c, s in figures({"a": [0.1] * 4, "b": [0.2] * 4}) if c.concept == "cat"]
    _, row = setup_rows(plan(tmp_path, "a", "b"), found)
    assert row["difference"] == pytest.approx(0.1)
    assert {row[name] for name in ("low", "high", "difference_low", "difference_high")} == {None}
    (judged,) = judge([Expectation("CLIP-I", ("b", "a"))], found)
    assert judged.verdict == "undecided" and "one concept has no interval" in judged.detail


def test_rows_are_the_same_in_csv_and_parquet(tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = setup_rows(plan(tmp_path, "a"), figures({"a": [0.1, 0.2, 0.3, 0.4]}))
    csv_file, parquet_file = write_rows(rows, tmp_path / "table")
    assert parquet.read_table(parquet_file).to_pylist() == rows
    assert csv_file.read_text().splitlines()[0] == ",".join(rows[0])
