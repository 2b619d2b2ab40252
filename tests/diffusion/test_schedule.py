"""The noise schedule against published values, closed forms and its own identities."""

import math

import pytest
import torch

from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

KINDS = ["linear", "sqrt_linear", "cosine"]
CHECKPOINT_BUFFERS = {
    "betas",
    "alphas_cumprod",
    "alphas_cumprod_prev",
    "sqrt_alphas_cumprod",
    "sqrt_one_minus_alphas_cumprod",
    "log_one_minus_alphas_cumprod",
    "sqrt_recip_alphas_cumprod",
    "sqrt_recipm1_alphas_cumprod",
    "posterior_variance",
    "posterior_log_variance_clipped",
    "posterior_mean_coef1",
    "posterior_mean_coef2",
}


def test_default_constants_are_those_of_the_public_checkpoints():
    schedule = Schedule()
    assert schedule.num_timesteps == 1000
    assert schedule.betas[0].item() == pytest.approx(0.00085, rel=1e-6)
    assert schedule.betas[-1].item() == pytest.approx(0.012, rel=1e-6)
    assert schedule.alphas_cumprod[0].item() == pytest.approx(0.99915, abs=1e-7)
    assert schedule.alphas_cumprod[-1].item() == pytest.approx(0.00466, abs=5e-6)
    assert schedule.alphas_cumprod_prev[0].item() == 1.0
    assert torch.equal(schedule.alphas_cumprod_prev[1:], schedule.alphas_cumprod[:-1])


def test_plain_ldm_constants():
    schedule = Schedule(linear_start=0.0015, linear_end=0.0195)
    expected = 1.0
    for i in range(1000):
        root = math.sqrt(0.0015) + i / 999 * (math.sqrt(0.0195) - math.sqrt(0.0015))
        expected *= 1 - root**2
    assert schedule.alphas_cumprod[-1].item() == pytest.approx(expected, rel=1e-6)


@pytest.mark.parity
@pytest.mark.parametrize(
    ("kind", "peer"),
    [("linear", "scaled_linear"), ("sqrt_linear", "linear")],
)
def test_betas_agree_with_diffusers(kind, peer):
    ours = Schedule(1000, 0.00085, 0.012, kind)
    theirs = pytest.importorskip("diffusers").DDPMScheduler(1000, 0.00085, 0.012, peer)
    torch.testing.assert_close(ours.betas, theirs.betas, rtol=1e-5, atol=0)
    torch.testing.assert_close(ours.alphas_cumprod, theirs.alphas_cumprod, rtol=1e-5, atol=0)


def test_cosine_follows_equation_17_until_the_clip():
    schedule = Schedule(kind="cosine")

    def f(t):
        return math.cos((t / 1000 + 0.008) / 1.008 * math.pi / 2) ** 2

    for t in (0, 10, 500, 998):
        assert schedule.alphas_cumprod[t].item() == pytest.approx(f(t + 1) / f(0), rel=1e-5)
    assert schedule.betas[-1].item() == pytest.approx(0.999)
    assert schedule.alphas_cumprod[-1].item() > 0


@pytest.mark.parametrize("kind", KINDS)
def test_every_table_is_the_formula_of_its_name(kind):
    s = Schedule(kind=kind)
    betas = s.betas.double()
    abar, prev = s.alphas_cumprod.double(), s.alphas_cumprod_prev.double()
    noise = s._tables["alphas_cumprod"].neg().add(1)  # 1 - abar without float32's cancellation
    noise_prev = torch.cat([torch.zeros(1, dtype=torch.float64), noise[:-1]])
    expected = {
        "sqrt_alphas_cumprod": abar.sqrt(),
        "sqrt_one_minus_alphas_cumprod": noise.sqrt(),
        "log_one_minus_alphas_cumprod": noise.log(),
        "sqrt_recip_alphas_cumprod": abar.rsqrt(),
        "sqrt_recipm1_alphas_cumprod": (noise / abar).sqrt(),
        "posterior_variance": betas * noise_prev / noise,
        "posterior_log_variance_clipped": (betas * noise_prev / noise).clamp(min=1e-20).log(),
        "posterior_mean_coef1": betas * prev.sqrt() / noise,
        "posterior_mean_coef2": noise_prev * (1 - betas).sqrt() / noise,
    }
    for name, value in expected.items():
        torch.testing.assert_close(getattr(s, name).double(), value, rtol=2e-6, atol=1e-6, msg=name)


def test_buffers_have_the_checkpoints_names_and_are_not_saved():
    schedule = Schedule()
    buffers = dict(schedule.named_buffers())
    assert set(buffers) >= CHECKPOINT_BUFFERS
    assert all(b.dtype == torch.float32 and b.shape == (1000,) for b in buffers.values())
    assert not schedule.state_dict()
    assert not list(schedule.parameters())


