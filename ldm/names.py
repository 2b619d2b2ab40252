"""The one spelling of a name: what is compared, stored and looked up is the same string everywhere."""

from __future__ import annotations

import unicodedata


def normal(name: str) -> str:
    """NFC, blanks of any kind (tab, newline, no-break space) as single spaces, none around it.

    >>> normal("  cafe\\u0301\\u00a0 bar ")
    'café bar'
    """
    return " ".join(unicodedata.normalize("NFC", name).split())
