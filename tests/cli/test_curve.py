"""``ldm evaluate curve RUN``: all saved embeddings scored, the best one kept, nothing drawn twice."""

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from ldm.io.embeddings import load_embedding


@pytest.mark.parametrize("held_out", [False, True])
def test_every_saved_step_is_scored_and_the_best_one_kept(
    cli: Callable[..., Any], model_folder: Path, pictures: Path, held_out: bool
) -> None:
    word = ("--images", pictures, "--name", "<x>", "--init", "cat", "--steps", 6, "--out", "run")
    more = ("--train-pictures", 2) if held_out else ()
    assert cli("invert", "--model", model_folder, *word, *more).code == 0
    done = cli("evaluate", "curve", "run", "--n", 2)
    assert done.code == 0, done.err
    run = Path("run")
    with open(run / "curve" / "table.csv", newline="") as stream:
        found = list(csv.DictReader(stream))
    assert [row["step"] for row in found] == ["2", "4", "6"]
    (best,) = [row["step"] for row in found if row["mark"] == "best"]
    kept = load_embedding(run / "best.safetensors")
    assert kept.metadata["step"] == best
    assert kept.vectors.equal(
        load_embedding(run / "checkpoints" / f"embeddings_gs-{best}.safetensors").vectors
    )
    page = (run / "curve" / "report.html").read_text()
    assert page.count("<polyline") == 3 and f"({'held out' if held_out else 'training pictures'})" in page
    before = {path: path.stat().st_mtime_ns for path in (run / "curve").glob("samples_*.png")}
    assert len(before) == 3 and cli("evaluate", "curve", "run", "--n", 2).code == 0
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("curve",), "a RUN belongs to ldm evaluate curve"),
        (("base", "run"), "a RUN belongs to ldm evaluate curve"),
        (("curve", "nowhere"), "there is no run in nowhere"),
    ],
)
def test_errors_are_one_line(cli: Callable[..., Any], words: tuple[str, ...], told: str) -> None:
    done = cli("evaluate", *words)
    assert done.code == 2 and told in done.err and len(done.err.strip().splitlines()) == 1
    assert not Path("nowhere").exists()


@pytest.mark.slow
@pytest.mark.parametrize("packed", [False, True])
def test_a_run_scores_itself_as_the_command_does_afterwards(
    cli: Callable[..., Any], model_folder: Path, pictures: Path, packed: bool
) -> None:
    more = ("--set", "stop.score_every=2", "show.samples_per_prompt=0", "trainer.image_every=0")
    if packed:
        entries = "".join(f"- {{name: <{word}>, images: {pictures}, init: cat}}\n" for word in "xy")
        Path("list.yaml").write_text(f"concepts:\n{entries}")
        words = ("--concepts", "list.yaml", "--out", "all")
    else:
        words = ("--images", pictures, "--name", "<x>", "--init", "cat", "--out", "run")
    done = cli("invert", "--model", model_folder, "--steps", 4, *words, *more)
    assert done.code == 0, done.err
    run = Path("all/x") if packed else Path("run")
    with open(run / "curve" / "table.csv", newline="") as stream:
        own = list(csv.DictReader(stream))
    assert [row["step"] for row in own] == ["0", "2", "4"]
    (best,) = [row["step"] for row in own if row["mark"] == "best"]
    assert load_embedding(run / "best.safetensors").metadata["step"] == best
    with open(run / "logs" / "csv" / "metrics.csv", newline="") as stream:
        logged = [row.get("score/reconstruction") for row in csv.DictReader(stream)]
    assert any(logged)
    assert cli("evaluate", "curve", run).code == 0  # the same again, without drawing anew
    with open(run / "curve" / "table.csv", newline="") as stream:
        assert list(csv.DictReader(stream)) == own


def test_a_tuned_model_has_no_best_word(cli: Callable[..., Any], model_folder: Path, pictures: Path) -> None:
    done = cli(
        "invert", "--model", model_folder, "--images", pictures, "--name", "<x>",
        "--set", "stop.score_every=2", "model_lr=1e-6",
    )  # fmt: skip
    assert done.code == 2 and "use one of them" in done.err
