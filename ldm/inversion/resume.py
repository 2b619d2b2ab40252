"""What a run goes on from: its settings, of which few can change, and its newest whole checkpoint."""

from __future__ import annotations

import logging
import re
import zipfile
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from ldm.config import load_yaml, resolve, to_plain
from ldm.errors import UserError
from ldm.inversion.config import InversionConfig
from ldm.io.checkpoints import read_torch
from ldm.io.runs import CONFIG_NAME, RunFolder
from ldm.io.secrets import redacted_values
from ldm.shorthand import spelled

if TYPE_CHECKING:
    from ldm.backbone.model import LatentDiffusion
    from ldm.inversion.concept import Concept

log = logging.getLogger(__name__)

T = TypeVar("T")

#: what any run may be continued with: how long, how often, where and how fast; nothing of what is learned
OF_ANY_RUN = (
    "trainer.max_steps", "trainer.max_minutes", "trainer.log_every", "trainer.checkpoint_every",
    "trainer.image_every", "trainer.threads", "trainer.accelerator", "trainer.strategy", "trainer.attention",
    "logging",
)  # fmt: skip
#: of an inversion; the model, its weights and the pictures may have moved, and are compared by their hashes
OF_INVERSIONS = (
    *OF_ANY_RUN, "model", "checkpoint", "images", "show", "stop.monitor_every", "stop.allow_untrained",
    "stop.score_every", "stop.scorer", "compute", "formats",
)  # fmt: skip

#: of a stage; the last two are of its export
OF_STAGES = (*OF_ANY_RUN, "compiled", "prompts", "sample_scale", "inversion", "decoder_run")


def kept_config(folder: Path, cls: type[T]) -> T | None:
    """The settings that a run was started with; None if it has not come so far."""
    path = folder / CONFIG_NAME
    if not path.is_file():
        return None
    values = load_yaml([path])
    if cls is InversionConfig:  # that of an older run has the keys of its time
        values = spelled(values, tell=False)
    return resolve(cls, values)


def refuse_changes(folder: Path, config: Any, may: Collection[str] = OF_ANY_RUN) -> None:
    """Refuse settings that the run in ``folder`` was not started with and cannot be continued with.

    Args:
        config: a dataclass; a folder without ``config.yaml`` takes any.
        may: dotted keys that may differ, or whole sections.

    Raises:
        UserError: names every other setting that differs.
    """
    kept = kept_config(folder, type(config))
    differ = [] if kept is None else changes(kept, config, may)
    if differ:
        raise UserError(
            f"the run in {folder} was made with other settings: {', '.join(differ)}; leave them as they are, "
            "or choose another folder"
        )


def changes(kept: Any, config: Any, may: Collection[str]) -> list[str]:
    """What differs between two configs of a kind, in words; not the dotted keys or sections of ``may``."""
    before, now = (_flat(redacted_values(to_plain(one))) for one in (kept, config))  # as it was kept
    return [
        f"{key} is {before.get(key)!r}, not {now.get(key)!r}"
        for key in sorted({*before, *now})
        if before.get(key) != now.get(key) and not any(f"{key}.".startswith(f"{one}.") for one in may)
    ]


def refuse_fewer_steps(folder: Path, done: int, max_steps: int) -> None:
    """:class:`UserError` if the run in ``folder`` has made more steps than it is to make in all."""
    if done > max_steps:
        raise UserError(f"the run in {folder} has made {done} steps already: give more than {max_steps}")


def _flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; lists as they are."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[f"{prefix}{key}"] = value
    return flat


def refuse_other_inputs(run: RunFolder, model: LatentDiffusion, concept: Concept) -> None:
    """Refuse another base model or other pictures than those of a run's manifest, if it has one.

    Raises:
        UserError: says which.
    """
    manifest = run.read_manifest() if run.manifest_path.is_file() else {}
    if manifest and manifest.get("base_model") != model.fingerprint():
        raise UserError("this run was made with another base model; give the model it was started with")
    kept = manifest.get("image_hashes") or {}
    if kept and sorted(kept.values()) != sorted(concept.image_hashes.values()):
        raise UserError(
            f"the run in {run.path} was made with other pictures than these {len(concept)}: give those it "
            "was started with, or choose another folder"
        )
    masks = manifest.get("mask_hashes") or {}
    if manifest and sorted(masks.values()) != sorted(concept.mask_hashes.values()):
        raise UserError(
            f"the run in {run.path} was made with other masks than these {len(concept.mask_hashes)}: give "
            "those it was started with, or choose another folder"
        )


# ------------------------------------------------------------------ checkpoints
class Checkpoint(NamedTuple):
    """A whole checkpoint, and the optimiser steps in it."""

    path: Path
    step: int


def whole_checkpoint(folder: Path) -> Checkpoint | None:
    """The newest checkpoint of a run that is whole: ``last.ckpt``, else the latest ``step=N.ckpt``.

    Raises:
        UserError: there are some, and all of them are damaged.
    """
    bad: list[Path] = []
    for path in _candidates(folder / "checkpoints"):
        step = _step_of(path)
        if step is not None:
            if bad:
                log.warning("%s is damaged: going on from %s, at step %d", bad[0], path.name, step)
            return Checkpoint(path, step)
        bad.append(path)
    if bad:
        raise UserError(
            f"{bad[0]} is damaged, and no other checkpoint is whole: remove {bad[0].parent}, and the run "
            "starts anew"
        )
    return None


def _candidates(folder: Path) -> list[Path]:
    steps = {path: found[1] for path in folder.glob("step=*.ckpt")
             if (found := re.fullmatch(r"step=(\d+)\.ckpt", path.name))}  # fmt: skip
    last = folder / "last.ckpt"
    return [*([last] if last.is_file() else []), *sorted(steps, key=lambda path: -int(steps[path]))]


def _step_of(path: Path) -> int | None:
    """Optimiser steps in a checkpoint that is whole by the checksums in it; None if it is damaged."""
    if not is_whole(path):
        return None
    try:
        return int(read_torch(path).get("global_step", 0))  # with compat.vectors_only there is none
    except Exception:  # readers raise nearly anything on broken bytes
        return None


def is_whole(path: Path) -> bool:
    """Whether a file that torch wrote is whole: a zip, each part of which has a checksum.

    Raises:
        UserError: it cannot be read at all.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            return archive.testzip() is None
    except OSError as error:
        raise UserError(f"cannot read {path}: {error.strerror or error}; check the disk") from error
    except Exception:  # of broken bytes: BadZipFile, zlib.error, NotImplementedError, ...
        return False
