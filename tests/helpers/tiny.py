"""A whole model in miniature: pictures 16 x 16, latents (4, 4, 4), contexts (B, 12, 32)."""

import math
from pathlib import Path

import torch
from PIL import Image
from torch import nn

from ldm.backbone.model import LatentDiffusion, ModelConfig, ScheduleConfig, build
from ldm.config import dump_yaml, to_plain
from ldm.io.checkpoints import save_checkpoint
from ldm.io.embeddings import Embedding, save_embeddings

WORDS = (
    "a an the of in on and photo picture painting cat dog toy tree house car red green blue yellow "
    "white black background snow beach small big"
).split()

# settings that suit a model of random weights: short, and its loss may look untrained
QUICK = {
    "captions": {"templates": "plain"},
    "show": {"prompts": ["a photo of {}"], "samples_per_prompt": 1, "steps": 2},
    "stop": {"monitor_every": 2, "allow_untrained": True},
    "batch_size": 2,
    "optim": {"lr": 0.01, "schedule": "constant"},
    "trainer": {
        "max_steps": 3,
        "accelerator": "cpu",
        "checkpoint_every": 2,
        "image_every": 2,
        "log_every": 1,
    },
    "logging": {"loggers": ["csv"]},
}


def randomised(module: nn.Module, seed: int = 0) -> nn.Module:
    """Every parameter non-zero, activations of order one.

    Fresh models end their residual branches in zeros, so that a comparison of two of them shows
    little; this makes every weight count.
    """
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


def write_vocabulary(path: Path) -> Path:
    """A WordPiece vocabulary of 60-odd tokens; any other lower-case word is spelled by letters."""
    letters = "abcdefghijklmnopqrstuvwxyz"
    tokens = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *WORDS]
    tokens += [c for c in letters if c != "a"] + [f"##{c}" for c in letters]
    path.write_text("\n".join(tokens) + "\n")
    return path


def config(vocabulary: Path) -> ModelConfig:
    """The model's description."""
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
                "vocab_file": str(vocabulary),
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


def model(described: ModelConfig) -> LatentDiffusion:
    """A fresh, frozen model with the same random weights each time (20 ms)."""
    built = build(described)
    for part in built.parts.values():
        randomised(part)
    return built.freeze()


def write_model(folder: Path, model: LatentDiffusion, described: ModelConfig) -> Path:
    """What ``ldm.load`` reads: config.yaml with settings for inversion, and the weights."""
    folder.mkdir()
    save_checkpoint(model.parts, folder / "model.safetensors", dtype=None)
    values = {**to_plain(described), "checkpoint": "model.safetensors"}
    (folder / "config.yaml").write_text(dump_yaml({"model": values, "inversion": QUICK}))
    return folder


def write_pictures(folder: Path) -> Path:
    """A folder of three small pictures."""
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (24, 20), colour).save(folder / f"{i}.png")
    return folder


def write_word(path: Path, model: LatentDiffusion) -> Path:
    """An embedding file with a word "<toy>" of the model."""
    vectors = torch.randn(1, model.text.width, generator=torch.Generator().manual_seed(1))
    notes = {"base_model": model.fingerprint(), "step": "7", "init": "cat"}
    return save_embeddings(Embedding("<toy>", vectors, notes), path)
