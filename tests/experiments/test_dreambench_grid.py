"""``experiments/dreambench.yaml`` end to end, on a folder of that shape, with scorers of random weights."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from dreambench_folder import write_folder

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_the_dreambench_experiment_from_data_to_report(
    world: Any, cli: Callable[..., tuple[int, str, str]], tiny_scorers: tuple[str, str]
) -> None:
    data = write_folder(world.path / "data")
    clip, dino = tiny_scorers
    values = {
        "base.model": world.path / "tiny",
        "base.templates": "plain",  # the model reads 12 tokens
        "grid.concepts.dreambench.root": data,
        "score.scorers": f'["{clip}", "{dino}"]',
        "score.scale": 3.0,
    }
    file, out = ROOT / "experiments" / "dreambench.yaml", world.path / "out"
    common = (file, "--preset", "quick", "--out", out, "--set", *(f"{k}={v}" for k, v in values.items()))
    status, told, err = cli("run", *common)
    assert status == 0, err
    with open(out / "table.csv", newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert {(row["scorer"], row["metric"]) for row in rows} == {
        (clip, "CLIP-I"), (clip, "CLIP-T"), (clip, "retrieval (first)"), (clip, "retrieval (mAP)"),
        (dino, "DINO-I"), (dino, "retrieval (first)"), (dino, "retrieval (mAP)"),
    }  # fmt: skip
    text = next(row["text"] for row in rows if row["metric"] == "CLIP-T")
    assert "class word" in text
    assert {row["n"] for row in rows} == {"6"}  # 3 subjects, 2 prompts, 1 picture
    assert cli("report", *common)[0] == 0
    page = (out / "report.html").read_text()
    assert f"by {clip}" in page and page.count('href="#setup-') == 3
    assert "undecided" in page or "held" in page
