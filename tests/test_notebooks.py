"""The notebooks: without outputs, pages to read, in the documentation, and each runs in two minutes."""

import os
import re
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
WEIGHTS = ROOT / "ldm" / "assets" / "emoji" / "model.safetensors"
LONGEST = 40  # lines of a cell of code
BUDGET = 2 * 120.0  # core-seconds: two minutes of two cores
SHARE = 5  # a test makes a fifth of the steps that a reader makes
STEPS = re.compile(r"^(LEARNING_STEPS|SAMPLING_STEPS) = (\d+)", re.MULTILINE)

each = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path: Path) -> nbformat.NotebookNode:
    return nbformat.read(path, as_version=4)


def test_there_are_five_in_the_order_in_which_they_are_read() -> None:
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_", "5_"]


@each
def test_its_outputs_are_stripped(path: Path) -> None:
    notebook = read(path)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert not cell.get("outputs") and cell.get("execution_count") is None and not cell.metadata
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    assert set(notebook.metadata.language_info) == {"name"}


@each
def test_it_is_a_page_to_read(path: Path) -> None:
    cells = read(path).cells
    assert cells[0].cell_type == "markdown" and cells[0].source.startswith("# ")
    for cell, after in zip(cells, [*cells[1:], None], strict=True):
        assert cell.source.strip()
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= LONGEST
            assert after is None or after.cell_type == "markdown"
    assert "\n## " in "\n".join(cell.source for cell in cells if cell.cell_type == "markdown")


@each
def test_the_pictures_that_it_names_are_there(path: Path) -> None:
    code = "\n".join(cell.source for cell in read(path).cells if cell.cell_type == "code")
    for folder in re.findall(r'"(\.\./configs/[^"{]*)"', code):
        assert (path.parent / folder).is_dir()


def test_the_documentation_lists_each_by_its_title() -> None:
    page = (ROOT / "docs" / "notebooks.md").read_text("utf-8")
    for path in NOTEBOOKS:
        title = read(path).cells[0].source.splitlines()[0].removeprefix("# ")
        assert f"`notebooks/{path.name}`" in page and title in page


def shorten(notebook: nbformat.NotebookNode) -> None:
    """Make the steps a fifth of what the first cell of code says, rounded up."""
    first, *others = [cell for cell in notebook.cells if cell.cell_type == "code"]
    first.source, found = STEPS.subn(lambda m: f"{m[1]} = {-(-int(m[2]) // SHARE)}", first.source)
    assert found == 2
    for cell in others:
        assert not re.search(r"steps\W{1,4}\d", cell.source), "a number of steps that the first cell lacks"


@pytest.mark.slow
@pytest.mark.skipif(not WEIGHTS.is_file(), reason="the shipped model is not there")
@each
def test_it_shows_pictures_and_takes_two_minutes_of_two_cores(
    path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fifth of the steps may take a fifth of that: the whole then takes no more than five times as long."""
    nbclient = pytest.importorskip("nbclient")
    monkeypatch.setenv("TMPDIR", str(tmp_path))  # of the kernel, whose files go there
    notebook, before = read(path), os.times()
    shorten(notebook)
    resources = {"metadata": {"path": str(path.parent)}}
    nbclient.NotebookClient(notebook, timeout=900, resources=resources).execute()
    after = os.times()
    used = (after.children_user + after.children_system) - (before.children_user + before.children_system)
    shown = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    assert any("image/png" in output.get("data", {}) for output in shown)
    assert used <= BUDGET / SHARE
