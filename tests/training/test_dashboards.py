"""What a run tells its dashboards, read back with the readers of each; a pack tells the same."""

import json
import os
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import plugin_data_pb2
from wandb_file import WandbFile

from ldm.backbone.model import LatentDiffusion
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.inversion.evaluated import log_scores, run_of
from ldm.inversion.many.jobs import Job
from ldm.inversion.many.pack import learn_many
from ldm.inversion.run import learn
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.inversion.task import read_pictures, write_config
from ldm.io.runs import RunFolder, create_run
from ldm.training import loggers
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.optim import OptimConfig

TRAINER = TrainerConfig(max_steps=4, accelerator="cpu", checkpoint_every=2, image_every=2, log_every=1)
SCORE = {"scorer": "a scorer", "metric": "CLIP-I", "figure": 0.5, "n": 4, "ceiling": None, "weights": "ab"}
ONE = "a <one>"


@pytest.fixture(autouse=True)
def at_home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing leaves the test's folder."""
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{tmp_path / 'mlflow.db'}")
    monkeypatch.chdir(tmp_path)  # where MLflow puts files
    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def config(tmp_path: Path) -> InversionConfig:
    (tmp_path / "pictures").mkdir()
    pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8)
    Image.fromarray(pixels.numpy()).save(tmp_path / "pictures" / "0.png")
    return InversionConfig(
        tmp_path / "pictures",
        "<one>",
        init="cat",
        captions=CaptionsConfig(templates="plain"),
        show=ShowConfig(prompts=("a {}",), steps=1, samples_per_prompt=2),
        stop=StopConfig(monitor_every=2, allow_untrained=True),
        batch_size=2,
        trainer=TRAINER,
        optim=OptimConfig(lr=1e-3),
        logging=LoggingConfig(group="cats", job_type="plain", tags=("a tag",)),
    )


def finished(model: LatentDiffusion, config: InversionConfig, logger: str, out: Path, how: str) -> RunFolder:
    """A run that was stopped half way and has gone on."""
    config = replace(config, logging=replace(config.logging, loggers=(logger,)))
    half = replace(config, trainer=replace(TRAINER, max_steps=2))
    if how == "packed":
        for resume, wanted in ((False, half), (True, config)):
            (result,) = learn_many(model, [Job("run", wanted)], out, resume=resume, progress=False)
            assert result.error is None
        return RunFolder(out / "run")
    run = create_run(out / "run")
    for resume, wanted in ((False, half), (True, config)):
        write_config(run, wanted)
        concept, _ = read_pictures(wanted, 16)
        learn(model.with_own_words(), concept, wanted, run=run, resume=resume, progress=False)
    return run


HOW = pytest.mark.parametrize("how", ["alone", "packed"])


@HOW
def test_wandb_holds_the_run_its_tables_and_where_the_word_comes_from(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path, how: str
) -> None:
    run = finished(tiny_model, config, "wandb", tmp_path, how)
    files = sorted((run.path / "logs" / "wandb").glob("offline-run-*"))
    first, second = (WandbFile(folder) for folder in files)
    assert first.run.run_id == second.run.run_id and wandb.run is None  # goes on, and is closed
    found = second.run
    assert (found.run_group, found.job_type, list(found.tags)) == ("cats", "plain", ["a tag"])
    assert found.display_name == "run"
    manifest = run.read_manifest()
    assert second.config["optim"]["lr"] == 1e-3 and second.config["trainer"]["max_steps"] == 4
    assert second.config["base_model"] == manifest["base_model"]
    assert second.config["pictures_sha256"] == manifest["image_hashes"]
    assert second.config["versions"] == manifest["versions"] and second.config["machine"]
    assert {"fixed_loss", "norm/<one>", "train/loss"} <= {name for row in second.history for name in row}
    shown = [row for row in first.history if f"pictures/{ONE}.filenames" in row]
    assert {row["trainer/global_step"] for row in shown} == {0, 2}
    assert (first.folder / "files" / shown[-1][f"pictures/{ONE}.filenames"][0]).is_file()
    words = first.table("nearest words")
    assert words[0]["learned"] == "<one>" and -1 <= words[0]["cosine"] <= 1.001
    samples = second.table("samples")
    assert [(row["prompt"], row["seed"], row["step"]) for row in samples] == [(ONE, 23, 4)] * 2
    with Image.open(samples[0]["picture"]) as picture:
        assert picture.size == (16, 16)
    assert second.summary["steps"] == 4 and second.summary["loss"] == manifest["loss"]
    artifacts = {artifact.type: artifact for artifact in second.artifacts}
    assert artifacts["model"].use_after_commit and artifacts["dataset"].use_after_commit
    assert not artifacts["embedding"].use_after_commit
    (reference,) = artifacts["dataset"].manifest.contents
    assert reference.path == "0.png" and manifest["image_hashes"]["0.png"] in reference.digest
    assert manifest["base_model"] in artifacts["model"].manifest.contents[0].digest
    assert json.loads(artifacts["embedding"].metadata)["step"] == "4"


