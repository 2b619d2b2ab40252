"""``ldm train``: from a folder of captioned pictures to a model that ``ldm sample`` draws with."""

import shutil
from pathlib import Path

import pytest
from PIL import Image

import ldm
from ldm.backbone.model import ModelConfig
from ldm.config import dump_yaml, to_plain

pytestmark = pytest.mark.slow

TRAINER = {"max_steps": 2, "accelerator": "cpu", "checkpoint_every": 1, "image_every": 0}
LOGGING = {"loggers": []}


@pytest.fixture
def configs(tiny_config: ModelConfig, tmp_path: Path) -> Path:
    """The YAML files of the stages of a model called "tiny"."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for colour in ("red", "blue", "green"):
        Image.new("RGB", (16, 16), colour).save(folder / f"{colour}.png")
        (folder / f"{colour}.txt").write_text(f"a {colour} toy")
    shared = {"trainer": TRAINER, "logging": LOGGING, "batch_size": 2}
    data = {
        "target": "ldm.pretraining.sources.FolderPictures",
        "params": {"root": str(folder), "image_size": 16},
    }
    autoencoder = tiny_config.autoencoder
    stages = {
        "autoencoder": {"autoencoder": autoencoder, "data": data, **shared},
        "latents": {
            "autoencoder": autoencoder,
            "data": data,
            "autoencoder_run": "logs/tiny-autoencoder",
            "count": 6,
            "batch_size": 2,
        },
        "diffusion": {
            "model": to_plain(tiny_config),
            "autoencoder_run": "logs/tiny-autoencoder",
            "latents": ["data/tiny/latents.safetensors"],
            "inversion": {"show": {"steps": 2}},
            **shared,
        },
    }
    target = tmp_path / "configs" / "tiny"
    target.mkdir(parents=True)
    for name, values in stages.items():
        (target / f"{name}.yaml").write_text(dump_yaml(values))
    return target


def test_the_stages_lead_from_pictures_to_a_model(cli, configs):
    def stage(name: str, *words: object):
        result = cli("train", name, "--base", configs / f"{name}.yaml", *words)
        assert result.code == 0, result.err
        return result

    stage("autoencoder", "seed=3")
    assert "seed: 3" in Path("logs/tiny-autoencoder/config.yaml").read_text()
    assert "6 latents in data/tiny/latents.safetensors" in stage("latents").out
    stage("diffusion", "trainer.max_steps=1")
    again = cli("train", "diffusion", "--base", configs / "diffusion.yaml")
    assert again.code == 2 and "--resume" in again.err
    stage("diffusion", "--resume")
    exported = cli("train", "export", "--run", "logs/tiny-diffusion", "--out", "model")
    assert "ldm sample --model model" in exported.out
    shutil.rmtree("logs"), shutil.rmtree("data")  # a model folder stands alone
    drawn = cli("sample", "--model", "model", "--prompt", "a red toy", "--n", 2, "--out", "out")
    assert drawn.code == 0, drawn.err
    assert len(list(Path("out").glob("*.png"))) == 3
    mean = cli("train", "average", "--models", "model", "model", "--out", "mean")
    assert "ldm sample --model mean" in mean.out
    assert ldm.load("mean").fingerprint() == ldm.load("model").fingerprint()
    for name in ("config.yaml", "vocab.txt"):
        assert Path("mean", name).read_bytes() == Path("model", name).read_bytes()


def test_a_stage_before_the_one_that_it_needs_says_so(cli, configs):
    result = cli("train", "latents", "--base", configs / "latents.yaml")
    assert result.code == 2 and "train that stage first" in result.err
    result = cli("train", "export", "--run", "x", "--out", "y")
    assert result.code == 2 and "no folder x" in result.err and not Path("y").exists()
    result = cli("train", "average", "--models", "x", "--out", "y")
    assert result.code == 2 and "two models" in result.err and not Path("y").exists()


def test_packages_that_are_not_there_are_named(cli, tmp_path):
    (tmp_path / "packages").mkdir()
    result = cli("train", "data", "--packages", tmp_path / "packages", "--out", "data/emoji")
    assert result.code == 2 and ".tgz" in result.err
    assert not Path("data").exists()
    result = cli("train", "data", "--sets", "all", "--packages", tmp_path / "packages", "--out", "data/all")
    assert result.code == 2 and ".tgz" in result.err
    assert not Path("data").exists()


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        (["--sets", "facebook"], "unknown set facebook"),
        (["--vendor", "noto"], "unknown vendor noto"),
        (["--sets", "all", "--vendor", "facebook"], "one of them"),
        (["--sets", "all", "--size", "4"], "16 to 512"),
        (["--size", "128"], "goes with --sets"),
    ],
)
def test_sets_that_are_not_there_to_train_with_are_refused(cli, words, reason):
    result = cli("train", "data", *words, "--out", "data/emoji")
    assert result.code == 2 and reason in result.err and not Path("data").exists()


@pytest.mark.parametrize("words", [["seed"], ["--seed", "1"]])
def test_a_word_that_is_no_override_is_refused(cli, words):
    result = cli("train", "diffusion", *words)
    assert result.code == 2 and "unrecognized argument" in result.err
