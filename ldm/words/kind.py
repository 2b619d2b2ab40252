"""The contract of a kind of word: what a method of learning words has to say, in one file.

Textual Inversion learns a vector for a placeholder (Gal et al. 2022). Later methods learn other things:
vectors for each cross-attention layer, for each stage of the noise schedule, a direction of fixed length, a
small network. They all come down to token embeddings v(t, l) that stand where the placeholder does, at
timestep t and for layer l. A kind of word says what is learned and how v(t, l) comes of it, and everything
else (runs, packs, resuming, files, reports) knows kinds by this contract alone.

A new kind is a file with a decorated class, and a line in ``ldm.words.kinds`` that imports it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ldm.errors import UserError

KINDS: dict[str, type[Word]] = {}
"""Name -> class of every kind that is registered."""

W = TypeVar("W", bound="type[Word]")


class Fit(NamedTuple):
    """What a word must fit: D of the model's token embeddings, n layers of its denoiser that read the prompt,
    T timesteps of its schedule."""

    width: int
    layers: int
    timesteps: int


@dataclass(frozen=True)
class NoSettings:
    """The settings of a kind that has none."""


class Word(nn.Module):
    """What is learned of one placeholder, which takes K positions of a prompt; parameters are float32.

    A subclass makes its parameters in ``__init__``, with the right shapes and any values, and gives them
    their start in :meth:`fill`.

    Args:
        fit: of the model.
        count: K.
        settings: an instance of the class's ``Settings``.

    Attributes:
        kind: the name by which settings and files call the kind.
        Settings: a frozen dataclass, the kind's own settings with their types and ranges.
        other_tools: whether its files are (K, D) alone, which the formats of other tools have a place for.
        varies_with_time: whether v differs between timesteps; prompts are then encoded for each.
        own_step: whether the word moves by :meth:`move`, and not by the run's optimiser.
        start: (..., K, D) where :meth:`table` started. It is copied from there after :meth:`fill`, so
            that neither may read it: a kind that needs its start keeps a buffer of its own.
    """

    kind: ClassVar[str]
    Settings: ClassVar[type[Any]] = NoSettings
    other_tools: ClassVar[bool] = False
    varies_with_time: ClassVar[bool] = False
    own_step: ClassVar[bool] = False
    start: Tensor

    def __init__(self, fit: Fit, count: int, settings: Any) -> None:
        super().__init__()
        self.fit, self.count, self.settings = fit, count, settings
        self.register_buffer("start", torch.zeros(self.shape))

    # ------------------------------------------------------------------ what is learned

    @property
    def shape(self) -> tuple[int, ...]:
        """Of :meth:`table`: (K, D), or (m, K, D) with m sets of vectors."""
        raise NotImplementedError

    def forward(self, t: Tensor | None) -> Tensor | tuple[Tensor, Tensor]:
        """v(t, l) as (B or 1, n or 1, K, D), with its gradient.

        A kind that has :attr:`units` takes a second argument, ``kept``: how many of them count in each row,
        (B,) int64, or ``None`` for all. A kind that also says something to the values of cross-attention
        alone returns a pair: v, and in the same shape what is added to the text encoder's last hidden states
        h at the word's positions, in units of ||h|| (``TextConditioner.keys_and_values``).

        Args:
            t: (B,) int64; ``None`` where no word at hand varies with time.
        """
        raise NotImplementedError

    @property
    def units(self) -> int:
        """Of a kind whose word can be cut: how many ordered units it has, of which the first ones alone
        make a word; 0 of all other kinds."""
        return 0

    def draw_kept(self, n: int, rng: torch.Generator) -> Tensor | None:
        """How many units count in each of n samples while the word is learned, (n,) int64; ``None``: all.

        Args:
            rng: on the CPU; a function of the run's seed, the concept and the number of the batch.
        """
        return None

    def table(self) -> Tensor:
        """The vectors by which the word is shown, measured and written, with their gradient: all that there
        are, or a sample of them."""
        raise NotImplementedError

    def draw(self, rng: torch.Generator) -> None:
        """Give what starts at random its values, before :meth:`fill`; not called for a word of a file.

        Args:
            rng: on the CPU; a function of the run's seed and the word's name.
        """

    def fill(self, vectors: Tensor, parts: Mapping[str, Tensor], vocabulary: Tensor | None) -> None:
        """Give the parameters their start.

        Args:
            vectors: (K, D), or as a file of this kind holds them: of :attr:`shape`.
            parts: what such a file holds beside them; empty for a word that begins.
            vocabulary: (V, D) the model's own token embeddings, where they are at hand.

        Raises:
            UserError: they do not fit.
        """
        raise NotImplementedError

    def parts(self) -> dict[str, Tensor]:
        """What a file must hold beside :meth:`table`, so that :meth:`fill` restores the word."""
        return {}

    def moment(self, t: int) -> int:
        """One timestep for all those at which v is the same as at ``t``."""
        return t if self.varies_with_time else 0

    # ------------------------------------------------------------------ how it moves

    @property
    def steps_itself(self) -> bool:
        """Whether the optimiser has to call :meth:`move` or :meth:`after_step`."""
        return self.own_step

    def prepare_gradient(self, step: int) -> None:
        """Change the gradient before optimiser step number ``step`` (from 0), and before it is clipped."""

    def move(self, lr: float, state: dict[str, Any]) -> None:
        """Make a step of the kind's own rule, where ``own_step`` is true.

        Args:
            lr: the scheduled rate.
            state: what the rule remembers: tensors and plain values, which checkpoints keep. Its "step", a
                float tensor, is the number of this step from 1.
        """
        raise NotImplementedError

    def after_step(self) -> None:
        """Put right what an optimiser step must not change."""

    # ------------------------------------------------------------------ for subclasses

    def fitting(self, vectors: Tensor, shape: tuple[int, ...]) -> Tensor:
        """``vectors`` repeated to ``shape``.

        Raises:
            UserError: they have another number or width.
        """
        try:
            return vectors.expand(shape)
        except RuntimeError:
            wanted = " or ".join(dict.fromkeys(str(own).replace("'", "") for own in self._shapes(shape)))
            raise UserError(
                f"vectors have shape {tuple(vectors.shape)}, this model wants {wanted} for a word of kind "
                f"{self.kind}; they were made for another model or kind"
            ) from None

    @staticmethod
    def _shapes(shape: tuple[int, ...]) -> list[tuple[Any, ...]]:
        *sets, _, width = shape
        return [("K", width), (*sets, "K", width)]


class Table(Word):
    """A kind whose parameter is its table of vectors."""

    def __init__(self, fit: Fit, count: int, settings: Any) -> None:
        super().__init__(fit, count, settings)
        self.v_star = nn.Parameter(torch.zeros(self.shape))

    def table(self) -> Tensor:
        return self.v_star

    def fill(self, vectors: Tensor, parts: Mapping[str, Tensor], vocabulary: Tensor | None) -> None:
        self.v_star.data.copy_(self.fitting(vectors, self.shape))


def register(word: W) -> W:
    """Class decorator: let settings and files name this kind.

    Raises:
        ValueError: another kind has its name.
    """
    if KINDS.get(word.kind, word) is not word:
        raise ValueError(f"there is a kind of word {word.kind!r} already")
    KINDS[word.kind] = word
    return word
