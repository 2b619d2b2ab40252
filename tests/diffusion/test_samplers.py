"""Samplers against the exact solution for Gaussian data, and the promises of `sample`."""

import math

import pytest
import torch
from analytic import Gaussian, Mixture

from ldm.diffusion.samplers import SAMPLERS, sample, timesteps
from ldm.diffusion.samplers.base import Move, moves
from ldm.diffusion.samplers.ddim import DDIM
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

SCHEDULE = Schedule()
NAMES = ["ddim", "plms", "dpm++"]
COUNTS = [1, 2, 3, 9, 10, 50, 60, 300, 501, 999, 1000]


def noise(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def draw(net, x_T, **arguments):
    return sample(net.eps, x_T, cond=None, schedule=net.schedule, **arguments)


# which timesteps


def test_ten_steps_are_the_published_ones():
    assert timesteps(1000, 10) == [1, 101, 201, 301, 401, 501, 601, 701, 801, 901]
    assert timesteps(1000, 50) == list(range(1, 1000, 20))


@pytest.mark.parametrize("total", [2, 7, 1000])
def test_any_count_gives_exactly_that_many_distinct_timesteps(total):
    for steps in range(1, total + 1):
        grid = timesteps(total, steps)
        assert len(set(grid)) == steps and grid == sorted(grid)
        assert 0 <= grid[0] and grid[-1] < total
        gaps = {b - a for a, b in zip(grid, grid[1:], strict=False)}
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize("steps", [0, -1, 1001])
def test_a_count_outside_the_chain_is_refused(steps):
    with pytest.raises(UserError, match="1 to 1000"):
        timesteps(1000, steps)


@pytest.mark.parametrize("steps", COUNTS)
@pytest.mark.parametrize("name", NAMES)
def test_the_network_is_called_once_a_step_and_by_plms_once_more(name, steps):
    net = Gaussian(SCHEDULE)
    z_0 = draw(net, noise(1, 2), sampler=name, steps=steps)
    assert z_0.isfinite().all()
    grid = timesteps(1000, steps)[::-1]
    if name == "plms":
        grid.insert(1, grid[1] if steps > 1 else 0)
    assert net.calls == grid


# accuracy


def errors(name, counts, s=0.4):
    """Distance to the exact end of the ODE, for each count of steps."""
    result = []
    for steps in counts:
        net = Gaussian(SCHEDULE, s=s)
        x_T = noise(200, 2)
        exact = net.flow(x_T, timesteps(1000, steps)[-1], 0)
        result.append((draw(net, x_T, sampler=name, steps=steps) - exact).abs().max().item())
    return result


@pytest.mark.parametrize("name", NAMES)
def test_error_to_the_exact_solution_falls_with_steps(name):
    few, some, many = errors(name, [10, 40, 160])
    assert many < some < few
    assert many < 0.025


def test_second_order_samplers_beat_ddim_at_the_same_count():
    for steps in (20, 50, 200):
        ddim, plms, dpmpp = (errors(name, [steps])[0] for name in NAMES)
        assert plms < ddim and dpmpp < ddim


def test_dpmpp_with_few_steps_is_no_worse_than_ddim():
    """Its last jump in log-SNR is taken in first order; second order overshoots there."""
    net, x_T = Mixture(SCHEDULE), noise(300, 2)
    for steps in (5, 8, 10, 12):
        top = timesteps(1000, steps)[-1]
        exact = x_T
        for down in moves(SCHEDULE, 1000)[999 - top :]:
            exact, _ = DDIM().step(lambda z, t: net.eps(z, torch.tensor([t])), exact, down)
        ddim, dpmpp = (
            (draw(net, x_T, sampler=name, steps=steps) - exact).norm(dim=1).quantile(0.9)
            for name in ("ddim", "dpm++")
        )
        assert dpmpp <= ddim


def path(rising, steps):
    """Moves along a grid that is even in some function of the noise level."""
    levels = [rising(i / steps) for i in range(steps + 1)]
    pairs = zip(enumerate(levels), levels[1:], strict=False)
    return levels, [Move(i, i + 1, *a, *b) for (i, a), b in pairs]


def even_in_log_snr(u):
    snr = math.exp(2 * (-2 + 4 * u))
    return math.sqrt(snr / (1 + snr)), math.sqrt(1 / (1 + snr))


def even_in_sigma_over_alpha(u):
    ratio = 5 - 4.8 * u
    return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)


