"""The official command line on official files: from a checkpoint to an embedding that is read back."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import official_files as files
import pytest
import torch
import yaml
from PIL import Image
from torch import nn

from ldm.backbone.loading import load
from ldm.cli import official
from ldm.config import dump_yaml, resolve
from ldm.inversion.config import InversionConfig
from ldm.io.embeddings import load_embeddings
from ldm.official import config as legacy

pytestmark = pytest.mark.slow

# in our own keys, beside the official ones: random weights, few pictures to draw
OURS = ("stop.allow_untrained=true", "show.steps=1", "show.samples_per_prompt=1",
        'show.prompts=["a photo of {}"]',
        "logging.loggers=[csv]")  # fmt: skip


@pytest.fixture
def yaml_file(tmp_path: Path) -> Path:
    path = tmp_path / "v1-finetune.yaml"
    path.write_text(dump_yaml(files.ldm_inversion(tiny=True)))
    return path


@pytest.fixture
def checkpoint(tmp_path: Path, yaml_file: Path, randomise: Callable[..., nn.Module]) -> Path:
    return files.write_checkpoint(yaml_file, tmp_path / "model.ckpt", randomise)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for i, colour in enumerate(("red", "green", "blue")):
        Image.new("RGB", (80, 64), colour).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def main(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., int]:
    """``python main.py`` in an empty folder on a machine without a GPU."""
    (tmp_path / "work").mkdir()
    monkeypatch.chdir(tmp_path / "work")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    return lambda *words: official.main([str(word) for word in words])


def test_twenty_steps_by_the_official_command_line_and_the_vector_read_back(
    main, yaml_file, checkpoint, photos, capsys
) -> None:
    words = ["--base", yaml_file, "-t", "--actual_resume", checkpoint, "-n", "toy", "--gpus", "0,",
             "--data_root", photos, "--init_word", "cat", "lightning.trainer.max_steps=20",
             "data.params.batch_size=1"]  # fmt: skip
    assert main(*words, *OURS) == 0
    assert "--gpus 0, is left out" in capsys.readouterr().err
    (run,) = Path("logs").iterdir()
    assert run.name.startswith("photos20") and run.name.endswith("_toy")
    # the official layout of a folder, with our own files beside it
    begun = run.name.removesuffix("_toy")
    assert {p.name for p in (run / "configs").iterdir()} == {
        f"{begun}-project.yaml", f"{begun}-lightning.yaml",
    }  # fmt: skip
    for name in ("images", "config.yaml", "manifest.json", "report.html"):
        assert (run / name).exists(), name
    # the word: one vector, the same in all files
    (word,) = load_embeddings(run / "checkpoints" / "embeddings_gs-20.pt")
    assert word.placeholder == "*" and word.vectors.shape == (1, 32)
    for other in ("checkpoints/embeddings.pt", "embeddings.safetensors"):
        assert torch.equal(load_embeddings(run / other)[0].vectors, word.vectors), other
    start = load(yaml_file, checkpoint).text.token_table[4937]  # "cat"
    assert 0 < (word.vectors - start).norm() < start.norm() + 20 * 0.005
    # what the official code itself would find in the file
    raw = torch.load(run / "checkpoints" / "embeddings_gs-20.pt", weights_only=False)
    assert set(raw) >= {"string_to_token", "string_to_param"}
    assert isinstance(raw["string_to_param"], nn.ParameterDict)
    assert torch.equal(raw["string_to_param"]["*"].cpu(), word.vectors)
    assert raw["string_to_token"]["*"].dtype == torch.int64 and raw["string_to_token"]["*"].ndim == 0
    # the run is a record of the command: its project file is a model, and it goes on
    project = yaml.safe_load((run / "configs" / f"{begun}-project.yaml").read_text())
    assert project["data"]["params"]["train"]["params"]["data_root"] == str(photos)
    personal = project["model"]["params"]["personalization_config"]["params"]
    assert personal["initializer_words"] == ["cat"]
    assert load(run / "configs" / f"{begun}-project.yaml", checkpoint).latent_shape == (4, 4, 4)
    assert main("-t", "-r", run, "lightning.trainer.max_steps=21") == 0
    assert load_embeddings(run / "embeddings.safetensors")[0].metadata["step"] == "21"


@pytest.mark.parametrize("kind", ["object", "style", "empty", "null"])
def test_every_logged_rate_of_an_official_run_is_base_times_batch(
    main, yaml_file, checkpoint, photos, kind
) -> None:
    """The official files name no schedule: plain AdamW at a constant rate, whatever sections they have."""
    values = files.ldm_inversion(tiny=True, style=kind == "style")
    values["model"]["base_learning_rate"] = 0.003
    words = ["trainer.max_steps=8", "data.params.batch_size=2", "trainer.log_every=1"]
    if kind in ("empty", "null"):  # nothing but the rate is given
        values["optim"], values["lightning"] = {} if kind == "empty" else None, {"trainer": None}
    yaml_file.write_text(dump_yaml(values))
    assert main("--base", yaml_file, "-t", "--actual_resume", checkpoint, "--data_root", photos,
                "--init_word", "cat", *words, *OURS) == 0  # fmt: skip
    (run,) = Path("logs").iterdir()
    with (run / "logs/csv/metrics.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    rates = {key: [float(row[key]) for row in rows if row[key]] for key in rows[0] if key.startswith("lr")}
    assert rates and all(len(logged) == 8 for logged in rates.values())
    assert all(rate == pytest.approx(2 * 0.003) for logged in rates.values() for rate in logged)


@pytest.mark.parametrize("kind", ["object", "style", "unfrozen"])
def test_a_file_that_names_no_steps_or_schedule_has_those_of_an_inversion(kind) -> None:
    values = {
        "object": files.ldm_inversion(), "style": files.ldm_inversion(style=True),
        "unfrozen": files.sd1_inversion(unfrozen=True),
    }[kind]  # fmt: skip
    del values["lightning"]["trainer"]["max_steps"]
    given = {**legacy.settings(values), "images": "p"}
    config = resolve(InversionConfig, given)
    usual = InversionConfig(images=Path("p"), placeholder="*")
    assert config.trainer.max_steps == usual.trainer.max_steps == 5000
    assert replace(config.optim, lr=0.005) == usual.optim and config.optim.schedule == "constant"


def test_an_unfrozen_stable_diffusion_leaves_its_word_and_its_model(
    main, photos, tmp_path, randomise
) -> None:
    """v1-finetune_unfrozen with a small text encoder of one's own, every quirk as in the official code."""
    pytest.importorskip("ldm.text.clip")
    clip = tmp_path / "clip"
    clip.mkdir()
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    (clip / "config.json").write_text(json.dumps(sizes))
    base = tmp_path / "v1-finetune_unfrozen.yaml"
    base.write_text(dump_yaml(files.sd1_inversion(unfrozen=True, clip=clip)))
    weights = files.write_checkpoint(base, tmp_path / "model.ckpt", randomise)
    words = ["--base", base, "-t", "--actual_resume", weights, "--data_root", photos, "--init_word", "cat"]
    assert main(*words, "lightning.trainer.max_steps=1", "compat=official", "--no-test", *OURS) == 0
    (run,) = Path("logs").iterdir()
    raw = torch.load(run / "checkpoints" / "embeddings_gs-1.pt", weights_only=False)
    assert raw["string_to_token"]["*"].item() == 265
    before, tuned = load(base, weights), load(run / "model")
    for part in ("unet", "text"):
        pairs = zip(getattr(before, part).parameters(), getattr(tuned, part).parameters(), strict=True)
        moved = max(float((a - b).abs().max()) for a, b in pairs)
        assert 0 < moved < 1e-5  # Adam's first step is the rate, 1e-7, and as much again by rounding
    # CLIP's start: the word's embedding and position 0, decayed and moved by one step of 5e-5
    start = before.text.token_table[2368] + before.text.init_position  # "cat</w>"
    (word,) = load_embeddings(run / "embeddings.safetensors")
    assert (word.vectors[0] - start).abs().max() < 6e-5


