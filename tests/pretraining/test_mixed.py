"""Several sources as one: shares, things, portraits, and the same batch for the same step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from ldm.config import instantiate
from ldm.errors import UserError
from ldm.pretraining.mixed import MixedPictures

pytestmark = pytest.mark.slow


@pytest.fixture()
def nodes(tmp_path: Path) -> list[dict[str, Any]]:
    made = []
    for name, colours in (("warm", ("red", "orange")), ("cold", ("blue", "teal", "white"))):
        (tmp_path / name).mkdir()
        for i, colour in enumerate(colours):
            Image.new("RGB", (16, 16), colour).save(tmp_path / name / f"{i}.png")
            (tmp_path / name / f"{i}.txt").write_text(f"a {colour} wall")
        params = {"root": str(tmp_path / name), "image_size": 8}
        made.append({"target": "ldm.pretraining.sources.FolderPictures", "params": params})
    return made


def test_every_source_has_its_share_of_every_batch(nodes: list[dict[str, Any]]) -> None:
    source = MixedPictures([{"share": 3, **nodes[0]}, {"share": 1, **nodes[1]}])
    assert source.counts(8) == [6, 2] and sum(source.counts(7)) == 7
    drawn = source.batch(3, 8, seed=0)
    assert (drawn.subjects < 2).sum() == 6 and drawn.subjects.max() < 5
    warm = [any(name in caption for name in ("red", "orange")) for caption in drawn.captions]
    assert warm == (drawn.subjects < 2).tolist()
    again = source.batch(3, 8, seed=0)
    assert torch.equal(again.images, drawn.images) and again.captions == drawn.captions
    assert not torch.equal(source.batch(4, 8, seed=0).subjects, drawn.subjects)


def test_things_and_portraits_are_in_the_order_of_the_sources(nodes: list[dict[str, Any]]) -> None:
    source = MixedPictures([{"share": 3, **nodes[0]}, {"share": 1, **nodes[1]}])
    torch.testing.assert_close(source.shares, torch.tensor([3, 3, 2 / 3, 2 / 3, 2 / 3]) / 8)
    portraits = torch.cat(list(source.portraits(2)))
    assert portraits.shape == (5, 2, 3, 8, 8)
    drawn = source.batch(0, 8, seed=0)
    torch.testing.assert_close(drawn.images, portraits[drawn.subjects, 0])


@pytest.mark.parametrize("share", [0, -1, "half", None])
def test_a_share_is_above_zero(nodes: list[dict[str, Any]], share: Any) -> None:
    with pytest.raises(UserError, match="share"):
        MixedPictures([{"share": share, **nodes[0]}])


def test_a_yaml_may_name_it_and_only_known_sources(nodes: list[dict[str, Any]]) -> None:
    target = "ldm.pretraining.mixed.MixedPictures"
    mixed = instantiate({"target": target, "params": {"sources": nodes}})
    assert mixed.counts(2) == [1, 1]
    with pytest.raises(UserError, match="no sources"):
        instantiate({"target": target, "params": {"sources": []}})
    with pytest.raises(UserError, match="refused"):
        instantiate({"target": target, "params": {"sources": [{"target": "os.system", "params": {}}]}})
