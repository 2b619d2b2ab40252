"""Lists on Ray: a cluster of two nodes on this machine, by the commands of docs/scaling.md."""

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import psutil
import pytest
import ray
import yaml
from cluster_world import CONFIG, make_jobs, write_world

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.config import to_plain
from ldm.errors import UserError
from ldm.inversion.many import cluster
from ldm.inversion.many.cluster import Task, hand_out, learn_on, learn_task
from ldm.inversion.many.jobs import Job, Result
from ldm.inversion.many.ray_workers import RayWorkers
from ldm.io.embeddings import load_embedding, load_embeddings

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[3]
RAY = (sys.executable, "-m", "ray.scripts.scripts")
#: a node's part of this machine: one worker, little memory, and no ports that another test's could have
SMALL = ("--num-cpus", "1", "--object-store-memory", "100000000", "--block")
NO_DASHBOARD = ("--include-dashboard", "false")


def documented() -> dict[str, list[str]]:
    """The commands of the page: the word that tells one -> its words, without the comment."""
    page = (ROOT / "docs/scaling.md").read_text()
    block = re.search(r"## A list on many workers: Ray\n+```bash\n(.*?)```", page, re.DOTALL)
    assert block
    lines = [line.partition("#")[0].split() for line in block[1].splitlines()]
    keys = {"export": "mode", "get-auth-token": "token", "--head": "head", "HEAD:6379": "join"}
    found = {keys[word]: line for line in lines for word in line if word in keys and "ldm" not in line}
    return found | {"learn": next(line for line in lines if "--address" in line and "ldm" in line)}


class Cluster:
    """Two nodes, each a process that ends with all of its children."""

    def __init__(self, home: Path) -> None:
        commands = documented()
        with socket.socket() as free:
            free.bind(("", 0))
            port = free.getsockname()[1]
        name, _, value = commands["mode"][1].partition("=")
        self.variables = {name: value, "HOME": str(home), "RAY_USAGE_STATS_ENABLED": "0"}
        self.head_address = f"{ray.util.get_node_ip_address()}:{port}"
        self.home, self.commands, self.nodes = home, commands, list[subprocess.Popen[bytes]]()
        subprocess.run([*RAY, *commands["token"][1:]], env=self.env, check=True, capture_output=True)
        self.logs = tempfile.mkdtemp(prefix="ray-")  # short: a socket's path has at most 107 characters
        self.start(*commands["head"][1:], "--port", str(port), "--temp-dir", self.logs, *NO_DASHBOARD)
        self.start(*self.with_head(commands["join"][1:]))

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, **self.variables, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}

    def with_head(self, words: Sequence[str]) -> list[str]:
        return [word.replace("HEAD:6379", self.head_address) for word in words]

    def start(self, *words: str) -> None:
        """One node more, when it has started."""
        log = self.home / f"node-{len(self.nodes)}.log"
        with log.open("wb") as stream:
            node = subprocess.Popen([*RAY, *words, *SMALL], env=self.env, stdout=stream, stderr=stream)
        self.nodes.append(node)
        while "Ray runtime started" not in log.read_text():
            assert node.poll() is None, log.read_text()
            time.sleep(0.1)

    def kill(self, number: int) -> None:
        """All processes of a node at once, as when its machine loses power."""
        node = psutil.Process(self.nodes[number].pid)
        for process in [*node.children(recursive=True), node]:
            process.kill()
        self.nodes[number].wait(30)

    def end(self) -> None:
        for number, node in enumerate(self.nodes):
            if node.poll() is None:
                self.kill(number)
        shutil.rmtree(self.logs, ignore_errors=True)


