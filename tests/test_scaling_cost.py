"""The arithmetic of ``benchmarks/scaling_cost.py`` against closed forms, and the page that shows it."""

import importlib.util
import json
import re
import shlex
import sys
from pathlib import Path
from types import ModuleType

import pytest

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def scaling() -> ModuleType:
    spec = importlib.util.spec_from_file_location("scaling_cost", ROOT / "benchmarks/scaling_cost.py")
    assert spec is not None and spec.loader is not None
    module = sys.modules["scaling_cost"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def free_of_losses(scaling: ModuleType, **values: float) -> object:
    """A plan whose workers start at once and never die."""
    return scaling.Plan(**{"start": 0.0, "model_gb": 0.0, "death_hours": float("inf"), **values})


def test_tasks_that_fill_all_rounds_leave_nothing_idle(scaling: ModuleType) -> None:
    concept = scaling.Concept(0.5, 10, 1.0, 0, 0)  # 6 s
    plan = free_of_losses(scaling, concepts=80, task_size=5)
    cost = scaling.cost(concept, plan, 4)  # 16 tasks of 30 s in 4 rounds
    assert cost.wall == pytest.approx(120) and cost.gpu_hours == pytest.approx(480 / 3600)
    assert cost.idle == pytest.approx(0) and cost.deaths == 0


def test_a_last_round_of_one_task_idles_all_other_gpus(scaling: ModuleType) -> None:
    concept = scaling.Concept(1.0, 6, 0.0, 0, 0)
    plan = free_of_losses(scaling, concepts=85, task_size=5)  # 17 tasks
    cost = scaling.cost(concept, plan, 4)
    assert cost.wall == pytest.approx(150) and cost.idle == pytest.approx(1 - 85 * 6 / (4 * 150))


def test_many_workers_wait_for_the_storage_that_their_model_is_read_from(scaling: ModuleType) -> None:
    concept = scaling.Concept(1.0, 1, 0.0, 0, 0)
    plan = free_of_losses(scaling, concepts=512, task_size=1, start=60.0, model_gb=4.0, storage_gb_s=5.0)
    assert scaling.cost(concept, plan, 8).wall == pytest.approx(60 + 64)
    assert scaling.cost(concept, plan, 512).wall == pytest.approx(512 * 4 / 5 + 1)


def test_dead_workers_cost_half_a_task_and_a_start_each(scaling: ModuleType) -> None:
    concept = scaling.Concept(1.0, 3600, 0.0, 0, 0)  # an hour
    plan = free_of_losses(scaling, concepts=100, task_size=1, death_hours=10.0)
    cost = scaling.cost(concept, plan, 10)  # 100 GPU-hours, 10 deaths, 5 hours over 10 GPUs
    assert cost.deaths == pytest.approx(10) and cost.wall == pytest.approx(10.5 * 3600)


def test_what_is_furthest_beyond_its_limit_comes_first(scaling: ModuleType) -> None:
    concept = scaling.Concept(0.01, 100, 0.0, files=10, bytes=1e6)
    plan = scaling.Plan(concepts=1000, file_limit=5_000, storage_gb=100, entry_bytes=1e6, driver_gb=2)
    rows = scaling.limits(concept, plan, 8)
    shares = {what: need / limit for what, need, limit in rows}
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    assert shares["files (inodes) on the shared storage"] == 2.0
    assert shares["gigabytes of memory, where the list is read"] == 0.5
    assert shares["gigabytes on the shared storage"] == 0.01


def test_a_finished_run_gives_its_seconds_files_and_bytes(scaling: ModuleType, tmp_path: Path) -> None:
    rows = []
    for i, seconds in enumerate((10.0, 20.0, 60.0)):
        run = tmp_path / f"c{i}"
        (run / "images").mkdir(parents=True)
        (run / "images" / "a.png").write_bytes(bytes(300))
        times = {"started": f"2026-01-01T00:00:0{i}+00:00", "finished": f"2026-01-01T00:0{i}:00+00:00"}
        (run / "manifest.json").write_text(json.dumps(times))
        rows.append({"path": run.name, "seconds": seconds, "steps": 100})
    rows.append({"path": "failed", "seconds": 0.0, "steps": 0})
    (tmp_path / "concepts.json").write_text(json.dumps({"concepts": rows}))
    concept = scaling.measured(tmp_path)
    assert concept.seconds_per_concept_step == pytest.approx(0.2) and concept.steps == 100
    assert concept.overhead == pytest.approx((120 - 90) / 3)
    assert concept.files == 2 and concept.bytes == pytest.approx(300 + len(json.dumps(times)))


def test_memory_of_a_lists_entries_is_measured(scaling: ModuleType) -> None:
    assert 1_000 < scaling.entry_bytes() < 100_000


def test_the_pages_example_is_what_its_command_prints(
    scaling: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    page = (ROOT / "docs/scaling.md").read_text()
    found = re.search(r"<!-- example: (.*?) -->\n(.*?)\n<!-- end -->", page, re.DOTALL)
    assert found is not None
    scaling.main(shlex.split(found[1]))
    assert capsys.readouterr().out.strip() == found[2].strip()


def test_without_seconds_it_says_what_to_give(
    scaling: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit):
        scaling.main([])
    assert "--run" in capsys.readouterr().err
