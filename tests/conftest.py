"""What several test files share: random weights that mean something, and a tiny whole model."""

import json
import math
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from ldm.model import LatentDiffusion, ModelConfig, ScheduleConfig, build

TINY_WORDS = (
    "a an the of in on and photo picture painting cat dog toy tree house car red green blue yellow "
    "white black background snow beach small big"
).split()


def _randomise(module: nn.Module, seed: int = 0) -> nn.Module:
    generator = torch.Generator().manual_seed(seed)
    norms = {
        f"{name}.weight" for name, m in module.named_modules() if isinstance(m, nn.GroupNorm | nn.LayerNorm)
    }
    with torch.no_grad():
        for name, p in sorted(module.named_parameters()):
            noise = torch.randn(p.shape, generator=generator).to(p)
            fan_in = p[0].numel() if p.ndim > 1 else 25
            p.copy_(noise / math.sqrt(fan_in) + (name in norms))
    return module


@pytest.fixture(scope="session")
def randomise() -> Callable[..., nn.Module]:
    """``randomise(module, seed=0)``: every parameter non-zero, activations of order one.

    Fresh models end their residual branches in zeros, so that a comparison of two of them shows
    little; this makes every weight count.
    """
    return _randomise


@pytest.fixture(scope="session")
def tiny_vocab(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A WordPiece vocabulary of 60-odd tokens; any other lower-case word is spelled by letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *TINY_WORDS]
    tokens += [c for c in letters if c != "a"] + [f"##{c}" for c in letters]
    path = tmp_path_factory.mktemp("vocab") / "vocab.txt"
    path.write_text("\n".join(tokens) + "\n")
    return path


@pytest.fixture(scope="session")
def clip_vocabulary(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """open_clip's vocabulary as Hugging Face tokenizers read it: ``vocab.json`` and ``merges.txt``."""
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    names = {"<start_of_text>": "<|startoftext|>", "<end_of_text>": "<|endoftext|>"}
    folder = tmp_path_factory.mktemp("clip")
    vocabulary = {names.get(token, token): i for token, i in own.encoder.items()}
    (folder / "vocab.json").write_text(json.dumps(vocabulary), encoding="utf-8")
    merges = "\n".join(" ".join(pair) for pair in own.bpe_ranks)
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    return folder


@pytest.fixture(scope="session")
def tiny_config(tiny_vocab: Path) -> ModelConfig:
    """A whole model in miniature: pictures 16 x 16, latents (4, 4, 4), contexts (B, 12, 32)."""
    return ModelConfig(
        autoencoder={
            "target": "ldm.models.autoencoder.AutoencoderKL",
            "params": {
                "ch": 32,
                "ch_mult": [1, 1, 1],
                "num_res_blocks": 1,
                "z_channels": 4,
                "embed_dim": 4,
            },
        },
        unet={
            "target": "ldm.models.unet.UNetModel",
            "params": {
                "in_channels": 4,
                "out_channels": 4,
                "model_channels": 32,
                "num_res_blocks": 1,
                "attention_resolutions": [1, 2],
                "channel_mult": [1, 2],
                "num_heads": 2,
                "context_dim": 32,
            },
        },
        text={
            "target": "ldm.text.bert.BertConditioner",
            "params": {
                "vocab_file": str(tiny_vocab),
                "n_embed": 32,
                "n_layer": 2,
                "max_seq_len": 12,
                "heads": 2,
                "dim_head": 16,
            },
        },
        image_size=16,
        scale_factor=0.5,
        schedule=ScheduleConfig(timesteps=1000, linear_start=0.00085, linear_end=0.012),
    )


@pytest.fixture
def tiny_model(tiny_config: ModelConfig) -> LatentDiffusion:
    """A fresh, frozen model of ``tiny_config`` with the same random weights each time (20 ms)."""
    model = build(tiny_config)
    for part in model.parts.values():
        _randomise(part)
    return model.freeze()