def test_tables_survive_half_precision_and_the_meta_device():
    reference = Schedule()
    with torch.device("meta"):
        lazy = Schedule()
    assert lazy.betas.device.type == "meta"
    for module in (Schedule().half(), Schedule().to(torch.bfloat16), lazy.to_empty(device="cpu")):
        for name, buffer in reference.named_buffers():
            assert torch.equal(getattr(module, name), buffer), name


def test_q_sample_has_the_closed_form_mean_and_variance():
    schedule = Schedule()
    generator = torch.Generator().manual_seed(0)
    n = 200_000
    for t in (0, 250, 999):
        z = torch.full((n, 1), 3.0)
        steps = torch.full((n,), t)
        z_t = schedule.q_sample(z, steps, torch.randn(n, 1, generator=generator))
        abar = schedule.alphas_cumprod[t].item()
        assert z_t.mean().item() == pytest.approx(3 * math.sqrt(abar), abs=0.01)
        assert z_t.var().item() == pytest.approx(1 - abar, rel=0.02)


def test_q_sample_equals_the_chain_of_single_steps():
    """sqrt(abar) and 1 - abar are what iterating q(z_t | z_{t-1}) gives."""
    schedule = Schedule(timesteps=20, linear_start=0.01, linear_end=0.3)
    mean, variance = 1.0, 0.0
    for t, beta in enumerate(schedule.betas.tolist()):
        mean, variance = mean * math.sqrt(1 - beta), (1 - beta) * variance + beta
        assert schedule.sqrt_alphas_cumprod[t].item() == pytest.approx(mean, rel=1e-5)
        assert (schedule.sqrt_one_minus_alphas_cumprod[t] ** 2).item() == pytest.approx(variance, rel=1e-5)


@pytest.mark.parametrize("parameterization", ["eps", "v", "x0"])
@pytest.mark.parametrize("kind", KINDS)
def test_conversions_give_back_the_noise_and_the_latents(kind, parameterization):
    schedule = Schedule(kind=kind).double()
    generator = torch.Generator().manual_seed(1)
    t = torch.tensor([0, 1, 17, 500, 900, 990])
    z, noise = torch.randn(2, 6, 4, 3, 3, generator=generator, dtype=torch.float64)
    z_t = schedule.q_sample(z, t, noise)
    out = schedule.target(z, t, noise, parameterization)
    # 1e-5: the float32 tables, over the smallest alpha and sigma above
    torch.testing.assert_close(schedule.to_eps(out, z_t, t, parameterization), noise, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(schedule.to_x0(out, z_t, t, parameterization), z, rtol=1e-4, atol=1e-5)


def test_v_is_stable_where_the_signal_is_gone():
    """At cosine's last timestep 1 / alpha is 20,000; v gives x0 without that factor."""
    schedule = Schedule(kind="cosine")
    t = torch.tensor([999])
    z, noise = torch.randn(2, 1, 64, generator=torch.Generator().manual_seed(2))
    z_t = schedule.q_sample(z, t, noise)
    x0 = schedule.to_x0(schedule.velocity(z, t, noise), z_t, t, "v")
    torch.testing.assert_close(x0, z, rtol=0, atol=1e-5)


def test_snr_is_accurate_at_both_ends():
    schedule = Schedule(kind="cosine")
    abar = schedule._tables["alphas_cumprod"]
    snr = schedule.snr(torch.tensor([0, 500, 999]))
    torch.testing.assert_close(snr.double(), (abar / (1 - abar))[[0, 500, 999]], rtol=1e-6, atol=0)


def test_conversions_keep_the_callers_dtype():
    schedule = Schedule()
    z = torch.randn(2, 4, dtype=torch.bfloat16)
    t = torch.tensor([3, 700])
    assert schedule.q_sample(z, t, z).dtype == torch.bfloat16
    assert schedule.velocity(z, t, z).dtype == torch.bfloat16
    # a half-precision network inside a float32 sampler
    assert schedule.to_eps(z, z.float(), t, "v").dtype == torch.float32
    assert schedule.to_x0(z, z.float(), t, "eps").dtype == torch.float32


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ({"kind": "quadratic"}, "quadratic"),
        ({"timesteps": 1}, "timesteps"),
        ({"linear_start": 0.0}, "betas"),
        ({"linear_end": 1.5}, "betas"),
    ],
)
def test_impossible_schedules_are_refused(arguments, word):
    with pytest.raises(UserError, match=word):
        Schedule(**arguments)


def test_unknown_parameterization_is_refused():
    with pytest.raises(UserError, match="eps, v, x0"):
        Schedule().target(torch.zeros(1, 1), torch.tensor([0]), torch.zeros(1, 1), "score")
