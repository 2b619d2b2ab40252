"""The YAML files of the shipped model's stages: each is what its stage takes, and one with the others."""

from pathlib import Path
from typing import Any

import pytest

from ldm.backbone.model import build
from ldm.config import load_yaml, resolve
from ldm.pretraining.config import AutoencoderStage, DiffusionStage, LatentsStage

pytestmark = pytest.mark.slow

CONFIGS = Path(__file__).parents[2] / "configs" / "emoji"
ASSET = Path(__file__).parents[2] / "ldm" / "assets" / "emoji" / "config.yaml"
STAGES: dict[str, tuple[type, list[str]]] = {
    "autoencoder": (AutoencoderStage, ["autoencoder.yaml"]),
    "autoencoder of 128 pixels": (AutoencoderStage, ["autoencoder.yaml", "gpu-autoencoder.yaml"]),
    "latents": (LatentsStage, ["latents.yaml"]),
    "diffusion": (DiffusionStage, ["diffusion.yaml"]),
    "diffusion of 128 pixels": (DiffusionStage, ["diffusion.yaml", "gpu.yaml"]),
}


def stage(name: str) -> Any:
    kind, files = STAGES[name]
    return resolve(kind, load_yaml([CONFIGS / file for file in files]))


@pytest.mark.parametrize("name", STAGES)
def test_a_stage_takes_its_files(name: str) -> None:
    assert stage(name).batch_size > 0


@pytest.mark.parametrize("name", ["diffusion", "diffusion of 128 pixels"])
def test_the_parts_of_a_model_fit_each_other(name: str) -> None:
    config = stage(name)
    model = build(config.model, empty=True)
    assert model.unet.in_channels == model.latent_shape[0] == model.autoencoder.embed_dim
    assert model.unet.context_dim == model.text.width
    assert model.latent_shape[1] == config.model.image_size // 8
    sizes = {node["params"].get("image_size", 64) for node in config.data["params"]["sources"]}
    assert sizes == {config.model.image_size}
    floats = sum(p.numel() for part in model.parts.values() for p in part.parameters())
    assert 2 * floats < 64e6  # bytes in half precision: what may be shipped


def test_the_shipped_model_is_the_one_of_its_files() -> None:
    shipped, files = load_yaml([ASSET])["model"], load_yaml([CONFIGS / "diffusion.yaml"])["model"]
    assert shipped["autoencoder"] == files["autoencoder"] and shipped["unet"] == files["unet"]
    assert shipped["autoencoder"] == load_yaml([CONFIGS / "autoencoder.yaml"])["autoencoder"]
    vocabulary = {"vocab_file": "vocab.txt"}
    assert {**files["text"]["params"], **vocabulary} == shipped["text"]["params"]
