"""LDM's transformer text encoder ("BERT": its tokeniser is BERT's, its weights are trained with the UNet).

A pre-norm transformer without causal or padding mask: pads are attended to, as in the public model
(Rombach et al. 2022, appendix E.2.2). Parameter names are those of the public checkpoint.
"""

from __future__ import annotations

from pathlib import Path

from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.text.conditioner import TextConditioner
from ldm.text.tokenizer import Tokenizer


class SelfAttention(nn.Module):
    """Multi-head self-attention whose inner width need not be the model's (LDM: 512 in 1280)."""

    def __init__(self, dim: int, heads: int, dim_head: int) -> None:
        super().__init__()
        inner = heads * dim_head
        self.heads = heads
        self.to_q = nn.Linear(dim, inner, bias=False)
        self.to_k = nn.Linear(dim, inner, bias=False)
        self.to_v = nn.Linear(dim, inner, bias=False)
        self.to_out = nn.Linear(inner, dim)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            rearrange(f(x), "b l (heads d) -> b heads l d", heads=self.heads)
            for f in (self.to_q, self.to_k, self.to_v)
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "b heads l d -> b l (heads d)"))


class FeedForward(nn.Module):
    """GELU feed-forward with four-fold expansion."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Sequential(nn.Linear(dim, 4 * dim), nn.GELU()),
            nn.Identity(),
            nn.Linear(4 * dim, dim),
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class Encoder(nn.Module):
    """Layers alternate attention and feed-forward, each a pair (norm, function) with a residual."""

    def __init__(self, dim: int, depth: int, heads: int, dim_head: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList()
        for _ in range(depth):
            for function in (SelfAttention(dim, heads, dim_head), FeedForward(dim)):
                self.layers.append(nn.ModuleList([nn.LayerNorm(dim), function]))

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = x + layer[1](layer[0](x))  # type: ignore[index]
        return x


class PositionEmbedding(nn.Module):
    """Learned absolute positions."""

    def __init__(self, max_length: int, dim: int) -> None:
        super().__init__()
        self.emb = nn.Embedding(max_length, dim)


class TransformerWrapper(nn.Module):
    """Token and position tables, the layers and the final norm (plus the public, unused head)."""

    def __init__(
        self,
        vocab_size: int,
        max_length: int,
        dim: int,
        depth: int,
        heads: int,
        dim_head: int,
        logits_head: bool,
    ) -> None:
        super().__init__()
        self.token_emb = nn.Embedding(vocab_size, dim)
        self.pos_emb = PositionEmbedding(max_length, dim)
        self.attn_layers = Encoder(dim, depth, heads, dim_head)
        self.norm = nn.LayerNorm(dim)
        if logits_head:
            self.to_logits = nn.Linear(dim, vocab_size)
        nn.init.normal_(self.token_emb.weight, std=0.02)
        nn.init.normal_(self.pos_emb.emb.weight, std=0.02)


class BertConditioner(TextConditioner):
    """LDM's text conditioner.

    Args:
        vocab_file: WordPiece vocabulary, one token a line.
        n_embed: D, width of tokens and of the result.
        n_layer: pairs of attention and feed-forward.
        vocab_size: rows of the token table; the vocabulary file's length when not given.
        max_seq_len: L, positions (pads included).
        heads, dim_head: of the attention.
        logits_head: hold the public checkpoint's output head, which conditioning never uses.
    """

    def __init__(
        self,
        vocab_file: str | Path,
        n_embed: int,
        n_layer: int,
        vocab_size: int | None = None,
        max_seq_len: int = 77,
        heads: int = 8,
        dim_head: int = 64,
        logits_head: bool = False,
    ) -> None:
        super().__init__()
        self.tokenizer = Tokenizer(vocab_file, max_length=max_seq_len, rows=vocab_size)
        self.width = n_embed
        self.max_length = max_seq_len
        self.transformer = TransformerWrapper(
            vocab_size or self.tokenizer.vocab_size,
            max_seq_len,
            n_embed,
            n_layer,
            heads,
            dim_head,
            logits_head,
        )

    @property
    def token_table(self) -> Tensor:
        return self.transformer.token_emb.weight

    def hidden(self, embeds: Tensor, ids: Tensor) -> Tensor:
        """Hidden states (B, L, D) of token embeddings; ``ids`` is not needed here."""
        t = self.transformer
        return t.attn_layers(embeds + t.pos_emb.emb.weight[: embeds.shape[1]])

    def finish(self, hidden: Tensor) -> Tensor:
        return self.transformer.norm(hidden)
