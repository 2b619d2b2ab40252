"""A little English, for prompts that are put together and for what is told."""

from __future__ import annotations

from functools import cache

from ldm.paths import PACKAGE

_VOWEL_BUT_A = ("uni", "eu", "uk", "ufo", "one", "use", "ewe")


_CONSONANT_BUT_AN = ("hour", "honest", "heir", "x-ray", "8", "11", "sos", "atm")


def article(name: str) -> str:
    """``"a "``, ``"an "`` or ``""`` (plural and uncounted names) for a normalised name."""
    words = name.split()
    tail = (i for i, w in enumerate(words) if i and (w in _PREPOSITIONS or w.endswith("ing")))
    head = next(tail, len(words))
    noun = words[head - 1]
    plural = noun.endswith("s") and not noun.endswith(("ss", "us", "is")) and noun != "lens"
    if noun in _UNCOUNTED or words[-1] in _UNCOUNTED or plural or name.startswith("statue of"):
        return ""
    if name.startswith(_CONSONANT_BUT_AN):
        return "an "
    return "an " if name[0] in "aeiou" and not name.startswith(_VOWEL_BUT_A) else "a "


def counted(number: int, noun: str) -> str:
    """``"1 word"``, ``"2 words"``: a number and a noun whose plural ends in s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


_UNCOUNTED = frozenset(
    """tennis bowling badminton pong fog foggy popcorn bacon garlic broccoli rice spaghetti sushi
    butter salt honey ice wood fire soap money yarn coral sake tea oden dango football volleyball
    baseball basketball softball lacrosse hockey golf boxing fuji bread falafel food cooking milk
    dna clothes weather music mail medicine construction camping landscape paper custard fondue
    kaaba saturn""".split()
)


@cache
def _english() -> frozenset[str]:
    return frozenset((PACKAGE / "assets" / "bert" / "vocab.txt").read_text("utf-8").split())


def is_english(word: str) -> bool:
    """Whether a word in small letters is one of the 20,000 that English texts have most of: BERT's."""
    return word in _english()


#: words that name nothing; longer ones than two letters
FUNCTION_WORDS = frozenset(
    """the and for with without from that this these those there here are was were been being has have had
    will would can could shall should may might must not nor but yet then than too very just also only even
    its his her hers him them they their theirs you your yours our ours she who whom whose which what when
    where why how all any both each few more most other some such own same into onto upon over under above
    below off out near after before again once about against between through during until while because
    one two three four five six seven eight nine ten""".split()
)


_PREPOSITIONS = frozenset("with without of in on under behind over for at showing and".split())
