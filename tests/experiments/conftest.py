"""A tiny experiment: 3 concepts x 3 setups x 2 seeds of a model with random weights, run once."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny
from evaluation_world import NAMES
from PIL import Image

from ldm.backbone.model import ModelConfig
from ldm.cli.main import main
from ldm.config import dump_yaml, load_yaml, merge
from ldm.emoji.captions import STYLES
from ldm.emoji.sprites import Concept, write


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


EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


@pytest.fixture
def project(tmp_path: Path, tiny_config: ModelConfig, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder of a command, with all that the experiments' files need.

    ``tiny`` is a model that reads long prompts. ``data/emoji`` has every emoji that the files name, as a
    square; those of the judge's own names are the held-out ones.
    """
    given = [one for file in EXPERIMENTS for one in load_yaml([file])["grid"]["concepts"].values()]
    lists = [one[key] for one in given for key in ("emoji", "references") if isinstance(one.get(key), list)]
    others = sorted({str(name) for names in lists for name in names} - set(NAMES))
    concepts = [
        Concept(f"{0x1F400 + i:x}", name, (), "food-drink", "food-fruit")
        for i, name in enumerate([*NAMES, *others])
    ]
    drawings = []
    for colour in np.random.default_rng(0).integers(256, size=(len(concepts), 3)):
        square = np.full((64, 64, 4), 255, dtype=np.uint8)
        square[..., :3] = colour
        drawings.append([square] * len(STYLES))
    write(tmp_path / "data" / "emoji", concepts, drawings)
    holdout = tmp_path / "configs" / "emoji" / "holdout.txt"
    holdout.parent.mkdir(parents=True)
    holdout.write_text("".join(f"{concept.hex}\n" for concept in concepts[: len(NAMES)]))
    text = merge(tiny_config.text, {"params": {"max_seq_len": 77}})
    wide = replace(tiny_config, text=text)
    tiny.write_model(tmp_path / "tiny", tiny.model(wide), wide)
    monkeypatch.chdir(tmp_path)
    return tmp_path
