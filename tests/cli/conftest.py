"""A model folder with tiny random weights, five pictures, and the command line run in process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import tiny

from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.cli.main import main


@dataclass
class Result:
    """Of one command line."""

    code: int
    out: str
    err: str


@pytest.fixture
def cli(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Callable[..., Result]:
    """``cli("sample", "--n", 2)`` runs it in an empty folder; an argparse error is a result too."""
    monkeypatch.chdir(tmp_path)

    def run(*words: object) -> Result:
        capsys.readouterr()
        try:
            code = main([str(word) for word in words])
        except SystemExit as stop:
            code = int(stop.code or 0)
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


@pytest.fixture
def model_folder(tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """What ``ldm.load`` reads: config.yaml with settings for inversion, and the weights."""
    return tiny.write_model(tmp_path / "tiny", tiny_model, tiny_config)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three small pictures."""
    return tiny.write_pictures(tmp_path / "pictures")


@pytest.fixture
def embedding(tiny_model: LatentDiffusion, tmp_path: Path) -> Path:
    """A word "<toy>" of the model in ``model_folder``."""
    return tiny.write_word(tmp_path / "toy.safetensors", tiny_model)
