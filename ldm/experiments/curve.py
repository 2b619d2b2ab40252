"""``ldm evaluate curve``: every embedding that a run saved is drawn, scored, and the best one kept."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ldm.backbone import loading
from ldm.config import load_yaml
from ldm.errors import UserError
from ldm.evaluation.curve import Curve, CurveFolder, Prompts, draw
from ldm.evaluation.scorers import HELD_OUT, TRAINING, Scorer
from ldm.inversion.config import InversionConfig, settle
from ldm.io.atomic import file_sha256
from ldm.io.pictures import list_pictures
from ldm.io.runs import CONFIG_NAME, RunFolder
from ldm.sampling.sample import Sampling
from ldm.shorthand import spelled

_SAVED = re.compile(r"embeddings_gs-(\d+)\.(?:safetensors|pt)")


def saved_embeddings(run: Path) -> dict[int, Path]:
    """Step -> the embeddings that a run saved then, in order.

    Raises:
        UserError: there are none.
    """
    found = {}
    for path in sorted((run / "checkpoints").glob("embeddings_gs-*")):  # of two formats, safetensors wins
        if match := _SAVED.fullmatch(path.name):
            found[int(match[1])] = path
    if not found:
        raise UserError(f"{run} has saved no embeddings on its way: is it the folder of a run?")
    return dict(sorted(found.items()))


def score_run(
    run: Path,
    scorer: Scorer,
    *,
    prompts: Prompts | None = None,
    sampling: Mapping[str, Any] | None = None,
    images: Path | None = None,
    device: str = "cpu",
) -> Curve:
    """Draw and score every saved embedding; what has been scored the same way is not drawn again.

    Args:
        run: a run folder.
        prompts: what is drawn.
        sampling: fields of ``Sampling``; what is missing or ``None`` is the run's own.
        images: reference pictures; by default those of the run's settings, without the ones that were learned
            from if there are others.
        device: where pictures are drawn.

    Writes ``best.safetensors``, and ``curve/`` with a table, pictures of every step and ``report.html``.

    Raises:
        UserError: no run, no saved embeddings, or a run whose model was trained as well.
    """
    if not (run / CONFIG_NAME).is_file():
        raise UserError(f"there is no run in {run}: it has no {CONFIG_NAME}")
    config = settle(spelled(load_yaml([run / CONFIG_NAME]), tell=False))
    if config.model_lr:
        raise UserError(f"{run} trained the model too (model_lr), and only its last one is kept: no curve")
    saved, prompts = saved_embeddings(run), prompts or Prompts()
    model = loading.load(config.model, config.checkpoint, device, strict=config.strict)
    given = {name: value for name, value in (sampling or {}).items() if value is not None}
    own = {"steps": config.show.steps, "sampler": config.show.sampler, "scale": config.show.scale}
    manner = Sampling.of(model, **{**own, **given})
    references, kind = _references(run, config, images)
    curve = CurveFolder(run, scorer, references, kind, config.called, prompts, manner)
    for step, path in saved.items():
        if curve.known(step, path) is None:
            curve.keep(step, path, draw(model, path, config.called, prompts, manner))
    return curve.write(saved)


def _references(run: Path, config: InversionConfig, images: Path | None) -> tuple[list[Path], str]:
    """The reference pictures, and which they are."""
    if images is None and not config.images.is_dir():  # it was moved: the run has kept what it was shown
        found = sorted((run / "images").glob("training_*.png"))
        if not found:
            raise UserError(f"the pictures of {run} have gone; give some by --images")
        return found, TRAINING
    learned_from = set(RunFolder(run).read_manifest().get("image_hashes", {}).values())
    found = list_pictures(images or config.images, replace(config.framing(), first=None))
    others = [path for path in found if file_sha256(path) not in learned_from]
    return (others, HELD_OUT) if others else (found, TRAINING)
