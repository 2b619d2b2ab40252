"""The best step of a run and where it starts to look bad."""

import pytest

from ldm.evaluation.curve import Moment, best, decline, rows


def moment(step: int, near: float, follows: float) -> Moment:
    """Figures of pictures that differ a little, as pictures do, and alike at every step."""
    noise = (-0.02, 0.0, 0.01, 0.01)
    return Moment(step, tuple(near + n for n in noise), tuple(follows + n for n in noise))


def test_the_best_step_has_the_highest_product_and_is_the_first_of_equals() -> None:
    found = [moment(10, 0.5, 0.4), moment(20, 0.7, 0.35), moment(30, 0.9, 0.1), moment(40, 0.7, 0.35)]
    assert best(found).step == 20
    assert found[1].product == pytest.approx(0.7 * 0.35)


def test_the_decline_starts_where_every_later_step_is_worse() -> None:
    found = [moment(10, 0.5, 0.4), moment(20, 0.7, 0.4), moment(30, 0.6, 0.4), moment(40, 0.7, 0.4),
             moment(50, 0.8, 0.2), moment(60, 0.9, 0.1)]  # fmt: skip
    bad = decline(found)
    assert bad is not None and bad.step == 50  # not 30: 40 is as good as the best
    assert [row["mark"] for row in rows(found)] == ["", "best", "", "", "starts to look bad", ""]
    assert decline(found[:2]) is None


def test_a_scorer_that_reads_no_text_judges_by_reconstruction_alone() -> None:
    found = [Moment(1, (0.5, 0.5), ()), Moment(2, (0.6, 0.6), ())]
    assert best(found).step == 2 and found[0].editability is None
