"""Names of files and folders that are not UTF-8, as old archives leave them, and consoles of few letters."""

import io
import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from ldm.cli import official
from ldm.cli.main import main
from ldm.config import dump_yaml
from ldm.io.embeddings import Embedding, load_embedding, save_embeddings

pytestmark = pytest.mark.slow

LATIN = os.fsdecode(b"caf\xe9")  # "café" in Latin-1, a lone byte in UTF-8


@pytest.fixture
def odd(tmp_path: Path, model_folder: Path, pictures: Path) -> Path:
    """A folder whose name is no UTF-8, with the model and pictures of such names in it."""
    folder = tmp_path / LATIN
    folder.mkdir()
    model_folder.rename(folder / f"m{LATIN}")
    pictures.rename(folder / f"p{LATIN}")
    picture = folder / f"p{LATIN}" / "0.png"
    picture.rename(picture.with_name(f"{LATIN}.png"))
    return folder


def test_a_word_is_learned_resumed_drawn_and_looked_at(cli: Callable, odd: Path) -> None:
    run, model = odd / "run", odd / f"m{LATIN}"
    words = ["invert", "--model", model, "--images", odd / f"p{LATIN}", "--name", "<toy>"]
    words += ["--set", "logging.loggers=[csv,tensorboard]"]
    for more in (["--steps", 2, "--out", run, *words[1:]], ["--resume", "--out", run, "--steps", 4]):
        result = cli("invert", *more)
        assert result.code == 0, result.err
    assert load_embedding(run / "embeddings.safetensors").metadata["step"] == "4"
    word = ["--model", model, "--embedding", run / "embeddings.safetensors"]
    drawn = cli("sample", *word, "--prompt", "a {}", "--n", 1, "--steps", 1, "--out", odd / "out")
    assert drawn.code == 0, drawn.err
    assert cli("inspect", run / "embeddings.safetensors", "--model", model).code == 0
    picture = next((odd / "out").glob("00*.png"))
    again = cli("sample", "--again", picture, "--model", model, "--out", odd / "again")
    assert again.code == 0, again.err
    edited = cli("edit", "--image", odd / f"p{LATIN}" / f"{LATIN}.png", *word, "--prompt", "a {}", "--n", 1,
                 "--steps", 1, "--out", odd / "edited")  # fmt: skip
    assert edited.code == 0, edited.err


def test_a_list_of_concepts_is_learned(cli: Callable, odd: Path) -> None:
    entries = [{"name": f"<{i}>", "images": f"{odd}/p{LATIN}"} for i in range(2)]
    (odd / f"{LATIN}.yaml").write_text(dump_yaml({"concepts": entries}))
    words = ["--model", odd / f"m{LATIN}", "--concepts", odd / f"{LATIN}.yaml"]
    result = cli("invert", *words, "--out", odd / "all")
    assert result.code == 0, result.err
    again = cli("invert", "--resume", "--out", odd / "all")
    assert again.code == 0, again.err


def test_the_official_command_line(cli: Callable, odd: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base = {"model": str(odd / f"m{LATIN}"), "placeholder": "<toy>", "images": str(odd / f"p{LATIN}")}
    (odd / "a.yaml").write_text(dump_yaml(base))
    monkeypatch.chdir(odd)
    assert official.main(["--base", "a.yaml", "-t", "-n", "x", "-l", str(odd / "logs")]) == 0


def test_a_config_says_such_a_name_and_reads_it_back(tmp_path: Path) -> None:
    from ldm.config import load_yaml

    (tmp_path / "a.yaml").write_text(dump_yaml({"images": LATIN, "list": [LATIN], "deep": {LATIN: LATIN}}))
    yaml.safe_load((tmp_path / "a.yaml").read_text())
    assert load_yaml([tmp_path / "a.yaml"]) == {"images": LATIN, "list": [LATIN], "deep": {LATIN: LATIN}}


# ------------------------------------------------------------------------------ consoles
class Console(io.TextIOWrapper):
    """A terminal of an encoding, which refuses what it has no letter for, as Windows' and containers' do."""

    def __init__(self, encoding: str) -> None:
        super().__init__(io.BytesIO(), encoding=encoding, errors="strict")

    def text(self) -> str:
        self.flush()
        return self.buffer.getvalue().decode(self.encoding)  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_whatever_is_printed_is_printed_on_every_console(
    encoding: str, odd: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model, word = str(odd / f"m{LATIN}"), odd / f"{LATIN}.safetensors"
    save_embeddings(Embedding("<猫 é 🙂>", torch.ones(1, 32)), tmp_path / "w.safetensors")
    (tmp_path / "w.safetensors").rename(word)
    lines = [
        ["embeddings", "show", str(word)],
        ["inspect", "--model", model, str(word)],
        ["sample", "--model", model, "--prompt", "猫 é 🙂", "--n", "1", "--steps", "1", "--out", f"{odd}/猫"],
        ["sample", "--model", model, "--embedding", f"{odd}/猫🙂.pt", "--prompt", "x"],
        ["invert", "--help"],
    ]
    for words in lines:
        out, err = Console(encoding), Console(encoding)
        monkeypatch.setattr(sys, "stdout", out)
        monkeypatch.setattr(sys, "stderr", err)
        try:
            status = main(words)
        except SystemExit as stop:
            status = int(stop.code or 0)
        assert status == (2 if "x" in words else 0), err.text()
        assert "Traceback" not in err.text()
        assert (out if status == 0 else err).text()


def test_files_of_such_names_are_named_in_warnings_and_errors(cli: Callable, odd: Path) -> None:
    folder = odd / f"p{LATIN}"
    for path in folder.iterdir():
        path.unlink()
    (folder / f"{LATIN}.xyz").touch()
    result = cli("invert", "--model", odd / f"m{LATIN}", "--images", folder, "--name", "<toy>")
    assert result.code == 2 and result.err.count("\n") == 2
    assert "\\udce9.xyz" in result.err
    assert f"no pictures in {folder}".replace("\udce9", "\\udce9") in result.err
