"""Condition: rows, layers and time of what a denoiser is told."""

import pytest
import torch

from ldm.diffusion.condition import Condition, Context, Varying, cat, condition_of
from ldm.errors import UserError

L, D = 4, 2


def context(rows: int, n: int = 1, seed: int = 0, **more: torch.Tensor) -> Context:
    generator = torch.Generator().manual_seed(seed)
    return Context(torch.randn(rows, n, L, D, generator=generator), **more)


def growing(rows: int, calls: list[int] | None = None) -> Varying:
    """Row i at timestep t is full of i + t / 1000."""

    def encode(which: torch.Tensor, t: torch.Tensor) -> Context:
        if calls is not None:
            calls.append(len(which))
        return Context((which + t / 1000)[:, None, None, None].expand(-1, 1, L, D))

    return Varying(encode, torch.arange(rows))


def test_a_plain_tensor_is_one_context_for_all_layers() -> None:
    tokens = torch.randn(3, L, D)
    found = condition_of(tokens)
    assert isinstance(found, Context) and found.tokens.equal(tokens[:, None])
    assert len(found.layers) == 1 and found.layers[0].equal(tokens)
    assert condition_of(found) is found and found.at(torch.zeros(3)) is found
    with pytest.raises(UserError, match="none: give"):
        condition_of(torch.randn(3, 2, L, D))


def test_each_layer_reads_its_own_and_values_stand_beside_the_keys() -> None:
    one = context(2, n=3)
    assert [layer.equal(one.tokens[:, i]) for i, layer in enumerate(one.layers)] == [True] * 3
    keys, values = Context(one.tokens, values=2 * one.tokens).layers[1]
    assert keys.equal(one.tokens[:, 1]) and values.equal(2 * one.tokens[:, 1])


def test_rows_are_chosen_and_one_serves_all() -> None:
    one = context(3, pooled=torch.randn(3, 5))
    some = one[torch.tensor([2, 0])]
    assert some.tokens.equal(one.tokens[[2, 0]]) and some.pooled.equal(one.pooled[[2, 0]])
    assert len(one[1:]) == 2 and len(one[:1].expand(7)) == 7 and one.expand(3) is one
    with pytest.raises(UserError, match="uncond has 3 rows for 4 latents"):
        one.expand(4, "uncond")


def test_conditions_are_joined_with_as_many_layers_as_any_of_them_has() -> None:
    one, layered = context(2), context(1, n=3, seed=1)
    both = cat([one, layered])
    assert both.tokens.shape == (3, 3, L, D) and both.values is None
    assert both.tokens[:2].equal(one.tokens.expand(-1, 3, -1, -1)) and both.tokens[2:].equal(layered.tokens)
    apart = cat([one, Context(one.tokens, values=-one.tokens)])
    assert apart.values.equal(torch.cat([one.tokens, -one.tokens]))


@pytest.mark.parametrize(
    ("other", "message"),
    [
        (Context(torch.zeros(1, 1, L + 1, D)), "one length and width"),
        (Context(torch.zeros(1, 1, L, D), pooled=torch.zeros(1, 3)), "pooled"),
    ],
)
def test_what_does_not_go_together_is_refused(other: Condition, message: str) -> None:
    with pytest.raises(UserError, match=message):
        cat([context(1), other])


def test_what_varies_with_time_is_asked_for_each_rows_own_time() -> None:
    t = torch.tensor([0, 500, 250])
    rows = growing(5)[torch.tensor([4, 1, 1])]
    assert len(rows) == 3 and rows.at(t).tokens[:, 0, 0, 0].tolist() == [4.0, 1.5, 1.25]
    assert growing(5)[2:3].expand(3).at(t).tokens[:, 0, 0, 0].tolist() == [2.0, 2.5, 2.25]


def test_joined_conditions_find_each_row_in_the_part_that_it_is_of() -> None:
    calls: list[int] = []
    constant = context(2, n=3)
    both = cat([growing(2, calls), constant, growing(3, calls)])
    t = torch.tensor([100, 200, 300, 400])
    found = both[torch.tensor([6, 2, 0, 5])].at(t).tokens
    assert found.shape == (4, 3, L, D) and sorted(calls) == [1, 2]
    assert found[:, 0, 0, 0].sub(torch.tensor([2.1, 0.0, 0.3, 1.4])).abs()[[0, 2, 3]].max() < 1e-6
    assert found[1].equal(constant.tokens[0])
