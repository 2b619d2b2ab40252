"""NeTI (Alaluf et al. 2023, arXiv 2305.15391): a word is a small network of the timestep and the layer.

    x = (1000 t / T, l),  e = (sin w x, cos w x) / sqrt(m)      w in R^(m x 2), drawn once and never learned
    h = f(f(W e)),        f(x) = LeakyReLU(LayerNorm(A x + a))   of 128 units
    v(t, l) = ||v_0|| o / ||o||,   (o, b) = O h                  v_0 is the word's start

The rows of W start at e of the anchors: ten timesteps times the n layers. The network starts at random, and
the init word gives it the length of v alone.

The textual bypass tells b past the text encoder: with its last hidden state h_S at the word,

    h_S + 0.2 ||h_S|| b / ||b||

is what the values of cross-attention are made of, after the final layer norm; keys are made of h_S as it is.
So b changes how a thing looks, and not where in the picture attention finds it.

Nested dropout orders the units by their weight: in a half of the samples of a step, h_i = 0 for all i >= c,
where c is drawn anew for each of them. The first units come to hold what matters most, and a word that has
been learned can be cut at any c. In the paper fewer units obey a prompt more and resemble the pictures less.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.ranges import Factor, Range, Share
from ldm.words.kind import Fit, Word, register


@dataclass(frozen=True)
class SpaceTimeSettings:
    """Settings of words that are a network of time and layer.

    Attributes:
        bypass: Let the word also say something to the values of cross-attention, past the text encoder.
        bypass_size: Length of what it says there, as a share of that of the encoder's last hidden state.
        dropout: Share of the samples in which the last units are left out while the word is learned.
        hidden: Number of units that are left out one by one, which is the width of the network.
        anchors: Timesteps, at equal distances, at which the rows of the first layer start.
        frequencies: Number of random frequencies; the first layer reads the sine and the cosine of each.
        sigma_time: Standard deviation of the frequencies in time, where the whole schedule is 1000 long: the
            larger, the nearer are timesteps at which the word can differ.
        sigma_layer: Standard deviation of the frequencies in the number of the layer.
    """

    bypass: bool = False
    bypass_size: Factor = 0.2
    dropout: Share = 0.5
    hidden: Annotated[int, Range(1, 1024)] = 128
    anchors: Annotated[int, Range(1, 100)] = 10
    frequencies: Annotated[int, Range(1, 4096)] = 1024
    sigma_time: Factor = 0.03
    sigma_layer: Factor = 2.0


@register
class SpaceTime(Word):
    """The network of one word; its table is what it says to each layer in the middle of the schedule."""

    kind = "space_time"
    Settings = SpaceTimeSettings
    varies_with_time = True
    frequencies: Tensor
    norm: Tensor

    def __init__(self, fit: Fit, count: int, settings: Any) -> None:
        super().__init__(fit, count, settings)
        hidden, anchors = settings.hidden, settings.anchors * fit.layers
        self.register_buffer("frequencies", torch.zeros(settings.frequencies, 2))
        self.register_buffer("norm", torch.zeros(count, 1))
        self.mapper = nn.Sequential(
            nn.Linear(2 * settings.frequencies, anchors), *_block(anchors, hidden), *_block(hidden, hidden)
        )
        self.out = nn.Linear(hidden, (2 if settings.bypass else 1) * count * fit.width)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.fit.layers, self.count, self.fit.width

    @property
    def units(self) -> int:
        return self.settings.hidden

    def features(self, t: Tensor) -> Tensor:
        """e (B, n, 2m) of timesteps (B,) at each of the n layers; its length is 1."""
        in_time, in_layer = self.frequencies.unbind(1)
        times = rearrange(t * (1000 / self.fit.timesteps), "b -> b 1 1")
        layers = rearrange(torch.arange(self.fit.layers, device=t.device), "n -> 1 n 1")
        phase = times * in_time + layers * in_layer  # no product that half precision rounds
        return torch.cat([phase.sin(), phase.cos()], dim=-1) / len(self.frequencies) ** 0.5

    def forward(self, t: Tensor | None, kept: Tensor | None = None) -> Tensor | tuple[Tensor, Tensor]:
        assert t is not None
        v_star, *aside = self.said(t, kept)
        v_star = self.norm * F.normalize(v_star, dim=-1)
        return (v_star, self.settings.bypass_size * F.normalize(aside[0], dim=-1)) if aside else v_star

    def said(self, t: Tensor, kept: Tensor | None = None) -> tuple[Tensor, ...]:
        """o, and with the bypass b, each (B, n, K, D)."""
        with torch.autocast(t.device.type, enabled=False):
            h = self.mapper(self.features(t))  # (B, n, units)
            if kept is not None:
                h = h * (torch.arange(self.units, device=t.device) < rearrange(kept, "b -> b 1 1"))
            return rearrange(
                self.out(h), "b n (two k d) -> two b n k d", k=self.count, d=self.fit.width
            ).unbind()

    def table(self) -> Tensor:
        v_star = self.said(torch.full((1,), self.fit.timesteps // 2, device=self.norm.device))[0]
        return self.norm * F.normalize(v_star[0], dim=-1)

    def draw_kept(self, n: int, rng: torch.Generator) -> Tensor | None:
        if not self.settings.dropout:
            return None
        whole = torch.rand(n, generator=rng) >= self.settings.dropout
        return torch.where(whole, self.units, torch.randint(self.units, (n,), generator=rng))

    # ------------------------------------------------------------------ start and file

    @torch.no_grad()
    def draw(self, rng: torch.Generator) -> None:
        """Frequencies, the anchors of them, and for all other layers the usual uniform start."""
        sigma = torch.tensor([self.settings.sigma_time, self.settings.sigma_layer])
        self.frequencies.copy_(torch.randn(self.frequencies.shape, generator=rng) * sigma)
        first, *others = (layer for layer in self.modules() if isinstance(layer, nn.Linear))
        times = torch.arange(self.settings.anchors, device=self.norm.device)
        anchors = self.features(times * (self.fit.timesteps / self.settings.anchors))
        first.weight.copy_(rearrange(anchors, "times n e -> (times n) e"))
        first.bias.zero_()
        for layer in others:
            bound = layer.in_features**-0.5
            for parameter in (layer.weight, layer.bias):
                parameter.copy_(torch.rand(parameter.shape, generator=rng) * 2 * bound - bound)

    def fill(self, vectors: Tensor, parts: Mapping[str, Tensor], vocabulary: Tensor | None) -> None:
        if parts:
            self.fitting(vectors, self.shape)
            self._restore(parts)
            return
        norms = self.fitting(vectors, (self.count, self.fit.width)).norm(dim=-1, keepdim=True)
        if not norms.all():
            raise UserError("a vector of length 0 gives a word no length to keep")
        self.norm.copy_(norms)

    def parts(self) -> dict[str, Tensor]:
        return {name: tensor for name, tensor in self.state_dict().items() if name != "start"}

    @torch.no_grad()
    def _restore(self, parts: Mapping[str, Tensor]) -> None:
        for name, tensor in self.parts().items():
            if name not in parts or parts[name].shape != tensor.shape:
                found = tuple(parts[name].shape) if name in parts else "missing"
                raise UserError(
                    f"the part {name} is {found}, and this model and kind want {tuple(tensor.shape)}; it was "
                    "made for another model, or is damaged"
                )
            tensor.copy_(parts[name])  # a state_dict's tensors are the module's own


def _block(width: int, hidden: int) -> tuple[nn.Module, ...]:
    return nn.Linear(width, hidden), nn.LayerNorm(hidden), nn.LeakyReLU()
