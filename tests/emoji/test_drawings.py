"""Drawings of many sets: matched by code or by name, held out by both, and called by words that are known."""

import hashlib
import io
import json
import tarfile
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from ldm.emoji import drawings as emoji_drawings
from ldm.emoji import sprites as emoji
from ldm.emoji.captions import STYLE_WORDS, STYLES, words_of
from ldm.emoji.compose import DrawingComposer
from ldm.emoji.drawings import EmojiDrawings, prepare_drawings
from ldm.emoji.fantasies import imagine_drawings
from ldm.emoji.names import Names, held_out, is_near, things
from ldm.emoji.pictures import EmojiPictures
from ldm.emoji.sets import SETS, VENDORS
from ldm.emoji.sprites import Concept, EmojiSprites, Package, load_holdout, read_concepts, write_drawings
from ldm.errors import UserError
from ldm.pretraining.sources import UNNAMED

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
HOLDOUT = ROOT / "configs/emoji/holdout.txt"
VOCABULARY = set((ROOT / "ldm/assets/emoji/vocab.txt").read_text(encoding="utf-8").splitlines())
ENTRIES = [
    {"hexcode": "1F34E", "label": "red apple", "tags": ["fruit"], "group": 4, "subgroup": 1, "order": 1},
    {"hexcode": "1F408", "label": "cat", "tags": ["kitten"], "group": 3, "subgroup": 0, "order": 2},
    {"hexcode": "1F41D", "label": "honeybee", "tags": ["bee"], "group": 3, "subgroup": 0, "order": 3},
    {"hexcode": "1F525", "label": "fire", "tags": [], "group": 5, "subgroup": 2, "order": 4},
    {"hexcode": "1F526", "label": "flashlight", "tags": ["torch"], "group": 7, "subgroup": 2, "order": 5},
]
#: drawings of the two SVG sets: name -> colour
EMOJI_SET = {
    "apple-red": "f00",
    "cat": "0f0",
    "cat-2": "00f",
    "cat-3": "00f",
    "bee": "ff0",
    "rocketship": "f0f",
}
ICON_SET = {
    "electric-torch": "f00",
    "torch": "f00",
    "kettle": "0ff",
    "kettle-2": "f0f",
    "settings": "000",
    "fire-alarm": "f00",
}


def _tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _seeded() -> torch.Generator:
    return torch.Generator().manual_seed(0)


def _png(colour: str) -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (64, 64), colour).save(stream, "PNG")
    return stream.getvalue()


def _icons(colours: dict[str, str], **aliases: str) -> bytes:
    icons = {n: {"body": f'<path fill="#{c}" d="M0 0h32v32H0z"/>'} for n, c in colours.items()}
    icons["empty"] = {"body": ""}
    others: dict[str, dict] = {name: {"parent": parent} for name, parent in aliases.items()}
    others["dog"] = {"parent": "cat", "hFlip": 1}
    return json.dumps({"icons": icons, "aliases": others, "width": 32, "height": 32}).encode()


