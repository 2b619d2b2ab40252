"""``~`` is the home folder wherever a path is given; the package's own files are found by name anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import tiny
from PIL import Image

import ldm
from ldm.backbone.model import ModelConfig
from ldm.cli import common, official
from ldm.cli.main import main
from ldm.config import dump_yaml, instantiate, load_yaml, resolve, to_plain
from ldm.emoji.sprites import load_holdout
from ldm.inversion.templates import read_templates
from ldm.io.pictures import list_pictures
from ldm.paths import expanded, found


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
    (folder / "own.yaml").write_text(dump_yaml({"model": "~/tiny", "show": {"prompts": []}}))
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


QUICK = ["--set", "trainer.max_steps=1", "show.prompts=[]"]
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


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_finds_home(name: str, home: Path, tmp_path: Path) -> None:
    words = [word.replace("{}", f"out-{name}") if word.startswith(("--out", "~")) else word
             for word in COMMANDS[name]]  # fmt: skip
    assert main(words) == 0
    assert not list(tmp_path.iterdir())  # no folder called "~"
    if any("{}" in word for word in COMMANDS[name]):
        assert list(home.glob(f"out-{name}*"))


@pytest.mark.slow
def test_main_py_finds_home(home: Path, tmp_path: Path) -> None:
    words = ["--base", "~/own.yaml", "-t", "--data_root=~/p", "--placeholder_string", "<a>", "-l", "~/logs",
             "--embedding_manager_ckpt", "~/toy.safetensors", "trainer.max_steps=1"]  # fmt: skip
    assert official.main(words) == 0
    assert not list(tmp_path.iterdir())
    (run,) = (home / "logs").iterdir()
    assert official.main(["-t", "-r", f"~/logs/{run.name}", "trainer.max_steps=2"]) == 0


NO_PROMPTS: dict[str, Any] = {"show": {"prompts": ()}, "steps": 1, "progress": False}
CALLS: dict[str, Callable[[], object]] = {
    "load": lambda: ldm.load("~/tiny", "~/tiny/model.safetensors"),
    "invert": lambda: ldm.invert(ldm.load("~/tiny"), "~/p", "<a>", **NO_PROMPTS),
    "files": lambda: ldm.invert(ldm.load("~/tiny"), ["~/p/0.png", "~/p/1.png"], "<a>", **NO_PROMPTS),
    "embedding": lambda: ldm.embeddings.save_embeddings(
        ldm.embeddings.load_embedding("~/toy.safetensors"), "~/again.safetensors"
    ),
    "source": lambda: ldm.load_source(ldm.load("~/tiny"), "~/p/0.png", mask="~/mask.png"),
    "templates": lambda: read_templates("~/lines.txt"),
}


@pytest.mark.slow
@pytest.mark.parametrize("name", CALLS)
def test_every_call_finds_home(name: str, tmp_path: Path) -> None:
    CALLS[name]()
    assert not list(tmp_path.iterdir())


def test_a_user_who_does_not_exist_is_left_as_written() -> None:
    assert expanded("~no-such-user-here/x") == Path("~no-such-user-here/x")
    assert expanded("a/~/b") == Path("a/~/b")
    assert main(["inspect", "~no-such-user-here/x.safetensors"]) == 2


# ------------------------------------------------------------------ files of the package
PACKAGE = Path(ldm.__file__).parent


@pytest.mark.parametrize("name", [
    "configs/emoji/diffusion.yaml", "configs/emoji/holdout.txt", "configs/emoji/known.txt",
    "configs/emoji/things.txt", "configs/emoji/concepts/koala", "configs/latent-diffusion/txt2img-1p4B.yaml",
    "configs/stable-diffusion/v2-base.yaml", "ldm/assets/bert/vocab.txt", "ldm/assets/emoji",
])  # fmt: skip
def test_files_of_the_package_are_found_by_name_in_every_folder(name: str) -> None:
    path = found(name)
    assert path.exists() and path.is_relative_to(PACKAGE.parent)
    assert path.as_posix().endswith(name)


def test_what_lies_here_comes_first(tmp_path: Path) -> None:
    own = Path("configs/emoji/holdout.txt")
    own.parent.mkdir(parents=True)
    own.symlink_to("nowhere")  # a link that leads nowhere is said, not passed over
    assert found(own) == own


@pytest.mark.parametrize("name", ["configs/none.yaml", "ldm/config.py", "holdout.txt", "/configs/emoji", "x"])
def test_other_names_are_left_as_written(name: str) -> None:
    assert found(name) == Path(name)


def test_a_stage_finds_its_settings_and_its_vocabulary() -> None:
    values = load_yaml(["configs/emoji/diffusion.yaml"])
    assert resolve(ModelConfig, values["model"]).schedule.kind == "cosine"
    text = instantiate(values["model"]["text"])
    assert text.width == 384
    assert len(load_holdout(Path("configs/emoji/holdout.txt"))) == 100
    assert len(list_pictures("configs/emoji/concepts/koala")) == 5


def test_nothing_is_written_into_the_package() -> None:
    """``--out`` is a folder here, whatever its name."""
    given = Path("configs/emoji/concepts/owl")
    with common.output(given, given) as folder:
        assert folder == given and given.is_dir()
