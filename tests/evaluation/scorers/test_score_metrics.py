"""The torchmetrics metrics: equal to the definitions written out, in any batches, with ceilings."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics.retrieval import RetrievalMAP

from ldm.errors import UserError
from ldm.evaluation.scorers import COSINE_OF_MEANS, MEAN_OF_COSINES, Identity, Score, require_same
from ldm.evaluation.scorers.metrics import (
    BackgroundColours,
    Ceiling,
    GalleryRetrieval,
    ImageSimilarity,
    TextSimilarity,
)
from ldm.evaluation.scorers.protocols import dreambench_scores, paired_difference, paper_scores


class Pixels:
    """Features of a picture are its pixels, those of a text follow from its length."""

    name, reads_text = "pixels", True
    identity = Identity("pixels", "0" * 64, "none", "length")

    def image_features(self, images: Tensor) -> Tensor:
        return F.normalize(images.flatten(1), dim=1)

    def text_features(self, texts: list[str]) -> Tensor:
        rows = [torch.randn(12, generator=torch.Generator().manual_seed(len(text))) for text in texts]
        return F.normalize(torch.stack(rows), dim=1)


class Blind(Pixels):
    name, reads_text = "blind", False


def pictures(n: int, seed: int) -> Tensor:
    return torch.randn(n, 3, 2, 2, generator=torch.Generator().manual_seed(seed))


def unit(images: Tensor) -> Tensor:
    return F.normalize(images.flatten(1), dim=1).double()


SAMPLES, REAL = pictures(9, 0), pictures(4, 1)


@pytest.mark.parametrize("averaging", [COSINE_OF_MEANS, MEAN_OF_COSINES])
def test_image_similarity(averaging):
    metric = ImageSimilarity(Pixels(), averaging)
    for part in SAMPLES.split(4):
        metric.update(part)
    for picture in REAL.split(1):
        metric.update(picture, real=True)
    a, b = unit(SAMPLES), unit(REAL)
    pairs = torch.stack([torch.dot(x, y) for x in a for y in b]).mean()
    means = F.cosine_similarity(a.mean(0), b.mean(0), dim=0)
    torch.testing.assert_close(metric.compute(), pairs if averaging == MEAN_OF_COSINES else means)
    assert metric.identity.averaging == averaging and metric.identity.text == ""
    metric.reset()
    with pytest.raises(ValueError, match="no samples"):
        metric.compute()


def test_the_ceiling_compares_no_picture_with_itself():
    rows = unit(REAL)
    pairs = torch.stack([torch.dot(rows[i], rows[j]) for i in range(4) for j in range(4) if i != j]).mean()
    metric = Ceiling(Pixels())
    metric.update(REAL[:1])
    assert metric.compute().isnan()
    metric.update(REAL[1:])
    torch.testing.assert_close(metric.compute(), pairs)
    others = [rows[[j for j in range(4) if j != i]].mean(0) for i in range(4)]
    means = F.cosine_similarity(rows, torch.stack(others), dim=1).mean()
    metric = Ceiling(Pixels(), COSINE_OF_MEANS)
    metric.update(REAL)
    torch.testing.assert_close(metric.compute(), means)


@pytest.mark.parametrize("averaging", [COSINE_OF_MEANS, MEAN_OF_COSINES])
def test_text_similarity_weighs_every_prompt_alike(averaging):
    texts = ["a cat"] * 6 + ["a long prompt"] * 3
    metric = TextSimilarity(Pixels(), averaging)
    for start in (0, 4, 8):
        metric.update(SAMPLES[start : start + 4], texts[start : start + 4])
    figures = []
    for rows, text in ((unit(SAMPLES[:6]), "a cat"), (unit(SAMPLES[6:]), "a long prompt")):
        direction = Pixels().text_features([text])[0].double()
        means = F.cosine_similarity(rows.mean(0), direction, dim=0)
        figures.append((rows @ direction).mean() if averaging == MEAN_OF_COSINES else means)
    torch.testing.assert_close(metric.compute(), torch.stack(figures).mean())
    assert metric.identity.text == "the prompt without the placeholder; length"


def test_a_scorer_that_reads_no_text_measures_none():
    with pytest.raises(UserError, match="blind reads no text"):
        TextSimilarity(Blind())
    names = [score.metric for score in dreambench_scores(Blind(), SAMPLES, ["a"] * 9, REAL)]
    assert names == ["DINO-I"]


def test_gallery_retrieval_is_nearest_concept_and_mean_average_precision():
    real = pictures(6, 2)
    labels = [5, 5, 5, 8, 8, 9]
    wanted = [5, 8, 9, 5, 8, 9, 5, 8, 9]
    metric = GalleryRetrieval(Pixels())
    metric.update(real, labels, real=True)
    for start in (0, 5):
        metric.update(SAMPLES[start : start + 5], wanted[start : start + 5])
    got = metric.compute()
    cosines = unit(SAMPLES) @ unit(real).T
    means = torch.stack([cosines[:, :3].mean(1), cosines[:, 3:5].mean(1), cosines[:, 5]], dim=1)
    first = torch.tensor([5, 8, 9])[means.argmax(1)] == torch.tensor(wanted)
    torch.testing.assert_close(got["first"], first.double().mean())
    theirs = RetrievalMAP()
    target = torch.tensor(wanted)[:, None] == torch.tensor(labels)
    theirs.update(cosines.float(), target, indexes=torch.arange(9)[:, None].expand(9, 6))
    torch.testing.assert_close(got["mAP"].float(), theirs.compute())
    assert 0 <= got["ceiling first"] <= 1 and 0 <= got["ceiling mAP"] <= 1
    metric.update(SAMPLES[:1], [1])
    with pytest.raises(ValueError, match="no reference pictures of concept 1"):
        metric.compute()


def test_the_gallery_ceiling_leaves_a_picture_out_of_its_own_gallery():
    base = torch.eye(12).view(12, 3, 2, 2)
    real = torch.stack([base[0], base[0] + base[1] / 9, base[5], base[5] + base[6] / 9, base[9]])
    metric = GalleryRetrieval(Pixels())
    metric.update(real, [0, 0, 1, 1, 2], real=True)
    metric.update(real[:1], [1])
    got = metric.compute()
    assert got["ceiling first"] == 1 and got["ceiling mAP"] == 1 and got["first"] == 0


def test_background_colours_count_over_batches():
    red = torch.tensor([1.0, -1.0, -1.0]).view(1, 3, 1, 1).expand(2, 3, 32, 32)
    metric = BackgroundColours()
    metric.update(red, ["red", "blue"])
    metric.update(red, ["red", "red"])
    assert metric.compute() == 0.75 and metric.share.n == 4
    low, high = metric.share.interval
    assert low < 0.75 < high


# ------------------------------------------------------------------------------- rows
def test_the_paper_and_its_evaluator_are_both_named():
    scores = paper_scores(Pixels(), SAMPLES, {"a cat": SAMPLES[:4], "a dog there": SAMPLES[4:]}, REAL)
    assert [score.metric for score in scores] == [
        "reconstruction (paper)", "reconstruction (official evaluator)",
        "editability (paper)", "editability (official evaluator)",
    ]  # fmt: skip
    assert [score.identity.averaging for score in scores] == [COSINE_OF_MEANS, MEAN_OF_COSINES] * 2
    for score in scores[:2]:
        metric = ImageSimilarity(Pixels(), score.identity.averaging)
        metric.update(SAMPLES)
        metric.update(REAL, real=True)
        assert score.figure == float(metric.compute()) and score.ceiling is not None
    assert all(score.ceiling is None for score in scores[2:])
    one = paper_scores(Pixels(), SAMPLES, {}, REAL[:1])
    assert [score.ceiling for score in one] == [None, None]


def test_a_row_is_read_back():
    for score in dreambench_scores(Pixels(), SAMPLES, ["a cat"] * 9, REAL, kind="held out"):
        row = score.as_row()
        assert row["weights"] == "0" * 64
        assert Score.from_row(row) == score
        assert Score.from_row({k: "" if v is None else str(v) for k, v in row.items()}) == score
    with pytest.raises(UserError, match="no averaging"):
        Identity.from_dict({k: v for k, v in score.as_row().items() if k != "averaging"})


def test_a_comparison_across_scorers_is_refused_in_one_line():
    def of(identity: Identity, kind: str = "held out") -> Score:
        scorer = Pixels()
        scorer.identity = identity
        return dreambench_scores(scorer, SAMPLES, ["a cat"] * 9, REAL, kind=kind)[0]

    ours = Pixels.identity
    others = {
        "weights": of(Identity("pixels", "1" * 64, "none", "length")),
        "architecture": of(Identity("others", "0" * 64, "none", "length")),
        "preprocessing": of(Identity("pixels", "0" * 64, "squash", "length")),
        "references": of(ours, kind="training pictures"),
        "averaging": paper_scores(Pixels(), SAMPLES, {}, REAL, kind="held out")[0],
    }
    require_same([of(ours), of(ours)])
    for part, other in others.items():
        expected = "metric" if part == "averaging" else part
        with pytest.raises(UserError, match=f"cannot be compared, their {expected} differs") as error:
            require_same([of(ours), other])
        assert "\n" not in str(error.value)
    with pytest.raises(UserError, match="weights differs"):
        paired_difference({"cat": of(ours)}, {"cat": others["weights"]})


def test_the_paired_difference_is_of_the_same_concepts():
    scores = {name: dreambench_scores(Pixels(), pictures(5, i), ["a"] * 5, REAL)[0]
              for i, name in enumerate(("cat", "dog", "cup"))}  # fmt: skip
    zero, interval = paired_difference(scores, scores)
    assert zero == 0 and interval == (0, 0)
    shifted = dict(zip(scores, [scores["dog"], scores["cup"], scores["cat"]], strict=True))
    mean, (low, high) = paired_difference(shifted, scores)
    assert mean == pytest.approx(0, abs=1e-12) and low < 0 < high
    with pytest.raises(ValueError, match="concepts differ"):
        paired_difference(scores, {"cat": scores["cat"]})
