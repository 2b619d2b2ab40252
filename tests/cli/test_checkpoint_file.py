"""A checkpoint file is a model: ``--model sd15.safetensors`` needs no YAML."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

import ldm
from ldm.cli.invert import config_of
from ldm.cli.main import build_parser
from ldm.io.checkpoints import save_checkpoint
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.unet import UNetModel
from ldm.text.clip import ClipConditioner

pytestmark = pytest.mark.slow


@pytest.fixture
def checkpoint(tmp_path: Path, randomise: Callable[..., nn.Module]) -> Path:
    """Version 1 in miniature; its pictures are 512 pixels wide, so that nothing is done at full width."""
    parts = {
        "model.diffusion_model.": UNetModel(4, 4, 32, 1, [8], [1, 1, 1, 1], num_heads=8, context_dim=32),
        "first_stage_model.": AutoencoderKL(32, [1, 1, 1, 1, 1], 1, 4, 4),
        "cond_stage_model.": ClipConditioner(width=32, layers=1, heads=1),
    }
    for part in parts.values():
        randomise(part)
    return save_checkpoint(parts, tmp_path / "sd15.safetensors")


def test_a_checkpoint_file_draws_and_has_settings_for_inversion(cli, checkpoint):
    prompt = ("--prompt", "a cat", "--n", 1, "--steps", 1, "--out", "out", "--device", "cpu")
    result = cli("sample", "--model", checkpoint, *prompt)
    assert result.code == 0, result.err
    assert Image.open(next(Path("out").glob("*a-cat*.png"))).size == (512, 512)
    invert = ("--images", "photos", "--name", "<toy>", "--init", "cat toy")
    args = build_parser().parse_args(["invert", "--model", str(checkpoint), *invert])
    config = config_of(args)
    assert (config.model, config.batch_size, config.show.scale) == (str(checkpoint), 2, 7.5)


def test_a_word_is_learned_with_nothing_but_a_checkpoint_file(checkpoint):
    model = ldm.load(checkpoint, image_size=256)
    pictures = torch.rand(3, 3, 256, 256) * 2 - 1
    quick = {"stop": {"allow_untrained": True, "monitor_every": 100}, "batch_size": 1}
    trainer = {"max_steps": 2, "precision": "32-true", "accelerator": "cpu"}
    model.inversion_defaults |= {"trainer": trainer}
    before = model.fingerprint()
    word = ldm.invert(model, pictures, "<toy>", "cat toy", progress=False, **quick)
    assert word.D == 32 and word.metadata["base_model"] == before
    assert not torch.equal(model.condition("a <toy>").tokens, model.condition("a cat").tokens)


def test_a_file_that_is_no_model_is_named_in_one_line(cli, tmp_path):
    save_file({"lora_unet_x.lora_up.weight": torch.ones(2, 2)}, tmp_path / "style.safetensors")
    result = cli("sample", "--model", "style.safetensors", "--prompt", "a cat")
    assert result.code == 2
    assert "style.safetensors is a LoRA" in result.err and "Traceback" not in result.err
