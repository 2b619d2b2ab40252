"""Weights & Biases: tables with pictures, and the embedding as an artifact that names what it comes from."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from ldm.training.boards.base import About, Board, Picture, Shot

log = logging.getLogger(__name__)


class WandbBoard(Board):
    """Of Lightning's ``WandbLogger``, whose run has begun."""

    @property
    def run(self) -> Any:
        """The run on W&B."""
        return self.logger.experiment

    def begin(self, about: About) -> None:
        facts = {
            "base_model": about.base_model,
            "pictures_sha256": dict(about.pictures),
            "machine": about.machine,
            "versions": dict(about.versions),
        }
        self.run.config.update({**about.config, **facts}, allow_val_change=True)

    def pictures(self, shots: Sequence[Shot]) -> None:
        import wandb

        by_step: dict[int, dict[str, Any]] = {}
        for shot in shots:
            image = wandb.Image(shot.picture, caption=f"{shot.prompt}, step {shot.step}, seed {shot.seed}")
            by_step.setdefault(shot.step, {}).setdefault(f"pictures/{shot.prompt}", []).append(image)
        for step, images in by_step.items():
            self.scalars(images, step)

    def words(self, nearest: Mapping[str, Sequence[Sequence[Any]]], step: int) -> None:
        rows = [
            {"learned": name, "word": word, "cosine": cosine, "step": step}
            for name, words in nearest.items()
            for word, cosine in words
        ]
        self.table("nearest words", rows, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        import wandb

        if not rows:
            return
        columns: list[Any] = list(rows[0])
        data = [
            [wandb.Image(row[c]) if isinstance(row[c], Picture) else row[c] for c in columns] for row in rows
        ]
        self.scalars({name: wandb.Table(columns=columns, data=data)}, step)

    def embedding(self, file: Path, about: About, metadata: Mapping[str, Any]) -> None:
        """Three artifacts: base model and pictures, by name and digest alone, are used; the word is made."""
        import wandb

        model = wandb.Artifact(
            f"base-model-{about.base_model[:12]}",
            "model",
            description="The frozen model that words are learned on.",
            metadata={"fingerprint": about.base_model, "model": about.model},
        )
        _refer(model, "fingerprint", about.base_model)
        digest = hashlib.sha256("\n".join(about.pictures.values()).encode()).hexdigest()
        pictures = wandb.Artifact(
            f"pictures-{digest[:12]}",
            "dataset",
            description="The pictures that a word was learned from, by name and sha256.",
            metadata={"sha256": dict(about.pictures)},
        )
        for name, sha256 in about.pictures.items():
            _refer(pictures, name, sha256)
        word = wandb.Artifact(
            f"embedding-{self.run.id}",
            "embedding",
            metadata={**metadata, "base_model": about.base_model, "pictures_sha256": dict(about.pictures)},
        )
        word.add_file(str(file), name=file.name)
        for used in (model, pictures):
            self._use(used)
        self.run.log_artifact(word, aliases=["latest", f"step-{metadata.get('step', 0)}"])

    def _use(self, artifact: Any) -> None:
        """Make an artifact an input of the run, offline as well, where ``use_artifact`` itself refuses; it is
        this call that it makes for a new artifact, and `wandb sync` then repeats it."""
        if self.run.settings.mode == "disabled":
            return
        self.run._log_artifact(artifact, aliases=["latest"], is_user_created=True, use_after_commit=True)

    def summary(self, values: Mapping[str, Any]) -> None:
        self.run.summary.update(dict(values))

    def close(self, status: str) -> None:
        self.logger.finalize(status)
        self.run.finish(exit_code=0 if status == "success" else 1)


def _refer(artifact: Any, name: str, sha256: str) -> None:
    """Name a file by its digest; W&B gets neither the file nor the place where it is."""
    artifact.add_reference(f"sha256://{sha256}/{quote(name)}", name=name, checksum=False)
