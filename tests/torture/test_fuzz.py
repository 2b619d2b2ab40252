"""A short version of ``fuzz.py``; what the long one once found is in the tests of each reader."""

import logging
import signal

import fuzz
import pytest

pytestmark = pytest.mark.slow


@pytest.fixture
def undone():
    """What a watch changes for the whole process: two signals' handlers, the level of the log."""
    numbers, log = (signal.SIGPROF, signal.SIGALRM), logging.getLogger("ldm")
    before, level = [signal.getsignal(number) for number in numbers], log.level
    yield
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)
    log.setLevel(level)


@pytest.mark.usefixtures("undone")
def test_some_damaged_files_of_every_kind_load_or_are_refused_in_one_line() -> None:
    row = fuzz.torture(200, seed=1)
    assert row.lost == [] and row.times == 200
    assert row.notes["loaded"] > 20 and row.notes["refused"] > 80
