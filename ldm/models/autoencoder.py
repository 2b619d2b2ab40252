"""KL-regularised autoencoder between pictures and latents (Rombach et al. 2022, section 3.1, table 12).

Module names are those of the public checkpoints (``encoder.down.0.block.1.conv1`` ...). One part is not
theirs: an optional linear path (:class:`PatchPCA`), to which the networks then add a residual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn import functional as F

from ldm.models.layers import group_norm, zero_init


class DiagonalGaussian:
    """The encoder's posterior N(mean, diag(exp(logvar))) over latents (B, C, h, w).

    ``logvar`` is clamped to [-30, 20] so that neither the standard deviation nor its inverse
    overflows.
    """

    def __init__(self, mean: Tensor, logvar: Tensor) -> None:
        self.mean = mean
        self.logvar = logvar.clamp(-30.0, 20.0)

    @property
    def std(self) -> Tensor:
        return torch.exp(0.5 * self.logvar)

    @property
    def var(self) -> Tensor:
        return torch.exp(self.logvar)

    def sample(self, generator: torch.Generator | None = None) -> Tensor:
        """Draw mean + std * noise; noise is drawn on the generator's device."""
        device = generator.device if generator is not None else self.mean.device
        noise = torch.randn(self.mean.shape, generator=generator, device=device, dtype=self.mean.dtype)
        return self.mean + self.std * noise.to(self.mean.device)

    def mode(self) -> Tensor:
        return self.mean

    def kl(self) -> Tensor:
        """KL divergence to the standard normal, summed over C, h, w: (B,), in nats."""
        return 0.5 * (self.mean**2 + self.var - 1.0 - self.logvar).flatten(1).sum(1)


