"""The caption templates of Textual Inversion (Gal et al. 2022, supplementary; official code).

A template is a sentence with ``{}`` where the placeholder goes, and a dual one has a second ``{}``
for the word of one training image. Repeats are kept: they are drawn more often. One's own are a list of
sentences, or a text file with one a line.
"""

import hashlib
from collections.abc import Sequence
from pathlib import Path

from ldm.errors import UserError
from ldm.io.files import read_text
from ldm.paths import expanded

# "<medium>" stands for what the picture is; sentences without it are the same in every set
_SUBJECT = (
    "a <medium> of a {}",
    "a rendering of a {}",
    "a cropped photo of the {}",
    "the photo of a {}",
    "a <medium> of a clean {}",
    "a <medium> of a dirty {}",
    "a dark photo of the {}",
    "a <medium> of my {}",
    "a <medium> of the cool {}",
    "a close-up photo of a {}",
    "a bright photo of the {}",
    "a cropped photo of a {}",
    "a <medium> of the {}",
    "a good photo of the {}",
    "a <medium> of one {}",
    "a close-up photo of the {}",
    "a rendition of the {}",
    "a <medium> of the clean {}",
    "a rendition of a {}",
    "a <medium> of a nice {}",
    "a good photo of a {}",
    "a <medium> of the nice {}",
    "a <medium> of the small {}",
    "a <medium> of the weird {}",
    "a <medium> of the large {}",
    "a <medium> of a cool {}",
    "a <medium> of a small {}",
)


def _subject(medium: str) -> tuple[str, ...]:
    return tuple(line.replace("a <medium>", medium) for line in _SUBJECT)


PLAIN = ("a photo of a {}",)
PHOTO = _subject("a photo")
OBJECT = PHOTO + _subject("an illustration") + _subject("a depiction")
STYLE = tuple(
    f"{noun} in the style of {{}}"
    for noun in (
        "a painting",
        "a rendering",
        "a cropped painting",
        "the painting",
        "a clean painting",
        "a dirty painting",
        "a dark painting",
        "a picture",
        "a cool painting",
        "a close-up painting",
        "a bright painting",
        "a cropped painting",
        "a good painting",
        "a close-up painting",
        "a rendition",
        "a nice painting",
        "a small painting",
        "a weird painting",
        "a large painting",
    )
)
DUAL = tuple(f"{line} with {{}}" for line in PHOTO)
STYLE_DUAL = tuple(f"{line} with {{}}" for line in STYLE)

#: Scenes that say much beside the word, for prompts without a picture (``context.templates``), in words that
#: the shipped model knows.
CONTEXT = (
    "a {} in the desert",
    "a {} in a garden",
    "a {} under a tree",
    "a {} in the rain",
    "a {} in front of a house",
    "a {} beside a car",
    "a {} behind a chair",
    "a {} on a wooden table",
    "a {} on a blue sofa",
    "a {} in a red box",
    "a {} with a hat",
    "a {} and a book",
    "a {} next to a cup of tea",
    "a big {} on a road",
    "a small {} near the sea",
    "a green {} on a hill",
    "a painting of a {}",
    "a drawing of a {} on paper",
    "a {} on a yellow background",
)

#: how web UIs write the slot
_FOREIGN_SLOT = "[name]"

SETS: dict[str, tuple[str, ...]] = {
    "plain": PLAIN,
    "photo": PHOTO,
    "object": OBJECT,
    "style": STYLE,
    "dual": DUAL,
    "style-dual": STYLE_DUAL,
    "context": CONTEXT,
}


def read_templates(path: str | Path) -> tuple[str, ...]:
    """The sentences of a text file: one a line, without blank lines and those that begin with #.

    Raises:
        UserError: no such file, a file that cannot be one, or sentences that :func:`templates` refuses.
    """
    path = expanded(path)
    if not path.exists():
        raise UserError(
            f"no template set and no file {str(path)!r}; choose one of {', '.join(SETS)}, or give a list of "
            "sentences or a text file with {} for the word"
        )
    lines = [line.strip() for line in read_text(path, "template file").splitlines()]
    own = tuple(line.replace(_FOREIGN_SLOT, "{}") for line in lines if line and not line.startswith("#"))
    try:
        return templates(own)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def described(kind: str | Sequence[str]) -> str:
    """A set's name, or what tells one's own sentences from others, for an embedding's notes."""
    if isinstance(kind, str):
        return kind
    return f"{len(kind)} own, sha256 {hashlib.sha256(chr(10).join(kind).encode()).hexdigest()[:16]}"


def templates(kind: str | Sequence[str]) -> tuple[str, ...]:
    """A set by name, or one's own sentences, looked at.

    "object" (81 sentences, 57 of them different, as in the official code), "photo" (its first 27,
    the paper's), "style" (19), "dual" (27) and "style-dual" (19) with an image's own word, "plain"
    ("a photo of a {}"), "context" (19 scenes that no picture belongs to).

    Raises:
        UserError: there is no such set, or a sentence of one's own has not the one slot ``{}``.
    """
    if not isinstance(kind, str):
        for line in kind:
            if line.count("{}") != 1:
                raise UserError(f"the template {line!r} needs {{}} once, where the word goes")
        if not kind:
            raise UserError("there are no templates: give at least one sentence with {} for the word")
        return tuple(kind)
    if kind not in SETS:
        raise UserError(f"no template set {kind!r}; choose one of {', '.join(SETS)}")
    return SETS[kind]


def render(template: str, placeholder: str, image_token: str | None = None) -> str:
    """A caption: the placeholder, and in a dual template the image's token, put in.

    Raises:
        UserError: the template has another number of ``{}`` than there are words.
    """
    words = (placeholder,) if image_token is None else (placeholder, image_token)
    parts = template.split("{}")
    if len(parts) != len(words) + 1:
        raise UserError(f"template {template!r} must hold {{}} {len(words)} times")
    return parts[0] + "".join(word + part for word, part in zip(words, parts[1:], strict=True))
