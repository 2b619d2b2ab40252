"""Caches of the test's own, and pictures."""

from pathlib import Path

import pytest
import torch


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or writes a cache of the machine, and none may reach the network."""
    from huggingface_hub import constants

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "cache" / "ldm" / "scorers"


@pytest.fixture(scope="session")
def images() -> torch.Tensor:
    """Seven pictures (7, 3, 40, 48) in [-1, 1]."""
    return torch.rand(7, 3, 40, 48, generator=torch.Generator().manual_seed(1)) * 2 - 1
