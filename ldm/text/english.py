"""A little English, for prompts that are put together and for what is told."""

from __future__ import annotations

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


_PREPOSITIONS = frozenset("with without of in on under behind over for at showing and".split())
