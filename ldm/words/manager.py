"""EmbeddingManager: the learned pseudo-words v* and their place in a prompt.

Textual Inversion (Gal et al. 2022, section 3) learns only v*, the vectors that stand where the
token embedding of the placeholder S* would. The manager owns the v* of any number of placeholders
and puts them into looked-up prompts, before the text transformer:

    ids     [CLS] a photo of S*      [SEP] [PAD] [PAD]        S* has K = 3 vectors
    ->      [CLS] a photo of S* S* S* [SEP]                   cut at the context length L

What is learned of a placeholder, and what v* is in which of the denoiser's n cross-attention layers at which
timestep, is for its kind of word to say (``ldm.words.kind``). Where a word at hand differs between layers
there are n such prompts: the same ids, other v*.
"""

import string
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, cast

import torch
from einops import rearrange
from torch import Tensor, nn

from ldm.device import carry
from ldm.errors import UserError
from ldm.names import normal
from ldm.words.kind import Fit, Word
from ldm.words.kinds import Choice, choose
from ldm.words.splice import Index, Placed, index_of, look_up, places

MAX_INDICES = 64  # sets of placeholders whose index is kept
_PLAIN = frozenset(string.ascii_letters + string.digits)


class _Entry(NamedTuple):
    token_id: int
    progressive: tuple[int, ...]
    choice: Choice


def image_token(placeholder: str, index: int) -> str:
    """Name of the pseudo-word S_i that belongs to one training image: "S" and 2 give "S_2"."""
    return f"{placeholder}_{index}"


