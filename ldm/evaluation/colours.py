"""Named colours: what a prompt calls them, and what a picture's border is measured against."""

from __future__ import annotations

# Named colours, sRGB 0..255: pairwise at least 80 apart, so +-JITTER never changes the name.
COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (220, 30, 35),
    "green": (40, 165, 60),
    "blue": (35, 85, 215),
    "yellow": (252, 222, 50),
    "white": (250, 250, 250),
    "black": (12, 12, 12),
    "pink": (250, 160, 195),
    "purple": (125, 45, 165),
    "orange": (245, 125, 20),
    "gray": (135, 135, 135),
    "brown": (115, 70, 35),
    "teal": (0, 160, 165),
}


COLOUR_NAMES = tuple(COLOURS)
