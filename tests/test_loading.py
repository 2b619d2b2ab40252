"""The config of the paper's backbone describes the public checkpoint."""

import gzip
import json
from pathlib import Path

import torch

from ldm.config import resolve
from ldm.loading import find, in_folder
from ldm.model import ModelConfig, build

ROOT = Path(__file__).parent.parent


def test_the_ldm_config_builds_the_public_checkpoint_key_by_key() -> None:
    values, folder = find(ROOT / "configs" / "latent-diffusion" / "txt2img-1p4B.yaml")
    with torch.device("meta"):
        model = build(in_folder(resolve(ModelConfig, values["model"]), folder))
    ours = {
        prefix + name: list(tensor.shape)
        for prefix, part in model.parts.items()
        for name, tensor in part.state_dict().items()
    }
    reference = gzip.decompress((ROOT / "tests/reference/keys_ldm_txt2img.json.gz").read_bytes())
    keys = json.loads(reference)["keys"]
    public = {k: v for k, v in keys.items() if k.startswith(tuple(model.parts))}
    assert len(public) > 1300 and ours == public
