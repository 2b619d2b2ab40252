"""What an inversion shows: pictures on the way and at the end, and ``report.html``."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytorch_lightning as pl
from torch import Tensor

from ldm.backbone.model import LatentDiffusion
from ldm.inversion.config import InversionConfig
from ldm.inversion.provenance import origin
from ldm.io.embeddings import Embedding
from ldm.io.images import save_png, to_pil
from ldm.io.runs import RunFolder
from ldm.report.inversion import InversionReport, write_inversion_report
from ldm.sampling.together import Order, draw
from ldm.training.callbacks import ImageLogger
from ldm.training.dashboard import About, Dashboard, Shot
from ldm.words.start import nearest_words


def save_final(
    run: RunFolder, model: LatentDiffusion, config: InversionConfig, pictures: Tensor
) -> dict[str, list[Path]]:
    """Write the pictures of ``at_the_end`` as PNG files of the run, by prompt."""
    files: dict[str, list[Path]] = {}
    for i, (prompt, image) in enumerate(zip(at_the_end(model, config).prompts, pictures, strict=True)):
        notes = {"prompt": prompt, "seed": str(config.seed), "index": str(i)}
        path = save_png(image, run.file("images", f"final_{i:03d}.png"), notes)
        files.setdefault(prompt, []).append(path)
    return files


def finish(
    run: RunFolder,
    model: LatentDiffusion,
    config: InversionConfig,
    words: Sequence[Embedding],
    history: list[dict[str, Any]],
    seconds: float,
    pictures: Tensor,
) -> Path:
    """Write the final pictures (n, 3, H, W) and the report on the learned words; returns its path."""
    prompts = save_final(run, model, config, pictures)
    training = sorted((run.path / "images").glob("training_*.png"))
    by_step = {
        int(match.group(1)): [path]
        for path in sorted((run.path / "images").glob("samples_*.png"))
        if (match := re.fullmatch(r"samples_(\d+)", path.stem))
    }
    names = [word.placeholder for word in words]
    keys = {"loss on a fixed batch": "fixed_loss"}
    for name in names:
        called = name if len(names) > 1 else "v*"
        keys[f"norm of {called}"] = f"norm/{name}"
        keys[f"distance of {called} to its start"] = f"distance_to_init/{name}"
    curves = {
        title: [(float(row["step"]), float(row[key])) for row in history] for title, key in keys.items()
    }
    decode, show = model.text.tokenizer.decode_id, config.show
    summary = {
        "pictures": len(training),
        "init": ", ".join(origin(config, name) for name in names),
        "vectors": "; ".join(word.size for word in words),
        "steps": words[0].metadata.get("step", ""),
        "batch size": config.batch_size,
        "seed": config.seed,
        "seconds": round(seconds, 1),
        "loss on a fixed batch": f"{history[0]['fixed_loss']:.4f} to {history[-1]['fixed_loss']:.4f}",
        "sampler": f"{show.sampler}, {show.steps} steps, guidance {show.scale}",
    }
    report = InversionReport(
        title=f"Textual Inversion of {' and '.join(names)}",
        placeholders=names,
        summary=summary,
        training_images=training,
        cut_outs=_cut_outs(run.path / "images", tuple(config.words)),
        samples_by_step=by_step,
        prompts=prompts,
        curves=curves,
        nearest_words={
            f"{word.placeholder}, {one}" if one else word.placeholder: nearest_words(
                vectors, model.text.token_table, decode, k=8
            )
            for word in words
            for one, vectors in zip(
                word.set_names or [""], word.vectors if word.sets else [word.vectors], strict=True
            )
        },
        manifest=run.read_manifest(),
    )
    path = run.file("report.html")
    write_inversion_report(report, path)
    return path


def _cut_outs(folder: Path, words: Sequence[str]) -> list[tuple[str, Path]]:
    """The pictures of what counts, each with the word that it counts for, "" for all that is there."""
    found = []
    for path in sorted(folder.glob("counts_*.png")):
        number = re.fullmatch(r"counts_\d+_(\d+)", path.stem)
        found.append((words[int(number[1])] if number else "", path))
    return found


def tell_end(
    dashboard: Dashboard,
    run: RunFolder,
    about: About,
    order: Order,
    pictures: Tensor,
    words: Sequence[Embedding],
    history: list[dict[str, Any]],
) -> None:
    """Tell the loggers what came of a run: its last pictures, its words, and a few values.

    Args:
        order: what ``pictures`` (n, 3, H, W) are drawn by; ``at_the_end``.
        history: of the fixed batch.
    """
    manifest = run.read_manifest()
    step = int(manifest["steps"])
    each = zip(order.prompts, pictures, strict=True)
    dashboard.samples([Shot(prompt, order.seed, step, to_pil(image)) for prompt, image in each])
    dashboard.embedding(run.path / "embeddings.safetensors", about, words[0].metadata)
    nearest = {key: value[0][0] for key, value in history[-1].items() if key.startswith("nearest/")}
    loss = {"loss": history[-1]["fixed_loss"], "loss at the start": history[0]["fixed_loss"]}
    dashboard.summary({"steps": step, "seconds": manifest["seconds"], **loss, **nearest})


def image_logger(run: RunFolder, model: LatentDiffusion, config: InversionConfig) -> ImageLogger:
    """The callback that draws a run's pictures on the way, into its folder ``images``."""

    def samples(module: pl.LightningModule) -> dict[str, Tensor]:
        return {"samples": draw(on_the_way(model, config))}

    every, prompts = config.trainer.image_every, on_the_way(model, config).prompts
    return ImageLogger(
        samples, run.path / "images", every, columns=len(prompts), prompts=prompts, seed=config.seed
    )


#: steps of dpm++ at most, for pictures on the way: enough to see what becomes of a word
STEPS_ON_THE_WAY = 20


def on_the_way(model: LatentDiffusion, config: InversionConfig) -> Order:
    """One picture of each prompt, in few steps."""
    prompts = config.drawn
    steps = min(STEPS_ON_THE_WAY, config.show.steps)
    return Order(model, prompts, "dpm++", steps, config.show.scale, config.seed)


def at_the_end(model: LatentDiffusion, config: InversionConfig) -> Order:
    """``samples_per_prompt`` pictures of each prompt, by the settings of the run."""
    show = config.show
    rows = tuple(prompt for prompt in config.drawn for _ in range(show.samples_per_prompt))
    return Order(model, rows, show.sampler, show.steps, show.scale, config.seed)
