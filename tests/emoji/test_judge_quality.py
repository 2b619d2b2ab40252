"""Quality of a judge on real pictures."""

import pytest
from evaluation_world import NAMES, CentreJudge, code

from ldm.emoji.judge_quality import judge_quality, name_recall, real_pictures
from ldm.emoji.sprites import EmojiSprites
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.metrics import Share

pytestmark = pytest.mark.slow


def test_real_pictures_are_plain_seeded_and_described(sprites: EmojiSprites) -> None:
    images, names, styles, colours = real_pictures(sprites, 30, seed=0)
    assert images.shape == (30, 3, 64, 64) and len(names) == len(styles) == len(colours) == 30
    assert set(names) <= set(NAMES) and set(colours) <= set(COLOUR_NAMES)
    assert images.equal(real_pictures(sprites, 30, seed=0)[0])


def test_recall_counts_right_names(judge: CentreJudge, sprites: EmojiSprites) -> None:
    images, names, styles, colours = real_pictures(sprites, 10, seed=0)
    for image, name in zip(images[:6], names, strict=False):
        image[:, 30:34, 30:34] = code(name).view(3, 4, 4)
    for image in images[6:]:
        image[:, 30:34, 30:34] = code("nothing").view(3, 4, 4)
    details = list(zip(styles, colours, strict=True))
    for extra in (None, details):
        share = name_recall(judge, images, names, NAMES, len(NAMES), 0, extra)
        assert share.n == 10 and 6 <= share.right <= 8  # the last four by chance
    assert name_recall(judge, images[:6], names[:6], NAMES, 20, 0) == Share(6, 6)


def test_quality_of_a_judge_that_knows_nothing_is_chance(judge: CentreJudge, sprites: EmojiSprites) -> None:
    quality = judge_quality(judge, sprites, n=40, among=20, seed=3)
    assert set(quality["right caption first"]) == {"name", "full", "half resolution"}
    assert float(quality["right caption first"]["name"].partition("%")[0]) < 30
