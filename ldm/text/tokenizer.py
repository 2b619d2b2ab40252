"""Prompts to padded token ids, with private ids for placeholders; WordPiece for LDM's encoder ("BERT").

Textual Inversion adds pseudo-words ("S*", "<cat-toy>", "*"): here each has an id *above* the
vocabulary, so that no real word is taken away, and is found in the raw text before the vocabulary's
own rules can cut it to pieces. That part is the same for every text model; latent diffusion's reads
``bert-base-uncased`` WordPiece ids (lower-cased, accents stripped), Stable Diffusion's the
byte-level BPE of ``ldm.text.bpe``.
"""

import copy
import logging
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer as Backend
from tokenizers import models, normalizers, pre_tokenizers
from torch import Tensor

from ldm.errors import UserError
from ldm.io.files import opened
from ldm.names import normal
from ldm.paths import found
from ldm.text.english import FUNCTION_WORDS

log = logging.getLogger(__name__)

# bytes of a vocabulary; BERT's largest has 1 MB
MAX_BYTES = 2**26
# distinct prompts that are named when they are cut; after these the point is made
MAX_WARNINGS = 20
# prompts whose ids are remembered: a run draws a few templates over and over
MAX_REMEMBERED = 4096


class PlaceholderTokenizer:
    """Text to framed and padded token ids; placeholders are single ids above the vocabulary.

    Args:
        backend: cuts ordinary text; it must never give one of the frame's ids.
        tokens: the vocabulary in the order of its ids.
        max_length: length L of every row, frame and padding included.
        start_id, end_id, pad_id: the frame and the padding.
        unknown_id: id of what the vocabulary cannot spell; ``None`` if it can spell everything.
        rows: of the model's token table, where that is longer than the vocabulary.
        added: words beyond the vocabulary that have a row of the table, found in any letter case -> their
            ids, one or several.
    """

    def __init__(
        self,
        backend: Backend,
        tokens: Sequence[str],
        *,
        max_length: int,
        start_id: int,
        end_id: int,
        pad_id: int,
        unknown_id: int | None = None,
        rows: int | None = None,
        added: Mapping[str, Sequence[int]] | None = None,
    ) -> None:
        if max_length < 3:
            raise UserError(f"max_length {max_length} leaves no room for a word; give at least 3")
        self.max_length = max_length
        self.start_id, self.end_id, self.pad_id, self.unknown_id = start_id, end_id, pad_id, unknown_id
        found = (added or {}).items()
        self._added = {normal(name).lower(): list(ids) for name, ids in found}
        firsts = {ids[0]: name for name, ids in self._added.items()}
        beyond = range(len(tokens), max((i for ids in self._added.values() for i in ids), default=-1) + 1)
        self._backend, self._tokens = backend, (*tokens, *(firsts.get(i, f"[{i}]") for i in beyond))
        self._first_private = max(len(self._tokens), rows or 0)
        self._placeholders: dict[str, int] = {}
        self._names: dict[int, str] = {}  # the reverse
        self._taken: dict[int, int] = {}  # a word of the vocabulary that a placeholder took -> private id
        self._pattern: re.Pattern[str] | None = None  # made when it is needed, of all placeholders at once
        self._remembered: dict[str, list[int]] = {}
        self._whole: dict[str, int] = {}  # whole_words, once they are wanted
        self._warned: set[str] = set()

    @property
    def vocab_size(self) -> int:
        """Number of ordinary ids, 0 .. vocab_size - 1; placeholders lie above."""
        return len(self._tokens)

    @property
    def placeholders(self) -> dict[str, int]:
        """Placeholder -> private id, a copy, in order of adding."""
        return dict(self._placeholders)

    def add_placeholder(
        self, placeholder: str, token_id: int | None = None, *, takes_word: bool = False
    ) -> int:
        """Make a string one token and return its private id (>= ``vocab_size``).

        Adding it again changes nothing.

        Args:
            token_id: asks for a certain id, to restore a saved run.
            takes_word: not the string but the vocabulary's token of it becomes the placeholder, wherever
                it occurs (``CompatConfig``).

        Raises:
            UserError: the string is empty, or the id wanted is in use or inside the vocabulary, or
                there is no one token to take.
        """
        name = normal(placeholder)
        if not name:
            raise UserError('a placeholder must not be empty; give a name such as "<cat-toy>"')
        known = self._placeholders.get(name)
        if known is not None and token_id in (None, known):
            return known
        word_id = self.vocabulary_id(name) if takes_word else None
        if takes_word and word_id is None:
            raise UserError(
                f"the placeholder {name!r} is not one token of the vocabulary, as the official code wants "
                "it; choose a word or a sign that is, or set compat.takes_word=false"
            )
        if token_id is None:
            token_id = max(self._names, default=self._first_private - 1) + 1
        elif token_id < self._first_private or token_id in self._names:
            raise UserError(f"id {token_id} for {name!r} is taken; let the tokenizer choose one")
        self._placeholders[name], self._names[token_id] = token_id, name
        if word_id is not None:
            self._taken[word_id] = token_id
        self._forget()
        return token_id

    def remove_placeholder(self, placeholder: str) -> None:
        """Forget a placeholder; from now on it is ordinary text. Unknown ones are ignored."""
        token_id = self._placeholders.pop(normal(placeholder), None)
        if token_id is not None:
            del self._names[token_id]
            self._taken = {word: own for word, own in self._taken.items() if own != token_id}
            self._forget()

    def _forget(self) -> None:
        """What follows from the set of placeholders is to be made anew."""
        self._pattern, self._remembered = None, {}

    def words(self, text: str) -> list[int]:
        """Ids of a text alone: no frame, no padding, no truncation."""
        return [self._taken.get(token_id, token_id) for token_id in self._cut(text)]

    def vocabulary_id(self, text: str) -> int | None:
        """The id of a text that is exactly one token of the vocabulary; placeholders are left aside."""
        ids = self._added.get(text.lower()) or self._pieces(text)
        return ids[0] if len(ids) == 1 and ids[0] != self.unknown_id else None

    def whole_words(self) -> Mapping[str, int]:
        """Words of the vocabulary that name something and are one token each -> id, in the order of the ids.

        They are made of small letters, at least three of them; placeholders are left aside.
        """
        if not self._whole:  # the same mapping is every copy's
            for token_id, token in enumerate(self._tokens):
                word = self._word_of(token)
                plain = len(word) > 2 and word.isascii() and word.isalpha() and word.islower()
                if plain and word not in FUNCTION_WORDS and self.vocabulary_id(word) == token_id:
                    self._whole[word] = token_id
        return self._whole

    def _word_of(self, token: str) -> str:
        """The word that a token of the vocabulary is; of WordPiece's, what goes on with a word has signs."""
        return token

    def _cut(self, text: str) -> list[int]:
        """Ids of a text in which placeholders that are strings have been found."""
        if self._pattern is None:
            taken = set(self._taken.values())
            own = [name for name, token_id in self._placeholders.items() if token_id not in taken]
            self._pattern = _pattern(own, self._added)
        if self._pattern is None:
            return self._pieces(text)  # as it stands: Unicode normalisation differs among libraries
        text = unicodedata.normalize("NFC", text)
        ids: list[int] = []
        begin = 0
        for match in self._pattern.finditer(text):
            ids += self._pieces(text[begin : match.start()])
            name = normal(match.group())
            ids += [self._placeholders[name]] if name in self._placeholders else self._added[name.lower()]
            begin = match.end()
        return ids + self._pieces(text[begin:])

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Framed and padded ids, int64 (B, max_length). Too long a text is cut, with a warning."""
        texts = [texts] if isinstance(texts, str) else texts
        rows = torch.full((len(texts), self.max_length), self.pad_id, dtype=torch.int64)
        for row, text in zip(rows, texts, strict=True):
            ids = self._remembered.get(text)
            if ids is None:
                ids = [self.start_id, *self._fit(self.words(text), text), self.end_id]
                if len(self._remembered) >= MAX_REMEMBERED:
                    self._remembered.clear()
                self._remembered[text] = ids
            row[: len(ids)] = torch.tensor(ids)
        return rows

    def decode_id(self, token_id: int) -> str:
        """The vocabulary's token, spelled as there, or the placeholder of an id.

        Raises:
            UserError: no token has this id.
        """
        if 0 <= token_id < self.vocab_size:
            return self._tokens[token_id]
        if token_id in self._names:
            return self._names[token_id]
        raise UserError(f"no token has id {token_id}; the vocabulary ends at {self.vocab_size - 1}")

    def _pieces(self, text: str) -> list[int]:
        # one text at a time: encode_batch starts threads that do not survive a worker's fork
        return self._backend.encode(text, add_special_tokens=False).ids if text else []

    def _fit(self, ids: list[int], text: str) -> list[int]:
        room = self.max_length - 2
        if len(ids) > room and text not in self._warned and len(self._warned) < MAX_WARNINGS:
            self._warned.add(text)
            log.warning("prompt of %d tokens cut to the %d that fit: %r", len(ids), room, text[:80])
        return ids[:room]

    def __deepcopy__(self, memo: dict[int, Any]) -> "PlaceholderTokenizer":
        # vocabulary and backend never change after construction: copies share them
        twin = copy.copy(self)
        twin._placeholders, twin._names = dict(self._placeholders), dict(self._names)
        twin._taken, twin._remembered = dict(self._taken), {}
        twin._warned = set(self._warned)
        return twin


class Tokenizer(PlaceholderTokenizer):
    """WordPiece, framed by [CLS] and [SEP], padded with [PAD].

    Args:
        vocab_file: WordPiece vocabulary, one token a line; the line number is the id.
        max_length, rows: see :class:`PlaceholderTokenizer`.

    ``[CLS]``, ``[SEP]`` and the like written in a prompt are plain text, so a row holds exactly one
    end token and it is the last one that is not padding.

    Raises:
        UserError: the file cannot be read or lacks one of the special tokens.
    """

    def __init__(
        self,
        vocab_file: str | Path,
        max_length: int = 77,
        *,
        start: str = "[CLS]",
        end: str = "[SEP]",
        pad: str = "[PAD]",
        unknown: str = "[UNK]",
        rows: int | None = None,
    ) -> None:
        tokens = _read_vocab(vocab_file)
        ids = {token: i for i, token in enumerate(tokens)}
        missing = [token for token in (start, end, pad, unknown) if token not in ids]
        if missing:
            raise UserError(f"{vocab_file} lacks {', '.join(missing)}; is it a vocab.txt?")
        backend = Backend(models.WordPiece(ids, unk_token=unknown, max_input_chars_per_word=100))
        backend.normalizer = normalizers.BertNormalizer(lowercase=True)
        backend.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
        super().__init__(
            backend,
            tokens,
            max_length=max_length,
            start_id=ids[start],
            end_id=ids[end],
            pad_id=ids[pad],
            unknown_id=ids[unknown],
            rows=rows,
        )


def _read_vocab(path: str | Path) -> list[str]:
    try:
        with opened(found(path), "vocabulary", MAX_BYTES) as handle:
            text = handle.read().decode()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"cannot read the vocabulary {path} ({error}); check the path") from error
    # not splitlines(): a vocabulary may hold U+2028 and other characters that it would cut at
    return [line.rstrip("\r") for line in text.rstrip("\r\n").split("\n")]


def _pattern(placeholders: Iterable[str], any_case: Iterable[str] = ()) -> re.Pattern[str] | None:
    """Matches any placeholder, and any of the other names in any letter case, the longest first.

    An end that is a letter, digit or underscore must be a word boundary: "cat" is not in "catalog",
    while "S*" is one even in "S*'s".
    """
    alternatives = []
    exact = set(placeholders)
    for name in sorted(exact | set(any_case), key=lambda name: (-len(name), name)):
        before = r"(?<!\w)" if re.match(r"\w", name[0]) else ""
        after = r"(?!\w)" if re.match(r"\w", name[-1]) else ""
        found = before + r"\s+".join(map(re.escape, name.split())) + after
        alternatives.append(found if name in exact else f"(?i:{found})")
    return re.compile("|".join(alternatives)) if alternatives else None
