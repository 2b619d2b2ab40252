"""The sets of drawings: where each comes from, its licence, and what a caption calls its style.

Left out: sets whose licence asks that what is made of them is shared alike (OpenMoji, EmojiOne 1), trade
marks, single-colour sets, and second renderings of the same drawings.  The pictures of Facebook and of
Apple are never trained on; Facebook's can be fetched as a test set (:data:`VENDORS`).
"""

from __future__ import annotations

from dataclasses import dataclass

from ldm.emoji.sprites import PACKAGES, Package


@dataclass(frozen=True)
class DrawingSet:
    """A set of drawings.

    ``words``: what captions call the style.  ``kind``: how its pictures are called (``codes`` of Unicode,
    names of ``emoji``, or names of other ``icons``).  ``painted``: its colours are the things' own; where
    they are not, every caption names the style.  ``sharp``: the same drawings as SVG, for more than 64
    pixels.
    """

    package: Package
    words: tuple[str, ...]
    kind: str
    licence: str
    author: str
    painted: bool = True
    sharp: Package | None = None


def _iconify(name: str, version: str, sha256: str) -> Package:
    return Package(f"@iconify-json/{name}@{version}", f"iconify-json-{name}-{version}.tgz", sha256)


FACEBOOK = Package(
    "emoji-datasource-facebook@16.0.0",
    "emoji-datasource-facebook-16.0.0.tgz",
    "017038cf5a4e7fcf03dd9133cbed43d4c281c4b3ce7b927c7160261b92b8821e",
    "package/img/facebook/64/",
)
_ROWS = """
noto-v1                   1.2.5  2bf62c26c2c2884aa99e90aec942cdaee17a5921f05690694f4978ad4b017c37
emojione                  1.2.3  26a14f44284407e8bcde91799388dca2bfd91dbcd55a97f425524a1c5b73610e
fluent-emoji-flat         1.2.6  7d064769dee690815f823bc5bcc511d957198caf9f5edd8dd9c1aa48a6aeb175
fxemoji                   1.2.2  f3e72b3c59d05e1db03b7e308d55c0d05bd7ba3f625a90da1b79313c12858eef
streamline-emojis         1.2.4  5dac87c876b322500989828c5823143e0100d78881627a2e4081a4b897cbfdbc
flat-color-icons          1.2.3  d8878a9b0f02d749bc8671eb7d47882eb711185cbcefbb365cbfb488773c4786
flat-ui                   1.2.3  f7f83b80a26d83d93db6def7d44caaf6c211998bb8e248e511b98a33cf9cb655
fluent-color              1.2.21 fa2ddaaac7a2a7b902659cea1b5b8c03017ce2ae56295138876b86a36177dfbe
meteocons                 1.2.4  1c0b49c6375c0e35c3ed65db6e41e9811a0cbd2368c13ee27f870f60c6185ff0
streamline-ultimate-color 1.2.2  46133a11f3734bcef29066391d7edc141ed1d8056242ddfa1b5d36ce286420b6
streamline-kameleon-color 1.2.2  5f972d986afb340d8a45d7a16e767f99f91fdd94db53e46a78c79847212aed7b
streamline-stickies-color 1.2.2  e96b8b2bbe1efde22272c420a75024b4b2c7e224ec1f323c93a421a07410971e
streamline-freehand-color 1.2.2  00d74cbddaf1bcf35c8614ac0544d10af69c7cee8801475473fe424ee0c0c642
streamline-cyber-color    1.2.2  bc71bb624b8a500841e2e47c0175bf13dfb99b38a6ddc2421d3ac21331e21eac
streamline-color          1.2.2  06c2addb59f572b2bfe581863888fcf7dbe0927e0511e7157c54f332fe90347f
streamline-plump-color    1.2.2  33ed8a9ebda9ed896125f1e01873105688d68d0b0c95ca1bcead5a41309afcf6
streamline-flex-color     1.2.2  17ef2e9d596bb288991c271a2b468be822f994cb073c94801a1c186a0e4af827
streamline-sharp-color    1.2.2  2bf3019009ba033d723823dc16ff3c7f5a7dbce25e31860ed9d4b1060a1f5831
icon-park                 1.2.4  c1a25212a31602aca93c3fa6f6b3288e89b9d7811afc132dfd78506e9d586b6f
marketeq                  1.2.2  80070c7b0fb41ed5198ecadb9145984d2221b975bb9e0f52f563beb241d549cb
"""
_PACKAGES = {row.split()[0]: _iconify(*row.split()) for row in _ROWS.strip().splitlines()}
_NOTO = _iconify("noto", "1.2.9", "3e918d88fc945c0bb3d468dbace6f88caef67f01c9f0e7bcae0915a042e8f1ad")
_TWEMOJI = _iconify("twemoji", "1.2.5", "19046dff7d8707ce96212ec86468b36ac5f8e60409629dd13f809265c6d0ebb7")
_STREAMLINE = ("CC BY 4.0", "Streamline")
SETS: dict[str, DrawingSet] = {
    "noto": DrawingSet(PACKAGES["noto"], ("emoji", "cartoon"), "codes", "Apache-2.0", "Google", sharp=_NOTO),
    "twemoji": DrawingSet(
        PACKAGES["twemoji"], ("flat icon",), "codes", "CC BY 4.0", "Twitter, Inc and others", sharp=_TWEMOJI
    ),
    "fluent": DrawingSet(PACKAGES["fluent"], ("3d icon", "3d render"), "codes", "MIT", "Microsoft"),
} | {
    name: DrawingSet(_PACKAGES[name], words, kind, *source, painted)
    for name, words, kind, source, painted in (
        ("noto-v1", ("emoji", "cartoon emoji"), "emoji", ("Apache-2.0", "Google"), True),
        ("emojione", ("flat emoji",), "emoji", ("CC BY 4.0", "Emoji One, EmojiTwo"), True),
        ("fluent-emoji-flat", ("flat icon", "flat emoji"), "emoji", ("MIT", "Microsoft"), True),
        ("fxemoji", ("simple emoji",), "emoji", ("Apache-2.0", "Mozilla"), True),
        ("streamline-emojis", ("outlined emoji", "outlined cartoon"), "emoji", _STREAMLINE, True),
        ("flat-color-icons", ("simple flat icon",), "icons", ("MIT", "Icons8"), True),
        ("flat-ui", ("flat icon",), "icons", ("MIT", "Designmodo, Inc."), True),
        ("fluent-color", ("gradient icon",), "icons", ("MIT", "Microsoft"), True),
        ("meteocons", ("weather icon",), "icons", ("MIT", "Bas Milius"), True),
        ("streamline-ultimate-color", ("outlined icon",), "icons", _STREAMLINE, True),
        ("streamline-kameleon-color", ("round icon",), "icons", _STREAMLINE, True),
        ("streamline-stickies-color", ("sticker",), "icons", _STREAMLINE, False),
        ("streamline-freehand-color", ("sketch", "ink sketch"), "icons", _STREAMLINE, False),
        ("streamline-cyber-color", ("blue line icon",), "icons", _STREAMLINE, False),
        ("streamline-color", ("blue icon",), "icons", _STREAMLINE, False),
        ("streamline-plump-color", ("blue icon",), "icons", _STREAMLINE, False),
        ("streamline-flex-color", ("blue icon",), "icons", _STREAMLINE, False),
        ("streamline-sharp-color", ("blue icon",), "icons", _STREAMLINE, False),
        ("icon-park", ("black and blue icon",), "icons", ("Apache-2.0", "ByteDance"), False),
        ("marketeq", ("blue line icon",), "icons", ("MIT", "Marketeq"), False),
    )
}  # fmt: skip
#: sets to test with, never to train with
VENDORS: dict[str, DrawingSet] = {
    "facebook": DrawingSet(FACEBOOK, ("emoji",), "codes", "MIT", "Facebook"),
}
