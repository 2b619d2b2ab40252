"""Several processes and one batch (Lightning's DDP over gloo): the same word as one process learns."""

import multiprocessing
import os
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image

from ldm.backbone.model import LatentDiffusion
from ldm.cli import official
from ldm.cli.main import main
from ldm.io.embeddings import load_embedding
from ldm.training.fit import TrainerConfig

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]


def as_slurm(words: list[str]) -> list[int]:
    """Exit codes of two processes of one ``ldm`` command, as SLURM starts them (but forked)."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])

    def process(rank: int) -> None:
        os.environ |= {"SLURM_PROCID": str(rank), "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        os.environ |= {"SLURM_NTASKS": "2", "SLURM_NTASKS_PER_NODE": "2", "SLURM_JOB_NAME": "test"}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
        torch.set_num_threads(1)  # OpenMP's pool does not survive a fork
        sys.exit(main(words))

    both = [multiprocessing.get_context("fork").Process(target=process, args=(rank,)) for rank in (0, 1)]
    for child in both:
        child.start()
    for child in both:
        child.join(200)
        child.kill()
    return [child.exitcode if child.exitcode is not None else -1 for child in both]


def as_a_user(words: list[str]) -> subprocess.CompletedProcess[str]:
    """One ``ldm`` command; Lightning starts the second process."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        [sys.executable, "-m", "ldm.cli.main", *words],
        env=environment, capture_output=True, text=True, timeout=400,
    )  # fmt: skip


def test_two_processes_learn_the_word_of_one_with_the_whole_batch_also_when_resumed(
    cli, model_folder, pictures
):
    words = ["invert", "--model", model_folder, "--images", pictures, "--name", "<toy>", "--init", "cat"]
    words += ["--device", "cpu"]
    mask = Image.new("L", (24, 20))  # of one of the three pictures, whose right half does not count
    mask.paste(255, (0, 0, 12, 20))
    mask.save(pictures / "0.mask.png")
    assert cli(*words, "--batch-size", 4, "--steps", 8, "--out", "one").code == 0
    start = load_embedding("one/checkpoints/embeddings_gs-2.safetensors").vectors
    one = load_embedding("one/embeddings.safetensors").vectors
    assert (one - start).abs().max() > 0.05  # 100 and more times the tolerance below

    two = ["--batch-size", 2, "--set", "trainer.devices=2", "--set", "trainer.strategy=ddp", "--out", "two"]
    assert as_slurm([str(word) for word in (*words, *two, "--steps", 4)]) == [0, 0]
    assert load_embedding("two/embeddings.safetensors").metadata["step"] == "4"
    done = as_a_user(["invert", "--resume", "--out", "two", "--steps", "8"])
    assert done.returncode == 0, done.stderr
    shared = load_embedding("two/embeddings.safetensors")
    assert shared.metadata["step"] == "8"
    torch.testing.assert_close(shared.vectors, one, rtol=0, atol=1e-5)

    assert done.stdout.count("learned <toy>") == 1  # the second process says nothing and writes nothing:
    files = {path.relative_to(run).as_posix() for run in ("one", "two") for path in Path(run).rglob("*")}
    alone = {path.relative_to("one").as_posix() for path in Path("one").rglob("*")}
    assert files - alone == {"logs/csv-2", "logs/csv-2/metrics.csv"}  # the resumed run's own log
    assert sorted(path.name for path in Path().iterdir()) == ["one", "pictures", "tiny", "two"]


def test_a_loss_that_is_not_finite_in_one_share_stops_all_processes(
    model_folder, pictures, monkeypatch, tmp_path
):
    terms_of = LatentDiffusion.loss_terms

    def broken(self, *batch):
        terms = terms_of(self, *batch)
        second = os.environ["SLURM_PROCID"] == "1"
        return replace(terms, per_sample=terms.per_sample * float("nan")) if second else terms

    monkeypatch.setattr(LatentDiffusion, "loss_terms", broken)
    words = ["invert", "--model", model_folder, "--images", pictures, "--name", "<toy>", "--device", "cpu"]
    words += ["--set", "trainer.devices=2", "--set", "trainer.strategy=ddp", "--out", tmp_path / "two"]
    assert as_slurm([str(word) for word in words]) == [2, 2]


@pytest.mark.parametrize(
    ("environment", "writes"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0"}, True),
        ({"LOCAL_RANK": "1", "NODE_RANK": "0"}, False),
        ({"NODE_RANK": "1"}, False),
        ({"RANK": "4", "LOCAL_RANK": "0"}, False),
        ({"SLURM_PROCID": "0"}, True),
        ({"SLURM_PROCID": "3"}, False),
        ({"SLURM_PROCID": "0", "LOCAL_RANK": "1"}, False),  # Lightning's own child in an allocation
    ],
)
def test_only_the_process_of_rank_0_by_every_count_writes(monkeypatch, environment, writes):
    for name in ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert TrainerConfig(devices=2, nodes=2).writes is writes
    assert TrainerConfig().writes  # alone, whatever an allocation around it counts


def test_settings_that_leave_no_process_are_refused(cli, model_folder, pictures):
    words = ("--model", model_folder, "--images", pictures, "--name", "<toy>")
    result = cli("invert", *words, "--set", "trainer.devices=0")
    assert result.code == 2 and "devices is 0" in result.err


def test_the_gpus_of_a_command_line_are_chosen_once(monkeypatch):
    """A process that Lightning started finds them chosen already, by the one that started it."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,6")
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert official._devices("0,2") == {"trainer": {"accelerator": "gpu", "devices": 2}}
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "4,6"
