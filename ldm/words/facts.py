"""What is known of a learned word: size, norms and notes, and the words of a vocabulary that it is near."""

from __future__ import annotations

from torch import Tensor

from ldm.io.embeddings import Embedding
from ldm.text.conditioner import TextConditioner
from ldm.words.start import Neighbour, nearest_words

#: more norms than this are told by their range
MOST_NORMS = 8


def facts(word: Embedding, fingerprint: str | None = None) -> list[tuple[str, str]]:
    """What a word says of itself, to be read by people.

    Args:
        fingerprint: of a model; a note then says whether the word was learned on it.

    Returns:
        Rows (what, value) of text. A file may come from anyone, and so its notes: they are not escaped.
    """
    rows = [
        ("vectors", word.size),
        ("type", str(word.dtype).removeprefix("torch.")),
        ("norms", _norms(word.vectors)),
    ]
    if word.second is not None:
        rows.append(("norms for the second text encoder", _norms(word.second)))
    for key, value in word.metadata.items():
        if key == "base_model" and fingerprint:
            value += " (this model)" if value == fingerprint else " (another model)"
        if key == "image_hashes":
            key, value = "pictures", f"{len(value.split(',')) if value else 0} (sha256 {value})"
        rows.append((key.replace("_", " "), value or "none"))
    return rows


def _norms(vectors: Tensor) -> str:
    norms = vectors.norm(dim=-1).flatten()
    if len(norms) > MOST_NORMS:
        return f"{norms.min():.3f} to {norms.max():.3f}, median {norms.median():.3f}"
    return ", ".join(f"{norm:.3f}" for norm in norms)


def usual_norm(text: TextConditioner) -> float:
    """The median norm of a model's own words, which those of a learned word are read against."""
    return float(text.token_table.detach().float().norm(dim=1).median())


def neighbours(word: Embedding, text: TextConditioner, k: int = 5) -> dict[str, list[Neighbour]]:
    """The k words of a model's vocabulary that are nearest to each vector, the nearest first.

    Args:
        word: of the model's width.
        text: the model's text encoder.
        k: at least 1.

    Returns:
        Keys say which vector: "" for the only one, "vector 2", or "vector 2, layer 3".
    """
    found = nearest_words(word.vectors, text.token_table, text.tokenizer.decode_id, k)
    names = [f"vector {i + 1}" for i in range(word.K)] if word.K > 1 else [""]
    if word.sets:
        names = [f"{name}, {one}" if name else one for one in word.set_names for name in names]
    return dict(zip(names, found, strict=True))
