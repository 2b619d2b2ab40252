"""``ldm evaluate``: measure a learned word, or the shipped model's two promises."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from ldm.cli import common

EXAMPLE = """\
  ldm evaluate --embedding runs/my-run/embeddings.safetensors --images my-pictures/
  ldm evaluate base          # does the model draw what a prompt says?
  ldm evaluate inversion     # are 20 held-out concepts learned from 5 pictures each?
"""


def register(subparsers: Any) -> None:
    """Add the subcommand."""
    common.add_parser(subparsers, "evaluate", "measure a learned word or a model", "", EXAMPLE)
