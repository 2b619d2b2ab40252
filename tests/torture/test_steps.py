"""A short version of ``steps.py``."""

import pytest
import steps

pytestmark = pytest.mark.slow


def test_memory_and_open_files_do_not_grow() -> None:
    assert [row.lost for row in steps.torture(16)] == [[], []]
