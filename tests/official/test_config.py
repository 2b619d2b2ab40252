"""Official YAML files load unmodified, and nothing else gets in by them."""

import copy
import gzip
import json
import random
from collections.abc import Callable
from operator import attrgetter
from pathlib import Path
from typing import Any

import official_files as files
import pytest
import torch

from ldm.backbone.loading import find, in_folder, inversion_defaults, load
from ldm.backbone.model import ModelConfig, build
from ldm.config import TARGETS, dump_yaml, load_yaml, resolve
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.io.checkpoints import is_weight
from ldm.official import config as legacy
from ldm.official.table import TABLE

pytestmark = pytest.mark.slow

REFERENCE = Path(__file__).parents[1] / "reference"
OFFICIAL: dict[str, Callable[[], dict[str, Any]]] = {
    "ldm object": files.ldm_inversion,
    "ldm style": lambda: files.ldm_inversion(style=True),
    "ldm eval": files.ldm_inference,
    "sd1 object": files.sd1_inversion,
    "sd1 style": lambda: files.sd1_inversion(style=True),
    "sd1 unfrozen": lambda: files.sd1_inversion(unfrozen=True),
    "sd1 inference": files.sd1_inference,
    "sd2 inference": lambda: files.sd2_inference(v=False),
    "sd2 v": lambda: files.sd2_inference(v=True),
}


@pytest.fixture(params=OFFICIAL)
def name(request: pytest.FixtureRequest) -> str:
    return request.param


def model_config(values: dict[str, Any]) -> ModelConfig:
    return resolve(ModelConfig, legacy.model_sections(values)["model"])


def inversion_config(values: dict[str, Any], **given: Any) -> InversionConfig:
    return resolve(InversionConfig, {"images": "p", "placeholder": "*", **legacy.settings(values), **given})


def test_every_official_file_resolves_through_yaml(name: str, tmp_path: Path) -> None:
    path = tmp_path / "official.yaml"
    path.write_text(dump_yaml(OFFICIAL[name]()))
    values, _ = find(path)
    config = resolve(ModelConfig, values["model"])
    assert config.schedule.timesteps == 1000 and config.scale_factor == 0.18215
    assert {node["target"] for node in (config.unet, config.autoencoder, config.text)} <= set(TARGETS)
    inversion_config(load_yaml([path]))
    assert not {"model", "placeholder", "init", "num_vectors"} & set(inversion_defaults(path))


@pytest.mark.parametrize(
    ("name", "keys"),
    [
        ("ldm object", "ldm_txt2img"),
        ("ldm eval", "ldm_txt2img"),
        ("sd1 unfrozen", "sd_v1"),
        ("sd1 inference", "sd_v1"),
        ("sd2 v", "sd_v2"),
    ],
)
def test_the_full_size_files_build_the_public_checkpoints_key_by_key(name: str, keys: str) -> None:
    if name.startswith("sd"):
        pytest.importorskip("ldm.text.clip")
    with torch.device("meta"):
        model = build(in_folder(model_config(OFFICIAL[name]()), Path(".")))
    assert public_keys(model.parts, keys) == shapes(model.parts)


def shapes(parts: dict[str, Any]) -> dict[str, list[int]]:
    return {p + n: list(t.shape) for p, part in parts.items() for n, t in part.state_dict().items()}


def public_keys(parts: dict[str, Any], name: str) -> dict[str, list[int]]:
    text = gzip.decompress((REFERENCE / f"keys_{name}.json.gz").read_bytes())
    public = json.loads(text)["keys"]
    return {k: v for k, v in public.items() if k.startswith(tuple(parts)) and is_weight(k)}


