"""One inversion from pictures to a run folder: what ``ldm invert``, ``main.py`` and ``ldm.invert`` do."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytorch_lightning as pl
from torch import Tensor

from ldm.backbone import loading
from ldm.backbone.export import export_model
from ldm.backbone.forms import trained_form
from ldm.backbone.model import LatentDiffusion
from ldm.config import dump_yaml, to_plain
from ldm.errors import UserError
from ldm.inversion.callbacks import EmbeddingCheckpoint, FixedBatchMonitor
from ldm.inversion.captions import PromptSource, has_captions, read_captions
from ldm.inversion.concept import Concept, list_pictures, load_concept
from ldm.inversion.config import InversionConfig, as_official, check
from ldm.inversion.latents import ConceptBatches, cached_latents, encode_latents
from ldm.inversion.module import TextualInversion
from ldm.inversion.placeholders import (
    add_image_words,
    add_words,
    held_words,
    refuse_cut_prompts,
    warn_of_template_words,
)
from ldm.inversion.report import at_the_end, on_the_way
from ldm.inversion.resume import (
    OF_INVERSIONS,
    refuse_changes,
    refuse_fewer_steps,
    refuse_other_inputs,
    whole_checkpoint,
)
from ldm.inversion.templates import described
from ldm.io.claims import claimed, is_claimed
from ldm.io.embeddings import Embedding, load_embeddings, provenance, save_embeddings
from ldm.io.images import save_png
from ldm.io.runs import CONFIG_NAME, LIST_NAME, RunFolder, create_run, now, write_text
from ldm.io.secrets import redacted, redacted_values
from ldm.official.quirks import switches
from ldm.paths import expanded
from ldm.sampling.sample import Sampling
from ldm.sampling.together import draw
from ldm.training.callbacks import ImageLogger
from ldm.training.fit import fit
from ldm.training.optim import scale_lr

log = logging.getLogger(__name__)


def run_inversion(
    config: InversionConfig,
    out: Path,
    *,
    resume: bool = False,
    progress: bool = True,
    documents: Mapping[str, str] | None = None,
) -> Embedding:
    """Learn a word and leave a run folder: config, embeddings, pictures, logs, manifest, report.

    Args:
        documents: further text files of the run, path in the folder -> content.

    Returns:
        The placeholder's embedding; the files hold ``more_words`` too.

    Raises:
        UserError: anything wrong with the input; nothing is left half-written.
    """
    check(config)
    config.trainer.check_machine()
    config = as_trained(config)
    out = expanded(out)
    if is_claimed(out.parent) and (out.parent / LIST_NAME).is_file():
        raise UserError(f"the list in {out.parent} is being learned, with {out.name} in it: wait for its end")
    if resume:  # looked at before anything is written
        refuse_changes(out, config, OF_INVERSIONS)
    with claimed(out, deep=True) if config.trainer.writes else nullcontext():
        loose = switches(config.compat).loose_weights
        model = loading.load(config.model, config.checkpoint, strict=not loose, clip_skip=config.clip_skip)
        concept, captions = read_pictures(config, model.image_size)
        run = create_run(out, resume=resume) if config.trainer.writes else RunFolder(out)
        if resume:
            refuse_other_inputs(run, model, concept)
            last = whole_checkpoint(out)
            if last is None and is_packed(out):
                return _as_pack(model, config, out, progress)
            refuse_fewer_steps(out, last.step if last else 0, config.trainer.max_steps)
        if config.trainer.writes:
            write_config(run, config, documents)
        return learn(model, concept, config, captions=captions, run=run, resume=resume, progress=progress)


def as_trained(config: InversionConfig) -> InversionConfig:
    """What trains, and is written down: with the quirks that are only other numbers worked in."""
    quirks, pictures = switches(config.compat), 0
    if quirks.encoder_calls and config.progressive:  # when a word grows depends on them
        how = {"every_file": quirks.every_file, "unsorted": quirks.unsorted}
        pictures = len(list_pictures(config.images, **how))
    return as_official(config, pictures)


def is_packed(out: Path) -> bool:
    """Whether a run was begun in a pack: it can go on there alone, exactly as it began."""
    return any(path.is_file() for path in packed_checkpoints(out))


def packed_checkpoints(out: Path) -> tuple[Path, Path]:
    """Of a concept learned in a pack, what Lightning's are to a run of its own: the last, the one before."""
    return out / "checkpoints" / "packed.pt", out / "checkpoints" / "packed-before.pt"


def _as_pack(model: LatentDiffusion, config: InversionConfig, out: Path, progress: bool) -> Embedding:
    """Go on with one member of a pack, as a pack of one."""
    from ldm.inversion.many.jobs import Job
    from ldm.inversion.many.pack import learn_many
    from ldm.inversion.snapshot import forget_snapshots

    forget_snapshots(out.parent)
    jobs = [Job(out.name, config)]
    (result,) = learn_many(model, jobs, out.parent, pack=1, resume=True, progress=progress)
    if result.error:
        raise UserError(result.error)
    return load_embeddings(out / "embeddings.safetensors")[0]


