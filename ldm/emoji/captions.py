"""Words of the emoji pictures: labels, synonyms, compositional captions, and the vocabulary.

A caption has three parts, each drawn on its own: how the picture is made ("a flat icon of", or a
neutral template of the Textual Inversion paper), what it shows ("a red apple"), and where ("on a
blue background").  A model that learned them apart can put a new word into the middle one.
"""

import re
import unicodedata
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import NamedTuple

from ldm.inversion.templates import OBJECT
from ldm.text.english import article

STYLES = ("noto", "twemoji", "fluent")
STYLE_WORDS = {
    "noto": ("emoji", "cartoon"),
    "twemoji": ("flat icon",),
    "fluent": ("3d icon", "3d render"),
}

# The paper's templates: those that claim a size go to objects of that size, the others anywhere.
_SIZE_WORDS = {"large": ("close-up", "large"), "small": ("small",)}
SIZED = {
    size: tuple(t for t in OBJECT if any(word in t for word in words)) for size, words in _SIZE_WORDS.items()
}
NEUTRAL = tuple(t for t in OBJECT if not any(t in row for row in SIZED.values())) + (
    "a picture of a {}",
    "a picture of the {}",
)

# What the user may call the thing when its own name is unknown: coarse words by Unicode subgroup.
COARSE = {
    "animal-mammal": "animal", "animal-bird": "bird", "animal-amphibian": "animal",
    "animal-reptile": "reptile", "animal-marine": "sea animal", "animal-bug": "insect",
    "plant-flower": "flower", "plant-other": "plant", "food-fruit": "fruit",
    "food-vegetable": "vegetable", "food-prepared": "food", "food-asian": "food",
    "food-sweet": "dessert", "drink": "drink", "dishware": "dish", "place-geographic": "landscape",
    "place-building": "building", "place-religious": "building", "transport-ground": "vehicle",
    "transport-water": "boat", "transport-air": "aircraft", "time": "clock",
    "sky-weather": "weather", "award-medal": "award", "sport": "sport", "game": "game",
    "clothing": "clothes", "music": "music", "musical-instrument": "instrument",
    "phone": "phone", "computer": "computer", "light-video": "device", "book-paper": "paper",
    "money": "money", "mail": "mail", "writing": "pen", "office": "office supplies",
    "lock": "lock", "tool": "tool", "science": "tool", "medical": "medicine",
    "household": "household object", "other-object": "object", "sound": "sound",
    "face-smiling": "face", "face-affection": "face", "face-tongue": "face", "face-hand": "face",
    "face-neutral-skeptical": "face", "face-sleepy": "face", "face-unwell": "face",
    "face-hat": "face", "face-glasses": "face", "face-concerned": "face", "face-negative": "face",
    "face-costume": "creature", "cat-face": "cat", "monkey-face": "monkey", "heart": "heart",
    "hand-fingers-open": "hand", "hand-fingers-partial": "hand", "hand-single-finger": "hand",
    "hand-fingers-closed": "hand", "hands": "hands", "body-parts": "body part",
    "person": "person", "person-gesture": "person", "person-role": "person",
    "person-fantasy": "person", "person-activity": "person", "person-sport": "person",
    "person-resting": "person", "arrow": "arrow", "zodiac": "sign", "transport-sign": "sign",
}  # fmt: skip

# Tags that name the thing (most tags are adjectives, verbs or moods), read through by hand.
NOUN_TAGS = frozenset(
    """ape puppy kitten feline elk burro mule racehorse buffalo wisent bull sow snout sheep lamb
    dromedary alpaca guanaco hippo squirrel joey cygnet plumage peahen crow raven gander tortoise
    terrapin serpent brachiosaurus brontosaurus dinosaur tyrannosaurus conch reef mollusk slug bee
    bumblebee ladybird ladybug grasshopper roach earthworm bacteria buttercup dandelion lavender
    lilac sprout pine fungus toadstool cantaloupe nectarine aubergine maize capsicum pickle
    cabbage lettuce kale peanut edamame loaf toast pancake drumstick steak burger frankfurter
    hotdog sausage gyro kebab casserole paella soup stew porridge cereal oatmeal ramen noodle
    pasta prawn tempura skewer empanada potsticker donut coffee chai martini cocktail ale whiskey
    scotch soda boba juice cutlery jug crane bricks boulder log timber lumber yurt
    chapel subway caboose van cab suitcase trolley yacht motorboat jet copter gondola ufo timer
    saturn thunderstorm whirlwind hurricane typhoon twister flame pumpkin dynamite present
    puck shuttlecock racquet sleigh sledge toboggan revolver dice jigsaw plush doll matryoshka
    rope cord spool eyeglasses jacket tie pants trousers underwear pouch rucksack satchel sneaker
    slipper stiletto comb necklace jewel mic earbud sax concertina piano conga shaker piccolo
    torch monitor calculator camcorder tape tag parcel notepad trash garbage hatchet spanner cog
    horseshoe chest skeleton shampoo pail brush tombstone grave amulet statue""".split()
)


