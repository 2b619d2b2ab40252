"""W&B's sweep files, read and run without W&B."""

import csv
from pathlib import Path

import pytest
import yaml
from PIL import Image

from ldm.cli.main import main
from ldm.errors import UserError
from ldm.experiments import sweep

ROOT = Path(__file__).parents[2]


def written(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "sweep.yaml"
    path.write_text(text)
    return path


def test_a_grid_has_every_combination_with_nested_and_dotted_names(tmp_path: Path) -> None:
    text = """
    method: grid
    parameters:
      seed: {value: 3}
      num_vectors: {min: 1, max: 2}
      optim: {parameters: {lr: {values: [0.1, 0.2]}}}
    """
    rows = sweep.read(written(tmp_path, text)).combinations()
    assert rows == [{"seed": 3, "num_vectors": k, "optim.lr": lr} for k in (1, 2) for lr in (0.1, 0.2)]


def test_random_values_are_of_their_distribution_and_the_same_for_a_seed(tmp_path: Path) -> None:
    text = """
    method: random
    run_cap: 200
    parameters:
      a: {min: 1, max: 3}
      b: {min: 0.0, max: 1.0}
      c: {distribution: log_uniform_values, min: 0.001, max: 0.1}
      d: {distribution: q_uniform, min: 0, max: 10, q: 5}
      e: {values: [x, y], probabilities: [1, 0]}
      f: {distribution: normal, mu: 2.0, sigma: 0.1}
    """
    found = sweep.read(written(tmp_path, text))
    rows = found.combinations(seed=1)
    assert rows == found.combinations(seed=1) != found.combinations(seed=2) and len(rows) == 200
    assert {row["a"] for row in rows} == {1, 2, 3} and {row["d"] for row in rows} == {0, 5, 10}
    assert all(0 <= row["b"] <= 1 and 0.001 <= row["c"] <= 0.1 and row["e"] == "x" for row in rows)
    assert 80 < sum(row["c"] < 0.01 for row in rows) < 120  # as many in each decade
    assert 1.9 < sum(row["f"] for row in rows) / 200 < 2.1


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("method: bayes\nparameters: {seed: {value: 1}}", "bayes needs W&B's server"),
        ("method: grid\nparameters: {lr: {min: 0.1, max: 0.2}}", "a grid needs the values of lr"),
        ("method: grid\nparameters: {lr: 3}", "give value, values, or min and max"),
        ("method: grid", "parameters is empty|parameters is None"),
        ("method: random\nparameters: {lr: {min: a, max: b}}", "as numbers"),
        ("method: random\nparameters: {lr: {distribution: beta, min: 1, max: 2}}", "unknown; use one of"),
        ("methd: grid", "did you mean 'method'"),
        ("method: grid\nearly_terminate: {}\nparameters: {seed: {value: 1}}", "stop.patience"),
    ],
)
def test_what_cannot_be_run_here_is_one_line(tmp_path: Path, text: str, says: str) -> None:
    with pytest.raises(UserError, match=says) as raised:
        sweep.read(written(tmp_path, text)).combinations()
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("path", sorted((ROOT / "configs" / "sweeps").glob("*.yaml")), ids=lambda p: p.stem)
def test_the_shipped_sweeps_have_settings_that_inversions_take(path: Path) -> None:
    own = {"images": "", "placeholder": "<a>"}
    jobs = sweep.jobs(sweep.read(path), [own])
    assert len(jobs) > 1 and len({job.name for job in jobs}) == len(jobs)
    assert {job.config.logging.group for job in jobs} == {path.stem}
    assert "${args_no_hyphens}" in yaml.safe_load(path.read_text())["command"]


def test_a_file_cannot_name_code_as_a_logger(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = "method: grid\nparameters: {logging.loggers: {value: [antigravity.Logger]}}"
    Image.new("RGB", (16, 16)).save(tmp_path / "0.png")
    command = ["sweep", str(written(tmp_path, text)), "--images", str(tmp_path), "--name", "<a>"]
    assert main([*command, "--out", str(tmp_path / "out")]) == 2
    assert "a file cannot name code to run" in capsys.readouterr().err


@pytest.mark.slow
def test_a_sweep_is_learned_once_and_printed_by_its_metric(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "pictures").mkdir()
    Image.new("RGB", (64, 64), "red").save(tmp_path / "pictures" / "0.png")
    text = "name: rates\nmethod: grid\nparameters: {optim.lr: {values: [0.001, 0.1]}}"
    command = ["sweep", str(written(tmp_path, text)), "--images", str(tmp_path / "pictures"), "--name", "<a>"]
    command += ["--out", str(tmp_path / "out"), "--set", "steps=2", "stop.monitor_every=1", "batch_size=1"]
    command += ["show.samples_per_prompt=0", "trainer.image_every=0", "logging.loggers=[csv]"]
    assert main([*command, "--dry-run"]) == 0 and "optim.lr=0.1" in capsys.readouterr().out
    assert main(command) == 0
    rows = list(csv.DictReader((tmp_path / "out" / sweep.TABLE).open()))
    assert {row["optim.lr"] for row in rows} == {"0.001", "0.1"} and all(row["steps"] == "2" for row in rows)
    losses = [float(row["fixed_loss"]) for row in rows]
    assert losses == sorted(losses)
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "out").rglob("embeddings.safetensors")}
    assert main(command) == 0 and len(before) == 2
    assert before == {p: p.stat().st_mtime_ns for p in before}
