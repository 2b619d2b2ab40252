"""What a user does wrong: one line that says what to do, an exit status, nothing half-written."""

import errno
import os
import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.backbone.model import build
from ldm.cli import official
from ldm.config import ASSETS, dump_yaml
from ldm.io.checkpoints import save_checkpoint
from ldm.io.embeddings import Embedding, save_embeddings

pytestmark = pytest.mark.slow


def tree(folder: Path) -> set[str]:
    """Everything below a folder."""
    return {str(p.relative_to(folder)) for p in folder.rglob("*")}


@pytest.fixture
def refused(cli, tmp_path):
    """Run a command line that must fail, and check how; returns its line."""

    def run(*words: object, says: str) -> str:
        before = tree(tmp_path)
        result = cli(*words)
        assert result.code == 2
        assert result.err.count("\n") == 1 and result.err.startswith("ldm: error: "), result.err
        assert says in result.err and "Traceback" not in result.err
        assert tree(tmp_path) == before
        return result.err

    return run


@pytest.fixture
def words(model_folder, pictures) -> list:
    """A good ``ldm invert`` command line."""
    return ["invert", "--model", model_folder, "--images", pictures, "--name", "<toy>", "--out", "new/run"]


def test_a_folder_without_pictures(refused, words, tmp_path):
    empty = tmp_path / "empty"
    empty.mkdir()
    refused(*words, "--images", empty, says="no pictures in")
    refused(*words, "--images", tmp_path / "nowhere", says="there is no folder")


def test_one_corrupt_picture_is_named(refused, words, pictures):
    whole = (pictures / "1.png").read_bytes()
    (pictures / "1.png").write_bytes(whole[: len(whole) // 2])
    assert "1.png" in refused(*words, says="remove or replace it")


def test_a_prompt_without_the_placeholder(refused, words, model_folder, embedding):
    line = refused(*words, "--prompt", "a photo of a cat", says="no placeholder")
    assert "<toy>" in line
    sample = ("sample", "--model", model_folder, "--embedding", embedding, "--out", "out")
    assert "<toy>" in refused(*sample, "--prompt", "a photo of a cat", says="no prompt uses")


def test_a_checkpoint_of_another_model(refused, words, tiny_config, tmp_path):
    unet = {**tiny_config.unet, "params": {**tiny_config.unet["params"], "model_channels": 64}}
    other = build(replace(tiny_config, unet=unet))
    other = save_checkpoint(other.parts, tmp_path / "other.safetensors")
    line = refused(*words, "--checkpoint", other, says="another model")
    assert "config" in line


def test_a_checkpoint_that_is_none(refused, words, tmp_path):
    (tmp_path / "broken.ckpt").write_bytes(b"PK\x03\x04 half a file")
    refused(*words, "--checkpoint", tmp_path / "broken.ckpt", says="fetch it again")
    refused(*words, "--checkpoint", tmp_path / "none.ckpt", says="there is no checkpoint")


def test_a_folder_of_another_kind_of_model(refused):
    clip = ("sample", "--model", ASSETS / "emoji-clip", "--prompt", "a cat", "--out", "out")
    assert "give one of emoji" in refused(*clip, says="not the config of a text-to-image model")


def test_an_embedding_of_another_model(refused, model_folder, tmp_path):
    word = save_embeddings(Embedding("<toy>", torch.ones(1, 768)), tmp_path / "sd.safetensors")
    refused(
        "sample", "--model", model_folder, "--embedding", word, "--prompt", "a {}", "--out", "out",
        says="learned on another model",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("key", "near"), [("num_vector=2", "num_vectors"), ("trainer.max_step=2", "max_steps")]
)
def test_an_unknown_config_key_names_the_nearest(refused, words, key, near):
    assert near in refused(*words, "--set", key, says="unknown config key")


def test_an_unknown_key_of_a_yaml_names_the_nearest(tmp_path, model_folder, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    base = tmp_path / "a.yaml"
    base.write_text(dump_yaml({"model": str(model_folder), "images": "x", "placeholdr": "*"}))
    before = tree(tmp_path)
    assert official.main(["--base", str(base), "-t"]) == 2
    err = capsys.readouterr().err
    assert "'placeholder'" in err and err.count("\n") == 1
    assert tree(tmp_path) == before


def test_an_unknown_key_of_a_models_yaml_names_the_nearest(refused, words, model_folder):
    path = model_folder / "config.yaml"
    path.write_text(path.read_text().replace("image_size:", "imag_size:"))
    refused(*words, says="'image_size'")


def test_an_unknown_key_of_a_training_stage(refused, tmp_path):
    base = tmp_path / "stage.yaml"
    base.write_text(dump_yaml({"autoencoder": {"target": "x"}, "data": {}, "batchsize": 3}))
    refused("train", "autoencoder", "--base", base, "--out", "new/run", says="'batch_size'")
    refused("train", "autoencoder", "--base", "none.yaml", "seed=1", says="does not exist")


def test_an_init_word_that_the_model_does_not_know(refused, words):
    refused(*words, "--init", "☂", says="does not know")


def test_unknown_names(refused, words):
    refused(*words, "--model", "nonesuch", says="no model")
    refused(*words, "--templates", "objects", says="no template set")
    refused(*words, "--set", "show.sampler=euler", says="unknown sampler")
    refused(*words, "--set", "logging.loggers=[excel]", says="unknown logger")


def test_a_folder_that_is_in_use_is_not_written_to(refused, words, tmp_path):
    (tmp_path / "new" / "run").mkdir(parents=True)
    (tmp_path / "new" / "run" / "mine.txt").touch()
    refused(*words, says="not empty")


def test_a_full_disk_at_the_start(refused, words, model_folder, monkeypatch):
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    refused(*words, says="disk is full")
    refused("sample", "--model", model_folder, "--prompt", "a cat", "--steps", 1, "--out", "out",
            says="disk is full")  # fmt: skip


@pytest.fixture
def small_disk(tmp_path):
    """A file system of 96 kB; needs the right to mount."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=96k", "tmpfs", str(folder)]
    try:
        if subprocess.run(mount, capture_output=True).returncode:
            pytest.skip("no right to mount a small disk")
    except OSError:
        pytest.skip("no mount command")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_disk_that_fills_up_in_the_middle_of_a_run(cli, words, small_disk, pictures):
    """Whatever was written is whole: every picture opens, every embedding loads."""
    from ldm.io.embeddings import load_embedding

    sizes = "trainer.max_steps=200", "trainer.checkpoint_every=5", "trainer.image_every=5"
    flags = [word for size in sizes for word in ("--set", size)]
    result = cli(*words, "--out", small_disk / "run", *flags)
    assert result.code == 2
    line = result.err.splitlines()[-1]
    assert line.startswith("ldm: error: ") and "disk is full" in line
    for path in small_disk.rglob("*.png"):
        Image.open(path).load()
    for path in small_disk.rglob("embeddings*.safetensors"):
        load_embedding(path)
    for path in small_disk.rglob("*.ckpt"):
        torch.load(path, weights_only=False)
    assert not [p for p in small_disk.rglob("*") if ".tmp" in p.name]
