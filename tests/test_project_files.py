"""The files around the code agree with it: citation, changelog, workflows, hooks."""

import re
import tomllib
from pathlib import Path
from typing import Any

import pytest
import yaml

from ldm import __version__

ROOT = Path(__file__).parents[1]
WORKFLOWS = sorted((ROOT / ".github" / "workflows").glob("*.yml"))


def read(path: Path) -> Any:
    return yaml.safe_load(path.read_text(encoding="utf-8"))


def test_the_citation_is_of_this_version() -> None:
    citation = read(ROOT / "CITATION.cff")
    assert citation["version"] == __version__ and citation["type"] == "software"
    assert {"message", "title", "authors", "cff-version"} <= set(citation)
    assert any("2208.01618" in reference["url"] for reference in citation["references"])


def test_the_changelog_has_the_usual_sections() -> None:
    text = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert "## [Unreleased]" in text
    sections = set(re.findall(r"^### (.*)$", text, re.MULTILINE))
    assert sections <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.stem)
def test_a_workflow_runs_on_every_python_that_setup_py_names(path: Path) -> None:
    named = re.findall(r'"Programming Language :: Python :: (3\.\d+)"', (ROOT / "setup.py").read_text())
    jobs = read(path)["jobs"].values()
    matrices = [job["strategy"]["matrix"]["python-version"] for job in jobs if "strategy" in job]
    assert matrices == [named]


def test_workflows_and_help_name_targets_that_there_are() -> None:
    makefile = (ROOT / "Makefile").read_text()
    targets = set(re.findall(r"^([a-z-]+):", makefile, re.MULTILINE))
    used = [
        word
        for path in WORKFLOWS
        for word in re.findall(r"\bmake(?: PYTHON=\w+)? ([a-z-]+)", path.read_text())
    ]
    assert used and set(used) <= targets
    (phony,) = re.findall(r"^\.PHONY: (.*)$", makefile, re.MULTILINE)
    assert set(phony.split()) <= targets


def test_each_hook_checks_what_make_lint_checks() -> None:
    (local,) = read(ROOT / ".pre-commit-config.yaml")["repos"]
    entries = [hook["entry"] for hook in local["hooks"] if hook["id"] != "nbstripout"]
    assert [re.sub(r" --\S+", "", entry) for entry in entries] == [
        ".venv/bin/ruff check", ".venv/bin/ruff format", ".venv/bin/mypy",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "path", sorted((ROOT / ".github" / "ISSUE_TEMPLATE").glob("*.yml")), ids=lambda p: p.stem
)
def test_an_issue_template_can_be_filled_in(path: Path) -> None:
    form = read(path)
    if path.stem == "config":
        return
    ids = [field["id"] for field in form["body"]]
    assert form["name"] and form["description"] and len(ids) == len(set(ids))


def test_the_markers_are_registered() -> None:
    options = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["pytest"]["ini_options"]
    assert [line.partition(":")[0] for line in options["markers"]] == ["slow", "gpu", "parity"]
