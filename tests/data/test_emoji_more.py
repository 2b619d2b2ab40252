"""Further drawings: found by name, drawn from SVG, held out by code."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch

from ldm.data import emoji_more
from ldm.data.emoji import Concept, EmojiSprites, Package, write
from ldm.data.emoji_more import SETS, prepare_more
from ldm.errors import UserError

RED = '<path fill="#f00" d="M0 0h32v16H0z"/>'  # twice as wide as high
CONCEPTS = [
    Concept("1f34e", "red apple", ("fruit",), "food-drink", "food-fruit"),
    Concept("1f408", "cat", (), "animals-nature", "animal-mammal"),
    Concept("1f415", "dog", (), "animals-nature", "animal-mammal"),
]


def _icons(names: list[str], **aliases: str) -> bytes:
    others: dict[str, dict] = {name: {"parent": parent} for name, parent in aliases.items()}
    others["dog"] = {"parent": "cat", "hFlip": 1}
    icons = {name: {"body": RED} for name in names}
    return json.dumps({"icons": icons, "aliases": others, "width": 32, "height": 32}).encode()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The five sets in small: an apple in all, under two names, a cat in two, an unknown rocket in one."""
    folder = tmp_path / "packages"
    folder.mkdir()
    made = {}
    for number, (name, real) in enumerate(SETS.items()):
        names = ["red-apple"] if number else ["apple-red", "rocket"]
        names += ["cat"] if number < 2 else []
        data = _icons(names) if number else _icons(names, redapple="apple-red")
        with tarfile.open(folder / real.tarball, "w:gz") as archive:
            member = tarfile.TarInfo(emoji_more.ICONS)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
        digest = hashlib.sha256((folder / real.tarball).read_bytes()).hexdigest()
        made[name] = Package(real.spec, real.tarball, digest)
    monkeypatch.setattr(emoji_more, "SETS", made)
    return folder


@pytest.fixture
def prepared(tmp_path: Path) -> Path:
    blank = torch.zeros(64, 64, 4, dtype=torch.uint8).numpy()
    return write(tmp_path / "emoji", CONCEPTS, [[blank] * 3] * 3)


def test_things_of_three_sets_are_drawn_and_keep_their_codes(
    packages: Path, prepared: Path, tmp_path: Path
) -> None:
    out = prepare_more(prepared, tmp_path / "more", packages, progress=False)
    sprites = EmojiSprites.load(out)
    assert sprites.concepts == (CONCEPTS[0],)  # a mirrored dog is no dog, and the cat has two drawings only
    pixels = sprites.sprites.long()
    assert pixels.shape == (1, 3, 64, 64, 4)
    assert (pixels[:, :, 32, 32] == torch.tensor([255, 0, 0, 255])).all()
    assert (pixels[:, :, [2, -3]] == 0).all() and (pixels[:, :, 32, [1, -2], 3] > 250).all()  # fitted
    with pytest.raises(UserError):
        EmojiSprites.load(out, exclude={"1f34e"})


def test_what_is_missing_is_said(packages: Path, prepared: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="ldm train data"):
        prepare_more(tmp_path, tmp_path / "more", packages, progress=False)
    next(packages.iterdir()).unlink()
    with pytest.raises(UserError, match="is missing"):
        prepare_more(prepared, tmp_path / "more", packages, progress=False)
    assert not (tmp_path / "more").exists()
