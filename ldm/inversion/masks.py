"""Where the loss of a sample counts: its picture's mask, or the masks of the words that its prompt names."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.attention import AttentionTerm, nearest_side
from ldm.inversion.captions import contains_placeholder
from ldm.inversion.concept import Concept
from ldm.inversion.config import InversionConfig


class ConceptMasks:
    """The masks of a concept's N pictures, at the sizes of the latents and of an attention layer.

    A mask is scaled by the mean over the pixels of each place. A picture that has masks of words counts where
    the words are that the prompt names; if the prompt names none of them, it counts whole, as a picture
    without any mask does.

    Args:
        side: (h, w) of the latents.
        whole: (N, 1, S, S) in [0, 1], of all that a picture shows; ones where it has no such mask.
        of_words: (N, W, S, S) in [0, 1], of each word; zeros where a picture has no mask of a word.
        words: the W placeholders.
        attention_side: r of the attention maps (r, r) that the words' masks are compared with; 0: none.

    Raises:
        ValueError: neither ``whole`` nor ``of_words`` is given.
    """

    def __init__(
        self,
        side: tuple[int, int],
        whole: Tensor | None = None,
        of_words: Tensor | None = None,
        words: Sequence[str] = (),
        attention_side: int = 0,
    ) -> None:
        given = whole if whole is not None else of_words
        if given is None:
            raise ValueError("there are no masks")
        self.side, self.words, self.of_words = side, tuple(words), of_words
        self.whole = adaptive_avg_pool2d(torch.ones_like(given[:, :1]) if whole is None else whole, side)
        self._areas = None
        if of_words is not None and attention_side:
            self._areas = adaptive_avg_pool2d(of_words, (attention_side, attention_side))
        self._unions: dict[tuple[int, tuple[bool, ...]], Tensor] = {}  # picture and words named -> (1, h, w)

    def __len__(self) -> int:
        return len(self.whole)

    def shown(self, picture: int) -> tuple[str, ...]:
        """The words that a picture has masks of."""
        if self.of_words is None:
            return ()
        there = self.of_words[picture].flatten(1).any(1).tolist()
        return tuple(word for word, is_there in zip(self.words, there, strict=True) if is_there)

    def mask(self, indices: Tensor, flip: Tensor, prompts: Sequence[str]) -> Tensor:
        """Where the samples count, (B, 1, h, w), for pictures (B,), mirrored where ``flip`` (B,)."""
        own = [self._union(i, self._named(p)) for i, p in zip(indices.tolist(), prompts, strict=True)]
        return mirrored(torch.stack(own), flip)

    def areas(self, indices: Tensor, flip: Tensor, prompts: Sequence[str]) -> Tensor | None:
        """Where the words of the prompts are, (B, W, r, r); zeros for a word that a prompt does not name, or
        whose place in the picture is not known. ``None``: nothing is compared with them."""
        if self._areas is None:
            return None
        named = torch.tensor([self._named(prompt) for prompt in prompts])
        return mirrored(self._areas[indices] * named[:, :, None, None], flip)

    def _named(self, prompt: str) -> tuple[bool, ...]:
        return tuple(contains_placeholder(prompt, word) for word in self.words)

    def _union(self, picture: int, named: tuple[bool, ...]) -> Tensor:
        if self.of_words is None:
            return self.whole[picture]
        key = picture, named
        if key not in self._unions:
            union = self.of_words[picture, list(named)].sum(0, keepdim=True).clamp(max=1)
            self._unions[key] = adaptive_avg_pool2d(union, self.side) if union.any() else self.whole[picture]
        return self._unions[key]


def mirrored(pictures: Tensor, flip: Tensor) -> Tensor:
    """Pictures (B, C, h, w), mirrored where ``flip`` (B,)."""
    return torch.where(flip[:, None, None, None], pictures.flip(-1), pictures)


def masks_for(model: LatentDiffusion, concept: Concept, config: InversionConfig) -> ConceptMasks | None:
    """The masks of a concept as the settings use them; ``None`` if its pictures have none.

    Raises:
        UserError: a setting needs the masks of words, and there are none; names a picture.
    """
    side = model.latent_shape[1], model.latent_shape[2]
    for setting, needed in (
        ("attention_loss", config.attention_loss),
        ("captions.subsets", config.captions.subsets),
    ):
        if needed and concept.word_masks is None:
            raise UserError(
                f"{setting} needs to know where the words are in a picture, and none has a mask of a word: "
                "give NAME.WORD.mask.png beside NAME.jpg"
            )
    if concept.masks is None and concept.word_masks is None:
        return None
    attention_side = nearest_side(model.unet, side[0]) if config.attention_loss else 0
    masks = ConceptMasks(side, concept.masks, concept.word_masks, tuple(config.words), attention_side)
    for i, path in enumerate(concept.paths if config.captions.subsets else ()):
        if not masks.shown(i):
            raise UserError(
                f"{path} has no mask of a word, and captions.subsets names the words whose masks a picture "
                f"has: give {path.stem}.WORD.mask.png"
            )
    return masks


def attention_term(
    model: LatentDiffusion, config: InversionConfig, masks: ConceptMasks | None
) -> AttentionTerm | None:
    """The attention term of the config; ``None`` where its weight is 0."""
    if not config.attention_loss or masks is None:
        return None
    ids = model.manager.placeholders
    side = nearest_side(model.unet, masks.side[0])
    return AttentionTerm(config.attention_loss, side, tuple(ids.get(word, -1) for word in masks.words))
