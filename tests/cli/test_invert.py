"""``ldm invert`` and ``main.py``: a run from pictures to a word, resumed, and by YAML."""

import json
import os
import shlex
from pathlib import Path

import pytest
import tiny
import torch
import yaml

import ldm
from ldm.cli import invert, official
from ldm.cli.invert import config_of
from ldm.cli.main import build_parser
from ldm.config import resolve
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.io.embeddings import load_embedding

pytestmark = pytest.mark.slow


def parse(*words: object) -> InversionConfig:
    """The config of an ``ldm invert`` command line."""
    args = build_parser().parse_args(["invert", *map(str, words)])
    return config_of(args)


def official_args(*words: object):
    """What ``main.py`` makes of a command line, without running it."""
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(official, "run", seen.append)
        assert official.main([str(word) for word in words]) == 0
    return seen[0]


def test_a_run_leaves_everything_and_says_how_to_draw(cli, model_folder, pictures):
    result = cli(
        "invert", "--model", model_folder, "--images", pictures, "--name", "<toy>", "--init", "cat",
        "--out", "run",
    )  # fmt: skip
    assert result.code == 0, result.err
    for name in ("config.yaml", "embeddings.safetensors", "manifest.json", "report.html"):
        assert (Path("run") / name).is_file(), name
    word = load_embedding("run/embeddings.safetensors")
    assert word.placeholder == "<toy>" and word.metadata["step"] == "3"
    assert len(json.loads(Path("run/manifest.json").read_text())["image_hashes"]) == 3
    for part in ("run/embeddings.safetensors", "run/report.html", "ldm sample --model"):
        assert part in result.out
    # the command that was printed works as it stands
    line = next(line for line in result.out.splitlines() if line.strip().startswith("ldm sample"))
    drawn = cli(*shlex.split(line)[1:], "--steps", 2, "--out", "out")
    assert drawn.code == 0, drawn.err
    assert len(list(Path("out").glob("*.png"))) == 9


def test_a_word_of_several_layers_is_learned_looked_at_and_drawn_with(cli, model_folder, pictures):
    result = cli(
        "invert", "--model", model_folder, "--images", pictures, "--name", "<toy>", "--init", "cat",
        "--per-layer", "--num-vectors", 2, "--set", "shared_steps=1", "--out", "run",
    )  # fmt: skip
    assert result.code == 0, result.err
    word = load_embedding("run/embeddings.safetensors")
    n = word.layers
    assert n == ldm.load(model_folder).unet.num_transformers and word.vectors.shape == (n, 2, word.D)
    assert f"learned <toy>: 2 vectors of width {word.D} for each of {n} layers" in result.out
    shown = cli("inspect", "run/embeddings.safetensors", "--model", model_folder)
    assert shown.code == 0, shown.err
    assert f"layer {n}" in shown.out
    line = next(line for line in result.out.splitlines() if line.strip().startswith("ldm sample"))
    drawn = cli(*shlex.split(line)[1:], "--n", 1, "--steps", 2, "--out", "out")
    assert drawn.code == 0, drawn.err
    picture = next(path for path in sorted(Path("out").glob("*.png")) if path.name != "grid.png")
    again = cli("sample", "--again", picture, "--model", model_folder, "--out", "again.png")
    assert again.code == 0, again.err


def test_a_run_is_resumed_from_its_folder_alone_and_ends_as_one_that_was_not_cut(cli, model_folder, pictures):
    words = ("--model", model_folder, "--images", pictures, "--name", "<toy>")
    assert cli("invert", *words, "--out", "whole", "--steps", 4).code == 0
    assert cli("invert", *words, "--out", "cut", "--steps", 2).code == 0
    again = cli("invert", *words, "--out", "cut", "--steps", 4)
    assert again.code == 2 and "not empty" in again.err
    result = cli("invert", "--resume", "--out", "cut", "--steps", 4)
    assert result.code == 0, result.err
    whole, cut = (load_embedding(f"{run}/embeddings.safetensors") for run in ("whole", "cut"))
    assert cut.metadata["step"] == "4"
    torch.testing.assert_close(cut.vectors, whole.vectors, rtol=0, atol=0)