class ResnetBlock(nn.Module):
    """Norm-SiLU-conv twice with a residual."""

    def __init__(self, in_channels: int, out_channels: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = group_norm(in_channels, eps=1e-6)
        self.conv1 = nn.Conv2d(in_channels, out_channels, 3, padding=1)
        self.norm2 = group_norm(out_channels, eps=1e-6)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(out_channels, out_channels, 3, padding=1)
        self.nin_shortcut = (
            nn.Identity() if in_channels == out_channels else nn.Conv2d(in_channels, out_channels, 1)
        )

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        h = self.conv2(self.dropout(F.silu(self.norm2(h))))
        return self.nin_shortcut(x) + h


class AttnBlock(nn.Module):
    """Single-head self-attention over the positions of a feature map."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels, eps=1e-6)
        self.q = nn.Conv2d(channels, channels, 1)
        self.k = nn.Conv2d(channels, channels, 1)
        self.v = nn.Conv2d(channels, channels, 1)
        self.proj_out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (rearrange(f(h), "b c h w -> b (h w) c") for f in (self.q, self.k, self.v))
        h = F.scaled_dot_product_attention(q, k, v)
        return x + self.proj_out(rearrange(h, "b (h w) c -> b c h w", h=x.shape[-2]))


class Downsample(nn.Module):
    """Halve by a strided convolution, padded below and on the right only (as the checkpoints)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


class Upsample(nn.Module):
    """Double by nearest neighbour, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2.0, mode="nearest"))


def _mid(channels: int, dropout: float) -> nn.Module:
    mid = nn.Module()
    mid.block_1 = ResnetBlock(channels, channels, dropout)
    mid.attn_1 = AttnBlock(channels)
    mid.block_2 = ResnetBlock(channels, channels, dropout)
    return mid


class Encoder(nn.Module):
    """(B, in_channels, H, W) -> (B, out_channels, H/f, W/f) with f = 2**(len(ch_mult) - 1)."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        in_channels: int,
        out_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        self.conv_in = nn.Conv2d(in_channels, ch, 3, padding=1)
        self.down = nn.ModuleList()
        channels = ch
        for level, mult in enumerate(ch_mult):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(num_res_blocks):
                stage.block.append(ResnetBlock(channels, ch * mult, dropout))
                channels = ch * mult
            if level != len(ch_mult) - 1:
                stage.downsample = Downsample(channels)
            self.down.append(stage)
        self.mid = _mid(channels, dropout)
        self.norm_out = group_norm(channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv_in(x)
        for level, stage in enumerate(self.down):
            for block in stage.block:
                h = block(h)
            if level != len(self.down) - 1:
                h = stage.downsample(h)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        return self.conv_out(F.silu(self.norm_out(h)))


class Decoder(nn.Module):
    """(B, z_channels, h, w) -> (B, out_channels, h*f, w*f): the encoder's mirror, one block more."""

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        out_channels: int,
        dropout: float,
    ) -> None:
        super().__init__()
        channels = ch * ch_mult[-1]
        self.conv_in = nn.Conv2d(z_channels, channels, 3, padding=1)
        self.mid = _mid(channels, dropout)
        stages = []
        for level, mult in reversed(list(enumerate(ch_mult))):
            stage = nn.Module()
            stage.block = nn.ModuleList()
            for _ in range(num_res_blocks + 1):
                stage.block.append(ResnetBlock(channels, ch * mult, dropout))
                channels = ch * mult
            if level:
                stage.upsample = Upsample(channels)
            stages.append(stage)
        self.up = nn.ModuleList(reversed(stages))  # up.0 is the full-resolution level
        self.norm_out = group_norm(channels, eps=1e-6)
        self.conv_out = nn.Conv2d(channels, out_channels, 3, padding=1)

    @property
    def last_layer(self) -> Tensor:
        """Weight that balances the adversarial against the reconstruction gradient."""
        return self.conv_out.weight

    def forward(self, z: Tensor) -> Tensor:
        h = self.conv_in(z)
        h = self.mid.block_2(self.mid.attn_1(self.mid.block_1(h)))
        for level in reversed(range(len(self.up))):
            stage = self.up[level]
            for block in stage.block:
                h = block(h)
            if level:
                h = stage.upsample(h)
        return self.conv_out(F.silu(self.norm_out(h)))


class PatchPCA(nn.Module):
    """Principal components of f x f patches as latents: a linear autoencoder, fitted and not trained.

    The latent of a patch x is ``W^T (x - centre)`` with half-whitened components, ``W = P s^(-1/2)``: P
    (3 f^2, C) are the leading principal components and s their standard deviations, so that the first
    components still lead and the last ones are not blown up to the size of the first. All latents are
    scaled alike to a mean variance of 1. Decoding applies the pseudo-inverse, ``P s^(1/2)``.

    Args:
        channels: C, components kept.
        factor: f, pixels a side of a patch.
        in_channels: channels of the pictures.

    Attributes:
        encoding, decoding: (C, in_channels, f, f) kernels of stride f, zero until :meth:`fit`.
        centre: (in_channels, f, f), the mean patch.
        noise: (C, 1, 1), standard deviation in latents that is 1 in every direction of the pictures.
    """

    encoding: Tensor
    decoding: Tensor
    centre: Tensor
    noise: Tensor

    def __init__(self, channels: int, factor: int, in_channels: int = 3) -> None:
        super().__init__()
        self.factor = factor
        shape = (in_channels, factor, factor)
        if channels > in_channels * factor**2:
            raise ValueError(f"a patch of {shape} has no {channels} components")
        self.register_buffer("encoding", torch.zeros(channels, *shape))
        self.register_buffer("decoding", torch.zeros(channels, *shape))
        self.register_buffer("centre", torch.zeros(shape))
        self.register_buffer("noise", torch.zeros(channels, 1, 1))

    @torch.no_grad()
    def fit(self, pictures: Tensor) -> None:
        """Take the components from pictures (N, in_channels, H, W), H and W divisible by f."""
        channels, f = len(self.encoding), self.factor
        patches = rearrange(pictures.double(), "n c (h p) (w q) -> (n h w) (c p q)", p=f, q=f)
        centre = patches.mean(0)
        covariance = (patches - centre).T @ (patches - centre) / len(patches)
        variance, axes = torch.linalg.eigh(covariance)
        axes = axes.flip(1)[:, :channels].T  # (C, 3 f^2), the leading one first
        # eigenvectors have no sign of their own: the largest coordinate is positive on every machine
        peak = axes.gather(1, axes.abs().argmax(1, keepdim=True))
        axes = axes * peak.sign()
        deviation = variance.flip(0)[:channels].clamp(min=1e-8).sqrt()
        gain = deviation.rsqrt() / deviation.mean().sqrt()  # mean of gain^2 s^2 is 1
        whole = self.encoding.shape
        self.encoding.copy_((gain[:, None] * axes).view(whole))
        self.decoding.copy_((axes / gain[:, None]).view(whole))
        self.centre.copy_(centre.view(whole[1:]))
        self.noise.copy_(gain[:, None, None])

    def encode(self, x: Tensor) -> Tensor:
        """Latents (B, C, H/f, W/f) of pictures (B, in_channels, H, W)."""
        shift = torch.einsum("cipq,ipq->c", self.encoding, self.centre)
        return F.conv2d(x, self.encoding, -shift, stride=self.factor)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures (B, in_channels, H, W) of latents (B, C, H/f, W/f)."""
        centre = self.centre.repeat(1, z.shape[-2], z.shape[-1])
        return F.conv_transpose2d(z, self.decoding, stride=self.factor) + centre


class AutoencoderKL(nn.Module):
    """Pictures (B, 3, H, W) in [-1, 1] to latents (B, embed_dim, H/f, W/f) and back.

    With ``linear`` the way from pictures to latents and back is :class:`PatchPCA`, and the networks
    add to it, starting from zero: ``decode(z) = linear.decode(z) + decoder(z)``. The linear path costs
    nothing and has all edges, so that the decoder need only learn what components cannot hold.

    Args:
        ch: width of the first level.
        ch_mult: one multiplier a level; f = 2**(len(ch_mult) - 1).
        num_res_blocks: blocks a level (the decoder has one more).
        z_channels: channels between encoder and decoder.
        embed_dim: channels of the latents.
        in_channels, out_ch: channels of the pictures.
        dropout: in the residual blocks, training only.
        linear: "none" is the public layout; "both" adds the linear path to encoder and decoder;
            "encoder" has no encoder network at all: latents are linear in the pictures, and the
            posterior has the variance that ``posterior_std`` says.
        posterior_std: standard deviation of a linear encoder's posterior, in units of the pictures
            ([-1, 1]), alike in all directions of the picture space.
    """

    def __init__(
        self,
        ch: int,
        ch_mult: Sequence[int],
        num_res_blocks: int,
        z_channels: int,
        embed_dim: int,
        in_channels: int = 3,
        out_ch: int = 3,
        dropout: float = 0.0,
        linear: Literal["none", "both", "encoder"] = "none",
        posterior_std: float = 0.03,
    ) -> None:
        super().__init__()
        if linear not in ("none", "both", "encoder"):
            raise ValueError(f"linear is {linear!r}: use none, both or encoder")
        self.embed_dim, self.posterior_std = embed_dim, posterior_std
        self.factor = 2 ** (len(ch_mult) - 1)
        self.linear = None if linear == "none" else PatchPCA(embed_dim, self.factor, in_channels)
        self.encoder: Encoder | None = None
        self.quant_conv: nn.Conv2d | None = None
        if linear != "encoder":
            self.encoder = Encoder(ch, ch_mult, num_res_blocks, in_channels, 2 * z_channels, dropout)
            self.quant_conv = nn.Conv2d(2 * z_channels, 2 * embed_dim, 1)
        self.decoder = Decoder(ch, ch_mult, num_res_blocks, z_channels, out_ch, dropout)
        self.post_quant_conv = nn.Conv2d(embed_dim, z_channels, 1)
        if self.linear is not None:
            zero_init(self.decoder.conv_out)
            if self.quant_conv is not None:
                zero_init(self.quant_conv)

    def fit_linear(self, pictures: Tensor) -> None:
        """Fit the linear path, if there is one, to pictures (N, 3, H, W) in [-1, 1].

        A learned posterior starts with the standard deviation ``posterior_std``.
        """
        if self.linear is None:
            return
        self.linear.fit(pictures)
        if self.quant_conv is not None and self.quant_conv.bias is not None:
            start = 2 * (self.posterior_std * self.linear.noise).log().flatten()
            self.quant_conv.bias.data[self.embed_dim :] = start

    @property
    def dtype(self) -> torch.dtype:
        """Precision in which the weights are stored and computed."""
        return self.decoder.conv_out.weight.dtype

    def encode(self, x: Tensor) -> DiagonalGaussian:
        """Posterior over unscaled latents of pictures in [-1, 1]; H and W divisible by f."""
        if self.encoder is None or self.quant_conv is None:
            assert self.linear is not None
            mean = self.linear.encode(x)
            std = (self.posterior_std * self.linear.noise).to(mean.dtype)
            return DiagonalGaussian(mean, (2 * std.log()).expand_as(mean))
        mean, logvar = self.quant_conv(self.encoder(x)).chunk(2, dim=1)
        if self.linear is not None:
            mean = mean + self.linear.encode(x)
        return DiagonalGaussian(mean, logvar)

    def decode(self, z: Tensor) -> Tensor:
        """Pictures of unscaled latents, about [-1, 1], not clamped."""
        residual = self.decoder(self.post_quant_conv(z))
        return residual if self.linear is None else residual + self.linear.decode(z)
