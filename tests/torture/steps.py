"""Many steps of a tiny model in one process: its memory and its open files must not grow.

Steps are made by a run of its own and by a pack, with measurements, checkpoints, pictures on the way and all
local loggers, as a long training has them. What is compared is the second half with the middle of the first:
by then everything is loaded, and caches are full.
"""

from __future__ import annotations

import gc
import os
import statistics
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import harness  # noqa: E402
import psutil  # noqa: E402
import tiny  # noqa: E402
from pytorch_lightning.callbacks import Callback  # noqa: E402

import ldm.inversion.many.pack as packs  # noqa: E402
import ldm.inversion.run as runs  # noqa: E402
from ldm.config import merge  # noqa: E402
from ldm.inversion.config import settle  # noqa: E402
from ldm.inversion.many.jobs import Job  # noqa: E402

#: megabytes and open files that may come and go: allocators, a file that is being written
MEMORY, FILES = 24.0, 3
#: measurements of a training
SAMPLES = 100


class Watch:
    """Resident memory in MB, open files and threads, at regular steps."""

    def __init__(self, every: int) -> None:
        self.every, self.process = every, psutil.Process()
        self.seen: list[tuple[float, int, int]] = []
        self._last = -1

    def look(self, step: int) -> None:
        if step % self.every or step == self._last:
            return
        self._last = step
        gc.collect()
        files = len(os.listdir("/proc/self/fd")) if os.path.isdir("/proc/self/fd") else self.process.num_fds()
        self.seen.append((self.process.memory_info().rss / 2**20, files, self.process.num_threads()))

    def grown(self) -> tuple[float, float, float]:
        """By how much the median of the last quarter exceeds that of the second."""
        quarter = len(self.seen) // 4
        before, after = self.seen[quarter : 2 * quarter], self.seen[-quarter:]
        pairs = zip(zip(*after, strict=True), zip(*before, strict=True), strict=True)
        memory, files, threads = (statistics.median(a) - statistics.median(b) for a, b in pairs)
        return memory, files, threads


class _Looks(Callback):
    def __init__(self, watch: Watch) -> None:
        self.watch = watch

    def on_train_batch_end(self, trainer: Any, *_: Any) -> None:
        self.watch.look(trainer.global_step)


def _settings(world: harness.World, steps: int) -> dict[str, Any]:
    trainer = {
        "max_steps": steps, "accelerator": "cpu", "checkpoint_every": max(1, steps // 40),
        "image_every": max(1, steps // 20), "log_every": 10,
    }  # fmt: skip
    own = {**tiny.QUICK, "trainer": trainer, "logging": {"loggers": ["csv", "tensorboard"]}}
    own |= {"images": str(world.pictures), "model": str(world.model), "batch_size": 1}
    return merge(own, {"stop": {"monitor_every": max(1, steps // 100)}})


def alone(world: harness.World, out: Path, steps: int) -> Watch:
    """A run of its own."""
    watch = Watch(max(1, steps // SAMPLES))
    fit = runs.fit

    def watched(*args: Any, callbacks: Any = (), **options: Any) -> Any:
        return fit(*args, callbacks=[*callbacks, _Looks(watch)], **options)

    runs.fit = watched
    try:
        config = settle(_settings(world, steps), {"placeholder": "<a>"})
        runs.run_inversion(config, out, progress=False)
    finally:
        runs.fit = fit
    return watch


def packed(world: harness.World, out: Path, steps: int) -> Watch:
    """Six concepts that take turns in a pack of two: each makes a third of the steps, then others join."""
    watch = Watch(max(1, steps // SAMPLES))
    gradients, made = packs.joint_gradients, [0]

    def watched(*args: Any) -> Any:
        made[0] += 1
        watch.look(made[0])
        return gradients(*args)

    packs.joint_gradients = watched
    try:
        own = max(1, steps // 3)
        config = settle(_settings(world, own), {"placeholder": "<a>"})
        jobs = [Job(f"c{i}", replace(config, placeholder=f"<{i}>", seed=i)) for i in range(6)]
        model = runs.loading.load(str(world.model))
        packs.learn_many(model, jobs, out, pack=2, progress=False)
    finally:
        packs.joint_gradients = gradients
    return watch


def torture(steps: int) -> list[harness.Row]:
    """A row for the run of its own, and one for the pack."""
    rows = []
    for name, train in (("a run of its own", alone), ("packs whose concepts come and go", packed)):
        with harness.scratch() as folder, harness.timed(harness.Row(f"steps of {name}")) as row:
            world = harness.build_world(folder / "world")
            watch = train(world, folder / "out", steps)
            memory, files, threads = watch.grown()
            row.times = steps
            row.what += f": memory {memory:+.1f} MB, open files {files:+g}, threads {threads:+g}"
            if memory > MEMORY:
                row.lost.append(f"memory grew by {memory:.1f} MB: {[round(m) for m, _, _ in watch.seen]}")
            if files > FILES or threads > FILES:
                row.lost.append(f"{files:+g} open files, {threads:+g} threads")
        rows.append(row)
    return rows


if __name__ == "__main__":
    parser = harness.arguments(__doc__ or "", 1)
    parser.add_argument("--steps", type=int, default=20_000, help="optimiser steps (default: 20000)")
    sys.exit(harness.finish(torture(parser.parse_args().steps)))
