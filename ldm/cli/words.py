"""Learned words on a command line: read from files, given to a model, put into prompts."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from ldm.errors import UserError

if TYPE_CHECKING:
    from ldm.io.embeddings import Embedding
    from ldm.model import LatentDiffusion


def load(paths: Sequence[Path]) -> list[Embedding]:
    """The words of several files; the metadata names the file and its sha256.

    Raises:
        UserError: a file that cannot be read.
    """
    from dataclasses import replace

    from ldm.io.embeddings import load_embeddings
    from ldm.io.runs import file_sha256

    words = []
    for path in paths:
        for word in load_embeddings(path):
            beside = {"file": path.name, "sha256": file_sha256(path.expanduser())}
            words.append(replace(word, metadata={**word.metadata, **beside}))
    return words


def teach(model: LatentDiffusion, words: Sequence[Embedding], *, force: bool = False) -> None:
    """Give a model learned words.

    Raises:
        UserError: a word that :func:`check_fits` refuses, or two words of one name.
    """
    for word in words:
        check_fits(model, word, force=force)
        if word.placeholder in model.manager.placeholders:
            raise UserError(f"two embeddings are called {word.placeholder!r}; give one of them")
        model.add_placeholder(word.placeholder, word.vectors)


def check_fits(model: LatentDiffusion, word: Embedding, *, force: bool) -> None:
    """Refuse a word of another width or (without ``force``, else warn) of another model.

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


def fill(model: LatentDiffusion, prompts: Sequence[str], names: Sequence[str]) -> list[str]:
    """Prompts with the learned word in place of ``{}``.

    Raises:
        UserError: a prompt without any of the learned words, or ``{}`` where it is not one word.
    """
    filled = []
    for prompt in prompts:
        if "{}" in prompt and len(names) != 1:
            what = f"one of {', '.join(names)}" if names else "a word, or give an --embedding"
            raise UserError(f"{{}} in the prompt {prompt!r} does not say which word: write {what}")
        text = prompt.replace("{}", names[0]) if names else prompt
        ids = set(model.text.tokenizer.words(text))
        if names and not ids & set(model.manager.placeholders.values()):
            raise UserError(
                f"the prompt {prompt!r} does not use the learned word; "
                f"write {{}} or {' or '.join(names)} in it"
            )
        filled.append(text)
    return filled


def put(text: str, words: Sequence[Embedding]) -> str:
    """A text that need not use a learned word, with the one there is in place of ``{}``."""
    return text.replace("{}", words[0].placeholder) if len(words) == 1 else text


def used_in(model: LatentDiffusion, text: str, words: Sequence[Embedding]) -> list[Embedding]:
    """Those of the words, all known to the model, that a text uses."""
    tokenizer = model.text.tokenizer
    ids = set(tokenizer.words(text))
    return [word for word in words if ids & set(tokenizer.words(word.placeholder))]
