"""A short version of ``signals.py``."""

import pytest
import signals

pytestmark = pytest.mark.slow


def test_some_signals_lose_nothing() -> None:
    assert signals.torture(3, seed=1).lost == []
