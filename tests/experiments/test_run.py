"""A whole experiment on a tiny model by the command line: run, resumed, compared, shown, judged again."""

import csv
import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldm.cli.main import main
from ldm.config import dump_yaml, load_yaml, merge
from ldm.experiments.rows import TIMES

CLI = Callable[..., tuple[int, str, str]]
COLUMNS = {
    "cell", "concept", "setup", "seed", "commit", "machine", "threads", "seconds", "steps", "pictures_seen",
    "peak_memory_mb", "scorer", "metric", "n", "figure", "weights", "difference",
}  # fmt: skip


def rows(path: Path, times: bool = False) -> list[dict[str, str]]:
    with open(path, newline="") as stream:
        return [
            {key: value for key, value in row.items() if times or key not in TIMES}
            for row in csv.DictReader(stream)
        ]


def test_every_cell_has_its_rows(done: Any) -> None:
    found = rows(done.out / "cells.csv", times=True)
    assert set(found[0]) >= COLUMNS
    assert len({row["cell"] for row in found}) == 18
    one = [row for row in found if (row["concept"], row["setup"], row["seed"]) == ("one", "two", "1")]
    assert {row["metric"] for row in one} == {
        "reconstruction (paper)", "reconstruction (official evaluator)", "editability (paper)",
        "editability (official evaluator)", "retrieval (first)", "retrieval (mAP)", "backgrounds obeyed",
    }  # fmt: skip
    assert {row["steps"] for row in one} == {"2"} and {row["pictures_seen"] for row in one} == {"4"}
    assert all(float(row["peak_memory_mb"]) > 10 for row in one)
    assert {row["references"] for row in one if row["metric"].startswith("reconstruction")} == {"held out"}
    table = rows(done.out / "table.csv")
    plain = next(row for row in table if row["setup"] == "plain")
    own = [r for r in found if r["setup"] == "plain" and r["metric"] == plain["metric"]]
    assert float(plain["figure"]) == pytest.approx(sum(float(row["figure"]) for row in own) / 6)
    assert float(plain["low"]) <= float(plain["figure"]) <= float(plain["high"])


def test_the_same_command_again_does_nothing_and_ends_the_same(done: Any, cli: CLI) -> None:
    before = rows(done.out / "cells.csv")
    pictures = {path: path.stat().st_mtime_ns for path in (done.out / "pictures").rglob("*.png")}
    assert cli("run", done.file, "--out", done.out)[0] == 0
    assert rows(done.out / "cells.csv") == before
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures


def test_status_and_a_dry_run_say_where_it_stands(done: Any, cli: CLI) -> None:
    assert "18 cells" in (out := cli("status", done.file, "--out", done.out)[1])
    assert "18 finished, 0 begun, 0 waiting, 0 failed" in out
    assert "0 of 18 cells would be worked on" in cli("run", done.file, "--out", done.out, "--dry-run")[1]


def test_the_table_is_printed_with_its_verdicts(done: Any, cli: CLI) -> None:
    status, out, _ = cli("table", done.file, "--out", done.out)
    assert status == 0 and "reconstruction (paper), emoji-clip, against held out, 3 concepts" in out
    assert "reconstruction (paper): layers > plain" in out
    status, out, err = cli("table", done.file, "--out", done.out, "--set", "score.samples=9")
    assert status == 0 and "the file has changed since" in err


def test_the_report_is_one_page_that_needs_nothing_else(done: Any, cli: CLI) -> None:
    assert cli("report", done.file, "--out", done.out)[0] == 0
    page = (done.out / "report.html").read_text()
    assert page.rstrip().endswith("</html>") and "http" not in page
    assert page.count('href="#setup-') == 6 and page.count('id="setup-') == 3
    assert page.count("data:image/jpeg") == 9  # a strip for each concept of each setup
    assert "Expected orders" in page and 'src="data:' in page


def test_kept_pictures_are_judged_by_another_scorer_without_drawing(
    done: Any, cli: CLI, tiny_clip: Path
) -> None:
    pictures = {path: path.stat().st_mtime_ns for path in (done.out / "pictures").rglob("*.png")}
    name = f"clip:tiny-ours/{tiny_clip}"
    status, out, _ = cli("score", done.file, "--out", done.out, "--scorer", name)
    assert status == 0 and "18 cells scored" in out
    assert {path: path.stat().st_mtime_ns for path in pictures} == pictures
    scorers = {row["scorer"] for row in rows(done.out / "table.csv")}
    assert scorers == {"emoji-clip", "border pixels", name}
    (done.out / "scorers.json").unlink()
    assert cli("score", done.file, "--out", done.out)[0] == 2


