"""A little English, for prompts that are put together."""

from __future__ import annotations

from ldm.emoji.captions import _PREPOSITIONS, _UNCOUNTED

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
