"""The sbatch files: bash reads them, and what they run is a command line of ``ldm``."""

import os
import subprocess
from argparse import Namespace
from pathlib import Path

import pytest

from ldm.cli.main import build_parser

SCRIPTS = Path(__file__).parents[2] / "configs" / "slurm"


def run(
    script: str, folder: Path, *words: str, status: int = 0, **allocation: str
) -> subprocess.CompletedProcess[str]:
    """Run a script where ``srun`` prints its arguments, a line each, and ends with ``status``."""
    (folder / "bin").mkdir(exist_ok=True)
    srun = folder / "bin" / "srun"
    srun.write_text(f'#!/bin/bash\nprintf "%s\\n" "$@"\nexit {status}\n')
    scontrol = folder / "bin" / "scontrol"
    scontrol.write_text('#!/bin/bash\nprintf "%s " "$@" > scontrol.log\n')
    for program in (srun, scontrol):
        program.chmod(0o755)
    clean = {name: value for name, value in os.environ.items() if not name.startswith("SLURM")}
    environment = {**clean, "PATH": f"{folder / 'bin'}:{os.environ['PATH']}", **allocation}
    command = ["bash", str(SCRIPTS / script), *words]
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def parsed(done: subprocess.CompletedProcess[str]) -> Namespace:
    """What ``ldm`` makes of the command that was given to ``srun``."""
    assert done.returncode == 0, done.stderr
    words = done.stdout.splitlines()
    return build_parser().parse_args(words[words.index("ldm") + 1 :])


@pytest.mark.parametrize("script", ["packs.sbatch", "ddp.sbatch"])
def test_bash_reads_it_and_slurm_finds_its_directives_before_the_first_command(script: str) -> None:
    assert subprocess.run(["bash", "-n", SCRIPTS / script]).returncode == 0
    lines = (SCRIPTS / script).read_text().splitlines()
    first = next(i for i, line in enumerate(lines) if line and not line.startswith("#"))
    assert any(line.startswith("#SBATCH") for line in lines[:first])
    assert not any(line.startswith("#SBATCH") for line in lines[first:])


def test_a_task_of_the_array_learns_its_own_part_in_its_own_folder(tmp_path: Path) -> None:
    words = ("my list.yaml", "all runs", "64", "--pack", "8")
    args = parsed(run("packs.sbatch", tmp_path, *words, SLURM_ARRAY_TASK_ID="3"))
    assert args.part == slice(3, None, 64) and args.concepts == Path("my list.yaml")
    assert args.out == Path("all runs/part-3") and args.resume and args.pack == 8


def test_what_is_missing_is_asked_for(tmp_path: Path) -> None:
    done = run("packs.sbatch", tmp_path, "concepts.yaml", "out")
    assert done.returncode != 0 and "PARTS" in done.stderr
    assert run("packs.sbatch", tmp_path, "concepts.yaml", "out", "64").returncode != 0  # no array
    assert run("ddp.sbatch", tmp_path).returncode != 0


def test_all_devices_of_the_job_share_the_batch_and_the_run_goes_on(tmp_path: Path) -> None:
    words = ("run", "--images", "my photos", "--name", "<cat>")
    allocation = {"SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    args = parsed(run("ddp.sbatch", tmp_path, *words, **allocation))
    assert args.resume and args.images == Path("my photos")  # also where there is no run yet
    assert {"trainer.nodes=2", "trainer.devices=4", "trainer.strategy=ddp"} <= set(args.set)


@pytest.mark.parametrize(("status", "again"), [(0, False), (2, False), (143, False), (75, True)])
@pytest.mark.parametrize("script", ["packs.sbatch", "ddp.sbatch"])
def test_only_a_job_that_asks_to_be_restarted_is_queued_again(
    script: str, status: int, again: bool, tmp_path: Path
) -> None:
    directives = (SCRIPTS / script).read_text()
    assert "#SBATCH --signal=USR1@" in directives
    allocation = {"SLURM_ARRAY_TASK_ID": "0", "SLURM_JOB_ID": "77", "SLURM_JOB_NUM_NODES": "1"}
    allocation["SLURM_NTASKS_PER_NODE"] = "1"
    done = run(script, tmp_path, "a", "b", "2", status=status, **allocation)
    assert done.returncode == status
    log = tmp_path / "scontrol.log"
    assert log.exists() == again and (not again or log.read_text().split() == ["requeue", "77"])
