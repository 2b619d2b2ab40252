"""Learned words on disk: our own file, and those of the tools people already use.

Ours is ``.safetensors`` in the diffusers layout, ``{placeholder: (K, D) float32}``, so other tools
open it, with a provenance in its metadata. Read as well: the official ``.pt``
(``string_to_token`` / ``string_to_param``), A1111's ``.pt``, diffusers' ``.bin`` and kohya's and
OneTrainer's ``emb_params``. No reader runs pickled code: ``torch.load(weights_only=True)`` with
``ParameterDict`` as the one class let in.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import ParameterDict

from ldm.errors import UserError
from ldm.io.checkpoints import is_safetensors, read_head
from ldm.io.runs import atomic_write

log = logging.getLogger(__name__)

FORMAT = "textual-inversion"
FORMAT_VERSION = 1
#: The id of "*" where the official code looks for it, by width: BERT's, else CLIP's.
_STAR_IDS = {1280: 1008}
_STAR_ID_CLIP = 265
#: Names under which tools store one unnamed embedding; the file's own name is the placeholder.
_UNNAMED = ("emb_params", "emp_params")
#: Names that say: vectors of two text encoders, of SDXL.
_TWO_ENCODERS = ("clip_l", "clip_g", "text_encoders_0", "text_encoders_1")


@dataclass(frozen=True, eq=False)
class Embedding:
    """One learned word. vectors: (K, D) float32 on the CPU. metadata: see :func:`provenance`.

    :class:`UserError` if the vectors are not K >= 1 finite rows or the placeholder is empty.
    """

    placeholder: str
    vectors: Tensor
    metadata: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        vectors = self.vectors.detach()
        vectors = vectors[None] if vectors.ndim == 1 else vectors  # old diffusers files hold (D,)
        if not self.placeholder.strip():
            raise UserError("an embedding needs a name: give a placeholder that is not empty")
        if vectors.ndim != 2 or 0 in vectors.shape or not vectors.is_floating_point():
            raise UserError(f"the embedding {self.placeholder!r} is no set of vectors: it has "
                            f"shape {tuple(vectors.shape)} and type {vectors.dtype}")
        if not vectors.isfinite().all():
            raise UserError(f"the embedding {self.placeholder!r} holds values that are not finite: "
                            "its training diverged, use an earlier step")
        object.__setattr__(self, "vectors", vectors.to("cpu", torch.float32, copy=True))

    @property
    def K(self) -> int:
        """Number of vectors, that is of tokens the word takes in a prompt."""
        return self.vectors.shape[0]

    @property
    def D(self) -> int:
        """Width of the text encoder's token embeddings."""
        return self.vectors.shape[1]


def provenance(
    *,
    base_model: str,
    step: int,
    seed: int,
    init: str | None = None,
    templates: str | None = None,
    image_hashes: Iterable[str] = (),
) -> dict[str, str]:
    """The metadata of an embedding that this project learned, as strings.

    base_model: the fingerprint (hex). step: optimiser steps done. init: the phrase it started
    from. templates: name of the template set. image_hashes: sha256 of every training picture.
    """
    return {
        "base_model": base_model,
        "step": str(step),
        "seed": str(seed),
        "init": init or "",
        "templates": templates or "",
        "image_hashes": ",".join(image_hashes),
    }


def check_width(embedding: Embedding, width: int) -> None:
    """:class:`UserError` if ``embedding`` was not learned for token embeddings of ``width``."""
    if embedding.D != width:
        raise UserError(
            f"the embedding {embedding.placeholder!r} has width {embedding.D}, but this model's "
            f"words have width {width}: it was learned on another model, use that one")


def check_base_model(embedding: Embedding, fingerprint: str) -> bool:
    """Whether ``embedding`` was learned on the model of ``fingerprint``; warns if on another.

    An embedding without that information passes: other tools do not record it.
    """
    learned_on = embedding.metadata.get("base_model", "")
    same = not learned_on or learned_on == fingerprint
    if not same:
        log.warning("the embedding %r was learned on another base model (%s..., this one is "
                    "%s...): expect other pictures", embedding.placeholder, learned_on[:12],
                    fingerprint[:12])
    return same


