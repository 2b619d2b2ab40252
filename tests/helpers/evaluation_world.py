"""A world without trained models: a judge that reads a picture's centre, a sampler."""

import hashlib
import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ldm.evaluation.clip_judge import Named
from ldm.evaluation.colours import COLOURS
from ldm.evaluation.scorers import Identity
from ldm.io.embeddings import Embedding

COLOUR = re.compile(r"on an? (\w+) background")


def code(text: str) -> Tensor:
    """A vector of 48 that a name stands for, in [-1, 1]."""
    seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:6], "big")
    return torch.rand(48, generator=torch.Generator().manual_seed(seed)) * 2 - 1


class CentreJudge:
    """Texts are the code of the known name in them; pictures the 4 x 4 pixels of their centre."""

    name, reads_text = "centre", True
    identity = Identity("centre", "0" * 64, "none", "names")
    concepts: Sequence[Named] = ()

    def __init__(self, names: Sequence[str]) -> None:
        self.names = sorted(names, key=len, reverse=True)

    def named(self, text: str) -> str:
        return next((n for n in self.names if n in text), "nothing")

    def image_features(self, images: Tensor) -> Tensor:
        centre = images[:, :, 30:34, 30:34].reshape(len(images), 48)
        return torch.nn.functional.normalize(centre, dim=1)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        rows = torch.stack([code(self.named(t)) for t in texts])
        return torch.nn.functional.normalize(rows, dim=1)


class StubModel:
    """Words and their vectors; :meth:`sample` paints a word's vector on the background asked for."""

    image_size = 64

    def __init__(self, judge: CentreJudge) -> None:
        self.judge = judge
        self.placeholders: dict[str, Tensor] = {}
        self.learned: list[str] = []
        self.wrong_colours = 0.0  # share of prompts whose background is not obeyed
        self.wrong_names = 0.0

    @property
    def manager(self) -> Any:
        return self

    def fingerprint(self) -> str:
        return "ab" * 32

    def add_placeholder(self, word: str, vectors: Tensor) -> None:
        assert word not in self.placeholders
        self.placeholders[word] = vectors

    def remove_placeholder(self, word: str) -> None:
        del self.placeholders[word]


def sample(
    model: StubModel, prompts: list[str], steps: int, sampler: str, scale: float, precision: str, seed: int
) -> Tensor:
    """As ``ldm.sample``; a colour or a name goes wrong for the first part of the prompts."""
    images = []
    for i, prompt in enumerate(prompts):
        match = COLOUR.search(prompt)
        colour = match[1] if match else "gray"
        if i < model.wrong_colours * len(prompts):
            colour = "teal" if colour != "teal" else "red"
        image = torch.tensor(COLOURS[colour]).view(3, 1, 1).div(127.5).sub(1).repeat(1, 64, 64)
        words = [w for w in model.placeholders if w in prompt]
        vector = model.placeholders[words[0]][0] if words else code(model.judge.named(prompt))
        if i < model.wrong_names * len(prompts):
            vector = code("something else")
        image[:, 30:34, 30:34] = vector.view(3, 4, 4)
        images.append(image)
    return torch.stack(images)


def invert(model: StubModel, images: Tensor, word: str, *, init: str, seed: int, progress: bool) -> Embedding:
    """As ``ldm.invert``: the mean centre of the pictures is the word's vector."""
    vectors = images[:, :, 30:34, 30:34].reshape(len(images), 48).mean(0)[None]
    model.add_placeholder(word, vectors)
    model.learned.append(word)
    return Embedding(word, vectors, {"init": init})


NAMES = [f"{a} {b}" for a in ("red", "old", "big", "odd") for b in ("cat", "dog", "cup", "hat", "bus")]
