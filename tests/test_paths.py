"""``~`` is the home folder wherever a path is given: on a command line, in a YAML file, in a call."""

from collections.abc import Callable
from pathlib import Path

import pytest
import tiny
from PIL import Image

import ldm
from ldm.cli import official
from ldm.cli.main import main
from ldm.config import dump_yaml, load_yaml, to_plain
from ldm.inversion.templates import read_templates
from ldm.paths import expanded


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A home folder with all that commands read."""
    folder = tmp_path_factory.mktemp("home")
    described = tiny.config(tiny.write_vocabulary(folder / "vocab.txt"))
    model = tiny.model(described)
    tiny.write_model(folder / "tiny", model, described)
    tiny.write_pictures(folder / "p")
    tiny.write_word(folder / "toy.safetensors", model)
    (folder / "prompts.txt").write_text("a {}\n")
    (folder / "lines.txt").write_text("a photo of {}\n")
    Image.new("RGB", (16, 16), "white").save(folder / "mask.png")
    concepts = [{"name": "<a>", "images": "~/p", "templates": "~/lines.txt"}]
    (folder / "list.yaml").write_text(dump_yaml({"defaults": {"model": "~/tiny"}, "concepts": concepts}))
    (folder / "own.yaml").write_text(dump_yaml({"model": "~/tiny", "prompts": []}))
    weights = load_yaml([folder / "tiny" / "config.yaml"])
    weights["model"]["checkpoint"] = "~/tiny/model.safetensors"
    weights["model"]["text"]["params"]["vocab_file"] = "~/vocab.txt"
    (folder / "model.yaml").write_text(dump_yaml(weights))
    (folder / "captioned").mkdir()
    Image.new("RGB", (16, 16), "red").save(folder / "captioned" / "0.png")
    (folder / "captioned" / "0.txt").write_text("a red toy")
    stage = {
        "autoencoder": to_plain(described)["autoencoder"],
        "data": {"target": "ldm.pretraining.sources.FolderPictures",
                 "params": {"root": "~/captioned", "image_size": 16}},
        "trainer": {"max_steps": 1, "accelerator": "cpu", "image_every": 0},
        "logging": {"loggers": []},
        "batch_size": 1,
    }  # fmt: skip
    (folder / "stage.yaml").write_text(dump_yaml(stage))
    return folder


@pytest.fixture(autouse=True)
def elsewhere(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(tmp_path)


QUICK = ["--set", "trainer.max_steps=1", "prompts=[]"]
COMMANDS = {
    "invert": ["invert", "--model=~/tiny", "--images=~/p", "--name", "<a>", "--out=~/{}", *QUICK,
               "init_embedding=~/toy.safetensors", "checkpoint=~/tiny/model.safetensors"],
    "list": ["invert", "--concepts=~/list.yaml", "--out=~/{}", *QUICK],
    "model": ["sample", "--model=~/model.yaml", "--prompt", "a cat", "--n", "1", "--out=~/{}"],
    "sample": ["sample", "--model=~/tiny", "--checkpoint=~/tiny/model.safetensors",
               "--embedding=~/toy.safetensors", "--prompts-file=~/prompts.txt", "--n", "1", "--out=~/{}"],
    "edit": ["edit", "--model=~/tiny", "--image=~/p/0.png", "--mask=~/mask.png", "--prompt", "a cat",
             "--n", "1", "--out=~/{}"],
    "convert": ["embeddings", "convert", "~/toy.safetensors", "~/{}.pt"],
    "merge": ["embeddings", "merge", "~/toy.safetensors", "--out=~/{}.safetensors"],
    "show": ["embeddings", "show", "~/toy.safetensors"],
    "inspect": ["inspect", "~/toy.safetensors", "--model=~/tiny"],
    "train": ["train", "autoencoder", "--base", "~/stage.yaml", "--out=~/{}"],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_finds_home(name: str, home: Path, tmp_path: Path) -> None:
    words = [word.replace("{}", f"out-{name}") if word.startswith(("--out", "~")) else word
             for word in COMMANDS[name]]  # fmt: skip
    assert main(words) == 0
    assert not list(tmp_path.iterdir())  # no folder called "~"
    if any("{}" in word for word in COMMANDS[name]):
        assert list(home.glob(f"out-{name}*"))


def test_main_py_finds_home(home: Path, tmp_path: Path) -> None:
    words = ["--base", "~/own.yaml", "-t", "--data_root=~/p", "--placeholder_string", "<a>", "-l", "~/logs",
             "--embedding_manager_ckpt", "~/toy.safetensors", "trainer.max_steps=1"]  # fmt: skip
    assert official.main(words) == 0
    assert not list(tmp_path.iterdir())
    (run,) = (home / "logs").iterdir()
    assert official.main(["-t", "-r", f"~/logs/{run.name}", "trainer.max_steps=2"]) == 0


CALLS: dict[str, Callable[[], object]] = {
    "load": lambda: ldm.load("~/tiny", "~/tiny/model.safetensors"),
    "invert": lambda: ldm.invert(ldm.load("~/tiny"), "~/p", "<a>", steps=1, progress=False, prompts=()),
    "files": lambda: ldm.invert(
        ldm.load("~/tiny"), ["~/p/0.png", "~/p/1.png"], "<a>", steps=1, progress=False, prompts=()
    ),
    "embedding": lambda: ldm.embeddings.save_embeddings(
        ldm.embeddings.load_embedding("~/toy.safetensors"), "~/again.safetensors"
    ),
    "source": lambda: ldm.load_source(ldm.load("~/tiny"), "~/p/0.png", mask="~/mask.png"),
    "templates": lambda: read_templates("~/lines.txt"),
}


@pytest.mark.parametrize("name", CALLS)
def test_every_call_finds_home(name: str, tmp_path: Path) -> None:
    CALLS[name]()
    assert not list(tmp_path.iterdir())


def test_a_user_who_does_not_exist_is_left_as_written() -> None:
    assert expanded("~no-such-user-here/x") == Path("~no-such-user-here/x")
    assert expanded("a/~/b") == Path("a/~/b")
    assert main(["inspect", "~no-such-user-here/x.safetensors"]) == 2