def test_what_the_files_say_about_the_model() -> None:
    sd2 = model_config(files.sd2_inference(v=True))
    assert sd2.parameterization == "v" and sd2.image_size == 512
    assert sd2.unet["params"]["num_head_channels"] == 64 and "num_heads" not in sd2.unet["params"]
    assert sd2.unet["params"]["use_linear_in_transformer"] is True
    assert sd2.text == {"target": "ldm.text.clip.OpenClipConditioner", "params": {}}
    version = {**files.sd1_inference()["model"]["params"]["cond_stage_config"], "params": {"version": "clip"}}
    own = model_config(changed("model.params.cond_stage_config", version)).text
    assert own == {"target": "ldm.text.clip.ClipConditioner", "params": {"version": "clip"}}
    extras = model_config(files.ldm_inference(parameterization="x0", l_simple_weight=2))
    assert extras.parameterization == "x0" and extras.loss.l_simple_weight == 2
    small = files.ldm_inversion()
    small["data"]["params"]["train"]["params"]["size"] = 128
    assert model_config(small).image_size == 128 and model_config(files.ldm_inversion()).image_size == 256


def test_what_the_files_say_about_the_training() -> None:
    config = inversion_config(files.sd1_inversion(style=True))
    assert (config.optim.lr, config.batch_size, config.trainer.max_steps) == (0.005, 2, 6100)
    assert (config.captions.templates, config.init, config.placeholder) == ("style", "sculpture", "*")
    assert config.trainer.checkpoint_every == config.trainer.image_every == 500
    assert config.scale_lr and config.model_lr == 0 and config.formats == ("safetensors", "pt")
    tuned = inversion_config(files.sd1_inversion(unfrozen=True))
    assert (tuned.optim.lr, tuned.model_lr, tuned.batch_size) == (5e-5, 1e-7, 1)


def changed(place: str, value: Any) -> dict[str, Any]:
    """A small official file with one more value at a dotted place."""
    values = copy.deepcopy(files.ldm_inversion(tiny=True))
    *sections, last = place.split(".")
    node = values
    for section in sections:
        node = node.setdefault(section, {})
    node[last] = value
    return values


PERSONAL = "model.params.personalization_config.params"
TRAIN = "data.params.train.params"


@pytest.mark.parametrize(
    ("place", "value", "key", "ours"),
    [
        (f"{PERSONAL}.num_vectors_per_token", 3, "num_vectors", 3),
        (f"{PERSONAL}.placeholder_strings", ["<toy>"], "placeholder", "<toy>"),
        (f"{PERSONAL}.initializer_words", [], "init", None),
        (f"{PERSONAL}.embedding_manager_ckpt", "w.pt", "init_embedding", Path("w.pt")),
        (f"{TRAIN}.data_root", "photos", "images", Path("photos")),
        (f"{TRAIN}.flip_p", 0.25, "pictures.flip_p", 0.25),
        (f"{TRAIN}.center_crop", True, "pictures.fit", "crop"),
        (f"{TRAIN}.mixing_prob", 0.5, "captions.mixing_prob", 0.5),
        (f"{TRAIN}.interpolation", "linear", "pictures.interpolation", "bilinear"),
        (f"{TRAIN}.interpolation", "lanczos", "pictures.interpolation", "lanczos"),
        (f"{TRAIN}.coarse_class_text", "cat", "captions.coarse_class", "cat"),
        ("model.params.embedding_reg_weight", 0.01, "regularization", 0.01),
        ("compat", "official", "compat", "official"),
    ],
)
def test_a_parameter_becomes_the_setting_of_that_meaning(place: str, value: Any, key: str, ours: Any) -> None:
    values = legacy.settings(changed(place, value))
    assert attrgetter(key)(resolve(InversionConfig, {"images": "p", **values})) == ours


def test_trainer_parameters_and_our_own_keys_beside_them() -> None:
    values = changed("lightning.trainer.accumulate_grad_batches", 4)
    values["lightning"]["trainer"] |= {"precision": 16, "gradient_clip_val": 1.0}
    values["trainer"] = {"threads": 1}
    config = inversion_config(values)
    assert config.trainer.accumulate == 4 and config.trainer.precision == "16-mixed"
    assert config.optim.clip_norm == 1.0 and config.trainer.threads == 1 and config.trainer.max_steps == 6100


