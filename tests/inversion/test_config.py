"""Settings of an inversion: how layers of them come together."""

import pytest

from ldm.errors import UserError
from ldm.inversion.config import settle

REST = {"images": "p", "placeholder": "<a>"}


def test_another_kind_of_word_brings_its_own_settings_alone() -> None:
    plain = settle(REST, {"word": {"keep_norm": "median"}})
    assert plain.word == {"kind": "plain", "keep_norm": "median"}
    layers = settle(REST, {"word": plain.word}, {"word": {"kind": "per_layer"}})
    assert layers.word == settle(REST, {"word": "per_layer"}).word
    again = settle(REST, {"word": {"keep_norm": "median"}}, {"word": {"kind": "plain"}})
    assert again.word["keep_norm"] == "median"
    with pytest.raises(UserError, match="keep_norm"):
        settle(REST, {"word": {"kind": "per_layer", "keep_norm": "median"}})
