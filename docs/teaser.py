"""The picture at the top of the README: five pictures, the word learned from them, four prompts.

    python docs/teaser.py                                # learns the word and draws (minutes on a CPU)
    python docs/teaser.py --embedding koala.safetensors  # with a word that is learned already

Nothing is chosen: each prompt is drawn once, from the same noise.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont

import ldm
from ldm.io.images import save_png, to_pil

WORD, INIT = "<koala>", "bear"
PROMPTS = (
    "a photo of <koala>\non the beach",
    "a photo of <koala>\nin the snow",
    "a flat icon of <koala>\non a red background",
    "a photo of <koala>\nunder a night sky",
)
#: pixels; everything is drawn twice as large and then halved, for smooth edges
WIDTH, HEIGHT, SCALE = 1340, 312, 2
PHOTO, SAMPLE, GAP = 112, 162, 12
INK, PALE, LINE, ACCENT = "#1f2430", "#6b7280", "#d5d8de", "#4f46e5"


def rounded(picture: Image.Image, side: int, radius: int = 14) -> tuple[Image.Image, Image.Image]:
    """A square picture of ``side`` pixels, and the mask that rounds its corners."""
    side, radius = side * SCALE, radius * SCALE
    mask = Image.new("L", (side, side), 0)
    ImageDraw.Draw(mask).rounded_rectangle((0, 0, side - 1, side - 1), radius, fill=255)
    return picture.convert("RGB").resize((side, side), Image.Resampling.BICUBIC), mask


class Sheet:
    """A white page; places are in pixels of the finished picture."""

    def __init__(self) -> None:
        self.image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
        self.draw = ImageDraw.Draw(self.image)

    def paste(self, picture: Image.Image, x: float, y: float, side: int) -> None:
        square, mask = rounded(picture, side)
        x, y, side = round(x * SCALE), round(y * SCALE), side * SCALE
        self.image.paste(square, (x, y), mask)
        self.draw.rounded_rectangle((x, y, x + side - 1, y + side - 1), 14 * SCALE, outline=LINE, width=SCALE)

    def text(self, x: float, y: float, text: str, size: float, colour: str = INK) -> None:
        """Centred at x; y is the top."""
        font = ImageFont.load_default(size * SCALE)
        place = (x * SCALE, y * SCALE)
        self.draw.multiline_text(place, text, colour, font, anchor="ma", align="center", spacing=4 * SCALE)

    def arrow(self, x: float, y: float, length: float) -> None:
        x, y, length = x * SCALE, y * SCALE, length * SCALE
        self.draw.line((x, y, x + length, y), fill=PALE, width=2 * SCALE)
        head = 7 * SCALE
        self.draw.polygon(
            [(x + length + head, y), (x + length - head / 2, y - head), (x + length - head / 2, y + head)],
            fill=PALE,
        )

    def badge(self, x: float, y: float, text: str, size: float) -> None:
        """A word in a coloured frame, centred at (x, y)."""
        font = ImageFont.load_default(size * SCALE)
        half = self.draw.textlength(text, font) / 2 + 18 * SCALE
        x, y, up = x * SCALE, y * SCALE, 26 * SCALE
        self.draw.rounded_rectangle((x - half, y - up, x + half, y + up), up, fill=ACCENT)
        self.draw.text((x, y), text, "white", font, anchor="mm")

    def finished(self) -> Image.Image:
        return self.image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def compose(photos: list[Image.Image], samples: list[Image.Image], vector: int, steps: str) -> Image.Image:
    """The page of five pictures, a word with ``vector`` numbers and four samples."""
    sheet = Sheet()
    left, top, step = 16, 16, PHOTO + GAP
    middle = top + PHOTO + GAP / 2
    for i, photo in enumerate(photos[:3]):
        sheet.paste(photo, left + i * step, top, PHOTO)
    for i, photo in enumerate(photos[3:5]):
        sheet.paste(photo, left + step / 2 + i * step, top + step, PHOTO)
    edge = left + 3 * step
    sheet.text((left + edge - GAP) / 2, top + step + PHOTO + 16, "five pictures", 16, PALE)
    sheet.arrow(edge - 4, middle, 30)
    centre = edge + 116
    sheet.badge(centre, middle, WORD, 26)
    told = f"a new word: {vector} numbers,\nlearned in {steps} steps;\nthe model stays as it is"
    sheet.text(centre, middle + 38, told, 13.5, PALE)
    sheet.arrow(centre + 82, middle, 30)
    first = centre + 82 + 56
    for i, (prompt, sample) in enumerate(zip(PROMPTS, samples, strict=True)):
        x = first + i * (SAMPLE + GAP + 2)
        sheet.paste(sample, x, middle - SAMPLE / 2 - 14, SAMPLE)
        sheet.text(x + SAMPLE / 2, middle + SAMPLE / 2, prompt, 14.5)
    return sheet.finished()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--images", type=Path, default=Path("configs/emoji/concepts/koala"))
    parser.add_argument("--embedding", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/teaser.png"))
    args = parser.parse_args()
    model = ldm.load("emoji")
    if args.embedding is None:
        word = ldm.invert(model, args.images, WORD, init=INIT)
    else:
        word = ldm.embeddings.load_embedding(args.embedding)
        model.add_placeholder(WORD, word.vectors)
    prompts = [" ".join(prompt.split()) for prompt in PROMPTS]
    samples = [to_pil(image) for image in ldm.sample(model, prompts, draws=[(0, 0)] * len(prompts))]
    photos = [Image.open(path) for path in sorted(args.images.glob("*.png"))]
    steps = word.metadata.get("step", "150")
    save_png(compose(photos, samples, word.vectors.numel(), steps), args.out)


if __name__ == "__main__":
    main()
