"""Emoji sprites: three drawn styles of every concept, prepared from packages of the npm registry.

Noto (Apache-2.0), Twemoji (CC-BY 4.0) and Fluent 3D (MIT) pictures, names and tags from emojibase
(MIT).  :func:`prepare` fetches and resizes them once; :class:`EmojiSprites` reads the result;
``ldm.emoji.compose`` draws training pictures from it; ``ldm.emoji.drawings`` fetches many
more sets into the same format.
"""

import hashlib
import io
import json
import random
import shutil
import subprocess
import tarfile
import tempfile
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from rich.progress import Progress
from torch import Tensor

from ldm.emoji.captions import STYLES, normalize_label, words_of
from ldm.errors import UserError
from ldm.io.atomic import atomic_write
from ldm.paths import found

SPRITE_SIZE = 64
GROUPS = {
    0: "smileys-emotion", 1: "people-body", 3: "animals-nature", 4: "food-drink",
    5: "travel-places", 6: "activities", 7: "objects", 8: "symbols",
}  # fmt: skip
NAMED_THINGS = ("animals-nature", "food-drink", "travel-places", "activities", "objects")


@dataclass(frozen=True)
class Package:
    """A pinned npm package; ``folder`` holds its pictures inside the tarball."""

    spec: str
    tarball: str
    sha256: str
    folder: str = ""


PACKAGES = {
    "noto": Package(
        "emoji-datasource-google@16.0.0",
        "emoji-datasource-google-16.0.0.tgz",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438",
        "package/img/google/64/",
    ),
    "twemoji": Package(
        "emoji-datasource-twitter@16.0.0",
        "emoji-datasource-twitter-16.0.0.tgz",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877",
        "package/img/twitter/64/",
    ),
    "fluent": Package(
        "@lobehub/fluent-emoji-3d@1.1.0",
        "lobehub-fluent-emoji-3d-1.1.0.tgz",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58",
        "package/assets/",
    ),
    "names": Package(
        "emojibase-data@17.0.0",
        "emojibase-data-17.0.0.tgz",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a",
    ),
}


@dataclass(frozen=True)
class Concept:
    """One emoji: ``hex`` lower-case code points without fe0f, ``label`` normalised for captions."""

    hex: str
    label: str
    tags: tuple[str, ...]
    group: str
    subgroup: str


def hex_code(code: str) -> str:
    """Lower-case code points without fe0f."""
    return "-".join(part for part in code.lower().split("-") if part != "fe0f")


def tarball(package: Package, packages: Path | None, temporary: Path) -> Path:
    """Path of the verified tarball, from the user's folder or through ``npm pack``."""
    if packages is None:
        npm = shutil.which("npm")
        if npm is None:
            raise UserError(
                "npm was not found: install Node.js, or download the packages yourself and "
                "pass the folder with their .tgz files"
            )
        command = [npm, "pack", package.spec, "--silent", "--pack-destination", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=temporary)
        if done.returncode:
            reason = (done.stderr.strip().splitlines() or ["no message"])[-1]
            raise UserError(f"npm pack {package.spec} failed ({reason}): check npm's registry")
    path = (packages or temporary) / package.tarball
    if not path.is_file():
        raise UserError(f"{path} is missing: put the output of `npm pack {package.spec}` there")
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    if digest != package.sha256:
        raise UserError(f"{path} is damaged or another version: get {package.spec} again")
    return path


def members(path: Path, wanted: Collection[str] | None, folder: str) -> Iterator[tuple[str, bytes]]:
    """(name, content) of files in a tarball folder, or of the ``wanted`` full names."""
    with tarfile.open(path, "r:gz") as archive:
        for member in archive:
            inside = member.name in wanted if wanted else member.name.startswith(folder)
            if inside and member.isfile() and (stream := archive.extractfile(member)):
                yield member.name, stream.read()


