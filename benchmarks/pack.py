"""Concept-steps a second: runs one after the other, and packs of several sizes.

    python benchmarks/pack.py --threads 2 [--precision bf16-mixed] [--sizes 1,2,4,8,16,32]
    python benchmarks/pack.py --threads 2 --commands 16
    python benchmarks/pack.py --device cuda --model configs/latent-diffusion/txt2img-1p4B.yaml --random

Prints one Markdown table, within minutes. "One after the other" is the optimiser step inside ``ldm invert``
(Lightning's loop, its loggers on); a pack's is the joint step of ``ldm invert --concepts``. Measured in
turns, medians. With ``--commands``: whole command lines, from start to report, each once; without pictures
drawn unless ``--pictures`` is given.
"""

from __future__ import annotations

import argparse
import logging
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback

from ldm.backbone import loading
from ldm.backbone.forms import stored_in
from ldm.backbone.model import LatentDiffusion, ModelConfig, build
from ldm.config import dump_yaml, resolve
from ldm.inversion.config import settle
from ldm.inversion.many.learner import Learner, joint_gradients
from ldm.inversion.task import Inversion, prepare, read_pictures
from ldm.io.runs import RunFolder, create_run
from ldm.training.fit import attention_kernel, fit
from ldm.training.memory import freed_memory_kept

PICTURES = Path("configs/emoji/concepts")
WARM_UP, STEPS = 2, 8


def _now() -> float:
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


class Stopwatch(Callback):
    """Seconds of every step but the first ones."""

    def __init__(self) -> None:
        self.ends: list[float] = []

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        self.ends.append(_now())

    @property
    def seconds(self) -> list[float]:
        ends = self.ends[WARM_UP:]
        return [after - before for before, after in zip(ends, ends[1:], strict=False)]


def concept(
    model: LatentDiffusion,
    number: int,
    folder: Path,
    precision: str,
    given: Mapping[str, Any] = MappingProxyType({}),
) -> Inversion:
    """Concept ``number``, ready to train by the model's own settings and those ``given``; its monitor and
    pictures rest."""
    sources = sorted(path for path in PICTURES.iterdir() if path.is_dir())
    own = {"images": str(sources[number % len(sources)]), "placeholder": f"<{number}>", "seed": number}
    config = settle(model.inversion_defaults, own, given)
    trainer = replace(config.trainer, max_steps=WARM_UP + STEPS, image_every=0, precision=precision)
    trainer = replace(trainer, accelerator=_accelerator(model))
    config = replace(
        config, trainer=trainer, stop=replace(config.stop, monitor_every=10**9, allow_untrained=True)
    )
    pictures, _ = read_pictures(config, model.image_size)
    return prepare(model.with_own_words(), pictures, config, run=create_run(folder / str(number)))


def _accelerator(model: LatentDiffusion) -> str:
    return "gpu" if model.device.type == "cuda" else "cpu"


def alone(task: Inversion, folder: Path) -> list[float]:
    """Seconds a step of a run of its own."""
    watch, run = Stopwatch(), RunFolder(folder)
    config = task.config
    fit(task.module, run.path, config.trainer, config.logging, seed=0, callbacks=[watch], progress=False)
    return watch.seconds


def together(model: LatentDiffusion, learners: Sequence[Learner], steps: int) -> list[float]:
    """Seconds a joint step."""
    seconds = []
    for _ in range(steps):
        started = _now()
        found = joint_gradients(model, learners)
        for learner, gradients in zip(learners, found, strict=True):
            learner.update(gradients)
        seconds.append(_now() - started)
    return seconds


