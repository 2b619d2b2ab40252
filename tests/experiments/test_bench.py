"""``ldm bench``: presets, settings and kinds of the user's own, ranked against the paper."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from ldm.cli.main import main
from ldm.errors import UserError
from ldm.experiments.bench import BenchConfig, experiment, method_of, methods_of
from ldm.inversion.config import settle
from ldm.words.kind import KINDS

KIND = '''"""A word that is plain, by another name."""

from ldm.words.kind import register
from ldm.words.plain import Plain

SETTINGS = {"steps": 3}


@register
class Mine(Plain):
    """Plain."""

    kind = "mine-of-the-bench"
'''


@pytest.fixture
def place(project: Path) -> Iterator[Path]:
    """A project with settings and a kind of word of the user's own."""
    (project / "mine.yaml").write_text("num_vectors: 2\n")
    (project / "kind.py").write_text(KIND)
    yield project
    KINDS.pop("mine-of-the-bench", None)
    for name in [name for name in sys.modules if name.startswith("ldm_own_")]:
        del sys.modules[name]


def bench(*words: str) -> int:
    usual = ["--model", "tiny", "--concepts", "2", "--samples", "1"]
    return main(["bench", *words, *usual, "--sampling-steps", "2", "--pictures", "16"])


def test_methods_are_ranked_and_remembered(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert bench("mine.yaml", "--write", "bench.md") == 0, capsys.readouterr().err
    pictures = {path: path.stat().st_mtime_ns for path in (place / "runs").rglob("*.png")}
    capsys.readouterr()
    assert bench("kind.py", "--write", "bench.md") == 0, capsys.readouterr().err
    assert "mine.yaml" in capsys.readouterr().out
    assert all(path.stat().st_mtime_ns == time for path, time in pictures.items())
    page = (place / "bench.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| ") and "<br>" in line]
    assert len(rows) == 2 and page.count("| paper |") == 1  # the baseline has no difference to itself
    assert "ldm bench kind.py --concepts 2" in page and "A word that is plain, by another name." in page
    assert "sees at most 16 pictures" in page


def test_steps_are_those_that_the_pictures_allow(place: Path) -> None:
    methods = methods_of(["mine.yaml", "kind.py"], place / "out")
    config = experiment(BenchConfig(model="tiny", pictures=16), methods)
    steps = [setup["trainer"]["max_steps"] for setup in config.grid.setups.values()]
    assert list(config.grid.setups)[0] == config.compared_with == "paper"
    assert steps == [2, 3, 3]  # the paper takes 8 pictures a step; the model's own steps are 3 of 2 pictures
    free = experiment(BenchConfig(model="tiny", pictures=0), methods[:1])
    word = {"images": "", "placeholder": "<a>"}
    assert settle({}, word, free.grid.setups["paper"]).trainer.max_steps == 5000


def test_another_content_is_another_method(place: Path) -> None:
    before = method_of("mine.yaml").name
    (place / "mine.yaml").write_text("num_vectors: 3\n")
    assert method_of("mine.yaml").name != before


@pytest.mark.parametrize(
    ("given", "told"),
    [("papr", "no preset 'papr'"), ("no.py", "no file no.py"), ("broken.py", "SyntaxError"),
     ("empty.py", "registers 0 kinds")]
)  # fmt: skip
def test_what_is_no_method_is_one_line(place: Path, given: str, told: str) -> None:
    (place / "broken.py").write_text("def\n")
    (place / "empty.py").write_text("")
    with pytest.raises(UserError, match=told):
        method_of(given)


def test_missing_drawings_are_said_with_the_command_that_makes_them(
    place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert bench("--data", "nowhere") == 2
    assert "make them by ldm train data --out nowhere" in capsys.readouterr().err
