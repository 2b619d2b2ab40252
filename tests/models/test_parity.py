"""UNet and autoencoder compute what diffusers' models compute from the same weights.

The weights travel through diffusers' own converters of public checkpoints, so that these tests
prove the layout as well as the arithmetic. All weights are random: a fresh model's residual
branches end in zeros and would hide what is in them.
"""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from ldm.models.attention import CrossAttention, SpatialTransformer
from ldm.models.autoencoder import AutoencoderKL
from ldm.models.layers import timestep_embedding
from ldm.models.unet import UNetModel

diffusers = pytest.importorskip("diffusers")
convert = pytest.importorskip("diffusers.loaders.single_file_utils")

pytestmark = pytest.mark.parity

Randomise = Callable[..., nn.Module]

UNET = {
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": 2,
    "attention_resolutions": [1, 2],
    "channel_mult": [1, 2, 4],
    "context_dim": 24,
}
UNETS = {
    "heads": {"num_heads": 4},  # LDM and Stable Diffusion 1
    "head_channels_linear": {  # Stable Diffusion 2
        "num_head_channels": 16,
        "use_linear_in_transformer": True,
    },
    "head_channels_conv": {"num_head_channels": 8},
    "deep": {"num_heads": 2, "transformer_depth": 2, "attention_resolutions": [2]},
}


def assert_close(ours: Tensor, theirs: Tensor) -> None:
    assert theirs.std() > 0.05  # something to compare
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def their_unet(unet: UNetModel, params: dict[str, Any]) -> nn.Module:
    """diffusers' UNet with our weights, by way of a public checkpoint."""
    config = {
        "model": {
            "params": {
                "unet_config": {"params": {"transformer_depth": 1, **params}},
                "first_stage_config": {"params": {"ddconfig": {"ch_mult": [1, 2]}}},
            }
        }
    }
    checkpoint = {f"model.diffusion_model.{k}": v for k, v in unet.state_dict().items()}
    theirs = convert.create_unet_diffusers_config_from_ldm(config, checkpoint)
    widths = [params["model_channels"] * m for m in params["channel_mult"]]
    if "num_head_channels" in params:  # their `attention_head_dim` is a number of heads
        theirs["attention_head_dim"] = [w // params["num_head_channels"] for w in widths]
    model = diffusers.UNet2DConditionModel(**theirs)
    model.load_state_dict(convert.convert_ldm_unet_checkpoint(checkpoint, theirs), strict=True)
    return model.eval()


@pytest.mark.parametrize("kind", UNETS)
def test_unet_and_its_gradients_agree_with_diffusers(kind: str, randomise: Randomise) -> None:
    params = {**UNET, **UNETS[kind]}
    unet = randomise(UNetModel(**params)).eval()
    reference = their_unet(unet, params)
    x = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(1))
    context = torch.randn(3, 7, 24, generator=torch.Generator().manual_seed(2))
    weight = torch.randn(3, 4, 8, 12, generator=torch.Generator().manual_seed(3))
    t = torch.tensor([0, 437, 999])
    results = []
    for call in (unet, lambda *args: reference(*args).sample):
        z, c = x.clone().requires_grad_(), context.clone().requires_grad_()
        out = call(z, t, c)
        results.append((out.detach(), *torch.autograd.grad((weight * out).sum(), (z, c))))
    for ours, theirs in zip(*results, strict=True):
        assert_close(ours, theirs)