def table(
    model: LatentDiffusion, sizes: Sequence[int], repeats: int, precision: str, folder: Path
) -> list[str]:
    """Rows of the Markdown table."""
    tasks = [concept(model, i, folder / "packed", precision) for i in range(max(sizes))]
    singles = [concept(model, i, folder / "alone", precision) for i in range(repeats)]
    own: list[float] = []
    packed: dict[int, list[float]] = {size: [] for size in sizes}
    device = model.device
    with freed_memory_kept(), attention_kernel("auto"), stored_in(model, precision):
        learners = [Learner(task, device) for task in tasks]
        together(model, learners[: min(sizes)], WARM_UP)
        for i, single in enumerate(singles):
            own += alone(single, folder / f"run-{i}")
            model.to(device)  # from where Lightning left it
            for size in sizes:
                packed[size] += together(model, learners[:size], max(1, STEPS // size))
    base, batch = statistics.median(own), tasks[0].config.batch_size
    rows = [
        "| concepts a pass | samples | seconds a pass | concept-steps/s | against one after the other | n |",
        "|---|---|---|---|---|---|",
        f"| one after the other | {batch} | {base:.4f} | {1 / base:.2f} | 1.00 x | {len(own)} |",
    ]
    for n, seconds in packed.items():
        pass_ = statistics.median(seconds)
        rows.append(
            f"| {n} | {n * batch} | {pass_:.4f} | {n / pass_:.2f} | {n * base / pass_:.2f} x | "
            f"{len(seconds)} |"
        )
    return rows


def commands(args: argparse.Namespace, folder: Path) -> list[str]:
    """Rows of the Markdown table of whole commands."""
    n = args.commands
    places = sorted(path for path in PICTURES.iterdir() if path.is_dir())
    entries = [{"name": f"<{i}>", "images": str(places[i % len(places)]), "seed": i} for i in range(n)]
    (folder / "list.yaml").write_text(dump_yaml({"concepts": entries}))
    common = [sys.executable, "-m", "ldm.cli.main", "invert", "--model", args.model,
              "--precision", args.precision, "--device", args.device, *settings(args)]  # fmt: skip

    def seconds(*words: str) -> float:
        started = time.perf_counter()
        subprocess.run([*common, *words], check=True, capture_output=True)
        return time.perf_counter() - started

    packed = seconds("--concepts", str(folder / "list.yaml"), "--out", str(folder / "packed"))
    single = 0.0
    for i, entry in enumerate(entries):
        words = ["--name", entry["name"], "--images", entry["images"], "--seed", str(i)]
        single += seconds(*words, "--out", str(folder / str(i)))
    return [
        "| what | seconds | seconds a concept | against one after the other |",
        "|---|---|---|---|",
        f"| {n} times ldm invert | {single:.0f} | {single / n:.1f} | 1.00 x |",
        f"| ldm invert --concepts, {n} of them | {packed:.0f} | {packed / n:.1f} | {single / packed:.2f} x |",
    ]


def settings(args: argparse.Namespace) -> list[str]:
    """Of the whole commands, as options of ``ldm invert``."""
    resting = [] if args.pictures else ["--set", "trainer.image_every=0", "show.samples_per_prompt=0"]
    return ["--steps", str(args.steps), *resting]


def load(source: str, random: bool, device: str) -> LatentDiffusion:
    """The model; ``random``: its config with random weights."""
    if not random:
        return loading.load(source, device=device)
    values, folder = loading.find(source)
    model = build(loading.in_folder(resolve(ModelConfig, values["model"], "model."), folder))
    model.inversion_defaults = dict(values.get("inversion") or {})
    return model.freeze().to(device)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--model", default="emoji")
    parser.add_argument("--sizes", default="1,2,4,8,16,32")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--precision", default="32-true")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", action="store_true", help="random weights")
    parser.add_argument("--commands", type=int, metavar="N", help="time whole commands for N concepts")
    parser.add_argument("--steps", type=int, default=100, help="of each concept of --commands (default: 100)")
    parser.add_argument("--pictures", action="store_true", help="let --commands draw their pictures too")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore")
    for name in ("pytorch_lightning", "lightning.pytorch", "lightning_fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    model = load(args.model, args.random, args.device)
    with tempfile.TemporaryDirectory() as folder:
        if args.commands:
            os.environ["OMP_NUM_THREADS"] = str(args.threads)
            rows = commands(args, Path(folder))
        else:
            sizes = [int(size) for size in args.sizes.split(",")]
            rows = table(model, sizes, args.repeats, args.precision, Path(folder))
    machine = torch.cuda.get_device_name() if model.device.type == "cuda" else platform.processor()
    shape = " x ".join(map(str, model.latent_shape))
    how = " ".join(settings(args)) + ", n = 1" if args.commands else "medians of n"
    sys.stdout.write(
        f"{args.model}, {args.precision}, latents {shape}, {machine or platform.machine()}, "
        f"{args.threads} threads, torch {torch.__version__}, {how}\n\n"
    )
    sys.stdout.write("\n".join(rows) + "\n")


if __name__ == "__main__":
    main()
