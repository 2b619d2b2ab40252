"""From the YAML file of an experiment to its cells, and which of them are learned together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import lru_cache
from operator import attrgetter
from pathlib import Path
from typing import Any

from ldm.backbone import loading
from ldm.backbone.model import LatentDiffusion
from ldm.config import to_plain
from ldm.errors import UserError
from ldm.evaluation.scorers import Identity
from ldm.experiments.concepts import GridConcept, collect
from ldm.experiments.config import ExperimentConfig
from ldm.experiments.draws import called, of_setup
from ldm.experiments.plan import Cell, Plan
from ldm.experiments.shots import noise_seed, shots
from ldm.inversion.config import InversionConfig, settle
from ldm.inversion.many.jobs import SHARED, Job, check_together
from ldm.io.atomic import file_sha256
from ldm.sampling.sample import Sampling
from ldm.shorthand import spelled

#: settings that change where things are and what is shown of them, and nothing of what is learned; the model,
#: the pictures and a given start are in the key by their hashes
_ELSEWHERE = ("model", "checkpoint", "images", "init_embedding", "logging", "formats", "show")
#: pictures of a run's own report are left out unless an experiment asks for them
_QUIET = {"show": {"samples_per_prompt": 0}, "trainer": {"image_every": 0}, "logging": {"loggers": ["csv"]}}


def make_plan(config: ExperimentConfig, out: Path, scorers: Mapping[str, Identity]) -> Plan:
    """Resolve every cell of an experiment; base models are loaded to know which they are.

    Args:
        out: the experiment's folder.
        scorers: name -> identity, of ``score.scorers``.

    Raises:
        UserError: a setting that no inversion takes, or pictures that cannot be used.
    """
    base = spelled(config.base)
    model = base_model(base.get("model", "emoji"), base.get("checkpoint"), base.get("strict", True))
    concepts = collect(config.grid.concepts, out, model.image_size)
    score = config.score
    sampling = Sampling.of(
        model, steps=score.steps, sampler=score.sampler, scale=score.scale, precision=score.precision
    )
    judged = {name: identity.as_dict() for name, identity in scorers.items()}
    planner = _Planner(config, config.title or out.name, base, concepts, sampling, judged)
    for seed in config.grid.seeds:
        for setup in config.grid.setups:
            for concept in concepts:
                try:
                    planner.add(concept, setup, seed)
                except UserError as error:
                    raise UserError(f"{concept.name}/{setup}/{seed}: {error}") from None
    name = base.get("model", "emoji")
    return Plan(
        config,
        out,
        {concept.name: concept for concept in concepts},
        tuple(planner.cells),
        scorers,
        tuple(dict.fromkeys(planner.prints.values())),
        Path(name).name if isinstance(name, str) else "model",
        sampling,
        planner.inversions,
    )


class _Planner:
    """Makes the cells of an experiment, one after the other.

    Args:
        config: the experiment.
        title: its name on dashboards.
        base: its ``base``, by full names.
        concepts: of the grid; those that are others together come after them.
        sampling: how pictures are drawn.
        judged: scorers' identities by name.
    """

    def __init__(
        self,
        config: ExperimentConfig,
        title: str,
        base: Mapping[str, Any],
        concepts: Sequence[GridConcept],
        sampling: Sampling,
        judged: Mapping[str, Any],
    ) -> None:
        self.title = title
        self.config, self.base, self.sampling, self.judged = config, base, sampling, judged
        self.cells: list[Cell] = []
        self.inversions: dict[str, InversionConfig] = {}
        self.prints: dict[str, str] = {}
        self._concepts = {concept.name: concept for concept in concepts}
        self._learned_from = {concept.name: concept.hashes() for concept in concepts}
        self._references = {concept.name: concept.reference_hashes() for concept in concepts}
        self._runs: dict[tuple[str, int, str], str] = {}  # (concept, seed, key of what is learned) -> folder
        self._words: dict[tuple[str, str, int], tuple[str, str]] = {}  # a cell -> its key and folder

    def add(self, concept: GridConcept, setup: str, seed: int) -> None:
        """Make the cell of a concept, a setup and a seed.

        Raises:
            UserError: settings that no inversion takes, or a text that the concept does not have.
        """
        score = self.config.score
        settings, draw = of_setup(setup, self.config.grid.setups[setup])
        members = [self._concepts[name] for name in concept.members] or [concept]
        inversion = _inversion(self.base, settings, concept, seed)
        inversion = _labelled(inversion, self.title, concept.name, setup)
        if concept.members and inversion.model_lr:
            raise UserError("model_lr tunes a model for one concept; leave out the concepts together")
        base_print = self._print(inversion)
        learns = not draw.reference and not concept.members
        if draw.reference:
            pictures = [self._learned_from[member.name] for member in members]
            run_key = _hash("no word", called(draw, members), base_print, pictures)
        elif concept.members:
            run_key = _hash([self._words[member.name, setup, seed][0] for member in members])
        else:
            run_key = _hash(_learned(inversion), base_print, self._learned_from[concept.name])
        noise, album = noise_seed(score, concept.name, seed), shots(score, concept)
        how = draw.identity(members[0])
        wanted = [(shot.index, shot.prompt) for shot in album]
        draw_key = _hash(run_key, wanted, noise, asdict(self.sampling), *([how] if how else []))
        kinds = [(shot.kind, shot.text, shot.colour) for shot in album]
        more = [list(score.attribute)] if score.attribute else []
        score_key = _hash(draw_key, score.protocol, kinds, self._compared_with(concept), concept.kind, *more)
        cell = Cell(
            concept.name,
            setup,
            seed,
            run_key,
            draw_key,
            score_key,
            _hash(score_key, self.judged),
            noise,
            inversion.trainer.max_steps if learns else 0,
            _pictures_a_step(inversion) if learns else 0,
            (),
        )
        if learns:
            folder = self._runs.setdefault((concept.name, seed, run_key), cell.name)
            self._words[concept.name, setup, seed] = run_key, folder
            cell = replace(cell, runs=(folder,))
        elif not draw.reference:
            cell = replace(cell, runs=tuple(self._words[m.name, setup, seed][1] for m in members))
        self.cells.append(cell)
        self.inversions[cell.name] = inversion

    def _print(self, config: InversionConfig) -> str:
        """The base model's fingerprint."""
        source = _source(config.model, config.checkpoint)
        if source not in self.prints:
            model = base_model(config.model, config.checkpoint, config.strict)
            self.prints[source] = model.fingerprint()
        return self.prints[source]

    def _compared_with(self, concept: GridConcept) -> Any:
        """Hashes of the pictures that samples are compared with."""
        if concept.members:
            return {name: self._references[name] for name in concept.members}
        if not self.config.score.retrieval:
            return self._references[concept.name]
        return {name: found for name, found in self._references.items() if not self._concepts[name].members}


