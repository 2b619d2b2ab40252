"""The cells of an experiment, each named by a hash of all that its figures depend on.

``plan.json`` in the experiment's folder keeps what ``run`` made of the YAML file, so that tables and reports
need neither the model nor the scorers.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from ldm.config import resolve, to_plain
from ldm.errors import UserError
from ldm.evaluation.scorers import Identity
from ldm.experiments import concepts as gallery
from ldm.experiments.concepts import GridConcept
from ldm.experiments.config import ExperimentConfig
from ldm.experiments.draws import DrawConfig, of_setup
from ldm.experiments.shots import Album, shots
from ldm.inversion.config import InversionConfig
from ldm.io.atomic import write_json
from ldm.io.runs import slug
from ldm.io.secrets import redacted_values
from ldm.sampling.sample import Sampling

PLAN = "plan.json"
FORMAT = 1


@dataclass(frozen=True)
class Cell:
    """One concept with one setup and one seed.

    Attributes:
        concept, setup, seed: which.
        run_key: hash of the resolved settings, the pictures and the base model: what is learned.
        draw_key: the same with prompts, noise and sampler: what is drawn.
        score_key: the same with protocol and references: what is measured.
        key: the same with the scorers' identities.
        noise: seed of the pictures' noise.
        steps: optimiser steps.
        pictures_a_step: pictures that a step sees.
        runs: names of the run folders whose words it draws: one, two of concepts together, none of a
            reference. Cells that differ only in how they draw share one.
    """

    concept: str
    setup: str
    seed: int
    run_key: str
    draw_key: str
    score_key: str
    key: str
    noise: int
    steps: int
    pictures_a_step: int
    runs: tuple[str, ...]

    @property
    def title(self) -> str:
        """What ``--only`` is matched with: ``concept/setup/seed``."""
        return f"{self.concept}/{self.setup}/{self.seed}"

    @property
    def name(self) -> str:
        """Of its run folder: readable, and another one for other settings."""
        return f"{slug(self.concept, 24)}_{slug(self.setup, 24)}_{self.seed}_{self.run_key[:8]}"

    @property
    def drawn_name(self) -> str:
        """Of the folder of its pictures."""
        return f"{self.name}_{self.draw_key[:8]}"


@dataclass(frozen=True)
class Plan:
    """What an experiment consists of.

    Attributes:
        config: as read from the YAML file.
        out: the experiment's folder.
        concepts: by name.
        cells: in the order in which they are worked on.
        scorers: name -> identity, of those that the YAML names.
        base_model: fingerprints of the base models.
        model: name of the first one.
        sampling: how pictures are drawn.
        inversions: a cell's name -> its settings; only of a plan that was made from a YAML file.
    """

    config: ExperimentConfig
    out: Path
    concepts: Mapping[str, GridConcept]
    cells: tuple[Cell, ...]
    scorers: Mapping[str, Identity]
    base_model: tuple[str, ...]
    model: str
    sampling: Sampling
    inversions: Mapping[str, InversionConfig] = field(default_factory=dict)

    def runs(self, cell: Cell) -> list[Path]:
        """The run folders of a cell."""
        return [self.out / "runs" / name for name in cell.runs]

    def drawn(self, cell: Cell) -> DrawConfig:
        """How a cell draws."""
        return of_setup(cell.setup, self.config.grid.setups[cell.setup])[1]

    def members(self, cell: Cell) -> list[GridConcept]:
        """The concepts whose words or texts stand in a cell's prompts: one, or two together."""
        concept = self.concepts[cell.concept]
        return [self.concepts[name] for name in concept.members] or [concept]

    def album(self, cell: Cell) -> Album:
        """The pictures of a cell."""
        wanted = tuple(shots(self.config.score, self.concepts[cell.concept]))
        return Album(self.out / "pictures" / cell.drawn_name, wanted, cell.noise, self.sampling, self.model)

    def save(self) -> None:
        """Write ``plan.json``."""
        write_json(
            self.out / PLAN,
            {
                "format": FORMAT,
                "experiment": redacted_values(to_plain(self.config)),
                "concepts": [gallery.as_plain(concept) for concept in self.concepts.values()],
                "scorers": {name: identity.as_dict() for name, identity in self.scorers.items()},
                "base_model": list(self.base_model),
                "model": self.model,
                "sampling": asdict(self.sampling),
                "cells": [asdict(cell) for cell in self.cells],
            },
        )


def load_plan(out: Path) -> Plan:
    """The plan that ``run`` left in the experiment's folder.

    Raises:
        UserError: there is none, or it is broken.
    """
    path = out / PLAN
    if not path.is_file():
        raise UserError(f"{out} holds no experiment yet; give ldm experiment run first, or its --out here")
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
        return Plan(
            config=resolve(ExperimentConfig, values["experiment"]),
            out=out,
            concepts={row["name"]: gallery.from_plain(row) for row in values["concepts"]},
            cells=tuple(Cell(**{**row, "runs": tuple(row["runs"])}) for row in values["cells"]),
            scorers={name: Identity.from_dict(row) for name, row in values["scorers"].items()},
            base_model=tuple(values["base_model"]),
            model=values["model"],
            sampling=Sampling(**values["sampling"]),
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path} is broken; run the experiment again, what is finished is kept") from error


def kept_experiment(config: ExperimentConfig) -> dict[str, Any]:
    """A config as ``plan.json`` keeps it, to compare two."""
    plain: dict[str, Any] = json.loads(json.dumps(redacted_values(to_plain(config))))
    return plain
