"""Tables as files."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path

from ldm.io.atomic import write_text


def write_csv(rows: Sequence[Mapping[str, object]], path: Path) -> Path:
    """Write rows, at least one, as CSV; the first row's keys are the columns. Atomic.

    Raises:
        ValueError: a row has a key that the first one lacks.
    """
    lines = io.StringIO(newline="")
    writer = csv.DictWriter(lines, list(rows[0]))
    writer.writeheader()
    writer.writerows(rows)
    return write_text(path, lines.getvalue())
