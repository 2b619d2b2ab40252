"""What a worker does with a group of cells: learn their words, draw their pictures, note what it took.

All state is in files, so that a group can be given to any worker again, however the last one ended.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from ldm.backbone import loading
from ldm.backbone.model import LatentDiffusion
from ldm.device import device_of, machine
from ldm.errors import UserError
from ldm.experiments.cells import base_model
from ldm.experiments.commit import commit
from ldm.experiments.concepts import GridConcept
from ldm.experiments.draws import IMAGES, DrawConfig, called, training_pictures
from ldm.experiments.plan import Cell
from ldm.experiments.shots import Album
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import Job, check_together
from ldm.inversion.many.pack import learn_many
from ldm.inversion.run import run_inversion
from ldm.io.atomic import write_json
from ldm.io.runs import RunFolder
from ldm.sampling import prompts


@dataclass(frozen=True)
class Todo:
    """A cell, ready to be worked on anywhere.

    Attributes:
        cell, config, album: which one, its inversion, and the pictures to draw.
        out: the experiment's folder.
        draw: how they are drawn.
        members: the concepts that stand in its prompts, one or two.
    """

    cell: Cell
    config: InversionConfig
    album: Album
    out: Path
    draw: DrawConfig
    members: tuple[GridConcept, ...]

    @property
    def runs(self) -> list[RunFolder]:
        """The runs whose words it draws; none of a reference."""
        return [RunFolder(self.out / "runs" / name) for name in self.cell.runs]

    @property
    def learns(self) -> bool:
        """Whether its word is learned for it; those of concepts together are learned in their own cells."""
        return self.cell.steps > 0

    @property
    def called(self) -> tuple[str, ...]:
        """What stands for the concepts in its prompts."""
        if self.learns:
            return (self.config.called,)
        return called(self.draw, self.members)

    @property
    def record(self) -> Path:
        """The file that says that the cell's pictures are there, and what it took; or why it failed."""
        return record_path(self.out, self.cell)


@dataclass(frozen=True)
class Outcome:
    """What became of a cell: ``error`` is the line that says why it failed, ``None`` if it did not."""

    cell: Cell
    error: str | None = None


def record_path(out: Path, cell: Cell) -> Path:
    """Where the record of a cell is."""
    return out / "cells" / f"{cell.drawn_name}.json"


def read_record(out: Path, cell: Cell) -> dict[str, Any] | None:
    """The record of a cell that was drawn or has failed; ``None`` of any other."""
    with suppress(OSError, ValueError):
        found = json.loads(record_path(out, cell).read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    return None


def work(todo: Sequence[Todo], home: Path | None = None, progress: bool = False) -> list[Outcome]:
    """Learn and draw all of a group; a cell that fails is named in its outcome and stops no other.

    Args:
        todo: cells that one pack can hold, or a single one.
        home: the folder of the command, where relative paths mean what they say.
        progress: show a bar.

    Raises:
        UserError: no cell can be worked on, because there is no such model or device.
    """
    if home is not None:
        os.chdir(home)
    config = todo[0].config
    model = base_model(config.model, config.checkpoint, config.strict)
    model.text.use_clip_skip(None)  # the last group may have left another one
    device = device_of(config.trainer.accelerator)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    errors = _learn(model, [one for one in todo if one.learns], progress)
    outcomes = []
    for one in todo:
        error = next((errors[name] for name in one.cell.runs if name in errors), None)
        if error is None:
            error = _draw(model, one, device)
        if error is None:
            found = read_record(one.out, one.cell)
            if found is None or "error" in found:
                write_json(one.record, _record(one, device))
        else:
            write_json(one.record, {"error": error})
        outcomes.append(Outcome(one.cell, error))
    return outcomes


def _learn(model: LatentDiffusion, todo: Sequence[Todo], progress: bool) -> dict[str, str]:
    """Learn what has not been learned; returns the errors by the names of runs."""
    if all(_finished(one) for one in todo):
        return {}
    jobs = [Job(name, config) for name, config in {one.cell.runs[0]: one.config for one in todo}.items()]
    return learn_jobs(model, jobs, todo[0].out / "runs", pack=len(jobs), progress=progress)


def learn_jobs(
    model: LatentDiffusion,
    jobs: Sequence[Job],
    out: Path,
    *,
    pack: int | Literal["auto"] = "auto",
    progress: bool = False,
) -> dict[str, str]:
    """Learn jobs in their run folders ``out/<name>``: in packs, or one by one where no pack can hold them.

    What is finished is kept and what was begun goes on. Returns the errors by name.

    Args:
        model: what the jobs that may share a pack are for; ``base_model`` of their settings.
        pack: how many learn in one batch.
    """
    try:
        check_together(jobs, same_words=True)
    except UserError:
        return _learn_alone(jobs, out, progress)
    results = learn_many(model, jobs, out, pack=pack, resume=True, progress=progress, same_words=True)
    return {result.name: result.error or "it failed" for result in results if result.status == "failed"}


def _learn_alone(jobs: Sequence[Job], out: Path, progress: bool) -> dict[str, str]:
    errors = {}
    for job in jobs:
        run = RunFolder(out / job.name)
        if "finished" not in _manifest(run):
            try:
                run_inversion(job.config, run.path, resume=True, progress=progress)
            except UserError as error:
                errors[job.name] = str(error)
    return errors


def _finished(one: Todo) -> bool:
    """Whether all words are there that it draws."""
    return all("finished" in _manifest(run) for run in one.runs)


def _manifest(run: RunFolder) -> dict[str, Any]:
    return run.read_manifest() if run.manifest_path.is_file() else {}


def _draw(model: LatentDiffusion, one: Todo, device: torch.device) -> str | None:
    """Draw what is missing of a cell; returns what is wrong, if anything."""
    if one.album.complete:
        return None
    try:
        if one.draw.reference == IMAGES:
            one.album.copy(training_pictures(one.members), model.image_size)
            return None
        if not _finished(one):
            raise UserError("the words of its concepts are not learned: run their cells as well")
        if one.learns and one.config.model_lr:  # the run has a model of its own
            model = loading.load(one.runs[0].path / "model")
        words = prompts.load([run.path / "embeddings.safetensors" for run in one.runs])
        own = model.to(device).with_own_words()
        prompts.teach(own, words)
        one.album.draw(own, words, one.called, one.draw, one.members[0])
    except UserError as error:
        return str(error)
    return None


def _record(one: Todo, device: torch.device) -> dict[str, Any]:
    manifest = _manifest(one.runs[0]) if one.learns else {}
    steps = int(manifest.get("steps", one.cell.steps))
    return {
        "cell": asdict(one.cell),
        "commit": commit(),
        "machine": machine(device),
        "threads": torch.get_num_threads(),
        "seconds": manifest.get("seconds"),
        "steps": steps,
        "pictures_seen": steps * one.cell.pictures_a_step,
        "peak_memory_mb": peak_memory(device),
        "loss": manifest.get("loss"),
    }


def peak_memory(device: torch.device) -> float:
    """Most megabytes that this process had at a time: of the GPU, else of the machine; a pack shares them."""
    if device.type == "cuda":
        return round(torch.cuda.max_memory_allocated(device) / 1e6, 1)
    import resource

    kilobytes = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return round(kilobytes / (1e6 if sys.platform == "darwin" else 1e3), 1)