# ------------------------------------------------------------------------------ writing
def save_embeddings(
    embeddings: Embedding | Sequence[Embedding],
    path: Path | str,
    *,
    token_ids: Mapping[str, int] | None = None,
) -> Path:
    """Writes one or several embeddings to one file, atomically; the suffix decides the format.

    ``.safetensors``: ours. ``.pt``: the official layout; ``token_ids`` are the ids that the
    official tokenizer gives the placeholders (one placeholder without an id gets that of ``*``,
    so that the official code finds it under ``*``). ``.bin``: diffusers' pickled layout.
    :class:`UserError` for another suffix, a name given twice or a failed write.
    """
    words = [embeddings] if isinstance(embeddings, Embedding) else list(embeddings)
    path = Path(path)
    names = [word.placeholder for word in words]
    if not words or len(set(names)) < len(names):
        raise UserError(f"cannot write {path}: every embedding in a file needs its own name, "
                        f"got {names}")
    if path.suffix not in {".safetensors", ".pt", ".bin"}:
        raise UserError(f"cannot write {path}: name it .safetensors, .pt (official) or .bin")
    if path.suffix == ".safetensors":
        with atomic_write(path) as temporary:
            save_file({w.placeholder: w.vectors for w in words}, str(temporary), _notes(words))
        return path
    content = _official(words, token_ids or {}) if path.suffix == ".pt" \
        else {w.placeholder: w.vectors for w in words}
    with atomic_write(path) as temporary:
        torch.save(content, temporary)
    return path


def _notes(words: Sequence[Embedding]) -> dict[str, str]:
    """The safetensors metadata: one JSON object a placeholder, under ``embeddings``."""
    described = {w.placeholder: {**w.metadata, "placeholder": w.placeholder,
                                 "K": str(w.K), "D": str(w.D)} for w in words}
    return {"format": FORMAT, "format_version": str(FORMAT_VERSION),
            "embeddings": json.dumps(described, ensure_ascii=False)}


def _official(words: Sequence[Embedding], token_ids: Mapping[str, int]) -> dict[str, Any]:
    """The official ``.pt``; ``metadata`` is ours, the official code does not look at it."""
    tokens = {w.placeholder: token_ids.get(w.placeholder, w.metadata.get("token_id"))
              for w in words}
    if len(words) == 1 and None in tokens.values():
        tokens = {words[0].placeholder: _STAR_IDS.get(words[0].D, _STAR_ID_CLIP)}
    if None in tokens.values():
        raise UserError("an official .pt with several placeholders needs the token id of each: "
                        "give token_ids, or write .safetensors")
    try:
        params = ParameterDict({w.placeholder: w.vectors for w in words})
    except KeyError as error:  # a module attribute cannot hold a dot or the name of a method
        raise UserError(f"an official .pt cannot hold this name ({error.args[0]}): "
                        "write .safetensors, or rename the placeholder") from error
    return {"string_to_token": {k: torch.tensor(int(v or 0)) for k, v in tokens.items()},
            "string_to_param": params,
            "metadata": {w.placeholder: dict(w.metadata) for w in words}}


# ------------------------------------------------------------------------------ reading
def load_embeddings(path: Path | str) -> list[Embedding]:
    """Every embedding in a file of any format named above, in the file's order.

    A file without a placeholder (kohya's) is named after itself. :class:`UserError` for a missing,
    corrupt or foreign file, and for SDXL's two-encoder and OneTrainer's output embeddings.
    """
    path = Path(path).expanduser()
    head = read_head(path)
    try:
        if is_safetensors(head):
            with safe_open(str(path), framework="pt") as handle:
                content: Any = {name: handle.get_tensor(name) for name in handle.keys()}  # noqa: SIM118
                notes = dict(handle.metadata() or {})
        else:
            with torch.serialization.safe_globals([ParameterDict]):
                content, notes = torch.load(path, map_location="cpu", weights_only=True), {}
    except Exception as error:  # readers raise nearly anything on broken bytes
        raise UserError(f"cannot read the embedding {path}: it is corrupt, of another format or "
                        "holds more than vectors (which is refused); fetch it again") from error
    if not isinstance(content, Mapping):
        raise UserError(f"{path} holds no embedding: give a file with learned vectors")
    if "string_to_param" in content:
        return _from_official(content, path)
    return _from_flat(content, notes, path)


