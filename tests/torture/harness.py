"""What the torture scripts share: a tiny world, commands in processes that can be killed, one summary row.

A command runs in a child that was forked from a process that has the libraries loaded, so that hundreds of
them take minutes. Every script prints rows of the table in ``docs/reliability.md``.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
import traceback
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "helpers"))  # `tiny`, outside pytest

import open_clip  # noqa: E402, F401  # of the judge
import tiny  # noqa: E402
import torch  # noqa: E402
import yaml  # noqa: E402
from PIL import Image  # noqa: E402
from safetensors import safe_open  # noqa: E402

import ldm.experiments.runner  # noqa: E402, F401
import ldm.inversion.report  # noqa: E402, F401
from ldm.cli.main import main as ldm_main  # noqa: E402
from ldm.config import dump_yaml, to_plain  # noqa: E402


# ------------------------------------------------------------------ the world
@dataclass(frozen=True)
class World:
    """A folder with a tiny model, pictures, a learned word, a list of concepts, an experiment of 18 cells and
    two stages' settings."""

    path: Path

    @property
    def model(self) -> Path:
        return self.path / "tiny"

    @property
    def pictures(self) -> Path:
        return self.path / "pictures"

    @property
    def word(self) -> Path:
        return self.path / "toy.safetensors"

    @property
    def concepts(self) -> Path:
        return self.path / "concepts.yaml"

    @property
    def experiment(self) -> Path:
        return self.path / "experiment.yaml"

    @property
    def stage(self) -> Path:
        return self.path / "configs" / "autoencoder.yaml"


def build_world(path: Path) -> World:
    """Write everything; takes a second."""
    path.mkdir(parents=True, exist_ok=True)
    described = tiny.config(tiny.write_vocabulary(path / "vocab.txt"))
    model, world = tiny.model(described), World(path)
    tiny.write_model(world.model, model, described)
    tiny.write_pictures(world.pictures)
    tiny.write_word(world.word, model)
    entries = [
        {"name": f"<{name}>", "images": str(world.pictures), "init": "cat", "seed": seed}
        for seed, name in enumerate(("one", "two", "three"))
    ]
    world.concepts.write_text(dump_yaml({"defaults": {"model": str(world.model)}, "concepts": entries}))
    grid = {
        "concepts": {
            name: {"images": str(world.pictures), "init": name, "train_pictures": 2}
            for name in ("cat", "dog", "tree")
        },
        "setups": {"plain": {}, "two": {"num_vectors": 2}, "layers": {"per_layer": True}},
        "seeds": [0, 1],
    }
    score = {"samples": 1, "steps": 2, "prompts": ["a {} on beach"]}
    described_grid = {
        "base": {"model": str(world.model), "steps": 4},
        "grid": grid,
        "score": score,
        "pack": 9,
    }
    world.experiment.write_text(dump_yaml(described_grid))
    stage = {
        "autoencoder": to_plain(described)["autoencoder"],
        "data": {
            "target": "ldm.pretraining.sources.FolderPictures",
            "params": {"root": str(path / "captioned"), "image_size": 16},
        },
        "trainer": {"max_steps": 4, "accelerator": "cpu", "checkpoint_every": 2, "image_every": 2},
        "logging": {"loggers": ["csv"]},
        "batch_size": 2,
    }
    tiny.write_pictures(path / "captioned")
    for picture in (path / "captioned").glob("*.png"):
        picture.with_suffix(".txt").write_text("a toy")
    world.stage.parent.mkdir()
    world.stage.write_text(dump_yaml(stage))
    return world


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder that goes at the end."""
    folder = Path(tempfile.mkdtemp(prefix="ldm-torture-"))
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# ------------------------------------------------------------------ commands
@dataclass(frozen=True)
class Done:
    """A command that has ended. ``status`` is below 0 if a signal ended it: -9 is a kill."""

    status: int
    out: str
    err: str

    @property
    def traceback(self) -> bool:
        return "Traceback (most recent call last)" in self.err

    @property
    def in_one_line(self) -> bool:
        """Whether it ended well, or with an error in one line that no traceback goes with."""
        return not self.traceback and (self.status == 0 or "ldm: error: " in self.err)


class Command:
    """``ldm WORDS`` in a forked child; ``before`` runs in the child first."""

    def __init__(self, words: Sequence[object], cwd: Path, before: Callable[[], None] | None = None) -> None:
        self.words = [str(word) for word in words]
        self._folder = Path(tempfile.mkdtemp(prefix="ldm-torture-out-"))
        sys.stdout.flush()
        sys.stderr.flush()
        self.pid = os.fork()
        if self.pid == 0:
            self._child(cwd, before)

    def _child(self, cwd: Path, before: Callable[[], None] | None) -> None:
        status = 1
        try:
            os.setpgid(0, 0)
            for descriptor, name in ((1, "out"), (2, "err")):
                target = os.open(self._folder / name, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(target, descriptor)
            sys.stdout = open(1, "w", closefd=False)
            sys.stderr = open(2, "w", closefd=False)
            os.chdir(cwd)
            signal.signal(signal.SIGINT, signal.default_int_handler)
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            torch.set_num_threads(1)
            if before is not None:
                before()
            status = ldm_main(self.words)
        except SystemExit as stop:
            status = stop.code if isinstance(stop.code, int) else int(stop.code is not None)
        except BaseException:
            traceback.print_exc(file=sys.stderr)
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    def send(self, number: signal.Signals) -> None:
        """A signal, if it has not ended yet."""
        try:
            os.kill(self.pid, number)
        except ProcessLookupError:
            pass

    def wait(self, limit: float = 600.0) -> Done:
        """Until it has ended.

        Raises:
            TimeoutError: after ``limit`` seconds; it is killed then.
        """
        end, late = time.monotonic() + limit, False
        while True:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                break
            if time.monotonic() > end and not late:
                late = True
                os.kill(self.pid, signal.SIGKILL)
            time.sleep(0.005)
        texts = [
            path.read_text(errors="replace") if (path := self._folder / name).exists() else ""
            for name in ("out", "err")
        ]
        shutil.rmtree(self._folder, ignore_errors=True)
        if late:
            raise TimeoutError(f"{shlex.join(self.words)} took over {limit} s: {texts[1][-500:]}")
        return Done(os.waitstatus_to_exitcode(status), *texts)


def run(words: Sequence[object], cwd: Path, before: Callable[[], None] | None = None) -> Done:
    """A command from beginning to end."""
    return Command(words, cwd, before).wait()


# ------------------------------------------------------------------ what it left
def contents(folder: Path) -> dict[str, str]:
    """Relative path -> sha256 of every file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def temporaries(folder: Path) -> list[Path]:
    """Files that a killed write left behind."""
    return [path for path in folder.rglob(".*") if ".tmp" in path.name]


