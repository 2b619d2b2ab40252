"""Directional Textual Inversion (arXiv 2512.13672): a word's direction is learned, its length is kept.

    v = m u,  ||u|| = 1

Plain inversion drives ||v|| far beyond the lengths of a vocabulary. In a text transformer that normalises
before each block, a long token drowns its own position embedding and the updates of the blocks, so that the
rest of the prompt is not heard. What a word means is in its direction. With g = dL/dv - kappa mu, whose
second term is a von Mises-Fisher prior around the direction mu of the init word, a step of rate eta is

    g_t = g - <g, u> u                              the part of g that is tangent to the sphere
    s  <- decay s + (1 - decay) ||g_t||^2           divided by 1 - decay^step below
    u  <- u - eta g_t / (sqrt(s) + 1e-8);  u <- u / ||u||

Without memory (decay = 0) every step turns the word by the same angle, arctan eta.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.io.embeddings import Embedding
from ldm.ranges import Amount, Range
from ldm.words.kind import Fit, Word, register

EPS = 1e-8


@dataclass(frozen=True)
class DirectionalSettings:
    """Settings of directional words.

    Attributes:
        kappa: Weight of the prior, which pulls the word towards the direction of its start.
        decay: Share of its past that the running mean of the squared gradients keeps; 0 has no memory.
        norm: The length that the word keeps: ``vocabulary``, the mean length of the text encoder's own token
            embeddings, or ``start``, the length of the word's start.
    """

    kappa: Amount = 1e-4
    decay: Annotated[float, Range(0, 1, below=True)] = 0.0
    norm: Literal["vocabulary", "start"] = "vocabulary"


@register
class Directional(Word):
    """K directions on the unit sphere. In the end they are vectors (K, D), which any tool can use."""

    kind = "directional"
    Settings = DirectionalSettings
    other_tools = True
    own_step = True
    norm: Tensor
    mu: Tensor

    def __init__(self, fit: Fit, count: int, settings: Any) -> None:
        super().__init__(fit, count, settings)
        self.direction = nn.Parameter(torch.zeros(self.shape))
        self.register_buffer("norm", torch.zeros(count, 1))
        self.register_buffer("mu", torch.zeros(self.shape))

    @property
    def shape(self) -> tuple[int, ...]:
        return self.count, self.fit.width

    def table(self) -> Tensor:
        return self.norm * self.direction

    def forward(self, t: Tensor | None) -> Tensor:
        return rearrange(self.table(), "k d -> 1 1 k d")

    def fill(self, vectors: Tensor, parts: Mapping[str, Tensor], vocabulary: Tensor | None) -> None:
        vectors = self.fitting(vectors, self.shape)
        norms = vectors.norm(dim=-1, keepdim=True)
        if not norms.all():
            raise UserError("a vector of length 0 has no direction to start from")
        if self.settings.norm == "vocabulary" and vocabulary is not None:
            norms = vocabulary.detach().float().norm(dim=-1).mean().expand_as(norms)
        self.norm.copy_(norms)
        self.mu.copy_(F.normalize(vectors, dim=-1))
        self.direction.data.copy_(self.mu)

    def move(self, lr: float, state: dict[str, Any]) -> None:
        u, decay = self.direction, self.settings.decay
        assert u.grad is not None
        g = u.grad / self.norm - self.settings.kappa * self.mu  # u.grad is m dL/dv
        tangent = g - (g * u).sum(dim=-1, keepdim=True) * u
        square = tangent.square().sum(dim=-1, keepdim=True)
        state["square"] = decay * state.get("square", 0.0) + (1 - decay) * square
        s = state["square"] / (1 - decay ** float(state["step"]))
        moved = F.normalize(u - lr * tangent / (s.sqrt() + EPS), dim=-1)
        used = u.grad.any(dim=-1, keepdim=True)  # a progressive word's later vectors wait where they are
        u.copy_(torch.where(used, moved, u))


def slerp(a: Embedding, b: Embedding, share: float, placeholder: str | None = None) -> Embedding:
    """A word between two: spherical interpolation of their directions, and a mean of their lengths by share.

        u = (sin((1 - share) angle) u_a + sin(share angle) u_b) / sin(angle)

    Args:
        a, b: words with as many vectors of one width, for one model.
        share: 0 is ``a``, 1 is ``b``.
        placeholder: the new word's name; ``a``'s unless given.

    Raises:
        UserError: words of several shapes, with parts, or of two base models, or two opposite directions.
    """
    if (
        a.vectors.shape != b.vectors.shape
        or a.parts
        or b.parts
        or a.second is not None
        or b.second is not None
    ):
        raise UserError(
            f"{a.placeholder} is {a.size} and {b.placeholder} is {b.size}: they have no word between"
        )
    models = {word.metadata["base_model"] for word in (a, b) if word.metadata.get("base_model")}
    if len(models) > 1:
        raise UserError(
            f"{a.placeholder} and {b.placeholder} were learned on two base models: use words of one"
        )
    lengths = [word.vectors.norm(dim=-1, keepdim=True) for word in (a, b)]
    u_a, u_b = (F.normalize(word.vectors, dim=-1) for word in (a, b))
    angle = (u_a * u_b).sum(dim=-1, keepdim=True).clamp(-1, 1).acos()
    if bool((angle > torch.pi - 1e-3).any()):
        raise UserError(
            f"{a.placeholder} and {b.placeholder} point in opposite directions: no word is between"
        )
    near = angle < 1e-4  # sin(angle) is 0, and a straight line the same as an arc
    sine = torch.where(near, 1.0, angle.sin())
    of_a = torch.where(near, 1 - share, ((1 - share) * angle).sin() / sine)
    of_b = torch.where(near, share, (share * angle).sin() / sine)
    vectors = lengths[0].lerp(lengths[1], share) * F.normalize(of_a * u_a + of_b * u_b, dim=-1)
    notes = {
        "base_model": next(iter(models), ""),
        "between": f"{a.placeholder}, {b.placeholder} at {share:g}",
    }
    if a.sets:
        notes["kind"] = a.kind
    return Embedding(placeholder or a.placeholder, vectors, notes)
