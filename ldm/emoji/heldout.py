"""The inversion benchmark: concepts that the model never saw, learned from five pictures each.

For every concept: five pictures on five plain colours, an inversion, samples of neutral prompts and
of every named colour. A sample is right if its own concept's five training pictures are nearer, by
mean CLIP cosine, than those of the other concepts; a background is measured on border pixels.

Each concept's pictures and settings are on disk as soon as it is done, so an interrupted benchmark
goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from rich.progress import Progress
from torch import Tensor

from ldm import api
from ldm.backbone.model import LatentDiffusion
from ldm.emoji.captions import COARSE, STYLES
from ldm.emoji.compose import concept_pictures
from ldm.emoji.sprites import Concept, EmojiSprites
from ldm.errors import UserError
from ldm.evaluation import metrics
from ldm.evaluation.clip_judge import Judge
from ldm.evaluation.colours import COLOUR_NAMES
from ldm.evaluation.drawing import SampleFunction, colour_prompt, draw
from ldm.evaluation.metrics import Share
from ldm.io.atomic import atomic_write, write_json
from ldm.io.embeddings import Embedding, save_embeddings
from ldm.io.images import grid, save_png, to_uint8
from ldm.io.runs import now, versions
from ldm.io.tables import write_csv
from ldm.report.evaluation import EvaluationReport, Table, write_evaluation_report
from ldm.sampling.sample import Sampling, sample
from ldm.text.english import counted

#: Learns a word as ``ldm.invert`` does.
InvertFunction = Callable[..., Embedding]
#: One concept's figures by their names, :data:`COLUMNS`.
Row = dict[str, str | float]
NEUTRAL_PROMPTS = (
    "a photo of {}",
    "a picture of {}",
    "an illustration of {}",
    "a rendering of {}",
)
#: Keys of a concept's figures, see :data:`NOTE`.
COLUMNS = ("hex", "concept", "style", "init", "neutral", "coloured", "nearest", "background", "clip_i")
NOTE = (
    "nearest: samples nearer to their own concept's training pictures than to the others' "
    "(mean CLIP cosine), of the neutral prompts, of the prompts that ask for a background, and of "
    "both. background: pictures whose border has the colour asked for. clip_i: mean of cosines "
    "between the neutral samples and the training pictures."
)


@dataclass(frozen=True)
class HeldOutResult:
    """Of :func:`evaluate_inversion`.

    Attributes:
        nearest: samples, of neutral and coloured prompts together, nearest to their own concept.
        neutral: the same of the neutral prompts alone.
        background: coloured prompts obeyed.
        ceiling: fresh composed pictures of the same concepts, judged as the samples are.
        rows: one a concept, keys :data:`COLUMNS`.
    """

    nearest: Share
    neutral: Share
    background: Share
    ceiling: Share
    rows: list[Row]

    def summary(self) -> dict[str, str]:
        """Figures as text, with their intervals."""
        shares = [float(row["nearest"]) for row in self.rows]
        low, high = metrics.bootstrap(shares)
        return {
            f"own concept nearest of {len(self.rows)}": str(self.nearest),
            "... mean over concepts": f"{np.mean(shares):.1%} (bootstrap {low:.1%} to {high:.1%})",
            "... neutral prompts alone": str(self.neutral),
            "background obeyed": str(self.background),
            "ceiling: real pictures nearest": str(self.ceiling),
        }


@dataclass(frozen=True)
class _Task:
    """One concept's part: everything its pictures depend on is here."""

    concept: Concept
    style: str
    pictures: int
    samples: int
    seed: int
    init: str
    image_size: int
    base_model: str
    sampling: Sampling
    invert: Mapping[str, object]

    @property
    def word(self) -> str:
        return f"<{self.concept.hex}>"

    def settings(self) -> dict[str, object]:
        """What the pictures depend on, as JSON gives it back."""
        return json.loads(json.dumps(asdict(self), sort_keys=True, default=str))

    def training(self, sprites: EmojiSprites, seed: int) -> Tensor:
        size = self.image_size
        return concept_pictures(
            sprites, self.concept.hex, self.pictures, self.style, seed=seed, image_size=size
        )


