"""On a GPU a word is learned and drawn with by the same commands, and the model stays what it was."""

from pathlib import Path

import pytest
import tiny
import torch

from ldm.backbone.loading import load
from ldm.backbone.model import LatentDiffusion, ModelConfig
from ldm.cli.main import main
from ldm.io.embeddings import load_embedding

DEVICES = [
    pytest.param("cpu", marks=pytest.mark.slow),
    pytest.param(
        "cuda",
        marks=[pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")],
    ),
]


@pytest.mark.parametrize("device", DEVICES)
def test_a_word_is_learned_and_drawn_with(
    device: str, tiny_model: LatentDiffusion, tiny_config: ModelConfig, tmp_path: Path
) -> None:
    folder = tiny.write_model(tmp_path / "tiny", tiny_model, tiny_config)
    pictures, run, drawn = tiny.write_pictures(tmp_path / "pictures"), tmp_path / "run", tmp_path / "drawn"
    shared = ["--model", str(folder), "--device", device, "--out"]
    learning = ["--images", str(pictures), "--name", "<toy>", "--init", "cat"]
    assert main(["invert", *shared, str(run), *learning]) == 0
    word = load_embedding(run / "embeddings.safetensors")
    assert torch.isfinite(word.vectors).all()
    assert word.metadata["base_model"] == load(folder).fingerprint()
    again = ["--embedding", str(run / "embeddings.safetensors"), "--prompt", "a photo of <toy>", "--n", "2"]
    assert main(["sample", *shared, str(drawn), *again]) == 0
    assert len(list(drawn.glob("*.png"))) >= 2
