"""Runs and pictures can be shared: no secret of the command, its paths or its config is in any file."""

import json
from pathlib import Path

import pytest
import yaml
from PIL import Image

pytestmark = pytest.mark.slow

SECRET, OTHER = "hf_AbCdEfGhIjKlMnOpQrStUvWx", "qwertz123456"


def leaks(folder: Path) -> list[Path]:
    """Files with a secret in them, or in their name."""
    found = []
    for path in folder.rglob("*"):
        data = path.read_bytes() if path.is_file() else b""
        if any(s.encode() in data or s in path.name for s in (SECRET, OTHER)):
            found.append(path)
    return found


@pytest.fixture
def places(model_folder: Path, pictures: Path) -> tuple[Path, Path, Path]:
    """Model, weights and pictures at paths with secrets in them, as downloads leave them."""
    weights = model_folder.with_name(f"weights.safetensors?token={OTHER}")
    (model_folder / "model.safetensors").rename(weights)
    return model_folder, weights, pictures.rename(pictures.with_name(SECRET))


@pytest.fixture
def words(places, monkeypatch) -> list[object]:
    model, weights, pictures = places
    words = ["invert", "--model", model, "--checkpoint", weights, "--images", pictures, "--name", "<x>",
             "--init", "cat", "--set", f"logging.options.api_key={OTHER}"]  # fmt: skip
    monkeypatch.setattr("sys.argv", ["ldm", *map(str, words)])
    return words


def test_a_run_holds_no_secret_and_goes_on_when_they_are_given_again(cli, words):
    result = cli(*words, "--out", "run")
    assert result.code == 0, result.err
    assert leaks(Path("run")) == []
    assert "REDACTED" in Path("run/config.yaml").read_text()
    assert "REDACTED" in json.loads(Path("run/manifest.json").read_text())["commands"][0]
    assert "REDACTED" in Path("run/report.html").read_text()
    more = ("--steps", 4, "--resume", "--out", "run")
    result = cli("invert", *more)
    assert result.code == 2 and "was kept without the secret in it; give it again" in result.err
    assert result.err.count("\n") == 1
    result = cli(*words, *more)
    assert result.code == 0, result.err
    assert leaks(Path("run")) == []


def test_a_list_of_concepts_holds_no_secret(cli, places):
    model, weights, pictures = places
    concept = {"name": "<x>", "images": str(pictures), "init": "cat"}
    Path("list.yaml").write_text(yaml.safe_dump({"concepts": [concept]}))
    words = ("invert", "--model", model, "--concepts", "list.yaml", "--set", f"checkpoint={weights}")
    result = cli(*words, "--out", "all")
    assert result.code == 0, result.err
    assert leaks(Path("all")) == []
    result = cli("invert", "--resume", "--out", "all")
    assert result.code == 2 and "was kept without the secret" in result.err and "<x>" in result.err
    result = cli(*words, "--resume", "--out", "all")
    assert result.code == 0 and "kept" in result.out, result.err


@pytest.mark.parametrize("command", ["sample", "edit"])
def test_a_picture_holds_no_secret(cli, model_folder, pictures, embedding, command):
    folder = model_folder.rename(model_folder.with_name(f"tiny-{SECRET}"))
    word = embedding.rename(embedding.with_name(f"x.safetensors?token={OTHER}"))
    image = pictures / f"{SECRET}.png"
    (pictures / "0.png").rename(image)
    mask = pictures / f"mask-{SECRET}.png"
    Image.new("L", (8, 8), "white").save(mask)
    start = ("--image", image, "--mask", mask) if command == "edit" else ()
    words = (command, "--model", folder, *start, "--embedding", word, "--prompt", "a {}")
    result = cli(*words, "--n", 1, "--steps", 1, "--out", "out")
    assert result.code == 0, result.err
    assert leaks(Path("out")) == [] and list(Path("out").glob("00_*.png"))