def test_several_placeholder_strings_are_learned_where_the_prompts_hold_them(
    main, yaml_file, checkpoint, photos, capsys
) -> None:
    """With every quirk too: each is one token of the vocabulary, by which the official code finds it."""
    personal = "model.params.personalization_config.params"
    words = ["--base", yaml_file, "-t", "--actual_resume", checkpoint, "--data_root", photos, "--no-test",
             f"{personal}.placeholder_strings=['@','*','&']", f"{personal}.initializer_words=[cat,dog,tree]",
             "data.params.train.params.placeholder_token='@ beside a *'", "lightning.trainer.max_steps=1",
             "compat=official"]  # fmt: skip
    assert main(*words, *OURS) == 0
    assert "no prompt holds '&': left out" in capsys.readouterr().err
    (run,) = Path("logs").iterdir()
    raw = torch.load(run / "checkpoints" / "embeddings_gs-1.pt", weights_only=False)
    assert {name: token.item() for name, token in raw["string_to_token"].items()} == {"@": 1030, "*": 1008}
    table = load(yaml_file, checkpoint).text.token_table
    for name, start in (("@", 4937), ("*", 3899)):  # "cat", "dog"
        vector = raw["string_to_param"][name].cpu()
        assert vector.shape == (1, 32) and 0 < (vector - table[start]).norm() < 1