def test_options_win_over_the_models_settings_and_set_over_both(model_folder, pictures):
    config = parse(
        "--model", model_folder, "--images", pictures, "--name", "<toy>", "--steps", 9, "--lr", 0.5,
        "--num-vectors", 2, "--prompt", "one {}", "--prompt", "two {}", "--device", "cpu",
        "--precision", "bf16-mixed", "--seed", 4, "--set", "trainer.max_steps=11",
        "--set", "optim.weight_decay=0.1",
    )  # fmt: skip
    assert config.trainer.max_steps == 11 and config.trainer.checkpoint_every == 2
    assert (config.optim.lr, config.optim.weight_decay) == (0.5, 0.1)
    assert config.show.prompts == ("one {}", "two {}") and config.num_vectors == 2
    assert config.trainer.precision == "bf16-mixed" and config.trainer.accelerator == "cpu"
    assert config.seed == 4 and config.batch_size == 2 and config.images == pictures


@pytest.mark.parametrize("missing", ["--images", "--name"])
def test_what_is_needed_is_asked_for(cli, model_folder, pictures, missing):
    words = {"--images": pictures, "--name": "<toy>"}
    del words[missing]
    result = cli("invert", "--model", model_folder, *(w for pair in words.items() for w in pair))
    assert result.code == 2 and f"{missing} is missing" in result.err


def test_resume_without_a_folder_says_what_to_give(cli):
    result = cli("invert", "--resume")
    assert result.code == 2 and "--out" in result.err


def test_an_interrupted_run_says_the_command_that_continues_it(cli, model_folder, pictures, monkeypatch):
    from ldm.inversion.callbacks import FixedBatchMonitor

    measure = FixedBatchMonitor._measure

    def interrupted(self, trainer, module):
        if trainer.global_step >= 3:
            raise KeyboardInterrupt
        measure(self, trainer, module)

    words = ("--model", model_folder, "--images", pictures, "--name", "<toy>", "--out", "run")
    with monkeypatch.context() as patch:
        patch.setattr(FixedBatchMonitor, "_measure", interrupted)
        result = cli("invert", *words, "--steps", 3)
    assert result.code == 130
    assert "ldm invert --resume --out run" in result.err
    assert cli("invert", "--resume", "--out", "run").code == 0


# ------------------------------------------------------------------------------ main.py
def write_yaml(path: Path, **values: object) -> Path:
    path.write_text(yaml.safe_dump(values))
    return path


def test_main_py_trains_by_yaml_into_a_folder_of_the_official_name(
    model_folder, pictures, tmp_path, monkeypatch, capsys
):
    monkeypatch.chdir(tmp_path)
    base = write_yaml(
        tmp_path / "a.yaml", model=str(model_folder), images="nowhere", placeholder="*", init="cat"
    )
    words = ["--base", base, "trainer.max_steps=2", "-t", "-n", "mine", "-f", "_x", "--data_root",
             pictures, "--placeholder_string", "<toy>", "--init_word", "dog", "-l", "runs"]  # fmt: skip
    assert official.main([str(word) for word in words]) == 0
    (run,) = (tmp_path / "runs").iterdir()
    assert run.name.startswith("pictures20") and run.name.endswith("_mine_x")
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["placeholder"] == "<toy>" and config["init"] == "dog"
    assert config["trainer"]["max_steps"] == 2 and config["seed"] == 23
    assert load_embedding(run / "embeddings.safetensors").metadata["step"] == "2"
    # and goes on from there
    assert official.main(["-t", "-r", str(run), "trainer.max_steps=3"]) == 0
    assert load_embedding(run / "embeddings.safetensors").metadata["step"] == "3"


