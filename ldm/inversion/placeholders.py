"""The words of one inversion: where they start, and which of them its prompts hold."""

from __future__ import annotations

import logging
from collections.abc import Sequence

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.captions import PromptSource, contains_placeholder
from ldm.inversion.config import InversionConfig
from ldm.inversion.latents import ConceptBatches
from ldm.io.embeddings import Embedding, check_width, load_embeddings
from ldm.official.quirks import switches
from ldm.seeding import generator
from ldm.words.room import seen, what_is_cut
from ldm.words.start import from_vocabulary

log = logging.getLogger(__name__)


def add_words(model: LatentDiffusion, config: InversionConfig) -> None:
    """Give the model every word of the config; one of that name from before is replaced."""
    for word, init in config.words.items():
        if word in model.manager.placeholders:
            model.remove_placeholder(word)
        start = _start(config, model, word)
        model.add_placeholder(
            word,
            None if start is None else start.vectors,
            init=init,
            init_from=config.init_from,
            init_scale=config.init_scale,
            num_vectors=config.num_vectors,
            word=config.word,
            parts={} if start is None else start.parts,
            progressive=config.progressive or None,
            generator=generator(config.seed, word, "init"),
            compat=switches(config.compat),
        )


def _start(config: InversionConfig, model: LatentDiffusion, word: str) -> Embedding | None:
    """The word of ``init_embedding``: the one of that name; for the placeholder else the file's only one.

    Raises:
        UserError: the config says another start, another kind or another number of vectors than the file.
    """
    if config.init_embedding is None:
        return None
    found = {other.placeholder: other for other in load_embeddings(config.init_embedding)}
    if word not in found and word != config.placeholder:
        return None
    if word not in found and len(found) > 1:
        raise UserError(f"{config.init_embedding} holds {', '.join(found)}, but not {word}")
    start = found.get(word) or next(iter(found.values()))
    check_width(start, model.manager.width)
    if config.words[word]:
        raise UserError(f"{word} cannot start from the phrase {config.words[word]!r} and from "
                        f"{config.init_embedding}: leave out init or init_embedding")  # fmt: skip
    if start.K != config.num_vectors:
        raise UserError(f"{config.init_embedding} has {start.K} vectors for {word}, and num_vectors is "
                        f"{config.num_vectors}: give num_vectors={start.K}, or another file")  # fmt: skip
    kind = config.word["kind"]
    if start.only_ours and start.kind != kind:
        raise UserError(f"{config.init_embedding} holds a word of kind {start.kind}, and {word} is to be "
                        f"{kind}: give word={start.kind}, or another file")  # fmt: skip
    return start


def add_image_words(model: LatentDiffusion, config: InversionConfig, n: int) -> tuple[str, ...]:
    """Give the model one more word for each of ``n`` pictures; returns their names."""
    rng = generator(config.seed, config.placeholder, "image words")
    vectors = from_vocabulary(model.text.token_table, n, rng)
    return model.manager.add_image_tokens(config.placeholder, vectors, model.text.tokenizer.add_placeholder)


def held_words(model: LatentDiffusion, config: InversionConfig, prompts: PromptSource) -> tuple[str, ...]:
    """The words that occur in at least one training prompt, the placeholder first.

    A word that occurs in none would get no gradient: the model forgets it, with a warning. With the quirk
    ``star_prompts`` such words are kept and stay where they start, as in the official code.

    Raises:
        UserError: the placeholder itself occurs in no prompt.
    """
    ids = {token for text in prompts.naming for token in model.text.tokenizer.words(text)}
    lost = [word for word in config.words if model.manager.placeholders[word] not in ids]
    starred = switches(config.compat).star_prompts and prompts.captions is None and not config.subject
    if lost and starred:
        log.warning("prompts hold '*' and not %s, which gets no gradient (compat.star_prompts)",
                    " or ".join(map(repr, lost)))  # fmt: skip
        return tuple(config.words)
    if config.placeholder in lost:
        raise UserError(
            f"no prompt holds {config.placeholder}, and it would learn nothing; write it into subject, or "
            "into the captions"
        )
    for word in lost:
        model.remove_placeholder(word)
    if lost:
        log.warning("no prompt holds %s: left out", " or ".join(map(repr, lost)))
    return tuple(word for word in config.words if word not in lost)


def warn_of_template_words(config: InversionConfig, prompts: PromptSource) -> None:
    """Say which of the words the templates hold already: it is learned there too, where it is not meant."""
    for word in config.words:
        held = [line for line in prompts.templates if contains_placeholder(line.replace("{}", " "), word)]
        if held:
            log.warning(
                "the name %r is a word of the templates, as in %r, and is learned there too; a name such as "
                "%r is not", word, held[0], f"<{word}>",
            )  # fmt: skip


def refuse_cut_prompts(model: LatentDiffusion, batches: ConceptBatches, words: Sequence[str]) -> None:
    """A prompt cut before its placeholder would train nothing, silently: v* gets no gradient.

    Raises:
        UserError: there is one.
    """
    tokenizer, own = model.text.tokenizer, {model.manager.placeholders[word] for word in words}
    prompts = sorted({p for step in range(64) for p in batches.batch(step)["prompt"]})
    model.cuts.tell(tokenizer, model.manager, prompts, known=True)  # in one line, below
    cut = [found for p in prompts if (found := what_is_cut(tokenizer, model.manager, p))]
    if cut:
        more = f" (so it is with {len(cut)} of {len(prompts)} prompts)" if len(cut) > 1 else ""
        log.warning("%s%s", cut[0], more)
    for prompt in prompts:
        held = own & set(tokenizer.words(prompt))
        if held and not held & seen(tokenizer, model.manager, prompt):
            raise UserError(
                f"{prompt!r} is longer than the {model.text.max_length} tokens this model reads, and "
                f"{' and '.join(map(tokenizer.decode_id, held))} is cut off; use shorter captions"
            )
