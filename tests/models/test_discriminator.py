"""The patch discriminator, its hinge loss and the weight that balances it, in closed form."""

import pytest
import torch

from ldm.models.discriminator import PatchDiscriminator, adaptive_weight, hinge_loss

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("size", "layers", "patches"), [(64, 3, 6), (32, 2, 6), (16, 1, 6)])
def test_one_logit_a_patch(size: int, layers: int, patches: int) -> None:
    judge = PatchDiscriminator(channels=8, layers=layers)
    assert judge(torch.randn(3, 3, size, size)).shape == (3, 1, patches, patches)


def test_a_logit_sees_its_patch_only_but_for_the_norms() -> None:
    judge = PatchDiscriminator(channels=8, layers=1)
    x = torch.randn(1, 3, 64, 64, requires_grad=True)
    judge.main[:3](x)[0, :, 0, 0].sum().backward()  # up to the first norm: a local map
    assert x.grad is not None
    rows = x.grad.abs().sum((0, 1, 3)).nonzero()
    assert 0 < rows.max() < 16


def test_a_picture_is_judged_without_its_neighbours() -> None:
    judge, x = PatchDiscriminator(channels=8, layers=2), torch.randn(3, 3, 32, 32)
    torch.testing.assert_close(judge(x)[1:2], judge(x[1:2]), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("real", "fake", "loss"),
    [
        (2.0, -3.0, 0.0),  # both beyond the margin
        (1.0, -1.0, 0.0),  # at it
        (0.0, 0.0, 1.0),  # undecided
        (-1.0, 1.0, 2.0),  # fooled
        (0.5, -2.0, 0.25),
    ],
)
def test_hinge_loss_closed_forms(real: float, fake: float, loss: float) -> None:
    got = hinge_loss(torch.full((2, 1, 3, 3), real), torch.full((2, 1, 3, 3), fake))
    assert got.item() == pytest.approx(loss)


def test_hinge_loss_averages_patches() -> None:
    real, fake = torch.tensor([2.0, 0.0]), torch.tensor([-5.0, 1.0])
    assert hinge_loss(real, fake).item() == pytest.approx(0.5 * (0.5 + 1.0))


def test_adaptive_weight_is_the_ratio_of_the_gradients_norms() -> None:
    w = torch.tensor([3.0, 4.0], requires_grad=True)
    reconstruction, adversarial = (w * torch.tensor([6.0, 8.0])).sum(), 2 * w[0]
    weight = adaptive_weight(reconstruction, adversarial, w)
    assert weight.item() == pytest.approx(10 / 2, rel=1e-3)
    assert not weight.requires_grad
    (reconstruction + weight * adversarial).backward()  # the graph is still there
    assert w.grad is not None and w.grad.tolist() == pytest.approx([16.0, 8.0], rel=1e-3)


def test_adaptive_weight_stays_finite() -> None:
    w = torch.ones(2, requires_grad=True)
    assert adaptive_weight((1e9 * w).sum(), (0.0 * w).sum(), w).item() == 1e4
    assert adaptive_weight((0.0 * w).sum(), w.sum(), w).item() == 0.0
