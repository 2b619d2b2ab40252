"""All runs of a folder at a glance, from what their folders hold."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli.main import main
from ldm.errors import UserError
from ldm.io.claims import claimed
from ldm.report.runs import columns, differing, find_runs, write_runs


def make_run(path: Path, lr: float, *, finished: bool = True, started: str = "2026-01-01T00:00:00") -> Path:
    (path / "logs" / "csv").mkdir(parents=True)
    (path / "images").mkdir()
    (path / "config.yaml").write_text(
        f"placeholder: <toy>\nimages: {path}\noptim: {{lr: {lr}}}\ntrainer: {{max_steps: 100}}\n"
    )
    manifest = {"started": started, "seed": 1}
    if finished:
        manifest |= {"finished": "2026-01-01T00:01:00", "steps": 100, "loss": 0.25, "seconds": 9.0}
    (path / "manifest.json").write_text(json.dumps(manifest))
    (path / "logs" / "csv" / "metrics.csv").write_text(
        "fixed_loss,step,train/loss\n0.5,0,\n,10,0.4\n0.3,50,\n"
    )
    Image.new("RGB", (8, 8), "red").save(path / "images" / "samples_000050.png")
    (path / "report.html").write_text("page")
    return path


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    make_run(tmp_path / "runs" / "list" / "a", 0.01)
    make_run(tmp_path / "runs" / "b c", 0.02, finished=False, started="2026-01-02T00:00:00")
    (tmp_path / "runs" / "notes").mkdir()
    return tmp_path / "runs"


def test_runs_are_found_below_with_their_state_step_loss_and_what_differs(runs: Path) -> None:
    stopped, done = find_runs(runs)
    assert (done.name, done.state, done.step, done.steps, done.loss) == ("list/a", "finished", 100, 100, 0.25)
    assert (stopped.name, stopped.state, stopped.step, stopped.loss) == ("b c", "stopped", 50, 0.3)
    assert list(done.curve) == [(0.0, 0.5), (50.0, 0.3)]
    assert differing([stopped, done]) == ["optim.lr"]  # neither the word nor the folder of pictures
    with claimed(stopped.path):
        assert find_runs(runs)[0].state == "stopped"  # held by this very process
    head, rows = columns([stopped, done])
    assert head[-1] == "optim.lr" and [row[-1] for row in rows] == [0.02, 0.01]
    whole = replace(stopped, step=100)
    assert columns([whole])[1][0][3] == "100 of 100, last pictures missing"


def test_scores_of_evaluations_in_a_run_are_columns(runs: Path) -> None:
    folder = runs / "list" / "a" / "evaluation"
    folder.mkdir()
    score = {"cosine_of_means": 0.9}
    (folder / "result.json").write_text(json.dumps({"reconstruction": score, "editability": score}))
    head, rows = columns(find_runs(runs))
    assert head[6:8] == ["reconstruction", "editability"]
    assert [row[6] for row in rows] == [None, 0.9]


@pytest.mark.parametrize("broken", ["manifest.json", "config.yaml", "logs/csv/metrics.csv"])
def test_a_damaged_file_hides_no_run(runs: Path, broken: str) -> None:
    (runs / "b c" / broken).write_bytes(b"\xff{: [")
    assert {run.name for run in find_runs(runs)} == {"b c", "list/a"}


def test_the_page_stands_alone_and_links_reports_beside_it(runs: Path, tmp_path: Path) -> None:
    page = tmp_path / "pages" / "runs.html"
    assert len(write_runs(runs, page, refresh=5)) == 2
    text = page.read_text()
    assert "../runs/b%20c/report.html" in text and 'content="5"' in text
    assert "data:image/png;base64," in text and text.count("<svg") == 2
    assert "&lt;toy&gt;" in text and "<toy>" not in text and "http://" not in text


def test_the_command_prints_a_table_or_says_what_is_missing(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["runs", str(runs)]) == 0
    printed = capsys.readouterr().out
    assert "optim.lr" in printed and "stopped" in printed
    assert main(["runs", str(runs / "notes")]) == 0
    assert "no runs in" in capsys.readouterr().out
    assert main(["runs", str(runs / "none")]) == 2
    assert main(["runs", str(runs), "--html", str(runs)]) == 2
    assert capsys.readouterr().err.count("\n") == 2
    with pytest.raises(UserError, match="there is no folder"):
        find_runs(runs / "none")