@pytest.fixture
def packages(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Six small sets in the layout of the real ones: four of codes, one of emoji names, one of icons."""
    folder = tmp_path / "packages"
    folder.mkdir()
    codes = [e["hexcode"].lower() for e in ENTRIES]
    small, vendors = {}, {}
    for name, drawn in {**{n: SETS[n] for n in STYLES}, **VENDORS}.items():
        kept = codes[:-1] if name == "fluent" else codes
        files = {f"{drawn.package.folder}{c}.png": _png("red") for c in kept}
        package = replace(drawn.package, sha256=_tar(folder / drawn.package.tarball, files))
        (vendors if name in VENDORS else small)[name] = replace(drawn, package=package)
    for name, icons in {
        "noto-v1": _icons(EMOJI_SET, redapple="apple-red"), "icon-park": _icons(ICON_SET),
    }.items():  # fmt: skip
        package = SETS[name].package
        digest = _tar(folder / package.tarball, {emoji_drawings.ICONS: icons})
        small[name] = replace(SETS[name], package=replace(package, sha256=digest))
    names = {
        "package/en/data.json": json.dumps(ENTRIES).encode(),
        "package/meta/groups.json": b'{"subgroups": {"0": "animal-bug", "1": "food-fruit", "2": "tool"}}',
        "package/en/shortcodes/github.json": b'{"1F41D": ["bee"], "1F408": "pet", "1F525": "pet"}',
    }
    real = emoji.PACKAGES["names"]
    pinned = {"names": Package(real.spec, real.tarball, _tar(folder / real.tarball, names))}
    monkeypatch.setattr(emoji_drawings, "PACKAGES", pinned)
    monkeypatch.setattr(emoji_drawings, "SETS", small)
    monkeypatch.setattr(emoji_drawings, "VENDORS", vendors)
    return folder


@pytest.fixture
def prepared(packages: Path, tmp_path: Path) -> Path:
    return prepare_drawings(tmp_path / "all", packages, [*STYLES, "noto-v1", "icon-park"], progress=False)


def _named(drawings: EmojiDrawings) -> list[tuple[str, str]]:
    rows = zip(drawings.concept.tolist(), drawings.style.tolist(), strict=True)
    return [(drawings.concepts[c].label, drawings.styles[s]) for c, s in rows]


def test_every_set_keeps_all_its_drawings_that_are_known(prepared: Path) -> None:
    drawings = EmojiDrawings.load(prepared)
    assert drawings.sprites.shape[1:] == (64, 64, 4) and drawings.sprites.dtype == torch.uint8
    named = _named(drawings)
    extra = [row for row in named if row[1] not in STYLES]
    # two cats, for the third is the second again; an alias, a short code, and no unknown rocket
    assert sorted(extra) == [
        ("cat", "noto-v1"), ("cat", "noto-v1"), ("fire alarm", "icon-park"), ("flashlight", "icon-park"),
        ("honeybee", "noto-v1"), ("kettle", "icon-park"), ("kettle", "icon-park"), ("red apple", "noto-v1"),
    ]  # fmt: skip
    assert len(named) - len(extra) == 3 * len(ENTRIES) - 1
    assert (
        drawings.sprites[named.index(("red apple", "noto-v1")), 32, 32] == torch.tensor([255, 0, 0, 255])
    ).all()
    assert "| icon-park | `@iconify-json/icon-park@" in (prepared / "ATTRIBUTION.md").read_text()


def test_the_three_main_styles_are_read_as_before(prepared: Path, packages: Path) -> None:
    sprites = EmojiSprites.load(prepared)
    assert [c.label for c in sprites.concepts] == ["red apple", "cat", "honeybee", "fire"]
    assert sprites.sprites.shape == (4, 3, 64, 64, 4)
    assert sprites.reserved == {"red apple", "cat", "honeybee", "fire"}
    with np.load(prepared / "sprites.npz") as archive:
        rows = archive["sprites"]
    old = rows[:12].reshape(4, 3, 64, 64, 4)  # as `ldm train data` wrote it before there were more sets
    concepts = json.dumps(json.loads((prepared / "concepts.json").read_text())[:4])
    (prepared / "concepts.json").write_text(concepts)
    np.savez(prepared / "sprites.npz", sprites=old)
    again = EmojiDrawings.load(prepared)
    assert len(again) == 12 and again.styles == STYLES
    assert torch.equal(EmojiSprites.load(prepared).sprites.flatten(0, 1), again.sprites)


def test_drawings_are_held_out_in_every_set_by_code_and_by_name(prepared: Path) -> None:
    named = _named(EmojiDrawings.load(prepared, exclude={"1f525", "1f526", "1f41d"}))
    assert {label for label, _ in named} == {"red apple", "cat", "kettle"}  # not the fire alarm


def test_groups_and_sets_are_chosen_and_wrong_ones_refused(prepared: Path, tmp_path: Path) -> None:
    assert {s for _, s in _named(EmojiDrawings.load(prepared, sets=["noto", "icon-park"]))} == {
        "noto",
        "icon-park",
    }
    assert {c.label for c in EmojiDrawings.load(prepared, ["food-drink"]).concepts} == {"red apple", "kettle"}
    for wrong in ({"sets": ["nope"]}, {"groups": ["nope"]}, {"groups": ["activities"]}):
        with pytest.raises(UserError):
            EmojiDrawings.load(prepared, **wrong)
    with pytest.raises(UserError, match="no prepared emoji"):
        EmojiDrawings.load(tmp_path)


def test_drawings_have_the_size_that_was_asked(packages: Path, tmp_path: Path) -> None:
    out = prepare_drawings(tmp_path / "large", packages, ["noto-v1"], size=96, progress=False)
    assert EmojiDrawings.load(out).sprites.shape[1:] == (96, 96, 4)
    with pytest.raises(UserError, match="unknown set nope"):
        prepare_drawings(tmp_path / "x", packages, ["nope"], progress=False)


def test_a_vendor_to_test_with_is_never_trained_on(packages: Path, tmp_path: Path) -> None:
    out = prepare_drawings(tmp_path / "facebook", packages, ["facebook"], progress=False)
    drawings = EmojiDrawings.load(out)
    assert drawings.styles == ("facebook",) and len(drawings) == len(ENTRIES)
    assert "emoji" in " ".join(DrawingComposer(drawings).batch(20, torch.Generator()).captions)
    with pytest.raises(UserError, match="never to train with"):
        EmojiPictures(str(out), sets="all")
    assert not set(SETS) & set(VENDORS)


# Names ------------------------------------------------------------------------------------------


def _held_out() -> list[Concept]:
    rows = [line.split("#") for line in HOLDOUT.read_text(encoding="utf-8").splitlines() if line[0] != "#"]
    return [Concept(code.strip(), label.strip(), (), "objects", "tool") for code, label in rows]


@pytest.mark.parametrize(
    ("icon", "code"),
    [
        ("koala", "1f428"), ("burger", "1f354"), ("hamburger-one", "1f354"), ("torch", "1f526"),
        ("headset", "1f3a7"), ("headphones-cable", "1f3a7"), ("purse", "1f45c"), ("school-bag", "1f392"),
        ("box", "1f4e6"), ("puzzle", "1f9e9"), ("email", "1f4e7"), ("lab-tube", "1f9ea"),
        ("cassette", "1f4fc"), ("compasses", "1f9ed"), ("cableway", "1f6a1"),
        ("make-up-lipstick-1", "1f484"), ("wand", "1fa84"), ("shield-check", None), ("print", "1f5a8"),
        ("modern-music-electric-guitar", "1f3b8"), ("seafood-sushi", "1f363"), ("eiffel-tower", "1f5fc"),
        ("skateboard-one", "1f6f9"), ("tennis-ball", "1f3be"), ("kangaroo", None), ("koala-bear", None),
        ("settings", None),
    ],
)  # fmt: skip
def test_other_names_of_held_out_things_are_those_things(icon: str, code: str | None) -> None:
    found = Names(_held_out(), {}).icon(icon)
    assert (found and found.hex) == code


def test_no_thing_of_its_own_is_near_to_a_held_out_one() -> None:
    out = _held_out()
    own = {c.hex: c for c in things().values()}
    assert len(own) > 300
    left = set(own) - held_out([*out, *own.values()], load_holdout(HOLDOUT))
    labels = {own[code].label for code in left}
    assert len(left) > 200 and "kettle" in labels
    for concept in out:
        assert concept.label not in labels
        words = set(words_of(concept.label))
        assert not [label for label in labels if words & set(words_of(label))], concept.label
    assert not labels & {"koala", "guitar", "backpack", "golf ball", "magic wand", "tokyo tower", "test tube"}


@pytest.mark.parametrize(
    ("label", "near"),
    [("bag", True), ("torch", True), ("flashlights", True), ("kettle", False), ("bat", False)],
)
def test_near_is_another_name(label: str, near: bool) -> None:
    concept = Concept("1f45c", "handbag flashlight", ("torch",), "objects", "clothing")
    assert is_near(label, concept) == near


def test_a_name_of_two_emoji_is_none() -> None:
    concepts = [
        Concept("1f408", "cat", (), "animals-nature", ""),
        Concept("1f415", "dog", (), "animals-nature", ""),
    ]
    names = Names(concepts, {"1f408": ["pet", "moggy"], "1f415": ["pet", "cat"]})
    assert names.emoji("pet") is None
    assert [names.emoji(n).hex for n in ("moggy", "cat", "cat-2")] == ["1f408"] * 3  # type: ignore[union-attr]
    assert names.emoji("snake") is None


# Captions ---------------------------------------------------------------------------------------


def test_words_of_every_style_are_known_and_the_main_ones_as_before() -> None:
    assert {name: SETS[name].words for name in STYLES} == STYLE_WORDS
    assert {w for drawn in SETS.values() for text in drawn.words for w in words_of(text)} <= VOCABULARY
    assert all(drawn.licence in ("MIT", "Apache-2.0", "CC BY 4.0") for drawn in SETS.values())


def _drawings(tmp_path: Path) -> EmojiDrawings:
    """Three things, one with five drawings; of three sets, the last not in the things' own colours."""
    concepts = [Concept(str(i), n, (), "objects", "tool") for i, n in enumerate(("cat", "egg", "bell"))]
    pixels = np.zeros((7, 64, 64, 4), np.uint8)
    for i in range(7):
        pixels[i, 8:56, 8 : 30 + 4 * i] = (200 - 20 * i, 30 * i, 90, 255)
    concept, style = np.array([0, 0, 0, 0, 0, 1, 2]), np.array([0, 0, 0, 1, 1, 1, 2])
    return EmojiDrawings.load(
        write_drawings(tmp_path, concepts, pixels, concept, style, ["noto", "flat-ui", "marketeq"])
    )


def test_captions_tell_the_set_and_always_where_its_colours_are_its_own(tmp_path: Path) -> None:
    drawings = _drawings(tmp_path)
    batch = DrawingComposer(drawings, balance=1.0).batch(300, _seeded())
    for caption, concept, style in zip(
        batch.captions, batch.concepts.tolist(), batch.styles.tolist(), strict=True
    ):
        called = [w for w in ("flat icon", "blue line icon") if w in caption]
        name = drawings.styles[style]
        assert called == [w for w in SETS[name].words if w in called]
        assert called or name != "marketeq"
        if concept and "tool" not in caption:
            assert drawings.concepts[concept].label in caption
    assert torch.equal(batch.concepts, drawings.concept[batch.drawings])


@pytest.mark.parametrize(("balance", "share"), [(0.0, 5 / 7), (1.0, 1 / 3)])
def test_balance_is_between_drawings_and_things(tmp_path: Path, balance: float, share: float) -> None:
    drawn = DrawingComposer(_drawings(tmp_path), balance=balance).batch(600, _seeded())
    assert (drawn.concepts == 0).float().mean().item() == pytest.approx(share, abs=0.08)
    with pytest.raises(UserError, match="balance"):
        DrawingComposer(_drawings(tmp_path), balance=2.0)


def test_pictures_of_all_sets_are_numbered_as_their_portraits(tmp_path: Path) -> None:
    source = EmojiPictures(str(_drawings(tmp_path) and tmp_path), sets="all", unnamed=0.5)
    batch = source.batch(3, 50, seed=1)
    portraits = torch.cat(list(source.portraits(3)))
    assert portraits.shape == (7, 2, 3, 64, 64) and set(batch.subjects.tolist()) == set(range(7))
    assert batch.captions == source.batch(3, 50, seed=1).captions
    one = EmojiPictures(str(tmp_path), sets=["noto"])
    assert len(torch.cat(list(one.portraits(9)))) == 3


def test_fantasies_are_of_one_set_and_in_true_words(tmp_path: Path) -> None:
    drawings = _drawings(tmp_path)
    made = imagine_drawings(drawings, 260, UNNAMED, _seeded(), warp=0.02)
    assert len(made) == len(made.concepts) == 260 and (made.sprites[..., :3] <= made.sprites[..., 3:]).all()
    assert {made.styles[s] for s in made.style.tolist()} == {"noto", "flat-ui"}
    source = EmojiPictures(str(tmp_path), sets="all", fantasies=20)
    assert all(UNNAMED in caption for caption in source.batch(0, 30, seed=0).captions)
    with pytest.raises(UserError, match="own colours"):
        imagine_drawings(EmojiDrawings.load(tmp_path, sets=["marketeq"]), 3, UNNAMED, torch.Generator())


def test_concepts_are_written_in_the_order_of_the_sprites(prepared: Path) -> None:
    labels = [c.label for c in read_concepts(prepared)]
    assert labels == [*(e["label"] for e in ENTRIES), "fire alarm", "kettle"]