@pytest.mark.parametrize(
    ("name", "rising", "least", "most"),
    [
        ("ddim", even_in_log_snr, 0.9, 1.1),
        ("dpm++", even_in_log_snr, 1.8, 2.2),
        ("ddim", even_in_sigma_over_alpha, 0.9, 1.1),
        ("plms", even_in_sigma_over_alpha, 3, 6),  # 4, and 3 from its start, of opposite signs
    ],
)
def test_halving_the_step_shows_the_order_of_the_method(name, rising, least, most):
    net = Gaussian(SCHEDULE)
    z = noise(50, 2)
    result = []
    for steps in (40, 80, 160):
        levels, way = path(rising, steps)
        rule, end = SAMPLERS[name](), z
        for move in way:
            end, _ = rule.step(lambda x, i, g=levels: net.eps_at(x, g[i][0] ** 2), end, move)
        (m0, s0), (m1, s1) = net.moments(levels[0][0] ** 2), net.moments(levels[-1][0] ** 2)
        result.append((end - (m1 + s1 * (z - m0) / s0)).abs().max().item())
    slopes = [math.log2(a / b) for a, b in zip(result, result[1:], strict=False)]
    assert all(least < slope < most for slope in slopes)


@pytest.mark.parametrize("eta", [0.0, 1.0])
def test_ddim_draws_the_data_distribution_from_an_exact_network(eta):
    schedule = Schedule(timesteps=200, linear_start=0.004, linear_end=0.06)
    net = Gaussian(schedule)
    generator = torch.Generator().manual_seed(1)
    z_0 = draw(net, noise(40_000, 1), steps=200, eta=eta, generator=generator)
    mean, std = net.moments(schedule.abar(0))
    assert z_0.mean().item() == pytest.approx(mean, abs=0.02)
    assert z_0.std().item() == pytest.approx(std, rel=0.03)


# eta


def test_eta_1_has_the_ancestral_variance_and_mean():
    """Between neighbours of the chain, DDIM at eta 1 is DDPM's posterior q(z_{t-1} | z_t, x0)."""
    for t in (1, 10, 500, 999):
        down = moves(SCHEDULE, 1000)[999 - t]
        assert (down.t, down.t_next) == (t, t - 1)
        std = DDIM(eta=1.0).std(down)
        assert std**2 == pytest.approx(SCHEDULE.posterior_variance[t].item(), rel=1e-5)
        z_t, eps = noise(2, 5)
        mean = down.ddim(z_t, eps, std)
        posterior = (
            SCHEDULE.posterior_mean_coef1[t] * down.x0(z_t, eps) + SCHEDULE.posterior_mean_coef2[t] * z_t
        )
        torch.testing.assert_close(mean, posterior, rtol=1e-4, atol=1e-5)


def test_noise_of_a_step_has_the_stated_standard_deviation():
    down = moves(SCHEDULE, 10)[4]
    rule = DDIM(eta=0.5, generator=torch.Generator().manual_seed(0))
    z_t = torch.zeros(1, 100_000)
    z_next, _ = rule.step(lambda z, t: torch.zeros_like(z), z_t, down)
    abar, prev = SCHEDULE.abar(down.t), SCHEDULE.abar(down.t_next)
    published = 0.5 * math.sqrt((1 - prev) / (1 - abar)) * math.sqrt(1 - abar / prev)
    assert z_next.std().item() == pytest.approx(published, rel=0.01)


def test_a_generator_a_row_makes_rows_independent_of_their_batch():
    def generators(seeds):
        return [torch.Generator().manual_seed(s) for s in seeds]

    net, x_T = Gaussian(SCHEDULE), noise(3, 4, dtype=torch.float32)
    arguments = {"eta": 1.0, "steps": 7}
    together = draw(net, x_T, generator=generators([5, 6, 7]), **arguments)
    alone = draw(net, x_T[1:2], generator=generators([6]), **arguments)
    assert torch.equal(together[1:2], alone)
    one = draw(net, x_T, generator=torch.Generator().manual_seed(5), **arguments)
    again = draw(net, x_T, generator=torch.Generator().manual_seed(5), **arguments)
    assert torch.equal(one, again)
    with pytest.raises(UserError, match="2 generators for 3"):
        draw(net, x_T, generator=generators([5, 6]), **arguments)


def test_deterministic_sampling_draws_no_noise():
    generator = torch.Generator().manual_seed(3)
    before = generator.get_state()
    draw(Gaussian(SCHEDULE), noise(2, 3), steps=5, generator=generator)
    assert torch.equal(before, generator.get_state())


