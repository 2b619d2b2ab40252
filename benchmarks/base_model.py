"""Four measurements of the shipped model: reconstruction, the judge behind it, captions, codes of portraits.

    python benchmarks/base_model.py --data data/emoji

PSNR of the autoencoder on 256 freshly composed pictures of training and of held-out concepts; the share
of 200 reconstructions whose own name the judge puts first of 100, which is the ceiling of a generator
behind it; mean squared error of the UNet's output at eight timesteps with the right, a wrong and the
empty caption; the variance of held-out concepts' portraits that the principal components of other
things' portraits hold (``ldm.training.picture_word``).
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import torch
from torch import Tensor

import ldm
from ldm.data.emoji import EmojiSprites, load_holdout
from ldm.data.emoji_compose import Composer, portraits
from ldm.evaluation.features import load_clip
from ldm.evaluation.judge import name_recall, real_pictures

TIMESTEPS = (50, 150, 300, 450, 600, 750, 900, 980)
N = 256
COMPONENTS = (10, 32, 64, 128, 256)


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--holdout", type=Path, default=Path("configs/emoji/holdout.txt"))
    args = parser.parse_args()
    holdout, model = load_holdout(args.holdout), ldm.load("emoji")
    kinds = {"training": {"exclude": holdout}, "held-out": {"only": holdout}}
    for kind, choice in kinds.items():
        sprites = EmojiSprites.load(args.data, **choice)
        x = Composer(sprites).batch(N, torch.Generator().manual_seed(99)).images
        decoded = model.autoencoder.decode(model.encode(x).mode())
        psnr = 10 * torch.log10(4 / (decoded - x).square().mean((1, 2, 3)))
        sys.stdout.write(f"{kind} concepts: PSNR {psnr.mean():.2f} dB\n")
    sprites = EmojiSprites.load(args.data, ["animals-nature", "food-drink"], holdout)
    real, names, styles, colours = real_pictures(sprites, 200, seed=7)
    drawn = model.autoencoder.decode(model.encode(real).mode())
    labels, details = sorted({c.label for c in sprites.concepts}), list(zip(styles, colours, strict=True))
    for kind, pictures in (("real", real), ("reconstructed", drawn)):
        share = name_recall(load_clip(), pictures, names, labels, 100, 1, details)
        sys.stdout.write(f"{kind} pictures, right name first of 100: {share}\n")
    rng = torch.Generator().manual_seed(5)
    batch = Composer(sprites).batch(N, rng)
    z = model.encode(batch.images).mean * model.scale_factor
    wrong = batch.captions[1:] + batch.captions[:1]
    captions = {"right": batch.captions, "wrong": wrong, "empty": [""] * N}
    contexts = {name: model.condition(prompts) for name, prompts in captions.items()}
    for step in TIMESTEPS:
        t, noise = torch.full((N,), step), torch.randn(z.shape, generator=rng)
        losses = {k: model.loss_terms(z, c, t, noise).simple.mean() for k, c in contexts.items()}
        sys.stdout.write(f"t {step}: " + ", ".join(f"{k} {v:.4f}" for k, v in losses.items()) + "\n")
    x, new = (codes(model, EmojiSprites.load(args.data, **choice)) for choice in kinds.values())
    axes = torch.linalg.eigh((x - x.mean(0)).T @ (x - x.mean(0)))[1].flip(1)
    along = ((new - x.mean(0)) @ axes).square().sum(0)
    held = (f"{k}: {along[:k].sum() / along.sum():.1%}" for k in COMPONENTS)
    sys.stdout.write("held-out portraits, variance held by components " + ", ".join(held) + "\n")


def codes(model: ldm.LatentDiffusion, sprites: EmojiSprites) -> Tensor:
    """Latents of all portraits, (things * styles, 2 C h w)."""
    pairs = (portraits(s, model.image_size) for s in sprites.sprites.flatten(0, 1).split(N))
    latents = torch.cat([model.encode(pair.flatten(0, 1)).mean for pair in pairs])
    return latents.unflatten(0, (-1, 2)).flatten(1)


if __name__ == "__main__":
    main()
