"""``config.yaml`` is what trained, reads back as it was written, and is what a resumed run goes on with."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
import yaml

from ldm.config import load_yaml, resolve
from ldm.inversion.config import InversionConfig, as_official
from ldm.io.embeddings import load_embedding
from ldm.names import normal
from ldm.official.quirks import OFFICIAL, switches

pytestmark = pytest.mark.slow

OFFICIAL_QUIRKS = ["compat={weight_decay: true, encoder_calls: true}", "num_vectors=2", "progressive=[6]",
                   "show.samples_per_prompt=0", "logging.loggers=[]"]  # fmt: skip


@pytest.fixture
def common(model_folder: Path, pictures: Path) -> tuple:
    return ("invert", "--model", model_folder, "--images", pictures, "--init", "cat")


@pytest.mark.parametrize("way", ["alone", "list"])
def test_what_is_written_is_what_trained(cli, common, pictures, tmp_path, monkeypatch, way: str) -> None:
    from ldm.inversion import task

    trained = []
    real = task._module

    def module(model, batches, config, words):
        trained.append(config)
        return real(model, batches, config, words)

    monkeypatch.setattr(task, "_module", module)
    if way == "alone":
        result = cli(*common, "--name", "<toy>", "--out", "run/toy", "--set", *OFFICIAL_QUIRKS)
    else:
        (tmp_path / "c.yaml").write_text(yaml.safe_dump({"concepts": [{
            "name": "<toy>", "images": str(pictures), "init": "cat"}]}))  # fmt: skip
        result = cli("invert", "--concepts", "c.yaml", "--model", common[2], "--out", "run",
                     "--set", *OFFICIAL_QUIRKS)  # fmt: skip
    assert result.code == 0, result.err
    written = resolve(InversionConfig, load_yaml(["run/toy/config.yaml"]))
    (config,) = trained
    assert written == config
    assert config.optim.weight_decay == 0.01 and config.progressive not in ((), (6,))
    assert as_official(config, 3) == config  # nothing more is to be worked in


def test_a_whole_official_config_is_written_and_resumed(cli, common, pictures) -> None:
    """The count of encoder calls becomes steps once, and not once more at each resume."""
    words = (*common, "--name", "cat", "--set", *OFFICIAL_QUIRKS, "trainer.checkpoint_every=1")
    assert cli(*words, "--out", "whole", "--steps", 4).code == 0
    assert cli(*words, "--out", "cut", "--steps", 2).code == 0
    before = load_yaml(["cut/config.yaml"])
    result = cli("invert", "--resume", "--out", "cut", "--steps", 4)
    assert result.code == 0, result.err
    after = load_yaml(["cut/config.yaml"])
    assert after["progressive"] == before["progressive"] and after["trainer"]["max_steps"] == 4
    whole, cut = (load_embedding(Path(run, "embeddings.safetensors")).vectors for run in ("whole", "cut"))
    assert torch.equal(whole, cut)
    again = cli(*words, "--resume", "--out", "cut", "--steps", 5)  # the whole command, once more
    assert again.code == 0, again.err


def test_official_quirks_that_change_no_number_stay_one_word() -> None:
    config = InversionConfig(images=Path("p"), placeholder="*", compat="official")
    official = as_official(config, 3)
    assert official.compat == "official" and official.optim.weight_decay == 0.01
    grown = as_official(replace(config, num_vectors=2, progressive=(2000,)), 3)
    assert switches(grown.compat) == replace(OFFICIAL, encoder_calls=False)


@pytest.mark.parametrize("name", ["1e3", "${5}"])
def test_a_run_of_any_name_is_resumed(cli, common, name: str) -> None:
    quick = ("--steps", 1, "--set", "logging.loggers=[]", "show.samples_per_prompt=0")
    result = cli(*common, "--name", name, "--out", "run", *quick)
    assert result.code == 0, result.err
    assert load_yaml(["run/config.yaml"])["placeholder"] == normal(name)
    again = cli("invert", "--resume", "--out", "run", "--steps", 2)
    assert again.code == 0, again.err
    word = load_embedding("run/embeddings.safetensors")
    assert word.placeholder == normal(name) and word.metadata["step"] == "2"
