"""Classifier-free guidance: the formula, and what it costs in network calls."""

import pytest
import torch

from ldm.diffusion.condition import Context, Varying
from ldm.diffusion.guidance import guided
from ldm.errors import UserError


class Counting:
    """A network that is not linear in its condition, and writes down its batch sizes."""

    def __init__(self):
        self.batches = []

    def __call__(self, z_t, t, c):
        self.batches.append(len(z_t))
        assert len(z_t) == len(t) == len(c)
        return torch.tanh(z_t * c.mean((1, 2)).reshape(-1, 1) + t.reshape(-1, 1))


@pytest.fixture
def inputs():
    z_t, cond, uncond = (
        torch.randn(*shape, generator=torch.Generator().manual_seed(i))
        for i, shape in enumerate([(3, 7), (3, 5, 2), (3, 5, 2)])
    )
    return z_t, torch.tensor([0, 1, 2]), cond, uncond


@pytest.mark.parametrize("scale", [0.0, 0.5, 5.0])
def test_guidance_is_the_formula_in_one_call_of_2B(inputs, scale):
    z_t, t, cond, uncond = inputs
    net = Counting()
    result = guided(net, scale)(z_t, t, cond, uncond)
    assert net.batches == [6]
    with_, without = net(z_t, t, cond), net(z_t, t, uncond)
    torch.testing.assert_close(result, without + scale * (with_ - without))


def test_scale_1_and_no_uncond_are_the_plain_network_in_one_call_of_B(inputs):
    z_t, t, cond, uncond = inputs
    net = Counting()
    plain = net(z_t, t, cond)
    assert torch.equal(guided(net, 1.0)(z_t, t, cond, uncond), plain)
    assert torch.equal(guided(net, 5.0)(z_t, t, cond, None), plain)
    assert net.batches == [3, 3, 3]


def test_one_row_of_condition_serves_the_whole_batch(inputs):
    z_t, t, cond, uncond = inputs
    f = guided(Counting(), 3.0)
    wide = f(z_t, t, cond[:1].expand(3, -1, -1), uncond[:1].expand(3, -1, -1))
    assert torch.equal(f(z_t, t, cond[:1], uncond[:1]), wide)


def test_guidance_puts_contexts_of_each_layer_beside_one_for_all(inputs):
    z_t, t, cond, uncond = inputs
    layers = torch.stack([cond, 2 * cond], dim=1)
    seen = []
    guided(lambda z, t, c: seen.append(c) or z, 3.0)(z_t, t, Context(layers), uncond)
    assert seen[0].tokens.equal(torch.cat([torch.stack([uncond, uncond], dim=1), layers]))


def test_guidance_asks_conditions_for_their_context_at_t(inputs):
    z_t, t, cond, uncond = inputs
    varying = Varying(lambda rows, t: Context(cond[rows, None] * t.view(-1, 1, 1, 1)), torch.arange(3))
    seen = []
    guided(lambda z, t, c: seen.append(c) or z, 3.0)(z_t, t, varying, Context(uncond[:1, None]))
    assert seen[0].tokens.equal(torch.cat([uncond[:1].expand(3, -1, -1), cond * t.view(-1, 1, 1)])[:, None])


@pytest.mark.parametrize(
    ("cond", "uncond", "word"),
    [
        (torch.zeros(2, 5, 2), torch.zeros(3, 5, 2), "cond has 2 rows"),
        (torch.zeros(3, 5, 2), torch.zeros(2, 5, 2), "uncond has 2 rows"),
        (torch.zeros(3, 5, 2), torch.zeros(3, 4, 2), "one shape"),
        (None, torch.zeros(3, 5, 2), "cond as a tensor"),
    ],
)
def test_conditions_that_do_not_fit_are_refused(inputs, cond, uncond, word):
    z_t, t, _, _ = inputs
    with pytest.raises(UserError, match=word):
        guided(Counting(), 3.0)(z_t, t, cond, uncond)
