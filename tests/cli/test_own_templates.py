"""Templates of one's own: a list or a file, the same by API, command line, YAML and list of concepts."""

from pathlib import Path

import pytest
import tiny
import yaml

import ldm
from ldm.config import load_yaml, resolve
from ldm.inversion.config import InversionConfig
from ldm.io.embeddings import Embedding, load_embedding

pytestmark = pytest.mark.slow

OWN = ["a cat {}", "the toy {} in snow"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    (tmp_path / "own.txt").write_text("\n".join(OWN))
    return tmp_path / "own.txt"


def by_api(cli, model_folder, pictures, given) -> Embedding:
    return ldm.invert(ldm.load(model_folder), pictures, "<x>", "cat", templates=given, progress=False)


def by_command(cli, model_folder, pictures, given) -> Embedding:
    option = ["--templates", given] if isinstance(given, str) else ["--set", f"templates={given}"]
    words = ("invert", "--model", model_folder, "--images", pictures, "--name", "<x>", "--init", "cat")
    result = cli(*words, *option, "--out", "run")
    assert result.code == 0, result.err
    written = load_yaml(["run/config.yaml"])["captions"]["templates"]
    assert written == OWN  # the sentences, wherever they came from
    return load_embedding("run/embeddings.safetensors")


def by_list(cli, model_folder, pictures, given) -> Embedding:
    concept = {"name": "<x>", "images": str(pictures), "init": "cat", "templates": given}
    Path("list.yaml").write_text(yaml.safe_dump({"concepts": [concept]}))
    result = cli("invert", "--model", model_folder, "--concepts", "list.yaml", "--out", "all")
    assert result.code == 0, result.err
    return load_embedding("all/x/embeddings.safetensors")


@pytest.mark.parametrize("way", [by_api, by_command, by_list])
def test_a_list_and_a_file_teach_the_same_word_and_another_than_the_sets(
    cli, model_folder, pictures, file, way
):
    by_file = way(cli, model_folder, pictures, str(file))
    for folder in ("run", "all"):
        if Path(folder).exists():
            Path(folder).rename(f"{folder}-before")
    listed = way(cli, model_folder, pictures, OWN)
    plain = by_api(cli, model_folder, pictures, "plain")
    assert (by_file.vectors == listed.vectors).all() and not (plain.vectors == listed.vectors).all()
    assert by_file.metadata["templates"] == listed.metadata["templates"]
    assert listed.metadata["templates"].startswith("2 own, sha256 ")
    assert plain.metadata["templates"] == "plain"


def test_a_run_goes_on_although_the_file_has_changed(cli, model_folder, pictures, file):
    by_command(cli, model_folder, pictures, str(file))
    before = load_yaml(["run/config.yaml"])
    file.unlink()
    assert resolve(InversionConfig, before).captions.templates == tuple(OWN)


@pytest.mark.parametrize("given", ["nowhere.txt", ["a photo"], []])
@pytest.mark.parametrize("command", ["invert", "list"])
def test_what_are_no_templates_is_one_line_and_leaves_nothing(cli, model_folder, pictures, given, command):
    if command == "list":
        concept = {"name": "<x>", "images": str(pictures), "templates": given}
        Path("list.yaml").write_text(yaml.safe_dump({"concepts": [concept]}))
        result = cli("invert", "--model", model_folder, "--concepts", "list.yaml", "--out", "run")
    else:
        words = ("invert", "--model", model_folder, "--images", pictures, "--name", "<x>", "--out", "run")
        result = cli(*words, "--set", f"templates={given}")
    assert result.code == 2 and result.err.count("\n") == 1 and "template" in result.err, result.err
    assert not Path("run").exists()


def test_pictures_have_words_of_their_own_with_them(model_folder, pictures):
    settings = {**tiny.QUICK, "captions": {"templates": OWN, "per_image_tokens": True, "mixing_prob": 0.5}}
    word = ldm.invert(ldm.load(model_folder), pictures, "<x>", "cat", progress=False, **settings)
    assert word.vectors.isfinite().all()
