"""What a run says of where its words come from: in the files of embeddings, and to loggers."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from ldm.backbone.model import LatentDiffusion
from ldm.config import to_plain
from ldm.device import device_of, machine
from ldm.inversion.concept import Concept
from ldm.inversion.config import PICTURES, InversionConfig
from ldm.inversion.templates import described
from ldm.io.embeddings import provenance
from ldm.io.runs import versions
from ldm.io.secrets import redacted, redacted_values
from ldm.training.dashboard import About


def details_of(
    model: LatentDiffusion,
    config: InversionConfig,
    words: Sequence[str],
    base_model: str,
    image_hashes: Sequence[str],
    *,
    captioned: bool,
) -> Callable[..., dict[str, str]]:
    """What makes the metadata of an embedding from its word, its step and the model that it belongs to.

    It holds hashes and not the pictures: many inversions may wait for their turn.
    """
    vocabulary_id = model.text.tokenizer.vocabulary_id
    token_ids = {name: vocabulary_id(name) for name in words}
    if token_ids == {config.placeholder: None}:  # the official code can only call it by another token
        token_ids[config.placeholder] = vocabulary_id("*")

    def details(name: str, step: int, learned_on: str = base_model) -> dict[str, str]:
        return provenance(
            base_model=learned_on,
            step=step,
            seed=config.seed,
            init=config.words[name],
            templates="captions" if captioned else described(config.captions.templates),
            image_hashes=image_hashes,
            token_id=token_ids[name],
            clip_skip=model.text.other_clip_skip,
            init_from=config.init_from,
        )

    return details


def origin(config: InversionConfig, word: str) -> str:
    """Where a word starts, for a person to read."""
    phrase = config.words[word]
    if not phrase:
        return config.init_embedding.name if config.init_embedding else "vocabulary mean"
    notes = [f"nearest to the pictures by {config.init_pictures.scorer}"] if config.init == PICTURES else []
    notes += ["the text encoder's output"] if config.init_from == "encoder" else []
    return f"{phrase} ({', '.join(notes)})" if notes else phrase


def about_run(concept: Concept, config: InversionConfig, base_model: str) -> About:
    """What loggers are told of a run before its first step."""
    return About(
        config=redacted_values(to_plain(config)),
        base_model=base_model,
        model=redacted(config.model) if isinstance(config.model, str) else "",
        pictures=redacted_values(concept.image_hashes),
        machine=machine(device_of(config.trainer.accelerator)),
        versions=versions(),
    )
