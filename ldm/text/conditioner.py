"""What every text conditioner is: prompts to contexts, with a seam where ``v*`` is put in."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from einops import rearrange, repeat
from torch import Tensor, nn

from ldm.device import carry
from ldm.errors import UserError
from ldm.text.tokenizer import PlaceholderTokenizer


class TextConditioner(nn.Module):
    """Prompts to (B, L, D) contexts in three steps: ``tokenize``, ``embed``, ``encode``.

    The embedding manager replaces rows between the last two, so what is learned passes through the
    whole transformer. A subclass says where its token table is and what ``hidden`` and ``finish`` compute,
    which ``encode`` is made of.

    Attributes:
        tokenizer: text to ids.
        width: D of a token embedding and of the result.
        max_length: L, positions (pads included).
        clip_skip: of CLIP's towers, which of the last blocks gives the context: 1 the last one, 2 the one
            before it, as web UIs count; ``None`` for other encoders. :meth:`use_clip_skip` changes it.
        own_clip_skip: the one that the model was trained with.
    """

    tokenizer: PlaceholderTokenizer
    width: int
    max_length: int
    clip_skip: int | None = None
    own_clip_skip: int | None = None
    blocks: int = 0

    @property
    def token_table(self) -> Tensor:
        """(V, D) token embeddings: where init words come from and nearest words are looked up."""
        raise NotImplementedError

    @property
    def init_position(self) -> Tensor | None:
        """(D,) position embedding that the official code adds to an init word; None: it adds none."""
        return None

    def tokenize(self, prompts: list[str]) -> Tensor:
        """Ids (B, L) int64; placeholders have private ids at or above the vocabulary's size.

        Raises:
            UserError: a word of the vocabulary for which this model's token table has no row.
        """
        ids, rows = self.tokenizer(prompts), len(self.token_table)
        if bool(((ids >= rows) & (ids < self.tokenizer.vocab_size)).any()):
            raise UserError(
                f"this model knows {rows} tokens, its vocabulary has {self.tokenizer.vocab_size}: "
                "a prompt needs one of the others; give the vocabulary that belongs to the model"
            )
        return ids

    def embed(self, ids: Tensor) -> Tensor:
        """Token embeddings (B, L, D); a private id reads row 0, which the manager overwrites."""
        table = self.token_table
        ids = carry(ids, table.device)
        return nn.functional.embedding(torch.where(ids < len(table), ids, 0), table)

    def use_clip_skip(self, clip_skip: int | None) -> None:
        """Take contexts from another block from now on; ``None`` goes back to the model's own.

        Raises:
            UserError: this is no CLIP text encoder, or it has no such block.
        """
        if clip_skip is not None and self.own_clip_skip is None:
            raise UserError(f"clip_skip is {clip_skip}, but this model's text encoder is no CLIP: omit it")
        if clip_skip is not None and not 1 <= clip_skip <= self.blocks:
            raise UserError(f"clip_skip is {clip_skip}; give 1 (the last block) to {self.blocks} (the first)")
        self.clip_skip = self.own_clip_skip if clip_skip is None else clip_skip

    @contextmanager
    def skipping(self, clip_skip: int | None) -> Iterator[None]:
        """Contexts from another block within; ``None``: from the one that is used already."""
        before = self.clip_skip
        if clip_skip is not None:
            self.use_clip_skip(clip_skip)
        try:
            yield
        finally:
            self.clip_skip = before

    @property
    def other_clip_skip(self) -> int | None:
        """``clip_skip`` where it is not the model's own, which nobody needs to be told."""
        return None if self.clip_skip == self.own_clip_skip else self.clip_skip

    def hidden(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """Last hidden states (B, L, D) of token embeddings (B, L, D), without positions, and their ids."""
        raise NotImplementedError

    def finish(self, hidden: Tensor) -> Tensor:
        """Contexts (B, L, D) of last hidden states: the final layer norm."""
        raise NotImplementedError

    def encode(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """Contexts (B, L, D) of token embeddings (B, L, D), without positions, and their ids."""
        return self.finish(self.hidden(embeds, ids))

    def contexts(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """Contexts (B, n, L, D) of what the embedding manager returns: embeds (B, n, L, D), one prompt for
        each of the denoiser's n cross-attention layers or one for all (n = 1), and their ids (B, L)."""
        n = embeds.shape[1]
        flat = self.encode(rearrange(embeds, "b n l d -> (b n) l d"), repeat(ids, "b l -> (b n) l", n=n))
        return rearrange(flat, "(b n) l d -> b n l d", n=n)

    def keys_and_values(
        self, embeds: Tensor, ids: Tensor, aside: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """What cross-attention makes its keys of, and its values where these are of something else.

        Args:
            embeds, ids: as for :meth:`contexts`.
            aside: (B, n, L, D), what words say to the values alone, in units of the last hidden state h at
                their positions: values are made of h + ||h|| aside, and keys of h, both after the final norm.

        Returns:
            (B, n, L, D) twice; without ``aside`` the second one is ``None``.
        """
        if aside is None:
            return self.contexts(embeds, ids), None
        n = embeds.shape[1]
        flat, repeated = rearrange(embeds, "b n l d -> (b n) l d"), repeat(ids, "b l -> (b n) l", n=n)
        h = self.hidden(flat, repeated)
        moved = h + h.norm(dim=-1, keepdim=True) * rearrange(aside, "b n l d -> (b n) l d")
        keys, values = (rearrange(self.finish(x), "(b n) l d -> b n l d", n=n) for x in (h, moved))
        return keys, values
