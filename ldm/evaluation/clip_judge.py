"""A judge of one's own: a small CLIP (Radford et al. 2021) of ``open_clip``'s classes, and its features.

One comes with the program, and ``ldm train clip`` makes another; either is a folder of weights, config,
vocabulary and the names of the concepts that it was trained to name.
``open_clip`` is imported when a judge is built, not before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.config import ASSETS, dump_yaml, load_yaml, resolve, to_plain
from ldm.errors import UserError
from ldm.evaluation.scorers.base import weights_hash
from ldm.evaluation.scorers.identity import Identity
from ldm.io.atomic import atomic_write, write_bytes, write_text
from ldm.io.checkpoints import read_state_dict
from ldm.io.tensors import save_tensors
from ldm.paths import found
from ldm.text.tokenizer import Tokenizer

WEIGHTS, CONFIG, VOCABULARY = "model.safetensors", "config.yaml", "vocab.txt"
CONCEPTS = "concepts.tsv"


class Named(NamedTuple):
    """A concept by name, for prompts.

    Attributes:
        hex: code points of its character, by which it is told from others of its name.
        group, subgroup: of Unicode's order.
        label: what prompts call it.
    """

    hex: str
    group: str
    subgroup: str
    label: str


class Labelled(Protocol):
    """What has the fields of :class:`Named`, as the concepts that a judge is trained on."""

    @property
    def hex(self) -> str: ...
    @property
    def group(self) -> str: ...
    @property
    def subgroup(self) -> str: ...
    @property
    def label(self) -> str: ...


class Judge(Protocol):
    """What the metrics need of a model; all features are (N, D) float32 of unit length.

    ``concepts`` are those that it was trained to name; empty: unknown.
    """

    concepts: Sequence[Named]

    def image_features(self, images: Tensor) -> Tensor: ...

    def text_features(self, texts: Sequence[str]) -> Tensor: ...


@dataclass(frozen=True)
class ClipConfig:
    """Size of a CLIP.

    Attributes:
        embed_dim: width D of the common space.
        vision: arguments of ``open_clip.model.CLIPVisionCfg``; a list of ``layers`` is a
            ModifiedResNet, a number a vision transformer.
        text: arguments of ``open_clip.model.CLIPTextCfg`` without the vocabulary's.
        quick_gelu: the activation of OpenAI's weights.
    """

    embed_dim: int = 256
    vision: dict = field(default_factory=dict)
    text: dict = field(default_factory=dict)
    quick_gelu: bool = False

    @property
    def context_length(self) -> int:
        return int(self.text.get("context_length", 77))


def build_clip(config: ClipConfig, tokenizer: Tokenizer) -> nn.Module:
    """An untrained ``open_clip.model.CLIP`` over a tokenizer's ids.

    ``open_clip`` takes the text feature at the *largest* id unless told otherwise, which is the end
    token of its own vocabulary only; here it is taken at the first [SEP].

    Raises:
        UserError: open_clip is missing, or does not know an argument.
    """
    try:
        from open_clip.model import CLIP, CLIPTextCfg, CLIPVisionCfg
    except ImportError as error:
        raise UserError(f"cannot import open_clip ({error}); pip install open_clip_torch") from None
    ids = {"pool_type": "eos", "eos_id": tokenizer.end_id, "pad_id": tokenizer.pad_id}
    try:
        vision = CLIPVisionCfg(**config.vision)
        text = CLIPTextCfg(vocab_size=tokenizer.vocab_size, **{**config.text, **ids})
    except TypeError as error:
        raise UserError(f"config of the CLIP: {error}; correct its vision or text part") from None
    return CLIP(config.embed_dim, vision, text, quick_gelu=config.quick_gelu)


class ClipJudge:
    """Unit features of pictures and texts.

    Args:
        clip: an ``open_clip`` model over ``tokenizer``'s ids.
        image_size: pixels a side that it sees.
        concepts: those that it was trained to name, if known.
        batch_size: pictures or texts encoded at once.
        name: as a scorer (:mod:`ldm.evaluation.scorers`).
    """

    reads_text = True

    def __init__(
        self,
        clip: Any,
        tokenizer: Tokenizer,
        image_size: int,
        concepts: Sequence[Named] = (),
        batch_size: int = 256,
        name: str = "clip",
    ) -> None:
        self.clip = clip.eval().requires_grad_(False)
        self.width: int = clip.visual.output_dim  # D
        self.tokenizer, self.image_size, self.batch_size = tokenizer, image_size, batch_size
        self.concepts: Sequence[Named] = concepts
        self.name = name

    def __deepcopy__(self, memo: dict[int, object]) -> ClipJudge:
        """Itself: it is frozen, and copies of a metric share it."""
        return self

    @cached_property
    def identity(self) -> Identity:
        """Architecture, weights' hash, preprocessing and tokenizer."""
        tower = type(self.clip.visual).__name__
        return Identity(
            architecture=f"open_clip {tower}, {self.width} features",
            weights=weights_hash(self.clip),
            preprocessing=f"float; bicubic with antialiasing to {self.image_size} x {self.image_size}",
            text=f"WordPiece of {self.tokenizer.vocab_size} words, {self.tokenizer.max_length} tokens",
        )

    def knows(self, word: str) -> bool:
        """Whether it was trained on a word: one of its concepts' names, or of its vocabulary if those are not
        known."""
        if self.concepts:
            return word in self._names
        return self.tokenizer.vocabulary_id(word) is not None

    @cached_property
    def _names(self) -> frozenset[str]:
        return frozenset(concept.label for concept in self.concepts)

    @property
    def device(self) -> torch.device:
        return next(self.clip.parameters()).device

    def to(self, device: torch.device | str) -> ClipJudge:
        """Move the model; features come back on this device."""
        self.clip.to(device)
        return self

    @torch.no_grad()
    def image_features(self, images: Tensor) -> Tensor:
        """(N, 3, H, W) in [-1, 1], resized to a square if needed -> (N, D), each of length 1."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ValueError(f"images are (N, 3, H, W), not {tuple(images.shape)}")
        if not len(images):
            return torch.empty(0, self.width, device=self.device)
        return torch.cat([self._encode_images(part) for part in images.split(self.batch_size)])

    @torch.no_grad()
    def text_features(self, texts: Sequence[str]) -> Tensor:
        """Texts -> (N, D), each of length 1."""
        ids = self.tokenizer(texts).to(self.device)
        parts = [self.clip.encode_text(part, normalize=True) for part in ids.split(self.batch_size)]
        return torch.cat(parts).float()

    def _encode_images(self, images: Tensor) -> Tensor:
        images = images.to(self.device, torch.float32).clamp(-1, 1)
        size = (self.image_size, self.image_size)
        if images.shape[-2:] != size:
            images = F.interpolate(images, size, mode="bicubic", antialias=True).clamp(-1, 1)
        return self.clip.encode_image(images, normalize=True).float()


def write_concepts(concepts: Sequence[Labelled], path: Path) -> Path:
    """Names of concepts as tab-separated lines: prompts can then be written without the pictures."""
    rows = ["\t".join((c.hex, c.group, c.subgroup, c.label)) for c in concepts]
    return write_text(path, "".join(f"{row}\n" for row in rows))


def read_concepts(path: Path) -> list[Named]:
    """What :func:`write_concepts` wrote; nothing if there is no such file.

    Raises:
        UserError: it holds something else.
    """
    lines = path.read_text(encoding="utf-8").splitlines() if path.is_file() else []
    rows = [line.split("\t") for line in lines]
    if any(len(row) != 4 for row in rows):
        raise UserError(f"{path} is no list of concepts: hex, group, subgroup and label by tabs")
    return [Named(*row) for row in rows]


def save_clip(
    clip: nn.Module,
    config: ClipConfig,
    vocabulary: Path,
    folder: Path,
    concepts: Sequence[Labelled] = (),
) -> Path:
    """Write a CLIP, and the names of its concepts, as :func:`load_clip` reads it; returns ``folder``.

    Matrices are stored in half precision, vectors and statistics (a few kilobytes) in full.
    """

    def stored(value: Tensor) -> Tensor:
        half = value.is_floating_point() and value.ndim > 1
        return value.detach().cpu().to(torch.float16 if half else value.dtype).contiguous()

    with atomic_write(folder / WEIGHTS) as path:
        save_tensors({name: stored(value) for name, value in clip.state_dict().items()}, path)
    write_text(folder / CONFIG, dump_yaml(to_plain(config)))
    write_bytes(folder / VOCABULARY, found(vocabulary).read_bytes())
    write_concepts(concepts, folder / CONCEPTS)
    return folder


def load_clip(name_or_path: str | Path = "emoji-clip", device: str = "cpu") -> ClipJudge:
    """A judge: the name of a shipped one, or a folder that :func:`save_clip` wrote.

    Raises:
        UserError: no such judge, or its weights do not fit its config.
    """
    folder = found(name_or_path)
    shipped = ASSETS / str(name_or_path)
    if not (folder / WEIGHTS).is_file() and (shipped / WEIGHTS).is_file():
        folder = shipped
    if not (folder / WEIGHTS).is_file() or not (folder / CONFIG).is_file():
        raise UserError(
            f"no scorer named {name_or_path}: give clip:MODEL/TAG, dino:NAME, emoji-clip, or a folder of "
            f"ldm train clip with {WEIGHTS} and {CONFIG}"
        )
    config = resolve(ClipConfig, load_yaml([folder / CONFIG]))
    tokenizer = Tokenizer(folder / VOCABULARY, config.context_length)
    clip = build_clip(config, tokenizer)
    _load_strictly(clip, read_state_dict(folder / WEIGHTS), folder)
    size = int(config.vision.get("image_size", 224))
    return ClipJudge(
        clip.to(device), tokenizer, size, read_concepts(folder / CONCEPTS), name=str(name_or_path)
    )


def _load_strictly(clip: nn.Module, weights: Mapping[str, Tensor], folder: Path) -> None:
    try:
        clip.load_state_dict(dict(weights), strict=True)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:160]
        raise UserError(f"{folder / WEIGHTS} does not fit its config: {reason}") from None
