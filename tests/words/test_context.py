"""What a word does to the rest of a prompt, against the same sum made position by position."""

import pytest
import torch
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.words.context import context_distance


def features(model: LatentDiffusion, prompt: str, step: int | None = None) -> Tensor:
    """(n, L, D) what the denoiser reads of a prompt at t = 0."""
    return model.condition(prompt, step).at(torch.tensor([0])).tokens[0].detach()


def distance(
    model: LatentDiffusion, prompts: list[str], other: str, step: int | None = None, word: str = "<w>"
) -> Tensor:
    ids, class_ids = model.text.tokenize(prompts), model.text.tokenizer.words(other)
    t = torch.zeros(len(prompts), dtype=torch.int64)
    return context_distance(model.text, model.manager, ids, word, class_ids, step, t)


def by_hand(
    model: LatentDiffusion, prompt: str, other: str, begins: int, k: int, m: int, step: int | None = None
) -> float:
    h, c = features(model, prompt, step), features(model, prompt.replace("<w>", other), step)
    pairs = [(i, i) for i in range(begins)]
    pairs += zip(range(begins + k, 12), range(begins + m, 12), strict=False)
    angles = [float(torch.cosine_similarity(row[i], c[0, j], dim=0)) for i, j in pairs for row in h]
    return sum(1 - cosine for cosine in angles) / len(angles)


@pytest.mark.parametrize(("k", "other"), [(1, "cat"), (3, "cat"), (1, "red cat"), (2, "big red cat")])
def test_it_is_the_mean_over_the_other_tokens_paired_by_their_place(
    tiny_model: LatentDiffusion, k: int, other: str
) -> None:
    tiny_model.add_placeholder("<w>", init="tree", num_vectors=k)
    m = len(other.split())
    one, two = "a <w> on the beach", "<w> in snow"
    expected = [by_hand(tiny_model, one, other, 2, k, m), by_hand(tiny_model, two, other, 1, k, m)]
    assert expected[0] > 1e-3
    assert distance(tiny_model, [one], other).item() == pytest.approx(expected[0], rel=1e-4)
    assert distance(tiny_model, [one, two], other).item() == pytest.approx(sum(expected) / 2, rel=1e-4)


def test_a_word_that_is_its_class_changes_nothing(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<w>", init="red cat", num_vectors=2)
    assert distance(tiny_model, ["a <w> on the beach"], "red cat").item() == pytest.approx(0, abs=1e-6)


def test_a_word_that_grows_and_one_of_layers_count_as_they_are(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<w>", init="tree dog", num_vectors=2, progressive=(5,))
    for step, k in ((4, 1), (5, 2)):
        expected = by_hand(tiny_model, "a <w> on snow", "cat", 2, k, 1, step)
        assert distance(tiny_model, ["a <w> on snow"], "cat", step).item() == pytest.approx(
            expected, rel=1e-4
        )
    tiny_model.remove_placeholder("<w>")
    layers = torch.randn(tiny_model.unet.num_transformers, 1, 32, generator=torch.Generator().manual_seed(0))
    tiny_model.add_placeholder("<w>", layers, word="per_layer")
    expected = by_hand(tiny_model, "a <w> on snow", "cat", 2, 1, 1)
    assert distance(tiny_model, ["a <w> on snow"], "cat").item() == pytest.approx(expected, rel=1e-4)
    tiny_model.add_placeholder("<s>", init="tree", word="per_stage")
    assert distance(tiny_model, ["a <s> on snow"], "cat", word="<s>") > 0


def test_what_a_long_word_pushes_out_is_not_compared(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<w>", init="cat", num_vectors=8)
    found = distance(
        tiny_model, ["a photo of <w> on the red beach"], "cat"
    )  # 1 + 3 positions, 8, nothing more
    h, c = (
        features(tiny_model, text)[0] for text in ("a photo of <w> on", "a photo of cat on the red beach")
    )
    cosines = torch.cosine_similarity(h[:4], c[:4], dim=-1)
    assert found.item() == pytest.approx(float((1 - cosines).mean()), rel=1e-4)


def test_the_gradient_reaches_the_word_alone(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<w>", init="tree", num_vectors=2)
    tiny_model.text.requires_grad_(True)
    distance(tiny_model, ["a <w> on the beach"], "cat").backward()
    assert tiny_model.manager.parameter("<w>").grad.norm(dim=1).all()
    used = tiny_model.text.token_table.grad[tiny_model.text.tokenizer.words("cat")]
    assert not used.any()  # the prompt with the class word is a constant