def choose_concepts(
    sprites: EmojiSprites, holdout: Collection[str], judged: Collection[str], count: int, seed: int
) -> list[Concept]:
    """``count`` held-out concepts, drawn with the seed from those that the judge knows.

    ``judged``: their hex codes; empty: any.

    Raises:
        UserError: there are fewer.
    """
    known = [c for c in sprites.concepts if c.hex in holdout and (not judged or c.hex in judged)]
    known.sort(key=lambda c: c.hex)
    if len(known) < count:
        raise UserError(f"the judge knows {len(known)} held-out concepts; ask for no more than these")
    return random.Random(f"held out {seed}").sample(known, count)


def evaluate_inversion(
    model: LatentDiffusion,
    clip: Judge,
    sprites: EmojiSprites,
    holdout: Collection[str],
    out: Path,
    *,
    sample: SampleFunction = sample,
    invert: InvertFunction = api.invert,
    concepts: int = 20,
    pictures: int = 5,
    samples: int = 16,
    seed: int = 0,
    sampling: Sampling | None = None,
    invert_settings: Mapping[str, object] | None = None,
    progress: bool = True,
) -> HeldOutResult:
    """Run or continue the benchmark in the folder ``out``.

    Args:
        model: the base model, from ``ldm.load``; it forgets the words again.
        clip: the judge; only held-out concepts that it knows are drawn.
        sprites: prepared emoji, with the held-out ones.
        holdout: hex codes of the held-out ones.
        out: gets ``table.csv``, ``contact_sheet.png``, ``result.json``, ``report.html`` and a folder for
            each concept, whose files are complete once its ``settings.json`` is there.
        sample, invert: draw and learn as ``ldm.sample`` and ``ldm.invert`` do.
        concepts, pictures, samples: how many; ``samples`` are of neutral prompts, and one more of
            each named colour.
        seed: of the choice, the pictures, the inversions and the samples.
        sampling, invert_settings: how pictures are drawn and words learned. The init is the coarse
            word of the concept's subgroup ("fruit"), which a user would know.
        progress: show a bar.

    Raises:
        UserError: the judge knows fewer held-out concepts than are to be learned.
    """
    sampling = sampling or Sampling.of(model)
    base_model = model.fingerprint()
    judged = {c.hex for c in clip.concepts}
    tasks = [
        _Task(
            concept,
            STYLES[i % len(STYLES)],
            pictures,
            samples,
            seed,
            COARSE.get(concept.subgroup, "object"),
            model.image_size,
            base_model,
            sampling,
            dict(invert_settings or {}),
        )
        for i, concept in enumerate(choose_concepts(sprites, holdout, judged, concepts, seed))
    ]
    with Progress(disable=not progress) as bar:
        line = bar.add_task("held-out concepts", total=len(tasks))
        for task in tasks:
            folder = out / "concepts" / task.concept.hex
            bar.update(line, description=f"learning {task.concept.label}")
            if not _done(task, folder):
                _learn(task, model, sample, invert, sprites, folder)
            bar.advance(line)
    result, sheet = _judge(tasks, clip, sprites, out)
    _write(result, sheet, tasks, out, seed)
    return result


def _done(task: _Task, folder: Path) -> bool:
    try:
        return json.loads((folder / "settings.json").read_text()) == task.settings()
    except (OSError, ValueError):
        return False


def _learn(
    task: _Task,
    model: LatentDiffusion,
    sample: SampleFunction,
    invert: InvertFunction,
    sprites: EmojiSprites,
    folder: Path,
) -> None:
    """Learn one concept, draw its samples and leave them in ``folder``, the settings last."""
    (folder / "settings.json").unlink(missing_ok=True)
    images = task.training(sprites, task.seed)
    settings = {"init": task.init, "seed": task.seed, **task.invert}
    embedding = invert(model, images, task.word, progress=False, **settings)
    prompts = [NEUTRAL_PROMPTS[i % len(NEUTRAL_PROMPTS)] for i in range(task.samples)]
    prompts += [colour_prompt(colour) for colour in COLOUR_NAMES]
    prompts = [prompt.replace("{}", task.word) for prompt in prompts]
    digest = hashlib.sha256(f"{task.seed} {task.concept.hex}".encode()).digest()
    drawn = draw(model, sample, prompts, task.sampling, int.from_bytes(digest[:3], "big"))
    model.remove_placeholder(task.word)
    save_embeddings(embedding, folder / "embedding.safetensors")
    save_png(grid(drawn, columns=8), folder / "samples.png")
    with atomic_write(folder / "samples.npz") as path, open(path, "wb") as stream:
        np.savez_compressed(stream, samples=to_uint8(drawn))
    write_json(folder / "settings.json", task.settings())


