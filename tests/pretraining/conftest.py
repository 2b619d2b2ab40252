"""An autoencoder as its stage leaves it, and a bank of latents."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from stages import WORDS
from torch import nn

from ldm.backbone.model import ModelConfig, build
from ldm.pretraining.bank import LatentBank


@pytest.fixture(scope="module")
def autoencoder(tiny_config: ModelConfig, randomise: Callable[..., nn.Module]) -> nn.Module:
    return randomise(build(tiny_config).autoencoder)


@pytest.fixture(scope="module")
def autoencoder_run(tmp_path_factory: pytest.TempPathFactory, autoencoder: nn.Module) -> Path:
    """What a finished autoencoder stage leaves behind."""
    run = tmp_path_factory.mktemp("autoencoder")
    (run / "checkpoints").mkdir()
    weights = {f"autoencoder.{k}": v for k, v in autoencoder.state_dict().items()}
    torch.save({"state_dict": weights}, run / "checkpoints" / "last.ckpt")
    return run


@pytest.fixture(scope="module")
def bank(tmp_path_factory: pytest.TempPathFactory) -> Path:
    generator = torch.Generator().manual_seed(0)
    mean = 3 * torch.randn(10, 4, 4, 4, generator=generator)
    captions = [f"a {WORDS[i % 5]} cat" for i in range(10)]
    path = tmp_path_factory.mktemp("bank") / "latents.safetensors"
    portraits = torch.randn(3, 2, 4, 4, 4, generator=generator).half()
    std = torch.full_like(mean, 0.5).half()
    LatentBank(mean.half(), std, captions, torch.arange(10) % 3, portraits).save(path)
    return path