def test_unet_is_conditioned_on_every_input(randomise: Randomise) -> None:
    unet = randomise(UNetModel(**UNET, num_heads=4)).eval()
    x, context, t = torch.randn(2, 4, 4, 4), torch.randn(2, 5, 24), torch.tensor([10, 10])
    with torch.no_grad():
        out = unet(x, t, context)
        assert (unet(x, t + 300, context) - out).abs().max() > 0.01
        assert (unet(x, t, context.flip(1) * 2) - out).abs().max() > 0.01
        # tokens of the context have no order of their own, rows of a batch no neighbours
        torch.testing.assert_close(unet(x, t, context.flip(1)), out, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(unet(x[1:], t[1:], context[1:]), out[1:], rtol=1e-4, atol=1e-5)


def test_activation_checkpointing_changes_neither_output_nor_gradients(
    randomise: Randomise,
) -> None:
    results = []
    recomputed = 0
    for use_checkpoint in (False, True):
        unet = randomise(UNetModel(**UNET, num_heads=4, use_checkpoint=use_checkpoint)).train()
        attention = unet.middle_block[1].transformer_blocks[0].attn2
        calls: list[None] = []
        attention.register_forward_hook(lambda *_, calls=calls: calls.append(None))
        generator = torch.Generator().manual_seed(1)
        x = torch.randn(2, 4, 4, 4, generator=generator)
        context = torch.randn(2, 5, 24, generator=generator).requires_grad_()
        out = unet(x, torch.tensor([3, 900]), context)
        out.square().sum().backward()
        results.append([out.detach(), context.grad, *(p.grad for p in unet.parameters())])
        recomputed = len(calls)
    assert recomputed == 2  # once forward, once more in the backward pass
    for plain, checkpointed in zip(*results, strict=True):
        torch.testing.assert_close(checkpointed, plain, rtol=0, atol=0)


@pytest.mark.parametrize("heads", [{}, {"num_heads": 2, "num_head_channels": 16}, {"num_heads": 5}])
def test_heads_that_do_not_fit_are_refused(heads: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="head"):
        UNetModel(**UNET, **heads)


def their_autoencoder(autoencoder: AutoencoderKL, params: dict[str, Any]) -> nn.Module:
    ddconfig = {"in_channels": 3, "out_ch": 3, **params}
    config = {"model": {"params": {"first_stage_config": {"params": {"ddconfig": ddconfig}}}}}
    checkpoint = {f"first_stage_model.{k}": v for k, v in autoencoder.state_dict().items()}
    theirs = convert.create_vae_diffusers_config_from_ldm(config, checkpoint)
    model = diffusers.AutoencoderKL(**theirs)
    model.load_state_dict(convert.convert_ldm_vae_checkpoint(checkpoint, theirs), strict=True)
    return model.eval()


@pytest.mark.parametrize(("ch_mult", "num_res_blocks", "z"), [([1, 2, 2], 2, 4), ([1, 1, 2, 1], 1, 8)])
def test_autoencoder_agrees_with_diffusers(
    ch_mult: list[int], num_res_blocks: int, z: int, randomise: Randomise
) -> None:
    params = {"ch": 32, "ch_mult": ch_mult, "num_res_blocks": num_res_blocks, "z_channels": z}
    autoencoder = randomise(AutoencoderKL(**params, embed_dim=z)).eval()
    reference = their_autoencoder(autoencoder, params)
    x = torch.randn(3, 3, 32, 48, generator=torch.Generator().manual_seed(1)).clamp(-1, 1)
    with torch.no_grad():
        ours, theirs = autoencoder.encode(x), reference.encode(x).latent_dist
        assert_close(ours.mean, theirs.mean)
        assert_close(ours.logvar, theirs.logvar)
        assert_close(autoencoder.decode(ours.mean), reference.decode(ours.mean).sample)


@pytest.mark.parametrize("dim", [32, 96, 320])
def test_timestep_embedding_is_diffusers_to_the_bit(dim: int) -> None:
    embeddings = pytest.importorskip("diffusers.models.embeddings")
    t = torch.arange(1000)
    theirs = embeddings.get_timestep_embedding(t, dim, flip_sin_to_cos=True, downscale_freq_shift=0)
    torch.testing.assert_close(timestep_embedding(t, dim), theirs, rtol=0, atol=0)


@pytest.mark.parametrize("context_dim", [None, 12])
def test_cross_attention_is_softmax_of_scaled_products(context_dim: int | None, randomise: Randomise) -> None:
    heads, width = 3, 4
    attention = randomise(CrossAttention(20, context_dim, heads, width))
    x = torch.randn(2, 6, 20)
    context = torch.randn(2, 5, context_dim) if context_dim else None
    source = x if context is None else context
    q = (x @ attention.to_q.weight.T).reshape(2, 6, heads, width)
    k = (source @ attention.to_k.weight.T).reshape(2, -1, heads, width)
    v = (source @ attention.to_v.weight.T).reshape(2, -1, heads, width)
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / width**0.5).softmax(dim=-1)
    mixed = torch.einsum("bhij,bjhd->bihd", weights, v).reshape(2, 6, heads * width)
    expected = mixed @ attention.to_out[0].weight.T + attention.to_out[0].bias
    assert_close(attention(x, context), expected)


def test_linear_and_convolutional_projections_are_the_same_map(randomise: Randomise) -> None:
    linear = randomise(SpatialTransformer(32, 2, 16, context_dim=8, use_linear=True))
    conv = SpatialTransformer(32, 2, 16, context_dim=8)
    state = linear.state_dict()
    for name in ("proj_in.weight", "proj_out.weight"):
        state[name] = state[name][:, :, None, None]
    conv.load_state_dict(state)
    x, context = torch.randn(2, 32, 3, 5), torch.randn(2, 4, 8)
    assert_close(conv(x, context), linear(x, context))


def test_a_fresh_transformer_and_unet_start_as_identity_and_zero() -> None:
    x = torch.randn(2, 32, 3, 5)
    assert torch.equal(SpatialTransformer(32, 2, 16, context_dim=8)(x, torch.randn(2, 4, 8)), x)
    unet = UNetModel(**UNET, num_heads=4)
    out = unet(torch.randn(1, 4, 4, 4), torch.tensor([5]), torch.randn(1, 5, 24))
    assert not out.any()
