"""A code of a thing's pictures that stands in a caption in place of its name, for pretraining.

Textual Inversion looks for a vector between the words of the vocabulary. A text-to-image model that was only
ever told names may draw nothing sensible there. So in a part of the captions the name is left out, and in its
place stands a vector computed from two portraits of the thing: their latents' principal components, moved by
a small network that trains along with the UNet. The model thereby learns that every point of its word space
is a thing, and that neighbours look alike. (unCLIP, Ramesh et al. 2022, also tells a denoiser by a vector of
a picture what to draw, beside the text; here the vector is one word of a sentence.)

The components alone hold nearly all of a portrait, also of things that they were not fitted to
(``benchmarks/base_model.py``), but the UNet draws from them worse than from names; the network alone keeps to
few directions. The trained model does not need any of this: these weights are kept in a file beside it.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.config import ASSETS
from ldm.errors import UserError
from ldm.io.atomic import atomic_write
from ldm.io.checkpoints import load_model_weights, read_state_dict
from ldm.io.tensors import save_tensors
from ldm.models.layers import zero_init
from ldm.pretraining.sources import UNNAMED
from ldm.seeding import generator
from ldm.text.conditioner import TextConditioner

#: of the network: principal components that it reads, and its width
DETAILS, HIDDEN = 512, 1024
#: of the components: up to this many of features or things all are computed, else the leading ones from
#: so many more than are wanted
EXACT, OVERSAMPLED = 2048, 64
#: beside a model's weights
FILE = "picture_words.safetensors"


class PictureWords(nn.Module):
    """A token embedding for every thing, read off its portraits.

    The axes of the components are kept with the network, so that a stage that goes on with other things
    reads them as the one before did.

    Args:
        text: the conditioner whose vocabulary gets the hidden name.
        features: F, numbers of a thing's two portraits together, 2 C h w.
    """

    centre: Tensor
    axes: Tensor
    spread: Tensor
    length: Tensor
    start: Tensor
    details: Tensor

    def __init__(self, text: TextConditioner, features: int) -> None:
        super().__init__()
        self.width = text.width
        self.token_id = text.tokenizer.add_placeholder(UNNAMED)
        self.register_buffer("centre", torch.zeros(features))
        self.register_buffer("axes", torch.zeros(features, DETAILS))
        self.register_buffer("spread", torch.ones(()))
        self.register_buffer("length", text.token_table.detach().float().square().mean().sqrt())
        self.net = nn.Sequential(
            nn.Linear(DETAILS, HIDDEN), nn.GELU(), nn.Linear(HIDDEN, HIDDEN), nn.GELU(),
            zero_init(nn.Linear(HIDDEN, text.width)),
        )  # fmt: skip

    @classmethod
    def fitted(cls, text: TextConditioner, portraits: Tensor, shares: Tensor) -> PictureWords:
        """Axes from the portraits (M, 2, C, h, w), latents on any device, of M things that are drawn
        ``shares`` (M,) often; only the ratios count."""
        flat = portraits.flatten(1).float()
        words = cls(text, flat.shape[1]).to(portraits.device)
        words.centre, words.axes = half_whitening(flat, shares, DETAILS)
        spread = ((flat - words.centre) @ words.axes).square().mean().sqrt()
        words.spread = spread.clamp(min=1e-6)  # one thing alone has none
        words.read(portraits)
        return words

    def read(self, portraits: Tensor) -> None:
        """Take these things now, portraits (M, 2, C, h, w). Their components follow from the portraits; no
        checkpoint has them."""
        start, details = self._components(portraits)
        self.register_buffer("start", start, persistent=False)
        self.register_buffer("details", details, persistent=False)

    def _components(self, portraits: Tensor) -> tuple[Tensor, Tensor]:
        components = (portraits.flatten(1).float() - self.centre) @ self.axes
        turned = components[:, : self.width] @ rotation(self.width).to(components)
        start = F.layer_norm(turned, (self.width,))
        return start, components @ rotation(DETAILS).to(components) / self.spread

    def words(self, subjects: Tensor) -> Tensor:
        """Token embeddings (n, D) of things (n,), as long as those of the table: the conditioner normalises
        its input, so that only direction would tell."""
        return self._words(self.start[subjects], self.details[subjects])

    def of(self, portraits: Tensor) -> Tensor:
        """Token embeddings (n, D) of any things, by their portraits (n, 2, C, h, w)."""
        return self._words(*self._components(portraits))

    def _words(self, start: Tensor, details: Tensor) -> Tensor:
        moved = start + self.net(details).float()
        return self.length * F.layer_norm(moved, moved.shape[1:])

    def put(self, ids: Tensor, embeds: Tensor, subjects: Tensor) -> Tensor:
        """``embeds`` (n, L, D) of ``ids`` (n, L) with the words of things ``subjects`` (n,) where hidden."""
        return torch.where((ids == self.token_id)[..., None], self.words(subjects)[:, None], embeds)


def save_picture_words(state: Mapping[str, Tensor], folder: Path) -> Path:
    """Write the words' weights beside a model, matrices in half precision."""
    stored = {k: (v.half() if v.ndim > 1 else v).contiguous().cpu() for k, v in state.items()}
    with atomic_write(folder / FILE) as path:
        save_tensors(stored, path)
    return folder / FILE


def load_picture_words(text: TextConditioner, model: str | Path) -> PictureWords:
    """The words that a model was trained with: of a shipped model's name, or a model folder.

    Raises:
        UserError: it has none, or they are another model's.
    """
    path = next((p for p in (Path(model) / FILE, ASSETS / str(model) / FILE) if p.is_file()), None)
    if path is None:
        raise UserError(f"{model} was not trained with words of portraits: it has no {FILE}")
    state = {key: value.float() for key, value in read_state_dict(path).items()}
    words = PictureWords(text, len(state.get("centre", ())))
    load_model_weights({"": words}, state, source=str(path))
    return words


def half_whitening(x: Tensor, shares: Tensor, width: int) -> tuple[Tensor, Tensor]:
    """Centre (F,) and axes (F, width) of the principal components of x (M, F), each over the square root of
    its deviation.

    So the leading ones lead less than in the pictures, and the last ones are not blown up to noise. Rows
    count by their ``shares`` (M,); where there are fewer than ``width`` the other axes are empty.
    """
    share = (shares.to(x) / shares.sum().to(x))[:, None]
    centre = (share * x).sum(0)
    weighed = share.sqrt() * (x - centre)  # its right singular vectors are the components
    if min(weighed.shape) <= EXACT:
        _, deviation, axes = torch.linalg.svd(weighed, full_matrices=False)
        variance, axes = deviation[:width].square(), axes[:width].T
    else:  # the leading ones alone, by random projections (Halko et al. 2011)
        with torch.random.fork_rng([x.device] if x.is_cuda else []):
            torch.manual_seed(0)
            _, deviation, axes = torch.svd_lowrank(weighed, q=width + OVERSAMPLED, niter=4)
        variance, axes = deviation[:width].square(), axes[:, :width]
    kept = variance > 1e-6 * variance[0]
    axes = axes[:, kept] * variance[kept] ** -0.25
    return centre, F.pad(axes, (0, width - axes.shape[1]))


def rotation(width: int) -> Tensor:
    """A fixed orthogonal matrix, to spread components over the coordinates: optimisers treat those alike."""
    square = torch.randn(width, width, generator=generator(0, "picture words"))
    return torch.linalg.qr(square)[0]
