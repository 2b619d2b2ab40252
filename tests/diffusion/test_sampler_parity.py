"""Samplers against diffusers' schedulers, step by step, on a network that is not linear."""

import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, PNDMScheduler

from ldm.diffusion.samplers import sample, timesteps
from ldm.diffusion.schedule import Schedule

pytestmark = pytest.mark.parity

SCHEDULE = Schedule()
BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
}


def eps(z_t, t, c=None):
    """Smooth in z and t, and mixes dimensions."""
    angle = 3.0 * t.to(z_t).reshape(-1, *(1,) * (z_t.ndim - 1)) / 1000
    return 0.8 * torch.sin(1.3 * z_t + angle) + 0.2 * z_t.roll(1, -1)


def latents():
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, 4, 5, 5, generator=generator)


def run(scheduler, z, **arguments):
    for t in scheduler.timesteps:
        z = scheduler.step(eps(z, t.expand(len(z))), t, z, **arguments).prev_sample
    return z


def ours(**arguments):
    return sample(eps, latents(), cond=None, schedule=SCHEDULE, **arguments)


@pytest.mark.parametrize("steps", [10, 50, 125])
@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
def test_ddim_is_diffusers_ddim(steps, eta):
    theirs = DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(steps)
    assert theirs.timesteps.tolist() == timesteps(1000, steps)[::-1]
    generator = torch.Generator().manual_seed(7)
    expected = run(theirs, latents(), eta=eta, generator=generator)
    result = ours(steps=steps, eta=eta, generator=torch.Generator().manual_seed(7))
    torch.testing.assert_close(result, expected, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_50_ddim_steps_agree_with_diffusers_to_a_ten_thousandth(prediction):
    theirs = DDIMScheduler(
        **BETAS,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
        timestep_spacing="leading",
        prediction_type=prediction,
    )
    theirs.set_timesteps(50)
    kind = {"epsilon": "eps", "v_prediction": "v"}[prediction]
    result = sample(
        lambda z_t, t, c: SCHEDULE.to_eps(eps(z_t, t), z_t, t, kind), latents(), cond=None, schedule=SCHEDULE
    )
    expected = run(theirs, latents())
    assert expected.std() > 0.1
    assert (result - expected).norm() / expected.norm() < 1e-4


@pytest.mark.parametrize("steps", [2, 10, 50])
def test_plms_is_diffusers_pndm_without_runge_kutta(steps):
    theirs = PNDMScheduler(**BETAS, skip_prk_steps=True, set_alpha_to_one=False, steps_offset=1)
    theirs.set_timesteps(steps)
    result = ours(sampler="plms", steps=steps)
    torch.testing.assert_close(result, run(theirs, latents()), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("steps", [16, 50, 125])
def test_dpmpp_is_diffusers_multistep_on_the_same_timesteps(steps):
    theirs = DPMSolverMultistepScheduler(
        **BETAS,
        algorithm_type="dpmsolver++",
        solver_order=2,
        solver_type="midpoint",
        final_sigmas_type="sigma_min",
    )
    theirs.set_timesteps(timesteps=timesteps(1000, steps)[::-1])
    assert len(theirs.timesteps) == steps
    result = ours(sampler="dpm++", steps=steps)
    torch.testing.assert_close(result, run(theirs, latents()), rtol=1e-3, atol=1e-4)