def _samples(folder: Path) -> Tensor:
    """(N, 3, H, W) in [-1, 1]: the neutral ones, then one of every colour."""
    with np.load(folder / "samples.npz") as archive:
        pixels = torch.from_numpy(archive["samples"])
    return pixels.permute(0, 3, 1, 2).float().div(127.5).sub(1)


def _judge(
    tasks: Sequence[_Task], clip: Judge, sprites: EmojiSprites, out: Path
) -> tuple[HeldOutResult, Image.Image]:
    training = [task.training(sprites, task.seed) for task in tasks]
    references = [clip.image_features(images) for images in training]
    rows, sheet = list[Row](), []
    total = {name: Share(0, 0) for name in ("neutral", "coloured", "background", "ceiling")}
    for i, task in enumerate(tasks):
        samples = _samples(out / "concepts" / task.concept.hex)
        features = clip.image_features(samples)
        hits = metrics.nearest_concept(features, references) == i
        fresh = clip.image_features(task.training(sprites, task.seed + 1))
        part = {
            "neutral": Share.of(hits[: task.samples]),
            "coloured": Share.of(hits[task.samples :]),
            "background": metrics.background_accuracy(samples[task.samples :], COLOUR_NAMES),
            "ceiling": Share.of(metrics.nearest_concept(fresh, references) == i),
        }
        total = {name: total[name] + part[name] for name in total}
        clip_i = metrics.similarity(features[: task.samples], references[i]).mean_of_cosines
        row: tuple[str | float, ...] = (
            task.concept.hex,
            task.concept.label,
            task.style,
            task.init,
            part["neutral"].value,
            part["coloured"].value,
            (part["neutral"] + part["coloured"]).value,
            part["background"].value,
            clip_i,
        )
        rows.append(dict(zip(COLUMNS, row, strict=True)))
        shown = [training[i], samples[: min(4, task.samples)], samples[task.samples :]]
        sheet.append((task.concept.label, torch.cat(shown)))
    result = HeldOutResult(
        total["neutral"] + total["coloured"],
        total["neutral"],
        total["background"],
        total["ceiling"],
        rows,
    )
    return result, contact_sheet(sheet)


def contact_sheet(rows: Sequence[tuple[str, Tensor]], margin: int = 110) -> Image.Image:
    """A row of pictures (N_i, 3, H, W) in [-1, 1] for each name, which stands on the left."""
    strips = [(name, grid(images, columns=len(images))) for name, images in rows]
    width = margin + max(strip.width for _, strip in strips)
    sheet = Image.new("RGB", (width, sum(strip.height for _, strip in strips)), "white")
    pen, top = ImageDraw.Draw(sheet), 0
    for name, strip in strips:
        sheet.paste(strip, (margin, top))
        lines = name.split()
        for i, word in enumerate(lines):
            at = top + strip.height // 2 + 12 * i - 6 * len(lines)
            pen.text((margin - 8, at), word, fill="black", anchor="ra")
        top += strip.height
    return sheet


def _write(result: HeldOutResult, sheet: Image.Image, tasks: Sequence[_Task], out: Path, seed: int) -> None:
    write_csv(result.rows, out / "table.csv")
    path = save_png(sheet, out / "contact_sheet.png")
    first = tasks[0]
    manifest = {
        "base_model": first.base_model,
        "seed": seed,
        "pictures": first.pictures,
        "samples": {"neutral": first.samples, "coloured": len(COLOUR_NAMES)},
        "sampling": asdict(first.sampling),
        "inversion": dict(first.invert) or "the model's own settings",
        "versions": versions(),
        "finished": now(),
    }
    summary = result.summary()
    write_json(out / "result.json", {"summary": summary, **manifest, "concepts": result.rows})
    table = Table("Concepts", COLUMNS, [[row[c] for c in COLUMNS] for row in result.rows], NOTE)
    notes = [f"{counted(len(tasks), 'concept')} that the model never saw, each learned from "
             f"{first.pictures} pictures."]  # fmt: skip
    title = "Inversion of held-out concepts"
    sheets = {"Training pictures, neutral samples, one sample a colour": path}
    report = EvaluationReport(title, summary, notes, [table], sheets, manifest)
    write_evaluation_report(report, out / "report.html")
