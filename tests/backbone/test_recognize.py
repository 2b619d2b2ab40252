"""Checkpoints are told apart by their names and shapes, at any size; anything else is named."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from ldm.backbone.recognize import recognize
from ldm.config import load_yaml
from ldm.errors import UserError
from ldm.io.checkpoints import is_weight

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
Shapes = dict[str, tuple[int, ...]]


def public(name: str) -> Shapes:
    text = gzip.decompress((ROOT / "tests" / "reference" / f"keys_{name}.json.gz").read_bytes())
    return {key: tuple(shape) for key, shape in json.loads(text)["keys"].items()}


def config(name: str) -> dict[str, Any]:
    return load_yaml([ROOT / "configs" / f"{name}.yaml"])


@pytest.mark.parametrize(
    ("keys", "name"),
    [
        ("ldm_txt2img", "latent-diffusion/txt2img-1p4B"),
        ("sd_v1", "stable-diffusion/v1"),
        ("sd_v2", "stable-diffusion/v2-768-v"),
    ],
)
def test_public_checkpoints_are_recognised_as_their_configs_describe_them(keys: str, name: str) -> None:
    found, wanted = recognize(public(keys)), config(name)
    for vocabulary in (found, wanted):
        file = vocabulary["model"]["text"]["params"].pop("vocab_file", "none")
        assert Path(file).name == "vocab.txt" or file == "none"
    assert found == wanted


def test_what_a_training_leaves_beside_the_weights_does_not_matter() -> None:
    shapes = public("sd_v1")
    beside = {"model_ema.diffusion_modelout2bias": (4,), "embedding_manager.x": (1, 768), "lr": ()}
    weights = {k: v for k, v in shapes.items() if is_weight(k)}
    assert recognize({**shapes, **beside}) == recognize(weights)


def test_version_2_is_taken_for_768_pixels_and_base_differs_in_two_settings() -> None:
    model = recognize(public("sd_v2"))["model"]
    assert (model["parameterization"], model["image_size"]) == ("v", 768)
    base = config("stable-diffusion/v2-base")["model"]
    assert (base.pop("parameterization"), base.pop("image_size")) == ("eps", 512)
    assert base.items() <= model.items()


def inpainting() -> Shapes:
    return {**public("sd_v1"), "model.diffusion_model.input_blocks.0.0.weight": (320, 9, 3, 3)}


def without(prefix: str) -> Shapes:
    return {k: v for k, v in public("sd_v1").items() if not k.startswith(prefix)}


@pytest.mark.parametrize(
    ("shapes", "words"),
    [
        (inpainting(), "an inpainting model: its UNet takes 9 channels"),
        ({**without("cond"), "conditioner.embedders.0.x": (1,)}, "Stable Diffusion XL"),
        ({"lora_unet_mid_block.lora_up.weight": (4, 4)}, "a LoRA"),
        ({"unet.mid_block.attn.lora_A.weight": (4, 4)}, "a LoRA"),
        ({"emb_params": (2, 768)}, "a learned embedding"),
        ({"<cat-toy>": (768,)}, "a learned embedding"),
        ({**public("sd_v1"), "control_model.x": (1,)}, "a ControlNet"),
        ({"model.diffusion_model.joint_blocks.0.x": (1,)}, "a diffusion transformer"),
        ({"down_blocks.0.resnets.0.conv1.weight": (1,)}, "model_index.json"),
        ({"encoder.down_blocks.0.resnets.0.conv1.weight": (1,)}, "model_index.json"),
        (without("model.diffusion_model."), "an autoencoder alone"),
        (without("cond_stage_model."), "a UNet without its text encoder"),
        (without("first_stage_model."), "a UNet without its autoencoder"),
        ({**without("cond_stage_model."), "cond_stage_model.embedding.x": (9, 5)}, "embedding.x"),
        ({**public("sd_v1"), "first_stage_model.quantize.embedding.weight": (8, 4)}, "vector-quantised"),
        ({**public("sd_v1"), "model.diffusion_model.input_blocks.0.0.weight": (4,)}, "cut short"),
        (without("model.diffusion_model.middle_block.1.proj_in"), "cut short"),
        ({f"layer.{i}.weight": (3, 3) for i in range(9)}, "layer.0.weight, layer.1.weight, ..."),
    ],
)
def test_any_other_file_is_named_in_one_line(shapes: Shapes, words: str) -> None:
    with pytest.raises(UserError) as caught:
        recognize(shapes, "some.ckpt")
    message = str(caught.value)
    assert message.startswith("some.ckpt is ") and words in message and "\n" not in message