def shown(main, capsys, *words) -> dict:
    capsys.readouterr()
    assert main(*words) == 0
    return yaml.safe_load(capsys.readouterr().out)


def test_options_and_overrides_reach_their_settings_and_overrides_win(
    main, yaml_file, photos, capsys
) -> None:
    words = ("--base", yaml_file, "--data_root", photos, "--actual_resume", "m.ckpt")
    config = shown(main, capsys, *words)
    assert (config["placeholder"], config["init"], config["seed"]) == ("*", "sculpture", 23)
    assert config["optim"]["lr"] == 0.005 and config["trainer"]["max_steps"] == 6100
    config = shown(
        main, capsys, *words, "--placeholder_string", "<toy>", "--init_word", "dog", "-s", 4, "seed=5",
        "--scale_lr", "false", "--embedding_manager_ckpt", "w.pt", "-p", "mine", "--gpus", "1,",
        "model.params.personalization_config.params.num_vectors_per_token=2",
        "model.params.personalization_config.params.initializer_words=[cat]",
        "model.base_learning_rate=1e-3", "lightning.trainer.max_steps=20", "compat=official",
        "lightning.modelcheckpoint.params.every_n_train_steps=7",
    )  # fmt: skip
    # vectors that are given are the start, and no init word beside them
    assert (config["placeholder"], config["init"], config["seed"]) == ("<toy>", None, 5)
    assert config["num_vectors"] == 2 and config["optim"]["lr"] == 1e-3 and not config["scale_lr"]
    assert config["init_embedding"] == "w.pt" and config["logging"]["project"] == "mine"
    assert (config["trainer"]["max_steps"], config["trainer"]["checkpoint_every"]) == (20, 7)
    assert config["compat"] == "official" and config["trainer"]["accelerator"] == "cpu"


def test_of_several_files_the_later_wins(main, yaml_file, photos, tmp_path, capsys) -> None:
    more = tmp_path / "more.yaml"
    more.write_text("data: {params: {batch_size: 1}}\nseed: 4\ntrainer: {threads: 1}\n")
    words = ("--base", yaml_file, more, "--data_root", photos, "--actual_resume", "m.ckpt")
    config = shown(main, capsys, *words)
    assert config["batch_size"] == 1 and config["seed"] == 4
    assert config["trainer"]["threads"] == 1 and config["trainer"]["max_steps"] == 6100


def test_ldm_invert_takes_an_official_file_as_its_model(cli, yaml_file, checkpoint, photos) -> None:
    words = ["invert", "--model", yaml_file, "--checkpoint", checkpoint, "--images", photos]
    words += ["--name", "<toy>", "--init", "cat toy", "--steps", 1, "--batch-size", 1, "--out", "run"]
    result = cli(*words, *(word for item in OURS for word in ("--set", item)))
    assert result.code == 0, result.err
    config = yaml.safe_load(Path("run/config.yaml").read_text())
    assert config["optim"]["lr"] == 0.005 and config["init"] == "cat toy"  # the model's, the command's
    assert load_embeddings("run/embeddings.safetensors")[0].placeholder == "<toy>"


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--data_root", "p"], "--actual_resume is missing"),
        (["--actual_resume", "m.ckpt"], "--data_root is missing"),
        (["--data_root", "p", "model.params.unet_config.target=os.system"], "os.system"),
        (["--data_root", "p", "data.params.train.params.sizes=64"], "did you mean 'size'?"),
        (["--data_root", "p", "--actual_resume", "m.ckpt", "compat.copy=true"], "did you mean 'copies'?"),
    ],
)
def test_a_wrong_command_line_is_one_line_and_leaves_nothing(main, yaml_file, capsys, words, says) -> None:
    assert main("--base", yaml_file, "-t", *words) == 2
    err = capsys.readouterr().err
    assert says in err and err.count("\n") == 1
    assert not list(Path().iterdir())


def test_a_name_that_the_official_file_cannot_hold_is_refused_before_training(
    main, yaml_file, checkpoint, photos, capsys
) -> None:
    words = ["--base", yaml_file, "-t", "--actual_resume", checkpoint, "--data_root", photos]
    words += ["--placeholder_string", "a.b", "--init_word", "cat", "lightning.trainer.max_steps=1"]
    assert main(*words, *OURS) == 2
    assert "rename the placeholder" in capsys.readouterr().err
    assert not Path("logs").exists()
