"""Run commands on a disk that has room for some of their files only.

    python tests/torture/full_disk.py --n 30

The disk is a small tmpfs where this user may mount one; else writes fail with "no space left" once a number
of bytes is written. A command that does not fit must say so in one line, damage nothing, leave no temporary
file and keep what is complete; where it could, the same command then goes on with more room.
"""

from __future__ import annotations

import errno
import os
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness import Row, arguments, build_world, contents, damaged, finish, run, scratch, temporaries, timed
from kills import Work, works

from ldm.io import runs

#: in the names of files that go when they are no longer needed: locks, older checkpoints, snapshots of packs
OF_THE_WAY = (".ldm-lock", "step=", "packs/")


@contextmanager
def small_disk(place: Path, size: int) -> Iterator[bool]:
    """``place`` as a tmpfs of so many bytes; False where that is not allowed."""
    place.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(place)]
    try:
        mounted = subprocess.run(command, capture_output=True).returncode == 0
    except FileNotFoundError:
        mounted = False
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(place)], capture_output=True)


def room_for(size: int) -> Callable[[], None]:
    """In a child: atomic writes fail once ``size`` bytes are on the disk."""

    def install() -> None:
        real, left = os.fsync, size

        def fsync(descriptor: int) -> None:
            nonlocal left
            left -= os.fstat(descriptor).st_size
            if left < 0:
                left = 0
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        runs.os.fsync = fsync  # type: ignore[assignment]

    return install


def one_size(work: Work, place: Path, size: int, row: Row) -> None:
    """A command on a disk of ``size`` bytes, then with more room."""
    row.times += 1
    with small_disk(place, size) as mounted:
        row.note("on a tmpfs" if mounted else "simulated")
        done = run(work.words, place, None if mounted else room_for(size))
        what = f"{work.name}, {size // 1024} kB"
        before = contents(place)
        row.note("fitted" if done.status == 0 else "did not fit")
        if not done.in_one_line or (done.status and "disk is full" not in done.err):
            row.lost.append(f"{what}: status {done.status}: {done.err.strip()[-400:]}")
        elif broken := damaged(place):
            row.lost.append(f"{what}: damaged {broken}")
        elif left := temporaries(place):
            row.lost.append(f"{what}: temporary files stay: {left}")
        if done.status == 0:
            return
        if mounted:
            subprocess.run(["mount", "-o", "remount,size=64m", str(place)], check=True)
        began = (place / work.out).exists()
        again = run([*work.words, *(work.again if began else ())], place)
        gone = sorted(before.keys() - contents(place).keys())
        if again.status or again.traceback:
            row.lost.append(f"{what}: with more room: {again.err.strip()[-400:]}")
        elif [name for name in gone if not any(part in name for part in OF_THE_WAY)]:
            row.lost.append(f"{what}: with more room, gone: {gone}")


def bytes_of(work: Work, place: Path) -> int:
    """What a command needs, with a page for each file's place in its folder."""
    place.mkdir()
    assert run(work.words, place).status == 0
    files = [path.stat().st_size for path in place.rglob("*") if path.is_file()]
    return sum(-(-size // 4096) * 4096 for size in files) + 4096 * len(files)


def many_sizes(n: int) -> Row:
    """``n`` sizes, from nothing to enough, of each command in turn."""
    with scratch() as folder, timed(Row("a full disk")) as row:
        world = build_world(folder / "world")
        chosen = works(world)
        need: dict[str, int] = {}
        for number in range(n):
            work = chosen[number % len(chosen)]
            if work.name not in need:
                need[work.name] = bytes_of(work, folder / f"needs {work.name}")
            share = (number // len(chosen) + 0.5) / max(1, -(-n // len(chosen)))
            one_size(work, folder / f"disk {number}", max(8192, int(need[work.name] * share)), row)
    return row


def main() -> int:
    args = arguments(__doc__.splitlines()[0], 30).parse_args()
    return finish([many_sizes(args.n)])


if __name__ == "__main__":
    raise SystemExit(main())
