"""The small shared layers, against their formulas."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from ldm.models.layers import GEGLU, group_norm, timestep_embedding, zero_init


def test_timestep_embedding_is_cosines_then_sines_of_geometric_frequencies() -> None:
    t = torch.tensor([0.0, 1.0, 37.5, 999.0])
    embedding = timestep_embedding(t, 8)
    for row, time in zip(embedding, t.tolist(), strict=True):
        angles = [time * 10_000 ** (-i / 4) for i in range(4)]
        expected = [math.cos(a) for a in angles] + [math.sin(a) for a in angles]
        torch.testing.assert_close(row, torch.tensor(expected), rtol=0, atol=1e-4)
    assert embedding[0].tolist() == [1, 1, 1, 1, 0, 0, 0, 0]


def test_timestep_embedding_tells_all_times_apart_and_takes_integers() -> None:
    embedding = timestep_embedding(torch.arange(1000), 32)
    assert embedding.dtype == torch.float32
    torch.testing.assert_close(embedding, timestep_embedding(torch.arange(1000.0), 32))
    distance = torch.cdist(embedding, embedding) + 1e3 * torch.eye(1000)
    assert distance.min() > 0.1


def test_an_odd_width_ends_in_a_zero_column() -> None:
    embedding = timestep_embedding(torch.tensor([5, 900]), 9)
    assert embedding.shape == (2, 9) and not embedding[:, -1].any()
    torch.testing.assert_close(embedding[:, :8], timestep_embedding(torch.tensor([5, 900]), 8))


def test_geglu_multiplies_the_first_half_by_the_gelu_of_the_second() -> None:
    layer, x = GEGLU(5, 7), torch.randn(2, 3, 5)
    value, gate = layer.proj.weight[:7], layer.proj.weight[7:]
    bias, gate_bias = layer.proj.bias[:7], layer.proj.bias[7:]
    expected = (x @ value.T + bias) * F.gelu(x @ gate.T + gate_bias)
    torch.testing.assert_close(layer(x), expected)


def test_zero_init_zeroes_and_returns_its_module() -> None:
    layer = nn.Conv2d(3, 4, 3)
    assert zero_init(layer) is layer
    assert not any(p.any() for p in layer.parameters())


def test_group_norm_has_32_groups_and_the_given_epsilon() -> None:
    norm = group_norm(64, eps=1e-6)
    assert (norm.num_groups, norm.num_channels, norm.eps) == (32, 64, 1e-6)