def normalize_label(label: str) -> str:
    """Emojibase label -> caption words: lower case, ASCII, only ``-`` and ``'`` as punctuation."""
    text = unicodedata.normalize("NFKD", label.replace("’", "'").lower())
    text = "".join(c for c in text if not unicodedata.combining(c))
    text = text.replace("keycap: #", "keycap hash").replace("keycap: *", "keycap asterisk")
    text = text.replace("keycap: ", "keycap ")
    text = re.sub(r"^(\w+): bald$", r"bald \1", text)
    text = text.replace(": ", " with ", 1) if ": " in text else text
    text = re.sub(r"[^a-z0-9'\- ]+", " ", text)
    return " ".join(text.split())


def words_of(text: str) -> list[str]:
    """The whole words of a text as BERT's pre-tokenizer sees them: split at every punctuation."""
    return re.findall(r"[a-z0-9]+", normalize_label(text).replace("_", " "))


class Background(NamedTuple):
    """What is behind the object, for the caption: ``kind`` is solid, gradient or scene."""

    kind: str
    words: tuple[str, ...]  # (colour,), (first colour, second colour) or the scene's phrases


def _place(background: Background, u: float, v: float) -> str:
    """The part of the caption that says where, with its leading space; may be empty."""
    if background.kind == "scene":
        return "" if u > 0.92 else " " + background.words[int(v * len(background.words))]
    colours = " and ".join(background.words)
    if background.kind == "gradient":
        return "" if u > 0.92 else f" on {article(colours)}{colours} gradient background"
    if u > 0.85:
        return ""
    if v < 0.74:
        return f" on {article(colours)}{colours} background"
    if v < 0.82:
        return f" with {article(colours)}{colours} background"
    if v < 0.90:
        return f" against {article(colours)}{colours} background"
    return f" on a plain {colours} background" if v < 0.95 else f" on {colours}"


def fill(template: str, name: str) -> str:
    """Put a name into a template with the right article: ``a photo of a {}`` -> ``... an egg``."""
    head, tail = template.split("{}")
    if match := re.search(r"\ba ((?:[a-z]+ )?)$", head):
        adjective = match[1]
        if adjective:
            lead = "a " if article(name) else ""
        else:
            lead = article(name)
        return f"{head[: match.start()]}{lead}{adjective}{name}{tail}"
    if head.endswith("one ") and not article(name):
        head = head[: -len("one ")] + "the "
    return f"{head}{name}{tail}"


def _thing(name: str, styled: Sequence[str], scale: float, u: float, v: float, w: float) -> str:
    """The first part of a caption; 60 % name the style (one of ``styled``), 40 % do not."""
    if u < 0.60:
        word = styled[int(v * len(styled))]
        if w < 0.55:
            return f"{article(word)}{word} of {article(name)}{name}"
        if w < 0.80:
            return f"{article(name)}{name} {word}"
        if w < 0.95:
            return f"{article(name)}{name}, {word}"
        return f"{article(name)}{name} in {word} style"
    if u < 0.70:
        return f"{article(name)}{name}"
    size = "large" if scale > 0.86 else "small" if scale < 0.62 else ""
    if size and w < 0.4:
        return fill(SIZED[size][int(v * len(SIZED[size]))], name)
    return fill(NEUTRAL[int(v * len(NEUTRAL))], name)


class Captioner:
    """Names of every concept, and captions from uniform numbers.

    ``labels`` (N,) normalised; ``tags`` and ``subgroups`` (N,) as prepared; ``reserved``: names
    that may not appear as a synonym (every concept's own label, held-out ones too); ``words``: what
    each style is called; ``always``: styles that every caption names.
    """

    NUMBERS = 7  # uniform numbers a caption takes

    def __init__(
        self,
        labels: Sequence[str],
        tags: Sequence[Sequence[str]],
        subgroups: Sequence[str],
        reserved: Iterable[str] = (),
        words: Mapping[str, Sequence[str]] = STYLE_WORDS,
        always: Collection[str] = (),
    ) -> None:
        self.words, self.always = words, frozenset(always)
        taken = set(reserved) | set(labels)
        counts = Counter(tag for row in tags for tag in row)
        self.labels = list(labels)
        self.synonyms = [
            [t for t in row if t in NOUN_TAGS and counts[t] <= 3 and t not in taken] for row in tags
        ]
        self.coarse = [COARSE.get(subgroup) for subgroup in subgroups]

    def name(self, concept: int, u: float, v: float) -> str:
        """80 % the label, else a synonym, else (8 %) the coarse word."""
        coarse, synonyms = self.coarse[concept], self.synonyms[concept]
        if u >= 0.92 and coarse:
            return coarse
        if u >= 0.80 and synonyms:
            return synonyms[int(v * len(synonyms))]
        return self.labels[concept]

    def caption(
        self,
        concept: int,
        style: str,
        scale: float,
        background: Background,
        numbers: Sequence[float],
        name: str | None = None,
    ) -> str:
        """One caption from :attr:`NUMBERS` uniform numbers in [0, 1); ``name``: use this one."""
        a, b, c, d, e, f, g = numbers
        name = name or self.name(concept, a, b)
        if style in self.always:
            c *= 0.60
        return _thing(name, self.words[style], scale, c, d, e) + _place(background, f, g)
