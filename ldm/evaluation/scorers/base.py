"""What a scorer is: features of pictures and texts, and an identity that says whose they are."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn

from ldm.errors import UserError
from ldm.evaluation.scorers.identity import Identity
from ldm.io.checkpoints import fingerprint
from ldm.io.images import to_pil


@runtime_checkable
class Scorer(Protocol):
    """What the metrics need; all features are (N, D) float32 of unit length.

    Attributes:
        name: as the user gave it.
        identity: architecture, weights' hash and preprocessing.
        reads_text: whether ``text_features`` works.
    """

    name: str
    reads_text: bool

    @property
    def identity(self) -> Identity: ...

    def image_features(self, images: Tensor) -> Tensor: ...

    def text_features(self, texts: Sequence[str]) -> Tensor: ...


class NetworkScorer:
    """A frozen network behind the picture transform of the library that it comes from.

    Pictures are rounded to 8 bits and go through that transform as PIL pictures, so that a picture has
    the same figure when it is scored again from its file.

    Args:
        name: as the user gave it.
        network: what :attr:`encode` calls; it is frozen.
        encode: a batch (n, 3, h, w) of transformed pictures -> features (n, D), of any length.
        transform: a PIL picture -> (3, h, w).
        architecture, preprocessing, text: of the :class:`Identity`.
        batch_size: pictures or texts encoded at once.
    """

    reads_text = False

    def __init__(
        self,
        name: str,
        network: nn.Module,
        encode: Callable[[Tensor], Tensor],
        transform: Callable[[Image.Image], Tensor],
        *,
        architecture: str,
        preprocessing: str,
        text: str = "",
        batch_size: int = 64,
    ) -> None:
        self.name = name
        self.network = network.eval().requires_grad_(False)
        self.encode, self.transform, self.batch_size = encode, transform, batch_size
        self._identity = Identity(architecture, weights_hash(network), preprocessing, text)

    @property
    def identity(self) -> Identity:
        """Of this scorer's features."""
        return self._identity

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def __deepcopy__(self, memo: dict[int, Any]) -> NetworkScorer:
        """Itself: it is frozen, and copies of a metric share it."""
        return self

    def image_features(self, images: Tensor) -> Tensor:
        """Pictures (N, 3, H, W) in [-1, 1] -> (N, D), each of length 1."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are (N, 3, H, W), not {tuple(images.shape)}")
        return self.picture_features([to_pil(image) for image in images])

    @torch.no_grad()
    def picture_features(self, pictures: Sequence[Image.Image]) -> Tensor:
        """N PIL pictures of any sizes -> (N, D), each of length 1."""
        parts = []
        for start in range(0, len(pictures), self.batch_size):
            part = [self.transform(picture) for picture in pictures[start : start + self.batch_size]]
            parts.append(F.normalize(self.encode(torch.stack(part).to(self.device)).float(), dim=-1))
        if not parts:
            raise ValueError("no pictures")
        return torch.cat(parts)

    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D), each of length 1.

        Raises:
            UserError: this scorer reads no text.
        """
        raise UserError(f"{self.name} reads no text: use a clip:... scorer to compare pictures with prompts")


@contextmanager
def quiet() -> Iterator[None]:
    """Without the notes that libraries log and warn of while they build a network."""
    before = logging.root.manager.disable
    logging.disable(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def weights_hash(network: nn.Module) -> str:
    """sha256 hex of the weights of a network as they are held: names, shapes, types and values."""
    return fingerprint({"": _Holder(network)}, exact=True)


class _Holder(nn.Module):
    """Gives every weight a dotted name: names without one are left out of fingerprints as buffers."""

    def __init__(self, scorer: nn.Module) -> None:
        super().__init__()
        self.scorer = scorer
