"""Measures of pictures and features: known values, edge cases, and what must not pass."""

import math

import pytest
import torch
from torch import Tensor

from ldm.emoji.compose import JITTER
from ldm.evaluation.colours import COLOUR_NAMES, COLOURS
from ldm.evaluation.metrics import (
    Share,
    background_accuracy,
    background_colours,
    background_hits,
    bootstrap,
    border_pixels,
    caption_rank,
    nearest_concept,
    recall_at_1,
    similarity,
    srgb_to_lab,
)


def plain(names: tuple[str, ...] = COLOUR_NAMES, size: int = 64) -> Tensor:
    """(N, 3, size, size) in [-1, 1], each of one named colour."""
    rgb = torch.tensor([COLOURS[n] for n in names]) / 127.5 - 1
    return rgb[:, :, None, None].expand(-1, -1, size, size).clone()


def unit(*rows: tuple[float, ...]) -> Tensor:
    return torch.nn.functional.normalize(torch.tensor(rows, dtype=torch.float32), dim=1)


def test_wilson_interval_has_its_published_values() -> None:
    low, high = Share(8, 10).interval
    assert (low, high) == pytest.approx((0.4902, 0.9433), abs=1e-4)
    assert Share(10, 10).interval == pytest.approx((0.7225, 1.0), abs=1e-4)
    assert Share(0, 0).interval == (0.0, 1.0) and math.isnan(Share(0, 0).value)


def test_shares_add_and_print() -> None:
    assert Share(1, 2) + Share(2, 3) == Share(3, 5)
    assert str(Share(3, 4)).startswith("75.0% (3/4, 95 % ")
    assert Share.of(torch.tensor([True, False])) == Share(1, 2)


def test_bootstrap_interval_covers_the_mean_and_shrinks_with_n() -> None:
    few, many = [0.0, 1.0] * 5, [0.0, 1.0] * 500
    assert bootstrap(few)[0] < 0.5 < bootstrap(few)[1]
    assert bootstrap(many)[1] - bootstrap(many)[0] < 0.2 < bootstrap(few)[1] - bootstrap(few)[0]
    assert bootstrap([0.5, 0.5]) == (0.5, 0.5)


def test_lab_of_white_black_and_red() -> None:
    lab = srgb_to_lab(torch.tensor([[1.0, 1, 1], [0, 0, 0], [1, 0, 0]]))
    expected = torch.tensor([[100.0, 0, 0], [0, 0, 0], [53.24, 80.09, 67.20]])
    torch.testing.assert_close(lab.float(), expected, atol=0.02, rtol=0)


def test_border_is_the_ring_alone() -> None:
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 2:62, 2:62] = 1
    ring = border_pixels(images)
    assert ring.shape == (1, 64 * 64 - 60 * 60, 3) and not ring.any()


def test_every_named_colour_is_recognised_with_its_jitter_and_noise() -> None:
    generator = torch.Generator().manual_seed(0)
    images = plain().repeat(4, 1, 1, 1)
    shift = (torch.rand(len(images), 3, 1, 1, generator=generator) * 2 - 1) * (JITTER / 127.5)
    noise = 0.1 * torch.randn(images.shape, generator=generator)
    assert background_accuracy(images + shift + noise, COLOUR_NAMES * 4) == Share(48, 48)


def test_an_object_may_cover_less_than_half_of_the_border() -> None:
    images = plain(("blue",))
    images[:, :, 8:, 40:] = plain(("red",))[:, :, 8:, 40:]
    assert background_colours(images) == ["blue"]
    images[:, :, :, 20:] = plain(("red",))[:, :, :, 20:]
    assert background_colours(images) == ["red"]


def test_a_border_of_three_colours_has_no_name() -> None:
    images = plain(("blue",))
    images[:, :, 20:42] = plain(("red",))[:, :, 20:42]
    images[:, :, 42:] = plain(("green",))[:, :, 42:]
    assert background_colours(images) == [None]
    assert background_hits(images, ["blue"]) == [False]


def test_unknown_colour_names_are_refused() -> None:
    with pytest.raises(ValueError, match="mauve"):
        background_hits(plain(("red",)), ["mauve"])


def test_backgrounds_of_no_pictures() -> None:
    assert background_accuracy(torch.empty(0, 3, 64, 64), []) == Share(0, 0)


def test_rank_counts_the_captions_that_are_nearer() -> None:
    texts = unit((1, 0), (0, 1), (1, 1))
    images = unit((1, 0.1), (1, 0.1), (0.1, 1))
    ranks = caption_rank(images, texts, torch.tensor([0, 1, 1]))
    assert ranks.tolist() == [1, 3, 1]
    assert recall_at_1(ranks) == Share(2, 3)


def test_rank_among_candidates_only() -> None:
    texts = unit((1, 0), (1, 0.2), (0, 1))
    image = unit((1, 0))
    assert caption_rank(image, texts, torch.tensor([1])).tolist() == [2]
    assert caption_rank(image, texts, torch.tensor([1]), torch.tensor([[1, 2]])).tolist() == [1]
    with pytest.raises(ValueError, match="among"):
        caption_rank(image, texts, torch.tensor([1]), torch.tensor([[0, 2]]))


def test_ties_and_nan_never_look_like_a_success() -> None:
    texts = torch.ones(4, 2) / math.sqrt(2)  # a judge that maps every text to one place
    assert caption_rank(unit((1, 0)), texts, torch.tensor([2])).tolist() == [4]
    broken = torch.full((1, 2), math.nan)
    assert caption_rank(broken, texts, torch.tensor([2])).tolist() == [4]


def test_nearest_concept_by_mean_and_by_max() -> None:
    mixed, close = unit((1, 0), (-1, 0)), unit((1, 1), (1, 1))
    sample = unit((1, 0))
    assert nearest_concept(sample, [mixed, close]).tolist() == [1]
    assert nearest_concept(sample, [mixed, close], "max").tolist() == [0]
    with pytest.raises(ValueError, match="mean or max"):
        nearest_concept(sample, [mixed], "median")


def test_both_ways_of_averaging_differ_as_they_should() -> None:
    spread, point = unit((1, 1), (1, -1)), unit((1, 0))
    both = similarity(spread, point)
    assert both.cosine_of_means == pytest.approx(1.0)
    assert both.mean_of_cosines == pytest.approx(math.sqrt(0.5))