def test_without_train_the_resolved_config_is_shown_and_nothing_written(
    model_folder, pictures, tmp_path, monkeypatch, capsys
):
    base = write_yaml(tmp_path / "a.yaml", model=str(model_folder), images=str(pictures), placeholder="*")
    (tmp_path / "empty").mkdir()
    monkeypatch.chdir(tmp_path / "empty")
    assert official.main(["--base", str(base), "--scale_lr", "false", "-s", "7"]) == 0
    shown = yaml.safe_load(capsys.readouterr().out)
    assert shown["scale_lr"] is False and shown["seed"] == 7 and shown["batch_size"] == 2
    assert not list(Path().iterdir())


def test_overrides_are_found_wherever_they_stand():
    args = official_args("a=1", "--base", "x.yaml", "y.yaml", "b.c=2", "-t", "d=3", "--init_word", "e=4")
    assert args.base == ["x.yaml", "y.yaml"] and args.overrides == ["a=1", "b.c=2", "d=3"]
    assert args.train is True and args.seed is None and args.init_word == "e=4"


def test_the_official_flags_are_all_known():
    args = official_args(
        "--base", "a.yaml", "-t", "true", "--no-test", "-n", "n", "-p", "proj", "-d", "-s", "1", "-f", "f",
        "-l", "logs", "--scale_lr", "False", "--datadir_in_name", "no", "--actual_resume", "m.ckpt",
        "--data_root", "d", "--placeholder_string", "S", "--init_word", "w", "--gpus", "0,",
    )  # fmt: skip
    assert args.scale_lr is False and args.datadir_in_name is False and args.no_test is True


def test_gpus_without_a_gpu_go_on_on_the_cpu_with_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert official._devices("0,") == {"trainer": {"accelerator": "cpu", "devices": 1}}
    assert official._devices(None) == {}
    with pytest.raises(UserError, match="give ids"):
        official._devices("all")


def test_gpus_choose_which_are_used(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert official._devices("0,2")["trainer"] == {"accelerator": "gpu", "devices": 2}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"
    with pytest.raises(UserError, match="visible"):
        official._devices("7,")


def test_the_config_that_ships_resolves_and_names_its_pictures():
    folder = Path(__file__).parents[2]
    values = yaml.safe_load((folder / "configs/emoji/invert.yaml").read_text())
    config = resolve(InversionConfig, values)
    assert len(list((folder / config.images).glob("*.png"))) == 5


def test_the_printed_command_names_the_weights_that_were_used():
    config = InversionConfig(Path("p"), "*", checkpoint="w.ckpt")
    assert invert._model_words(config, Path("run")) == ["emoji", "--checkpoint", "w.ckpt"]


def test_train_pictures_leaves_the_rest_as_references(cli, model_folder, pictures):
    words = ["invert", "--model", model_folder, "--images", pictures, "--name", "<toy>", "--init", "cat"]
    result = cli(*words, "--train-pictures", 2, "--out", "run")
    assert result.code == 0, result.err
    first = sorted(p.name for p in pictures.iterdir())[:2]
    assert sorted(json.loads(Path("run/manifest.json").read_text())["image_hashes"]) == first
    assert len(load_embedding("run/embeddings.safetensors").metadata["image_hashes"].split(",")) == 2
    result = cli(*words, "--train-pictures", 3, "--out", "all")
    assert result.code == 2 and result.err.count("\n") == 1
    assert "train_pictures is 3, and there are 3 pictures" in result.err
    assert not Path("all").exists()


def test_train_pictures_in_python(tiny_model, pictures):
    files = sorted(pictures.iterdir())
    settings = {**tiny.QUICK, "train_pictures": 1, "progress": False}
    one = ldm.invert(tiny_model, files, "<toy>", "cat", **settings)
    alone = ldm.invert(tiny_model, files[:1], "<toy>", "cat", **{**settings, "train_pictures": None})
    assert one.metadata["image_hashes"] == alone.metadata["image_hashes"]
    assert torch.equal(one.vectors, alone.vectors)
