"""The bench: methods of learning a word, ranked on things that the shipped model never saw.

A method is a preset by name, a YAML file of settings, or a Python file that registers a kind of word. The
bench is an experiment (``ldm.experiments``) whose setups are the methods, with the preset ``paper`` as the
baseline. Its folder remembers every method, so that the next one is ranked among all before it and only its
own cells are worked on.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ldm.backbone import loading
from ldm.config import merge
from ldm.errors import UserError
from ldm.experiments.config import ExperimentConfig, parse
from ldm.inversion.config import settle
from ldm.inversion.presets import read as read_preset
from ldm.io.atomic import file_sha256, write_json
from ldm.paths import expanded
from ldm.shorthand import spelled
from ldm.words.kind import KINDS

BASELINE = "paper"
METHODS = "methods.json"
#: Pictures that a method sees at most while it learns a word: 150 steps of 8.
PICTURES = 1200
RECONSTRUCTION, EDITABILITY = "reconstruction (paper)", "editability (paper)"


@dataclass(frozen=True)
class Method:
    """A method of the bench.

    Attributes:
        given: as it is named on the command line.
        name: in tables; of a file with its content's hash, so that figures of another content are others.
        about: What it is, in one line.
        settings: of an inversion, that it is.
    """

    given: str
    name: str
    about: str
    settings: dict[str, Any]


def method_of(given: str) -> Method:
    """A method by a preset's name, a YAML file, or a Python file that registers a kind of word.

    A Python file may have ``SETTINGS``, a mapping of settings that go with its kind.

    Raises:
        UserError: there is no such preset or file, or the file registers no kind.
    """
    path = expanded(given)
    if path.suffix == ".py":
        if not path.is_file():
            raise UserError(f"there is no file {given}")
        kind, module = _own_kind(path)
        settings = {**getattr(module, "SETTINGS", {}), "word": {"kind": kind}}
        about = (module.__doc__ or "").strip().split("\n")[0]
        return Method(given, _named(path), about, settings)
    preset = read_preset(given)
    return Method(given, _named(path) if path.is_file() else given, preset.about, {"preset": given})


def _named(path: Path) -> str:
    return f"{path.name} {file_sha256(path)[:6]}"


def _own_kind(path: Path) -> tuple[str, Any]:
    """Import a user's file; the kind of word that it registers, and the module."""
    name = f"ldm_own_{file_sha256(path)[:12]}"
    if name not in sys.modules:
        spec = importlib.util.spec_from_file_location(name, path)
        assert spec is not None and spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:
            del sys.modules[name]
            raise UserError(f"{path} cannot be imported: {type(error).__name__}: {error}") from error
    kinds = [kind for kind, word in KINDS.items() if word.__module__ == name]
    if len(kinds) != 1:
        raise UserError(f"{path} registers {len(kinds)} kinds of word; a method of the bench is one kind")
    return kinds[0], sys.modules[name]


@dataclass(frozen=True)
class BenchConfig:
    """What a bench consists of.

    Attributes:
        concepts: how many held-out things are learned.
        seeds: of the training.
        pictures: that a method sees at most while it learns a word; 0: its own number of steps.
        samples: pictures of each prompt.
        data: folder that ``ldm train data`` wrote.
        holdout: file of hex codes that the model never saw.
        model: the base model.
        steps: of the sampler.
    """

    concepts: int = 8
    seeds: tuple[int, ...] = (0,)
    pictures: int = PICTURES
    samples: int = 2
    data: str = "data/emoji"
    holdout: str = "configs/emoji/holdout.txt"
    model: str = "emoji"
    steps: int = 20


def remembered(out: Path) -> list[str]:
    """The methods that the bench's folder knows, as they were given."""
    with suppress(OSError, ValueError):
        return [str(given) for given in json.loads((out / METHODS).read_text(encoding="utf-8"))]
    return []


def remember(out: Path, methods: Sequence[Method]) -> None:
    """Keep the methods for the next call."""
    write_json(out / METHODS, [method.given for method in methods])


def methods_of(given: Sequence[str], out: Path) -> list[Method]:
    """The baseline, the methods that the folder knows, and those that are given; each once.

    Raises:
        UserError: one that is given does not exist.
    """
    found = [method_of(name) for name in dict.fromkeys([BASELINE, *given])]
    known = {method.given for method in found}
    for name in remembered(out):
        if name not in known:
            with suppress(UserError):  # a file that has gone since
                found.append(method_of(name))
    return found


def experiment(bench: BenchConfig, methods: Sequence[Method]) -> ExperimentConfig:
    """The bench as an experiment.

    Raises:
        UserError: settings of a method that no inversion takes.
    """
    values: dict[str, Any] = {
        "title": "Bench: ways of learning a word",
        "base": {"model": bench.model},
        "grid": {
            "concepts": {
                "emoji": {
                    "n": bench.concepts,
                    "seed": 0,
                    "pictures": 5,
                    "references": 5,
                    "data": bench.data,
                    "holdout": bench.holdout,
                }
            },
            "setups": {method.name: _within(method, bench) for method in methods},
            "seeds": list(bench.seeds),
        },
        "baseline": BASELINE,
        "score": {"samples": bench.samples, "steps": bench.steps, "backgrounds": True},
    }
    return parse(values)


def _within(method: Method, bench: BenchConfig) -> dict[str, Any]:
    """The settings of a method, with no more steps than the bench's pictures allow."""
    own = {"images": "", "placeholder": "<a>", "model": bench.model}
    try:
        config = settle(loading.inversion_defaults(bench.model), method.settings, own)
    except UserError as error:
        raise UserError(f"{method.given}: {error}") from None
    if not bench.pictures:
        return method.settings
    settings = spelled(method.settings)
    a_step = config.batch_size * config.trainer.accumulate * config.trainer.processes
    steps = min(config.trainer.max_steps, max(1, bench.pictures // a_step))
    return merge(settings, {"trainer": {"max_steps": steps}})
