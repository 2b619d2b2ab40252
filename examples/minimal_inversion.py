"""Textual Inversion on one page: the whole method, without Lightning, run folders and settings.

    python examples/minimal_inversion.py configs/emoji/concepts/koala "<koala>" bear

Gal et al. 2022, "An Image is Worth One Word", section 3: of a text-to-image model everything is frozen. One
vector v* stands in a prompt where the embedding of the new word would, and is moved until the frozen model
reconstructs the pictures from prompts like "a photo of <koala>". What ``ldm.invert`` adds to this page are
resuming, logging, packs, stopping rules and other kinds of word; the vector is the same.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from tqdm import trange

import ldm
from ldm.backbone.model import LatentDiffusion
from ldm.inversion.captions import PromptSource
from ldm.inversion.concept import concept_of
from ldm.inversion.latents import ConceptBatches, encode_latents
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.seeding import generator
from ldm.training.timesteps import TimestepConfig, draw_timesteps


def invert(
    model: LatentDiffusion,
    pictures: Path,
    word: str,
    init: str,
    *,
    steps: int,
    lr: float,
    batch_size: int = 4,
    templates: str = "object",
    seed: int = 23,
) -> Embedding:
    """Learn one vector (1, D) for ``word``.

    Args:
        model: autoencoder, UNet and text encoder; it knows the word afterwards.
        pictures: folder of 3 to 5 pictures.
        word: the new word, any string.
        init: a phrase to start from.
        steps: optimiser steps.
        lr: learning rate of AdamW, constant.
        batch_size: pictures a step.
        templates: the set of prompts, ``object`` or ``style`` in the paper.
        seed: of noise, timesteps, prompts and mirrored pictures.
    """
    model.freeze()
    model.add_placeholder(word, init=init, generator=generator(seed, word, "init"))
    v_star = model.manager.parameter(word)  # (1, D): all that is trained

    # pictures (N, 3, S, S) in [-1, 1] are encoded once; a batch is a function of its number
    images = concept_of(pictures, model.image_size).images
    latents = encode_latents(model.encode, images, scale_factor=model.scale_factor, mirror=True)
    prompts = PromptSource(word, kind=templates)  # "a photo of {}", "a rendering of {}", ...
    batches = ConceptBatches(latents, prompts, batch_size=batch_size, seed=seed, concept=word)

    optimizer = torch.optim.AdamW([v_star], lr=lr, weight_decay=0.0, fused=True)
    for step in trange(steps):
        batch = batches.batch(step)
        z = batch["z"]  # (B, C, h, w)
        rng = generator(seed, word, "diffusion", step)
        t = draw_timesteps(batch_size, model.schedule.num_timesteps, TimestepConfig(), rng)
        noise = torch.randn(z.shape, generator=rng)
        # the frozen text encoder reads the prompt with v* put in; z_t = q_sample(z, t, noise); equation 2
        loss = model.loss(z, model.condition(batch["prompt"]), t, noise)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Embedding(word, v_star.detach().clone(), {"init": init, "step": str(steps)})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("pictures", type=Path, help="folder of 3 to 5 pictures")
    parser.add_argument("word", help="the new word, such as '<koala>'")
    parser.add_argument("init", help="a phrase to start from, such as 'bear'")
    parser.add_argument("--steps", type=int, default=300, help="optimiser steps (default: 300)")
    parser.add_argument("--lr", type=float, default=0.005, help="learning rate (default: 0.005)")
    args = parser.parse_args()

    emoji = ldm.load("emoji")
    learned = invert(emoji, args.pictures, args.word, args.init, steps=args.steps, lr=args.lr)
    print("wrote", save_embeddings(learned, "minimal.safetensors"))
    samples = ldm.sample(emoji, [f"a photo of {args.word} on a red background"] * 4, seed=0)
    ldm.io.images.save_grid(samples, Path("minimal.png"))
    print("wrote minimal.png")
