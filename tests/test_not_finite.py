"""Numbers that overflow are said, end with a status that is not 0, and are not saved as a result."""

import logging
from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from PIL import Image

import ldm
from ldm.backbone.model import LatentDiffusion
from ldm.cli.main import main
from ldm.config import dump_yaml, to_plain
from ldm.errors import UserError
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.sampling.sample import BrokenPictures

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, pictures, words that are too long to be read, a list, a stage."""
    folder = tmp_path_factory.mktemp("world")
    described = tiny.config(tiny.write_vocabulary(folder / "vocab.txt"))
    model = tiny.model(described)
    tiny.write_model(folder / "tiny", model, described)
    tiny.write_pictures(folder / "pictures")
    notes = {"base_model": model.fingerprint()}
    good = Embedding("<good>", torch.ones(1, 32), notes)
    huge = Embedding("<huge>", torch.full((1, 32), 1e20), notes)
    save_embeddings([good, huge], folder / "words.safetensors")
    entries = [{"name": f"<{name}>", "images": str(folder / "pictures"), "optim": {"lr": lr}}
               for name, lr in (("calm", 0.01), ("wild", 1e6))]  # fmt: skip
    defaults = {"model": str(folder / "tiny"), "show": {"prompts": []}}
    (folder / "list.yaml").write_text(dump_yaml({"defaults": defaults, "concepts": entries}))
    (folder / "captioned").mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "captioned" / "0.png")
    (folder / "captioned" / "0.txt").write_text("a red toy")
    data = {"root": str(folder / "captioned"), "image_size": 16}
    stage = {
        "autoencoder": to_plain(described)["autoencoder"],
        "data": {"target": "ldm.pretraining.sources.FolderPictures", "params": data},
        "trainer": {"max_steps": 3, "accelerator": "cpu", "checkpoint_every": 100, "image_every": 0},
        "logging": {"loggers": []},
        "optim": {"lr": 1e6, "warmup_steps": 0, "schedule": "constant"},
        "batch_size": 1,
    }
    (folder / "stage.yaml").write_text(dump_yaml(stage))
    return folder


def run(*words: Any) -> int:
    return main([str(word) for word in words])


def error_of(capsys: pytest.CaptureFixture[str]) -> str:
    lines = capsys.readouterr().err.splitlines()
    (error,) = [line for line in lines if "error: " in line]
    assert not any("Traceback" in line for line in lines)
    return error


def test_only_pictures_that_are_whole_are_saved(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["sample", "--model", world / "tiny", "--embedding", world / "words.safetensors", "--n", 2]
    words += ["--steps", 2, "--out", tmp_path / "out", "--prompt", "a <good>", "--prompt", "a <huge>"]
    assert run(*words) == 2
    assert "2 of 4 pictures" in (said := error_of(capsys)) and "'a <huge>'" in said
    drawn = sorted(path.name for path in (tmp_path / "out").glob("*.png"))
    assert drawn == ["00_a-good_0_00.png", "00_a-good_0_01.png", "grid.png"]


@pytest.mark.parametrize("how", ["sample", "edit", "negative"])
def test_overflow_in_drawing_is_no_picture(
    how: str, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = ["--model", world / "tiny", "--n", 1, "--steps", 2, "--out", tmp_path / "out"]
    given = {
        "sample": ["sample", "--prompt", "a cat", "--scale", 1e30],
        "edit": ["edit", "--image", world / "pictures" / "0.png", "--prompt", "a cat", "--scale", 1e30],
        "negative": ["sample", "--prompt", "a cat", "--negative-prompt", "<huge>", "--embedding",
                     world / "words.safetensors"],
    }  # fmt: skip
    assert run(*given[how], *shared) == 2
    assert "overflow" in error_of(capsys) and not list(tmp_path.rglob("*.png"))


def test_python_gets_what_is_whole(tiny_model: LatentDiffusion) -> None:
    tiny_model.add_placeholder("<huge>", torch.full((1, 32), 1e20))
    with pytest.raises(BrokenPictures, match="1 of 2") as raised:
        ldm.sample(tiny_model, ["a cat", "a <huge>"], steps=2, scale=1.0, seed=0)
    assert raised.value.broken == (1,) and raised.value.drawn[0].isfinite().all()
    with pytest.raises(UserError, match="overflow"):
        ldm.sample(tiny_model, "a cat", steps=2, scale=1e30, seed=0, decode=False)


def test_a_word_that_exploded_is_no_result(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["invert", "--model", world / "tiny", "--images", world / "pictures", "--name", "<a>"]
    assert run(*words, "--lr", 1e6, "--out", tmp_path / "run", "--set", "show.prompts=[]") == 2
    assert "exploded" in (said := error_of(capsys)) and "optim.lr" in said
    assert not (tmp_path / "run" / "embeddings.safetensors").exists()
    assert not (tmp_path / "run" / "report.html").exists()
    settings = {"show": {"prompts": ()}, "stop": {"allow_untrained": True}, "progress": False}
    with pytest.raises(UserError, match="exploded"):
        ldm.invert(ldm.load(world / "tiny"), world / "pictures", "<a>", steps=2, lr=1e6, **settings)


def test_a_word_that_exploded_fails_alone_in_a_list(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("invert", "--concepts", world / "list.yaml", "--out", tmp_path / "all") == 2
    assert "1 of 2 concepts failed" in (said := error_of(capsys)) and "<wild> exploded" in said
    assert (tmp_path / "all" / "calm" / "embeddings.safetensors").exists()
    assert not (tmp_path / "all" / "wild" / "embeddings.safetensors").exists()


def test_a_stage_saves_no_weights_that_exploded(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run("train", "autoencoder", "--base", world / "stage.yaml", "--out", tmp_path / "run") == 2
    assert "weights exploded" in error_of(capsys) and not list(tmp_path.rglob("*.ckpt"))


def test_pictures_on_the_way_that_overflow_end_no_training(
    world: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("ldm"), "propagate", True)
    words = ["--model", world / "tiny", "--out", tmp_path / "run", "--set", "show.scale=1e30"]
    assert run("invert", "--images", world / "pictures", "--name", "<a>", *words) == 2  # those of the end
    assert "no pictures of step 0" in caplog.text
    assert (tmp_path / "run" / "embeddings.safetensors").exists()  # the word is as good as any
    assert run("invert", "--resume", "--out", tmp_path / "run", "--set", "show.scale=2") == 0
