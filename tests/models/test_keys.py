"""Our models have exactly the weights of the public checkpoints: every key, every shape."""

import gzip
import json
from pathlib import Path

import pytest
import torch

from ldm.backbone.model import ModelConfig, build
from ldm.io.checkpoints import is_weight

REFERENCE = Path(__file__).parents[1] / "reference"
KL_F8 = {"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4, "embed_dim": 4}
UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 320,
    "attention_resolutions": [4, 2, 1],
    "num_res_blocks": 2,
    "channel_mult": [1, 2, 4, 4],
}

Shapes = dict[str, tuple[int, ...]]


def public(name: str) -> Shapes:
    text = gzip.decompress((REFERENCE / f"keys_{name}.json.gz").read_bytes())
    return {key: tuple(shape) for key, shape in json.loads(text)["keys"].items()}


def shapes(parts: dict[str, torch.nn.Module]) -> Shapes:
    return {
        prefix + name: tuple(tensor.shape)
        for prefix, part in parts.items()
        for name, tensor in part.state_dict().items()
    }


def test_the_1_45_b_text_to_image_model_has_the_public_keys_and_shapes(tmp_path: Path) -> None:
    # the keys depend on the number of words only, which is bert-base-uncased's
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *(f"word{i}" for i in range(30_518))]
    vocab_file = tmp_path / "vocab.txt"
    vocab_file.write_text("\n".join(words) + "\n")
    text = {"n_embed": 1280, "n_layer": 32, "heads": 8, "dim_head": 64, "logits_head": True}
    config = ModelConfig(
        autoencoder={"target": "ldm.models.autoencoder.AutoencoderKL", "params": KL_F8},
        unet={
            "target": "ldm.models.unet.UNetModel",
            "params": {**UNET, "num_heads": 8, "context_dim": 1280},
        },
        text={
            "target": "ldm.text.bert.BertConditioner",
            "params": {**text, "vocab_file": str(vocab_file)},
        },
    )
    with torch.device("meta"):
        model = build(config)
    want = public("ldm_txt2img")
    prefixes = tuple(model.parts)
    assert shapes(model.parts) == {k: v for k, v in want.items() if k.startswith(prefixes)}
    # what the list holds besides is no weight: schedule tables and the embedding manager's own
    others = [key for key in want if not key.startswith(prefixes)]
    assert len(others) == 13 and not any(is_weight(key) for key in others)
    assert model.latent_shape == (4, 32, 32)
    # the paper's count: 872 M in the UNet, 1.45 B with the text encoder
    assert sum(p.numel() for p in model.unet.parameters()) == pytest.approx(872e6, rel=1e-3)
    denoiser = [*model.unet.parameters(), *model.text.parameters()]
    assert sum(p.numel() for p in denoiser) == pytest.approx(1.45e9, rel=0.01)
