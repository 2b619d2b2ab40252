"""What is asked of packs and what came of it: jobs, what they must have in common, results, the summary."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from operator import attrgetter
from pathlib import Path
from typing import Literal

from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.io.atomic import write_json
from ldm.io.embeddings import load_embeddings, save_embeddings
from ldm.io.runs import now
from ldm.io.secrets import redacted_values

#: keys that all concepts of a pack have in common
SHARED = (
    "model",
    "checkpoint",
    "strict",
    "clip_skip",
    "compute.checkpointing",
    "trainer.precision",
    "trainer.accelerator",
    "trainer.attention",
    "trainer.threads",
)
SUMMARY = "concepts.json"


@dataclass(frozen=True)
class Job:
    """A concept to learn: the name of its run folder, and its settings."""

    name: str
    config: InversionConfig


@dataclass(frozen=True)
class Result:
    """What became of a job.

    Attributes:
        name: The name of the run folder.
        word: The placeholder.
        status: "learned", "kept" if it had been finished by an earlier command, or "failed".
        path: The run folder.
        steps: The number of optimiser steps that were done.
        loss: The loss on the concept's fixed batch at the end, or ``None`` if it failed.
        seconds: The concept's share of the time that its packs took.
        error: The reason why it failed, in one line.
    """

    name: str
    word: str
    status: Literal["learned", "kept", "failed"]
    path: Path
    steps: int = 0
    loss: float | None = None
    seconds: float = 0.0
    error: str | None = None


def check_together(jobs: Sequence[Job], *, same_words: bool = False) -> None:
    """Refuse jobs that no pack can hold, by a :class:`UserError` that names one of them.

    Args:
        same_words: several jobs may learn one word, such as with other settings. Every job has a vocabulary
            of its own, so that only a file of all words needs them to differ.
    """
    words = [] if same_words else [word for job in jobs for word in job.config.words]
    for what, given in (("name", [job.name for job in jobs]), ("word", words)):
        twice = [value for value, times in Counter(given).items() if times > 1]
        if twice:
            raise UserError(f"two concepts have the {what} {twice[0]!r}: every one needs its own")
    first = jobs[0]
    for job in jobs:
        for key in SHARED:
            own, common = attrgetter(key)(job.config), attrgetter(key)(first.config)
            if own != common:
                raise UserError(
                    f"{job.name}: a pack has one {key}, but it is {own!r} here and {common!r} "
                    f"for {first.name}; learn them by commands of their own"
                )
        trainer = job.config.trainer
        if job.config.model_lr:
            raise UserError(
                f"{job.name}: model_lr trains the model that a pack shares; set it to 0, or "
                "learn this concept by a command of its own"
            )
        if job.config.compute.compiled or job.config.compute.cuda_graphs:
            raise UserError(
                f"{job.name}: a pack changes its size and would be compiled anew each time; set "
                "compute.compiled and compute.cuda_graphs to false, or learn it by a command of its own"
            )
        if trainer.processes != 1:
            raise UserError(f"{job.name}: a pack trains on one device, not on {trainer.processes}")


def write_summary(results: Sequence[Result], out: Path) -> None:
    """Write ``concepts.json``, and ``embeddings.safetensors`` with every word that was learned."""
    rows = [{**asdict(result), "path": os.path.relpath(result.path, out)} for result in results]
    write_json(out / SUMMARY, {"format": 1, "written": now(), "concepts": redacted_values(rows)})
    words = [
        word
        for result in results
        if result.status != "failed"
        for word in load_embeddings(result.path / "embeddings.safetensors")
    ]
    if words:
        save_embeddings(words, out / "embeddings.safetensors")
