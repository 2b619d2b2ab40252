"""The same wish is the same config, and the same vector, whichever way it is said."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

import ldm
from ldm import api
from ldm.cli import official
from ldm.cli.invert import config_of
from ldm.cli.main import build_parser
from ldm.config import dump_yaml, resolve, to_plain
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig, settle
from ldm.inversion.many.concept_list import read_jobs
from ldm.inversion.sections import CaptionsConfig
from ldm.io.embeddings import load_embedding
from ldm.shorthand import OLD, SHORT

pytestmark = pytest.mark.slow

Say = Callable[[str, Any], InversionConfig]
#: full name -> value, of every section and of keys that the model has a value of its own for
WISHES = {
    "optim.weight_decay": 0.01, "optim.lr": 0.002, "optim.schedule": "linear", "trainer.max_steps": 7,
    "trainer.checkpoint_every": 5, "trainer.precision": "bf16-mixed", "batch_size": 3, "num_vectors": 2,
    "show.scale": 7.5, "show.steps": 4, "seed": 5, "init": "dog", "pictures.background": "#ff0000",
    "show.prompts": ["a {} on grass"], "captions.templates": "style",
    "timesteps.lowest": 0.25, "logging.loggers": [],
    "compat": "official", "compat.copies": True, "progressive": [2], "more_words": {"<hat>": "cat"},
}  # fmt: skip


def nest(name: str, value: Any) -> dict[str, Any]:
    for part in reversed(name.split(".")):
        value = {part: value}
    return value


@pytest.fixture
def ways(model_folder, pictures, tmp_path, monkeypatch, capsys) -> dict[str, Say]:
    """How a setting can be given, each a function from its name and value to the config that comes of it."""
    monkeypatch.chdir(tmp_path)
    model = ldm.load(model_folder)
    seen: list[InversionConfig] = []
    monkeypatch.setattr(api, "learn", lambda model, concept, config, **_: seen.append(config))
    common = ["--images", str(pictures), "--name", "<toy>"]

    def from_python(**settings: Any) -> InversionConfig:
        api.invert(model, pictures, "<toy>", **settings)
        return seen.pop()

    def from_command(*words: str) -> InversionConfig:
        return config_of(build_parser().parse_args(["invert", "--model", str(model_folder), *common, *words]))

    def word(name: str, value: Any) -> str:
        return f"{name}={value if isinstance(value, str) else json.dumps(value).replace('NaN', '.nan')}"

    def from_main(file: dict[str, Any], *words: str) -> InversionConfig:
        path = tmp_path / "run.yaml"
        file = {"model": str(model_folder), "images": str(pictures), "placeholder": "<toy>", **file}
        path.write_text(dump_yaml(file))
        capsys.readouterr()
        assert official.main(["--base", str(path), *words]) == 0
        return resolve(InversionConfig, yaml.safe_load(capsys.readouterr().out))

    def from_list(entry: dict[str, Any], **defaults: Any) -> InversionConfig:
        path = tmp_path / "list.yaml"
        concept = {"name": "<toy>", "images": str(pictures), **entry}
        path.write_text(dump_yaml({"defaults": defaults, "concepts": [concept]}))
        (job,) = read_jobs(path, {}, str(model_folder))
        return job.config

    return {
        "python": lambda name, value: from_python(**nest(name, value)),
        "python, dotted": lambda name, value: from_python(**{name: value}),
        "--set": lambda name, value: from_command("--set", word(name, value)),
        "main.py, file": lambda name, value: from_main(nest(name, value)),
        "main.py, dotted in the file": lambda name, value: from_main({name: value}),
        "main.py, word": lambda name, value: from_main({}, word(name, value)),
        "list, entry": lambda name, value: from_list(nest(name, value)),
        "list, dotted": lambda name, value: from_list({name: value}),
        "list, defaults": lambda name, value: from_list({}, **nest(name, value)),
    }


def plain(config: InversionConfig) -> dict[str, Any]:
    """Without what says where model and pictures are."""
    return {k: v for k, v in to_plain(config).items() if k not in ("model", "images")}


def test_the_same_wish_is_the_same_config(ways: dict[str, Say]) -> None:
    for name, value in WISHES.items():
        configs = {way: plain(say(name, value)) for way, say in ways.items()}
        first = configs["python"]
        at: Any = first
        for part in name.split("."):
            at = at[part]
        assert at == value, name
        # of the section that the wish is in, the rest is the model's own
        assert first["trainer"]["log_every"] == 1 and first["optim"]["betas"] == [0.9, 0.999]
        assert name.startswith("optim.") or first["optim"]["lr"] == 0.01
        assert name == "optim.schedule" or first["optim"]["schedule"] == "constant"
        for way, config in configs.items():
            assert config == first, (name, way)


def test_a_short_name_is_the_full_one(ways: dict[str, Say]) -> None:
    for short in SHORT.keys() - {"name", "accelerator"}:
        value = WISHES[SHORT[short]]
        full = plain(ways["python"](SHORT[short], value))
        for way, say in ways.items():
            assert plain(say(short, value)) == full, (short, way)


OLD_VALUES = {
    "prompts": ["a {} on grass"], "samples_per_prompt": 2, "sample_steps": 4, "sample_scale": 7.5,
    "sampler": "plms", "monitor_every": 7, "patience": 3, "min_improvement": 0.1, "allow_untrained": False,
    "fit": "pad", "background": "#ff0000", "interpolation": "lanczos", "flip_p": 0.25, "coarse_class": "cat",
    "per_image_tokens": True,
    "mixing_prob": 0.5, "checkpointing": True, "compiled": True, "cuda_graphs": True,
}  # fmt: skip


@pytest.mark.parametrize("old", OLD)
def test_the_name_of_before_is_the_one_of_now(ways: dict[str, Say], old: str) -> None:
    full = plain(ways["python"](OLD[old], OLD_VALUES[old]))
    section, key = OLD[old].split(".")
    assert full[section][key] == OLD_VALUES[old]
    for way, say in ways.items():
        assert plain(say(old, OLD_VALUES[old])) == full, (old, way)


def test_captions_may_be_whether_there_are_files(ways: dict[str, Say]) -> None:
    for way, say in ways.items():
        assert say("captions", False).captions == CaptionsConfig(templates="plain", files=False), way


MISTAKES: list[tuple[str, Any]] = [
    ("seed", -1), ("seed", 2**32), ("steps", 0), ("steps", -1), ("lr", -1), ("lr", float("nan")),
    ("trainer.accumulate", 0), ("stop.monitor_every", 0), ("trainer.checkpoint_every", 0),
    ("trainer.threads", -1), ("precision", "fp16"), ("batch_size", 0), ("show.sampler", "ddimm"),
    ("templates", "objects"), ("num_vectors", 0), ("optim.betas", [0.9]), ("trainer.devices", 0),
    ("num_vektors", 2), ("per_layer", 1), ("show.prompts", ["no word"]), ("shared_steps", 3),
]  # fmt: skip


def test_the_same_mistake_is_the_same_line(ways: dict[str, Say], capsys) -> None:
    for name, value in MISTAKES:
        said = {}
        for way, say in ways.items():
            try:
                say(name, value)
            except UserError as error:
                said[way] = str(error)
            except AssertionError:  # main.py writes it and returns 2
                said[way] = capsys.readouterr().err
        last = SHORT.get(name, name).split(".")[-1]
        assert set(said) == set(ways) and all(last.rstrip("s") in line for line in said.values()), said
        assert all("\n" not in line.strip() for line in said.values())
        expected = said["python"]
        assert all(expected in line for line in said.values()), said


def test_two_names_of_one_setting_with_two_values_are_refused() -> None:
    word = {"images": "", "placeholder": "<a>"}
    with pytest.raises(UserError, match=r"'steps' sets trainer\.max_steps once more"):
        settle({"trainer": {"max_steps": 3}, "steps": 4, **word})
    assert settle({"trainer.max_steps": 3, "steps": 3, **word}).trainer.max_steps == 3
    assert settle({"steps": 3}, {"trainer": {"max_steps": 4}}, word).trainer.max_steps == 4


def test_a_models_own_settings_are_taken_from_the_model_that_set_names(model_folder, pictures) -> None:
    words = ["invert", "--images", str(pictures), "--name", "<toy>", "--set", f"model={model_folder}"]
    assert config_of(build_parser().parse_args(words)).trainer.checkpoint_every == 2


def test_the_vector_is_the_same_bit_for_bit(cli, model_folder, pictures, tmp_path, monkeypatch) -> None:
    """Weight decay, two vectors and captions: by Python, options, ``--set``, a list and ``main.py``."""
    for number in range(3):
        (pictures / f"{number}.txt").write_text(f"{number} red {{}} toys")
    wish = {"init": "cat", "num_vectors": 2, "optim": {"weight_decay": 0.1}, "logging": {"loggers": []}}
    model = ldm.load(model_folder)
    vectors = {"python": ldm.invert(model, pictures, "<toy>", steps=2, progress=False, **wish).vectors}
    words = ("invert", "--model", model_folder, "--images", pictures, "--name", "<toy>", "--init", "cat")
    words += ("--out", "set", "--steps", 2, "--set", "num_vectors=2", "weight_decay=.1", "logging.loggers=[]")
    assert cli(*words).code == 0
    concept = {"name": "<toy>", "images": str(pictures), "steps": 2, **wish}
    (tmp_path / "list.yaml").write_text(dump_yaml({"concepts": [concept]}))
    result = cli("invert", "--concepts", "list.yaml", "--model", model_folder, "--out", "all")
    assert result.code == 0, result.err
    file = {"model": str(model_folder), "images": str(pictures), "placeholder": "<toy>", "lr": 0.01, **wish}
    (tmp_path / "run.yaml").write_text(dump_yaml(file))
    assert official.main(["--base", "run.yaml", "-t", "-n", "toy", "steps=2"]) == 0
    (run,) = Path("logs").iterdir()
    for name, folder in (("set", "set"), ("list", "all/toy"), ("main", run)):
        vectors[name] = load_embedding(Path(folder) / "embeddings.safetensors").vectors
    for way, found in vectors.items():
        assert found.shape == (2, 32)
        assert torch.equal(found, vectors["python"]), way