@pytest.mark.parametrize(
    ("words", "inits", "token", "learned"),
    [
        (["*"], ["sculpture", "ice"], None, ("*", "sculpture")),  # as the official code, by position
        (["@", "*"], ["cat", "dog"], None, ("*", "dog")),
        (["@", "&"], ["cat", "dog"], None, ("@", "cat")),
        (["@", "*"], ["cat", "dog"], "@", ("@", "cat")),
        (["@", "*"], ["cat"], None, ("*", "cat")),  # --init_word
        (["@", "*"], ["cat", "dog"], "@ on a *", ("@", "cat")),
        (["@", "&", "*"], ["cat", "dog"], None, ("*", None)),
        ("*", "cat", "*", ("*", "cat")),
    ],
)
def test_of_several_placeholders_the_first_is_one_in_the_prompts_and_all_keep_their_inits(
    words: Any, inits: Any, token: str | None, learned: Any
) -> None:
    values = changed(f"{PERSONAL}.placeholder_strings", words)
    values["model"]["params"]["personalization_config"]["params"]["initializer_words"] = inits
    if token:
        values["data"]["params"]["train"]["params"]["placeholder_token"] = token
    assert not {"more_words", "subject"} & set(legacy.model_sections(values)["inversion"])
    config = inversion_config(values)
    assert (config.placeholder, config.init) == learned
    given = dict(zip(words, inits, strict=False)) if len(inits) > 1 and isinstance(words, list) else {}
    assert config.more_words == {word: given.get(word) for word in words if word != learned[0]}
    assert config.called == (token or learned[0])


def test_progressive_words_enter_every_2000_steps() -> None:
    values = changed(f"{PERSONAL}.num_vectors_per_token", 3)
    values["model"]["params"]["personalization_config"]["params"]["progressive_words"] = True
    assert legacy.settings(values)["progressive"] == [2000, 4000]


def test_per_image_tokens_are_asked_for_in_both_places() -> None:
    values = changed(f"{TRAIN}.per_image_tokens", True)
    with pytest.raises(UserError, match="set both alike"):
        legacy.settings(values)
    values["model"]["params"]["personalization_config"]["params"]["per_image_tokens"] = True
    assert legacy.settings(values)["captions"]["per_image_tokens"] is True


@pytest.mark.parametrize(
    ("place", "value", "says"),
    [
        ("model.params.linear_strat", 1, "did you mean 'linear_start'?"),
        ("model.params.unet_config.params.model_chanels", 1, "did you mean 'model_channels'?"),
        ("model.params.first_stage_config.params.ddconfig.chmult", 1, "did you mean 'ch_mult'?"),
        ("data.params.train.params.sise", 1, "did you mean 'size'?"),
        ("lightning.trainer.max_step", 1, "did you mean 'max_steps'?"),
        ("model.parms", {}, "did you mean 'params'?"),
        ("model.params.conditioning_key", "concat", "can only be 'crossattn'"),
        ("model.params.conditioning_key", {"a": 1}, "can only be 'crossattn'"),
        ("model.params.first_stage_config.params.ddconfig.attn_resolutions", [16], "can only be ()"),
        ("model.params.cond_stage_config.params", 3, "must be a mapping"),
        ("model.params.unet_config", "UNetModel", "must be a mapping"),
        (f"{TRAIN}.placeholder_token", "cat", "is not the word that is learned"),
        (f"{TRAIN}.interpolation", "nearest", "can only be 'linear', 'bilinear', 'bicubic', 'lanczos'"),
    ],
)
def test_what_is_unknown_or_impossible_is_said_in_one_line(place: str, value: Any, says: str) -> None:
    with pytest.raises(UserError) as caught:
        legacy.settings(changed(place, value))
    assert says in str(caught.value) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("lightning.find_unused_parameters", False),
        ("lightning.benchmark", True),
        ("lightning.strategy", "ddp"),
        ("lightning.accelerator", "ddp"),
        ("lightning.trainer.find_unused_parameters", False),
        ("lightning.trainer.benchmark", True),
        ("lightning.trainer.strategy", {"target": "pytorch_lightning.strategies.DDPStrategy"}),
        (f"{PERSONAL}.coarse_class_text", "cat"),
        ("data.params.validation.params", {"size": 512, "set": "val", "reg": True, "csv_file": "x"}),
        ("data.params.test", {"params": {"anything": 1}}),
    ],
)
def test_what_known_forks_add_without_effect_has_none(place: str, value: Any) -> None:
    assert inversion_config(changed(place, value)) == inversion_config(files.ldm_inversion(tiny=True))


