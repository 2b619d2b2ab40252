"""Spatial transformer of the latent-diffusion UNet (Rombach et al. 2022, section 3.3, appendix E.2.1).

A feature map (B, C, H, W) is read as H*W tokens; each block applies self-attention, cross-attention
to the prompt's context (B, L, D) and a GEGLU feed-forward. Parameter names are those of the public
checkpoints; attention itself is ``scaled_dot_product_attention``.
"""

from __future__ import annotations

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldm.models.layers import GEGLU, group_norm, zero_init

LayerContext = Tensor | tuple[Tensor, Tensor]
"""What a cross-attention reads: (B, L, D), or a pair of them, for its keys and for its values."""


class CrossAttention(nn.Module):
    """Multi-head attention of ``x`` (B, N, C) to ``context`` (B, L, D), or to itself."""

    def __init__(self, query_dim: int, context_dim: int | None, heads: int, dim_head: int) -> None:
        super().__init__()
        inner = heads * dim_head
        context_dim = context_dim or query_dim
        self.heads = heads
        self.to_q = nn.Linear(query_dim, inner, bias=False)
        self.to_k = nn.Linear(context_dim, inner, bias=False)
        self.to_v = nn.Linear(context_dim, inner, bias=False)
        # index 1 of the public layout is a dropout, which no released model switches on
        self.to_out = nn.Sequential(nn.Linear(inner, query_dim), nn.Identity())

    def forward(self, x: Tensor, context: LayerContext | None = None) -> Tensor:
        context = x if context is None else context
        keys, values = context if isinstance(context, tuple) else (context, context)
        q, k, v = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.heads)
            for tokens in (self.to_q(x), self.to_k(keys), self.to_v(values))
        )
        out = F.scaled_dot_product_attention(q, k, v)
        return self.to_out(rearrange(out, "b heads n d -> b n (heads d)"))


class FeedForward(nn.Module):
    """GEGLU feed-forward with four-fold expansion."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.net = nn.Sequential(GEGLU(dim, 4 * dim), nn.Identity(), nn.Linear(4 * dim, dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x)


class BasicTransformerBlock(nn.Module):
    """Pre-norm block: self-attention, cross-attention, feed-forward, each with its residual."""

    def __init__(self, dim: int, heads: int, dim_head: int, context_dim: int | None) -> None:
        super().__init__()
        self.attn1 = CrossAttention(dim, None, heads, dim_head)
        self.ff = FeedForward(dim)
        self.attn2 = CrossAttention(dim, context_dim, heads, dim_head)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)
        self.norm3 = nn.LayerNorm(dim)

    def forward(self, x: Tensor, context: LayerContext | None) -> Tensor:
        x = x + self.attn1(self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff(self.norm3(x))


class SpatialTransformer(nn.Module):
    """Transformer blocks over the positions of a feature map, with projections in and out.

    Args:
        channels: C of the (B, C, H, W) input and output.
        heads, dim_head: attention heads and their width; their product is the inner width.
        depth: number of blocks.
        context_dim: D of the context; ``None`` makes the second attention a self-attention.
        use_linear: linear projections (Stable Diffusion 2) instead of 1x1 convolutions.
        use_checkpoint: recompute activations of each block in the backward pass.
    """

    def __init__(
        self,
        channels: int,
        heads: int,
        dim_head: int,
        depth: int = 1,
        context_dim: int | None = None,
        use_linear: bool = False,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        inner = heads * dim_head
        self.use_linear, self.use_checkpoint = use_linear, use_checkpoint
        self.norm = group_norm(channels, eps=1e-6)
        self.proj_in = nn.Linear(channels, inner) if use_linear else nn.Conv2d(channels, inner, 1)
        self.transformer_blocks = nn.ModuleList(
            BasicTransformerBlock(inner, heads, dim_head, context_dim) for _ in range(depth)
        )
        self.proj_out = zero_init(nn.Linear(inner, channels) if use_linear else nn.Conv2d(inner, channels, 1))

    def forward(self, x: Tensor, context: LayerContext | None = None) -> Tensor:
        height = x.shape[-2]
        h = self.norm(x)
        if not self.use_linear:
            h = self.proj_in(h)
        h = rearrange(h, "b c h w -> b (h w) c")
        if self.use_linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                h = checkpoint(block, h, context, use_reentrant=False)
            else:
                h = block(h, context)
        if self.use_linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height)
        if not self.use_linear:
            h = self.proj_out(h)
        return x + h
