"""Learned words in prompts: read from files, taught to a model, and put where ``{}`` stands."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.backbone.model import LatentDiffusion
    from ldm.io.embeddings import Embedding

log = logging.getLogger(__name__)


def load(paths: Sequence[Path]) -> list[Embedding]:
    """The words of several files.

    Returns:
        In the files' order; the metadata of each has the ``file`` and its ``sha256``.

    Raises:
        UserError: a file that cannot be read.
    """
    from dataclasses import replace

    from ldm.io.atomic import file_sha256
    from ldm.io.embeddings import load_embeddings
    from ldm.io.secrets import redacted

    words = []
    for path in paths:
        for word in load_embeddings(path):
            beside = {"file": redacted(path.name), "sha256": file_sha256(path)}
            words.append(replace(word, metadata={**word.metadata, **beside}))
    return words


def teach(
    model: LatentDiffusion, words: Sequence[Embedding], *, force: bool = False, clip_skip: int | None = None
) -> None:
    """Teach a model learned words, and set the clip skip that they were learned with.

    Args:
        words: of any file that this program reads.
        force: take words that were learned on another model of the same width.
        clip_skip: wins over the words' own.

    Raises:
        UserError: a word that :func:`check_fits` refuses, two words of one name, or no such clip skip.
    """
    from ldm.io.embeddings import learned_clip_skip
    from ldm.words.files import form_of

    for word in words:
        check_fits(model, word, force=force)
        if word.placeholder in model.manager.placeholders:
            raise UserError(f"two embeddings are called {word.placeholder!r}; give one of them")
        model.add_placeholder(word.placeholder, word.vectors, **form_of(word))
    model.text.use_clip_skip(learned_clip_skip(words) if clip_skip is None else clip_skip)


def check_fits(model: LatentDiffusion, word: Embedding, *, force: bool) -> None:
    """Refuse a word of another width, or of another model of the same width.

    Args:
        force: warn of another model instead.

    Raises:
        UserError: the word does not belong to this model.
    """
    from ldm.io.embeddings import check_base_model, check_width

    check_width(word, model.text.width)
    learned_on = word.metadata.get("base_model")
    if force:
        check_base_model(word, model.fingerprint())  # warns
    elif learned_on and learned_on != model.fingerprint():
        raise UserError(
            f"the embedding {word.placeholder!r} was learned on another model; give that one "
            "by --model, or use it all the same by ldm sample --force"
        )


def put(text: str, words: Sequence[Embedding]) -> str:
    """A prompt of any kind (to draw, negative, of an inversion) with the learned word in place of ``{}``.

    Args:
        words: of which ``{}`` can only mean one if there is but one.

    Raises:
        UserError: ``{}`` where there is not one word that it can stand for.
    """
    if "{}" not in text:
        return text
    if len(words) != 1:
        names = ", ".join(word.placeholder for word in words)
        what = f"one of {names}" if names else "a word, or give an --embedding"
        raise UserError(f"{{}} in the prompt {text!r} does not say which word: write {what}")
    return text.replace("{}", words[0].placeholder)


def check_used(model: LatentDiffusion, texts: Sequence[str], words: Sequence[Embedding]) -> None:
    """Refuse learned words where no text uses any of them; warn of a file that is not needed.

    Args:
        texts: prompts of any kind. One text that uses a word will do, such as the negative prompt, or one
            prompt of several in a grid with and without the word.
        words: from :func:`load`; the model knows them.

    Raises:
        UserError: no text uses any of the words.
    """
    used = used_in(model, "\n".join(texts), words)
    if words and not used:
        names = " or ".join(word.placeholder for word in words)
        raise UserError(
            f"no prompt uses the learned word; write {{}} or {names} into a --prompt or the --negative-prompt"
        )
    needed = {word.metadata["sha256"] for word in used}
    for word in words:
        if word.metadata["sha256"] not in needed:
            log.warning("no prompt uses %s, the word of %s", word.placeholder, word.metadata["file"])


def check_truncate(
    model: LatentDiffusion, texts: Sequence[str], words: Sequence[Embedding], truncate: int | None
) -> None:
    """Refuse to cut words where no text uses one that can be cut.

    Raises:
        UserError: names a kind of word that can be.
    """
    used = used_in(model, "\n".join(texts), words)
    if truncate is not None and not any(model.manager.word(word.placeholder).units for word in used):
        raise UserError(
            f"truncate is {truncate}, but no prompt uses a word that can be cut: leave it out, or use a word "
            "of kind space_time"
        )


def used_in(model: LatentDiffusion, text: str, words: Sequence[Embedding]) -> list[Embedding]:
    """Those of the words, all known to the model, that a text uses."""
    tokenizer = model.text.tokenizer
    ids = set(tokenizer.words(text))
    return [word for word in words if ids & set(tokenizer.words(word.placeholder))]
