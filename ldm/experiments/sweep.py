"""W&B's sweep files without W&B: read, turned into combinations of settings, and learned.

The ``parameters``, ``method``, ``metric``, ``name`` and ``run_cap`` mean what they mean to W&B's own agent.
Its ``program`` and ``command`` are W&B's alone: nothing that a file names is run.
"""

from __future__ import annotations

import itertools
import math
import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ldm import yaml_text
from ldm.config import unknown_key
from ldm.errors import UserError
from ldm.experiments.cells import base_model
from ldm.experiments.work import learn_jobs
from ldm.inversion.config import InversionConfig, settle
from ldm.inversion.many.jobs import Job
from ldm.io.runs import slug
from ldm.io.tables import write_csv
from ldm.paths import found
from ldm.report.runs import read_run, scalars
from ldm.shorthand import spelled

#: keys of W&B's file; what only W&B's own agent needs is accepted and not used
KEYS = ("name", "method", "metric", "parameters", "run_cap")
OF_WANDB = ("program", "command", "project", "entity", "description")
#: runs of a random sweep whose file has no ``run_cap``
USUAL_RUNS = 10
#: combinations that a grid may have
MOST = 10_000
TABLE = "sweep.csv"


@dataclass(frozen=True)
class Sweep:
    """A sweep file.

    Attributes:
        name: Of the group that its runs form.
        method: ``grid`` or ``random``.
        parameters: Dotted setting -> how its values are chosen, in W&B's words.
        metric: Scalar of a run's log that runs are compared by.
        lower_is_better: What the metric's ``goal`` says.
        runs: At most so many; ``None`` is all of a grid.
    """

    name: str
    method: str
    parameters: Mapping[str, Mapping[str, Any]]
    metric: str = "fixed_loss"
    lower_is_better: bool = True
    runs: int | None = None

    def combinations(self, seed: int = 0) -> list[dict[str, Any]]:
        """Dotted setting -> value, of every run; those of a random sweep depend on ``seed`` and nothing else.

        Raises:
            UserError: a grid over a range that has no end.
        """
        if self.method == "grid":
            axes = [list(_grid(name, spec)) for name, spec in self.parameters.items()]
            if math.prod(map(len, axes)) > MOST:
                raise UserError(
                    f"the sweep {self.name} has more than {MOST} combinations; use method: random"
                )
            rows = itertools.product(*axes)
            every = [dict(zip(self.parameters, row, strict=True)) for row in rows]
            return every[: self.runs]
        rng = random.Random(seed)
        return [
            {name: _drawn(name, spec, rng) for name, spec in self.parameters.items()}
            for _ in range(self.runs or USUAL_RUNS)
        ]


def read(path: Path) -> Sweep:
    """A sweep in W&B's YAML form.

    Raises:
        UserError: no such file, an unknown key, or a method that needs W&B's server.
    """
    values = yaml_text.read(found(path))
    try:
        return _sweep(values, path.stem)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None


def _sweep(values: Mapping[str, Any], stem: str) -> Sweep:
    for key in values:
        if key == "early_terminate":
            raise UserError("early_terminate needs W&B's server; leave it out, and set stop.patience instead")
        if key not in (*KEYS, *OF_WANDB):
            raise unknown_key(str(key), KEYS, "")
    method = values.get("method")
    if method == "bayes":
        raise UserError("method bayes needs W&B's server (wandb sweep); use grid or random here")
    if method not in ("grid", "random"):
        raise UserError(f"method is {method!r}; use grid or random")
    parameters = dict(_dotted(values.get("parameters"), ""))
    if not parameters:
        raise UserError("parameters is empty; give at least one setting with its values")
    metric = values.get("metric") or {}
    if not isinstance(metric, Mapping) or metric.get("goal", "minimize") not in ("minimize", "maximize"):
        raise UserError(f"metric is {metric!r}; give a name, and a goal: minimize or maximize")
    cap = values.get("run_cap")
    if cap is not None and (not isinstance(cap, int) or isinstance(cap, bool) or cap < 1):
        raise UserError(f"run_cap is {cap!r}; give a number of runs")
    lower = metric.get("goal", "minimize") == "minimize"
    name = str(metric.get("name", "fixed_loss"))
    return Sweep(str(values.get("name", stem)), method, parameters, name, lower, cap)


