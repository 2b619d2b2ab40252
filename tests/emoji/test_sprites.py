"""The shipped model's data: preparation, hold-out, captions, vocabulary."""

import hashlib
import io
import json
import tarfile
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.emoji import sprites as emoji
from ldm.emoji.captions import NEUTRAL, STYLE_WORDS, STYLES, fill, normalize_label, words_of
from ldm.emoji.scenes import SCENES
from ldm.emoji.sprites import Concept, EmojiSprites, choose_holdout, load_holdout, prepare
from ldm.emoji.vocabulary import SPECIAL_TOKENS, build_vocabulary, vocabulary_texts
from ldm.errors import UserError
from ldm.evaluation.colours import COLOURS
from ldm.text.english import article

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
VOCABULARY = (ROOT / "ldm/assets/emoji/vocab.txt").read_text(encoding="utf-8").splitlines()
HOLDOUT = ROOT / "configs/emoji/holdout.txt"


def _entry(code: str, label: str, group: int, tags: tuple[str, ...] = ()) -> dict:
    return {
        "hexcode": code,
        "label": label,
        "group": group,
        "subgroup": 34,
        "order": int(code.split("-")[0], 16),
        "tags": list(tags),
    }


ENTRIES = [
    _entry("1F34E", "red apple", 4, ("pomme",)),
    _entry("1F408", "cat", 3, ("kitten", "animal")),
    _entry("2708-FE0F", "airplane", 5),
    _entry("1F1E6", "a flag", 9),
    _entry("1F9FF", "only in two sets", 7),
]


def _picture(size: int, box: tuple[int, int, int, int], suffix: str) -> bytes:
    image = Image.new("RGBA", (size, size), (0, 255, 0, 0))  # green where transparent: must not leak
    image.paste((255, 0, 0, 255), box)
    stream = io.BytesIO()
    image.save(stream, "PNG" if suffix == ".png" else "WEBP", lossless=True)
    return stream.getvalue()


def _tar(path: Path, files: dict[str, bytes]) -> str:
    with tarfile.open(path, "w:gz") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def packages(tmp_path_factory) -> tuple[Path, dict[str, emoji.Package]]:
    """Four small tarballs in the layout of the real ones."""
    folder = tmp_path_factory.mktemp("packages")
    made = {}
    for style, size, suffix in zip(STYLES, (64, 64, 128), (".png", ".png", ".webp"), strict=True):
        real = emoji.PACKAGES[style]
        codes = [e["hexcode"].lower() for e in ENTRIES]
        codes = codes[:-1] if style == "fluent" else codes
        wide = (size // 4, size * 3 // 8, size * 3 // 4, size * 5 // 8)  # twice as wide as high
        files = {f"{real.folder}{c}{suffix}": _picture(size, wide, suffix) for c in codes}
        digest = _tar(folder / real.tarball, files)
        made[style] = emoji.Package(real.spec, real.tarball, digest, real.folder)
    names = {
        "package/en/data.json": json.dumps(ENTRIES).encode(),
        "package/meta/groups.json": b'{"subgroups": {"34": "animal-mammal"}}',
    }
    real = emoji.PACKAGES["names"]
    made["names"] = emoji.Package(real.spec, real.tarball, _tar(folder / real.tarball, names))
    return folder, made


@pytest.fixture()
def pinned(packages, monkeypatch) -> Path:
    monkeypatch.setattr(emoji, "PACKAGES", packages[1])
    return packages[0]


@pytest.fixture()
def prepared(pinned, tmp_path) -> Path:
    return prepare(tmp_path / "emoji", pinned, progress=False)


# Preparation -----------------------------------------------------------------------------------


def test_prepare_keeps_concepts_of_all_three_sets_without_flags(prepared):
    sprites = EmojiSprites.load(prepared)
    assert [c.hex for c in sprites.concepts] == ["2708", "1f34e", "1f408"]  # Unicode order
    assert sprites.sprites.shape == (3, 3, 64, 64, 4) and sprites.sprites.dtype == torch.uint8
    assert sprites.concepts[2].tags == ("kitten", "animal")
    assert sorted(p.name for p in prepared.iterdir()) == ["concepts.json", "sprites.npz"]


def test_prepared_sprites_touch_the_edges_and_no_hidden_colour_leaks(prepared):
    pixels = EmojiSprites.load(prepared).sprites.long()
    alpha, green = pixels[..., 3], pixels[..., 1]
    assert (alpha[:, :, 32, [2, -3]] > 250).all()  # wide object: fills left to right,
    assert (alpha[:, :, :14] < 12).all()  # centred, aspect kept (LANCZOS rings a little)
    assert (pixels[..., :3] <= alpha[..., None]).all()  # premultiplied
    assert (green == 0).all()


def test_prepare_refuses_a_damaged_tarball_and_writes_nothing(pinned, packages, monkeypatch, tmp_path):
    wrong = {**packages[1]}
    wrong["fluent"] = emoji.Package("x@1", wrong["fluent"].tarball, "0" * 64, "package/assets/")
    monkeypatch.setattr(emoji, "PACKAGES", wrong)
    with pytest.raises(UserError, match="damaged"):
        prepare(tmp_path / "out", pinned, progress=False)
    assert not list((tmp_path / "out").iterdir())


def test_prepare_without_npm_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(emoji.shutil, "which", lambda name: None)
    with pytest.raises(UserError, match="install Node.js"):
        prepare(tmp_path, progress=False)


def test_prepare_names_the_missing_tarball(pinned, tmp_path):
    with pytest.raises(UserError, match="emoji-datasource-google-16.0.0.tgz is missing"):
        prepare(tmp_path / "out", tmp_path, progress=False)


def test_loading_filters_groups_and_held_out_codes(prepared):
    assert [c.label for c in EmojiSprites.load(prepared, groups=["food-drink"]).concepts] == ["red apple"]
    left = EmojiSprites.load(prepared, exclude={"1f34e"})
    assert [c.label for c in left.concepts] == ["airplane", "cat"]
    assert "red apple" in left.reserved
    kept = EmojiSprites.load(prepared, only={"1f408"})
    assert torch.equal(kept.sprites[0], EmojiSprites.load(prepared).sprites[2])
    for wrong in ({"groups": ["food"]}, {"only": {"ffff"}}):
        with pytest.raises(UserError):
            EmojiSprites.load(prepared, **wrong)
    with pytest.raises(UserError, match="prepare"):
        EmojiSprites.load(prepared / "elsewhere")


# Hold-out ---------------------------------------------------------------------------------------


def test_held_out_file_has_100_different_codes():
    codes = load_holdout(HOLDOUT)
    assert len(codes) == 100
    assert all("fe0f" not in c and c == c.lower() for c in codes)


def test_holdout_is_seeded_and_avoids_twins():
    labels = "tiger|tiger face|green book|blue book|house|houses|locked|unlocked|fox|owl|pear|axe"
    concepts = [
        Concept(f"{i:04x}", label, (), "objects", "tool") for i, label in enumerate(labels.split("|"))
    ]
    chosen = {c.label for c in choose_holdout(concepts, seed=3, count=4)}
    assert chosen == {"fox", "owl", "pear", "axe"}
    first = choose_holdout(concepts, seed=3, count=2)
    assert first == choose_holdout(concepts, seed=3, count=2)


@pytest.mark.skipif(not (ROOT / "data/emoji").is_dir(), reason="needs `prepare` to have run")
def test_shipped_lists_are_what_their_rules_make():
    everything = EmojiSprites.load(ROOT / "data/emoji")
    assert {c.hex for c in choose_holdout(everything.concepts)} == load_holdout(HOLDOUT)
    texts = vocabulary_texts(
        [c.label for c in everything.concepts], [c.tags for c in everything.concepts], COLOURS
    )
    assert build_vocabulary(texts) == VOCABULARY


# Words ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("label", "words"),
    [
        ("T-Rex", "t-rex"),
        ("twelve o’clock", "twelve o'clock"),
        ("piñata", "pinata"),
        ("man: beard", "man with beard"),
        ("woman: bald", "bald woman"),
        ("keycap: #", "keycap hash"),
        ("Japanese “free of charge” button", "japanese free of charge button"),
        ("family: man, woman, boy", "family with man woman boy"),
    ],
)
def test_labels_become_plain_words(label, words):
    assert normalize_label(label) == words


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("cat", "a "), ("apple", "an "), ("unicorn", "a "), ("one-piece", "a "),
        ("hourglass done", "an "), ("scissors", ""), ("dress", "a "), ("cactus", "a "),
        ("bowl of beans", "a "), ("nest with eggs", "a "), ("cherries", ""), ("popcorn", ""),
        ("face holding back tears", "a "),
    ],
)  # fmt: skip
def test_articles(name, expected):
    assert article(name) == expected


