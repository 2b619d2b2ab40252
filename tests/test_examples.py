"""The method on one page learns what ``ldm.invert`` learns."""

import importlib.util
from pathlib import Path

import pytest
import torch
from PIL import Image

import ldm
from ldm.backbone.model import LatentDiffusion

pytestmark = pytest.mark.slow

PAGE = Path(__file__).parents[1] / "examples" / "minimal_inversion.py"


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        Image.effect_noise((20, 20), 60).convert("RGB").save(tmp_path / f"{name}.png")
    return tmp_path


def test_the_method_on_one_page_gives_the_vector_of_ldm_invert(
    tiny_model: LatentDiffusion, pictures: Path
) -> None:
    spec = importlib.util.spec_from_file_location("minimal_inversion", PAGE)
    assert spec is not None and spec.loader is not None
    page = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(page)

    minimal = page.invert(
        tiny_model, pictures, "<toy>", "cat", steps=6, lr=0.01, batch_size=3, templates="plain"
    )
    whole = ldm.invert(
        tiny_model, pictures, "<toy>", "cat", steps=6, lr=0.01, batch_size=3, scale_lr=False,
        templates="plain",
        trainer={"accelerator": "cpu", "precision": "32-true"}, allow_untrained=True, progress=False,
    )  # fmt: skip
    assert minimal.vectors.shape == (1, tiny_model.manager.width)
    # the same but for the order of sums: ldm.invert trains another memory format and attention kernel, and
    # Adam enlarges rounding where a gradient is near 0. The bound is a thousandth of a step.
    torch.testing.assert_close(minimal.vectors.cpu(), whole.vectors.cpu(), rtol=1e-5, atol=1e-5)
    assert not torch.equal(minimal.vectors, tiny_model.manager.init_vectors("<toy>"))
