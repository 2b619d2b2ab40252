"""A run goes on from whatever is there, with the settings it was started with."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ldm.errors import UserError
from ldm.inversion.resume import is_whole, whole_checkpoint
from ldm.inversion.run import run_inversion
from ldm.io.embeddings import load_embedding

pytestmark = pytest.mark.slow


# ------------------------------------------------------------------ checkpoints
def checkpoint(path: Path, step: int) -> Path:
    path.parent.mkdir(exist_ok=True)
    torch.save({"global_step": step, "weights": torch.arange(4096.0)}, path)
    return path


def flipped(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


DAMAGE = {
    "cut": lambda data: data[:-100],
    "half": lambda data: data[: len(data) // 2],
    "empty": lambda data: b"",
    "text": lambda data: b"no checkpoint",
    "one bit": flipped,
    "zeros at the end": lambda data: data[: len(data) // 2] + bytes(len(data) // 2),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_a_damaged_last_checkpoint_is_passed_over_for_the_latest_whole_one(tmp_path, damage, caplog):
    folder = tmp_path / "checkpoints"
    last = checkpoint(folder / "last.ckpt", 12)
    for step in (8, 10):
        checkpoint(folder / f"step={step}.ckpt", step)
    assert whole_checkpoint(tmp_path) == (last, 12)
    last.write_bytes(DAMAGE[damage](last.read_bytes()))
    assert not is_whole(last)
    assert whole_checkpoint(tmp_path) == (folder / "step=10.ckpt", 10)
    for step in (8, 10):
        path = folder / f"step={step}.ckpt"
        path.write_bytes(DAMAGE[damage](path.read_bytes()))
    with pytest.raises(UserError, match="last.ckpt is damaged, and no other checkpoint is whole"):
        whole_checkpoint(tmp_path)


def test_no_checkpoint_is_none(tmp_path):
    assert whole_checkpoint(tmp_path) is None


# ------------------------------------------------------------------ a run's settings
@pytest.fixture
def run(cli, model_folder, pictures) -> Path:
    """A run of three steps."""
    words = ("--model", model_folder, "--images", pictures, "--name", "<toy>", "--init", "cat")
    assert cli("invert", *words, "--out", "run").code == 0
    return Path("run").absolute()


def everything(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


REFUSED = {
    "num_vectors": ["--num-vectors", 2],
    "word.kind": ["--per-layer"],
    "optim.lr": ["--lr", 0.5],
    "seed": ["--seed", 9],
    "init": ["--init", "dog"],
    "placeholder": ["--name", "<other>"],
    "trainer.precision": ["--precision", "bf16-mixed"],
    "batch_size": ["--batch-size", 3],
    "captions.templates": ["--templates", "style"],
    "pictures.flip_p": ["--set", "pictures.flip_p=0"],
    "trainer.accumulate": ["--set", "trainer.accumulate=2"],
    "optim.weight_decay": ["--set", "optim.weight_decay=0.5"],
    "timesteps": ["--set", "timesteps.power=2"],
}


@pytest.mark.parametrize("key", REFUSED)
def test_what_cannot_change_is_refused_and_nothing_is_written(cli, run, key):
    if key == "timesteps":
        pytest.skip("named by its keys")
    before = everything(run)
    result = cli("invert", "--resume", "--out", run, *REFUSED[key])
    assert result.code == 2 and f"{key} is " in result.err and result.err.count("\n") == 1, result.err
    assert everything(run) == before
    assert cli("invert", "--resume", "--out", run).code == 0


@pytest.mark.parametrize(
    ("words", "what"),
    [(["--images", "others"], "other pictures"), (["--model", "other"], "another base model")],
)
def test_other_pictures_and_another_model_are_refused(cli, run, model_folder, pictures, words, what):
    shutil.copytree(pictures, "others")
    Path("others/0.png").unlink()
    shutil.copytree(model_folder, "other")
    from safetensors.torch import load_file, save_file

    weights = load_file("other/model.safetensors")
    save_file({name: value + 1 for name, value in weights.items()}, "other/model.safetensors")
    before = everything(run)
    result = cli("invert", "--resume", "--out", run, *words)
    assert result.code == 2 and what in result.err, result.err
    assert everything(run) == before


def test_model_and_pictures_may_have_moved(cli, run, model_folder, pictures):
    model, moved = model_folder.rename("moved-model"), pictures.rename("moved-pictures")
    result = cli("invert", "--resume", "--out", run, "--model", model, "--images", moved, "--steps", 4)
    assert result.code == 0, result.err
    assert yaml.safe_load((run / "config.yaml").read_text())["images"] == str(moved)


def test_what_can_change_is_obeyed_and_recorded(cli, run):
    more = ["--steps", 5, "--prompt", "two {}", "--set", "trainer.checkpoint_every=1", "trainer.log_every=2"]
    result = cli("invert", "--resume", "--out", run, *more)
    assert result.code == 0, result.err
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["trainer"]["max_steps"] == 5 and config["trainer"]["checkpoint_every"] == 1
    assert config["show"]["prompts"] == ["two {}"]
    assert (run / "checkpoints" / "embeddings_gs-4.safetensors").is_file()
    assert load_embedding(run / "embeddings.safetensors").metadata["step"] == "5"
    fewer = cli("invert", "--resume", "--out", run, "--steps", 4)
    assert fewer.code == 2 and "has made 5 steps already" in fewer.err


# ------------------------------------------------------------------ whatever is there
LEFT = {
    "nothing": [],
    "a lock": [".ldm-lock"],
    "settings": ["config.yaml"],
    "settings and latents": ["config.yaml", "latents"],
    "no checkpoint": ["config.yaml", "latents", "manifest.json", "images"],
}


@pytest.mark.parametrize("left", LEFT)
def test_the_same_command_with_resume_goes_on_from_whatever_a_kill_left(
    cli, run, model_folder, pictures, left
):
    whole = (run / "embeddings.safetensors").read_bytes()
    for path in run.iterdir():
        if path.name not in LEFT[left]:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    (run / ".ldm-lock").touch()
    words = ("--model", model_folder, "--images", pictures, "--name", "<toy>", "--init", "cat")
    result = cli("invert", *words, "--out", run, "--resume")
    assert result.code == 0, result.err
    assert (run / "embeddings.safetensors").read_bytes() == whole


def test_where_there_is_no_run_yet_resume_begins_it_or_says_what_is_missing(cli, model_folder, pictures):
    result = cli("invert", "--resume", "--out", "new")
    assert result.code == 2 and "there is no run in new yet" in result.err and "--images" in result.err
    assert not Path("new").exists()
    words = ("--model", model_folder, "--images", pictures, "--name", "<toy>")
    assert cli("invert", *words, "--out", "new", "--resume").code == 0


# ------------------------------------------------------------------ lists, and their members
@pytest.fixture
def learned_list(cli, model_folder, pictures, tmp_path) -> Path:
    """A list of two, learned in ``all``; returns its file."""
    entries = [{"name": f"<{name}>", "images": str(pictures), "init": "cat"} for name in ("one", "two")]
    path = tmp_path / "list.yaml"
    path.write_text(yaml.safe_dump({"defaults": {"model": str(model_folder)}, "concepts": entries}))
    assert cli("invert", "--concepts", path, "--out", "all").code == 0
    return path


def test_a_list_is_looked_at_before_it_is_gone_on_with(cli, learned_list):
    before = everything(Path("all"))
    values = yaml.safe_load(learned_list.read_text())
    for words, change in (
        (["--seed", 4], {}),
        (["--precision", "bf16-mixed"], {}),
        ([], {"concepts": values["concepts"][:1]}),
        ([], {"defaults": {**values["defaults"], "num_vectors": 2}}),
    ):
        other = Path("other.yaml")
        other.write_text(yaml.safe_dump({**values, **change}))
        result = cli("invert", "--concepts", other, "--resume", "--out", "all", *words)
        assert result.code == 2 and result.err.count("\n") == 1, result.err
        assert everything(Path("all")) == before
    third = {"name": "<three>", "images": values["concepts"][0]["images"]}
    other.write_text(yaml.safe_dump({**values, "concepts": [*values["concepts"], third]}))
    result = cli("invert", "--concepts", other, "--resume", "--out", "all", "--steps", 4)
    assert result.code == 0 and "learned 3 of 3" in result.out, result.err
    assert "<three>" in Path("all/concepts.yaml").read_text()
    assert load_embedding("all/one/embeddings.safetensors").metadata["step"] == "4"


def test_one_member_of_a_pack_goes_on_alone_as_it_would_in_the_pack(cli, learned_list):
    shutil.copytree("all", "alone")
    assert cli("invert", "--resume", "--out", "all", "--steps", 5).code == 0
    result = cli("invert", "--resume", "--out", "alone/one", "--steps", 5)
    assert result.code == 0 and "learned <one>" in result.out, result.err
    one, alone = (load_embedding(f"{folder}/one/embeddings.safetensors") for folder in ("all", "alone"))
    assert alone.metadata["step"] == "5"
    torch.testing.assert_close(one.vectors, alone.vectors, rtol=0, atol=1e-5)


def test_a_run_of_the_library_is_looked_at_too(cli, run):
    from ldm.inversion.config import InversionConfig
    from ldm.inversion.resume import kept_config

    config = kept_config(run, InversionConfig)
    before = everything(run)
    with pytest.raises(UserError, match="num_vectors is 1, not 2"):
        run_inversion(replace(config, num_vectors=2), run, resume=True, progress=False)
    assert everything(run) == before


def test_a_damaged_checkpoint_costs_a_line_and_some_steps(cli, run):
    assert cli("invert", "--resume", "--out", run, "--steps", 5).code == 0
    whole = (run / "embeddings.safetensors").read_bytes()
    last = run / "checkpoints" / "last.ckpt"
    for damaged in (last.read_bytes()[:-100], b"", b"no checkpoint"):
        last.write_bytes(damaged)
        result = cli("invert", "--resume", "--out", run)
        assert result.code == 0 and "last.ckpt is damaged: going on from step=" in result.err, result.err
        assert (run / "embeddings.safetensors").read_bytes() == whole