def test_templates_take_the_right_article():
    assert fill("a photo of a {}", "egg") == "a photo of an egg"
    assert fill("a photo of a {}", "scissors") == "a photo of scissors"
    assert fill("a photo of a clean {}", "egg") == "a photo of a clean egg"
    assert fill("a photo of a clean {}", "scissors") == "a photo of clean scissors"
    assert fill("a photo of one {}", "scissors") == "a photo of the scissors"
    assert fill("a photo of my {}", "cat") == "a photo of my cat"
    assert not any("small" in t or "large" in t or "close-up" in t for t in NEUTRAL)


def test_vocabulary_spells_everything_and_does_not_depend_on_order():
    tokens = build_vocabulary(["red apple", "t-rex"])
    assert tuple(tokens[:5]) == SPECIAL_TOKENS
    assert tokens == build_vocabulary(["t-rex", "apple red"])
    assert len(set(tokens)) == len(tokens)
    for c in "abcdefghijklmnopqrstuvwxyz0123456789":
        assert c in tokens and f"##{c}" in tokens
    assert {"red", "apple", "rex"} <= set(tokens)
    assert len(build_vocabulary(["one two three"], size=len(tokens) - 2)) == len(tokens) - 2


def test_shipped_vocabulary_has_what_prompts_need_as_single_tokens():
    known = set(VOCABULARY)
    assert tuple(VOCABULARY[:5]) == SPECIAL_TOKENS
    assert len(known) == len(VOCABULARY) <= 4000
    needed = [*NEUTRAL, *COLOURS, *(p for row in SCENES.values() for p in row)]
    needed += [w for row in STYLE_WORDS.values() for w in row]
    needed += ["gradient background", "cat toy", "oil painting", "backpack", "style"]
    held_out = [line.split("#")[1] for line in HOLDOUT.read_text().splitlines() if line[0] != "#"]
    assert len(held_out) == 100
    assert not {w for text in needed + held_out for w in words_of(text)} - known
