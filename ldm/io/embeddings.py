"""Learned words on disk: our own file, and those of the tools people already use.

Ours is ``.safetensors`` in the diffusers layout, ``{placeholder: (K, D) float32}``, so other tools
open it, with a provenance in its metadata; a word with vectors for each of n layers, which they do not
know, is (n, K, D). Every other format in use is read and written too:
``ldm.io.embedding_formats`` has the table. No reader runs pickled code.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import torch

from ldm.errors import UserError
from ldm.io.atomic import atomic_write
from ldm.io.containers import checked_head
from ldm.io.embedding_formats import Format, recognise, to_write
from ldm.io.embedding_formats.content import Content, read_content, write_content
from ldm.io.embedding_formats.layouts import join_encoders
from ldm.io.embedding_formats.networks import kind_of_network
from ldm.io.embedding_formats.word import Embedding, likely_base, width_in_words
from ldm.io.files import unicode_name
from ldm.names import normal
from ldm.paths import expanded

__all__ = [
    "Embedding",
    "EmbeddingFile",
    "check_base_model",
    "check_width",
    "join_encoders",
    "learned_clip_skip",
    "likely_base",
    "load_embedding",
    "load_embeddings",
    "provenance",
    "read_file",
    "save_embeddings",
    "width_in_words",
]

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class EmbeddingFile:
    """A file that was read: its format and its words, those of SDXL with two sets of vectors."""

    path: Path
    format: Format
    words: list[Embedding]


def provenance(
    *,
    base_model: str,
    step: int,
    seed: int,
    init: str | None = None,
    templates: str | None = None,
    image_hashes: Iterable[str] = (),
    token_id: int | None = None,
    clip_skip: int | None = None,
    init_from: str = "embedding",
) -> dict[str, str]:
    """The metadata of an embedding that this project learned, as strings.

    Args:
        base_model: the fingerprint of the model that the word belongs to, in hexadecimal digits.
        step: the number of optimiser steps done.
        seed: the run's seed.
        init: the phrase that the word started from.
        templates: the name of the template set, or "captions".
        image_hashes: the SHA-256 of every training picture.
        token_id: the token by which the official code finds the word in a prompt, if the model's vocabulary
            has one.
        clip_skip: which of the text encoder's last blocks was used, if it is not the model's own choice.
        init_from: what of the phrase the word started from, if not its token embeddings.
    """
    known = {} if token_id is None else {"token_id": str(token_id)}
    known |= {} if clip_skip is None else {"clip_skip": str(clip_skip)}
    known |= {} if init_from == "embedding" else {"init_from": init_from}
    return known | {
        "base_model": base_model,
        "step": str(step),
        "seed": str(seed),
        "init": init or "",
        "templates": templates or "",
        "image_hashes": ",".join(image_hashes),
    }


# ----------------------------------------------------------------------------- checking
def check_width(embedding: Embedding, width: int) -> None:
    """:class:`UserError` if ``embedding`` was not learned for token embeddings of ``width``."""
    if embedding.widths != (width,):
        raise UserError(
            f"the embedding {embedding.placeholder!r} has width {width_in_words(*embedding.widths)}, "
            f"but this model's words have width {width_in_words(width)}: it was learned on another "
            "model, use that one"
        )


def check_base_model(embedding: Embedding, fingerprint: str) -> bool:
    """Whether ``embedding`` was learned on the model of ``fingerprint``; warns if on another.

    An embedding without that information passes: other tools do not record it.
    """
    learned_on = embedding.metadata.get("base_model", "")
    same = not learned_on or learned_on == fingerprint
    if not same:
        log.warning(
            "the embedding %r was learned on another base model (%s..., this one is "
            "%s...): expect other pictures",
            embedding.placeholder,
            learned_on[:12],
            fingerprint[:12],
        )
    return same


def learned_clip_skip(embeddings: Iterable[Embedding]) -> int | None:
    """The clip skip that words were learned with, where they say one; :class:`UserError` if it differs."""
    found = {w.placeholder: w.metadata["clip_skip"] for w in embeddings if "clip_skip" in w.metadata}
    if len(set(found.values())) > 1:
        told = ", ".join(f"{word!r} with {value}" for word, value in found.items())
        raise UserError(f"the words were learned with different clip skips ({told}): choose one by clip_skip")
    value = next(iter(found.values()), "")
    return int(value) if value.isdecimal() and len(value) < 4 else None


#: names that every file holds: no format uses one of them for itself
_USUAL = re.compile(r"<[A-Za-z0-9_-]{1,60}>")


def check_names(names: Sequence[str], suffixes: Sequence[str] = ("safetensors",)) -> None:
    """:class:`UserError` if files with these suffixes cannot hold words of these names, or would give them
    back under others: tried before there is anything to write."""
    if all(_USUAL.fullmatch(name) for name in names):
        return  # a list has thousands of them, and a trial is files on a disk
    words = [Embedding(name, torch.zeros(1, 2)) for name in names]
    token_ids = {word.placeholder: number for number, word in enumerate(words)}
    with TemporaryDirectory() as folder:
        for suffix in dict.fromkeys(("safetensors", *suffixes)):
            path = Path(folder, f"words.{suffix}")
            try:
                save_embeddings(words, path, token_ids=token_ids)
                found = {word.placeholder for word in load_embeddings(path)}
            except UserError as error:
                raise UserError(str(error).replace(f"{path}", f"a .{suffix}")) from None
            if found != set(token_ids):
                raise UserError(f"a .{suffix} cannot hold the name {names[0]!r}; choose another")


# ------------------------------------------------------------------------------ reading
def read_file(path: Path | str) -> EmbeddingFile:
    """The words in a file of any format, in the file's order, and which format it is.

    A file whose format has no place for a name gives its own. :class:`UserError` for a missing,
    corrupt, oversized or foreign file, and for OneTrainer's output embeddings.
    """
    path = expanded(path)
    head = checked_head(path, "embedding")
    try:
        content = read_content(path, head)
        known = recognise(content)
        words = known.read(content, unicode_name(path.stem))
        if any(word.only_ours for word in words) and not known.every_kind:
            raise UserError(f"it holds no (K, D) vectors, which is what {known.name} is for")
        return EmbeddingFile(path, known, words)
    except UserError as error:
        raise UserError(f"{path}: {error}") from error
    except Exception as error:  # readers raise nearly anything on broken bytes
        raise UserError(
            f"cannot read the embedding {path}: it is corrupt, of another format or "
            "holds more than vectors (which is refused); fetch it again"
        ) from error


def load_embeddings(path: Path | str) -> list[Embedding]:
    """Every embedding in a file of any format, for a model of one text encoder.

    Errors as :func:`read_file`, and for SDXL's embeddings of two text encoders.
    """
    found = read_file(path)
    if found.format.encoders > 1:
        raise UserError(
            f"{path} is for SDXL, with vectors for two text encoders "
            f"({found.format.name}): this model has one"
        )
    return found.words


def load_embedding(path: Path | str) -> Embedding:
    """The embedding of a file that holds exactly one; :class:`UserError` if it holds several."""
    words = load_embeddings(path)
    if len(words) > 1:
        raise UserError(
            f"{path} holds {len(words)} embeddings "
            f"({', '.join(w.placeholder for w in words)}): give a file with one"
        )
    return words[0]


# ------------------------------------------------------------------------------ writing
def save_embeddings(
    embeddings: Embedding | Sequence[Embedding],
    path: Path | str,
    *,
    format: str | None = None,
    token_ids: Mapping[str, int] | None = None,
    overwrite: bool = True,
) -> Path:
    """Writes one or several embeddings to one file, atomically; returns ``path``.

    format: a name of ``ldm.io.embedding_formats.FORMATS``; by default the suffix decides, with
    ``.safetensors`` for ours, ``.pt`` for the official layout, ``.bin`` for diffusers' pickled one
    and ``.png`` for A1111's picture. token_ids: for the official layout, the ids that the official
    tokenizer gives the placeholders, in place of those in the words' metadata; a single word that has
    none gets the id of ``*``, in the vocabulary that its width suggests. ``sdxl-diffusers`` writes a
    second file, ``<stem>_2``.

    The provenance is kept in ``.safetensors`` alone: other layouts have no place for it.
    :class:`UserError` for a format that cannot hold these words, a name given twice, words of
    several widths, a file that exists (unless ``overwrite``) or a failed write.
    """
    words = [embeddings] if isinstance(embeddings, Embedding) else list(embeddings)
    path = expanded(path)
    _check_together(words, path)
    chosen = to_write(path, len(words[0].widths), format)
    if len(words) > 1 and not chosen.several:
        raise UserError(
            f"cannot write {path} as {chosen.name}: that holds one embedding a file, "
            f"not {len(words)} ({', '.join(w.placeholder for w in words)})"
        )
    own = next((w for w in words if w.only_ours), None)
    if own and not chosen.every_kind:
        raise UserError(
            f"cannot write {path} as {chosen.name}: {own.placeholder} is {own.size}, a word of kind "
            f"{own.kind}, which other tools do not know; write .safetensors, or learn it with word=plain"
        )
    ids = {normal(name): number for name, number in (token_ids or {}).items()}
    words = [
        replace(w, metadata={**w.metadata, "token_id": str(ids[w.placeholder])})
        if w.placeholder in ids
        else w
        for w in words
    ]
    contents = chosen.write(words)
    if not all(_reads_back(content, chosen) for content in contents):
        raise UserError(
            f"cannot write {path} as {chosen.name}: its readers take one of the names "
            f"{', '.join(w.placeholder for w in words)} for another format's or for a part of "
            "a network; rename it"
        )
    targets = [path, path.with_name(f"{path.stem}_2{path.suffix}")][: len(contents)]
    for target in targets:
        if target.exists() and not overwrite:
            raise UserError(f"{target} exists: choose another name, or overwrite it by --force")
    with ExitStack() as files:  # all are written before the first gets its name
        for target, content in zip(targets, contents, strict=True):
            write_content(content, files.enter_context(atomic_write(target, overwrite=overwrite)))
    return path


def _reads_back(content: Content, chosen: Format) -> bool:
    """Whether what is to be written is read as what it is: a word may be called as a part of a LoRA is."""
    if content.container != "safetensors":
        content = replace(content, notes={})  # they have no place for notes
    if not content.ours and kind_of_network(content.values) or recognise(content).read is not chosen.read:
        return False
    try:
        return bool(chosen.read(content, "word"))
    except UserError:
        return False


def _check_together(words: Sequence[Embedding], path: Path) -> None:
    """One file is for one base model, and its words go by their names."""
    names = [word.placeholder for word in words]
    if not words or len(set(names)) < len(names):
        raise UserError(f"cannot write {path}: every embedding in a file needs its own name, got {names}")
    if len({word.widths for word in words}) > 1:
        widths = ", ".join(f"{w.placeholder!r} has width {width_in_words(*w.widths)}" for w in words)
        raise UserError(
            f"cannot write {path}: its words are of different base models: {widths}; write one file for each"
        )
