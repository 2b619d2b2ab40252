"""One inversion, prepared: pictures, latents, words, module and folder, before the first step."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

from pytorch_lightning.callbacks import Callback
from pytorch_lightning.loggers import Logger
from torch import Tensor

from ldm.backbone.export import export_model
from ldm.backbone.model import LatentDiffusion
from ldm.config import dump_yaml, to_plain
from ldm.errors import UserError
from ldm.inversion.callbacks import EmbeddingCheckpoint, FixedBatchMonitor, StopByScore
from ldm.inversion.captions import PromptSource, has_captions, read_captions
from ldm.inversion.concept import Concept, concept_of
from ldm.inversion.config import InversionConfig, as_official
from ldm.inversion.context import context_term
from ldm.inversion.latents import ConceptBatches, cached_latents, encode_latents
from ldm.inversion.masks import ConceptMasks, attention_term, masks_for
from ldm.inversion.module import TextualInversion
from ldm.inversion.nearest_init import with_chosen_init
from ldm.inversion.placeholders import (
    add_image_words,
    add_words,
    held_words,
    refuse_cut_prompts,
    warn_of_template_words,
)
from ldm.inversion.provenance import about_run, details_of
from ldm.inversion.report import at_the_end, image_logger
from ldm.inversion.step import Objective
from ldm.inversion.stopping import stop_rule
from ldm.io.atomic import write_text
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.io.images import on_squares, save_png
from ldm.io.pictures import list_pictures
from ldm.io.runs import CONFIG_NAME, RunFolder, now
from ldm.io.secrets import redacted, redacted_values
from ldm.official.quirks import switches
from ldm.sampling.sample import Sampling
from ldm.training.callbacks import ImageLogger
from ldm.training.dashboard import About, Dashboard
from ldm.training.optim import scale_lr
from ldm.words.files import embedding_of

if TYPE_CHECKING:
    from ldm.inversion.scores import ScoreLogger

log = logging.getLogger(__name__)


def read_pictures(config: InversionConfig, size: int) -> tuple[Concept, list[tuple[str, ...]] | None]:
    """The pictures of ``size`` pixels a side, and their caption files if they are to be used."""
    listed = list_pictures(config.images, config.framing())
    concept = concept_of(listed, size, config.framing(), tuple(config.words))
    return concept, captions_of(concept, config)


def captions_of(concept: Concept, config: InversionConfig) -> list[tuple[str, ...]] | None:
    """The caption files beside the pictures; ``None`` if there are none, or they are not to be used.

    Raises:
        UserError: one is missing or wrong, or ``captions.subsets`` leaves no room for them.
    """
    if config.captions.subsets:
        if config.captions.files is None and has_captions(concept.paths):
            raise UserError(
                f"there are caption files beside {concept.paths[0]}, and captions.subsets says what a "
                "caption names: set captions.files=false"
            )
        return None
    if config.captions.files or (config.captions.files is None and has_captions(concept.paths)):
        return read_captions(concept.paths, config.called, config.words)
    return None


def write_config(run: RunFolder, config: InversionConfig, documents: Mapping[str, str] | None = None) -> None:
    """Write ``config.yaml`` and ``documents`` (path in the folder -> content)."""
    # the config first: with it, a run that is killed here can be gone on with
    write_text(run.file(CONFIG_NAME), dump_yaml(redacted_values(to_plain(config))))
    for name, text in (documents or {}).items():
        write_text(run.file(name), redacted(text))


@dataclass(frozen=True)
class Inversion:
    """One inversion, ready to train.

    Attributes:
        config: its settings, quirks of ``compat`` worked in.
        module: what trains; its model knows the word.
        monitor, keeper, pictures, scores: measure, save, draw and score it as it goes; without a run folder
            the last three are None.
        stopper: ends a run of its own by its scores, where that is wished.
        words: what is learned, the placeholder first.
        details: a word, optimiser step and base model -> an embedding's metadata.
        image_words: per-image words, which go when it ends.
        about: what loggers are told of it before the first step.
    """

    config: InversionConfig
    module: TextualInversion
    monitor: FixedBatchMonitor
    keeper: EmbeddingCheckpoint | None
    pictures: ImageLogger | None
    scores: ScoreLogger | None
    stopper: Callback | None
    run: RunFolder | None
    words: tuple[str, ...]
    details: Callable[..., dict[str, str]]
    image_words: tuple[str, ...]
    about: About

    @property
    def callbacks(self) -> list[Callback]:
        """For a run of its own, in their order."""
        own = (self.monitor, self.keeper, self.pictures, self.scores, self.stopper)
        return [callback for callback in own if callback is not None]

    @property
    def converged(self) -> bool:
        """Whether a rule ends it at the step that was measured or scored last."""
        return self.monitor.converged or (self.scores is not None and self.scores.converged)

    def learned(self, steps: int) -> list[Embedding]:
        """The words after so many steps, the placeholder first; a run folder gets them too."""
        model = self.module.model
        for name in self.image_words:
            model.remove_placeholder(name)
        fingerprint = model.freeze().fingerprint()
        words = [
            embedding_of(model.manager, word, self.details(word, steps, fingerprint)) for word in self.words
        ]
        if self.run is not None:
            save_embeddings(words, self.run.file("embeddings.safetensors"))
            if self.config.model_lr:
                export_model(model, self.run.path / "model")
        return words

    def report(
        self, words: Sequence[Embedding], seconds: float, pictures: Tensor, loggers: Sequence[Logger] = ()
    ) -> None:
        """Write the last pictures (n, 3, H, W), those of ``at_the_end``, and the report: it is finished.

        Args:
            loggers: are told what came of it; they stay open.
        """
        from ldm.inversion.report import finish, tell_end  # its libraries load only when one is due

        assert self.run is not None
        if self.scores is not None:
            self.scores.write()
        history = self.monitor.history
        finish(self.run, self.module.model, self.config, words, history, seconds, pictures)
        self.run.update_manifest(
            finished=now(),
            steps=int(words[0].metadata["step"]),
            seconds=round(seconds, 1),
            loss=history[-1]["fixed_loss"],
        )
        order = at_the_end(self.module.model, self.config)
        tell_end(Dashboard(loggers), self.run, self.about, order, pictures, words, history)


def prepare(
    model: LatentDiffusion,
    concept: Concept,
    config: InversionConfig,
    *,
    captions: Sequence[Sequence[str]] | None = None,
    run: RunFolder | None = None,
) -> Inversion:
    """Give ``model`` the word and encode the pictures; arguments as :func:`learn`."""
    if config.stop.rule == "score" and run is None and config.trainer.writes:
        raise UserError("stop.rule=score keeps its scores in the run's folder: learn the word by ldm invert")
    base_model = model.fingerprint()
    config = as_official(with_chosen_init(config, model, concept), len(concept))
    _set_up(model, config)
    add_words(model, config)
    image_words = add_image_words(model, config, len(concept)) if config.captions.per_image_tokens else ()
    masks = masks_for(model, concept, config)
    prompts = _prompts(config, captions, image_words, masks)
    warn_of_template_words(config, prompts)
    words = held_words(model, config, prompts)
    model.manager.train_only([*words, *image_words])
    batches = _batches(model, concept, config, prompts, masks, run, base_model)
    refuse_cut_prompts(model, batches, words)
    details = details_of(model, config, words, base_model, concept.hashes, captioned=bool(captions))
    keeper = pictures = scores = stopper = None
    if run is not None:
        _write_inputs(run, concept, config, base_model)
        keeper = EmbeddingCheckpoint(run, words, details, config.trainer.checkpoint_every, config.formats)
        if config.trainer.image_every and config.show.prompts:
            pictures = image_logger(run, model, config)
        if config.stop.score_every:
            from ldm.inversion.scores import score_logger  # scorers load only when one is used

            scores = score_logger(run, model, concept, config, keeper)
    if config.stop.rule == "score":
        stopper = StopByScore(lambda: scores is not None and scores.converged, config.stop.score_every)
    module, monitor = _module(model, batches, config, words), _monitor(config)
    about = about_run(concept, config, base_model)
    return Inversion(
        config, module, monitor, keeper, pictures, scores, stopper, run, words, details, image_words, about
    )


def _set_up(model: LatentDiffusion, config: InversionConfig) -> None:
    """Set what the model does with prompts, and refuse what it could not draw at the end."""
    show = config.show
    Sampling.of(model, steps=show.steps, sampler=show.sampler, scale=show.scale)
    model.manager.keep_end = not switches(config.compat).end_falls_off
    if config.clip_skip is not None:
        model.text.use_clip_skip(config.clip_skip)


def _prompts(
    config: InversionConfig,
    captions: Sequence[Sequence[str]] | None,
    image_words: tuple[str, ...],
    masks: ConceptMasks | None,
) -> PromptSource:
    """Where the prompts of a step come from: templates or caption files, with image words or without."""
    shown = [masks.shown(i) for i in range(len(masks))] if masks and config.captions.subsets else None
    kind = config.captions.templates
    if image_words and isinstance(kind, str):
        kind = {"object": "dual", "style": "style-dual"}.get(kind, "dual")
    return PromptSource(
        config.subject or ("*" if switches(config.compat).star_prompts else config.placeholder),
        kind=kind,
        captions=captions,
        image_tokens=image_words or None,
        mixing_prob=config.captions.mixing_prob,
        coarse_class=config.captions.coarse_class,
        subsets=shown,
    )


def _batches(
    model: LatentDiffusion,
    concept: Concept,
    config: InversionConfig,
    prompts: PromptSource,
    masks: ConceptMasks | None,
    run: RunFolder | None,
    base_model: str,
) -> ConceptBatches:
    """The pictures, encoded, and the prompts as batches; a run keeps its latents and encodes them once."""
    encode = partial(
        encode_latents if run is None else cached_latents,
        scale_factor=model.scale_factor,
        mirror=config.pictures.flip_p > 0,
    )
    kept = {} if run is None else {"folder": run.path / "latents", "fingerprint": base_model}
    return ConceptBatches(
        encode(model.encode, concept.images, **kept),
        prompts,
        batch_size=config.batch_size * config.trainer.processes,  # each takes its share of the whole one
        seed=config.seed,
        concept=config.placeholder,
        flip_p=config.pictures.flip_p,
        masks=masks,
    )


def _write_inputs(run: RunFolder, concept: Concept, config: InversionConfig, base_model: str) -> None:
    """Write the manifest and the training pictures, as the model sees them."""
    masks = {"mask_hashes": concept.mask_hashes} if concept.mask_hashes else {}
    run.write_manifest(
        seed=config.seed, image_hashes=concept.image_hashes, base_model=base_model, extra=masks
    )
    for i, image in enumerate(concept.images):
        save_png(image, run.file("images", f"training_{i:02d}.png"))
        for name, mask in concept.masks_of(i).items():
            save_png(on_squares(image, mask), run.file("images", f"counts_{i:02d}{name}.png"))


def _monitor(config: InversionConfig) -> FixedBatchMonitor:
    return FixedBatchMonitor(
        config.stop.monitor_every,
        allow_untrained=config.stop.allow_untrained,
        stop=stop_rule(config.stop),
        warn_untrained=not config.strict,
    )


def _module(
    model: LatentDiffusion, batches: ConceptBatches, config: InversionConfig, words: Sequence[str]
) -> TextualInversion:
    lr, quirks = config.optim.lr, switches(config.compat)
    if config.scale_lr:
        lr = scale_lr(
            lr,
            accumulate=config.trainer.accumulate,
            devices=config.trainer.processes,
            batch_size=config.batch_size,
        )
    log.info("learning rate: base %g, effective %g", config.optim.lr, lr)
    objective = Objective(
        model,
        batches,
        timesteps=config.timesteps,
        regularization=config.regularization,
        form=config.regularization_form,
        summed_drift=quirks.summed_drift,
        context=context_term(model, config, words),
        attention=attention_term(model, config, batches.masks),
    )
    return TextualInversion(
        objective,
        config.optim,
        lr=lr,
        max_steps=config.trainer.max_steps,
        model_lr=config.model_lr,
        vectors_only=quirks.vectors_only and not config.model_lr,
    )
