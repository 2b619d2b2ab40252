"""Figures in README and documentation are in the files of ``results/`` that are named beside them."""

import re
from decimal import Decimal
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
#: Pages in which every measured figure of a table has to say where it is kept.
PAGES = [
    ROOT / "README.md",
    ROOT / "docs" / "measurements.md",
    ROOT / "ldm" / "assets" / "emoji" / "README.md",
]
#: Sections whose commands were run before their output was kept, and what is no measurement.
EXEMPT = (
    "## Commands", "## A step of inversion", "## Many words in one pass", "## Public backbones", "## Models",
    "# emoji: a small text-to-image",
)  # fmt: skip
REFERENCE = re.compile(r"`(results/[\w./-]+\.(?:md|csv|json))`")
CODE = re.compile(r"`[^`]*`")
NUMBER = re.compile(r"(?<![\w.])\d{1,3}(?:,\d{3})+(?![\w,])|(?<![\w.])\d+(?:\.\d+)?")
#: A number with the unit of a measurement, a share, or a factor.
MEASURED = re.compile(r"\d\*{0,2} ?(?:%|dB|nats|ms|s|x(?! ?\d)|MiB|GiB|MB)(?!\w)|(?<![\w/])\d+/\d+(?![\w/])")


def numbers(text: str) -> list[Decimal]:
    """Every number of a text, such as 1,076 or 98.6; of 552/560 both."""
    return [Decimal(found.replace(",", "")) for found in NUMBER.findall(text)]


def holds(kept: list[Decimal], figure: Decimal) -> bool:
    """Whether a kept number rounds to the figure, at the figure's own decimals."""
    unit = Decimal(1).scaleb(int(figure.as_tuple().exponent))
    return any(abs(number - figure) <= unit / 2 for number in kept)


def unfounded(page: str, folder: Path) -> list[str]:
    """Rows of a page's tables with a measured figure that no file named beside it holds.

    A row names its files itself, or by "the same" those of the row above, or the paragraph next to its table
    does. Columns headed "before" and "wanted" are not of this project's state, and commands are no figures.
    """
    found = []
    for block in re.split(r"\n(?=#)", page):
        if block.startswith(EXEMPT):
            continue
        paragraphs = block.split("\n\n")
        for i, paragraph in enumerate(paragraphs):
            lines = paragraph.splitlines()
            if len(lines) < 3 or not lines[0].startswith("|"):
                continue
            near = REFERENCE.findall("\n\n".join(paragraphs[max(0, i - 1) : i + 2]).replace(paragraph, ""))
            files: list[str] = []
            heads = [cell.strip() for cell in lines[0].strip("|").split("|")]
            for line in lines[2:]:
                cells = line.strip().strip("|").split("|")
                cells = [c for h, c in zip(heads, cells, strict=False) if h not in ("before", "wanted")]
                measured = " ".join(c for c in (CODE.sub("", cell) for cell in cells) if MEASURED.search(c))
                files = REFERENCE.findall(line) or (files if "the same" in line else near)
                texts = [(folder / name).read_text("utf-8") for name in files if (folder / name).is_file()]
                kept = [number for text in texts for number in numbers(text)]
                missing = [figure for figure in numbers(measured) if not holds(kept, figure)]
                if missing:
                    found.append(f"{', '.join(map(str, missing))} in {line}")
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_figure_of_a_table_is_in_a_file_of_results(page: Path) -> None:
    assert not unfounded(page.read_text("utf-8"), ROOT)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_files_of_results_that_are_named_exist(page: Path) -> None:
    assert all((ROOT / name).is_file() for name in REFERENCE.findall(page.read_text("utf-8")))


TABLE = """# A page

| what | figure | wanted |
|---|---|---|
| nearest | {figure} | 80 % |

Kept in `results/a.md`.
"""


@pytest.mark.parametrize(
    ("figure", "kept"),
    [("98.6 % (552/560)", True), ("98.57 %", True), ("99 %", True), ("98.7 %", False), ("553/560", False),
     ("none", True), ("1,076 MiB", True), ("1,077 MiB", False), ("**1.06 x**", False)],
)  # fmt: skip
def test_a_figure_that_is_not_kept_is_found(tmp_path: Path, figure: str, kept: bool) -> None:
    (tmp_path / "results").mkdir()
    (tmp_path / "results" / "a.md").write_text("own nearest 98.571% (552/560), peak 1,076 MiB")
    assert bool(unfounded(TABLE.format(figure=figure), tmp_path)) is not kept
    assert unfounded(TABLE.format(figure="98.6 %").replace("Kept in `results/a.md`.", ""), tmp_path)