def damaged(folder: Path) -> list[str]:
    """Files under their final name that do not read back."""
    bad = []
    for path in sorted(folder.rglob("*")):
        if path.is_file() and not path.name.startswith("."):
            try:
                _read(path)
            except Exception as error:
                bad.append(f"{path}: {type(error).__name__}: {error}")
    return bad


def _read(path: Path) -> None:
    match path.suffix:
        case ".safetensors":
            with safe_open(str(path), framework="pt") as handle:
                for name in handle.keys():  # noqa: SIM118
                    handle.get_tensor(name)
        case ".ckpt" | ".pt":
            with zipfile.ZipFile(path) as archive:
                assert archive.testzip() is None
        case ".png":
            with Image.open(path) as picture:
                picture.load()
        case ".json":
            json.loads(path.read_text("utf-8"))
        case ".yaml":
            assert yaml.safe_load(path.read_text("utf-8")) is not None
        case ".html":
            assert path.read_text("utf-8").rstrip().endswith("</html>")


# ------------------------------------------------------------------ the row
@dataclass
class Row:
    """One line of the table: what was done, how many times, what was lost, by which command."""

    what: str
    times: int = 0
    lost: list[str] = field(default_factory=list)
    seconds: float = 0.0
    notes: dict[str, int] = field(default_factory=dict)

    def note(self, name: str) -> None:
        """Count something that is worth telling."""
        self.notes[name] = self.notes.get(name, 0) + 1

    def show(self) -> None:
        """Print it as a row of Markdown, and what was lost below."""
        lost = f"{len(self.lost)}: see below" if self.lost else "nothing"
        notes = "".join(f", {count} {name}" for name, count in self.notes.items())
        command = shlex.join(["python", *(os.path.relpath(sys.argv[0]), *sys.argv[1:])])
        print(f"| {self.what} | {self.times}{notes} | {lost} | `{command}` | {self.seconds:.0f} s |")
        for line in self.lost:
            print(f"    {line}")
        sys.stdout.flush()


@contextmanager
def timed(row: Row) -> Iterator[Row]:
    """Take the time, and print the row at the end."""
    started = time.monotonic()
    try:
        yield row
    finally:
        row.seconds = time.monotonic() - started
        row.show()


def arguments(description: str, n: int) -> argparse.ArgumentParser:
    """The options that all scripts have: how many times, and the seed of what is drawn."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--n", type=int, default=n, help=f"how many times (default: {n})")
    parser.add_argument("--seed", type=int, default=0, help="of whatever is random (default: 0)")
    torch.set_num_threads(1)
    return parser


def finish(rows: Sequence[Row]) -> int:
    """The exit status: 1 if anything was lost."""
    return int(any(row.lost for row in rows))
