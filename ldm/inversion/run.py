"""One inversion from pictures to a run folder: what ``ldm invert``, ``main.py`` and ``ldm.invert`` do."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

from ldm.backbone import loading
from ldm.backbone.forms import trained_form
from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.concept import Concept
from ldm.inversion.config import PICTURES, InversionConfig, as_official, check
from ldm.inversion.nearest_init import with_chosen_init
from ldm.inversion.report import at_the_end
from ldm.inversion.resume import (
    OF_INVERSIONS,
    kept_config,
    refuse_changes,
    refuse_fewer_steps,
    refuse_other_inputs,
    whole_checkpoint,
)
from ldm.inversion.snapshot import forget_snapshots
from ldm.inversion.task import prepare, read_pictures, write_config
from ldm.io.claims import claimed, is_claimed
from ldm.io.embeddings import Embedding
from ldm.io.pictures import list_pictures
from ldm.io.runs import LIST_NAME, RunFolder, create_run
from ldm.official.quirks import switches
from ldm.paths import expanded
from ldm.sampling.together import draw
from ldm.training.dashboard import Dashboard
from ldm.training.fit import fit
from ldm.training.loggers import check_loggers

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
    check_loggers(config.logging)
    out = expanded(out)
    config = as_trained(config, out if resume else None)
    if is_claimed(out.parent) and (out.parent / LIST_NAME).is_file():
        raise UserError(f"the list in {out.parent} is being learned, with {out.name} in it: wait for its end")
    if resume:  # looked at before anything is written
        refuse_changes(out, config, OF_INVERSIONS)
    with claimed(out, deep=True) if config.trainer.writes else nullcontext():
        model = loading.load(
            config.model, config.checkpoint, strict=config.strict, clip_skip=config.clip_skip
        )
        concept, captions = read_pictures(config, model.image_size)
        config = with_chosen_init(config, model, concept)
        run = create_run(out, resume=resume) if config.trainer.writes else RunFolder(out)
        if resume:
            refuse_other_inputs(run, model, concept)
            last = whole_checkpoint(out)
            refuse_fewer_steps(out, last.step if last else 0, config.trainer.max_steps)
        if config.trainer.writes:
            write_config(run, config, documents)
            forget_snapshots(out.parent)  # of packs that it was in
        return learn(model, concept, config, captions=captions, run=run, resume=resume, progress=progress)


def as_trained(config: InversionConfig, begun: Path | None = None) -> InversionConfig:
    """What trains, and is written down: with the steps at which words grow, and with the phrase that the
    pictures chose when the run in the folder ``begun`` was begun."""
    kept = kept_config(begun, InversionConfig) if begun and config.init == PICTURES else None
    if kept and not config.init_pictures.chosen:
        own = replace(config.init_pictures, chosen=kept.init_pictures.chosen)
        config = replace(config, init_pictures=own)
    pictures = 0
    if switches(config.compat).encoder_calls and config.progressive:  # when a word grows depends on them
        pictures = len(list_pictures(config.images, config.framing())[: config.train_pictures])
    return as_official(config, pictures)


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
    check_loggers(config.logging)
    record = run if config.trainer.writes else None
    task = prepare(model, concept, config, captions=captions, run=record)
    config = task.config
    whole = whole_checkpoint(run.path) if run is not None and resume else None
    last = whole.path if whole else None
    if last is not None and task.module.vectors_only:
        task.module.take_vectors(last)
        last = None
    with trained_form(
        model,
        None if config.model_lr else config.trainer.compute_precision,  # weights that train stay in float32
        checkpointing=config.compute.checkpointing,
        compiling=config.compute.compiled,
        cuda_graphs=config.compute.cuda_graphs,
    ):
        trainer = fit(
            task.module,
            run.path if run is not None else None,
            config.trainer,
            config.logging,
            seed=config.seed,
            callbacks=task.callbacks,
            clip_norm=config.optim.clip_norm,
            resume=last,
            progress=progress,
            about=task.about,
            keep_open=True,
        )
    model.to(trainer.strategy.root_device)
    seconds = time.perf_counter() - started
    words = task.learned(trainer.global_step)
    if record is not None:
        task.report(words, seconds, draw(at_the_end(model, config), progress=progress), trainer.loggers)
    Dashboard(trainer.loggers).close()
    return words[0]
