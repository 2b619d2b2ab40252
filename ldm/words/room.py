"""What of a prompt finds no room: a word of K vectors takes K positions, and what follows moves right."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator

from ldm.text.tokenizer import PlaceholderTokenizer
from ldm.words.manager import EmbeddingManager

#: letters of the cut text that are shown
SHOWN = 60
#: prompts that are remembered, and of which is said what is cut off
MAX_TOLD, MAX_SAID = 4096, 20

log = logging.getLogger(__name__)


def room_of(tokenizer: PlaceholderTokenizer, manager: EmbeddingManager) -> int:
    """Positions for words: all but those of the start token and, where it is kept, of the end token."""
    return tokenizer.max_length - (2 if manager.keep_end else 1)


def _places(
    tokenizer: PlaceholderTokenizer, manager: EmbeddingManager, prompt: str
) -> Iterator[tuple[int, int, int]]:
    """Every token of a prompt, the positions that it takes (a word fully grown), and those that it gets."""
    names = {token_id: name for name, token_id in manager.placeholders.items()}
    left = room_of(tokenizer, manager)
    for token_id in tokenizer.words(prompt):
        count = manager.count(names[token_id]) if token_id in names else 1
        yield token_id, count, max(0, min(count, left))
        left -= count


def seen(tokenizer: PlaceholderTokenizer, manager: EmbeddingManager, prompt: str) -> set[int]:
    """Ids of a prompt of which at least one position is not cut off."""
    return {token_id for token_id, _, left in _places(tokenizer, manager, prompt) if left}


def what_is_cut(tokenizer: PlaceholderTokenizer, manager: EmbeddingManager, prompt: str) -> str | None:
    """One line about a prompt from which learned words are cut off, or push something out; else None."""
    names = {token_id: name for name, token_id in manager.placeholders.items()}
    places = list(_places(tokenizer, manager, prompt))
    lost, affected = list[int](), list[str]()
    for token_id, count, left in places:
        if left < count:
            lost.append(token_id)
            if token_id in names:
                name = names[token_id]
                affected.append(f"{count - left} of the {count} vectors of {name}" if left else name)
    taken = sum(count for _, count, _ in places)
    if not lost or not affected and taken == len(places):  # a text that alone is too long: the tokenizer's
        return None
    plain = _text([i for i in lost if i not in names], tokenizer)
    gone = [*dict.fromkeys(affected), *([repr(plain)] if plain else [])]
    return (
        f"{prompt[:80]!r} takes {taken} positions, and this model has {room_of(tokenizer, manager)}: "
        f"{' and '.join(gone)} cut off; write less, or learn fewer vectors"
    )


class CutNotices:
    """Says once of each prompt what is cut off; of too many prompts, of the first ones alone."""

    def __init__(self) -> None:
        self._told: set[str] = set()
        self._words: dict[str, int] = {}
        self._said = 0

    def tell(
        self,
        tokenizer: PlaceholderTokenizer,
        manager: EmbeddingManager,
        prompts: Iterable[str],
        known: bool = False,
    ) -> None:
        """Warn of those prompts that are new; ``known``: somebody has said it already."""
        if not manager.placeholders:
            return
        if manager.placeholders != self._words or len(self._told) > MAX_TOLD:
            self._told, self._words = set(), manager.placeholders
        for prompt in prompts:
            if prompt in self._told:
                continue
            self._told.add(prompt)
            found = None if known or self._said >= MAX_SAID else what_is_cut(tokenizer, manager, prompt)
            if found:
                self._said += 1
                log.warning("%s", found)


def _text(ids: list[int], tokenizer: PlaceholderTokenizer) -> str:
    """Tokens as text, near enough to be found in the prompt."""
    text = ""
    for token_id in ids:
        token = tokenizer.decode_id(token_id)
        if token.startswith("##"):  # WordPiece: goes on with the word before
            text += token[2:]
        else:  # CLIP's tokens say where a word ends
            text += f" {token}" if "</w>" not in token else f"{token} ".replace("</w>", "")
    text = " ".join(text.split())
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}..."
