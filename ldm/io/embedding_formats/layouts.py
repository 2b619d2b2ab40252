"""What the names in an embedding file mean: each layout as a reader and a writer.

A reader takes a :class:`Content` and the file's name without suffix and gives its words; a writer
takes words and gives one :class:`Content` for each file that it takes to hold them. Which layout a
file has, and how many words it can hold, is for the table in ``__init__`` to say.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import ParameterDict

from ldm.errors import UserError
from ldm.io.embedding_formats.content import NOTES, Content
from ldm.io.embedding_formats.word import Embedding

log = logging.getLogger(__name__)

Reader = Callable[[Content, str], list[Embedding]]
Writer = Callable[[Sequence[Embedding]], list[Content]]

NOTES_VERSION = 1
#: The id of "*" where the official code looks for it, by width: BERT's, else CLIP's.
_STAR_IDS = {1280: 1008}
_STAR_ID_CLIP = 265
#: A1111's names of what it keeps beside the vectors, and ours.
_BESIDE = {"step": "step", "sd_checkpoint": "base_model_hash", "sd_checkpoint_name": "base_model_name"}
_MAX_WORDS = 1000


# -------------------------------------------------------------- official, A1111: by token
def read_string_to_param(content: Content, stem: str) -> list[Embedding]:
    """Official and A1111 files. A1111 calls every word ``*`` and keeps its name beside it."""
    params = _parameters(content.values["string_to_param"])
    tokens = content.values.get("string_to_token")
    tokens = tokens if isinstance(tokens, Mapping) else {}
    beside = {ours: text for theirs, ours in _BESIDE.items() if (text := _text(content.values.get(theirs)))}
    words = []
    for key, vectors in params.items():
        token = _number(_text(tokens.get(key)))
        name = _text(content.values.get("name")) if key == "*" else None
        notes = beside if token is None else beside | {"token_id": str(token)}
        words.append(Embedding(name or key, vectors, notes))
    if not words:
        raise UserError("it holds no embedding: its string_to_param is empty")
    return words


def _parameters(params: Any) -> dict[str, Tensor]:
    """Name -> tensor of a dict or of a ``ParameterDict`` of any torch version.

    torch <= 1.11 pickled one without ``_keys``, and today's methods need that: its state is read
    instead of its methods.
    """
    found = vars(params).get("_parameters") if isinstance(params, ParameterDict) else params
    if not isinstance(found, Mapping):
        return {}
    return {k: v for k, v in found.items() if isinstance(k, str) and isinstance(v, Tensor)}


def _text(value: Any) -> str | None:
    """A plain value of a foreign file as text; None for anything else.

    Nothing nested is turned into text: a small pickle can stand for an endless one.
    """
    if isinstance(value, Tensor) and value.dtype is torch.int64 and value.is_cpu and value.ndim == 0:
        value = value.item()
    if isinstance(value, int | float) and abs(value) < 2**63:
        return str(value)
    return value if isinstance(value, str) else None


def _number(text: str | None) -> int | None:
    """A token id or a step that was kept as text; None if it is none."""
    return int(text) if text and text.isdecimal() and len(text) < 19 else None


def write_official(words: Sequence[Embedding]) -> list[Content]:
    """The official ``.pt``: ids as 0-d int64 tensors, vectors in a ``ParameterDict``.

    The official code knows a word by its token id alone, which the metadata of a word that was learned
    here or there has. One word without it gets the id of ``*``, so that it is called by ``*`` there; as
    no model is at hand, the vocabulary is guessed: BERT's for width 1280, else CLIP's.
    """
    ids = {w.placeholder: _number(w.metadata.get("token_id")) for w in words}
    if len(words) == 1 and None in ids.values():
        ids = {words[0].placeholder: _STAR_IDS.get(words[0].D, _STAR_ID_CLIP)}
    if None in ids.values() or len(set(ids.values())) < len(ids):
        without = [name for name, number in ids.items() if number is None] or list(ids)
        named = f"{', '.join(without[:5])} {'has' if len(without) == 1 else 'have'}"
        raise UserError(
            f"an official .pt tells several words apart by their token ids alone, and {named} "
            "none of their own: write .safetensors or .bin, or a .pt for each word (ldm "
            "embeddings convert --word; in a run formats=[safetensors]; in Python token_ids)"
        )
    taken = dir(ParameterDict())  # it keeps its entries as a module's attributes
    for name in ids:
        if "." in name or name in taken:
            raise UserError(
                f"an official .pt cannot hold the name {name!r}, which torch's modules "
                "have no room for: write .safetensors, or rename the placeholder"
            )
    return [
        Content(
            "pickle",
            {
                "string_to_token": {name: torch.tensor(number) for name, number in ids.items()},
                "string_to_param": ParameterDict({w.placeholder: w.vectors for w in words}),
            },
        )
    ]


def write_a1111(container: str) -> Writer:
    """A1111's layout, in a pickle or in a picture; its ``*`` has CLIP's id, whatever the width."""

    def write(words: Sequence[Embedding]) -> list[Content]:
        (word,) = words
        return [
            Content(
                container,
                {
                    "string_to_token": {"*": _STAR_ID_CLIP},
                    "string_to_param": {"*": word.vectors},
                    "name": word.placeholder,
                    "step": _number(word.metadata.get("step")),
                    "sd_checkpoint": word.metadata.get("base_model_hash"),
                    "sd_checkpoint_name": word.metadata.get("base_model_name"),
                },
            )
        ]

    return write


# ------------------------------------------------------------------- diffusers: by name
def read_named(content: Content, stem: str) -> list[Embedding]:
    """``{placeholder: (K, D) or (D,)}``: ours and diffusers'; in ours also (m, K, D), and parts."""
    _refuse_t5(content)
    values, most = content.values, 3 if content.ours else 2
    notes: dict[str, dict[str, str]] = {}
    parts: dict[str, dict[str, Tensor]] = {}
    if content.ours:
        notes = _read_notes(content)
        values, parts = _apart(values, notes)
    vectors = all(isinstance(v, Tensor) and 1 <= v.ndim <= most for v in values.values())
    if not values or not vectors or len(values) > _MAX_WORDS:
        raise UserError("it holds no embedding: give a file with learned vectors, not a model's checkpoint")
    notes = notes or _read_notes(content)
    order = [n for n in notes if n in values] + [n for n in values if n not in notes]
    return [Embedding(n, values[n], notes.get(n, {}), parts=parts.get(n, {})) for n in order]


