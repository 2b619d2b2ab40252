"""Spatial transformer of the latent-diffusion UNet (Rombach et al. 2022, section 3.3, appendix E.2.1).

A feature map (B, C, H, W) is read as H*W tokens; each block applies self-attention, cross-attention
to the prompt's context (B, L, D) and a GEGLU feed-forward. Parameter names are those of the public
checkpoints; attention itself is ``scaled_dot_product_attention``, and spelt out where :class:`AttentionMaps`
asks what a picture reads of its prompt.
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


class AttentionMaps:
    """Where a picture reads each position of its prompt: the cross-attention of one call of a UNet.

    It is handed to the UNet, and the spatial transformers of its resolution report to it.

    Args:
        side: height and width of the feature maps whose layers report; the others are left as they are.
    """

    def __init__(self, side: int) -> None:
        self.side = side
        self._reported: list[Tensor] = []

    def wants(self, features: Tensor) -> bool:
        """Whether the layers of features (B, C, H, W) report."""
        return features.shape[-2:] == (self.side, self.side)

    def report(self, attention: Tensor) -> None:
        """Take the attention of a layer, (B, H W, L), the mean over its heads; it sums to 1 over L."""
        self._reported.append(attention)

    @property
    def mean(self) -> Tensor:
        """(B, L, H, W) float32, the mean over the layers that have reported.

        Raises:
            ValueError: none has.
        """
        if not self._reported:
            raise ValueError(f"no cross-attention of {self.side} x {self.side} has reported")
        maps = torch.stack(self._reported).mean(0)
        return rearrange(maps, "b (h w) l -> b l h w", h=self.side)


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
        q, k, v = self._heads(x, context)
        return self._joined(F.scaled_dot_product_attention(q, k, v))

    def with_map(self, x: Tensor, context: LayerContext) -> tuple[Tensor, Tensor]:
        """The same within rounding, and the attention itself: (B, N, L) float32, the mean over the heads."""
        q, k, v = self._heads(x, context)
        scores = q @ k.transpose(-1, -2) * q.shape[-1] ** -0.5
        attention = scores.softmax(dim=-1, dtype=torch.float32)
        return self._joined(attention.to(v.dtype) @ v), attention.mean(dim=1)

    def _heads(self, x: Tensor, context: LayerContext | None) -> tuple[Tensor, Tensor, Tensor]:
        """Queries (B, heads, N, d), keys and values (B, heads, L, d)."""
        context = x if context is None else context
        keys, values = context if isinstance(context, tuple) else (context, context)
        q, k, v = (
            rearrange(tokens, "b n (heads d) -> b heads n d", heads=self.heads)
            for tokens in (self.to_q(x), self.to_k(keys), self.to_v(values))
        )
        return q, k, v

    def _joined(self, out: Tensor) -> Tensor:
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

    def forward(
        self, x: Tensor, context: LayerContext | None, with_map: bool = False
    ) -> tuple[Tensor, Tensor | None]:
        """Features (B, N, C), and with ``with_map`` what they read of the context, (B, N, L)."""
        x = x + self.attn1(self.norm1(x))
        seen = None
        if with_map and context is not None:
            out, seen = self.attn2.with_map(self.norm2(x), context)
        else:
            out = self.attn2(self.norm2(x), context)
        x = x + out
        return x + self.ff(self.norm3(x)), seen


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

    def forward(
        self, x: Tensor, context: LayerContext | None = None, maps: AttentionMaps | None = None
    ) -> Tensor:
        """Features (B, C, H, W); ``maps`` is told what they read of the context, if it wants to know."""
        height, with_map = x.shape[-2], maps is not None and maps.wants(x)
        h = self.norm(x)
        if not self.use_linear:
            h = self.proj_in(h)
        h = rearrange(h, "b c h w -> b (h w) c")
        if self.use_linear:
            h = self.proj_in(h)
        for block in self.transformer_blocks:
            if self.use_checkpoint and torch.is_grad_enabled():
                h, seen = checkpoint(block, h, context, with_map, use_reentrant=False)
            else:
                h, seen = block(h, context, with_map)
            if maps is not None and seen is not None:
                maps.report(seen)
        if self.use_linear:
            h = self.proj_out(h)
        h = rearrange(h, "b (h w) c -> b c h w", h=height)
        if not self.use_linear:
            h = self.proj_out(h)
        return x + h
