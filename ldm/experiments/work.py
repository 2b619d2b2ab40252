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
from typing import Any

import torch

from ldm.backbone import loading
from ldm.backbone.model import LatentDiffusion
from ldm.device import device_of
from ldm.errors import UserError
from ldm.experiments.cells import base_model
from ldm.experiments.machine import commit, machine
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
    """

    cell: Cell
    config: InversionConfig
    album: Album
    out: Path

    @property
    def run(self) -> RunFolder:
        """Its run folder."""
        return RunFolder(self.out / "runs" / self.cell.name)

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
    errors = _learn(model, todo, progress)
    outcomes = []
    for one in todo:
        error = errors.get(one.cell.name)
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
    """Learn what has not been learned; returns the errors by name."""
    if all("finished" in _manifest(one.run) for one in todo):
        return {}
    jobs = [Job(one.cell.name, one.config) for one in todo]
    runs = todo[0].out / "runs"
    try:
        check_together(jobs, same_words=True)
    except UserError:
        return _learn_alone(todo, progress)
    results = learn_many(model, jobs, runs, pack=len(jobs), resume=True, progress=progress, same_words=True)
    return {result.name: result.error or "it failed" for result in results if result.status == "failed"}


def _learn_alone(todo: Sequence[Todo], progress: bool) -> dict[str, str]:
    errors = {}
    for one in todo:
        if "finished" not in _manifest(one.run):
            try:
                run_inversion(one.config, one.run.path, resume=True, progress=progress)
            except UserError as error:
                errors[one.cell.name] = str(error)
    return errors


def _manifest(run: RunFolder) -> dict[str, Any]:
    return run.read_manifest() if run.manifest_path.is_file() else {}


def _draw(model: LatentDiffusion, one: Todo, device: torch.device) -> str | None:
    """Draw what is missing of a cell; returns what is wrong, if anything."""
    if one.album.complete:
        return None
    try:
        if one.config.model_lr:  # the run has a model of its own
            model = loading.load(one.run.path / "model")
        words = prompts.load([one.run.path / "embeddings.safetensors"])
        own = model.to(device).with_own_words()
        prompts.teach(own, words)
        one.album.draw(own, words, one.config.called)
    except UserError as error:
        return str(error)
    return None


def _record(one: Todo, device: torch.device) -> dict[str, Any]:
    manifest = _manifest(one.run)
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
