"""Pictures for pages."""

from pathlib import Path

import pytest
from PIL import Image


@pytest.fixture
def files(tmp_path: Path) -> list[Path]:
    paths = [tmp_path / f"{name}.png" for name in ("a", "b", "c")]
    for path, colour in zip(paths, ("red", "green", "blue"), strict=True):
        Image.new("RGB", (64, 64), colour).save(path)
    return paths
