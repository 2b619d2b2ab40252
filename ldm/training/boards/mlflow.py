"""MLflow: settings as parameters, pictures by prompt and step, tables and the embedding as artifacts."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ldm.config import dump_yaml
from ldm.io.runs import slug
from ldm.training.boards.base import About, Board, Picture, Shot, flat
from ldm.training.mlflow_run import key

#: characters of a parameter that MLflow keeps
LONGEST = 500


class MLflowBoard(Board):
    """Of ``MLflowLog``."""

    @property
    def client(self) -> Any:
        """MLflow's client."""
        return self.logger.experiment

    @property
    def id(self) -> str:
        """The run's id."""
        return str(self.logger.run_id)

    def begin(self, about: About) -> None:
        from mlflow.entities import Param

        known = self.client.get_run(self.id).data.params  # for ever: of a run that goes on, the first ones
        wanted = {key(name): value for name, value in flat(about.config).items()}
        new = [Param(n, str(v)[:LONGEST]) for n, v in wanted.items() if n not in known]
        for first in range(0, len(new), 100):  # as many as it takes in one call
            self.client.log_batch(self.id, params=new[first : first + 100])
        self.client.set_tag(self.id, "base_model", about.base_model)
        self.client.set_tag(self.id, "machine", about.machine)
        for package, version in about.versions.items():
            self.client.set_tag(self.id, f"version.{key(package)}", version)
        self.client.log_text(self.id, dump_yaml(dict(about.config)), "config.yaml")
        self.client.log_dict(self.id, dict(about.pictures), "pictures.json")

    def pictures(self, shots: Sequence[Shot]) -> None:
        for shot in shots:
            picture = shot.picture.convert("RGB")
            self.client.log_image(self.id, picture, key=slug(shot.prompt), step=shot.step)

    def words(self, nearest: Mapping[str, Sequence[Sequence[Any]]], step: int) -> None:
        rows = [
            {"learned": name, "word": word, "cosine": cosine}
            for name, words in nearest.items()
            for word, cosine in words
        ]
        self.table(f"nearest words/step {step:06d}", rows, step)

    def table(self, name: str, rows: Sequence[Mapping[str, Any]], step: int) -> None:
        """A CSV file; its pictures lie beside it."""
        if not rows:
            return
        stream = io.StringIO()
        writer = csv.DictWriter(stream, list(rows[0]))
        writer.writeheader()
        for number, row in enumerate(rows):
            shown = dict(row)
            for column, value in row.items():
                if isinstance(value, Picture):
                    shown[column] = f"{name}/{number:03d}.png"
                    self.client.log_image(self.id, value.convert("RGB"), f"tables/{shown[column]}")
            writer.writerow(shown)
        self.client.log_text(self.id, stream.getvalue(), f"tables/{name}.csv")

    def embedding(self, file: Path, about: About, metadata: Mapping[str, Any]) -> None:
        self.client.log_artifact(self.id, str(file), "embedding")
        facts = {**metadata, "base_model": about.base_model, "pictures_sha256": dict(about.pictures)}
        self.client.log_dict(self.id, facts, "embedding/made-from.json")

    def summary(self, values: Mapping[str, Any]) -> None:
        for name, value in values.items():
            self.client.set_tag(self.id, f"summary.{key(name)}", str(value))
