"""Kill commands, at every point of every write and at random moments, and go on from what is left.

    python tests/torture/kills.py --n 400

After each kill no file under its final name may be damaged; the same command then goes on (with ``--resume``
where it has one), must end well, leave no temporary file and the very result of a command that nobody killed.
"""

from __future__ import annotations

import csv
import os
import random
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness import (
    Command,
    Row,
    World,
    arguments,
    build_world,
    contents,
    damaged,
    finish,
    run,
    scratch,
    temporaries,
    timed,
)

from ldm.experiments.rows import TIMES
from ldm.io.atomic import is_temporary

#: of a write, where its process is killed: the file is half there, whole, or has its name
MOMENTS = ("half", "whole", "named")


@dataclass(frozen=True)
class Work:
    """A command, what is added to go on with it, and what must be as in a command that nobody killed."""

    name: str
    words: tuple[object, ...]
    again: tuple[object, ...]
    out: str
    results: tuple[str, ...]


def works(world: World) -> list[Work]:
    """What is killed; each writes to a folder of its own."""
    model = ("--model", world.model)
    word = ("--images", world.pictures, "--name", "<x>", "--init", "cat")
    sample = ("--embedding", world.word, "--prompt", "a {}", "--n", 3, "--steps", 2, "--batch-size", 1)
    stage = ("train", "autoencoder", "--base", world.stage)
    return [
        Work("single", ("invert", *model, *word, "--steps", 4, "--out", "run"), ("--resume",), "run",
             ("embeddings.safetensors", "images/final_000.png")),
        Work("pack", ("invert", "--concepts", world.concepts, "--steps", 4, "--pack", 2, "--out", "all"),
             ("--resume",), "all", ("*/embeddings.safetensors", "embeddings.safetensors")),
        Work("sample", ("sample", *model, *sample, "--out", "out"), (), "out", ("*.png",)),
        Work("convert", ("embeddings", "convert", world.word, "words/toy.pt", "--force"), (), "words",
             ("toy.pt",)),
        Work("stage", (*stage, "--out", "stage"), ("--resume",), "stage",
             ("images/*.png", "checkpoints/embeddings*")),
        Work("experiment", ("experiment", "run", world.experiment, "--out", "grid"), (), "grid",
             ("*.csv", "runs/*/embeddings.safetensors", "pictures/*/*.png", "scores/*/*.json")),
    ]  # fmt: skip


