"""How good a judge is: the right name of *real* composed pictures, which it never saw as such.

This is the ceiling of every figure that the judge gives to generated pictures.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ldm.emoji.captions import STYLE_WORDS, STYLES, fill
from ldm.emoji.compose import Composer
from ldm.emoji.sprites import EmojiSprites
from ldm.evaluation.clip_judge import Judge
from ldm.evaluation.metrics import Share, caption_rank, recall_at_1
from ldm.seeding import generator
from ldm.text.english import article

CHUNK = 200


def real_pictures(
    sprites: EmojiSprites, n: int, seed: int, image_size: int = 64
) -> tuple[Tensor, list[str], list[str], list[str]]:
    """``n`` freshly composed pictures on plain colours: images, names, styles and colours."""
    composer, rng = Composer(sprites, image_size), generator(seed, "judge quality")
    images: list[Tensor] = []
    names: list[str] = []
    styles: list[str] = []
    colours: list[str] = []
    while len(names) < n:
        drawn = composer.batch(CHUNK, rng)
        for i, colour in enumerate(drawn.background):
            if colour is not None and len(names) < n:
                images.append(drawn.images[i])
                names.append(sprites.concepts[int(drawn.concepts[i])].label)
                styles.append(STYLES[int(drawn.styles[i])])
                colours.append(colour)
    return torch.stack(images), names, styles, colours


def name_recall(
    clip: Judge,
    images: Tensor,
    names: list[str],
    labels: list[str],
    among: int,
    seed: int,
    details: list[tuple[str, str]] | None = None,
) -> Share:
    """Pictures whose caption is first among ``among`` that differ in the name alone.

    ``details``: style and colour of each picture, which all its captions then say ("a flat icon of
    a {} on a red background"); without them they are "a photo of a {}".
    """
    features = clip.image_features(images)
    rng = generator(seed, "judge captions")
    known: dict[str, Tensor] = {}  # template -> features of all labels in it
    ranks = []
    for i, name in enumerate(names):
        template = "a photo of a {}"
        if details is not None:
            style, colour = details[i]
            word = STYLE_WORDS[style][0]
            template = f"{article(word)}{word} of a {{}} on {article(colour)}{colour} background"
        if template not in known:
            known[template] = clip.text_features([fill(template, label) for label in labels])
        own = labels.index(name)
        order = torch.randperm(len(labels), generator=rng)
        candidates = torch.cat([torch.tensor([own]), order[order != own][: among - 1]])
        ranks.append(
            caption_rank(features[i : i + 1], known[template], torch.tensor([own]), candidates[None])
        )
    return recall_at_1(torch.cat(ranks))


def judge_quality(
    clip: Judge, sprites: EmojiSprites, *, n: int = 1000, among: int = 100, seed: int = 1000
) -> dict[str, dict[str, str] | int]:
    """Shares, as text with intervals, of ``n`` real pictures whose own caption is first.

    ``name``: captions "a photo of a {}"; ``full``: captions that also say style and colour;
    ``half resolution``: as ``full``, of pictures that lost their finest octave.
    """
    images, names, styles, colours = real_pictures(sprites, n, seed)
    labels = sorted({c.label for c in sprites.concepts})
    details = list(zip(styles, colours, strict=True))
    half = torch.nn.functional.avg_pool2d(images, 2)
    half = torch.nn.functional.interpolate(half, scale_factor=2, mode="bilinear")
    found = {
        "name": name_recall(clip, images, names, labels, among, seed),
        "full": name_recall(clip, images, names, labels, among, seed, details),
        "half resolution": name_recall(clip, half, names, labels, among, seed, details),
    }
    return {
        "right caption first": {kind: str(share) for kind, share in found.items()},
        "n": n,
        "among": among,
        "seed": seed,
    }
