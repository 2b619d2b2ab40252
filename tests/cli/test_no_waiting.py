"""A pipe or a folder in place of a file: every option that takes a file says so, and waits for nobody."""

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from PIL import Image

from ldm.cli import official

pytestmark = pytest.mark.slow

LINES = {
    "model": "sample --model {} --prompt x --out new",
    "checkpoint": "sample --model tiny --checkpoint {} --prompt x --out new",
    "embedding": "sample --model tiny --embedding {} --prompt x --out new",
    "sample again": "sample --model tiny --again {} --out new",
    "edit again": "edit --model tiny --image photo.png --again {} --out new",
    "image": "edit --model tiny --image {} --prompt x --out new",
    "image again": "edit --model tiny --image {} --again photo.png --out new",
    "mask": "edit --model tiny --image photo.png --mask {} --prompt x --out new",
    "images": "invert --model tiny --images {} --name <x> --out new",
    "concepts": "invert --model tiny --concepts {} --out new",
    "start": "invert --model tiny --images pictures --name <x> --out new --set init_embedding={}",
    "inspect": "inspect --model tiny {}",
    "show": "embeddings show {}",
    "convert": "embeddings convert {} new.pt",
    "merge": "embeddings merge {} toy.safetensors --out new.safetensors",
    "evaluate": "evaluate --model tiny --embedding {} --images pictures --out new",
    "stage": "train autoencoder --base {} --out new",
    "main.py": "--base {} -t -l new",
}


@pytest.fixture(autouse=True)
def impatient() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise TimeoutError("it waited")

    before = signal.signal(signal.SIGALRM, stop)
    signal.alarm(30)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("what", ["pipe", "folder"])
@pytest.mark.parametrize("option", LINES)
def test_what_is_no_file_is_said_at_once(
    cli: Callable, model_folder: Path, pictures: Path, embedding: Path, capsys: pytest.CaptureFixture[str],
    option: str, what: str,
) -> None:  # fmt: skip
    Image.new("RGB", (16, 16)).save("photo.png")
    if what == "pipe":
        os.mkfifo("there.png")
    elif what == "folder":
        Path("there.png").mkdir()
    words = [word.format("there.png") for word in LINES[option].split()]
    if option == "main.py":
        status, err = official.main(words), capsys.readouterr().err
    else:
        result = cli(*words)
        status, err = result.code, result.err
    assert status == 2, err
    assert err.count("\n") == 1 and err.startswith("ldm: error: ") and "Traceback" not in err
    assert "there.png" in err or option == "image again"
    if what == "pipe" and option not in ("images", "image again"):
        assert "a pipe" in err
    assert not list(Path().glob("new*"))