@HOW
def test_tensorboard_has_hparams_pictures_by_prompt_words_and_tables(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path, how: str
) -> None:
    run = finished(tiny_model, config, "tensorboard", tmp_path, how)
    log_scores(run.path, "<one>", [SCORE], 4)
    events = EventAccumulator(str(run.path / "logs" / "tensorboard"), {"images": 0, "tensors": 0})
    events.Reload()
    tags = events.Tags()
    assert {"fixed_loss", "train/loss", "score/a scorer/CLIP-I"} <= set(tags["scalars"])
    assert {event.step for event in events.Images(f"pictures/{ONE}")} == {0, 2, 4}
    plugin = events.summary_metadata["_hparams_/session_start_info"].plugin_data
    start = plugin_data_pb2.HParamsPluginData.FromString(plugin.content).session_start_info
    assert start.hparams["optim.lr"].number_value == 1e-3
    assert start.hparams["base_model"].string_value == run.read_manifest()["base_model"]
    texts = {tag: events.Tensors(tag)[-1].tensor_proto.string_val[0].decode() for tag in tags["tensors"]
             if tag.endswith("/text_summary")}  # fmt: skip
    assert "&#60;one&#62;" in texts["samples/text_summary"]
    assert run.read_manifest()["image_hashes"]["0.png"] in texts["embedding/text_summary"]
    assert "CLIP-I" in texts["scores/text_summary"] and "nearest words/<one>/text_summary" in texts


@HOW
def test_mlflow_holds_parameters_scalars_pictures_and_artifacts(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path, how: str
) -> None:
    mlflow = pytest.importorskip("mlflow")
    pytest.importorskip("sqlalchemy")
    run = finished(tiny_model, config, "mlflow", tmp_path, how)
    log_scores(run.path, "<one>", [SCORE], 4)
    client = mlflow.MlflowClient(os.environ["MLFLOW_TRACKING_URI"])
    (experiment,) = [e for e in client.search_experiments() if e.name == "textual-inversion"]
    (found,) = client.search_runs([experiment.experiment_id])  # it has gone on in the same one
    assert found.info.status == "FINISHED" and found.info.run_name == "run"
    assert found.data.params["optim.lr"] == "0.001" and found.data.params["placeholder"] == "<one>"
    assert {"fixed_loss", "norm/one", "score/a scorer/CLIP-I"} <= set(found.data.metrics)
    tags = found.data.tags
    assert tags["base_model"] == run.read_manifest()["base_model"]
    assert (tags["group"], tags["job_type"]) == ("cats", "plain") and "tag.a tag" in tags
    assert tags["summary.steps"] == "4"
    folder = Path(client.download_artifacts(found.info.run_id, "", str(tmp_path)))
    assert json.loads((folder / "pictures.json").read_text()) == run.read_manifest()["image_hashes"]
    assert (folder / "embedding" / "embeddings.safetensors").is_file()
    assert "max_steps: 4" in (folder / "config.yaml").read_text()
    assert len((folder / "tables" / "samples.csv").read_text().splitlines()) == 3
    assert len(list((folder / "images").glob("*.png"))) >= 3


def test_trackio_holds_config_scalars_and_pictures(
    tiny_model: LatentDiffusion, config: InversionConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))  # read when it is imported
    for name in [name for name in sys.modules if name.split(".")[0] == "trackio"]:
        monkeypatch.delitem(sys.modules, name)
    trackio = pytest.importorskip("trackio")
    finished(tiny_model, config, "trackio", tmp_path, "alone")
    (found,) = trackio.Api().runs("textual-inversion")  # it has gone on in the same one
    assert found.name.startswith("run-") and found.config["optim.lr"] == 1e-3
    assert os.environ["TRACKIO_DIR"] in str(sorted((tmp_path / "trackio").rglob("*.png"))[0])


def test_scores_go_to_the_run_of_their_word_and_to_no_other(tmp_path: Path, config: InversionConfig) -> None:
    run = create_run(tmp_path / "run")
    write_config(run, config)
    assert run_of(run.path / "evaluation") is None  # a run without a manifest has not begun
    run.write_manifest(seed=0, image_hashes={}, base_model="ab")
    assert run_of(run.path / "evaluation") == run.path and run_of(tmp_path) is None
    log_scores(run.path, "<other>", [SCORE], 4)
    assert not (run.path / "logs").exists()
    log_scores(run.path, "<one>", [SCORE], 4)
    assert [path.name for path in (run.path / "logs").iterdir()] == ["tensorboard"]  # no second CSV file


# ------------------------------------------------------------------ loggers of the user's own
def test_a_dotted_logger_is_taken_from_the_user_and_refused_from_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loggers, "_trusted", set())
    name = "pytorch_lightning.loggers.CSVLogger"
    wanted = LoggingConfig(loggers=(name,))
    with pytest.raises(UserError, match="a file cannot name code to run") as raised:
        loggers.check_loggers(wanted)
    assert "\n" not in str(raised.value) and f"--set logging.loggers=[csv,{name}]" in str(raised.value)
    loggers.trust_settings({"steps": 3, "logging": {"loggers": ["csv", name]}})
    loggers.check_loggers(wanted)
    (made,) = loggers.make_loggers(wanted, tmp_path / "run" / "logs")
    assert type(made).__name__ == "CSVLogger" and made.name == "run"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("tensorbord", "unknown logger 'tensorbord'; choose from csv, tensorboard, wandb, mlflow, trackio"),
        ("no.such.Module", "cannot be imported"),
        ("pathlib.Path", "is no logger"),
    ],
)
def test_what_is_no_logger_is_one_line(name: str, says: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(loggers, "_trusted", {name})
    with pytest.raises(UserError, match=says):
        loggers.check_loggers(LoggingConfig(loggers=(name,)))