def _dotted(values: Any, before: str) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Parameters by dotted name; W&B writes nested ones as ``optim: {parameters: {lr: ...}}``."""
    if not isinstance(values, Mapping):
        raise UserError(f"parameters{before and ' of ' + before.rstrip('.')} is {values!r}; give a mapping")
    for name, spec in values.items():
        if not isinstance(spec, Mapping):
            raise UserError(f"the parameter {before}{name} is {spec!r}; give value, values, or min and max")
        if "parameters" in spec:
            yield from _dotted(spec["parameters"], f"{before}{name}.")
        else:
            yield f"{before}{name}", spec


def _choices(name: str, spec: Mapping[str, Any]) -> list[Any] | None:
    """The values of a parameter that lists them; ``None`` of a range."""
    if "value" in spec:
        return [spec["value"]]
    if "values" in spec:
        if not isinstance(spec["values"], Sequence) or isinstance(spec["values"], str) or not spec["values"]:
            raise UserError(f"the values of {name} are {spec['values']!r}; give a list")
        return list(spec["values"])
    return None


def _kind(name: str, spec: Mapping[str, Any]) -> tuple[str, float, float]:
    """Distribution of a range, and its two numbers."""
    normal = spec.get("distribution") in ("normal", "q_normal")
    numbers = [spec.get(key, 0 if key == "mu" else 1 if key == "sigma" else None)
               for key in (("mu", "sigma") if normal else ("min", "max"))]  # fmt: skip
    if not all(isinstance(n, int | float) and not isinstance(n, bool) for n in numbers):
        raise UserError(f"the parameter {name} needs value, values, or min and max as numbers")
    a, b = numbers
    whole = isinstance(a, int) and isinstance(b, int)
    kind = spec.get("distribution", "int_uniform" if whole else "uniform")
    if not normal and a > b:
        raise UserError(f"the parameter {name} has a min above its max")
    if kind.startswith("log_uniform_values") and a <= 0:
        raise UserError(f"the parameter {name} is {kind} and needs a min above 0")
    return kind, a, b


def _grid(name: str, spec: Mapping[str, Any]) -> Iterator[Any]:
    listed = _choices(name, spec)
    if listed is not None:
        yield from listed
        return
    kind, low, high = _kind(name, spec)
    if kind != "int_uniform":
        raise UserError(f"a grid needs the values of {name} as a list; with a range, use method: random")
    if high - low >= MOST:
        raise UserError(f"the parameter {name} has more than {MOST} values; use method: random")
    yield from range(int(low), int(high) + 1)


def _drawn(name: str, spec: Mapping[str, Any], rng: random.Random) -> Any:
    listed = _choices(name, spec)
    if listed is not None:
        weights = spec.get("probabilities")
        if weights is not None and (not isinstance(weights, list) or len(weights) != len(listed)):
            raise UserError(f"the parameter {name} needs as many probabilities as values")
        return rng.choices(listed, weights)[0]
    kind, a, b = _kind(name, spec)
    draws = {
        "int_uniform": lambda: rng.randint(int(a), int(b)),
        "uniform": lambda: rng.uniform(a, b),
        "q_uniform": lambda: rng.uniform(a, b),
        "log_uniform": lambda: math.exp(rng.uniform(a, b)),
        "log_uniform_values": lambda: math.exp(rng.uniform(math.log(a), math.log(b))),
        "q_log_uniform_values": lambda: math.exp(rng.uniform(math.log(a), math.log(b))),
        "normal": lambda: rng.gauss(a, b),
        "q_normal": lambda: rng.gauss(a, b),
    }
    if kind not in draws:
        raise UserError(f"the distribution {kind!r} of {name} is unknown; use one of {', '.join(draws)}")
    drawn = draws[kind]()
    if not kind.startswith("q_"):
        return drawn
    q = spec.get("q", 1)
    return round(drawn / q) * q


def jobs(sweep: Sweep, settings: Sequence[Mapping[str, Any]], seed: int = 0) -> list[Job]:
    """A run for each combination: its folder's name and its settings.

    Args:
        settings: layers that all runs have, as of ``settle``; the sweep's values win over them.
        seed: of a random sweep.

    Raises:
        UserError: a setting that no inversion has, or a value that it does not take.
    """
    made = []
    rows = sweep.combinations(seed)
    for number, row in enumerate(rows):
        said = slug("_".join(f"{key.rpartition('.')[2]}-{value}" for key, value in row.items()), 80)
        name = f"{number:0{len(str(len(rows) - 1))}d}_{said}"
        made.append(Job(name, _labelled(settle(*settings, spelled(row)), sweep.name)))
    return made


def _labelled(config: InversionConfig, name: str) -> InversionConfig:
    """With the group of the sweep; the CSV log is there, for the table."""
    log = config.logging
    loggers = log.loggers if "csv" in log.loggers else ("csv", *log.loggers)
    group, job_type = log.group or name, log.job_type or "sweep"
    return replace(config, logging=replace(log, loggers=loggers, group=group, job_type=job_type))


def run(
    sweep: Sweep, todo: Sequence[Job], out: Path, *, seed: int = 0, progress: bool = True
) -> list[dict[str, Any]]:
    """Learn every combination in a folder of ``out``; what is finished is kept, so it can be repeated.

    Returns:
        A row for each: ``run``, its settings, the metric, ``steps``, ``seconds`` and ``error``; the best one
        first. They are in ``sweep.csv`` too.
    """
    first = todo[0].config
    model = base_model(first.model, first.checkpoint, first.strict)
    errors = learn_jobs(model, todo, out, progress=progress)
    rows = []
    for job, values in zip(todo, sweep.combinations(seed), strict=True):
        of_run = read_run(out / job.name)
        value = of_run.loss if sweep.metric == "fixed_loss" else last_value(out / job.name, sweep.metric)
        row = {"run": job.name, **values, sweep.metric: value}
        rows.append({**row, "steps": of_run.step, "seconds": of_run.seconds, "error": errors.get(job.name)})
    sign = 1 if sweep.lower_is_better else -1
    rows.sort(key=lambda row: math.inf if row[sweep.metric] is None else sign * row[sweep.metric])
    write_csv(rows, out / TABLE)
    return rows


def last_value(run: Path, name: str) -> float | None:
    """The last value of a scalar in a run's CSV log; ``None`` if it never was logged."""
    values = [row[name] for _, row in scalars(run) if name in row]
    return values[-1] if values else None
