"""The coarse-word regulariser, and the official one's cancellation under compat."""

import pytest
import torch

from ldm.words.manager import EmbeddingManager
from ldm.words.regularize import coarse_distance, regularization


def test_opposite_drifts_do_not_cancel_but_do_under_compat() -> None:
    coarse = torch.randn(4)
    drift = torch.tensor([3.0, 0, 0, 4])
    vectors = torch.stack([coarse + drift, coarse - drift])
    torch.testing.assert_close(coarse_distance(vectors, coarse), torch.tensor(25.0))
    torch.testing.assert_close(coarse_distance(vectors, coarse, summed_drift=True), torch.tensor(0.0))


def test_compat_is_the_mean_of_the_drifts_gram_matrix_and_agrees_for_one_vector() -> None:
    vectors, coarse = torch.randn(3, 6), torch.randn(3, 6)
    gram = (vectors - coarse) @ (vectors - coarse).T
    torch.testing.assert_close(coarse_distance(vectors, coarse, summed_drift=True), gram.mean())
    torch.testing.assert_close(coarse_distance(vectors, coarse), gram.diagonal().mean())
    one = coarse_distance(vectors[:1], coarse[:1], summed_drift=True)
    torch.testing.assert_close(one, coarse_distance(vectors[:1], coarse[:1]))


def test_the_form_of_crossinit_is_the_length_itself_and_pulls_nothing_at_the_start() -> None:
    coarse = torch.zeros(2, 4)
    vectors = torch.tensor([[3.0, 0, 0, 4], [0.0, 0, 0, 0]], requires_grad=True)
    distance = coarse_distance(vectors, coarse, form="norm")
    assert distance.item() == 2.5  # the mean of 5 and 0
    distance.backward()
    torch.testing.assert_close(vectors.grad, torch.tensor([[0.3, 0, 0, 0.4], [0.0, 0, 0, 0]]))
    both = coarse_distance(vectors, coarse, form="norm", summed_drift=True)
    assert both.item() == pytest.approx(2.5)  # |(3, 0, 0, 4) / 2|


@pytest.fixture
def manager() -> EmbeddingManager:
    manager = EmbeddingManager(2, 10, 2)
    manager.add("S*", 10, torch.tensor([[1.0, 0], [0, 1]]), progressive=(100,))
    manager.add("T*", 11, torch.tensor([5.0, 0]), init=torch.tensor([3.0, 0]))
    with torch.no_grad():
        manager.parameter("S*").add_(torch.tensor([[1.0, 0], [0, 3]]))
    return manager


def test_it_averages_placeholders_and_counts_vectors_in_use(manager: EmbeddingManager) -> None:
    assert regularization(manager).item() == pytest.approx(((1 + 9) / 2 + 4) / 2)
    assert regularization(manager, step=99).item() == pytest.approx((1 + 4) / 2)
    assert regularization(manager, placeholders=["T*"]).item() == pytest.approx(4)
    with pytest.raises(ValueError, match="no placeholder"):
        regularization(manager, placeholders=[])


def test_its_gradient_pulls_back_and_leaves_unused_vectors_alone(manager: EmbeddingManager) -> None:
    regularization(manager, step=0, placeholders=["S*"]).backward()
    assert manager.parameter("S*").grad.tolist() == [[2.0, 0.0], [0.0, 0.0]]
    assert manager.parameter("T*").grad is None
    before = manager.init_vectors("S*").clone()
    torch.optim.SGD(manager.parameters(), lr=0.1).step()
    assert manager.init_vectors("S*").equal(before)
