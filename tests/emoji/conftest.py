"""The world without trained models as fixtures."""

import pytest
import torch
from evaluation_world import NAMES, CentreJudge, StubModel

from ldm.emoji.captions import STYLES
from ldm.emoji.sprites import Concept, EmojiSprites


@pytest.fixture
def judge() -> CentreJudge:
    return CentreJudge(NAMES)


@pytest.fixture
def model(judge: CentreJudge) -> StubModel:
    return StubModel(judge)


@pytest.fixture
def sprites() -> EmojiSprites:
    """Twenty concepts, each a filled square of its own colour noise."""
    generator = torch.Generator().manual_seed(0)
    concepts = tuple(
        Concept(f"{0x1F400 + i:x}", name, (), "animals-nature", "animal-mammal")
        for i, name in enumerate(NAMES)
    )
    pixels = torch.full((len(NAMES), len(STYLES), 64, 64, 4), 255, dtype=torch.uint8)
    colours = torch.randint(256, (len(NAMES), 1, 1, 1, 3), generator=generator)
    pixels[..., :3] = colours.to(torch.uint8)
    return EmojiSprites(concepts, pixels, frozenset(NAMES))
