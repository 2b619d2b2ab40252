"""What a picture of a concept is called in training: paper templates or a user's caption files.

With per-image words (Gal et al. 2022, figure 10, "per-image tokens") a picture is called, one time
in four, by a sentence that also holds its own word.
"""

from __future__ import annotations

import logging
import re
import unicodedata
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path

import torch

from ldm.errors import UserError
from ldm.inversion.templates import render, templates
from ldm.io.beside import caption_files
from ldm.io.files import read_text
from ldm.names import normal

log = logging.getLogger(__name__)

#: Sets with a slot for the picture's own word -> the set they are mixed with.
_PLAIN_OF = {"dual": "object", "style-dual": "style"}


def contains_placeholder(text: str, placeholder: str) -> bool:
    """Whether the tokenizer would find ``placeholder`` in ``text``: not inside another word."""
    text, placeholder = unicodedata.normalize("NFC", text), normal(placeholder)
    before = r"(?<!\w)" if re.match(r"\w", placeholder[0]) else ""
    after = r"(?!\w)" if re.match(r"\w", placeholder[-1]) else ""
    name = r"\s+".join(map(re.escape, placeholder.split()))
    return re.search(before + name + after, text) is not None


def read_captions(paths: Sequence[Path], subject: str, words: Collection[str] = ()) -> list[tuple[str, ...]]:
    """The captions of every picture: the lines of its text (see :func:`caption_files`).

    A caption names the concept by one of ``words``, the placeholders (the subject alone unless given),
    or by a slot ``{}``, which becomes the subject. :class:`UserError` names a file that is missing,
    empty, no text, or holds a caption that does not name the concept (its loss would not reach v*).
    """
    words, files = words or (subject,), caption_files(paths)
    return [_read_caption(caption_of(path, files), subject, words) for path in paths]


def has_captions(paths: Sequence[Path]) -> bool:
    """Whether any of the pictures has captions beside it."""
    return bool(caption_files(paths))


def caption_of(picture: Path, files: Mapping[Path, Path]) -> Path:
    """The captions of a picture, of ``caption_files``; :class:`UserError` if it has none."""
    if picture not in files:
        raise UserError(f"{picture} has no caption: write it into {picture.with_suffix('.txt').name}")
    return files[picture]


def _read_caption(file: Path, subject: str, words: Collection[str]) -> tuple[str, ...]:
    names = " or ".join(words)
    captions = tuple(
        " ".join(line.split()).replace("{}", subject)
        for line in read_text(file, "caption").splitlines()
        if line.strip()
    )
    if not captions:
        raise UserError(f"the caption {file} is empty: write a sentence with {names} into it")
    for caption in captions:
        if not any(contains_placeholder(caption, word) for word in words):
            raise UserError(
                f"the caption {file} does not name the concept ({caption!r}): write {names} or {{}} into it"
            )
    return captions


def joined(words: Iterable[str]) -> str:
    """Words as a prompt names several: "S_1 and S_2"."""
    return " and ".join(words)


def some(words: Sequence[str], generator: torch.Generator) -> list[str]:
    """A random subset that is not empty, in random order; all sizes are as likely."""
    count = 1 + int(torch.randint(len(words), (1,), generator=generator))
    return [words[i] for i in torch.randperm(len(words), generator=generator)[:count].tolist()]


class PromptSource:
    """Draws the prompt for picture i.

    subject: the word that is learned, or a text with several. kind: a template set
    (``ldm.inversion.templates``), or one's own sentences; "dual" and "style-dual" need ``image_tokens``, one
    word a picture, and use them with probability ``mixing_prob``, else the "object" or "style" set; one's
    own are then continued by "with" that word. captions: from :func:`read_captions`, instead of
    templates. coarse_class: a word that templates put before the subject. subsets: for every picture, the
    words that it shows; a prompt then names some of them, "S_1 and S_2", in place of the subject: how many is
    drawn first, all numbers alike, then which, in random order (Break-A-Scene, arXiv 2305.16311).
    """

    def __init__(
        self,
        subject: str,
        *,
        kind: str | Sequence[str] = "object",
        captions: Sequence[Sequence[str]] | None = None,
        image_tokens: Sequence[str] | None = None,
        mixing_prob: float = 0.25,
        coarse_class: str | None = None,
        subsets: Sequence[Sequence[str]] | None = None,
    ) -> None:
        own = None if isinstance(kind, str) else tuple(f"{line} with {{}}" for line in kind)
        dual = image_tokens is not None if own is not None else kind in _PLAIN_OF
        if captions is not None and image_tokens is not None:
            raise UserError("caption files and per-image words cannot be used together: choose one")
        if captions is None and dual != (image_tokens is not None):
            raise UserError(
                f"the templates {kind!r} "
                + (
                    "need one word for every picture"
                    if dual
                    else "take no per-image words: choose 'dual' or 'style-dual'"
                )
            )
        self.name = f"{coarse_class} {subject}" if coarse_class else subject
        self.subsets = subsets
        if subsets is not None:
            self.name = joined(dict.fromkeys(word for words in subsets for word in words))
        self.captions = captions
        self.image_tokens = image_tokens
        self.mixing_prob = mixing_prob if dual else 0.0
        self._plain = templates(_PLAIN_OF.get(kind, kind) if isinstance(kind, str) else kind)
        self._dual = () if not dual else templates(kind) if own is None else own

    @property
    def templates(self) -> tuple[str, ...]:
        """The sentences that the subject is put into; none with captions."""
        return () if self.captions is not None else self._plain + self._dual

    @property
    def naming(self) -> list[str]:
        """What can name the concept in a prompt: the whole captions, or what fills the templates."""
        return [self.name] if self.captions is None else [text for own in self.captions for text in own]

    def prompt(self, image_index: int, generator: torch.Generator) -> str:
        """A prompt for picture ``image_index``.

        Two numbers are drawn, whatever is chosen, and then a subset of its words, where there are any.
        """
        mix, pick = torch.rand(2, generator=generator, dtype=torch.float64).tolist()
        if self.captions is not None:
            own = self.captions[image_index]
            return own[int(pick * len(own))]
        if self.image_tokens is not None and mix < self.mixing_prob:
            line = self._dual[int(pick * len(self._dual))]
            return render(line, self.name, self.image_tokens[image_index])
        name = self.name if self.subsets is None else joined(some(self.subsets[image_index], generator))
        return render(self._plain[int(pick * len(self._plain))], name)

    def prompts(self, image_indices: Sequence[int], generator: torch.Generator) -> list[str]:
        """One prompt for each of ``image_indices``."""
        return [self.prompt(i, generator) for i in image_indices]