def base_model(model: Any, checkpoint: str | None, strict: bool = True) -> LatentDiffusion:
    """A base model, kept for the next cell."""
    return _loaded(_source(model, checkpoint), strict)


@lru_cache(maxsize=1)
def _loaded(source: str, strict: bool) -> LatentDiffusion:
    model, checkpoint = json.loads(source)
    return loading.load(model, checkpoint, strict=strict)


def _source(model: Any, checkpoint: str | None) -> str:
    return json.dumps([model, checkpoint], sort_keys=True, default=str)


def groups(plan: Plan, cells: Sequence[Cell]) -> list[tuple[Cell, ...]]:
    """Cells that are learned in one go: packs, and single ones that no pack can hold.

    Cells that share a run are in one group. Those that learn nothing themselves (references, and concepts
    together) come last, each in a group of its own. The groups depend on ``cells`` alone, not on what has
    been done, so that a command that is given again puts every cell beside the same others: sums in
    floating point depend on that.
    """
    by_run: dict[str, list[Cell]] = {}
    rest: list[tuple[Cell, ...]] = []
    for cell in cells:
        if cell.steps:
            by_run.setdefault(cell.runs[0], []).append(cell)
        else:
            rest.append((cell,))
    alone: list[tuple[Cell, ...]] = []
    shared: dict[str, list[Cell]] = {}
    for first, *others in by_run.values():
        key = _pack_key(first, plan.inversions[first.name])
        if key is None:
            alone.append((first, *others))
        else:
            shared.setdefault(key, []).append(first)
    packs: list[tuple[Cell, ...]] = []
    for members in shared.values():
        members.sort(key=lambda cell: cell.steps)  # those of a pack end together
        count = -(-len(members) // plan.config.pack)
        size, more = divmod(len(members), count)
        ends = [(i + 1) * size + min(i + 1, more) for i in range(count)]
        for a, b in zip([0, *ends], ends, strict=False):
            packs.append(tuple(cell for first in members[a:b] for cell in by_run[first.runs[0]]))
    return packs + alone + rest


def _pack_key(cell: Cell, config: InversionConfig) -> str | None:
    """What cells of one pack have in common; ``None`` if no pack can hold this one."""
    try:
        check_together([Job(cell.name, config)])
    except UserError:
        return None
    return _hash([attrgetter(key)(config) for key in SHARED])


def _inversion(
    base: Mapping[str, Any], setup: Mapping[str, Any], concept: GridConcept, seed: int
) -> InversionConfig:
    setup = spelled(setup)
    for key in ("images", "placeholder", "seed"):
        if key in base or key in setup:
            raise UserError(f"{key} is the grid's to choose; leave it out of base and setups")
    model = setup.get("model", base.get("model", "emoji"))
    own = {"images": str(concept.images), "placeholder": concept.word, "seed": seed, "model": model}
    return settle(loading.inversion_defaults(model), _QUIET, concept.settings, base, setup, own)


def _labelled(config: InversionConfig, experiment: str, concept: str, setup: str) -> InversionConfig:
    """With what dashboards group the cells of an experiment by, unless the settings say it."""
    log = config.logging
    return replace(
        config,
        logging=replace(
            log,
            group=log.group or experiment,
            job_type=log.job_type or setup,
            tags=log.tags or (concept, setup, f"seed {config.seed}"),
        ),
    )


def _learned(config: InversionConfig) -> dict[str, Any]:
    """The settings that say what is learned."""
    start = file_sha256(config.init_embedding) if config.init_embedding else None
    kept = {key: value for key, value in to_plain(config).items() if key not in _ELSEWHERE}
    return {**kept, "init_embedding": start}


def _pictures_a_step(config: InversionConfig) -> int:
    return config.batch_size * config.trainer.accumulate * config.trainer.processes


def _hash(*parts: object) -> str:
    text = json.dumps(parts, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()
