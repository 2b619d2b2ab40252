"""Run a command, show what it prints, and keep that in a file of this folder with all that repeats it.

    python results/keep.py results/emoji/base.md -- ldm evaluate base
    python results/keep.py results/speed/step-mid.md -- python benchmarks/step.py --size mid --peer

Figures in README and documentation are compared with these files by ``tests/test_figures.py``.
"""

from __future__ import annotations

import argparse
import os
import re
import shlex
import subprocess
import sys
import time
from datetime import UTC, datetime
from pathlib import Path

import torch

from ldm.device import cpu_has_bfloat16, machine
from ldm.experiments.commit import commit
from ldm.text.english import counted

ROOT = Path(__file__).resolve().parents[1]
#: Wide enough that no table of figures is broken into two lines.
COLUMNS = "150"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
BAR = re.compile(r"[━█]|\d+%\|")
#: Programs of this environment, whichever is on the path.
PROGRAMS = {"ldm": [sys.executable, "-m", "ldm"], "python": [sys.executable]}


def facts(words: list[str], seconds: float) -> dict[str, str]:
    """What must be known of a command to judge and to repeat it."""
    cpu = machine(torch.device("cpu"))
    bits = torch.backends.cpu.get_cpu_capability() + (", bfloat16" if cpu_has_bfloat16() else "")
    gpu = machine(torch.device("cuda")) if torch.cuda.is_available() else "none"
    cores = counted(len(os.sched_getaffinity(0)), "core")
    threads = os.environ.get("OMP_NUM_THREADS", str(torch.get_num_threads()))
    return {
        "command": f"`{shlex.join(words)}`",
        "commit": commit(),
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "processor": f"{cpu} ({bits}), {cores}, {counted(int(threads), 'thread')}",
        "GPU": gpu,
        "torch": torch.__version__,
        "seconds in all": f"{seconds:.0f}",
    }


def readable(printed: str) -> str:
    """Lines as they stood at the end, without colours and progress bars."""
    lines = [line.rpartition("\r")[2].rstrip() for line in ESCAPES.sub("", printed).split("\n")]
    return "\n".join(line for line in lines if not BAR.search(line)).strip("\n")


def page(title: str, rows: dict[str, str], printed: str) -> str:
    """The file's text."""
    table = "\n".join(f"| {name} | {value} |" for name, value in rows.items())
    return f"# {title}\n\n| | |\n|---|---|\n{table}\n\n```text\n{printed}\n```\n"


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("file", type=Path, help="a Markdown file of this folder")
    parser.add_argument("command", nargs="+", help="after --")
    args = parser.parse_args()
    program, *rest = args.command
    environment = {**os.environ, "COLUMNS": COLUMNS, "PYTHONPATH": str(ROOT)}
    started, kept = time.monotonic(), []
    process = subprocess.Popen(
        [*PROGRAMS.get(program, [program]), *rest], stdout=subprocess.PIPE, text=True, env=environment
    )
    assert process.stdout is not None
    for line in process.stdout:
        sys.stdout.write(line)
        sys.stdout.flush()
        kept.append(line)
    if process.wait():
        sys.stderr.write(f"the command ended with {process.returncode}: nothing is kept\n")
        return process.returncode
    args.file.parent.mkdir(parents=True, exist_ok=True)
    printed = readable("".join(kept))
    rows = facts(args.command, time.monotonic() - started)
    args.file.write_text(page(args.file.stem.replace("-", " "), rows, printed), encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
