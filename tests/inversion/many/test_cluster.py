"""Tasks on workers: every concept comes back once, whatever happens to the workers, with Ray or without."""

import sys
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pytest
from cluster_world import make_jobs, write_world

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.errors import UserError
from ldm.inversion.many import cluster, ray_workers
from ldm.inversion.many.cluster import HOPELESS, Task, hand_out, learn_on
from ldm.inversion.many.jobs import Job, Result
from ldm.io.embeddings import load_embedding

pytestmark = pytest.mark.slow

Learn = Callable[[Sequence[Job]], list[Result]]


def learned(jobs: Sequence[Job]) -> list[Result]:
    """Of a worker that has no work with it."""
    return [Result(job.name, job.config.placeholder, "learned", Path(job.name)) for job in jobs]


def outcomes(
    jobs: list[Job], size: int, learn: Learn, retries: int = 2, workers: int = 2
) -> dict[str, object]:
    """Name -> result, or what the concept failed by; every concept comes back exactly once."""
    tasks = [Task(tuple(jobs[i : i + size])) for i in range(0, len(jobs), size)]
    found: dict[str, object] = {}
    with ThreadPoolExecutor(workers) as pool:
        for task, outcome in hand_out(tasks, pool, learn, retries):
            again = [outcome] * len(task.jobs) if isinstance(outcome, BaseException) else outcome
            for job, result in zip(task.jobs, again, strict=True):
                assert job.name not in found
                found[job.name] = result
    assert found.keys() == {job.name for job in jobs}
    return found


# ------------------------------------------------------------------ handing out
def test_every_concept_comes_back_from_tasks_of_at_most_the_given_size() -> None:
    sizes = []

    def learn(jobs: Sequence[Job]) -> list[Result]:
        sizes.append(len(jobs))
        return learned(jobs)

    outcomes(make_jobs(10), 4, learn)
    assert sorted(sizes) == [2, 4, 4]


def test_a_task_that_fails_once_is_done_again_and_nothing_is_lost() -> None:
    failed, lock = set(), threading.Lock()

    def learn(jobs: Sequence[Job]) -> list[Result]:
        with lock:
            first = jobs[0].name not in failed
            failed.add(jobs[0].name)
        if first:
            raise ConnectionError("the worker went away")
        return learned(jobs)

    found = outcomes(make_jobs(9), 2, learn, retries=1)
    assert all(isinstance(result, Result) for result in found.values())


def test_a_concept_that_takes_its_worker_down_fails_alone() -> None:
    calls: list[tuple[str, ...]] = []

    def learn(jobs: Sequence[Job]) -> list[Result]:
        calls.append(tuple(job.name for job in jobs))
        if "c5" in calls[-1]:
            raise MemoryError("c5 is too much")
        return learned(jobs)

    found = outcomes(make_jobs(16), 8, learn, workers=1)
    assert {name for name, result in found.items() if not isinstance(result, Result)} == {"c5"}
    # three times the task of eight, then its halves until the concept is alone
    assert [len(names) for names in calls if "c5" in names] == [8, 8, 8, 4, 2, 1]


def test_workers_that_only_fail_are_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster, "IN_FLIGHT", 2)
    calls = []

    def learn(jobs: Sequence[Job]) -> list[Result]:
        calls.append(jobs)
        raise ModuleNotFoundError("No module named 'ldm'")

    with pytest.raises(UserError, match="ModuleNotFoundError: No module named 'ldm'"):
        outcomes(make_jobs(1000), 1, learn, workers=1)
    assert len(calls) <= HOPELESS + 2


def test_a_users_mistake_that_no_worker_can_mend_is_said_at_once() -> None:
    calls = []

    def learn(jobs: Sequence[Job]) -> list[Result]:
        calls.append(jobs)
        raise UserError("no such model")

    with pytest.raises(UserError, match="no such model"):
        outcomes(make_jobs(2), 2, learn)
    assert len(calls) == 1


