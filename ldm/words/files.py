"""Words and embedding files: what is written of a word of any kind, and how a model takes it back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from ldm.errors import UserError
from ldm.io.embeddings import Embedding
from ldm.words.kind import KINDS
from ldm.words.manager import EmbeddingManager


def embedding_of(
    manager: EmbeddingManager, placeholder: str, details: Mapping[str, str], step: int | None = None
) -> Embedding:
    """A learned word as a file holds it, with its kind and the kind's settings among its notes.

    Args:
        manager: knows the placeholder.
        details: provenance, see ``ldm.io.embeddings.provenance``.
        step: optimiser step of a progressive word; ``None``: fully grown.
    """
    choice, notes = manager.choice(placeholder), dict(details)
    if choice.kind != "plain":
        notes["kind"] = choice.kind
        if settings := asdict(choice.settings):
            notes["kind_settings"] = json.dumps(settings)
    vectors = manager.vectors(placeholder, step)
    return Embedding(placeholder, vectors, notes, parts=manager.word(placeholder).parts())


def form_of(embedding: Embedding) -> dict[str, Any]:
    """Arguments by which ``LatentDiffusion.add_placeholder`` makes a word of an embedding beside its vectors.

    A word that is (K, D) in the end, such as a directional one, is a plain word to those who use it.

    Raises:
        UserError: it is of a kind that this version does not know, or its notes are damaged.
    """
    if not embedding.only_ours:
        return {}
    if embedding.kind not in KINDS:
        raise UserError(
            f"the embedding {embedding.placeholder!r} is a word of kind {embedding.kind!r}, which this "
            f"version does not know; it knows {', '.join(sorted(KINDS))}"
        )
    try:
        settings = json.loads(embedding.metadata.get("kind_settings") or "{}")
        return {"word": {**settings, "kind": embedding.kind}, "parts": embedding.parts}
    except (ValueError, TypeError, RecursionError) as error:
        raise UserError(
            f"the notes of {embedding.placeholder!r} are damaged; fetch the file again"
        ) from error
