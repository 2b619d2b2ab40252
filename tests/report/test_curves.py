"""Line charts as SVG."""

import pytest

from ldm.report.curves import line_chart, ticks


@pytest.mark.parametrize(("low", "high"), [(0, 400), (0.93, 1.07), (-1e-6, 1e-6), (1e5, 9e5)])
def test_ticks_are_round_few_and_inside(low: float, high: float) -> None:
    found = ticks(low, high)
    assert 2 <= len(found) <= 9
    slack = 1e-9 * (high - low)
    assert all(low - slack <= t <= high + slack for t in found)


def test_charts_survive_gaps_constants_and_single_values() -> None:
    nan = float("nan")
    gap = line_chart("a", [(0, 1), (1, nan), (2, 3), (3, 4)])
    assert gap.count("<polyline") == 2 and gap.count("<circle") == 2 and "nan" not in gap
    assert "nan" not in line_chart("b", [(0, 5.0), (1, 5.0)])
    assert line_chart("c", [(7, 2.0)]).count("<circle") >= 1
    assert "&lt;x&gt;" in line_chart("<x>", [])