def test_only_so_many_tasks_are_with_the_workers_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Executor):
        """Does a task when the next but two is handed in: what waits can be counted."""

        def __init__(self) -> None:
            self.pending: list[Future[list[Result]]] = []
            self.most = 0

        def submit(self, fn: Learn, /, jobs: Sequence[Job]) -> Future[list[Result]]:  # type: ignore[override]
            future: Future[list[Result]] = Future()
            self.pending.append(future)
            self.most = max(self.most, sum(not f.done() for f in self.pending))
            if len([f for f in self.pending if not f.done()]) == 3 or jobs[0].name == "c9":
                for other in self.pending:
                    if not other.done():
                        other.set_result([])
            return future

    monkeypatch.setattr(cluster, "IN_FLIGHT", 3)
    late = Late()
    tasks = [Task((job,)) for job in make_jobs(10)]
    assert len(list(hand_out(tasks, late, learned, 0))) == 10
    assert late.most == 3


# ------------------------------------------------------------------ learning
@pytest.fixture
def world(
    tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder to work in, with a model and pictures at relative paths."""
    write_world(tmp_path, tiny_model, tiny_config)
    monkeypatch.chdir(tmp_path)
    cluster._model.cache_clear()
    return tmp_path


def test_a_list_is_learned_by_tasks_and_resumed_without_learning_anything_twice(world: Path) -> None:
    jobs, out = make_jobs(5), Path("runs")
    with ThreadPoolExecutor(1) as workers:
        first = learn_on(workers, jobs[:3], out, task_size=2, progress=False)
        assert [(r.name, r.status, r.steps) for r in first] == [(f"c{i}", "learned", 3) for i in range(3)]
        written = load_embedding(out / "c0/embeddings.safetensors").vectors
        stamp = (out / "c0/embeddings.safetensors").stat().st_mtime_ns
        again = learn_on(workers, jobs, out, task_size=2, progress=False)
    assert [result.status for result in again] == ["kept"] * 3 + ["learned"] * 2
    assert (out / "c0/embeddings.safetensors").stat().st_mtime_ns == stamp
    assert cluster._model.cache_info().misses == 1  # the model was loaded once for all tasks
    # and a concept learns what it learns in another task, beside others
    with ThreadPoolExecutor(1) as workers:
        learn_on(workers, jobs[:1], Path("other"), task_size=1, progress=False)
    assert (load_embedding("other/c0/embeddings.safetensors").vectors - written).abs().max() < 1e-5


def test_a_concept_without_pictures_fails_by_name_and_stops_no_other(world: Path) -> None:
    jobs = make_jobs(3)
    jobs[1] = replace(jobs[1], config=replace(jobs[1].config, images=Path("nowhere")))
    with ThreadPoolExecutor(1) as workers:
        results = learn_on(workers, jobs, Path("runs"), task_size=3, progress=False)
    assert [result.status for result in results] == ["learned", "failed", "learned"]
    assert "nowhere" in (results[1].error or "")


def test_a_model_that_is_not_there_is_one_line(world: Path) -> None:
    jobs = [replace(job, config=replace(job.config, model="no-such-model")) for job in make_jobs(4)]
    with ThreadPoolExecutor(1) as workers, pytest.raises(UserError, match="no-such-model"):
        learn_on(workers, jobs, Path("runs"), task_size=2, progress=False)


def test_sizes_that_make_no_task_are_refused() -> None:
    with ThreadPoolExecutor(1) as workers, pytest.raises(UserError, match="0 concepts"):
        learn_on(workers, make_jobs(1), Path("runs"), task_size=0)


# ------------------------------------------------------------------ Ray
def test_without_ray_one_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match="pip install") as raised:
        ray_workers.RayWorkers("local")
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("address", ["127.0.0.1:1", "nonsense", "host:port"])
def test_an_address_where_nobody_listens_is_said_at_once(
    address: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", ModuleType("ray"))
    with pytest.raises(UserError, match="no Ray cluster"):
        ray_workers.RayWorkers(address)
