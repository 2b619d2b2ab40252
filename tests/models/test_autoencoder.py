"""The autoencoder's posterior in closed form, its shapes, and where its gradients go."""

from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.distributions import Normal, kl_divergence

from ldm.models.autoencoder import AutoencoderKL, DiagonalGaussian

pytestmark = pytest.mark.slow


def posterior(*shape: int) -> DiagonalGaussian:
    return DiagonalGaussian(torch.randn(shape), torch.randn(shape))


def test_kl_is_torch_distributions_summed_over_all_but_the_batch() -> None:
    p = posterior(3, 4, 2, 5)
    expected = kl_divergence(Normal(p.mean, p.std), Normal(0.0, 1.0)).sum((1, 2, 3))
    torch.testing.assert_close(p.kl(), expected, rtol=1e-5, atol=1e-5)
    standard = DiagonalGaussian(torch.zeros(2, 4, 3, 3), torch.zeros(2, 4, 3, 3))
    assert torch.equal(standard.kl(), torch.zeros(2))


def test_log_variance_is_clamped_to_minus_30_and_20() -> None:
    p = DiagonalGaussian(torch.zeros(3), torch.tensor([-1e4, 0.5, 1e4]))
    assert p.logvar.tolist() == [-30.0, 0.5, 20.0]
    torch.testing.assert_close(p.std, torch.tensor([-15.0, 0.25, 10.0]).exp())
    torch.testing.assert_close(p.var, p.std.square())
    assert p.std.isfinite().all() and (1 / p.std).isfinite().all()


def test_samples_have_the_posteriors_moments() -> None:
    mean, logvar = torch.tensor([1.5, -3.0]), torch.tensor([0.0, 1.2])
    p = DiagonalGaussian(mean.expand(20_000, 2), logvar.expand(20_000, 2))
    drawn = p.sample(torch.Generator().manual_seed(0))
    torch.testing.assert_close(drawn.mean(0), mean, rtol=0, atol=0.05)
    torch.testing.assert_close(drawn.std(0), (0.5 * logvar).exp(), rtol=0.02, atol=0)
    assert p.mode() is p.mean


def test_a_sample_is_a_function_of_its_generator() -> None:
    p = posterior(2, 4, 3, 3)
    draws = [p.sample(torch.Generator().manual_seed(seed)) for seed in (7, 7, 8)]
    assert torch.equal(draws[0], draws[1]) and not torch.equal(draws[0], draws[2])
    state = torch.get_rng_state()
    p.sample(torch.Generator())
    assert torch.equal(torch.get_rng_state(), state)  # the global one is left alone


