"""README and documentation: command lines parse, links lead somewhere, every setting is explained."""

import ast
import importlib.util
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import ldm
from ldm.cli import official
from ldm.cli.main import build_parser
from ldm.config import load_yaml
from ldm.inversion.config import settle
from ldm.shorthand import OLD

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[1]
PAGES = [
    ROOT / "README.md",
    *sorted((ROOT / "docs").glob("*.md")),
    *sorted(ROOT.glob("ldm/assets/*/README.md")),
]
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"\]\(([^)\s]+)\)")
INLINE = re.compile(r"`(ldm [^`]+)`")


def named(page: Path) -> str:
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *languages: str) -> list[str]:
    """What stands in a page's fences of these languages."""
    return [text for language, text in FENCE.findall(page.read_text("utf-8")) if language in languages]


def commands(page: Path) -> Iterator[list[str]]:
    """The words of every shell line of a page."""
    for text in blocks(page, "bash", "sh"):
        for line in text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words:
                yield words


def refused(words: list[str]) -> str | None:
    """Why a command line does not parse; ``None`` if it does."""
    try:
        if words[:2] == ["python", "main.py"]:
            rest = official.build_parser().parse_known_args(words[2:])[1]
            takes = True
        else:
            args, rest = build_parser().parse_known_args(words[1:])
            takes = hasattr(args, "overrides")
    except SystemExit:
        return "not parsed"
    wrong = [word for word in rest if not takes or "=" not in word or word.startswith("-")]
    return f"unknown: {wrong}" if wrong else None


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_command_line_parses(page: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for words in commands(page):
        if words[0] == "ldm" or words[:2] == ["python", "main.py"]:
            assert refused(words) is None, f"{shlex.join(words)}\n{capsys.readouterr().err}"
        elif words[0] == "python":
            script = next(word for word in words[1:] if not word.startswith("-"))
            assert (ROOT / script).is_file(), script
        elif words[0] == "make":
            targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
            assert set(words[1:]) <= set(targets), words


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_commands_within_sentences_have_options_that_exist(page: Path) -> None:
    for text in INLINE.findall(FENCE.sub("", page.read_text("utf-8"))):
        words = [word for word in text.split() if word != "..."]
        parser, options = build_parser(), set()
        for word in words[1:]:
            options |= {option for action in parser._actions for option in action.option_strings}
            choices = [action.choices for action in parser._actions if isinstance(action.choices, dict)]
            if choices and not word.startswith("-"):
                assert word in choices[0], text
                parser = choices[0][word]
        options |= {option for action in parser._actions for option in action.option_strings}
        assert {word for word in words if word.startswith("--")} <= options, text


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_settings_that_are_set_exist(page: Path) -> None:
    text = page.read_text("utf-8")
    lines = [words for words in commands(page) if words[:2] == ["ldm", "invert"]]
    lines += [["ldm", "invert", *words.split()] for words in re.findall(r"`(--set [^`]+)`", text)]
    for words in lines:
        given = build_parser().parse_args(words[1:]).set
        assert not [item for item in given if item.partition("=")[0] in OLD], words
        if not any(".strategy=" in item or ".devices=" in item for item in given):  # of other machines
            settle({"images": "pictures", "placeholder": "<word>", "init": "toy"}, load_yaml([], given))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_yaml_is_yaml(page: Path) -> None:
    for text in blocks(page, "yaml"):
        assert isinstance(yaml.safe_load(text), dict)


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_python_is_python_and_uses_names_that_exist(page: Path) -> None:
    for text in blocks(page, "python"):
        for node in ast.walk(ast.parse(text)):
            if (
                isinstance(node, ast.Attribute)
                and isinstance(node.value, ast.Name)
                and node.value.id == "ldm"
            ):
                assert hasattr(ldm, node.attr), node.attr


def slug(heading: str) -> str:
    """The anchor of a heading, as GitHub and the site make it."""
    text = re.sub(r"[`*]|\[|\]\([^)]*\)", "", heading).strip().lower()
    return re.sub(r"[\s]", "-", re.sub(r"[^\w\s-]", "", text))


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_every_link_leads_somewhere(page: Path) -> None:
    for link in LINK.findall(FENCE.sub("", page.read_text("utf-8"))):
        if re.match(r"\w+:", link):
            continue
        path, _, anchor = link.partition("#")
        target = page.parent / path if path else page
        assert target.exists(), link
        if anchor:
            headings = re.findall(r"^#+ (.+)$", target.read_text("utf-8"), re.MULTILINE)
            assert anchor in map(slug, headings), link


def test_the_readme_is_read_in_one_sitting() -> None:
    assert len((ROOT / "README.md").read_text("utf-8").splitlines()) <= 160


def test_every_setting_has_a_meaning() -> None:
    spec = importlib.util.spec_from_file_location("settings_tables", ROOT / "docs/settings_tables.py")
    assert spec is not None and spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    for page in ("settings.md", "official-code.md", "experiments.md"):
        text = tables.on_page_markdown((ROOT / "docs" / page).read_text("utf-8"))
        assert "<!--" not in text
        assert "| `placeholder` | text | **required** |" in text or page != "settings.md"