@pytest.fixture(scope="module")
def nodes(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    two = Cluster(tmp_path_factory.mktemp("home"))
    yield two
    two.end()


@pytest.fixture
def world(
    tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Path:
    """A folder to work in, with a model and pictures at relative paths."""
    write_world(tmp_path, tiny_model, tiny_config)
    monkeypatch.chdir(tmp_path)
    cluster._model.cache_clear()
    return tmp_path


class TestLocal:
    """A cluster of this process, which ends with it."""

    @pytest.fixture(scope="class")
    def workers(self, tmp_path_factory: pytest.TempPathFactory) -> Iterator[RayWorkers]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # where Ray leaves its token
            with RayWorkers("local") as workers:
                yield workers

    def test_ray_gives_back_results_and_the_functions_own_errors(self, workers: RayWorkers) -> None:
        def half(n: int) -> int:
            if n % 2:
                raise UserError(f"{n} is odd")
            return n // 2

        assert workers.submit(half, 6).result(60) == 3
        error = workers.submit(half, n=7).exception(60)
        assert type(error) is UserError and str(error) == "7 is odd"
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL  # Ray's own would exit with status 15

    def test_a_word_is_learned_although_its_worker_is_killed(self, world: Path, workers: RayWorkers) -> None:
        marks = world / "killed"
        marks.mkdir()

        def learn(jobs: Sequence[Job]) -> list[Result]:
            mark = marks / jobs[0].name
            if not mark.exists():  # after one of its two concepts is finished
                mark.touch()
                learn_task(jobs[:1], world, Path("runs"), "auto")
                os.kill(os.getpid(), signal.SIGKILL)
            return learn_task(jobs, world, Path("runs"), "auto")

        jobs = make_jobs(2)
        ((_, results),) = hand_out([Task(tuple(jobs))], workers, learn, 1)
        assert isinstance(results, list) and len(list(marks.iterdir())) == 1
        assert [(result.name, result.status) for result in results] == [("c0", "kept"), ("c1", "learned")]
        for job in jobs:
            assert load_embedding(world / "runs" / job.name / "embeddings.safetensors").K == 1

    def test_a_worker_that_dies_each_time_costs_its_concept_alone(self, workers: RayWorkers) -> None:
        def learn(jobs: Sequence[Job]) -> list[Result]:
            if any(job.name == "c2" for job in jobs):
                os.kill(os.getpid(), signal.SIGKILL)
            return [Result(job.name, job.config.placeholder, "learned", Path(job.name)) for job in jobs]

        # not ``learned``: a worker cannot import a test file, only what it is handed
        tasks = [Task(tuple(make_jobs(4)))]
        found = list(hand_out(tasks, workers, learn, 0))
        lost = [task.jobs for task, outcome in found if isinstance(outcome, BaseException)]
        assert [[job.name for job in jobs] for jobs in lost] == [["c2"]]


# ------------------------------------------------------------------ tokens
ASK = """
import sys
from ldm.errors import UserError
from ldm.inversion.many.ray_workers import RayWorkers
try:
    with RayWorkers(sys.argv[1]) as workers:
        print("joined", workers.submit(abs, -3).result(60))
except UserError as error:
    print("refused", error)
"""


@pytest.mark.parametrize(
    ("variables", "says"),
    [({}, "joined 3"), ({"HOME": "/nowhere"}, "takes another token than this one; copy ~/.ray/auth_token")],
)
def test_a_cluster_is_joined_with_its_token_alone(
    nodes: Cluster, variables: dict[str, str], says: str
) -> None:
    """In a process of its own each, for Ray itself begins to join."""
    words, env = [sys.executable, "-c", ASK, nodes.head_address], {**nodes.env, **variables}
    done = subprocess.run(words, env=env, capture_output=True, text=True)
    assert says in done.stdout and "no Ray cluster" not in done.stdout and done.stderr == ""


def refusal(
    nodes: Cluster,
    address: str,
    patch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    **variables: str,
) -> str:
    """Why ``RayWorkers(address)`` is refused with other variables; nothing else may be said."""
    for name, value in {**nodes.variables, **variables}.items():
        patch.setenv(name, value)
    with pytest.raises(UserError) as refused:
        RayWorkers(address)
    assert capfd.readouterr() == ("", "")
    return str(refused.value)


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({"RAY_AUTH_MODE": "disabled"}, "asks for a token: set RAY_AUTH_MODE=token; copy ~/.ray/auth_token"),
        ({"RAY_AUTH_TOKEN": "0" * 64}, "takes another token than this one; copy ~/.ray/auth_token"),
    ],
)
def test_a_cluster_that_asks_for_a_token_is_not_called_missing(
    nodes: Cluster, variables: dict[str, str], says: str, monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    told = refusal(nodes, nodes.head_address, monkeypatch, capfd, **variables)
    assert says in told and "no Ray cluster" not in told


def test_a_server_that_is_no_cluster_is_said_to_be_none(
    nodes: Cluster, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{other.getsockname()[1]}"
        told = refusal(nodes, address, monkeypatch, capfd)
    assert told.startswith(f"there is no Ray cluster at '{address}'")


# ------------------------------------------------------------------ a killed node
def test_the_documented_commands_learn_a_list_although_a_node_is_killed(nodes: Cluster, world: Path) -> None:
    """The node goes while it learns: all words are learned, and as without a cluster."""
    shared = {"model": "tiny", "images": "pictures", "init": "cat", "trainer": {"max_steps": 100}}
    defaults = {**to_plain(CONFIG), **shared}
    del defaults["placeholder"]
    names = [f"<{i}>" for i in range(4)]
    listed = {"defaults": defaults, "concepts": [{"name": name, "seed": i} for i, name in enumerate(names)]}
    (world / "list.yaml").write_text(yaml.safe_dump(listed))
    words = [word.replace("/shared/all", "all") for word in nodes.with_head(nodes.commands["learn"])]
    command = [sys.executable, "-m", "ldm.cli.main", *words[1:], "--task-size", "1"]
    learning = subprocess.Popen(
        command, env=nodes.env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    victim = psutil.Process(nodes.nodes[1].pid)
    while learning.poll() is None and not _begun(world / "all", victim):
        time.sleep(0.05)
    nodes.kill(1)
    out, err = learning.communicate(timeout=300)
    assert learning.returncode == 0, err
    assert "learned 4 of 4 concepts" in out
    assert not re.search("state-dump|raylet|Traceback", out + err), out + err
    assert "NodeDiedError" in err  # it was at work
    found = {word.placeholder: word for word in load_embeddings(world / "all/embeddings.safetensors")}
    assert list(found) == names
    jobs = [Job(f"c{i}", job.config) for i, job in enumerate(_jobs(world))]
    from concurrent.futures import ThreadPoolExecutor

    with ThreadPoolExecutor(1) as alone:
        learn_on(alone, jobs, world / "alone", task_size=4, progress=False)
    for i, name in enumerate(names):
        one = load_embedding(world / f"alone/c{i}/embeddings.safetensors")
        assert (one.vectors - found[name].vectors).abs().max() < 1e-5


def _jobs(world: Path) -> list[Job]:
    from ldm.inversion.many.concept_list import read_jobs

    return read_jobs(world / "list.yaml", {})


def _begun(out: Path, node: psutil.Process) -> bool:
    """Whether a worker of the node has a run folder open: it is in the middle of a concept."""
    if not out.is_dir():  # to look at all open files takes a while
        return False
    for process in node.children(recursive=True):
        try:
            if any(str(out) in opened.path for opened in process.open_files()):
                return True
        except psutil.Error:
            continue
    return False