def test_pictures_are_exported_for_the_judge_of_dreambench_plus(done: Any, cli: CLI, tmp_path: Path) -> None:
    assert cli("export", done.file, "--out", done.out, "--to", tmp_path)[0] == 0
    for folder, suffix in (("src_image", ".jpg"), ("text", ".txt"), ("tgt_image", ".jpg")):
        found = sorted((tmp_path / "two" / folder).rglob("*.*"))
        assert [path.relative_to(tmp_path / "two" / folder).as_posix() for path in found] == [
            f"{concept}/0_0{suffix}" for concept in ("one", "three", "two")
        ]
    assert (tmp_path / "two" / "text" / "one" / "0_0.txt").read_text() == "a cat on beach\n"
    with Image.open(tmp_path / "two" / "tgt_image" / "one" / "0_0.jpg") as picture:
        assert picture.size == (16, 16)


def test_a_cell_that_fails_is_listed_and_stops_no_other(world: Any, cli: CLI) -> None:
    file, out = world.experiment(grid={"seeds": [0]}, score={"backgrounds": False}), world.path / "out"
    values = file.read_text()
    file.write_text(values.replace("num_vectors: 2", "optim: {lr: 1.0e+30}"))
    status, _, err = cli("run", file, "--out", out)
    assert status == 2 and "cells failed, the first being one/two/0" in err and "not finite" in err
    told = cli("status", file, "--out", out)[1]
    assert "failed    one/two/0: " in told and "Traceback" not in err
    assert {row["setup"] for row in rows(out / "cells.csv")} == {"plain", "layers"}
    record = next(path for path in (out / "cells").iterdir() if "_two_0" in path.name)
    assert "not finite" in json.loads(record.read_text())["error"]


def test_only_some_cells_and_then_the_rest(world: Any, cli: CLI) -> None:
    file, out = world.experiment(pack=2, score={"backgrounds": False}), world.path / "out"
    base = ("run", file, "--preset", "one", "--out", out)
    assert cli(*base, "--only", "one/*/0")[0] == 0
    assert "3 finished, 0 begun, 6 waiting" in cli("status", file, "--preset", "one", "--out", out)[1]
    assert "fits no cell; cells are called like one/plain/0" in cli(*base, "--only", "none/*")[2]
    assert cli(*base)[0] == 0
    assert "9 finished" in cli("status", file, "--preset", "one", "--out", out)[1]


@pytest.fixture(scope="module")
def alone(done: Any, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The YAML of nine cells in two packs, and the folder in which this process has run them."""
    folder = tmp_path_factory.mktemp("alone")
    values = merge(load_yaml([done.file]), {"pack": 5, "score": {"backgrounds": False}})
    (folder / "nine.yaml").write_text(dump_yaml(values))
    words = ["run", folder / "nine.yaml", "--preset", "one", "--out", folder / "out"]
    assert main(["experiment", *map(str, words)]) == 0
    return folder / "nine.yaml", folder / "out"


def same_table(one: Path, other: Path) -> bool:
    own = {"threads": "", "commit": ""}  # of the process, which may see another checkout
    found = [[{**row, **own} for row in rows(out / "cells.csv")] for out in (one, other)]
    return len(found[0]) > 0 and found[0] == found[1]


@pytest.mark.slow
def test_worker_processes_give_the_same_table(alone: tuple[Path, Path], cli: CLI, tmp_path: Path) -> None:
    file, here = alone
    assert cli("run", file, "--preset", "one", "--out", tmp_path / "beside", "--workers", 2)[0] == 0
    assert same_table(here, tmp_path / "beside")


@pytest.mark.slow
def test_ray_gives_the_same_table(alone: tuple[Path, Path], tmp_path: Path) -> None:
    """In a process of its own: Ray starts a second cluster in one process badly; other tests start theirs."""
    pytest.importorskip("ray")
    file, here = alone
    words = ["experiment", "run", file, "--preset", "one", "--out", tmp_path / "beside", "--address", "local"]
    done = subprocess.run([sys.executable, "-m", "ldm", *map(str, words)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert same_table(here, tmp_path / "beside")


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("run", "nowhere.yaml"), "nowhere.yaml"),
        (("table", "FILE"), "holds no experiment yet"),
        (("run", "FILE", "--workers", 0), "--workers is 0"),
        (("run", "FILE", "--set", "score.scorers=[nobody]"), "no scorer named nobody"),
    ],
)
def test_errors_are_one_line(world: Any, cli: CLI, words: tuple[object, ...], told: str) -> None:
    file = world.experiment()
    out = world.path / "none"
    status, _, err = cli(*(file if word == "FILE" else word for word in words), "--out", out)
    assert status == 2 and told in err and len(err.strip().splitlines()) == 1
    assert not out.exists()
