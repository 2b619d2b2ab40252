"""Which code ran on what: the commit of this project, and the processor or GPU, without the host's name."""

from __future__ import annotations

import platform
import subprocess
from functools import cache
from pathlib import Path

import torch

from ldm._version import __version__


@cache
def commit() -> str:
    """The commit of this project's checkout, with ``+`` if files differ from it; else its version."""
    folder = Path(__file__).resolve().parents[1]

    def git(*words: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(folder), *words], capture_output=True, text=True, timeout=20, check=False
            )
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if git("ls-files", "--error-unmatch", "__init__.py") is None:  # installed, inside a checkout of another
        return f"version {__version__}"
    head = git("rev-parse", "HEAD")
    changed = git("status", "--porcelain", "--untracked-files=no", "--", str(folder))
    return f"{head}{'+' if changed else ''}" if head else f"version {__version__}"


@cache
def machine(device: torch.device) -> str:
    """The device that computed, such as ``NVIDIA A100`` or the processor's name."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
