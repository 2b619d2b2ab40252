"""The loss against the equations it claims, term by term."""

import pytest
import torch

from ldm.diffusion.loss import DiffusionLoss
from ldm.diffusion.schedule import Schedule
from ldm.errors import UserError

PARAMETERIZATIONS = ["eps", "v", "x0"]
T = torch.tensor([1, 40, 500, 980])


def batch(schedule, parameterization, error=0.3):
    """Latents, their noised form, and a network output that is wrong by about `error`."""
    g = torch.Generator().manual_seed(0)
    z, noise, wrong = torch.randn(3, len(T), 4, 5, 5, generator=g)
    z_t = schedule.q_sample(z, T, noise)
    out = schedule.target(z, T, noise, parameterization) + error * wrong
    return out, z, z_t, T, noise


def mean(x):
    return x.flatten(1).mean(1)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_perfect_network_costs_nothing(parameterization):
    schedule = Schedule()
    loss = DiffusionLoss(schedule, parameterization, original_elbo_weight=1.0, min_snr_gamma=5.0)
    terms = loss(*batch(schedule, parameterization, error=0.0))
    torch.testing.assert_close(terms.per_sample, torch.zeros(len(T)), rtol=0, atol=1e-6)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_simple_is_the_mean_squared_error_per_sample(parameterization):
    schedule = Schedule()
    out, z, z_t, t, noise = batch(schedule, parameterization)
    terms = DiffusionLoss(schedule, parameterization)(out, z, z_t, t, noise)
    target = {"eps": noise, "x0": z, "v": schedule.velocity(z, t, noise)}[parameterization]
    torch.testing.assert_close(terms.simple, mean((out - target) ** 2))
    torch.testing.assert_close(terms.per_sample, terms.simple)
    torch.testing.assert_close(terms.total, torch.nn.functional.mse_loss(out, target))


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_vlb_is_the_kl_between_the_posteriors_of_z_and_of_the_networks_x0(parameterization):
    """DDPM Eq. 5 to 7 spelt out: two Gaussians of one variance, means from z and from x0."""
    schedule = Schedule()
    out, z, z_t, t, noise = batch(schedule, parameterization)
    x0 = schedule.to_x0(out, z_t, t, parameterization)
    coef = schedule.posterior_mean_coef1[t].reshape(-1, 1, 1, 1)
    variance = schedule.posterior_variance[t]
    kl = mean((coef * (z - x0)) ** 2) / (2 * variance)
    terms = DiffusionLoss(schedule, parameterization)(out, z, z_t, t, noise)
    torch.testing.assert_close(terms.vlb, kl, rtol=1e-4, atol=1e-7)


def test_vlb_in_eps_has_ddpms_weight_and_its_value_at_t_0():
    """DDPM Eq. 12: beta^2 / (2 posterior_variance alpha (1 - abar)); t = 0 takes t = 1's."""
    schedule = Schedule()
    t = torch.tensor([0, 1, 500, 999])
    g = torch.Generator().manual_seed(0)
    z, noise, wrong = torch.randn(3, 4, 100, generator=g)
    z_t = schedule.q_sample(z, t, noise)
    terms = DiffusionLoss(schedule)(noise + wrong, z, z_t, t, noise)
    s = torch.tensor([1, 1, 500, 999])
    beta = schedule.betas[s]
    weight = beta**2 / (
        2 * schedule.posterior_variance[s] * (1 - beta) * schedule.sqrt_one_minus_alphas_cumprod[s] ** 2
    )
    torch.testing.assert_close(terms.vlb, weight * mean(wrong**2), rtol=1e-3, atol=0)


def test_original_elbo_weight_adds_the_vlb():
    schedule = Schedule()
    data = batch(schedule, "eps")
    terms = DiffusionLoss(schedule, l_simple_weight=0.5, original_elbo_weight=2.0)(*data)
    torch.testing.assert_close(terms.per_sample, 0.5 * terms.simple + 2 * terms.vlb)
    torch.testing.assert_close(terms.total, terms.per_sample.mean())


def test_logvar_scales_the_error_and_adds_itself():
    schedule = Schedule()
    terms = DiffusionLoss(schedule, logvar_init=0.7)(*batch(schedule, "eps"))
    expected = terms.simple / torch.exp(torch.tensor(0.7)) + 0.7
    torch.testing.assert_close(terms.per_sample, expected)


