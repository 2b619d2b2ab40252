"""``init: pictures``: a start from the words of the vocabulary that are nearest to the pictures.

Textual Inversion starts from a coarse word that a person gives (Gal et al. 2022, section 4). A network that
compares pictures with texts can give it as well: with the pictures' mean feature f and the feature g_w of a
text with the word w, the start is the word of the largest cosine of f and g_w.
"""

from __future__ import annotations

import logging
from collections.abc import Hashable
from dataclasses import replace
from functools import lru_cache
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.evaluation.scorers import Scorer, is_blind_to_text
from ldm.inversion.concept import Concept
from ldm.inversion.config import PICTURES, InversionConfig
from ldm.text.english import article

log = logging.getLogger(__name__)

#: A token embedding shorter than this share of the vocabulary's longer ones (its quantile of 0.9) is one that
#: training never came to: on ``emoji`` those are 0.4 long, and learned ones 1.4 to 2.4.
LEARNED = 1 / 3


def with_chosen_init(config: InversionConfig, model: LatentDiffusion, concept: Concept) -> InversionConfig:
    """The settings with the phrase that ``init: pictures`` stands for; any others as they are.

    The phrase is a function of the pictures, of the model's vocabulary and of the scorer.

    Raises:
        UserError: the scorer is unknown, has no weights here or reads no text, or knows no word of the model.
    """
    wish = config.init_pictures
    if config.init != PICTURES or wish.chosen:
        return config
    from ldm.inversion.scores import shared_scorer  # scorers load only when one is used

    scorer = None if is_blind_to_text(wish.scorer) else shared_scorer(wish.scorer, config)
    if scorer is None or not scorer.reads_text:
        raise UserError(
            f"init=pictures compares pictures with words, and {wish.scorer} reads no text: set "
            "init_pictures.scorer to emoji-clip or clip:MODEL/TAG"
        )
    words = candidates(model, scorer)
    if not words:
        raise UserError(
            f"{wish.scorer} knows no word that this model has learned: set another init_pictures.scorer, or "
            "give init"
        )
    found = nearest(words, concept.images, scorer)
    log.info("nearest to the pictures: %s", ", ".join(f"{word} {cosine:.2f}" for word, cosine in found[:5]))
    phrase = " ".join(word for word, _ in found[: wish.words])
    return replace(config, init_pictures=replace(wish, chosen=phrase))


def candidates(model: LatentDiffusion, scorer: Scorer) -> tuple[str, ...]:
    """Whole words of the model's vocabulary that it has learned, and the scorer too, if it can say so."""
    tokenizer = model.text.tokenizer
    lengths = model.text.token_table.detach().float().norm(dim=1)
    learned = (lengths > LEARNED * lengths.quantile(0.9)).tolist()
    knows, taken = getattr(scorer, "knows", None), tokenizer.placeholders
    found = []
    for word, token_id in tokenizer.whole_words().items():
        own = token_id < len(learned) and learned[token_id] and word not in taken
        if own and (knows is None or knows(word)):
            found.append(word)
    return tuple(found)


def nearest(words: tuple[str, ...], images: Tensor, scorer: Scorer) -> list[tuple[str, float]]:
    """All words with their cosine to the mean feature of images (N, 3, H, W), the nearest first; equals stay
    in their order."""
    mean = F.normalize(scorer.image_features(images).mean(dim=0), dim=0)
    cosines = (_text_features(cast(Hashable, scorer), words) @ mean).cpu()
    order = cosines.sort(descending=True, stable=True)
    return [(words[i], value) for i, value in zip(order.indices.tolist(), order.values.tolist(), strict=True)]


@lru_cache(maxsize=2)
@torch.no_grad()
def _text_features(scorer: Hashable, words: tuple[str, ...]) -> Tensor:
    """(W, D) of unit length; the same for all members of a pack."""
    assert isinstance(scorer, Scorer)
    return scorer.text_features([f"a photo of {article(word)}{word}" for word in words])
