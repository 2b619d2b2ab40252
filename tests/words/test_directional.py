"""Directional words: the step by hand, the length that stays, and words between two."""

import math

import pytest
import torch

from ldm.errors import UserError
from ldm.io.embeddings import Embedding, load_embedding, save_embeddings
from ldm.words.directional import slerp
from ldm.words.kind import Fit
from ldm.words.kinds import choose
from ldm.words.optimizer import WordOptimizer

TABLE = torch.tensor([[1.0, 0.0], [0.0, 3.0]])  # of mean length 2


def word(start: list[list[float]], **settings: float | str):
    made = choose({"kind": "directional", **settings}).make(Fit(2, 1, 1000), len(start))
    made.fill(torch.tensor(start), {}, TABLE)
    return made


def step(
    made, gradient: list[list[float]], lr: float, optimizer: WordOptimizer | None = None
) -> WordOptimizer:
    """One step by dL/dv, through v = m u."""
    optimizer = optimizer or WordOptimizer([{"params": list(made.parameters())}], [made], lr=lr)
    optimizer.zero_grad()
    (made.table() * torch.tensor(gradient)).sum().backward()
    optimizer.step()
    return optimizer


def test_a_word_starts_in_the_direction_of_its_start_at_the_vocabularys_mean_length() -> None:
    torch.testing.assert_close(word([[3.0, 4.0]]).table(), torch.tensor([[1.2, 1.6]]))
    torch.testing.assert_close(word([[3.0, 4.0]], norm="start").table(), torch.tensor([[3.0, 4.0]]))
    with pytest.raises(UserError, match="length 0"):
        word([[0.0, 0.0]])


def test_a_step_without_memory_turns_by_the_rates_angle_whatever_the_gradients_size() -> None:
    for size in (1e-3, 1.0, 50.0):
        made = word([[1.0, 0.0]], kappa=0.0)
        step(made, [[7.0, size]], lr=0.04)  # the part along u has no effect
        expected = torch.tensor([[math.cos(math.atan(0.04)), -math.sin(math.atan(0.04))]])
        torch.testing.assert_close(made.table(), 2 * expected)


def test_two_steps_with_memory_and_prior_by_hand() -> None:
    made = word([[1.0, 0.0]], kappa=0.5, decay=0.9)
    optimizer = step(made, [[0.0, 2.0]], lr=0.1)
    u, square = torch.tensor([1.0, 0.0]), 0.0
    for turn, gradient in enumerate([[0.0, 2.0], [1.0, -4.0]], start=1):
        g = torch.tensor(gradient) - 0.5 * torch.tensor([1.0, 0.0])
        tangent = g - (g @ u) * u
        square = 0.9 * square + 0.1 * float(tangent @ tangent)
        u = u - 0.1 * tangent / (math.sqrt(square / (1 - 0.9**turn)) + 1e-8)
        u = u / u.norm()
        if turn == 2:
            step(made, [gradient], lr=0.1, optimizer=optimizer)
        torch.testing.assert_close(made.table(), 2 * u[None])
    assert made.table().norm().item() == pytest.approx(2.0)


def test_vectors_that_are_not_in_use_stay() -> None:
    made = word([[1.0, 0.0], [1.0, 1.0]], kappa=0.5)
    before = made.table().detach().clone()
    step(made, [[1.0, 2.0], [0.0, 0.0]], lr=0.1)
    assert made.table()[1].equal(before[1]) and not made.table()[0].equal(before[0])


def test_the_optimisers_state_goes_on_from_a_checkpoint() -> None:
    one, other = word([[1.0, 0.0]], decay=0.5), word([[1.0, 0.0]], decay=0.5)
    whole = step(one, [[1.0, 2.0]], lr=0.1)
    other.load_state_dict(one.state_dict())
    again = WordOptimizer([{"params": list(other.parameters())}], [other], lr=0.1)
    again.load_state_dict(whole.state_dict())
    step(one, [[3.0, 1.0]], lr=0.1, optimizer=whole)
    step(other, [[3.0, 1.0]], lr=0.1, optimizer=again)
    assert one.table().equal(other.table())


def test_slerp_is_on_the_arc() -> None:
    a, b = Embedding("<a>", torch.tensor([[2.0, 0.0]])), Embedding("<b>", torch.tensor([[0.0, 4.0]]))
    middle = slerp(a, b, 0.5, "<c>")
    torch.testing.assert_close(middle.vectors, 3 * torch.tensor([[0.5, 0.5]]).sqrt())
    third = slerp(a, b, 1 / 3)
    assert math.atan2(*third.vectors[0].tolist()[::-1]) == pytest.approx(math.pi / 6)
    for share, end in ((0.0, a), (1.0, b)):
        torch.testing.assert_close(slerp(a, b, share).vectors, end.vectors)
    torch.testing.assert_close(slerp(a, a, 0.3).vectors, a.vectors)
    assert middle.placeholder == "<c>" and "<a>, <b> at 0.5" in middle.metadata["between"]


def test_words_that_have_none_between_are_refused() -> None:
    a = Embedding("<a>", torch.tensor([[2.0, 0.0]]), {"base_model": "x"})
    for other, message in (
        (Embedding("<b>", torch.eye(2)), "no word between"),
        (Embedding("<b>", torch.tensor([[0.0, 4.0]]), {"base_model": "y"}), "two base models"),
        (Embedding("<b>", torch.tensor([[-4.0, 0.0]])), "opposite"),
    ):
        with pytest.raises(UserError, match=message):
            slerp(a, other, 0.5)


@pytest.mark.parametrize("suffix", [".safetensors", ".pt", ".bin", ".png"])
def test_every_tools_file_can_hold_one(tmp_path, suffix: str) -> None:
    vectors = torch.randn(1, 8)
    made = Embedding("<a>", vectors, {"kind": "directional"})
    found = load_embedding(save_embeddings(made, tmp_path / f"a{suffix}"))
    torch.testing.assert_close(found.vectors, vectors)
    assert found.metadata.get("kind") == ("directional" if suffix == ".safetensors" else None)


@pytest.mark.parametrize(("keep_norm", "length"), [("median", 1.0), ("mean", 2.0), ("start", 5.0)])
def test_the_length_of_a_plain_word_is_kept_after_each_step(keep_norm: str, length: float) -> None:
    made = choose({"kind": "plain", "keep_norm": keep_norm}).make(Fit(2, 1, 1000), 1)
    made.fill(torch.tensor([[3.0, 4.0]]), {}, TABLE)
    torch.testing.assert_close(made.table(), length * torch.tensor([[0.6, 0.8]]))
    free = torch.nn.Parameter(made.table().detach().clone())
    optimizer = WordOptimizer([{"params": list(made.parameters())}], [made], lr=0.1, weight_decay=0.0)
    theirs = torch.optim.AdamW([free], lr=0.1, weight_decay=0.0)
    for one, v_star in ((optimizer, made.table()), (theirs, free)):
        (v_star * torch.tensor([[1.0, -2.0]])).sum().backward()
        one.step()
    torch.testing.assert_close(made.table(), length * torch.nn.functional.normalize(free, dim=-1))
