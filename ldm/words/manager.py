"""EmbeddingManager: the learned pseudo-words v* and their place in a prompt.

Textual Inversion (Gal et al. 2022, section 3) learns only v*, the vectors that stand where the
token embedding of the placeholder S* would. The manager owns the v* of any number of placeholders
and puts them into looked-up prompts, before the text transformer:

    ids     [CLS] a photo of S*      [SEP] [PAD] [PAD]        S* has K = 3 vectors
    ->      [CLS] a photo of S* S* S* [SEP]                   cut at the context length L

Where a placeholder has vectors of its own for each of the denoiser's n cross-attention layers (extended
Textual Inversion, Voynov et al. 2023, arXiv 2303.09522), there are n such prompts: the same ids, other v*.
"""

import string
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ldm.device import carry
from ldm.errors import UserError
from ldm.names import normal

NEVER = torch.iinfo(torch.int64).max
MAX_INDICES = 64  # sets of placeholders whose index is kept
_PLAIN = frozenset(string.ascii_letters + string.digits)


class _Entry(NamedTuple):
    token_id: int
    progressive: tuple[int, ...]


class _Index(NamedTuple):
    """Finds P placeholders in ids without a loop: their sorted ids (P,), the rows where their vectors
    begin when all are one table (P,), and the step from which each vector is used (P, max K)."""

    ids: Tensor
    first_row: Tensor
    starts_at: Tensor


def image_token(placeholder: str, index: int) -> str:
    """Name of the pseudo-word S_i that belongs to one training image: "S" and 2 give "S_2"."""
    return f"{placeholder}_{index}"


