"""Settings by their short names."""

import pytest

from ldm import shorthand
from ldm.shorthand import spelled


@pytest.mark.parametrize("key", [1, 1.5, None, True, b"x"])
def test_a_key_of_any_kind_is_a_name(key: object) -> None:
    """YAML has such keys; that no setting is called so is said where all are known."""
    assert spelled({key: 3}) == {str(key).partition(".")[0]: 3 if key != 1.5 else {"5": 3}}  # type: ignore[dict-item]


def test_an_old_name_is_told_once(caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shorthand, "_told", set())
    old = {"sample_scale": 7.5, "captions": False, "steps": 3, "trainer.threads": 1, "show": {"steps": 2}}
    full = spelled(old, tell=False)
    assert caplog.messages == []
    assert full == {
        "show": {"scale": 7.5, "steps": 2},
        "captions": {"files": False},
        "trainer": {"max_steps": 3, "threads": 1},
    }
    assert spelled(old) == spelled(old) == full == spelled(full)
    assert caplog.messages == [
        "the setting sample_scale is called show.scale now; the old name still works",
        "the setting captions is called captions.files now; the old name still works",
    ]


def test_switches_that_are_gone_are_left_out() -> None:
    """As the ``config.yaml`` of an older run holds them."""
    compat = {"copies": True, "edits_ids": True, "unsorted": False}
    assert spelled({"compat": compat}) == {"compat": {"copies": True}}
    assert spelled({"compat.unsorted": True}) == {"compat": {}}
