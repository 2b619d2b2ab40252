"""Byte-level BPE prompts of CLIP (Radford et al. 2021), with private ids for placeholders.

The vocabulary is the one that ``open_clip_torch`` carries, or that of a local folder in the Hugging
Face layout. Two readings of raw text are in use, and both are here to the token: ``transformers``'
(Stable Diffusion 1, diffusers) normalises and lower-cases; ``open_clip``'s (Stable Diffusion 2) first
mends broken encodings and HTML entities.
"""

from __future__ import annotations

import json
import logging
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex
from tokenizers import Regex, models, normalizers, pre_tokenizers
from tokenizers import Tokenizer as Backend

from ldm.errors import UserError
from ldm.io.files import opened
from ldm.text.english import is_english
from ldm.text.tokenizer import PlaceholderTokenizer

log = logging.getLogger(__name__)

#: bytes of a file of a tokenizer's folder; CLIP's largest has 2 MB
MAX_BYTES = 2**26
#: words that may be added where the size of the token table is not known
MAX_ADDED = 10_000
Vocabulary = tuple[dict[str, int], list[tuple[str, str]]]  # token -> id; merges, the first ones first

FRAMES = (("<|startoftext|>", "<|endoftext|>"), ("<start_of_text>", "<end_of_text>"))
# contractions, words, single digits, runs of anything else: what BPE is applied to
_PIECES = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


class ClipTokenizer(PlaceholderTokenizer):
    """Byte-level BPE, framed by a start and an end token.

    Args:
        max_length: length L of every row, frame and padding included.
        folder: with ``tokenizer.json``, or ``vocab.json`` and ``merges.txt``; CLIP's own vocabulary
            when not given. Tokens that were added to it, as learned words are, become words.
        pad: the token that pads; the folder's own choice, else the end token, when not given.
        mend: read text as ``open_clip`` does.
        rows: of the model's token table.

    The frame's tokens written in a prompt are plain text, so the first end token of a row ends it.
    Bytes spell everything; should a small vocabulary lack one, the end token stands for it, as in
    ``transformers``.

    Raises:
        UserError: the folder holds no vocabulary of this kind.
    """

    def __init__(
        self,
        max_length: int = 77,
        *,
        folder: str | Path | None = None,
        pad: str | None = None,
        mend: bool = False,
        rows: int | None = None,
    ) -> None:
        ids, merges = _from_folder(Path(folder)) if folder else _from_open_clip()
        start, end = next((f for f in FRAMES if f[0] in ids and f[1] in ids), (None, None))
        if start is None or end is None:
            raise UserError(f"{folder} lacks {' and '.join(FRAMES[0])}; is it CLIP's vocabulary?")
        pad = pad or (folder and _pad_of(Path(folder))) or end
        if pad not in ids:
            raise UserError(f"the padding token {pad!r} is not in the vocabulary; choose one that is")
        try:
            backend = Backend(models.BPE(ids, merges, unk_token=end, end_of_word_suffix="</w>"))
        except Exception as error:  # of merges that are not in the vocabulary, and other exceptions
            reason = str(error).split("\n")[0]
            raise UserError(f"the vocabulary of {folder} is damaged ({reason}); fetch it again") from error
        to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        if mend:  # the text comes mended, lower-cased and cut
            backend.pre_tokenizer = to_bytes
        else:
            steps = [normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()]
            backend.normalizer = normalizers.Sequence(steps)
            cut = pre_tokenizers.Split(Regex(_PIECES), behavior="removed", invert=True)
            backend.pre_tokenizer = pre_tokenizers.Sequence([cut, to_bytes])
        super().__init__(
            backend,
            sorted(ids, key=ids.__getitem__),
            max_length=max_length,
            start_id=ids[start],
            end_id=ids[end],
            pad_id=ids[pad],
            unknown_id=ids[end],
            rows=rows,
            added=_added(Path(folder), ids, rows) if folder else None,
        )
        self.mend = mend

    def _word_of(self, token: str) -> str:
        """As it ends with "</w>" where a word does, or one is spelled to its end: "ation" is a token too."""
        word = token.removesuffix("</w>")
        return word if word != token and is_english(word) else ""

    def _pieces(self, text: str) -> list[int]:
        if not self.mend:
            return super()._pieces(text)
        from open_clip.tokenizer import get_clean_fn

        # cut by the package that open_clip cuts with: what a letter is depends on its Unicode version
        pieces = regex.findall(_PIECES, get_clean_fn("lower")(text), flags=regex.IGNORECASE)
        return self._backend.encode(pieces, is_pretokenized=True, add_special_tokens=False).ids