@pytest.mark.parametrize(("levels", "factor"), [(3, 4), (4, 8)])
@pytest.mark.parametrize("batch", [1, 3])
def test_shapes_at_f4_and_f8_for_any_batch_and_aspect(levels: int, factor: int, batch: int) -> None:
    model = AutoencoderKL(32, [1] * levels, num_res_blocks=1, z_channels=5, embed_dim=3)
    assert model.factor == factor
    with torch.no_grad():
        p = model.encode(torch.zeros(batch, 3, 16, 40))
        assert p.mean.shape == p.logvar.shape == (batch, 3, 16 // factor, 40 // factor)
        assert model.decode(p.mean).shape == (batch, 3, 16, 40)


def test_a_picture_does_not_depend_on_its_neighbours(randomise: Callable[..., nn.Module]) -> None:
    model = randomise(AutoencoderKL(32, [1, 1], num_res_blocks=1, z_channels=4, embed_dim=4))
    x = torch.randn(3, 3, 8, 8)
    with torch.no_grad():
        p = model.encode(x)
        torch.testing.assert_close(model.encode(x[1:2]).mean, p.mean[1:2], rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model.decode(p.mean[1:2]), model.decode(p.mean)[1:2], rtol=1e-4, atol=1e-5)


def test_gradients_reach_every_weight_through_a_sample(
    randomise: Callable[..., nn.Module],
) -> None:
    model = randomise(AutoencoderKL(32, [1, 2], num_res_blocks=1, z_channels=4, embed_dim=4))
    p = model.encode(torch.randn(2, 3, 8, 8))
    (model.decode(p.sample()).square().mean() + p.kl().mean()).backward()
    # a key's bias cancels in the softmax, so its gradient is rounding error
    dead = [n for n, w in model.named_parameters() if w.grad is None or not w.grad.any()]
    assert [n for n in dead if not n.endswith("attn_1.k.bias")] == []


def test_dropout_acts_in_training_only() -> None:
    torch.manual_seed(0)
    model = AutoencoderKL(32, [1], num_res_blocks=1, z_channels=4, embed_dim=4, dropout=0.5)
    x = torch.randn(1, 3, 4, 4)
    model.train()
    assert not torch.equal(model.encode(x).mean, model.encode(x).mean)
    model.eval()
    assert torch.equal(model.encode(x).mean, model.encode(x).mean)


def linear_autoencoder(kind: str, channels: int = 48) -> AutoencoderKL:
    torch.manual_seed(0)
    return AutoencoderKL(32, [1, 1, 1], num_res_blocks=1, z_channels=8, embed_dim=channels, linear=kind)


@pytest.mark.parametrize("kind", ["encoder", "both"])
def test_a_linear_path_starts_as_principal_components(kind: str) -> None:
    pictures = torch.nn.functional.interpolate(torch.randn(64, 3, 4, 4), size=(16, 16), mode="bilinear")
    model = linear_autoencoder(kind, channels=8)
    model.fit_linear(pictures)
    with torch.no_grad():
        posterior = model.encode(pictures)
        rebuilt = model.decode(posterior.mean)
    # the best linear code of eight numbers a patch, by the singular values of the patches
    patches = pictures.unfold(2, 4, 4).unfold(3, 4, 4).permute(0, 2, 3, 1, 4, 5).reshape(-1, 48)
    lost = torch.linalg.svdvals(patches - patches.mean(0))[8:].square().sum() / patches.numel()
    torch.testing.assert_close((rebuilt - pictures).square().mean(), lost, rtol=1e-3, atol=1e-6)
    assert posterior.mean.var().item() == pytest.approx(1, abs=0.05)
    deviation = posterior.mean.std((0, 2, 3))
    spread = torch.linalg.svdvals(patches - patches.mean(0))[:8]
    ratio = deviation / spread.sqrt()  # half-whitened: as the square root of the components' own
    torch.testing.assert_close(ratio, ratio.mean().expand(8), rtol=0.05, atol=0)


@pytest.mark.parametrize("kind", ["encoder", "both"])
def test_a_linear_codes_noise_is_alike_in_every_direction_of_the_pictures(kind: str) -> None:
    model = linear_autoencoder(kind)  # 48 components: all of a patch
    model.fit_linear(torch.randn(200, 3, 8, 8) * torch.linspace(0.2, 1, 8))
    with torch.no_grad():
        posterior = model.encode(torch.zeros(400, 3, 8, 8))
        noisy = model.decode(posterior.sample(torch.Generator().manual_seed(0)))
    assert (noisy - model.decode(posterior.mean)).std().item() == pytest.approx(0.03, rel=0.03)


def test_a_linear_encoder_has_no_network_and_what_is_unknown_is_refused() -> None:
    model = linear_autoencoder("encoder")
    assert not any(name.startswith(("encoder.", "quant_conv.")) for name in model.state_dict())
    assert {name for name, _ in model.named_buffers()} == {
        f"linear.{name}" for name in ("encoding", "decoding", "centre", "noise")
    }
    with pytest.raises(ValueError, match="none, both or encoder"):
        linear_autoencoder("decoder")
    with pytest.raises(ValueError, match="components"):
        linear_autoencoder("encoder", channels=49)
