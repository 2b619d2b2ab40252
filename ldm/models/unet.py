"""The latent-diffusion UNet (Ronneberger et al. 2015; Dhariwal & Nichol 2021; Rombach et al. 2022).

Read top to bottom: residual block with time embedding, down- and upsampling, and the U of them with
spatial transformers at the chosen resolutions. Module names are those of the public checkpoints.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from ldm.models.attention import AttentionMaps, LayerContext, SpatialTransformer
from ldm.models.layers import group_norm, timestep_embedding, zero_init


class ResBlock(nn.Module):
    """Norm-SiLU-conv twice, with the time embedding added in between.

    ``emb`` is (B, E), the output of ``UNetModel.time_embed``.
    """

    def __init__(
        self,
        channels: int,
        emb_channels: int,
        out_channels: int,
        dropout: float,
        use_checkpoint: bool,
    ) -> None:
        super().__init__()
        self.use_checkpoint = use_checkpoint
        self.in_layers = nn.Sequential(
            group_norm(channels, eps=1e-5),
            nn.SiLU(),
            nn.Conv2d(channels, out_channels, 3, padding=1),
        )
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(emb_channels, out_channels))
        self.out_layers = nn.Sequential(
            group_norm(out_channels, eps=1e-5),
            nn.SiLU(),
            nn.Dropout(dropout),
            zero_init(nn.Conv2d(out_channels, out_channels, 3, padding=1)),
        )
        self.skip_connection = (
            nn.Identity() if channels == out_channels else nn.Conv2d(channels, out_channels, 1)
        )

    def forward(self, x: Tensor, emb: Tensor) -> Tensor:
        if self.use_checkpoint and torch.is_grad_enabled():
            return checkpoint(self._forward, x, emb, use_reentrant=False)
        return self._forward(x, emb)

    def _forward(self, x: Tensor, emb: Tensor) -> Tensor:
        h = self.in_layers(x)
        h = h + self.emb_layers(emb)[:, :, None, None]
        return self.skip_connection(x) + self.out_layers(h)


class Downsample(nn.Module):
    """Halve height and width by a strided convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(channels, channels, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Upsample(nn.Module):
    """Double height and width: nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


class TimestepSequential(nn.Sequential):
    """A sequence whose layers each get what they need: time embedding, the next context or neither."""

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        emb: Tensor,
        contexts: Iterator[LayerContext | None],
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        for layer in self:
            if isinstance(layer, ResBlock):
                x = layer(x, emb)
            elif isinstance(layer, SpatialTransformer):
                x = layer(x, next(contexts), maps)
            else:
                x = layer(x)
        return x


class UNetModel(nn.Module):
    """Denoiser conditioned on time and, by cross-attention, on a context.

    Args:
        in_channels, out_channels: latent channels C.
        model_channels: width of the first level; level i has ``channel_mult[i]`` times as many.
        num_res_blocks: residual blocks a level (the way up has one more).
        attention_resolutions: downsampling factors (1, 2, 4, ...) that get a spatial transformer.
        channel_mult: one multiplier a level.
        num_heads: heads of every transformer; or
        num_head_channels: width of a head, the number of heads following from the channels.
            Exactly one of the two is given (-1 means not given).
        transformer_depth: blocks a transformer.
        context_dim: D of the context (B, L, D).
        use_linear_in_transformer: linear projections, as in Stable Diffusion 2.
        dropout: in the residual blocks, training only.
        use_checkpoint: recompute activations in the backward pass (less memory, more time).

    Attributes:
        num_transformers: spatial transformers, in the order of computation what may each be given a
            context of its own.
        attention_factors: downsampling factors of all of them, that of the middle included.

    Raises:
        ValueError: both or neither of ``num_heads`` and ``num_head_channels`` given, or channels that
            the head width does not divide.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        model_channels: int,
        num_res_blocks: int,
        attention_resolutions: Sequence[int],
        channel_mult: Sequence[int] = (1, 2, 4, 8),
        num_heads: int = -1,
        num_head_channels: int = -1,
        transformer_depth: int = 1,
        context_dim: int | None = None,
        use_linear_in_transformer: bool = False,
        dropout: float = 0.0,
        use_checkpoint: bool = False,
    ) -> None:
        super().__init__()
        if (num_heads == -1) == (num_head_channels == -1):
            raise ValueError("give exactly one of num_heads and num_head_channels")
        self.in_channels, self.out_channels = in_channels, out_channels
        self.model_channels, self.context_dim = model_channels, context_dim
        emb_channels = 4 * model_channels

        def res(channels: int, out: int) -> ResBlock:
            return ResBlock(channels, emb_channels, out, dropout, use_checkpoint)

        factors = set[int]()

        def transformer(channels: int) -> SpatialTransformer:
            factors.add(factor)
            heads = num_heads if num_heads != -1 else channels // num_head_channels
            if heads < 1 or channels % heads:
                raise ValueError(f"{channels} channels do not split into heads of equal width")
            return SpatialTransformer(
                channels,
                heads,
                channels // heads,
                transformer_depth,
                context_dim,
                use_linear_in_transformer,
                use_checkpoint,
            )

        self.time_embed = nn.Sequential(
            nn.Linear(model_channels, emb_channels),
            nn.SiLU(),
            nn.Linear(emb_channels, emb_channels),
        )

        channels, factor = model_channels, 1
        self.input_blocks = nn.ModuleList(
            [TimestepSequential(nn.Conv2d(in_channels, channels, 3, padding=1))]
        )
        skips = [channels]
        for level, mult in enumerate(channel_mult):
            for _ in range(num_res_blocks):
                layers: list[nn.Module] = [res(channels, mult * model_channels)]
                channels = mult * model_channels
                if factor in attention_resolutions:
                    layers.append(transformer(channels))
                self.input_blocks.append(TimestepSequential(*layers))
                skips.append(channels)
            if level != len(channel_mult) - 1:
                self.input_blocks.append(TimestepSequential(Downsample(channels)))
                skips.append(channels)
                factor *= 2

        self.middle_block = TimestepSequential(
            res(channels, channels), transformer(channels), res(channels, channels)
        )

        self.output_blocks = nn.ModuleList()
        for level, mult in reversed(list(enumerate(channel_mult))):
            for i in range(num_res_blocks + 1):
                layers = [res(channels + skips.pop(), mult * model_channels)]
                channels = mult * model_channels
                if factor in attention_resolutions:
                    layers.append(transformer(channels))
                if level and i == num_res_blocks:
                    layers.append(Upsample(channels))
                    factor //= 2
                self.output_blocks.append(TimestepSequential(*layers))

        self.attention_factors = tuple(sorted(factors))
        self.num_transformers = sum(isinstance(m, SpatialTransformer) for m in self.modules())

        self.out = nn.Sequential(
            group_norm(channels, eps=1e-5),
            nn.SiLU(),
            zero_init(nn.Conv2d(channels, out_channels, 3, padding=1)),
        )

    def forward(
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Tensor | Sequence[LayerContext] | None = None,
        maps: AttentionMaps | None = None,
    ) -> Tensor:
        """Predict the target (eps, v or x0) of noisy latents.

        Args:
            x: (B, C, h, w); h and w divisible by 2**(levels - 1).
            timesteps: (B,) in [0, T).
            context: (B, L, D), read by every spatial transformer; or a sequence with one for each of the
                ``num_transformers`` in the order of computation (extended conditioning, Voynov et al.
                2023), or with a single one for all.
            maps: is told what the layers of its resolution read of the context.

        Returns:
            (B, out_channels, h, w).
        """
        emb = self.time_embed(timestep_embedding(timesteps, self.model_channels).to(x.dtype))
        contexts = self._by_transformer(context)
        skips = []
        for block in self.input_blocks:
            x = block(x, emb, contexts, maps)
            skips.append(x)
        x = self.middle_block(x, emb, contexts, maps)
        for block in self.output_blocks:
            x = block(torch.cat([x, skips.pop()], dim=1), emb, contexts, maps)
        return self.out(x)

    def _by_transformer(
        self, context: Tensor | Sequence[LayerContext] | None
    ) -> Iterator[LayerContext | None]:
        each = [context] if context is None or isinstance(context, Tensor) else list(context)
        if len(each) not in (1, self.num_transformers):
            raise ValueError(f"{len(each)} contexts for {self.num_transformers} spatial transformers")
        return iter(each * self.num_transformers if len(each) == 1 else each)