# ------------------------------------------------------------------ one kill
def at_point(number: int) -> Callable[[], None]:
    """Ends the process at the ``number``-th point of its writes (-1: never), as a power cut would."""
    seen = 0

    def install() -> None:
        real = os.replace

        def replace(source: str | Path, target: str | Path) -> None:
            nonlocal seen
            for moment in MOMENTS if is_temporary(Path(source)) else ():
                if seen == number:
                    if moment == "half":
                        os.truncate(source, os.path.getsize(source) // 2)
                    if moment == "named":
                        real(source, target)
                    os.kill(os.getpid(), signal.SIGKILL)
                seen += 1
            real(source, target)

        os.replace = replace  # type: ignore[assignment]

    return install


def results(work: Work, folder: Path) -> dict[str, str]:
    """Path -> hash of what must be the same; of a table, without the columns of times."""
    out = folder / work.out
    wanted = {path for pattern in work.results for path in out.glob(pattern)}
    found = {name: value for name, value in contents(out).items() if out / name in wanted}
    return {name: timeless(out / name) if name.endswith(".csv") else found[name] for name in found}


def timeless(table: Path) -> str:
    """A CSV table without the columns that no two runs share."""
    with open(table, newline="") as stream:
        return repr([[v for k, v in row.items() if k not in TIMES] for row in csv.DictReader(stream)])


def go_on(work: Work, folder: Path, expected: dict[str, str], row: Row, what: str) -> None:
    """Look at what a kill left, go on, and note what is lost."""
    row.times += 1
    broken = damaged(folder)
    done = run([*work.words, *work.again], folder)
    left = temporaries(folder)
    found = results(work, folder)
    differ = [name for name in expected if found.get(name) != expected[name]]
    if broken:
        row.lost.append(f"{what}: damaged {broken}")
    elif done.status or done.traceback:
        row.lost.append(f"{what}: going on ended with {done.status}: {done.err.strip()[-400:]}")
    elif differ:
        row.lost.append(f"{what}: other results: {', '.join(differ)}")
    elif left:
        row.lost.append(f"{what}: temporary files stay: {', '.join(map(str, left))}")


# ------------------------------------------------------------------ many
def reference(work: Work, folder: Path) -> tuple[dict[str, str], float, int]:
    """Of a command that nobody kills: results, seconds, and how many points its writes have."""
    folder.mkdir()
    tally = folder / "tally"
    tally.touch()

    def install() -> None:
        real = os.replace

        def replace(source: str | Path, target: str | Path) -> None:
            if is_temporary(Path(source)):
                with open(tally, "ab") as handle:
                    handle.write(b"x")
            real(source, target)

        os.replace = replace  # type: ignore[assignment]

    started = time.monotonic()
    done = run(work.words, folder, install)
    assert done.status == 0, done.err
    return results(work, folder), time.monotonic() - started, len(MOMENTS) * tally.stat().st_size


def kill_at_points(work: Work, folder: Path, n: int | None, rng: random.Random) -> Row:
    """At every point of every write, or at ``n`` of them."""
    with timed(Row(f"{work.name}: killed at the points of its writes")) as row:
        expected, _, of = reference(work, folder / "reference")
        row.what += f" ({of} points)"
        for point in range(of) if n is None or n >= of else sorted(rng.sample(range(of), n)):
            place = folder / "killed"
            place.mkdir()
            done = run(work.words, place, at_point(point))
            assert done.status == -signal.SIGKILL, (point, done)
            go_on(work, place, expected, row, f"point {point} ({MOMENTS[point % 3]})")
            shutil.rmtree(place)
    return row


def kill_at_random(work: Work, folder: Path, n: int, rng: random.Random) -> Row:
    """``n`` times, at random moments of its time, and every second time once more while it goes on."""
    with timed(Row(f"{work.name}: killed at random moments")) as row:
        expected, seconds, _ = reference(work, folder / "reference")
        for number in range(n):
            place = folder / "killed"
            place.mkdir()
            kills = 0
            for words in (work.words, [*work.words, *work.again])[: 1 + number % 2]:
                command = Command(words, place)
                time.sleep(rng.uniform(0, seconds))
                command.send(signal.SIGKILL)
                kills += command.wait().status == -signal.SIGKILL
            row.note("killed twice" if kills == 2 else "killed once" if kills else "had ended")
            again = work if (place / work.out).exists() else Work(work.name, work.words, (), *_rest(work))
            go_on(again, place, expected, row, f"kill {number}")
            shutil.rmtree(place)
    return row


def _rest(work: Work) -> tuple[str, tuple[str, ...]]:
    return work.out, work.results


def main() -> int:
    parser = arguments(__doc__.splitlines()[0], 400)
    parser.add_argument("--only", help="one of: single, pack, sample, convert, stage, experiment")
    parser.add_argument("--points", type=int, help="at most so many points of each (default: all)")
    args = parser.parse_args()
    rng, rows = random.Random(args.seed), []
    with scratch() as folder:
        world = build_world(folder / "world")
        chosen = [work for work in works(world) if args.only in (None, work.name)]
        for number, work in enumerate(chosen):
            (folder / f"points {number}").mkdir()
            rows.append(kill_at_points(work, folder / f"points {number}", args.points, rng))
        left = max(0, args.n - sum(row.times for row in rows))
        for number, work in enumerate(chosen):
            (folder / f"random {number}").mkdir()
            share = -(-left // len(chosen))
            rows.append(kill_at_random(work, folder / f"random {number}", share, rng))
    lost = sum(len(row.lost) for row in rows)
    print(f"{sum(row.times for row in rows)} kills, {lost} of them lost something")
    return finish(rows)


if __name__ == "__main__":
    raise SystemExit(main())
