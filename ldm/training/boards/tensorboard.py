"""TensorBoard: settings on its HPARAMS page, pictures by prompt, words and tables as text."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ldm.training.boards.base import About, Board, Shot, markdown, text

#: scalars that the HPARAMS page shows beside the settings
SHOWN = ("fixed_loss",)


class TensorBoardBoard(Board):
    """Of Lightning's ``TensorBoardLogger``."""

    def begin(self, about: About) -> None:
        settings = about.flat
        self._hparams(settings, SHOWN)
        rows = [{"setting": name, "value": value} for name, value in settings.items()]
        self.logger.experiment.add_text("config", markdown(rows), 0)

    def _hparams(self, settings: Mapping[str, Any], metrics: Sequence[str]) -> None:
        """The settings of a run for the plugin; those of a run that goes on replace the ones before."""
        from torch.utils.tensorboard.summary import hparams

        values = {name: value for name, value in settings.items() if not name.startswith("pictures.")}
        writer = self.logger.experiment._get_file_writer()
        for summary in hparams(values, dict.fromkeys(metrics, 0.0)):
            writer.add_summary(summary)

    def pictures(self, shots: Sequence[Shot]) -> None:
        for shot in shots:
            pixels = np.asarray(shot.picture.convert("RGB"))
            self.logger.experiment.add_image(f"pictures/{shot.prompt}", pixels, shot.step, dataformats="HWC")

    def words(self, nearest: Mapping[str, Sequence[Sequence[Any]]], step: int) -> None:
        for name, words in nearest.items():
            rows = [{"word": word, "cosine": cosine} for word, cosine in words]
            self.logger.experiment.add_text(f"nearest words/{name}", markdown(rows), step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        self.logger.experiment.add_text(name, markdown(rows), step)

    def embedding(self, file: Path, about: About, metadata: Mapping[str, Any]) -> None:
        facts = {"file": str(file), "base model": about.base_model, **metadata}
        facts["pictures"] = json.dumps(about.pictures)
        rows = [{"of the embedding": name, "value": value} for name, value in facts.items()]
        self.logger.experiment.add_text("embedding", markdown(rows), int(metadata.get("step", 0)))

    def summary(self, values: Mapping[str, Any]) -> None:
        rows = [{"result": name, "value": text(value)} for name, value in values.items()]
        self.logger.experiment.add_text("summary", markdown(rows), int(values.get("steps", 0)))
