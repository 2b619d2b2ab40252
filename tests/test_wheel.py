"""A wheel stands alone: in an empty folder, its commands find their files in the package."""

import json
import os
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
ASSETS = ROOT / "ldm" / "assets"
SOURCES = ("setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "ldm", "configs")

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this tree, built elsewhere, so that no build/ of before has a part in it."""
    tree = tmp_path_factory.mktemp("tree")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)
    pip(["wheel", "--no-build-isolation", "--wheel-dir", "dist", "."], tree)
    (built,) = (tree / "dist").iterdir()
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder for PYTHONPATH with the wheel in it; what it depends on is this environment's."""
    folder = tmp_path_factory.mktemp("installed")
    pip(["install", "--target", str(folder), str(wheel)], folder)
    return folder


def pip(words: Sequence[str], folder: Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", words[0]]
    done = subprocess.run(
        [*command, "--no-deps", "--no-index", *words[1:]], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr


def python(installed: Path, folder: Path, *words: str) -> str:
    """What Python prints that knows the wheel and not this clone."""
    done = subprocess.run(
        [sys.executable, *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_a_wheel_holds_the_package_and_what_its_commands_read(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
    assert {name.partition("/")[0].partition("-")[0] for name in names} == {"ldm"}
    endings = {Path(name).suffix for name in names if name.startswith("ldm/")}
    assert endings == {".py", ".typed", ".yaml", ".txt", ".tsv", ".md", ".png", ".safetensors"}
    assert not [name for name in names if "test" in name.lower() or "__pycache__" in name]
    kept = {path.relative_to(ROOT).as_posix() for path in (ROOT / "configs").rglob("*") if path.is_file()}
    wanted = {f"ldm/{name}" for name in kept if not name.startswith("configs/slurm/")}
    assert {name for name in names if name.startswith("ldm/configs/")} == wanted
    modules = {path.relative_to(ROOT).as_posix() for path in (ROOT / "ldm").rglob("*.py")}
    assert {name for name in names if name.endswith(".py")} == modules
    assert wheel.stat().st_size < 80e6


def test_the_wheel_is_what_is_imported(installed: Path, tmp_path: Path) -> None:
    assert Path(python(installed, tmp_path, "-c", "import ldm; print(ldm.__file__)").strip()).is_relative_to(
        installed
    )
    assert python(installed, tmp_path, "-m", "ldm", "--version").startswith("ldm ")
    script = (installed / "bin" / "ldm").read_text()
    assert "ldm.cli.main" in script


KOALA = "configs/emoji/concepts/koala"
SHORT = ["trainer.max_steps=1", "trainer.image_every=0"]
STAGE = ["batch_size=2", "trainer.max_steps=1", "trainer.image_every=0", "trainer.accelerator=cpu"]
SOURCE = (
    "{share: 1, target: ldm.data.pictures.EmojiPictures, "
    "params: {root: data/emoji, holdout: configs/emoji/holdout.txt}}"
)
COMMANDS = [
    ["invert", "--images", KOALA, "--name", "<koala>", "--init", "bear", "--out", "run",
     "--set", *SHORT, "show.prompts=[]"],
    ["sample", "--embedding", "run/embeddings.safetensors", "--prompt", "a photo of <koala>", "--n", "1",
     "--steps", "1", "--out", "drawn"],
    ["sample", "--prompts-file", "configs/emoji/things.txt", "--n", "1", "--steps", "1", "--out", "things"],
    ["evaluate", "--embedding", "run/embeddings.safetensors", "--images", KOALA, "--n", "1", "--steps", "1"],
    ["evaluate", "base", "--n", "1", "--steps", "1", "--among", "2", "--out", "base"],
    ["evaluate", "inversion", "--concepts", "1", "--n", "1", "--steps", "1", "--pictures", "2",
     "--set", *SHORT, "--out", "inversion"],
    ["evaluate", "inversion", "--holdout", "configs/emoji/known.txt", "--concepts", "1", "--n", "1",
     "--steps", "1", "--pictures", "2", "--set", *SHORT, "--out", "known"],
    ["train", "autoencoder", "data.params.sets=null", "linear_pictures=64", *STAGE],
    ["train", "latents", "count=4", "batch_size=2"],
    ["train", "diffusion", f"data.params.sources=[{SOURCE}]", "picture_words=false", "workers=0",
     "compiled=false", *STAGE],
    ["train", "export", "--run", "logs/emoji-diffusion", "--out", "model"],
    ["train", "clip", *STAGE],
]  # fmt: skip


def test_every_command_finds_its_files_in_an_empty_folder(installed: Path, tmp_path: Path) -> None:
    write_emoji(tmp_path / "data" / "emoji")
    script = """
import json, sys
from ldm.cli.main import main
for words in json.load(sys.stdin):
    if main(words):
        sys.exit(f"failed: {' '.join(words)}")
"""
    done = subprocess.run(
        [sys.executable, "-c", script],
        input=json.dumps(COMMANDS),
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(installed)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("run", "drawn", "things", "base", "inversion", "known", "model", "logs/emoji-clip/clip"):
        assert (tmp_path / name).is_dir(), name
    assert not (tmp_path / "configs").exists() and not (tmp_path / "ldm").exists()


def write_emoji(folder: Path) -> None:
    """What ``ldm train data`` prepares, with drawings of noise: things held out and things known."""
    rows = [line.split("\t") for line in (ASSETS / "emoji-clip" / "concepts.tsv").read_text().splitlines()]
    judged = {code: (group, subgroup, label) for code, group, subgroup, label in rows}
    concepts = []
    for name in ("holdout.txt", "known.txt"):
        lines = (ROOT / "configs" / "emoji" / name).read_text().splitlines()
        codes = [line.split("#")[0].strip() for line in lines]
        for code in [code for code in codes if code in judged][:4]:
            group, subgroup, label = judged[code]
            concepts.append({"hex": code, "label": label, "tags": [], "group": group, "subgroup": subgroup})
    assert len(concepts) == 8
    sprites = np.random.default_rng(0).integers(0, 255, (8, 3, 64, 64, 4), dtype=np.uint8)
    sprites[..., 3] = 255
    folder.mkdir(parents=True)
    (folder / "concepts.json").write_text(json.dumps(concepts))
    np.savez(folder / "sprites.npz", sprites=sprites)