def read_pictures(config: InversionConfig, size: int) -> tuple[Concept, list[tuple[str, ...]] | None]:
    """The pictures of ``size`` pixels a side, and their caption files if they are to be used."""
    concept = load_concept(config.images, size, **config.framing())
    return concept, captions_of(concept, config)


def captions_of(concept: Concept, config: InversionConfig) -> list[tuple[str, ...]] | None:
    """The caption files beside the pictures; ``None`` if there are none, or they are not to be used."""
    if config.captions or (config.captions is None and has_captions(concept.paths)):
        return read_captions(concept.paths, config.called, config.words)
    return None


def write_config(run: RunFolder, config: InversionConfig, documents: Mapping[str, str] | None = None) -> None:
    """Write ``config.yaml`` and ``documents`` (path in the folder -> content)."""
    # the config first: with it, a run that is killed here can be gone on with
    write_text(run.file(CONFIG_NAME), dump_yaml(redacted_values(to_plain(config))))
    for name, text in (documents or {}).items():
        write_text(run.file(name), redacted(text))


def learn(
    model: LatentDiffusion,
    concept: Concept,
    config: InversionConfig,
    *,
    captions: Sequence[Sequence[str]] | None = None,
    run: RunFolder | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Embedding:
    """Teach ``model`` the placeholder; with a ``run`` folder, leave everything there.

    The model keeps the word (a word of that name from before is replaced). With several devices, every
    process comes here with the same arguments; the first one writes.
    """
    started = time.perf_counter()
    config.trainer.check_machine()
    record = run if config.trainer.writes else None
    task = prepare(model, concept, config, captions=captions, run=record)
    config, quirks = task.config, switches(config.compat)
    whole = whole_checkpoint(run.path) if run is not None and resume else None
    last = whole.path if whole else None
    if last is not None and task.module.vectors_only:
        task.module.take_vectors(last)
        last = None
    with trained_form(
        model,
        None if config.model_lr else config.trainer.compute_precision,  # weights that train stay in float32
        checkpointing=config.checkpointing,
        ignore_checkpointing=quirks.ignore_checkpointing,
        compiling=config.compiled,
        cuda_graphs=config.cuda_graphs,
    ):
        trainer = fit(
            task.module,
            run.path if run is not None else None,
            config.trainer,
            config.logging,
            seed=config.seed,
            callbacks=[c for c in (task.monitor, task.keeper, task.pictures) if c is not None],
            clip_norm=config.optim.clip_norm,
            resume=last,
            progress=progress,
        )
    model.to(trainer.strategy.root_device)
    seconds = time.perf_counter() - started
    words = task.learned(trainer.global_step)
    if record is not None:
        task.report(words, seconds, draw(at_the_end(model, config)))
    return words[0]


@dataclass(frozen=True)
class Inversion:
    """One inversion, ready to train.

    Attributes:
        config: its settings, quirks of ``compat`` worked in.
        module: what trains; its model knows the word.
        monitor, keeper, pictures: measure, save and draw it as it goes; without a run folder the last
            two are None.
        words: what is learned, the placeholder first.
        details: a word, optimiser step and base model -> an embedding's metadata.
        image_words: per-image words, which go when it ends.
    """

    config: InversionConfig
    module: TextualInversion
    monitor: FixedBatchMonitor
    keeper: EmbeddingCheckpoint | None
    pictures: ImageLogger | None
    run: RunFolder | None
    words: tuple[str, ...]
    details: Callable[..., dict[str, str]]
    image_words: tuple[str, ...]

    def learned(self, steps: int) -> list[Embedding]:
        """The words after so many steps, the placeholder first; a run folder gets them too."""
        model = self.module.model
        for name in self.image_words:
            model.remove_placeholder(name)
        fingerprint = model.freeze().fingerprint()
        words = [
            Embedding(word, model.manager.vectors(word), self.details(word, steps, fingerprint))
            for word in self.words
        ]
        if self.run is not None:
            save_embeddings(words, self.run.file("embeddings.safetensors"))
            if self.config.model_lr:
                export_model(model, self.run.path / "model")
        return words

    def report(self, words: Sequence[Embedding], seconds: float, pictures: Tensor) -> None:
        """Write the last pictures (n, 3, H, W), those of ``at_the_end``, and the report: it is finished."""
        from ldm.inversion.report import finish  # the report's libraries load only when one is due

        assert self.run is not None
        history = self.monitor.history
        finish(self.run, self.module.model, self.config, words, history, seconds, pictures)
        self.run.update_manifest(
            finished=now(),
            steps=int(words[0].metadata["step"]),
            seconds=round(seconds, 1),
            loss=history[-1]["fixed_loss"],
        )


def prepare(
    model: LatentDiffusion,
    concept: Concept,
    config: InversionConfig,
    *,
    captions: Sequence[Sequence[str]] | None = None,
    run: RunFolder | None = None,
) -> Inversion:
    """Give ``model`` the word and encode the pictures; arguments as :func:`learn`."""
    word, base_model = config.placeholder, model.fingerprint()
    how = {"steps": config.sample_steps, "sampler": config.sampler, "scale": config.sample_scale}
    Sampling.of(model, **how)  # what is wrong with it is said now, not at the end
    config = as_official(config, len(concept))
    quirks = switches(config.compat)
    model.manager.keep_end, model.manager.edits_ids = not quirks.end_falls_off, quirks.edits_ids
    if config.clip_skip is not None:
        model.text.use_clip_skip(config.clip_skip)
    add_words(model, config)
    image_words = add_image_words(model, config, len(concept)) if config.per_image_tokens else None
    kind = config.templates
    if image_words and isinstance(kind, str):
        kind = {"object": "dual", "style": "style-dual"}.get(kind, "dual")
    prompts = PromptSource(
        config.subject or ("*" if quirks.star_prompts else word),
        kind=kind,
        captions=captions,
        image_tokens=image_words,
        mixing_prob=config.mixing_prob,
        coarse_class=config.coarse_class,
    )
    warn_of_template_words(config, prompts)
    words = held_words(model, config, prompts)
    model.manager.train_only([*words, *(image_words or ())])
    encode = partial(
        encode_latents if run is None else cached_latents,  # a resumed run encodes nothing again
        scale_factor=model.scale_factor,
        mirror=config.flip_p > 0,
    )
    kept = {} if run is None else {"folder": run.path / "latents", "fingerprint": base_model}
    cache = encode(model.encode, concept.images, **kept)
    batches = ConceptBatches(
        cache,
        prompts,
        batch_size=config.batch_size * config.trainer.processes,  # each takes its share of the whole one
        seed=config.seed,
        concept=word,
        flip_p=config.flip_p,
    )
    refuse_cut_prompts(model, batches, words)
    module = _module(model, batches, config)
    monitor = FixedBatchMonitor(
        config.monitor_every,
        allow_untrained=config.allow_untrained,
        patience=config.patience,
        min_improvement=config.min_improvement,
        warn_untrained=quirks.loose_weights,
    )
    vocabulary_id = model.text.tokenizer.vocabulary_id
    token_ids = {name: vocabulary_id(name) for name in words}
    if token_ids == {word: None}:  # the official code can only call it by another token
        token_ids[word] = vocabulary_id("*")
    hashes = concept.hashes  # not the pictures: many inversions may wait for their turn

    def details(name: str, step: int, learned_on: str = base_model) -> dict[str, str]:
        return provenance(
            base_model=learned_on,
            step=step,
            seed=config.seed,
            init=config.words[name],
            templates="captions" if captions else described(config.templates),
            image_hashes=hashes,
            token_id=token_ids[name],
            clip_skip=model.text.other_clip_skip,
        )

    keeper = pictures = None
    if run is not None:
        run.write_manifest(seed=config.seed, image_hashes=concept.image_hashes, base_model=base_model)
        for i, image in enumerate(concept.images):
            save_png(image, run.file("images", f"training_{i:02d}.png"))
        every = config.trainer.checkpoint_every
        keeper = EmbeddingCheckpoint(run, words, details, every, config.formats)
        if config.trainer.image_every and config.prompts:
            pictures = _image_logger(run, model, config)
    return Inversion(config, module, monitor, keeper, pictures, run, words, details, tuple(image_words or ()))


def _module(model: LatentDiffusion, batches: ConceptBatches, config: InversionConfig) -> TextualInversion:
    lr, quirks = config.optim.lr, switches(config.compat)
    if config.scale_lr:
        lr = scale_lr(
            lr,
            accumulate=config.trainer.accumulate,
            devices=config.trainer.processes,
            batch_size=config.batch_size,
        )
    log.info("learning rate: base %g, effective %g", config.optim.lr, lr)
    module = TextualInversion(
        model,
        batches,
        config.optim,
        lr=lr,
        max_steps=config.trainer.max_steps,
        regularization=config.regularization,
        summed_drift=quirks.summed_drift,
        timesteps=config.timesteps,
        model_lr=config.model_lr,
        vectors_only=quirks.vectors_only and not config.model_lr,
        shared_steps=config.shared_steps,
    )
    return module


def _image_logger(run: RunFolder, model: LatentDiffusion, config: InversionConfig) -> ImageLogger:
    def samples(module: pl.LightningModule) -> dict[str, Tensor]:
        return {"samples": draw(on_the_way(model, config))}

    every, columns = config.trainer.image_every, len(config.prompts)
    return ImageLogger(samples, run.path / "images", every, columns=columns)
