"""Two commands on one folder, at once or one after the other began.

    python tests/torture/pairs.py --n 100

One of them must end as if it were alone, and the other must either be refused in one line, having changed
nothing, or come after it. Commands without ``--out`` get folders of their own, and both end well.
"""

from __future__ import annotations

import random
import shutil
import time
from pathlib import Path

from harness import Command, Done, Row, World, arguments, build_world, damaged, finish, run, scratch, timed
from kills import Work, results, works


def pairs(world: World) -> list[tuple[Work, tuple[object, ...]]]:
    """A command, and the other one that is given the same folder."""
    single, pack, sample, convert, stage, _ = works(world)
    word = ("--images", world.pictures, "--name", "<y>", "--init", "dog")
    invert = ("invert", "--model", world.model, *word, "--out", single.out)
    cat = ("sample", "--model", world.model, "--prompt", "a cat", "--n", 1, "--steps", 1)
    return [
        (single, single.words),
        (single, invert),
        (single, (*single.words, "--resume")),
        (single, (*cat, "--out", single.out)),
        (pack, pack.words),
        (pack, (*pack.words, "--resume")),
        (pack, ("invert", "--resume", "--out", "all/one")),
        (sample, sample.words),
        (convert, convert.words),
        (stage, stage.words),
        (stage, (*stage.words, "--resume")),
    ]


def ended_well(done: Done) -> bool:
    return done.status == 0 and not done.traceback


def one_pair(
    work: Work, other: tuple[object, ...], place: Path, wait: float, expected: dict[str, str], row: Row
) -> None:
    """Start both, the second after ``wait`` seconds, and look at what they leave."""
    row.times += 1
    first = Command(work.words, place)
    time.sleep(wait)
    second = Command(other, place)
    done = (first.wait(), second.wait())
    what = f"{' '.join(map(str, other[:2]))} after {wait:.2f} s"
    told = [one.err.strip()[-300:] for one in done]
    if any(not one.in_one_line for one in done):
        row.lost.append(f"{what}: {told}")
    elif not any(map(ended_well, done)):
        row.lost.append(f"{what}: both failed: {told}")
    elif broken := damaged(place):
        row.lost.append(f"{what}: damaged {broken}")
    elif ended_well(done[0]):
        found = results(work, place)
        differ = [name for name in expected if name not in found or found[name] != expected[name]]
        # a second command that came after the end of the first one may have gone on in its folder
        if differ and not ended_well(done[1]):
            row.lost.append(f"{what}: the first one's results are gone or others: {differ}")
    row.note("refused" if not all(map(ended_well, done)) else "both ended well")


def folders_by_date(world: World, place: Path, n: int, row: Row) -> None:
    """Commands without ``--out`` that start in the same second."""
    words = (
        ("sample", "--model", world.model, "--prompt", "a cat", "--n", 1, "--steps", 1),
        ("invert", "--model", world.model, "--images", world.pictures, "--name", "<x>", "--steps", 1),
    )
    for number in range(n):
        row.times += 1
        folder = place / f"dated {number}"
        folder.mkdir()
        done = [command.wait() for command in [Command(words[number % 2], folder) for _ in range(2)]]
        made = list(folder.glob("*/*"))
        if not all(map(ended_well, done)) or len(made) != 2:
            row.lost.append(f"without --out: {[one.err.strip()[-200:] for one in done]}, folders {made}")
        row.note("both ended well" if all(map(ended_well, done)) else "refused")
        shutil.rmtree(folder)


def main() -> int:
    args = arguments(__doc__.splitlines()[0], 100).parse_args()
    return finish([many_pairs(args.n, args.seed)])


def many_pairs(n: int, seed: int) -> Row:
    """``n`` pairs, a tenth of them without ``--out``."""
    rng = random.Random(seed)
    with scratch() as folder, timed(Row("two commands on one folder")) as row:
        world = build_world(folder / "world")
        alone: dict[str, tuple[dict[str, str], float]] = {}
        for number in range(n - n // 10):
            work, other = pairs(world)[number % len(pairs(world))]
            if work.name not in alone:
                reference = folder / f"alone {work.name}"
                reference.mkdir()
                started = time.monotonic()
                assert run(work.words, reference).status == 0
                alone[work.name] = results(work, reference), time.monotonic() - started
            expected, seconds = alone[work.name]
            place = folder / "pair"
            place.mkdir()
            wait = 0.0 if number % 2 else rng.uniform(0, 0.8 * seconds)
            one_pair(work, other, place, wait, expected, row)
            shutil.rmtree(place)
        folders_by_date(world, folder, n // 10, row)
    return row


if __name__ == "__main__":
    raise SystemExit(main())
