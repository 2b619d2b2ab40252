"""Textual Inversion on latent diffusion: teach a frozen text-to-image model a new word from pictures.

    import ldm

    model = ldm.load("emoji")
    word = ldm.invert(model, "my-pictures/", "<cat-toy>", init="cat")
    images = ldm.sample(model, ["a photo of <cat-toy> on the beach"], seed=0)

Everything heavy is imported at first use, so that ``import ldm`` costs milliseconds.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from ldm._version import __version__
from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.api import evaluate, invert, load, sample
    from ldm.io import embeddings
    from ldm.sampling.source import find_noise, load_source

__all__ = [
    "UserError",
    "__version__",
    "embeddings",
    "evaluate",
    "find_noise",
    "invert",
    "load",
    "load_source",
    "sample",
]

_WHERE = {
    "load": "ldm.api",
    "invert": "ldm.api",
    "evaluate": "ldm.api",
    "sample": "ldm.api",
    "load_source": "ldm.sampling.source",
    "find_noise": "ldm.sampling.source",
    "embeddings": "ldm.io",
}


def __getattr__(name: str) -> Any:
    if name not in _WHERE:
        raise AttributeError(f"module 'ldm' has no attribute {name!r}")
    if name == "embeddings":
        return importlib.import_module("ldm.io.embeddings")
    return getattr(importlib.import_module(_WHERE[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
