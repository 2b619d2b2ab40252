"""Words of several embedding files as one list, under names that do not collide."""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from ldm.errors import UserError
from ldm.io.embeddings import Embedding, EmbeddingFile, join_encoders, read_file
from ldm.names import normal

#: Gets a word whose name an earlier one has, and the files of the earlier one and its own.
Collision = Callable[[Embedding, Path, Path], Embedding]


def renamed(word: Embedding, name: str) -> Embedding:
    """The same vectors under another name, which another token stands for."""
    notes = {key: value for key, value in word.metadata.items() if key != "token_id"}
    return Embedding(name, word.vectors, notes, word.second)


def joined(paths: Sequence[Path]) -> list[Embedding]:
    """The words of one file, or of two that hold the halves of words for SDXL's two text encoders.

    Raises:
        UserError: a file that cannot be read, or files that are not two such halves.
    """
    found = [read_file(path) for path in paths]
    if len(found) == 1:
        return found[0].words
    if len(found) == 2 and len(found[0].words) == len(found[1].words):
        return [join_encoders(a, b) for a, b in zip(found[0].words, found[1].words, strict=True)]
    raise UserError(f"{len(paths)} files cannot be converted into one: give them one at a time, or "
                    "put them together by ldm embeddings merge")  # fmt: skip


def merge(
    files: Sequence[EmbeddingFile],
    names: Mapping[str, str] | None = None,
    collision: Collision | None = None,
) -> list[Embedding]:
    """The words of files in their order, under new names where such are given.

    Args:
        files: from ``ldm.io.embeddings.read_file``.
        names: "OLD" or, for the word of one file, "FILE:OLD" -> its new name.
        collision: gets a word whose name an earlier one has, and the files of the earlier one and its
            own; what it returns replaces an earlier word of its name. ``None``: refused.

    Raises:
        UserError: two words of one name, or a new name for a word that no file holds.
    """
    rules = {normal(old): normal(new) for old, new in (names or {}).items()}
    unused = set(rules)
    owners: dict[str, Path] = {}
    words: dict[str, Embedding] = {}
    for file in files:
        for word in file.words:
            old = word.placeholder
            rule = next((r for r in (normal(f"{file.path}:{old}"), old) if r in rules), None)
            if rule is not None:
                unused.discard(rule)
                word = renamed(word, rules[rule])
            if word.placeholder in owners:
                if collision is None:
                    raise UserError(
                        f"{owners[word.placeholder]} and {file.path} both hold {word.placeholder!r}: give "
                        "one of them another name, " + shlex.join(["--rename", f"{file.path}:{old}=NEW"])
                    )
                word = collision(word, owners[word.placeholder], file.path)
            owners[word.placeholder] = file.path
            words[word.placeholder] = word
    if unused:
        raise UserError(f"no embedding is called {', '.join(map(repr, sorted(unused)))}; the files "
                        f"hold {', '.join(repr(w.placeholder) for f in files for w in f.words)}")  # fmt: skip
    return list(words.values())
