"""Which code ran: the commit of this project."""

from __future__ import annotations

import subprocess
from functools import cache
from pathlib import Path

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
