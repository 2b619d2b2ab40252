"""Drawing from a picture: SDEdit and blended latent diffusion on closed-form networks."""

import pytest
import torch
from analytic import Gaussian

from ldm.diffusion.samplers import sample, timesteps
from ldm.diffusion.samplers.blending import last_moves
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

SCHEDULE = Schedule()
NAMES = ["ddim", "plms", "dpm++"]
MASK = torch.tensor([1.0, 0.0, 0.0, 1.0], dtype=torch.float64)  # paint the outer two of four


def normal(seed, rows=3):
    return torch.randn(rows, 4, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def draw(net, **arguments):
    common = {"x_T": normal(0), "cond": None, "schedule": SCHEDULE, "steps": 10}
    return sample(net.eps, **{**common, **arguments})


@pytest.mark.parametrize("name", NAMES)
def test_outside_the_mask_every_latent_is_the_noised_source(name):
    source, noise, seen = normal(1), normal(0), []
    z = draw(Gaussian(SCHEDULE), source=source, mask=MASK, sampler=name, callback=seen.append)
    keep = MASK == 0
    assert [state.t for state in seen] == timesteps(1000, 10)[::-1]
    for state in seen:
        abar = SCHEDULE.abar(state.t)
        expected = abar**0.5 * source + (1 - abar) ** 0.5 * noise
        torch.testing.assert_close(state.z_t[:, keep], expected[:, keep])
        assert (state.z_t[:, ~keep] - expected[:, ~keep]).abs().min() > 0
    assert torch.equal(z[:, keep], source[:, keep])


@pytest.mark.parametrize("name", NAMES)
def test_inside_the_mask_a_network_that_looks_at_no_neighbours_draws_as_ever(name):
    net, paint = Gaussian(SCHEDULE), MASK == 1
    z = draw(net, source=normal(1), mask=MASK, sampler=name)
    torch.testing.assert_close(z[:, paint], draw(net, sampler=name)[:, paint])


@pytest.mark.parametrize("name", NAMES)
def test_a_full_mask_is_plain_sampling_and_an_empty_one_the_source(name):
    net, source = Gaussian(SCHEDULE), normal(1, rows=1)
    full = draw(net, source=source, mask=torch.ones(4), sampler=name)
    assert torch.equal(full, draw(net, sampler=name))
    empty = draw(net, source=source, mask=torch.zeros(4), sampler=name)
    assert torch.equal(empty, source.expand(3, 4))


def test_ancestral_noise_stays_inside_the_mask():
    z = draw(Gaussian(SCHEDULE), source=normal(1), mask=MASK, eta=1.0)
    assert torch.equal(z[:, MASK == 0], normal(1)[:, MASK == 0])


@pytest.mark.parametrize("name", NAMES)
def test_strength_starts_at_the_noised_source_and_follows_the_exact_flow(name):
    net, source, seen = Gaussian(SCHEDULE), normal(1), []
    z = draw(net, source=source, strength=0.5, steps=100, sampler=name, callback=seen.append)
    grid = timesteps(1000, 100)[:50][::-1]
    assert [state.t for state in seen] == grid
    abar = SCHEDULE.abar(grid[0])
    start = abar**0.5 * source + (1 - abar) ** 0.5 * normal(0)
    torch.testing.assert_close(seen[0].z_t, start)
    torch.testing.assert_close(z, net.flow(start, grid[0], 0), rtol=0, atol=0.04)


def test_a_little_strength_keeps_the_source_and_full_strength_forgets_it():
    net, source = Gaussian(SCHEDULE), normal(1)
    distance = [(draw(net, source=source, strength=s) - source).abs().mean() for s in (0.1, 0.4, 0.8)]
    assert distance[0] < 0.2 and distance[0] < distance[1] < distance[2]
    assert torch.equal(draw(net, source=source, strength=1.0), draw(net))


def test_a_share_of_steps_is_rounded_and_never_none():
    path = list(range(50))
    assert [len(last_moves(path, s)) for s in (0.001, 0.5, 0.6, 0.99, 1)] == [1, 25, 30, 50, 50]
    assert last_moves(path, 0.1) == [45, 46, 47, 48, 49]


@pytest.mark.parametrize("wrong", [
    {"source": normal(1), "strength": 0.0}, {"source": normal(1), "strength": 1.01},
    {"source": normal(1), "strength": float("nan")}, {"strength": 0.5}, {"mask": MASK},
], ids=str)  # fmt: skip
def test_a_strength_outside_its_range_or_without_a_source_is_refused_before_any_call(wrong):
    net = Gaussian(SCHEDULE)
    with pytest.raises(UserError, match="strength"):
        draw(net, **wrong)
    assert not net.calls