def _apart(
    values: Mapping[str, Any], notes: Mapping[str, dict[str, str]]
) -> tuple[dict[str, Any], dict[str, dict[str, Tensor]]]:
    """The tensors that are words, and by word the parts that its note lists; the list leaves the notes."""
    values, parts = dict(values), dict[str, dict[str, Tensor]]()
    for name, note in notes.items():
        listed = [part for part in note.pop("parts", "").split(",") if part]
        try:
            parts[name] = {part: values.pop(_key(name, part)) for part in listed}
        except KeyError as error:
            raise UserError(f"it lacks {error} of the word {name!r}: it is damaged") from None
    if not all(isinstance(part, Tensor) for own in parts.values() for part in own.values()):
        raise UserError("it holds parts of a word that are no tensors: it is damaged")
    return values, parts


def _key(name: str, part: str) -> str:
    """What a word's part is called in a file."""
    return f"{name}.{part}"


def write_named(container: str) -> Writer:
    """diffusers' layout, one (K, D) tensor a word, or (n, K, D), which diffusers does not know."""

    def write(words: Sequence[Embedding]) -> list[Content]:
        if any(w.placeholder == "__metadata__" for w in words):
            raise UserError("an embedding cannot be called __metadata__: rename it")
        values = {w.placeholder: w.vectors for w in words}
        parts = {_key(w.placeholder, name): part for w in words for name, part in w.parts.items()}
        if len({*values, *parts}) < len(values) + sum(len(w.parts) for w in words):
            raise UserError(f"one of {', '.join(values)} is called as a part of another: rename it")
        return [Content(container, values | parts, _notes(words))]

    return write


def write_named_twice(words: Sequence[Embedding]) -> list[Content]:
    """diffusers' two files for SDXL: one for each text encoder, under the same name."""
    write = write_named("safetensors")
    return [content for half in split_encoders(*words) for content in write([half])]


# --------------------------------------------------------- kohya, OneTrainer: by a fixed name
def read_unnamed(key: str) -> Reader:
    """``{key: (K, D)}``. The word is called as our notes say, else as the file is."""

    def read(content: Content, stem: str) -> list[Embedding]:
        _refuse_rest(content, key)
        name, notes = _only_note(content, stem)
        return [Embedding(name, _tensor(content, key), notes)]

    return read


def write_unnamed(key: str) -> Writer:
    def write(words: Sequence[Embedding]) -> list[Content]:
        (word,) = words
        return [Content("safetensors", {key: word.vectors}, _notes(words))]

    return write


