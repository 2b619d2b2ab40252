"""A tiny experiment: 3 concepts x 3 setups x 2 seeds of a model with random weights, run once."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

from ldm.backbone.model import ModelConfig
from ldm.cli.main import main
from ldm.config import dump_yaml, merge


@dataclass(frozen=True)
class World:
    """A folder with a tiny model and the pictures of three concepts."""

    path: Path

    def experiment(self, **changes: Any) -> Path:
        """The YAML of an experiment; ``changes`` are merged into it."""
        values = {
            "base": {"model": str(self.path / "tiny"), "steps": 2},
            "grid": {
                "concepts": {
                    "one": {"images": str(self.path / "one"), "init": "cat", "train_pictures": 2},
                    "two": {"images": str(self.path / "two"), "init": "dog", "train_pictures": 2},
                    "three": {"images": str(self.path / "three"), "init": "toy", "train_pictures": 2},
                },
                "setups": {"plain": {}, "two": {"num_vectors": 2}, "layers": {"per_layer": True}},
                "seeds": [0, 1],
            },
            "score": {"samples": 1, "steps": 2, "prompts": ["a {} on beach"], "backgrounds": True},
            "expect": [{"metric": "reconstruction (paper)", "order": "layers > plain"}],
            "presets": {"one": {"grid": {"seeds": [0]}}},
        }
        path = self.path / "grid.yaml"
        path.write_text(dump_yaml(merge(values, changes)))
        return path


def make_world(path: Path, config: ModelConfig) -> World:
    """Three concepts of three pictures each."""
    path.mkdir(exist_ok=True)
    tiny.write_model(path / "tiny", tiny.model(config), config)
    for name, colours in {
        "one": "red pink orange",
        "two": "blue teal navy",
        "three": "lime green olive",
    }.items():
        for i, colour in enumerate(colours.split()):
            (path / name).mkdir(exist_ok=True)
            Image.new("RGB", (24, 20), colour).save(path / name / f"{i}.png")
    return World(path)


@pytest.fixture
def world(tmp_path: Path, tiny_config: ModelConfig) -> World:
    return make_world(tmp_path, tiny_config)


@dataclass(frozen=True)
class Done:
    """An experiment that was run: its YAML and its folder."""

    file: Path
    out: Path


@pytest.fixture(scope="session")
def done(tmp_path_factory: pytest.TempPathFactory, tiny_config: ModelConfig) -> Done:
    """The whole grid, once for all tests that only look at it."""
    path = tmp_path_factory.mktemp("experiment")
    file, out = make_world(path, tiny_config).experiment(), path / "out"
    assert main(["experiment", "run", str(file), "--out", str(out)]) == 0
    return Done(file, out)


@pytest.fixture
def cli(capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """``cli("table", file)`` runs ``ldm experiment table``; status, output and errors."""

    def run(*words: object) -> tuple[int, str, str]:
        capsys.readouterr()
        status = main(["experiment", *map(str, words)])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run
