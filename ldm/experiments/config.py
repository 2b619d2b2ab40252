"""The YAML file of an experiment: what is learned (``base``, ``grid``) and how it is judged (``score``)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from ldm.config import load_yaml, merge, resolve
from ldm.errors import UserError
from ldm.evaluation.word import EDIT_PROMPTS, RECONSTRUCTION_PROMPT
from ldm.ranges import Positive, Seed

Protocol = Literal["paper", "dreambench"]


@dataclass(frozen=True)
class GridConfig:
    """The cells: every concept with every setup and every seed.

    Attributes:
        concepts: name -> folder of pictures, or a mapping (``ldm.experiments.concepts``); the names ``emoji``
            and ``dreambench`` stand for many concepts.
        setups: name -> settings of an inversion, which win over ``base``, and ``draw``
            (``ldm.experiments.draws``), which says how pictures are made.
        seeds: of the training.
    """

    concepts: dict
    setups: dict
    seeds: tuple[Seed, ...] = (0,)


@dataclass(frozen=True)
class ScoreConfig:
    """What is drawn with a learned word, and who judges it.

    Attributes:
        protocol: ``paper`` measures reconstruction by the ``neutral`` prompts and editability by ``prompts``
            (Gal et al. 2022, section 4.7); ``dreambench`` measures CLIP-I, CLIP-T and DINO-I over all
            ``prompts`` (Ruiz et al. 2023).
        scorers: Names of scorers; all of them score the same pictures.
        neutral: Prompts that reconstruction is measured with, ``{}`` for the word.
        prompts: Prompts that editability is measured with. ``null`` is those of the data set, else the usual
            four.
        together: Prompts of concepts that are two others together, ``{0}`` and ``{1}`` for their words. How
            well both are seen in one picture is measured.
        attribute: Texts such as "a red car" and "a blue car". Each picture of the neutral prompts counts for
            the nearest text; the share of each text and how even they are is measured.
        backgrounds: Also draw one picture on each named background, and measure how many obey.
        samples: Pictures of each prompt.
        retrieval: Also measure whether a picture is recognised among the concepts of the grid.
        seed: Seed of the noise. A concept's picture of a prompt starts from the same noise in every setup.
        steps: Steps of the sampler; ``null`` is the model's own number.
        sampler: ``ddim``, ``plms`` or ``dpm++``; ``null`` is the model's own.
        scale: Guidance scale; ``null`` is the model's own.
        precision: What is computed in: ``bf16``, ``16``, ``32``, or ``model``, as the model is loaded.
    """

    protocol: Protocol = "paper"
    scorers: tuple[str, ...] = ("emoji-clip",)
    neutral: tuple[str, ...] = (RECONSTRUCTION_PROMPT,)
    prompts: tuple[str, ...] | None = None
    together: tuple[str, ...] = ("a photo of {0} and {1}", "a photo of {0} next to {1}")
    attribute: tuple[str, ...] = ()
    backgrounds: bool = False
    samples: Positive = 4
    retrieval: bool = True
    seed: Seed = 0
    steps: Positive | None = None
    sampler: str | None = None
    scale: float | None = None
    precision: Literal["model", "bf16", "16", "32"] = "model"

    def edits(self, of_concept: Sequence[str] | None) -> tuple[str, ...]:
        """The prompts of a concept: these, else its data set's own, else the usual ones."""
        if self.prompts is not None:
            return self.prompts
        return tuple(of_concept) if of_concept is not None else EDIT_PROMPTS


@dataclass(frozen=True)
class Expectation:
    """An ordering that is expected, printed as held, not held or undecided.

    Attributes:
        metric: such as ``reconstruction (paper)``.
        order: setups, the one with the highest figure first.
        name: what is expected, in a sentence.
        scorer: whose figure it is; needed where several give the metric.
    """

    metric: str
    order: tuple[str, ...]
    scorer: str | None = None
    name: str = ""


@dataclass(frozen=True)
class ExperimentConfig:
    """An experiment.

    Attributes:
        grid: Sections ``concepts``, ``setups`` and ``seeds``, of which every combination is a cell.
        base: Settings of an inversion that all cells have; short names are possible.
        score: What is drawn with each word, and how it is scored.
        title: Title of the report.
        baseline: The setup that the others are compared with; ``null`` is the first one.
        expect: Orders of setups that are expected, such as ``{metric: CLIP-T, order: a > b}``.
        pack: Most cells that learn in one batch.
    """

    grid: GridConfig
    base: dict = field(default_factory=dict)
    score: ScoreConfig = field(default_factory=ScoreConfig)
    title: str = ""
    baseline: str | None = None
    expect: tuple[Expectation, ...] = ()
    pack: Positive = 16

    @property
    def compared_with(self) -> str:
        """The baseline's name."""
        return self.baseline or next(iter(self.grid.setups))