class EmbeddingManager(nn.Module):
    """Learned vectors of placeholders; an ``nn.Module`` whose only parameters are the v*.

    Vectors are float32 whatever ``.half()`` or ``.to(torch.bfloat16)`` is asked of the module or of
    one that holds it; device moves work as usual. ``state_dict`` holds all that restores a manager,
    placeholders included, so that loading it into an empty one recreates it.

    Args:
        width: size D of a token embedding.
        vocab_size: number of ordinary token ids; placeholders' ids lie above.
        end_id: id of the token that ends a prompt ([SEP]). The first one in a row is its end, which
            also holds where a prompt is padded with the end token (CLIP).
        keep_end: where vectors push the end token over the context length, keep it as the last
            position. ``False`` lets it fall off, as the official code does (``CompatConfig``).
        layers: n, layers of the denoiser for which a placeholder may have vectors of its own.
    """

    def __init__(
        self, width: int, vocab_size: int, end_id: int, *, keep_end: bool = True, layers: int = 1
    ) -> None:
        super().__init__()
        self.layers = layers
        self.width, self.vocab_size = width, vocab_size
        self.end_id, self.keep_end = end_id, keep_end
        self._entries: dict[str, _Entry] = {}
        self.v_star = nn.ParameterDict()  # _key(placeholder) -> (K, D) or (n, K, D)
        self.init = nn.Module()  # buffers of the same keys and shapes: where v* started
        self._place: Tensor  # says where the manager is, also while it has no vectors
        self.register_buffer("_place", torch.empty(0), persistent=False)
        self._by_id: dict[int, str] = {}
        self._trained: set[str] = set()
        self._indices: dict[tuple[str, ...], _Index] = {}

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
    ) -> None:
        """Give a placeholder its vectors.

        Args:
            placeholder: any string.
            token_id: its private id, at least ``vocab_size``.
            vectors: (K, D) or (D,), where v* starts, or (n, K, D) for each layer; copied, as float32.
            progressive: K - 1 optimiser steps, the ones from which the second, third, ... vector is
                used (2000, 4000 in the paper, figure 10). ``None``: all of them always.
            init: of the same shape or (D,), what ``distance_to_init`` and the regulariser measure from;
                ``vectors`` unless given.

        Raises:
            UserError: the placeholder exists already, or the vectors do not fit this model.
            ValueError: the id is a vocabulary word's or another placeholder's, or the schedule does
                not fit K.
        """
        placeholder = normal(placeholder)
        if placeholder in self._entries:
            raise UserError(f"placeholder {placeholder!r} exists already; choose another name")
        if token_id < self.vocab_size:
            raise ValueError(f"id {token_id} is a vocabulary word's; ids start at vocab_size")
        if token_id in self._by_id:
            raise ValueError(f"id {token_id} is another placeholder's")
        v_star = self._checked(placeholder, vectors)
        start = v_star if init is None else self._checked(placeholder, init).expand_as(v_star)
        steps = tuple(int(step) for step in progressive or ())
        if steps and (len(steps) != v_star.shape[-2] - 1 or list(steps) != sorted(steps)):
            count = v_star.shape[-2]
            raise ValueError(f"{count} vectors grow at {count - 1} rising steps")
        self._entries[placeholder] = _Entry(token_id, steps)
        self._by_id[token_id] = placeholder
        self._trained.add(placeholder)
        key = _key(placeholder)
        self.v_star[key] = nn.Parameter(v_star.clone())
        self.init.register_buffer(key, start.clone())
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
        del self._by_id[self._entries.pop(placeholder).token_id], self.v_star[key]
        delattr(self.init, key)
        self._trained.discard(placeholder)
        self._indices = {}

    def train_only(self, placeholders: Sequence[str]) -> None:
        """Let the vectors of these placeholders train and no others; new ones train until told otherwise."""
        self._trained = {self._known(name) for name in placeholders}
        for name in self._entries:
            self.parameter(name).requires_grad_(name in self._trained)

    @property
    def trained(self) -> list[str]:
        """Placeholders whose vectors train, in order of adding."""
        return [name for name in self._entries if name in self._trained]

    def count(self, placeholder: str, step: int | None = None) -> int:
        """Number of vectors in use at an optimiser step; ``None`` is fully grown."""
        steps = self._entries[self._known(placeholder)].progressive
        if step is None or not steps:
            return self.parameter(placeholder).shape[-2]
        return 1 + sum(start <= step for start in steps)

    def parameter(self, placeholder: str) -> nn.Parameter:
        """The trained parameter of a placeholder, (K, D) or (n, K, D) float32, in use yet or not."""
        return self.v_star[_key(self._known(placeholder))]

    def vectors(self, placeholder: str, step: int | None = None) -> Tensor:
        """The vectors in use, (k, D) or (n, k, D) float32, with their gradient."""
        return self.parameter(placeholder)[..., : self.count(placeholder, step), :]

    def init_vectors(self, placeholder: str, step: int | None = None) -> Tensor:
        """Where the vectors in use started, (k, D) or (n, k, D) float32, frozen."""
        start: Tensor = getattr(self.init, _key(self._known(placeholder)))
        return start[..., : self.count(placeholder, step), :]

    @torch.no_grad()
    def norms(self, step: int | None = None) -> dict[str, Tensor]:
        """Euclidean norm of every vector in use, (k,) or (n, k) for each placeholder that trains."""
        return {name: self.vectors(name, step).norm(dim=-1) for name in self.trained}

    @torch.no_grad()
    def distance_to_init(self, step: int | None = None) -> dict[str, Tensor]:
        """Euclidean distance of every vector in use to where it started, as :meth:`norms`."""
        return {
            name: (self.vectors(name, step) - self.init_vectors(name, step)).norm(dim=-1)
            for name in self.trained
        }

    # ------------------------------------------------------------------ the prompt

    def forward(self, ids: Tensor, embeds: Tensor, step: int | Tensor | None = None) -> tuple[Tensor, Tensor]:
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

        Returns:
            ids (B, L) with the private id on all of its k positions, and embeds (B, n, L, D) in the
            dtype of ``embeds``; gradients reach v* through its own positions only. n is the number of
            layers where a placeholder that occurs, or trains, has vectors for each of them, else 1.
        """
        names = self._at_hand(ids)
        if not names:
            return ids, embeds[:, None]
        index = self._index(names, ids.device)
        now = (
            NEVER - 1
            if step is None
            else step.view(-1, 1, 1).to(ids.device)
            if isinstance(step, Tensor)
            else step
        )
        slot = torch.searchsorted(index.ids, ids.contiguous()).clamp(max=len(names) - 1)
        is_ours = index.ids[slot] == ids
        in_use = (index.starts_at[slot] <= now).sum(dim=2)
        width = torch.where(is_ours, in_use, 1)  # (B, L) positions that an input token takes
        begin = width.cumsum(dim=1) - width  # (B, L) its first one; rises strictly

        # for every output position: the input token it shows, and which of its vectors
        position = torch.arange(ids.shape[1], device=ids.device).expand_as(ids).contiguous()
        source = torch.searchsorted(begin, position, right=True) - 1
        if self.keep_end:
            source = self._with_end(ids, begin, source)
        vector = position - begin.gather(1, source)
        row = torch.where(is_ours.gather(1, source), index.first_row[slot].gather(1, source) + vector, -1)

        shown, rows = carry(torch.stack([source, row]), embeds.device)
        moved = embeds.take_along_dim(shown[..., None], dim=1)
        tables: list[Tensor] = [self.parameter(name) for name in names]
        if any(table.ndim == 3 for table in tables):
            table = torch.cat([table.expand(self.layers, -1, -1) for table in tables], dim=1)  # (n, R, D)
            first = table.shape[1] * torch.arange(self.layers, device=rows.device)
            v_star = F.embedding(rows.clamp(min=0)[:, None] + first[:, None], table.flatten(0, 1))
        else:
            v_star = F.embedding(rows.clamp(min=0), torch.cat(tables))[:, None]
        moved, rows = moved[:, None], rows[:, None]
        return ids.gather(1, source), torch.where(rows[..., None] >= 0, v_star.to(embeds.dtype), moved)

    def _at_hand(self, ids: Tensor) -> tuple[str, ...]:
        """Placeholders that occur in ``ids``, and those that train (their gradient is 0 where they do
        not occur, not missing), by rising token id."""
        occurring = ids[ids >= self.vocab_size].unique().tolist()
        names = {self._by_id[i] for i in occurring if i in self._by_id}
        if torch.is_grad_enabled():
            names |= self._trained
        return tuple(sorted(names, key=lambda name: self._entries[name].token_id))

    def _with_end(self, ids: Tensor, begin: Tensor, source: Tensor) -> Tensor:
        """Show the end token at the last position of the rows where it would fall off."""
        is_end = ids == self.end_id
        end = is_end.int().argmax(dim=1, keepdim=True)  # the first one
        fell_off = is_end.any(dim=1, keepdim=True) & (begin.gather(1, end) >= ids.shape[1])
        last = torch.where(fell_off, end, source[:, -1:])
        return torch.cat([source[:, :-1], last], dim=1)

    # ------------------------------------------------------------------ state

    def get_extra_state(self) -> dict[str, Any]:
        """Placeholders in order, with what their tensors do not say; plain Python values."""
        return {
            name: {"token_id": entry.token_id, "progressive": list(entry.progressive)}
            | {"vectors": self.parameter(name).shape[-2], "per_layer": self.parameter(name).ndim == 3}
            for name, entry in self._entries.items()
        }

    def set_extra_state(self, state: dict[str, Any]) -> None:
        """Take over a saved set of placeholders; their tensors are loaded right after this.

        A parameter whose shape agrees stays the same object, so that an optimiser that holds it
        goes on training it.
        """
        device = self.device
        old = {name: self.parameter(name) for name in self._entries}
        for name in old:
            if name not in state:
                self.remove(name)
        self._entries = {}
        for name, saved in state.items():
            self._entries[name] = _Entry(int(saved["token_id"]), tuple(saved["progressive"]))
            shape: tuple[int, ...] = (int(saved["vectors"]), self.width)
            if saved.get("per_layer"):
                shape = (self.layers, *shape)
            if name not in old or old[name].shape != shape:
                self._trained.add(name)
                self.v_star[_key(name)] = nn.Parameter(torch.zeros(shape, device=device))
                self.init.register_buffer(_key(name), torch.zeros(shape, device=device))
        self._by_id = {entry.token_id: name for name, entry in self._entries.items()}
        self._indices = {}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "EmbeddingManager":
        def keep_float32(tensor: Tensor) -> Tensor:
            out = fn(tensor)
            # convert from the original: a trip through half precision would have cost digits
            return tensor.to(out.device) if out.dtype != tensor.dtype else out

        return super()._apply(keep_float32, recurse)

    # ------------------------------------------------------------------ inside

    def _index(self, names: tuple[str, ...], device: torch.device) -> _Index:
        """The index of these placeholders, kept for the next prompts with the same ones."""
        index = self._indices.get(names)
        if index is None or index.ids.device != device:
            counts = [self.parameter(name).shape[-2] for name in names]
            # NEVER for the vectors that do not exist
            starts_at = torch.full((len(names), max(counts)), NEVER)
            for i, (name, count) in enumerate(zip(names, counts, strict=True)):
                growth = self._entries[name].progressive or (-NEVER,) * (count - 1)
                starts_at[i, :count] = torch.tensor((-NEVER, *growth))
            ids = torch.tensor([self._entries[name].token_id for name in names])
            rows = torch.tensor([0, *counts]).cumsum(dim=0)[:-1]
            index = _Index(ids.to(device), rows.to(device), starts_at.to(device))
            if len(self._indices) >= MAX_INDICES:
                self._indices.clear()
            self._indices[names] = index
        return index

    def _known(self, placeholder: str) -> str:
        placeholder = normal(placeholder)
        if placeholder not in self._entries:
            known = ", ".join(map(repr, self._entries)) or "there are none"
            raise UserError(f"no placeholder {placeholder!r}; known: {known}")
        return placeholder

    def _checked(self, placeholder: str, vectors: Tensor) -> Tensor:
        """(K, D) or (n, K, D) float32 on the manager's device, or an error that a user understands."""
        vectors = torch.atleast_2d(vectors.detach()).to(self.device, torch.float32)
        *layers, count, width = vectors.shape
        if layers not in ([], [self.layers]) or count == 0 or width != self.width:
            raise UserError(
                f"vectors of {placeholder!r} have shape {tuple(vectors.shape)}, this model wants "
                f"(K, {self.width}) or ({self.layers}, K, {self.width}); they were made for another model"
            )
        if not vectors.isfinite().all():
            raise UserError(f"vectors of {placeholder!r} hold NaN or infinity; train them again")
        return vectors


def _key(placeholder: str) -> str:
    """A name that PyTorch allows for a parameter, another one for every string."""
    return "s_" + "".join(c if c in _PLAIN else f"_{ord(c):x}_" for c in placeholder)