def test_a_second_validation_section_of_a_fork_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "fork.yaml"
    text = dump_yaml(files.ldm_inversion(tiny=True))
    data = "    validation:\n      target: ldm.data.personalized.PersonalizedBase\n"
    path.write_text(text.replace("    validation:\n", f"{data}    validation:\n", 1))
    assert path.read_text().count("validation:") == 2
    assert inversion_config(load_yaml([path])) == inversion_config(files.ldm_inversion(tiny=True))


@pytest.mark.parametrize("target", ["os.system", "builtins.eval", "subprocess.Popen", "torch.load"])
@pytest.mark.parametrize(
    "place",
    [
        "model.target",
        "model.params.unet_config.target",
        "model.params.first_stage_config.params.lossconfig.target",
        "model.params.cond_stage_config.target",
        "model.params.personalization_config.target",
        "data.target",
        "data.params.train.target",
        "data.params.validation.target",
        "lightning.callbacks.image_logger.target",
    ],
)
def test_a_target_outside_the_table_is_refused_wherever_it_stands(place: str, target: str) -> None:
    values = changed(place, target)
    with pytest.raises(UserError, match=target):
        legacy.settings(values)
    with pytest.raises(UserError, match=target):
        load(values, "none.ckpt")


JUNK = (None, True, -1, 1.5, 10**30, "x", "", [], ["a"], [[1]], {}, {"a": 1}, {1: 2}, {"target": "os.system"})


def test_a_thousand_broken_files_are_read_or_refused_in_one_line() -> None:
    rng, refused = random.Random(0), 0
    for _ in range(1000):
        values = OFFICIAL[rng.choice(list(OFFICIAL))]()
        for _ in range(rng.choice((1, 1, 2))):
            spoil(values, rng)
        try:
            inversion_config(values)
            model_config(values)
        except UserError as error:
            refused += 1
            assert "\n" not in str(error)
    assert 300 < refused < 900


def spoil(node: dict[str, Any], rng: random.Random) -> None:
    """Replace, remove or rename one entry somewhere inside."""
    while True:
        key = rng.choice(list(node))
        below = node[key]
        if not isinstance(below, dict) or not below or rng.random() < 0.2:
            break
        node = below
    how = rng.random()
    if how < 0.6:
        node[key] = copy.deepcopy(rng.choice(JUNK))
    else:
        value = node.pop(key)
        if how > 0.8 or not node:
            node[f"{key}x"] = value


def test_another_kind_of_target_in_the_table_is_refused_too() -> None:
    with pytest.raises(UserError, match="refused"):
        legacy.settings(changed("model.params.unet_config.target", "torch.nn.Identity"))


def test_the_table_leads_only_to_what_configs_may_build() -> None:
    assert {target.ours for target in TABLE.values()} - {""} <= set(TARGETS)


def test_a_yaml_that_would_run_code_does_not(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    target = f"{{target: os.system, params: {{command: 'touch {mark}'}}}}"
    for text in (
        f"model: !!python/object/apply:os.system ['touch {mark}']",
        f"model: !!python/object/new:subprocess.Popen [['touch', '{mark}']]",
        f"model: {target}",
        f"model: {{unet: {target}, autoencoder: {target}, text: {target}}}",
    ):
        path = tmp_path / "evil.yaml"
        path.write_text(text)
        with pytest.raises(UserError):
            load(path, tmp_path / "none.ckpt")
    assert not mark.exists()


def test_an_official_file_and_a_checkpoint_are_a_model(
    tmp_path: Path, randomise: Callable[..., torch.nn.Module]
) -> None:
    path = tmp_path / "official.yaml"
    path.write_text(dump_yaml(files.ldm_inversion(tiny=True)))
    weights = files.write_checkpoint(path, tmp_path / "model.ckpt", randomise)
    model = load(path, weights)
    assert model.latent_shape == (4, 4, 4) and model.text.max_length == 77
    assert model.text.tokenize(["*"])[0, :3].tolist() == [101, 1008, 102]
