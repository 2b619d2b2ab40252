"""A model folder with tiny random weights, five pictures, and the command line run in process."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.cli.main import main
from ldm.config import dump_yaml, to_plain
from ldm.io.checkpoints import save_checkpoint
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.model import LatentDiffusion, ModelConfig

# settings that suit a model of random weights: short, and its loss may look untrained
QUICK = {
    "allow_untrained": True,
    "templates": "plain",
    "batch_size": 2,
    "sample_steps": 2,
    "samples_per_prompt": 1,
    "prompts": ["a photo of {}"],
    "monitor_every": 2,
    "optim": {"lr": 0.01, "schedule": "constant"},
    "trainer": {
        "max_steps": 3,
        "accelerator": "cpu",
        "checkpoint_every": 2,
        "image_every": 2,
        "log_every": 1,
    },
    "logging": {"loggers": ["csv"]},
}


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
    folder = tmp_path / "tiny"
    folder.mkdir()
    save_checkpoint(tiny_model.parts, folder / "model.safetensors", dtype=None)
    model = {**to_plain(tiny_config), "checkpoint": "model.safetensors"}
    (folder / "config.yaml").write_text(dump_yaml({"model": model, "inversion": QUICK}))
    return folder


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of three small pictures."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (24, 20), colour).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def embedding(tiny_model: LatentDiffusion, tmp_path: Path) -> Path:
    """A word "<toy>" of the model in ``model_folder``."""
    vectors = torch.randn(1, tiny_model.text.width, generator=torch.Generator().manual_seed(1))
    notes = {"base_model": tiny_model.fingerprint(), "step": "7", "init": "cat"}
    return save_embeddings(Embedding("<toy>", vectors, notes), tmp_path / "toy.safetensors")
