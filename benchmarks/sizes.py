"""Models and pictures that the benchmarks measure, and how they say on what they were measured.

``emoji`` is the shipped model. ``mid`` is Stable Diffusion v1 in small: a UNet of 64 channels x [1, 2, 4]
with attention at every level, 32 x 32 latents of 256-pixel pictures, and a CLIP tower of four layers,
whose share of the step is about three times the real one's. ``ldm`` and ``sd1`` are the public shapes,
for a GPU. All but ``emoji`` have random weights.
"""

from __future__ import annotations

import platform
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from backbones import config_of

import ldm
from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.inversion.concept import Concept

PICTURES = 5
MID: dict[str, Any] = {
    "autoencoder": {
        "target": "ldm.models.autoencoder.AutoencoderKL",
        "params": {"ch": 32, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "z_channels": 4, "embed_dim": 4},
    },
    "unet": {
        "target": "ldm.models.unet.UNetModel",
        "params": {
            "in_channels": 4,
            "out_channels": 4,
            "model_channels": 64,
            "num_res_blocks": 2,
            "attention_resolutions": [1, 2, 4],
            "channel_mult": [1, 2, 4],
            "num_heads": 8,
            "context_dim": 256,
        },
    },
    "text": {
        "target": "ldm.text.clip.ClipConditioner",
        "params": {"width": 256, "layers": 4, "heads": 4},
    },
}


@dataclass(frozen=True)
class Size:
    """A model's name and the batch it is trained with; ``tiny``: its layout with little in it."""

    name: str
    batch: int
    tiny: bool = False

    @property
    def config(self) -> ModelConfig:
        if self.name == "mid":
            return ModelConfig(**MID, image_size=64 if self.tiny else 256)
        return config_of(self.name, self.tiny)


BATCHES = {"emoji": 8, "mid": 4, "ldm": 4, "sd1": 2}


def build_model(size: Size, device: str, dtype: torch.dtype) -> LatentDiffusion:
    """The size's model, frozen, on a device; random weights are made there, in ``dtype``."""
    if size.name == "emoji":
        return ldm.load("emoji", device=device, dtype=dtype)
    model = build(size.config, empty=True)
    rng = torch.Generator(device).manual_seed(0)
    for part in model.parts.values():
        part.to(dtype).to_empty(device=device)
        for name, p in part.named_parameters():
            # scaled so that activations neither vanish nor overflow
            std = p[0].numel() ** -0.5 if p.ndim > 1 else 0.02
            p.data.normal_(std=std, generator=rng)
            if name.endswith("weight") and p.ndim == 1:  # of a norm
                p.data.add_(1)
    return model.freeze().to(device)


def pictures(model: LatentDiffusion) -> Concept:
    """Five pictures of noise."""
    side = model.image_size
    images = torch.rand(PICTURES, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1
    names = tuple(f"{i}.png" for i in range(PICTURES))
    return Concept(images, tuple(map(Path, names)), names)


def conditions(device: str, precision: str) -> dict[str, str]:
    """Machine, threads and precision: the head of every table."""
    if device == "cpu":
        lines = Path("/proc/cpuinfo").read_text().splitlines() if platform.system() == "Linux" else []
        names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
        machine = f"{names[0] if names else platform.machine()}, {torch.get_num_threads()} thread(s)"
    else:
        machine = torch.cuda.get_device_name()
    return {"machine": f"{machine}, torch {torch.__version__}", "precision": precision}


def shapes(model: LatentDiffusion, batch: int) -> str:
    """What one step computes on."""
    channels, height, width = model.latent_shape
    unet = sum(p.numel() for p in model.unet.parameters()) / 1e6
    return (
        f"UNet {unet:.1f} M, latents {batch} x {channels} x {height} x {width}, "
        f"contexts {model.text.max_length} x {model.text.width}"
    )


def markdown(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [titles, ["---"] * len(titles), *rows]
    return "".join("| " + " | ".join(line) + " |\n" for line in lines)