def holds_vocabulary(folder: Path) -> bool:
    """Whether a folder has a vocabulary file of the Hugging Face layout."""
    return any((folder / name).is_file() for name in ("tokenizer.json", "vocab.json"))


@lru_cache(maxsize=1)
def _from_open_clip() -> Vocabulary:
    from open_clip.tokenizer import SimpleTokenizer

    own = SimpleTokenizer()
    return own.encoder, sorted(own.bpe_ranks, key=own.bpe_ranks.__getitem__)


def _from_folder(folder: Path) -> Vocabulary:
    try:
        if (folder / "tokenizer.json").is_file():
            model = _read_json(folder / "tokenizer.json")["model"]
            ids, lines = model["vocab"], model["merges"]
        else:
            ids = _read_json(folder / "vocab.json")
            with opened(folder / "merges.txt", "list of merges", MAX_BYTES) as handle:
                text = handle.read().decode().replace("\r\n", "\n")
            lines = [line for line in text.split("\n") if line and not line.startswith("#version")]
        pairs = [line.split(" ") if isinstance(line, str) else line for line in lines]
        return {str(token): int(i) for token, i in ids.items()}, [(a, b) for a, b in pairs]
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"{folder} holds no CLIP vocabulary (tokenizer.json, or vocab.json and merges.txt: "
            f"{type(error).__name__}); check the folder"
        ) from error


def _added(folder: Path, vocabulary: dict[str, int], rows: int | None) -> dict[str, list[int]]:
    """Words that were added to a folder's vocabulary -> ids. One of several vectors has a token for each:
    ``<cat>``, ``<cat>_1``, ``<cat>_2``, as diffusers saves it, and ``<cat>`` stands for all of them."""
    found: dict[str, int] = {}
    try:
        if (folder / "tokenizer.json").is_file():
            tokens = _read_json(folder / "tokenizer.json").get("added_tokens") or []
            found |= {str(token["content"]): int(token["id"]) for token in tokens}
        if (folder / "tokenizer_config.json").is_file():
            decoder = _read_json(folder / "tokenizer_config.json").get("added_tokens_decoder") or {}
            found |= {str(token["content"]): int(number) for number, token in decoder.items()}
        if (folder / "added_tokens.json").is_file():
            tokens = _read_json(folder / "added_tokens.json")
            found |= {str(token): int(number) for token, number in tokens.items()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError, ArithmeticError) as error:
        raise UserError(
            f"the added tokens of {folder} cannot be read ({type(error).__name__}); fetch the folder again"
        ) from error
    last = rows if rows is not None else len(vocabulary) + MAX_ADDED
    new = {name: i for name, i in found.items() if name.strip() and name not in vocabulary}
    known = {name: i for name, i in new.items() if len(vocabulary) <= i < last}
    if len(known) < len(new):
        log.warning("%s adds %s, for which the text encoder has no vectors: left out", folder,
                    ", ".join(sorted(set(new) - set(known))[:5]))  # fmt: skip
    words = {name: [i] for name, i in known.items()}
    for name, ids in words.items():
        while (further := f"{name}_{len(ids)}") in known:
            ids.append(known[further])
    return words


def _pad_of(folder: Path) -> str | None:
    """The padding token that a Hugging Face folder names, if it names one."""
    for name in ("special_tokens_map.json", "tokenizer_config.json"):  # the first has the last word
        if (folder / name).is_file():
            try:
                pad = _read_json(folder / name).get("pad_token")
                if pad is not None:
                    return str(pad["content"] if isinstance(pad, dict) else pad)
            except (ValueError, AttributeError, KeyError) as error:
                kind = type(error).__name__
                raise UserError(f"cannot read {folder / name} ({kind}); fetch it again") from error
    return None


def _read_json(path: Path) -> Any:
    """What a JSON file holds; ``ValueError`` if it is none."""
    with opened(path, "JSON file", MAX_BYTES) as handle:
        try:
            return json.loads(handle.read().decode())
        except RecursionError as error:
            raise ValueError("too deep") from error
