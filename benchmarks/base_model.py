"""What the shipped model can do before a word is learned: reconstruct, tell names, draw by a code.

    python benchmarks/base_model.py --data data/emoji --vendor data/facebook
    python benchmarks/base_model.py --parts worth --model my-model        # one instrument, another model

Parts:
  psnr       the autoencoder on 256 freshly composed pictures of training and of held-out concepts, and of a
             vendor that nobody trained on (`ldm train data --vendor facebook --out data/facebook`)
  judge      share of 200 reconstructions whose own name the judge puts first of 100
  worth      D, what a name is worth in nats: half the integral over the signal-to-noise ratio of (error of
             the clean latent with the name of another thing - with the right one). By I-MMSE (Guo et al.
             2005) it is a log-likelihood ratio, so it compares networks and latents. Also the share of
             pictures with D > 0
  portraits  the same for held-out things told by the code of their portraits
             (ldm.pretraining.portrait_words);
             and such things drawn, all on one background: own pictures nearest of all held-out things
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import ldm
from ldm.emoji.captions import STYLE_WORDS, STYLES, fill
from ldm.emoji.compose import Composer, DrawingComposer, portraits, render
from ldm.emoji.drawings import EmojiDrawings
from ldm.emoji.judge_quality import name_recall, real_pictures
from ldm.emoji.sprites import EmojiSprites, load_holdout
from ldm.evaluation.clip_judge import load_clip
from ldm.evaluation.metrics import Share, nearest_concept
from ldm.pretraining.portrait_words import load_picture_words
from ldm.text.english import article

LEVELS = torch.linspace(0.30, 0.97, 14)  # shares of the schedule
N, BATCH = 256, 64
BACKGROUND = "gray"


def say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def psnr(model: ldm.LatentDiffusion, images: Tensor) -> float:
    """Mean over pictures of the reconstruction's PSNR, in dB."""
    values = []
    for x in images.split(BATCH):
        decoded = model.autoencoder.decode(model.encode(x).mode()).clamp(-1, 1)
        values.append(10 * torch.log10(4 / (decoded - x).square().mean((1, 2, 3))))
    return float(torch.cat(values).mean())


def reconstruction(model: ldm.LatentDiffusion, args: argparse.Namespace) -> None:
    holdout = load_holdout(args.holdout)
    for kind, choice in {"training": {"exclude": holdout}, "held-out": {"only": holdout}}.items():
        composer = Composer(EmojiSprites.load(args.data, **choice))
        x = composer.batch(N, torch.Generator().manual_seed(99)).images
        say(f"{kind} concepts: PSNR {psnr(model, x):.2f} dB")
    if args.vendor is not None:
        drawings = DrawingComposer(EmojiDrawings.load(args.vendor))
        x = drawings.batch(N, torch.Generator().manual_seed(99)).images
        say(f"{args.vendor.name}, which nobody trained on: PSNR {psnr(model, x):.2f} dB")


def judged(model: ldm.LatentDiffusion, args: argparse.Namespace) -> None:
    sprites = EmojiSprites.load(args.data, ["animals-nature", "food-drink"], load_holdout(args.holdout))
    real, names, styles, colours = real_pictures(sprites, 200, seed=7)
    drawn = torch.cat([model.autoencoder.decode(model.encode(x).mode()) for x in real.split(BATCH)])
    labels, details = sorted({c.label for c in sprites.concepts}), list(zip(styles, colours, strict=True))
    for kind, pictures in (("real", real), ("reconstructed", drawn)):
        share = name_recall(load_clip(), pictures, names, labels, 100, 1, details)
        say(f"{kind} pictures, right name first of 100: {share}")


def nats(
    model: ldm.LatentDiffusion, images: Tensor, right: Callable[[int, int], Tensor],
    wrong: Callable[[int, int], Tensor],
) -> Tensor:  # fmt: skip
    """D of each picture (N,), in nats; ``right`` and ``wrong`` give contexts of pictures from i to j."""
    abar = model.schedule.alphas_cumprod
    steps = (LEVELS * model.schedule.num_timesteps).long()
    snr = abar[steps] / (1 - abar[steps])
    ends = torch.cat([snr[:1], (snr[1:] * snr[:-1]).sqrt(), snr[-1:]])  # halfway, by ratio
    width = ends[:-1] - ends[1:]
    rng, total = torch.Generator().manual_seed(5), torch.zeros(len(images))
    for i in range(0, len(images), BATCH):
        j = min(i + BATCH, len(images))
        z = model.encode(images[i:j]).mean * model.scale_factor
        contexts = right(i, j), wrong(i, j)
        for step, d_snr in zip(steps.tolist(), width, strict=True):
            t, noise = torch.full((j - i,), step), torch.randn(z.shape, generator=rng)
            z_t = model.q_sample(z, t, noise)
            errors = [
                (model.schedule.to_x0(model.predict(z_t, t, c), z_t, t, model.parameterization) - z)
                .square().sum((1, 2, 3))
                for c in contexts
            ]  # fmt: skip
            total[i:j] += 0.5 * (errors[1] - errors[0]) * d_snr
    return total


