"""``ldm evaluate curve``: every embedding that a run saved is drawn, scored, and the best one kept."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ldm.backbone import loading
from ldm.backbone.model import LatentDiffusion
from ldm.config import load_yaml
from ldm.errors import UserError
from ldm.evaluation.curve import Moment, Prompts, best, decline, draw, measure, rows
from ldm.evaluation.scorers import HELD_OUT, TRAINING, Scorer
from ldm.evaluation.scorers.protocols import picture_features
from ldm.experiments.rows import write_rows
from ldm.inversion.config import InversionConfig, settle
from ldm.io.atomic import file_sha256, write_bytes, write_json
from ldm.io.images import save_grid
from ldm.io.pictures import list_pictures
from ldm.io.runs import CONFIG_NAME, RunFolder, now, versions
from ldm.official.quirks import switches
from ldm.report.curves import line_chart
from ldm.report.evaluation import EvaluationReport, Table, write_evaluation_report
from ldm.sampling import prompts as words_of
from ldm.sampling.sample import Sampling
from ldm.shorthand import spelled

FOLDER = "curve"
BEST = "best.safetensors"
_SAVED = re.compile(r"embeddings_gs-(\d+)\.(?:safetensors|pt)")


@dataclass(frozen=True)
class Curve:
    """What became of a run: its moments, the best one, where it starts to look bad, and the files."""

    moments: tuple[Moment, ...]
    best: Moment
    decline: Moment | None
    kept: Path
    report: Path


def saved_embeddings(run: Path) -> dict[int, Path]:
    """Step -> the embeddings that a run saved then, in order.

    Raises:
        UserError: there are none.
    """
    found = {}
    for path in sorted((run / "checkpoints").glob("embeddings_gs-*"), reverse=True):  # safetensors wins
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
        sampling: ``steps``, ``sampler`` and ``scale``; what is missing or ``None`` is the run's own.
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
    saved = saved_embeddings(run)
    model = loading.load(
        config.model, config.checkpoint, device, strict=not switches(config.compat).loose_weights
    )
    prompts = prompts or Prompts()
    given = {name: value for name, value in (sampling or {}).items() if value is not None}
    own = {"steps": config.show.steps, "sampler": config.show.sampler, "scale": config.show.scale}
    manner = Sampling.of(model, **{**own, **given})
    references, kind = _references(run, config, images)
    features = picture_features(scorer, references)
    hashes = [file_sha256(path) for path in references]
    how = [asdict(prompts), asdict(manner), scorer.identity.as_dict(), hashes, config.called]
    out = run / FOLDER
    moments = []
    for step, path in saved.items():
        key = _key([how, file_sha256(path), model.fingerprint()])
        moment = _kept(out / f"{step}.json", key)
        if moment is None:
            pictures = _draw(model, path, config.called, prompts, manner)
            save_grid(pictures, out / f"samples_{step}.png", columns=prompts.n)
            moment = measure(step, pictures, prompts, scorer, features)
            write_json(out / f"{step}.json", {"key": key, **asdict(moment)})
        moments.append(moment)
    top = best(moments)
    kept = write_bytes(run / BEST, _as_safetensors(saved[top.step]))
    report = _write(moments, prompts, scorer, kind, manner, run)
    return Curve(tuple(moments), top, decline(moments), kept, report)


def _draw(model: LatentDiffusion, path: Path, called: str, prompts: Prompts, sampling: Sampling) -> Tensor:
    own = model.with_own_words()
    words_of.teach(own, words_of.load([path]))
    return draw(own, called, prompts, sampling)


def _as_safetensors(path: Path) -> bytes:
    """The bytes of an embedding file, written anew if it is of another kind."""
    if path.suffix == ".safetensors":
        return path.read_bytes()
    import tempfile

    from ldm.io.embeddings import load_embeddings, save_embeddings

    with tempfile.TemporaryDirectory() as folder:
        return save_embeddings(load_embeddings(path), Path(folder) / BEST).read_bytes()


def _references(run: Path, config: InversionConfig, images: Path | None) -> tuple[list[Path], str]:
    """The reference pictures, and which they are."""
    learned_from = set(RunFolder(run).read_manifest().get("image_hashes", {}).values())
    if images is None and not Path(config.images).is_dir():
        return list_pictures_of(run), TRAINING
    found = list_pictures(images or config.images, replace(config.framing(), first=None))
    others = [path for path in found if file_sha256(path) not in learned_from]
    return (others, HELD_OUT) if others else (found, TRAINING)


def list_pictures_of(run: Path) -> list[Path]:
    """The pictures that a run was trained on, as it kept them."""
    found = sorted((run / "images").glob("training_*.png"))
    if not found:
        raise UserError(f"the pictures of {run} have gone; give some by --images")
    return found


def _key(parts: object) -> str:
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


def _kept(path: Path, key: str) -> Moment | None:
    with suppress(OSError, ValueError, KeyError, TypeError):
        found = json.loads(path.read_text(encoding="utf-8"))
        if found["key"] == key and path.with_name(f"samples_{path.stem}.png").is_file():
            return Moment(int(found["step"]), tuple(found["near"]), tuple(found["follows"]))
    return None


def _write(
    moments: Sequence[Moment], prompts: Prompts, scorer: Scorer, kind: str, sampling: Sampling, run: Path
) -> Path:
    """The table, and the page with both curves and the pictures of every step."""
    out, top, bad = run / FOLDER, best(moments), decline(moments)
    table = rows(moments)
    write_rows(table, out / "table")
    marks = [(float(top.step), "best")] + ([(float(bad.step), "looks bad")] if bad else [])
    charts = {}
    for name in ("reconstruction", "editability", "product"):
        points = [(float(row["step"]), row[name]) for row in table if row[name] is not None]
        if points:
            charts[name] = line_chart(name, points, marks=marks)
    columns = ("step", "reconstruction", "editability", "product", "mark")
    note = (
        "Reconstruction: mean cosine between pictures of the neutral prompt and the reference pictures "
        f"({kind}). Editability: mean cosine between pictures of an edit and its text without the word. The "
        "best step has the highest product of both. It starts to look bad where this and every later step "
        "lies below the best one in either figure, by a 95 % interval over pictures of the same noise."
    )
    summary = {
        "best step": top.step,
        "reconstruction there": top.reconstruction,
        "editability there": top.editability,
        "starts to look bad": bad.step if bad else "at no step",
        "scorer": scorer.name,
    }
    sheets = {
        f"Step {moment.step}{f', {mark}' if (mark := row['mark']) else ''}": out
        / f"samples_{moment.step}.png"
        for moment, row in zip(moments, table, strict=True)
    }
    manifest = {
        "scorer": scorer.identity.as_dict(),
        "prompts": asdict(prompts),
        "sampling": asdict(sampling),
        "versions": versions(),
        "finished": now(),
    }
    shown = [[row[name] for name in columns] for row in table]
    lead = [f"Every embedding that {run.name} saved: {prompts.n} pictures a prompt, a row a prompt."]
    report = EvaluationReport(
        f"{run.name}, step by step",
        summary,
        lead,
        [Table("Steps", columns, shown, note)],
        sheets,
        manifest,
        charts,
    )
    write_evaluation_report(report, out / "report.html")
    return out / "report.html"
