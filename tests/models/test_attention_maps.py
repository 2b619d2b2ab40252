"""What a picture reads of its prompt: cross-attention spelt out, and reported only where it is asked for."""

import pytest
import torch
from torch.nn import functional as F

from ldm.backbone.forms import recomputed
from ldm.backbone.model import LatentDiffusion
from ldm.models.attention import AttentionMaps, CrossAttention


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_the_map_of_a_tiny_cross_attention_is_the_softmax_by_hand() -> None:
    """One head of width 1: what x = 2 reads of keys ln 1, ln 3 is exp(2 ln 1) : exp(2 ln 3) = 1 : 9."""
    attention = CrossAttention(1, 1, heads=1, dim_head=1)
    for layer in (attention.to_q, attention.to_k, attention.to_v, attention.to_out[0]):
        torch.nn.init.ones_(layer.weight)
    torch.nn.init.zeros_(attention.to_out[0].bias)
    x, context = torch.tensor([[[2.0], [0.0]]]), torch.tensor([[[0.0], [1.0986123]]])
    out, seen = attention.with_map(x, context)
    torch.testing.assert_close(seen, torch.tensor([[[0.1, 0.9], [0.5, 0.5]]]))
    torch.testing.assert_close(out, seen @ context)


@pytest.mark.parametrize("apart", [False, True])
def test_the_map_is_the_mean_over_heads_and_what_comes_out_is_the_same(apart: bool) -> None:
    heads, width = 3, 4
    attention = CrossAttention(20, 8, heads, width)
    x, keys, values = drawn(2, 6, 20), drawn(2, 5, 8, seed=1), drawn(2, 5, 8, seed=2)
    context = (keys, values) if apart else keys
    out, seen = attention.with_map(x, context)
    torch.testing.assert_close(out, attention(x, context))
    q, k = ((one @ layer.weight.T).reshape(2, -1, heads, width)
            for one, layer in ((x, attention.to_q), (keys, attention.to_k)))  # fmt: skip
    weights = (torch.einsum("bihd,bjhd->bhij", q, k) / width**0.5).softmax(dim=-1)
    torch.testing.assert_close(seen, weights.mean(1))


def test_the_layers_of_one_resolution_report_and_no_others(tiny_model: LatentDiffusion) -> None:
    unet, x, t, context = tiny_model.unet, drawn(2, 4, 8, 8), torch.tensor([3, 700]), drawn(2, 12, 32)
    assert unet.attention_factors == (1, 2)
    plain, none, some = unet(x, t, context), AttentionMaps(16), AttentionMaps(4)
    assert torch.equal(unet(x, t, context, none), plain)  # untouched, to the bit
    with pytest.raises(ValueError, match="no cross-attention of 16 x 16 has reported"):
        _ = none.mean
    out = unet(x, t, context, some)
    torch.testing.assert_close(out, plain, rtol=1e-4, atol=1e-5)
    assert len(some._reported) == 4  # of 7: one down, the middle, two up
    assert some.mean.shape == (2, 12, 4, 4)
    torch.testing.assert_close(some.mean.sum(1), torch.ones(2, 4, 4))


def test_recomputed_activations_give_the_same_maps_and_gradients(tiny_model: LatentDiffusion) -> None:
    unet, x, t = tiny_model.unet, drawn(1, 4, 4, 4), torch.tensor([300])
    found = []
    for recompute in (False, True):
        context, maps = drawn(1, 12, 32).requires_grad_(), AttentionMaps(2)
        with recomputed(unet, recompute):
            out = unet(x, t, context, maps)
            loss = out.square().mean() + F.mse_loss(maps.mean[:, 3], torch.ones(1, 2, 2))
            (gradient,) = torch.autograd.grad(loss, context)
        found.append((out, maps.mean, gradient))
    for one, other in zip(*found, strict=True):
        assert torch.equal(one, other)
    context = drawn(1, 12, 32).requires_grad_()
    maps = AttentionMaps(2)
    unet(x, t, context, maps)
    assert torch.autograd.grad(maps.mean[:, 3].sum(), context)[0].abs().max() > 0
