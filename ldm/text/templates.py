"""The caption templates of Textual Inversion (Gal et al. 2022, supplementary; official code).

A template is a sentence with ``{}`` where the placeholder goes, and a dual one has a second ``{}``
for the word of one training image. Repeats are kept: they are drawn more often.
"""

from ldm.errors import UserError

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

SETS: dict[str, tuple[str, ...]] = {
    "plain": PLAIN,
    "photo": PHOTO,
    "object": OBJECT,
    "style": STYLE,
    "dual": DUAL,
    "style-dual": STYLE_DUAL,
}


def templates(kind: str) -> tuple[str, ...]:
    """A set by name.

    "object" (81 sentences, 57 of them different, as in the official code), "photo" (its first 27,
    the paper's), "style" (19), "dual" (27) and "style-dual" (19) with an image's own word, "plain"
    ("a photo of a {}").

    Raises:
        UserError: there is no such set.
    """
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