def fitted(data: bytes, size: int = SPRITE_SIZE) -> np.ndarray:
    """Picture file -> (size, size, 4) uint8 premultiplied RGBA whose object touches the edges."""
    image = Image.open(io.BytesIO(data)).convert("RGBA")
    box = image.getchannel("A").point(lambda a: 255 if a > 24 else 0).getbbox()
    image = image.crop(box) if box else image
    side = max(image.size)
    square = Image.new("RGBA", (side, side))
    square.paste(image, ((side - image.width) // 2, (side - image.height) // 2))
    # Premultiplied first: the colour of transparent pixels must not bleed over the edge.
    small = square.convert("RGBa").resize((size, size), Image.Resampling.LANCZOS)
    # RGBa cannot become an array; convert() would divide by alpha, so read the raw bytes.
    pixels = np.frombuffer(small.tobytes(), np.uint8).reshape(size, size, 4)
    return np.minimum(pixels, pixels[..., 3:])  # LANCZOS rings: no colour above its own alpha


def emoji_concepts(path: Path) -> list[Concept]:
    """Concepts of the emojibase tarball, in Unicode order; flags, components and skin tones left out."""
    wanted = {f"package/{name}" for name in ("en/data.json", "meta/groups.json")}
    files = {name: json.loads(data) for name, data in members(path, wanted, "")}
    subgroups = files["package/meta/groups.json"]["subgroups"]
    entries = [e for e in files["package/en/data.json"] if e.get("group") in GROUPS]
    return [
        Concept(
            hex_code(e["hexcode"]),
            normalize_label(e["label"]),
            tuple(dict.fromkeys(normalize_label(t) for t in e.get("tags", []))),
            GROUPS[e["group"]],
            subgroups[str(e["subgroup"])],
        )
        for e in sorted(entries, key=lambda e: e["order"])
    ]


def prepare(root: Path, packages: Path | None = None, progress: bool = True) -> Path:
    """Fetch the four packages and write ``root/sprites.npz`` and ``root/concepts.json``.

    ``packages``: a folder that already holds the four tarballs; without it ``npm pack`` fetches
    them (150 MB) with the user's own npm settings.  Sprites are (N, 3, 64, 64, 4) uint8
    premultiplied RGBA in the order of :data:`STYLES`.  Raises :class:`UserError`.
    """
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, Progress(disable=not progress) as bar:
        task = bar.add_task("fetching packages", total=len(PACKAGES))
        tarballs: dict[str, Path] = {}
        for name, package in PACKAGES.items():
            tarballs[name] = tarball(package, packages, Path(folder))
            bar.advance(task)
        concepts = emoji_concepts(tarballs["names"])
        known = {c.hex for c in concepts}
        drawn: dict[str, dict[str, np.ndarray]] = {}
        for style in STYLES:
            task = bar.add_task(f"resizing {style}", total=len(known))
            found = drawn.setdefault(style, {})
            for name, data in members(tarballs[style], None, PACKAGES[style].folder):
                code = hex_code(Path(name).stem)
                if code in known:
                    found[code] = fitted(data)
                    bar.advance(task)
    concepts = [c for c in concepts if all(c.hex in found for found in drawn.values())]
    return write(root, concepts, [[drawn[s][c.hex] for s in STYLES] for c in concepts])


def write(root: Path, concepts: Sequence[Concept], drawings: Sequence[Sequence[np.ndarray]]) -> Path:
    """Write of every concept its drawings (S, S, 4) uint8 in the order of :data:`STYLES`."""
    rows = np.array([(i, k) for i, several in enumerate(drawings) for k in range(len(several))])
    sprites = np.stack([drawings[i][k] for i, k in rows])
    return write_drawings(root, concepts, sprites, rows[:, 0], rows[:, 1], STYLES)


def write_drawings(
    root: Path,
    concepts: Sequence[Concept],
    sprites: np.ndarray,
    concept: np.ndarray,
    style: np.ndarray,
    styles: Sequence[str],
) -> Path:
    """Write ``root/sprites.npz`` and ``root/concepts.json``.

    ``sprites`` (M, S, S, 4) uint8 premultiplied RGBA; ``concept`` and ``style`` (M,): whose drawing each one
    is, an index of ``concepts``, and in which style, an index of ``styles``.
    """
    root.mkdir(parents=True, exist_ok=True)
    with atomic_write(root / "sprites.npz") as path, open(path, "wb") as stream:
        np.savez(
            stream,
            sprites=sprites,
            concept=concept.astype(np.int64),
            style=style.astype(np.int64),
            styles=np.array(styles),
        )
    with atomic_write(root / "concepts.json") as path:
        path.write_text(json.dumps([asdict(c) for c in concepts], indent=0), encoding="utf-8")
    return root


def read_concepts(root: Path) -> list[Concept]:
    """All concepts of a prepared folder, in Unicode order; things that are no emoji come last."""
    rows = json.loads((root / "concepts.json").read_text(encoding="utf-8"))
    return [Concept(**{**row, "tags": tuple(row["tags"])}) for row in rows]


def read_sprites(
    root: Path,
) -> tuple[list[Concept], np.ndarray, np.ndarray, np.ndarray, tuple[str, ...]]:
    """What :func:`write_drawings` wrote: concepts, sprites (M, S, S, 4), concept and style (M,), styles."""
    root = Path(root)
    if not (root / "sprites.npz").is_file() or not (root / "concepts.json").is_file():
        raise UserError(f"no prepared emoji in {root}: run ldm train data first")
    with np.load(root / "sprites.npz") as archive:
        arrays = dict(archive)
    sprites = arrays["sprites"]
    if "concept" not in arrays:  # (N, 3, 64, 64, 4), as it was written before there were more sets
        n, k = sprites.shape[:2]
        concept, style = np.divmod(np.arange(n * k), k)
        return read_concepts(root), sprites.reshape(-1, *sprites.shape[2:]), concept, style, STYLES
    styles = tuple(arrays["styles"].tolist())
    return read_concepts(root), sprites, arrays["concept"], arrays["style"], styles


def checked_groups(groups: Iterable[str] | None) -> set[str]:
    """The groups asked for (None: all eight); an unknown one is a UserError."""
    chosen = set(GROUPS.values()) if groups is None else set(groups)
    if unknown := chosen - set(GROUPS.values()):
        raise UserError(f"unknown emoji group {min(unknown)}: use {', '.join(GROUPS.values())}")
    return chosen


@dataclass(frozen=True)
class EmojiSprites:
    """Concepts and their sprites.

    Attributes:
        concepts: N of them.
        sprites: (N, 3, 64, 64, 4) uint8 premultiplied RGBA, second axis as :data:`STYLES`.
        reserved: the labels of all prepared concepts, also of those left out.
    """

    concepts: tuple[Concept, ...]
    sprites: Tensor
    reserved: frozenset[str]

    @classmethod
    def load(
        cls,
        root: Path,
        groups: Iterable[str] | None = None,
        exclude: Collection[str] = (),
        only: Collection[str] | None = None,
    ) -> "EmojiSprites":
        """Read what :func:`prepare` wrote.

        Args:
            groups: names to keep (None: all eight).
            exclude, only: hex codes to leave out, and to keep (None: all).

        Raises:
            UserError: an unknown group, an unprepared folder, or nothing is left.
        """
        chosen = checked_groups(groups)
        concepts, sprites, concept, style, styles = read_sprites(root)
        row = np.full((len(concepts), len(STYLES)), -1)  # where each style draws a concept first
        for k, name in enumerate(STYLES):
            if name in styles:
                found, first = np.unique(concept[style == styles.index(name)], return_index=True)
                row[found, k] = np.flatnonzero(style == styles.index(name))[first]
        drawn = [i for i in range(len(concepts)) if (row[i] >= 0).all()]
        keep = [
            i
            for i in drawn
            if concepts[i].group in chosen
            and concepts[i].hex not in exclude
            and (only is None or concepts[i].hex in only)
        ]
        if not keep:
            raise UserError("no emoji left: the groups and hex codes asked for exclude each other")
        labels = frozenset(concepts[i].label for i in drawn)
        return cls(tuple(concepts[i] for i in keep), torch.from_numpy(sprites[row[keep]]), labels)

    def __len__(self) -> int:
        return len(self.concepts)

    def index(self, code: str) -> int:
        """Position of a hex code or of a label; an unknown one is a UserError."""
        for i, concept in enumerate(self.concepts):
            if code in (concept.hex, concept.label):
                return i
        raise UserError(f"no emoji {code} here: give a hex code such as {self.concepts[0].hex}")


def load_holdout(path: Path) -> frozenset[str]:
    """Hex codes of a file with one a line; ``#`` starts a comment."""
    lines = found(path).read_text(encoding="utf-8").splitlines()
    return frozenset(code for line in lines if (code := hex_code(line.split("#")[0].strip())))


def choose_holdout(concepts: Iterable[Concept], seed: int = 0, count: int = 100) -> list[Concept]:
    """The held-out concepts: a seeded draw among those with no near twin.

    A twin's label has all the words of the other ("tiger", "tiger face"; "house", "houses") or
    differs in one ("red apple", "green apple").  Times of day and the sky are left
    out (clock faces, moon phases), and so are labels of more than two words.
    """
    everything = list(concepts)
    bags = {c.hex: {w.removeprefix("un").rstrip("s") for w in words_of(c.label)} for c in everything}

    def has_twin(c: Concept) -> bool:
        own = bags[c.hex]
        for other in (bags[o.hex] for o in everything if o.hex != c.hex):
            if own <= other or other <= own:
                return True
            if own & other and len(own - other) == len(other - own) == 1:
                return True
        return False

    def named(c: Concept) -> bool:
        short = len(c.label.split()) <= 2
        return c.group in NAMED_THINGS and c.subgroup not in ("time", "sky-weather") and short

    candidates = [c for c in everything if named(c) and not has_twin(c)]
    chosen = random.Random(seed).sample(candidates, count)
    return sorted(chosen, key=lambda c: c.hex)