def test_learnt_logvar_settles_at_the_log_of_the_error():
    """d/ds (m e^-s + s) = 0 at s = log m; only the batch's timesteps get a gradient."""
    schedule = Schedule()
    loss = DiffusionLoss(schedule, learn_logvar=True)
    assert [name for name, _ in loss.named_parameters()] == ["logvar"]
    assert not list(DiffusionLoss(schedule).parameters())
    data = batch(schedule, "eps")
    simple = loss(*data).simple
    with torch.no_grad():
        loss.logvar[T] = simple.log()
    loss(*data).total.backward()
    torch.testing.assert_close(loss.logvar.grad, torch.zeros(1000), rtol=0, atol=1e-6)
    with torch.no_grad():
        loss.logvar[T] += 1
    loss.zero_grad()
    loss(*data).total.backward()
    assert set(loss.logvar.grad.nonzero().flatten().tolist()) == set(T.tolist())


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_min_snr_weights_the_error_in_x0_by_clipped_snr(parameterization):
    schedule = Schedule()
    out, z, z_t, t, noise = batch(schedule, parameterization)
    terms = DiffusionLoss(schedule, parameterization, min_snr_gamma=5.0)(out, z, z_t, t, noise)
    x0 = schedule.to_x0(out, z_t, t, parameterization)
    expected = schedule.snr(t).clamp(max=5.0) * mean((x0 - z) ** 2)
    # |v error|^2 = (SNR + 1) |x0 error|^2 holds for the pair (v, x0) at a given z_t
    torch.testing.assert_close(terms.per_sample, expected, rtol=1e-4, atol=1e-7)


def test_min_snr_weights_have_the_published_forms():
    schedule = Schedule()
    t = torch.arange(1000)
    snr = schedule.snr(t)
    weight = {p: DiffusionLoss(schedule, p, min_snr_gamma=5.0).min_snr_weight(t) for p in PARAMETERIZATIONS}
    torch.testing.assert_close(weight["x0"], torch.minimum(snr, torch.tensor(5.0)))
    torch.testing.assert_close(weight["eps"], torch.minimum(torch.tensor(1.0), 5 / snr))
    torch.testing.assert_close(weight["v"], torch.minimum(snr, torch.tensor(5.0)) / (snr + 1))


def test_half_precision_output_is_scored_in_float32():
    schedule = Schedule()
    out, *rest = batch(schedule, "eps")
    terms = DiffusionLoss(schedule).half()(out.half(), *rest)
    assert terms.total.dtype == terms.vlb.dtype == torch.float32


def test_a_term_of_weight_zero_cannot_poison_the_total():
    schedule = Schedule()
    out, z, z_t, t, noise = batch(schedule, "eps")
    terms = DiffusionLoss(schedule)(out, z, z_t * float("inf"), t, noise)
    assert not terms.vlb.isfinite().all()
    assert terms.total.isfinite()


@pytest.mark.parametrize(
    "arguments",
    [
        {"parameterization": "score"},
        {"l_simple_weight": -1.0},
        {"original_elbo_weight": -1.0},
        {"min_snr_gamma": 0.0},
    ],
)
def test_impossible_settings_are_refused(arguments):
    with pytest.raises(UserError):
        DiffusionLoss(Schedule(), **arguments)


def test_under_a_mask_the_error_is_the_mean_that_is_weighted_by_it():
    """Two samples of 2 x 2, one channel: sum(m e^2) / sum(m), by hand."""
    z = torch.zeros(2, 1, 2, 2)
    out = torch.tensor([[[[1.0, 2.0], [3.0, 4.0]]], [[[1.0, 1.0], [2.0, 2.0]]]])
    mask = torch.tensor([[[[0.0, 1.0], [0.0, 0.5]]], [[[1.0, 1.0], [1.0, 1.0]]]])
    t = torch.tensor([10, 20])
    terms = DiffusionLoss(Schedule(), "x0")(out, z, z, t, z, mask)
    torch.testing.assert_close(terms.simple, torch.tensor([(4 + 0.5 * 16) / 1.5, (1 + 1 + 4 + 4) / 4]))
    torch.testing.assert_close(terms.per_sample, terms.simple)


@pytest.mark.parametrize("parameterization", PARAMETERIZATIONS)
def test_a_mask_of_ones_changes_no_bit_and_its_scale_nothing(parameterization):
    schedule = Schedule()
    loss = DiffusionLoss(schedule, parameterization, original_elbo_weight=0.5, min_snr_gamma=5.0)
    given = batch(schedule, parameterization)
    ones = torch.ones(len(T), 1, 5, 5)
    assert torch.equal(loss(*given, ones).per_sample, loss(*given).per_sample)
    half = ones.clone()
    half[:, :, :2] = 0
    torch.testing.assert_close(loss(*given, half).per_sample, loss(*given, 0.25 * half).per_sample)
