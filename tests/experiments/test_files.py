"""The experiments that come with the project: each is learned, drawn and scored with two steps."""

from pathlib import Path
from typing import Any

import pytest

from ldm.cli.main import main
from ldm.config import load_yaml
from ldm.experiments.config import read
from ldm.experiments.plan import load_plan
from ldm.experiments.rows import scored

ROOT = Path(__file__).parents[2]
FILES = sorted(path for path in (ROOT / "experiments").glob("*.yaml") if path.stem != "dreambench")
OF_THE_PAPER = (
    "bias", "blended", "figure10", "figure12", "inversion-and-pivotal-tuning", "ranking", "style",
    "two-words",
)  # fmt: skip


def test_the_experiments_of_the_paper_are_all_here() -> None:
    assert {file.stem for file in FILES} >= set(OF_THE_PAPER)
    figure10 = read(ROOT / "experiments" / "figure10.yaml")
    assert len({one.name[0] for one in figure10.expect}) == 7  # the paper's seven orderings
    official = read(ROOT / "experiments" / "figure10.yaml", "official", ["grid.concepts.cat.images=cat"])
    assert list(official.grid.concepts) == ["cat"] and official.base["preset"] == "paper"
    for stem in OF_THE_PAPER:
        config = read(ROOT / "experiments" / f"{stem}.yaml", "quick")
        assert config.expect and all(one.name for one in config.expect), stem


@pytest.mark.slow
@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_a_file_runs_with_two_steps(file: Path, project: Path, capsys: Any) -> None:
    settings = ["base.model=tiny", "base.steps=2", "score.steps=2", "score.samples=1", "grid.seeds=[0]"]
    if "emoji" in load_yaml([file])["grid"]["concepts"]:
        others = "retrieval" in file.read_text("utf-8")  # of a concept among others
        settings += [f"grid.concepts.emoji.n={1 + others}"]
    words = ["experiment", "run", str(file), "--preset", "quick", "--out", "out", "--set", *settings]
    assert main(words) == 0, capsys.readouterr().err
    plan = load_plan(project / "out")
    figures = scored(plan)
    assert {cell.key for cell, _ in figures} == {cell.key for cell in plan.cells}
    metrics = {score.metric for _, score in figures}
    assert {one.metric for one in plan.config.expect} <= metrics
    capsys.readouterr()
    assert main(["experiment", "table", str(file), "--preset", "quick", "--out", "out"]) == 0
    printed = capsys.readouterr().out
    assert all(f"{one.name}: " in printed for one in plan.config.expect if one.name)