def told(values: Tensor) -> str:
    error = values.std() / len(values) ** 0.5
    return f"D {values.mean():.1f} nats (standard error {error:.1f}), above 0 for {Share.of(values > 0)}"


def worth(model: ldm.LatentDiffusion, args: argparse.Namespace) -> None:
    sprites = EmojiSprites.load(args.data, ["animals-nature", "food-drink"], load_holdout(args.holdout))
    images, names, styles, colours = real_pictures(sprites, args.n, seed=11)
    others = [next(n for n in names[i + 1 :] + names[:i] if n != name) for i, name in enumerate(names)]

    def contexts(of: list[str]) -> Callable[[int, int], Tensor]:
        prompts = []
        for name, s, c in zip(of, styles, colours, strict=True):
            word = STYLE_WORDS[s][0]
            template = f"{article(word)}{word} of a {{}} on {article(c)}{c} background"
            prompts.append(fill(template, name))
        return lambda i, j: model.condition(prompts[i:j])

    each = nats(model, images, contexts(names), contexts(others))
    say(f"names of trained things, n = {args.n}: {told(each)}")


def coded(model: ldm.LatentDiffusion, args: argparse.Namespace) -> None:
    words = load_picture_words(model.text, args.model)
    sprites = EmojiSprites.load(args.data, only=load_holdout(args.holdout))
    things = len(sprites)
    styles = [i % len(STYLES) for i in range(things)]
    pixels = sprites.sprites[torch.arange(things), torch.tensor(styles)]
    pairs = portraits(pixels, model.image_size)
    latents = model.encode(pairs.flatten(0, 1)).mean.unflatten(0, (-1, 2))
    vectors = words.of(latents)
    for i in range(things):
        model.add_placeholder(f"<held-out {i}>", vectors[i][None])
    colour = f"on {article(BACKGROUND)}{BACKGROUND} background"
    prompts = [f"a photo of <held-out {i}> {colour}" for i in range(things)]
    shown = [
        torch.stack([
            render(sprites, c.hex, STYLES[s], BACKGROUND, scale, angle, image_size=model.image_size)
            for scale, angle in ((0.72, 5.0), (0.8, 0.0), (0.88, -5.0))
        ])
        for c, s in zip(sprites.concepts, styles, strict=True)
    ]  # fmt: skip
    images = torch.stack([pictures[0] for pictures in shown])
    shifted = prompts[1:] + prompts[:1]
    each = nats(
        model, images, lambda i, j: model.condition(prompts[i:j]), lambda i, j: model.condition(shifted[i:j])
    )
    say(f"codes of held-out things' portraits, n = {things}: {told(each)}")
    clip = load_clip()
    drawn = ldm.sample(model, prompts, seed=0, progress=True)
    references = [clip.image_features(pictures) for pictures in shown]
    own = nearest_concept(clip.image_features(drawn), references) == torch.arange(things)
    say(f"held-out things drawn by the code of their portraits, own nearest of {things}: {Share.of(own)}")
    if args.out is not None:
        from ldm.io.images import save_grid

        side_by_side = torch.stack([images, drawn], 1).flatten(0, 1)
        say(f"pictures, each beside the drawing it is of: {save_grid(side_by_side, args.out, columns=20)}")


PARTS = {"psnr": reconstruction, "judge": judged, "worth": worth, "portraits": coded}


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--model", default="emoji", help="name or folder (default: emoji)")
    parser.add_argument("--data", type=Path, default=Path("data/emoji"))
    parser.add_argument("--vendor", type=Path, help="folder of `ldm train data --vendor`")
    parser.add_argument("--holdout", type=Path, default=Path("configs/emoji/holdout.txt"))
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--n", type=int, default=N, help=f"pictures of `worth` (default: {N})")
    parser.add_argument("--out", type=Path, help="a PNG of the things drawn by their portraits")
    args = parser.parse_args()
    model = ldm.load(args.model)
    for part in args.parts:
        PARTS[part](model, args)


if __name__ == "__main__":
    main()