def read(path: Path, preset: str | None = None, overrides: Sequence[str] = ()) -> ExperimentConfig:
    """The experiment in a YAML file.

    Args:
        path: the file.
        preset: one of its ``presets:``, whose keys win over the file's own.
        overrides: ``key.sub=value``, which win over all.

    Raises:
        UserError: no such file or preset, an unknown key, a wrong value, or settings that do not go together.
    """
    values = load_yaml([path])
    presets = values.pop("presets", None) or {}
    if preset is not None:
        if not isinstance(presets, Mapping) or not isinstance(presets.get(preset), Mapping):
            known = ", ".join(map(str, presets)) if isinstance(presets, Mapping) else ""
            raise UserError(f"{path} has no preset {preset!r}; it has {known or 'none'}")
        values = merge(values, presets[preset])
    values = merge(values, load_yaml([], overrides))
    try:
        return parse(values)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def parse(values: dict[str, Any]) -> ExperimentConfig:
    """The experiment of a mapping, as its YAML file has it.

    Raises:
        UserError: an unknown key, a wrong value, or settings that do not go together.
    """
    config = resolve(ExperimentConfig, _with_texts(values))
    _check(config)
    return config


def _with_texts(values: dict[str, Any]) -> dict[str, Any]:
    """Names of setups and concepts as text (YAML reads ``8:`` as a number), ``order: a > b`` as a list.

    Setups and concepts that are ``false`` are left out: that is how a preset drops one of the file's.
    """
    values = dict(values)
    grid = values.get("grid")
    if isinstance(grid, Mapping):
        named = {
            key: {str(name): value for name, value in grid[key].items() if value is not False}
            for key in ("concepts", "setups")
            if isinstance(grid.get(key), Mapping)
        }
        values["grid"] = {**grid, **named}
    expect = values.get("expect")
    if isinstance(expect, Sequence) and not isinstance(expect, str):
        values["expect"] = [_with_order(one) for one in expect]
    return values


def _with_order(one: Any) -> Any:
    if isinstance(one, Mapping) and isinstance(one.get("order"), str):
        return {**one, "order": [name.strip() for name in one["order"].split(">")]}
    return one


def _check(config: ExperimentConfig) -> None:
    """Refuse what would only be found after hours."""
    grid, score = config.grid, config.score
    for what, given in (("concepts", grid.concepts), ("setups", grid.setups), ("seeds", grid.seeds)):
        if not given:
            raise UserError(f"grid.{what} is empty; give at least one")
    for name, setup in grid.setups.items():
        if setup is not None and not isinstance(setup, Mapping):
            raise UserError(f"the setup {name!r} is {setup!r}; give a mapping of settings, or nothing")
    for prompt in score.together:
        if "{0}" not in prompt or "{1}" not in prompt:
            raise UserError(f"the prompt {prompt!r} of score.together needs {{0}} and {{1}}, the two words")
    if len(score.attribute) == 1:
        raise UserError("score.attribute needs two texts or more, such as a red car and a blue car")
    if len(set(grid.seeds)) < len(grid.seeds):
        raise UserError("grid.seeds has a seed twice; give every one once")
    if not score.scorers:
        raise UserError("score.scorers is empty; give at least one, such as emoji-clip")
    if score.protocol == "paper" and not score.neutral:
        raise UserError("score.neutral is empty: reconstruction needs a prompt, such as a photo of {}")
    for prompt in (*score.neutral, *(score.prompts or ())):
        if "{}" not in prompt:
            raise UserError(f"the prompt {prompt!r} has no {{}}, which stands for the word")
    names = [config.compared_with, *(name for one in config.expect for name in one.order)]
    for name in names:
        if name not in grid.setups:
            raise UserError(f"there is no setup {name!r}; there are {', '.join(grid.setups)}")
    for one in config.expect:
        if len(one.order) < 2:
            raise UserError(f"the expected order of {one.metric!r} needs two setups or more, such as a > b")
