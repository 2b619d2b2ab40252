"""DDIM inversion: what it finds, and that sampling comes back from there."""

import pytest
import torch
from analytic import Gaussian

from ldm.diffusion.samplers import invert, sample, timesteps
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

SCHEDULE = Schedule()


def latents(n=100):
    generator = torch.Generator().manual_seed(0)
    return 0.5 + 0.4 * torch.randn(n, 2, generator=generator, dtype=torch.float64)


def round_trip(net, z_0, steps, **arguments):
    common = {"cond": None, "schedule": SCHEDULE, "steps": steps}
    x_T = invert(net.eps, z_0, **common, **arguments)
    return x_T, sample(net.eps, x_T, **common)


def test_round_trip_error_falls_in_first_order_with_steps():
    z_0 = latents()
    errors = [
        (round_trip(Gaussian(SCHEDULE), z_0, steps)[1] - z_0).abs().max().item() for steps in (50, 200, 800)
    ]
    assert errors[2] < errors[1] / 2 < errors[0] / 4
    assert errors[2] < 0.01


def test_iterations_make_the_round_trip_exact_at_a_practical_count():
    z_0 = latents()
    errors = [
        (round_trip(Gaussian(SCHEDULE), z_0, 50, iterations=n)[1] - z_0).abs().max().item()
        for n in (1, 2, 4, 30)
    ]
    assert errors[3] < errors[2] < errors[1] < errors[0]
    assert errors[3] < 1e-6


def test_inversion_ends_where_the_exact_ode_ends():
    net, z_0 = Gaussian(SCHEDULE), latents()
    x_T, _ = round_trip(net, z_0, 800)
    exact = net.flow(z_0, 0, timesteps(1000, 800)[-1])
    torch.testing.assert_close(x_T, exact, rtol=0, atol=0.02)


def test_noise_found_for_data_is_standard_normal():
    x_T, _ = round_trip(Gaussian(SCHEDULE), latents(20_000), 200)
    assert x_T.mean().item() == pytest.approx(0, abs=0.05)
    assert x_T.std().item() == pytest.approx(1, abs=0.03)


@pytest.mark.parametrize("steps", [1, 9, 60, 1000])
def test_inversion_takes_the_samplers_timesteps_upwards(steps):
    net, seen = Gaussian(SCHEDULE), []
    common = {"cond": None, "schedule": SCHEDULE, "steps": steps, "iterations": 2}
    invert(net.eps, latents(1), callback=seen.append, **common)
    grid = timesteps(1000, steps)
    assert net.calls == [t for t in grid for _ in range(2)]
    assert [state.i for state in seen] == list(range(steps))
    assert [state.t for state in seen] == [0, *grid][:steps]


def test_guided_inversion_is_undone_by_guided_sampling():
    net = Gaussian(SCHEDULE)

    def eps(z_t, t, c):
        return net.eps_at(z_t, SCHEDULE.abar(int(t[0]))) + 0.5 * c.mean((1, 2))[:, None]

    generator = torch.Generator().manual_seed(1)
    cond, uncond = torch.randn(2, 1, 3, 4, generator=generator, dtype=torch.float64)
    common = {"cond": cond, "uncond": uncond, "scale": 4.0, "schedule": SCHEDULE, "steps": 50}
    z_0 = latents()
    x_T = invert(eps, z_0, iterations=30, **common)
    torch.testing.assert_close(sample(eps, x_T, **common), z_0, rtol=0, atol=1e-6)
    plain = sample(eps, x_T, cond=cond, schedule=SCHEDULE, steps=50)
    assert (plain - z_0).abs().max() > 0.01


def test_iterations_must_be_positive():
    with pytest.raises(UserError, match="iterations"):
        invert(Gaussian(SCHEDULE).eps, latents(1), cond=None, schedule=SCHEDULE, iterations=0)


def test_result_can_be_trained_on():
    """Pivotal tuning puts the inverted latents into a graph."""
    z_0 = latents(2).float()
    x_T = invert(Gaussian(SCHEDULE).eps, z_0, cond=None, schedule=SCHEDULE, steps=3)
    assert x_T.dtype == torch.float32 and not x_T.is_inference()
    weight = torch.ones(1, requires_grad=True)
    (weight * x_T).sum().backward()
    assert weight.grad is not None