class EmbeddingManager(nn.Module):
    """Learned words of placeholders; an ``nn.Module`` whose only parameters are theirs.

    Parameters are float32 whatever ``.half()`` or ``.to(torch.bfloat16)`` is asked of the module or of
    one that holds it; device moves work as usual. ``state_dict`` holds all that restores a manager,
    placeholders included, so that loading it into an empty one recreates it.

    Args:
        width: size D of a token embedding.
        vocab_size: number of ordinary token ids; placeholders' ids lie above.
        end_id: id of the token that ends a prompt ([SEP]). The first one in a row is its end, which
            also holds where a prompt is padded with the end token (CLIP).
        keep_end: where vectors push the end token over the context length, keep it as the last
            position. ``False`` lets it fall off, as the official code does (``CompatConfig``).
        layers: n, the denoiser's layers that read the prompt.
        timesteps: T of the noise schedule.
    """

    def __init__(
        self,
        width: int,
        vocab_size: int,
        end_id: int,
        *,
        keep_end: bool = True,
        layers: int = 1,
        timesteps: int = 1000,
    ) -> None:
        super().__init__()
        self.fit = Fit(width, layers, timesteps)
        self.vocab_size = vocab_size
        self.end_id, self.keep_end = end_id, keep_end
        self._entries: dict[str, _Entry] = {}
        self.words = nn.ModuleDict()  # _key(placeholder) -> Word
        self._place: Tensor  # says where the manager is, also while it has no vectors
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self._by_id: dict[int, str] = {}
        self._trained: set[str] = set()
        self._varying: set[str] = set()  # with time, or with how many units count
        self._indices: dict[tuple[str, ...], Index] = {}

    @property
    def width(self) -> int:
        """D, the size of a token embedding."""
        return self.fit.width

    @property
    def device(self) -> torch.device:
        return self._place.device

    # ------------------------------------------------------------------ placeholders

    @property
    def placeholders(self) -> dict[str, int]:
        """Placeholder -> token id, in order of adding."""
        return {name: entry.token_id for name, entry in self._entries.items()}

    def add(
        self,
        placeholder: str,
        token_id: int,
        vectors: Tensor,
        progressive: Sequence[int] | None = None,
        init: Tensor | None = None,
        *,
        word: Mapping[str, Any] | str = "plain",
        parts: Mapping[str, Tensor] | None = None,
        vocabulary: Tensor | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        """Give a placeholder its word.

        Args:
            placeholder: any string.
            token_id: its private id, at least ``vocab_size``.
            vectors: (K, D) or (D,), where v* starts, or in the shape that a file of this kind has; copied.
            progressive: K - 1 optimiser steps, the ones from which the second, third, ... vector is
                used (2000, 4000 in the paper, figure 10). ``None``: all of them always.
            word: the kind, or a mapping ``{kind: ..., setting: ...}``.
            init, parts, vocabulary, generator: as of ``Choice.begin``.

        Raises:
            UserError: the placeholder exists already, there is no such kind or setting, or the vectors do
                not fit this model.
            ValueError: the id is a vocabulary word's or another placeholder's, the schedule does not fit K,
                or the kind's ``table`` depends on its ``start``.
        """
        placeholder = normal(placeholder)
        if placeholder in self._entries:
            raise UserError(f"placeholder {placeholder!r} exists already; choose another name")
        if token_id < self.vocab_size:
            raise ValueError(f"id {token_id} is a vocabulary word's; ids start at vocab_size")
        if token_id in self._by_id:
            raise ValueError(f"id {token_id} is another placeholder's")
        choice, vectors = choose(word), self._checked(placeholder, vectors)
        init = None if init is None else self._checked(placeholder, init)
        count = vectors.shape[-2]
        steps = tuple(int(step) for step in progressive or ())
        if steps and (len(steps) != count - 1 or list(steps) != sorted(steps)):
            raise ValueError(f"{count} vectors grow at {count - 1} rising steps")
        try:
            made = choice.begin(
                self.fit, vectors, init=init, parts=parts, vocabulary=vocabulary, generator=generator
            )
        except UserError as error:
            raise UserError(f"the word {placeholder!r}: {error}") from None
        self._entries[placeholder] = _Entry(token_id, steps, choice)
        self._by_id[token_id] = placeholder
        self._trained.add(placeholder)
        self._put(placeholder, made)
        self._indices = {}

    def add_image_tokens(
        self, placeholder: str, vectors: Tensor, assign: Callable[[str], int]
    ) -> tuple[str, ...]:
        """Add one pseudo-word S_i per training image ("a photo of S* with S_i").

        Args:
            placeholder: the concept's, from which ``image_token`` makes the names.
            vectors: (N, D) or (N, K, D), where the N words start.
            assign: gives a name its private id, e.g. ``tokenizer.add_placeholder``.

        Returns:
            The N names, in the order of the images.
        """
        names = tuple(image_token(placeholder, i) for i in range(len(vectors)))
        for name, vector in zip(names, vectors, strict=True):
            self.add(name, assign(name), vector)
        return names

    def remove(self, placeholder: str) -> None:
        """Forget a placeholder and its vectors."""
        placeholder = self._known(placeholder)
        key = _key(placeholder)
        del self._by_id[self._entries.pop(placeholder).token_id], self.words[key]
        self._trained.discard(placeholder)
        self._varying.discard(placeholder)
        self._indices = {}

    def train_only(self, placeholders: Sequence[str]) -> None:
        """Let the words of these placeholders train and no others; new ones train until told otherwise."""
        self._trained = {self._known(name) for name in placeholders}
        for name in self._entries:
            self.word(name).requires_grad_(name in self._trained)

    @property
    def trained(self) -> list[str]:
        """Placeholders whose words train, in order of adding."""
        return [name for name in self._entries if name in self._trained]

    def trained_words(self) -> list[Word]:
        """The words that train, in order of adding."""
        return [self.word(name) for name in self.trained]

    def prepare_gradients(self, step: int) -> None:
        """What kinds do to their gradients before optimiser step number ``step``, and before clipping."""
        for word in self.trained_words():
            word.prepare_gradient(step)

    def count(self, placeholder: str, step: int | None = None) -> int:
        """Number of vectors in use at an optimiser step; ``None`` is fully grown."""
        steps = self._entries[self._known(placeholder)].progressive
        if step is None or not steps:
            return self.word(placeholder).count
        return 1 + sum(start <= step for start in steps)

    def word(self, placeholder: str) -> Word:
        """What is learned of a placeholder, all of its vectors in use yet or not."""
        return cast(Word, self.words[_key(self._known(placeholder))])

    def parameter(self, placeholder: str) -> nn.Parameter:
        """The parameter of a word that has a single one, such as a plain word's (K, D)."""
        (parameter,) = self.word(placeholder).parameters()
        return parameter

    def choice(self, placeholder: str) -> Choice:
        """The kind of a placeholder's word, and its settings."""
        return self._entries[self._known(placeholder)].choice

    def vectors(self, placeholder: str, step: int | None = None) -> Tensor:
        """The vectors in use, (k, D) or (m, k, D) float32 (``Word.table``), with their gradient."""
        return self.word(placeholder).table()[..., : self.count(placeholder, step), :]

    def init_vectors(self, placeholder: str, step: int | None = None) -> Tensor:
        """Where the vectors in use started, of the same shape, frozen."""
        return self.word(placeholder).start[..., : self.count(placeholder, step), :]

    @torch.no_grad()
    def norms(self, step: int | None = None) -> dict[str, Tensor]:
        """Euclidean norm of every vector in use, (k,) or (m, k) for each placeholder that trains."""
        return {name: self.vectors(name, step).norm(dim=-1) for name in self.trained}

    @torch.no_grad()
    def distance_to_init(self, step: int | None = None) -> dict[str, Tensor]:
        """Euclidean distance of every vector in use to where it started, as :meth:`norms`."""
        return {
            name: (self.vectors(name, step) - self.init_vectors(name, step)).norm(dim=-1)
            for name in self.trained
        }

    # ------------------------------------------------------------------ the prompt

    def varies_with_time(self, ids: Tensor) -> bool:
        """Whether a word that ``ids`` hold is another one at other timesteps."""
        return bool(self._varying) and not self._varying.isdisjoint(self._at_hand(ids))

    def moments(self, ids: Tensor, t: int, kept: int | None = None) -> tuple[int, ...]:
        """What of timestep ``t``, and of ``kept`` units, matters to the words in ``ids``: where these are the
        same, the words are."""
        if not self._varying:
            return ()
        words = [self.word(name) for name in self._at_hand(ids) if name in self._varying]
        cuts = () if kept is None else tuple(min(kept, word.units) for word in words)
        return (*(word.moment(t) for word in words), *cuts)

    def check_cut(self, ids: Tensor, kept: int) -> None:
        """Refuse to let the first ``kept`` units count of a word in ``ids`` that has fewer."""
        for name in self._at_hand(ids):
            units = self.word(name).units
            if units and not 0 <= kept <= units:
                raise UserError(f"truncate is {kept}, but {name} has {units} units: give 0 to {units}")

    def draw_kept(self, n: int, rng: torch.Generator) -> Tensor | None:
        """How many units of the words that train count in each of n samples, (n,) int64; ``None``: all."""
        words = (word for word in self.trained_words() if word.units)
        return next((word.draw_kept(n, rng) for word in words), None)

    def forward(
        self,
        ids: Tensor,
        embeds: Tensor,
        step: int | Tensor | None = None,
        t: Tensor | None = None,
        kept: Tensor | None = None,
    ) -> Placed:
        """Put the v* into looked-up prompts. Pure: the arguments are left as they are.

        Every occurrence of a placeholder becomes its k vectors in use side by side; what follows
        moves right and is cut at the context length.

        Where things go is worked out where ``ids`` are: on the host this keeps a GPU busy with the
        network, and only vectors that occur or train are touched, however many words are known.

        Args:
            ids: (B, L) int64, placeholders as one private id each.
            embeds: (B, L, D) token embeddings, without positions; anything at placeholders.
            step: optimiser step for progressive growth: one for all or a (B,) tensor; ``None`` is
                fully grown.
            t: (B,) int64 timesteps, one a row; only words that vary with time need them.
            kept: (B,) int64, how many units count in each row, of words that have any; ``None``: all.

        Returns:
            ids (B, L) with the private id on all of its k positions; embeds (B, n, L, D) in the dtype of
            ``embeds``, gradients reaching v* through its own positions only; and what the words say to the
            values of cross-attention alone. n is the number of layers where a word that occurs, or trains,
            differs between them, else 1.

        Raises:
            ValueError: there is no ``t``, and a word at hand varies with time.
        """
        names = self._at_hand(ids)
        if not names:
            return Placed(ids, embeds[:, None])
        index = self._index(names, ids.device)
        source, row = places(ids, index, step, self.end_id if self.keep_end else None)
        shown, rows = carry(torch.stack([source, row]), embeds.device)
        moved = rearrange(embeds.take_along_dim(shown[..., None], dim=1), "b l d -> b 1 l d")
        v_star, aside = look_up([self.word(name) for name in names], rows.clamp(min=0), t, kept)
        is_ours = rearrange(rows >= 0, "b l -> b 1 l 1")
        return Placed(
            ids.gather(1, source),
            torch.where(is_ours, v_star.to(embeds.dtype), moved),
            None if aside is None else aside.to(embeds.dtype) * is_ours,
        )

    def _at_hand(self, ids: Tensor) -> tuple[str, ...]:
        """Placeholders that occur in ``ids``, and those that train (their gradient is 0 where they do
        not occur, not missing), by rising token id."""
        occurring = ids[ids >= self.vocab_size].unique().tolist()
        names = {self._by_id[i] for i in occurring if i in self._by_id}
        if torch.is_grad_enabled():
            names |= self._trained
        return tuple(sorted(names, key=lambda name: self._entries[name].token_id))

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Any]:
        """Placeholders in order, with what their tensors do not say; plain Python values."""
        return {
            name: {
                "token_id": entry.token_id,
                "progressive": list(entry.progressive),
                "vectors": self.word(name).count,
                "word": entry.choice.plain(),
            }
            for name, entry in self._entries.items()
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a saved set of placeholders; their tensors are loaded right after this.

        A word of the same kind, settings and size stays the same object, so that an optimiser that holds its
        parameters goes on training them.
        """
        old = {name: (entry.choice, self.count(name)) for name, entry in self._entries.items()}
        for name in old:
            if name not in state:
                self.remove(name)
        self._entries = {}
        for name, saved in state.items():
            choice, count = choose(saved["word"]), int(saved["vectors"])
            self._entries[name] = _Entry(int(saved["token_id"]), tuple(saved["progressive"]), choice)
            if old.get(name) != (choice, count):
                self._trained.add(name)
                self._put(name, choice.make(self.fit, count).to(self.device))
        self._by_id = {entry.token_id: name for name, entry in self._entries.items()}
        self._indices = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EmbeddingManager":
        def keep_float32(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            # convert from the original: a trip through half precision would have cost digits
            return tensor.to(out.device) if out.dtype != tensor.dtype else out

        return super()._apply(keep_float32, recurse)

    # ------------------------------------------------------------------ inside

    def _index(self, names: tuple[str, ...], device: torch.device) -> Index:
        """The index of these placeholders, kept for the next prompts with the same ones."""
        index = self._indices.get(names)
        if index is None or index.ids.device != device:
            entries = [self._entries[name] for name in names]
            index = index_of(
                [entry.token_id for entry in entries],
                [self.word(name).count for name in names],
                [entry.progressive for entry in entries],
                device,
            )
            if len(self._indices) >= MAX_INDICES:
                self._indices.clear()
            self._indices[names] = index
        return index

    def _put(self, placeholder: str, word: Word) -> None:
        self.words[_key(placeholder)] = word
        varies = word.varies_with_time or bool(word.units)
        (self._varying.add if varies else self._varying.discard)(placeholder)

    def _known(self, placeholder: str) -> str:
        placeholder = normal(placeholder)
        if placeholder not in self._entries:
            known = ", ".join(map(repr, self._entries)) or "there are none"
            raise UserError(f"no placeholder {placeholder!r}; known: {known}")
        return placeholder

    def _checked(self, placeholder: str, vectors: Tensor) -> Tensor:
        """(..., K, D) float32 on the manager's device, or an error that a user understands."""
        vectors = torch.atleast_2d(vectors.detach()).to(self.device, torch.float32)
        if 0 in vectors.shape or vectors.shape[-1] != self.width:
            raise UserError(
                f"vectors of {placeholder!r} have shape {tuple(vectors.shape)}, this model wants "
                f"(K, {self.width}); they were made for another model"
            )
        if not vectors.isfinite().all():
            raise UserError(f"vectors of {placeholder!r} hold NaN or infinity; train them again")
        return vectors


def _key(placeholder: str) -> str:
    """A name that PyTorch allows for a parameter, another one for every string."""
    return "s_" + "".join(c if c in _PLAIN else f"_{ord(c):x}_" for c in placeholder)