# promises of `sample`


@pytest.mark.parametrize("name", NAMES)
def test_callback_sees_every_step_and_changes_nothing(name):
    net, x_T, seen = Gaussian(SCHEDULE), noise(2, 3), []
    z_0 = draw(net, x_T, sampler=name, steps=9, callback=seen.append)
    assert torch.equal(z_0, draw(net, x_T, sampler=name, steps=9))
    assert [state.i for state in seen] == list(range(9))
    assert [state.t for state in seen] == timesteps(1000, 9)[::-1]
    assert torch.equal(seen[0].z_t, x_T)
    assert all(state.x0.shape == x_T.shape for state in seen)
    # the last estimate is what the sampler then makes of it, but for timestep 0's noise
    torch.testing.assert_close(seen[-1].x0, z_0, rtol=0, atol=0.05)


def test_progress_shows_a_bar_and_silence_is_the_default(capsys):
    draw(Gaussian(SCHEDULE), noise(1, 1), steps=4)
    assert capsys.readouterr() == ("", "")
    draw(Gaussian(SCHEDULE), noise(1, 1), steps=4, progress=True)
    err = capsys.readouterr().err
    assert "sampling (ddim)" in err and "/4" in err


@pytest.mark.parametrize("name", NAMES)
def test_guidance_costs_one_call_a_step_and_scale_1_is_plain(name):
    sizes = []

    def eps(z_t, t, c):
        sizes.append(len(z_t))
        return 0.1 * z_t + c.mean((1, 2))[:, None]

    x_T, cond, uncond = noise(2, 3), noise(2, 4, 5, seed=1), noise(1, 4, 5, seed=2)
    common = {"schedule": SCHEDULE, "sampler": name, "steps": 5}
    calls = 6 if name == "plms" else 5
    guided = sample(eps, x_T, cond=cond, uncond=uncond, scale=3.0, **common)
    assert sizes == [4] * calls
    plain = sample(eps, x_T, cond=cond, uncond=uncond, scale=1.0, **common)
    assert sizes == [4] * calls + [2] * calls
    assert torch.equal(plain, sample(eps, x_T, cond=cond, **common))
    # this network is affine in c, so guidance equals a network at the extrapolated condition
    moved = uncond + 3.0 * (cond - uncond)
    torch.testing.assert_close(guided, sample(eps, x_T, cond=moved, **common))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("name", NAMES)
def test_result_has_the_dtype_of_x_T_whatever_the_network_returns(name, dtype):
    seen = set()

    def eps(z_t, t, c):
        seen.add(z_t.dtype)
        return (0.9 * z_t).float()

    x_T = noise(2, 3).to(dtype)
    z_0 = sample(eps, x_T, cond=None, schedule=SCHEDULE, sampler=name, steps=5)
    assert z_0.dtype == dtype and seen == {dtype}


@pytest.mark.parametrize("name", NAMES)
def test_half_precision_stays_finite_and_near_where_the_signal_is_almost_gone(name):
    """All 1000 steps of the cosine schedule begin at alpha = 5e-5: x0 there is beyond float16."""
    schedule = Schedule(kind="cosine")
    net, x_T = Gaussian(schedule), noise(64, 2)
    half = draw(net, x_T.half(), sampler=name, steps=1000)
    full = draw(net, x_T.half().double(), sampler=name, steps=1000)
    assert half.isfinite().all()
    assert (half.double() - full).abs().max() < 0.2


def test_sampling_keeps_no_graph_and_leaves_x_T_alone():
    weight = torch.nn.Parameter(torch.tensor(0.9))
    x_T = noise(2, 3, dtype=torch.float32)
    before = x_T.clone()
    z_0 = sample(lambda z, t, c: weight * z, x_T, cond=None, schedule=SCHEDULE, steps=3)
    assert not z_0.requires_grad and not z_0.is_inference()
    assert torch.equal(x_T, before)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"sampler": "euler"}, "ddim, plms, dpm\\+\\+"),
        ({"sampler": "plms", "eta": 0.5}, "eta 0.5 needs the sampler ddim"),
        ({"eta": 1.5}, "eta must be 0 to 1"),
        ({"steps": 1001}, "steps must be 1 to 1000"),
    ],
)
def test_impossible_requests_are_refused_before_any_call(arguments, word):
    net = Gaussian(SCHEDULE)
    with pytest.raises(UserError, match=word):
        draw(net, noise(1, 1), **arguments)
    assert not net.calls
