"""A folder is one process's at a time, a dead one holds nothing, and only what was half made goes."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from ldm.errors import UserError
from ldm.io import atomic
from ldm.io.atomic import atomic_write, write_text
from ldm.io.claims import claimed, claimed_new, is_claimed, sweep
from ldm.io.runs import LOCK_NAME, holds_something

pytestmark = pytest.mark.slow


@contextmanager
def another_process(work: Callable[[], object]) -> Iterator[int]:
    """Runs ``work`` in a child, which then waits to be killed; gives its id once the work is done."""
    ready, done = os.pipe()
    child = os.fork()
    if child == 0:
        work()
        os.write(done, b"x")
        time.sleep(60)
        os._exit(0)
    os.close(done)
    os.read(ready, 1)
    os.close(ready)
    try:
        yield child
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


HELD = ExitStack()


def hold(folder: Path) -> Callable[[], object]:
    return lambda: HELD.enter_context(claimed(folder))


def test_a_claimed_folder_is_refused_until_its_process_is_dead(tmp_path):
    out = tmp_path / "out"
    with another_process(hold(out)):
        assert is_claimed(out)
        with pytest.raises(UserError, match="another command is writing to"), claimed(out):
            pass
        assert out.is_dir()
    assert not is_claimed(out) and (out / LOCK_NAME).exists()  # killed: its lock file stays, its lock not
    assert not holds_something(out)
    with claimed(out):
        assert not is_claimed(out)  # by nobody else
        with claimed(out):  # nested
            write_text(out / "a", "a")
        assert (out / LOCK_NAME).exists()
    assert [path.name for path in out.iterdir()] == ["a"]


def test_a_refused_command_removes_nothing_and_a_folder_that_holds_nothing_goes(tmp_path):
    with another_process(lambda: (hold(tmp_path / "out")(), write_text(tmp_path / "out" / "a", "a"))):
        for _ in range(2):
            with pytest.raises(UserError), claimed(tmp_path / "out", half=lambda _: True):
                pass
        assert (tmp_path / "out" / "a").read_text() == "a" and is_claimed(tmp_path / "out")
    with claimed(tmp_path / "new" / "deep"):
        pass
    assert not (tmp_path / "new").exists()
    (tmp_path / "empty").mkdir()
    with claimed(tmp_path / "empty"):
        pass
    assert (tmp_path / "empty").is_dir()  # it was there before


def work_that_fails(out: Path) -> None:
    write_text(out / "images" / "a.png", "a")
    (out / "logs").mkdir()
    (out / "logs" / "metrics.csv").write_text("")
    raise UserError("stop")


@pytest.mark.parametrize("error", [UserError("stop"), ValueError("stop"), KeyboardInterrupt()])
def test_what_is_complete_stays_when_the_work_fails(tmp_path, error):
    out = tmp_path / "out"
    with pytest.raises(type(error)), claimed(out):
        write_text(out / "a.png", "whole")
        with atomic_write(out / "b.png") as temporary:
            temporary.write_text("half")
            raise error
    assert [path.name for path in out.iterdir()] == ["a.png"]


def test_only_what_this_process_made_in_an_empty_folder_is_half_and_goes(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError, match="stop"), claimed(out, half=lambda _: True):
        work_that_fails(out)
    assert not out.exists()
    with pytest.raises(UserError, match="stop"), claimed(out, half=lambda _: True):
        out.joinpath("mine").write_text("put there by somebody meanwhile")
        work_that_fails(out)
    assert [path.name for path in out.iterdir()] == ["mine"]
    with pytest.raises(UserError, match="stop"), claimed(out, half=lambda _: True):
        work_that_fails(out)  # in a folder that held something
    assert (out / "images" / "a.png").exists() and (out / "mine").exists()


def test_a_result_that_is_not_half_stays(tmp_path):
    out = tmp_path / "out"
    with pytest.raises(UserError), claimed(out, half=lambda path: not (path / "images").is_dir()):
        work_that_fails(out)
    assert (out / "images" / "a.png").exists()


def test_of_many_processes_that_want_a_new_folder_each_gets_its_own(tmp_path):
    usual, children = tmp_path / "runs" / "now", []
    for number in range(8):
        children.append(os.fork())
        if children[-1] == 0:
            with claimed_new(usual) as out:
                write_text(out / "mine", str(number))
            os._exit(0)
    for child in children:
        assert os.waitpid(child, 0)[1] == 0
    assert sorted(path.read_text() for path in usual.parent.glob("*/mine")) == [str(n) for n in range(8)]
    assert (usual / "mine").exists() and (usual.parent / "now-8" / "mine").exists()


def test_temporary_files_of_dead_processes_go_and_those_of_living_ones_stay(tmp_path):
    def begin_a_write() -> None:
        with atomic_write(tmp_path / "sub" / "dead.png") as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), signal.SIGKILL)

    (tmp_path / "sub").mkdir()
    child = os.fork()
    if child == 0:
        begin_a_write()
    os.waitpid(child, 0)
    of_others = tmp_path / "sub" / f".x.{'0' * 8}-1-{'0' * 8}.tmp.png"
    old, foreign = of_others.with_name(f".x.{'1' * 12}.tmp.png"), tmp_path / "sub" / ".mine.tmp.png"
    for path in (of_others, old, foreign):
        path.write_text("")
    os.utime(old, (0, 0))
    assert len(list((tmp_path / "sub").iterdir())) == 4
    with atomic_write(tmp_path / "sub" / "mine") as temporary:
        temporary.write_text("whole")
        sweep(tmp_path)
        assert len(list((tmp_path / "sub").iterdir())) == 5  # only with `deep`
        with claimed(tmp_path, deep=True):
            assert {path.name for path in (tmp_path / "sub").iterdir()} == {
                of_others.name, foreign.name, temporary.name,
            }  # fmt: skip
    assert atomic.is_temporary(of_others) and not atomic.is_temporary(foreign)


def test_a_folder_that_cannot_be_made_or_is_a_file_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    for target in ("file", "file/out"):
        with pytest.raises(UserError, match="is a file|a file, not a folder"), claimed(tmp_path / target):
            pass
    assert (tmp_path / "file").read_text() == ""
