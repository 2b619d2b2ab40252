"""From the YAML file of an experiment to its cells, and which of them are learned together."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
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
    how = {"steps": config.score.steps, "sampler": config.score.sampler, "scale": config.score.scale}
    sampling = Sampling.of(model, **how)
    learned_from = {concept.name: concept.hashes() for concept in concepts}
    references = {concept.name: concept.reference_hashes() for concept in concepts}
    judged = {name: identity.as_dict() for name, identity in scorers.items()}
    prints, cells, inversions = dict[str, str](), list[Cell](), dict[str, InversionConfig]()
    for seed in config.grid.seeds:
        for setup, settings in config.grid.setups.items():
            for concept in concepts:
                try:
                    inversion = _inversion(base, settings or {}, concept, seed)
                except UserError as error:
                    raise UserError(f"{concept.name}/{setup}/{seed}: {error}") from None
                source = _source(inversion.model, inversion.checkpoint)
                if source not in prints:
                    loaded = base_model(inversion.model, inversion.checkpoint, inversion.strict)
                    prints[source] = loaded.fingerprint()
                noise = noise_seed(config.score, concept.name, seed)
                album = shots(config.score, concept)
                wanted = [(shot.index, shot.prompt) for shot in album]
                run_key = _hash(_learned(inversion), prints[source], learned_from[concept.name])
                draw_key = _hash(run_key, wanted, noise, asdict(sampling))
                gallery = references if config.score.retrieval else references[concept.name]
                kinds = [(shot.kind, shot.text, shot.colour) for shot in album]
                score_key = _hash(draw_key, config.score.protocol, kinds, gallery, concept.kind)
                key = _hash(score_key, judged)
                steps, a_step = inversion.trainer.max_steps, _pictures_a_step(inversion)
                cell = Cell(
                    concept.name, setup, seed, run_key, draw_key, score_key, key, noise, steps, a_step
                )
                cells.append(cell)
                inversions[cell.name] = inversion
    name = base.get("model", "emoji")
    return Plan(
        config,
        out,
        {concept.name: concept for concept in concepts},
        tuple(cells),
        scorers,
        tuple(dict.fromkeys(prints.values())),
        Path(name).name if isinstance(name, str) else "model",
        sampling,
        inversions,
    )


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

    The groups depend on ``cells`` alone, not on what has been done, so that a command that is given again
    puts every cell beside the same others: sums in floating point depend on that.
    """
    alone: list[tuple[Cell, ...]] = []
    shared: dict[str, list[Cell]] = {}
    for cell in cells:
        key = _pack_key(cell, plan.inversions[cell.name])
        if key is None:
            alone.append((cell,))
        else:
            shared.setdefault(key, []).append(cell)
    packs: list[tuple[Cell, ...]] = []
    for members in shared.values():
        members.sort(key=lambda cell: cell.steps)  # those of a pack end together
        count = -(-len(members) // plan.config.pack)
        size, more = divmod(len(members), count)
        ends = [(i + 1) * size + min(i + 1, more) for i in range(count)]
        packs += [tuple(members[a:b]) for a, b in zip([0, *ends], ends, strict=False)]
    return packs + alone


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
