"""Settings by their short names."""

import pytest

from ldm.shorthand import spelled


@pytest.mark.parametrize("key", [1, 1.5, None, True, b"x"])
def test_a_key_of_any_kind_is_a_name(key: object) -> None:
    """YAML has such keys; that no setting is called so is said where all are known."""
    assert spelled({key: 3}) == {str(key).partition(".")[0]: 3 if key != 1.5 else {"5": 3}}  # type: ignore[dict-item]