def load_embedding(path: Path | str) -> Embedding:
    """The embedding of a file that holds exactly one; :class:`UserError` if it holds several."""
    words = load_embeddings(path)
    if len(words) > 1:
        raise UserError(f"{path} holds {len(words)} embeddings "
                        f"({', '.join(w.placeholder for w in words)}): give a file with one")
    return words[0]


def _from_official(content: Mapping[str, Any], path: Path) -> list[Embedding]:
    """Official and A1111 ``.pt``. A1111 calls every word ``*`` and keeps its name beside it."""
    params = _parameters(content["string_to_param"])
    tokens = content.get("string_to_token")
    tokens = tokens if isinstance(tokens, Mapping) else {}
    named = content.get("metadata")
    named = named if isinstance(named, Mapping) else {}
    beside = {"step": "step", "sd_checkpoint": "base_model_hash",
              "sd_checkpoint_name": "base_model_name"}
    shared = {ours: str(content[theirs]) for theirs, ours in beside.items()
              if content.get(theirs) is not None}
    words = []
    for key, vectors in params.items():
        own = named.get(key)
        notes = {str(k): str(v) for k, v in own.items()} if isinstance(own, Mapping) else {}
        notes |= shared
        token = tokens.get(key)
        if isinstance(token, int) or isinstance(token, Tensor) and token.numel() == 1:
            notes["token_id"] = str(int(token))
        name = content.get("name") if key == "*" else None
        words.append(Embedding(str(name or key), vectors, notes))
    if not words:
        raise UserError(f"{path} holds no embedding: its string_to_param is empty")
    return words


def _parameters(params: Any) -> dict[str, Tensor]:
    """Name -> tensor of a dict or of a ``ParameterDict`` of any torch version.

    torch <= 1.11 pickled one without ``_keys``, and today's methods need that: its state is read
    instead of its methods.
    """
    found = vars(params).get("_parameters", {}) if isinstance(params, ParameterDict) else params
    if not isinstance(found, Mapping):
        return {}
    return {str(k): v for k, v in found.items() if isinstance(v, Tensor)}


def _from_flat(content: Mapping[str, Any], notes: dict[str, str], path: Path) -> list[Embedding]:
    """``{placeholder: vectors}``: ours, diffusers', kohya's and OneTrainer's files."""
    names = [str(name) for name in content]
    if any(name.endswith("_out") and name.startswith(_UNNAMED) for name in names):
        raise UserError(f"{path} holds an output embedding ({', '.join(names)}), which replaces "
                        "the text encoder's result: only input embeddings can be used")
    if any(name in _TWO_ENCODERS for name in names):
        raise UserError(f"{path} is for SDXL, with vectors for two text encoders "
                        f"({', '.join(names)}): this model has one")
    if not names or not all(isinstance(v, Tensor) and v.ndim in (1, 2) for v in content.values()) \
            or len(names) > 1000:
        raise UserError(f"{path} holds no embedding: give a file with learned vectors, "
                        "not a model's checkpoint")
    own = notes.pop("embeddings", None) if notes.get("format") == FORMAT else None
    if own is None:
        return [Embedding(path.stem if n in _UNNAMED else n, v, dict(notes))
                for n, v in content.items()]
    if int(notes.get("format_version", 0)) > FORMAT_VERSION:
        log.warning("%s was written by a newer version: some of its notes may be lost", path)
    try:
        described = {str(k): {str(a): str(b) for a, b in v.items()}
                     for k, v in json.loads(own).items()}
    except (ValueError, AttributeError) as error:
        raise UserError(f"the notes of {path} are corrupt; fetch it again") from error
    derived = {"placeholder", "K", "D"}  # the tensors themselves say these
    order = [n for n in described if n in content] + [n for n in content if n not in described]
    return [Embedding(n, content[n], {k: v for k, v in described.get(n, {}).items()
                                      if k not in derived}) for n in order]
