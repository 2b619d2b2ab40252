"""Where v* starts, and what is near where it went."""

import pytest
import torch

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.words.start import (
    encoder_outputs,
    from_phrase,
    from_vocabulary,
    initial_vectors,
    nearest_words,
)


@pytest.fixture
def table() -> torch.Tensor:
    return 0.3 * torch.randn(400, 64, generator=torch.Generator().manual_seed(1)) + 0.1


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def test_a_phrase_gives_its_tokens_exactly_and_then_noisy_repeats(table: torch.Tensor) -> None:
    vectors = from_phrase(table, [3, 9], 5, seeded(), noise=0.05)
    assert vectors[:2].equal(table[[3, 9]])
    for row, word in ((2, 3), (3, 9), (4, 3)):
        relative = (vectors[row] - table[word]).norm() / table[word].norm()
        assert 0.03 < relative < 0.07
    assert not vectors[2].equal(vectors[4])


def test_one_word_one_vector_is_the_plain_embedding(table: torch.Tensor) -> None:
    assert from_phrase(table, [7], 1, seeded()).equal(table[7:8])


def test_more_tokens_than_vectors_are_all_used_at_a_words_norm(table: torch.Tensor) -> None:
    both = from_phrase(table, [3, 9], 1, seeded())[0]
    torch.testing.assert_close(both.norm(), table[[3, 9]].norm(dim=1).mean())
    mean = table[[3, 9]].mean(dim=0)
    torch.testing.assert_close(torch.cosine_similarity(both, mean, dim=0), torch.tensor(1.0))
    assert from_phrase(table, [3, 9, 11], 2, seeded())[1].equal(table[11])


def test_no_phrase_gives_different_vectors_at_the_median_norm(table: torch.Tensor) -> None:
    vectors = from_vocabulary(table, 4, seeded())
    median = table.norm(dim=1).median()
    torch.testing.assert_close(vectors.norm(dim=1), median.expand(4))
    assert torch.pdist(vectors).min() > 0.1 * median
    # centred on the vocabulary's mean, not on 0
    many = from_vocabulary(table, 2000, seeded())
    assert torch.cosine_similarity(many.mean(dim=0), table.mean(dim=0), dim=0) > 0.95


def test_the_generator_alone_decides(table: torch.Tensor) -> None:
    for ids in ([3], []):
        torch.manual_seed(0)
        one = initial_vectors(table, ids, 3, seeded(5))
        torch.manual_seed(1)
        assert one.equal(initial_vectors(table, ids, 3, seeded(5)))
        assert not one.equal(initial_vectors(table, ids, 3, seeded(6)))


def test_an_empty_phrase_is_refused(table: torch.Tensor) -> None:
    with pytest.raises(UserError, match="no words"):
        from_phrase(table, [], 1, seeded())


def test_results_are_detached_float32_and_the_table_is_left_alone(table: torch.Tensor) -> None:
    half = table.half().requires_grad_()
    before = half.detach().clone()
    for vectors in (from_phrase(half, [3], 2, seeded()), from_vocabulary(half, 2, seeded())):
        assert vectors.dtype == torch.float32 and not vectors.requires_grad
        vectors += 1
    assert half.equal(before)


def test_nearest_words_rank_by_cosine_and_tell_both_measures(table: torch.Tensor) -> None:
    vectors = torch.stack([2 * table[11], table[5]])
    far, exact = nearest_words(vectors, table, "w{}".format, k=3)
    assert far[0].word == "w11" and exact[0].word == "w5"
    assert far[0].cosine == pytest.approx(1, abs=1e-5)
    assert far[0].distance == pytest.approx(table[11].norm().item(), rel=1e-5)
    assert exact[0].distance == pytest.approx(0, abs=1e-5)
    assert [n.cosine for n in far] == sorted((n.cosine for n in far), reverse=True)
    assert len(nearest_words(table[5], table, str, k=1000)[0]) == 400


def test_crossinit_starts_from_what_the_encoder_gives_at_the_phrases_own_positions(
    tiny_model: LatentDiffusion,
) -> None:
    whole = (
        tiny_model.condition("red cat").at(torch.tensor([0])).tokens[0, 0]
    )  # [CLS] red cat [SEP] [PAD] ...
    tiny_model.add_placeholder("<two>", init="red cat", init_from="encoder", num_vectors=2)
    assert tiny_model.manager.vectors("<two>").equal(whole[1:3])
    tiny_model.add_placeholder("<half>", init="red cat", init_from="encoder", num_vectors=2, init_scale=0.5)
    assert tiny_model.manager.vectors("<half>").equal(0.5 * whole[1:3])
    tiny_model.add_placeholder("<near>", init="red cat", num_vectors=2)
    assert not torch.allclose(tiny_model.manager.vectors("<near>"), whole[1:3])
    room = tiny_model.text.max_length - 2  # a phrase is cut as a prompt is
    assert encoder_outputs(tiny_model.text, "cat " * 30).shape == (room, tiny_model.text.width)
