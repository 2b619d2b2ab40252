"""A concept in a pack logs what a run of its own logs; what goes on goes on in the same W&B run."""

import csv
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import wandb
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from ldm.backbone.model import LatentDiffusion
from ldm.inversion.config import InversionConfig
from ldm.inversion.many.jobs import Job
from ldm.inversion.many.pack import learn_many
from ldm.inversion.run import learn
from ldm.inversion.sections import CaptionsConfig, ShowConfig, StopConfig
from ldm.inversion.task import read_pictures
from ldm.io.runs import create_run
from ldm.training.fit import LoggingConfig, TrainerConfig
from ldm.training.loggers import make_loggers
from ldm.training.optim import OptimConfig
from ldm.training.wandb_run import RUN_ID

pytestmark = pytest.mark.slow

TRAINER = TrainerConfig(max_steps=4, accelerator="cpu", checkpoint_every=2, image_every=2, log_every=1)


@pytest.fixture(autouse=True)
def offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    for name, value in (("WANDB_MODE", "offline"), ("WANDB_SILENT", "true"), ("HOME", str(tmp_path))):
        monkeypatch.setenv(name, value)
    wandb.teardown()
    yield
    wandb.finish()
    wandb.teardown()


@pytest.fixture
def jobs(tmp_path: Path) -> list[Job]:
    made = []
    for name, own in (("one", {"regularization": 0.1}), ("two", {"seed": 3})):
        (tmp_path / name).mkdir()
        pixels = torch.randint(256, (16, 16, 3), dtype=torch.uint8)
        Image.fromarray(pixels.numpy()).save(tmp_path / name / "0.png")
        config = InversionConfig(
            tmp_path / name, f"<{name}>", init="cat", captions=CaptionsConfig(templates="plain"),
            show=ShowConfig(prompts=("a {}",), steps=1, samples_per_prompt=1), batch_size=2,
            stop=StopConfig(monitor_every=2, allow_untrained=True), trainer=TRAINER,
            optim=OptimConfig(lr=1e-3, schedule="cosine", warmup_steps=2),
            logging=LoggingConfig(loggers=("csv", "tensorboard")),
        )  # fmt: skip
        made.append(Job(name, replace(config, **own)))
    return made


def rows(run: Path) -> dict[tuple[int, str], float]:
    """(step, name) -> value of all that the CSV files of a run hold."""
    found: dict[tuple[int, str], float] = {}
    for path in sorted(run.glob("logs/csv*/metrics.csv")):
        for row in csv.DictReader(path.open()):
            step = int(row.pop("step"))
            found |= {(step, name): float(value) for name, value in row.items() if value}
    return found


def scalars(run: Path) -> set[str]:
    events = EventAccumulator(str(run / "logs" / "tensorboard"))
    events.Reload()
    return {*events.Tags()["scalars"], *events.Tags()["images"]}


def test_csv_and_tensorboard_hold_what_a_run_of_its_own_writes(
    tiny_model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    learn_many(tiny_model, jobs, tmp_path / "packed", progress=False)
    for job in jobs:
        concept, _ = read_pictures(job.config, 16)
        alone = create_run(tmp_path / "alone" / job.name)
        learn(tiny_model.with_own_words(), concept, job.config, run=alone, progress=False)
        packed, own = rows(tmp_path / "packed" / job.name), rows(alone.path)
        assert packed.keys() == own.keys() and (3, "train/loss") in own
        assert ((0, "train/regularization") in own) == (job.name == "one")
        for key, value in own.items():
            assert packed[key] == pytest.approx(value, rel=1e-3, abs=1e-6), key
        known = scalars(alone.path) - {"epoch"}
        assert scalars(tmp_path / "packed" / job.name) >= known
        assert known >= {"fixed_loss", f"pictures/a {job.config.placeholder}"}


def test_what_goes_on_goes_on_in_the_same_wandb_run(
    tiny_model: LatentDiffusion, jobs: list[Job], tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    to_wandb = LoggingConfig(loggers=("wandb",))
    jobs = [replace(job, config=replace(job.config, logging=to_wandb)) for job in jobs]
    short = [replace(j, config=replace(j.config, trainer=replace(TRAINER, max_steps=2))) for j in jobs]
    learn_many(tiny_model, short, runs, progress=False)
    learn_many(tiny_model, jobs, runs, resume=True, progress=False)
    ids = set()
    for job in jobs:
        begun = [path.name for path in (runs / job.name / "logs" / "wandb").glob("offline-run-*")]
        own = (runs / job.name / "logs" / RUN_ID).read_text().strip()
        # offline-run-<time>-<id>, and -1 behind it where both began in one second
        assert len(begun) == 2 and {name.split("-")[3] for name in begun} == {own}
        ids.add(own)
    assert len(ids) == 2 and wandb.run is None  # each has its own
    first = make_loggers(to_wandb, tmp_path / "single")[0]
    wandb.finish()
    again = make_loggers(to_wandb, tmp_path / "single")[0]
    assert first.version == again.version == (tmp_path / "single" / RUN_ID).read_text().strip()