# ----------------------------------------------------------------- SDXL: two text encoders
def read_pair(first: str, second: str) -> Reader:
    """``{first: (K, 768), second: (K, 1280)}``, named as by :func:`read_unnamed`."""

    def read(content: Content, stem: str) -> list[Embedding]:
        _refuse_rest(content, first, second)
        there = [key for key in (first, second) if key in content.values]
        if len(there) == 1:
            raise UserError(
                f"it holds {there[0]} alone, half of a word of SDXL with its two text encoders: "
                f"give one with {first} and {second}"
            )
        name, notes = _only_note(content, stem)
        return [Embedding(name, _tensor(content, first), notes, _tensor(content, second))]

    return read


def write_pair(first: str, second: str) -> Writer:
    def write(words: Sequence[Embedding]) -> list[Content]:
        (word,) = words
        return [Content("safetensors", {first: word.vectors, second: word.second}, _notes(words))]

    return write


def split_encoders(word: Embedding) -> tuple[Embedding, Embedding]:
    """A word of SDXL as two words of one text encoder each."""
    assert word.second is not None
    return replace(word, second=None), replace(word, vectors=word.second, second=None)


def join_encoders(first: Embedding, second: Embedding) -> Embedding:
    """A word of SDXL from diffusers' two files, ``learned_embeds`` and ``learned_embeds_2``.

    :class:`UserError` if they are not two halves of one word, the narrower one first.
    """
    halves = (first.second, second.second) == (None, None)
    if not halves or first.placeholder != second.placeholder or first.D >= second.D:
        raise UserError(
            f"{first.placeholder!r} of width {first.D} and {second.placeholder!r} of width {second.D} "
            "are not the two halves of a word of SDXL: give the file for clip_l (width 768), then "
            "that for clip_g (1280), with one name in both"
        )
    return replace(first, second=second.vectors, metadata=second.metadata | first.metadata)


def _refuse_rest(content: Content, *read: str) -> None:
    """Nothing that a file holds is left out without a word: what a layout has no place for is refused."""
    outputs = sorted(name for name in content.values if name.endswith("_out"))
    if outputs:
        raise UserError(
            f"it holds {', '.join(outputs)[:200]}, an output embedding, which replaces the "
            "text encoder's result: only input embeddings can be used"
        )
    _refuse_t5(content)
    more = sorted(k for k, v in content.values.items() if k not in read and isinstance(v, Tensor))
    if more:
        raise UserError(
            f"it holds {', '.join(more)[:200]} beside {' and '.join(read)}: a word that this "
            "program could use only in part"
        )


def _refuse_t5(content: Content) -> None:
    if "t5xxl" in content.values and not content.ours:  # in ours it is a word's name
        raise UserError(
            "it holds t5xxl, vectors for the text encoder T5-XXL of Stable Diffusion 3 or FLUX: "
            "no model of this program has it, and without them it would be another word"
        )


def _tensor(content: Content, key: str) -> Tensor:
    value = content.values.get(key)
    if not isinstance(value, Tensor):
        raise UserError(f"it lacks the vectors {key!r} that its layout calls for: it is damaged")
    return value


# ------------------------------------------------------- our notes in safetensors' metadata
def _notes(words: Sequence[Embedding]) -> dict[str, str]:
    """The safetensors metadata: one JSON object a placeholder, under ``embeddings``."""
    described = {
        w.placeholder: {
            **w.metadata,
            "placeholder": w.placeholder,
            "K": str(w.K),
            "D": "+".join(map(str, w.widths)),
            **({"parts": ",".join(w.parts)} if w.parts else {}),
        }
        for w in words
    }
    return {
        "format": NOTES,
        "format_version": str(NOTES_VERSION),
        "embeddings": json.dumps(described, ensure_ascii=False),
    }


def _read_notes(content: Content) -> dict[str, dict[str, str]]:
    """Placeholder -> metadata; a foreign file's notes are those of every word in it."""
    notes = content.notes
    if not content.ours:
        return {name: dict(notes) for name in content.values}
    derived = {"placeholder", "K", "D"}  # the tensors themselves say these
    try:
        newer = int(notes.get("format_version", 0)) > NOTES_VERSION
        described = {
            str(name): {str(k): str(v) for k, v in about.items() if k not in derived}
            for name, about in json.loads(notes["embeddings"]).items()
        }
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError("its notes are corrupt; fetch it again") from error
    if newer:
        log.warning("an embedding file was written by a newer version: some notes may be lost")
    return described


def _only_note(content: Content, stem: str) -> tuple[str, dict[str, str]]:
    """Name and metadata of the one word in a file whose layout has no place for a name."""
    if not content.ours:
        return stem, dict(content.notes)
    return next(iter(_read_notes(content).items()), (stem, {}))
