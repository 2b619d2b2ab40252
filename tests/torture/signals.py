"""Signals at random moments to a run, a list, a training stage and a sampling: nothing may be lost.

Each command is sent one of five signals, at a moment drawn evenly from the time that it takes, and goes on by
the command that it prints. What it learned, or drew, must then be what an undisturbed command leaves, no
optimiser step may have been done twice, and the exit status must be the signal's.
"""

from __future__ import annotations

import os
import random
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import harness  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import load_file  # noqa: E402

from ldm.backbone.model import LatentDiffusion  # noqa: E402
from ldm.interrupt import Interrupted  # noqa: E402
from ldm.pretraining.autoencoder import AutoencoderTraining  # noqa: E402

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
STEPS = 12
TRAINER = (f"trainer.max_steps={STEPS}", "trainer.checkpoint_every=5", "trainer.image_every=4")


@dataclass(frozen=True)
class Kind:
    """A command, and what it leaves, to be compared."""

    words: Callable[[harness.World], list[object]]
    left: Callable[[Path], dict[str, Any]]


def _words(out: Path) -> dict[str, Any]:
    return dict(load_file(out / "embeddings.safetensors"))


def _weights(out: Path) -> dict[str, Any]:
    state = torch.load(out / "checkpoints" / "last.ckpt", weights_only=False)
    return {"step": state["global_step"], **state["state_dict"]}


def _pictures(out: Path) -> dict[str, Any]:
    return {name: digest for name, digest in harness.contents(out).items() if name.endswith(".png")}


def _invert(world: harness.World) -> list[object]:
    options = ["--model", world.model, "--images", world.pictures, "--name", "<toy>"]
    return ["invert", *options, "--set", *TRAINER]


KINDS = {
    "run": Kind(_invert, _words),
    "list": Kind(
        lambda world: ["invert", "--concepts", world.concepts, "--pack", 2, "--set", *TRAINER], _words
    ),
    "stage": Kind(
        lambda world: ["train", "autoencoder", "--base", world.stage, *TRAINER], _weights
    ),
    "sample": Kind(
        lambda world: ["sample", "--model", world.model, "--embedding", world.word, "--steps", 3,
                       "--prompt", "a photo of {}", "--n", 6, "--batch-size", 1],
        _pictures,
    ),
}  # fmt: skip


def counted(path: Path) -> None:
    """In the child: a byte in ``path`` for every training step."""

    def count(owner: type, name: str, when: Callable[[], bool]) -> None:
        original = getattr(owner, name)

        def counting(self: Any, *args: Any, **options: Any) -> Any:
            if when():
                descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
                os.write(descriptor, b".")
                os.close(descriptor)
            return original(self, *args, **options)

        setattr(owner, name, counting)

    count(LatentDiffusion, "loss_terms", torch.is_grad_enabled)
    count(AutoencoderTraining, "training_step", lambda: True)


def whole(kind: Kind, world: harness.World, folder: Path) -> tuple[dict[str, Any], float]:
    """What an undisturbed command leaves, and the seconds that it takes."""
    started = time.monotonic()
    done = harness.run([*kind.words(world), "--out", folder], world.path)
    assert done.status == 0, done.err
    return kind.left(folder), time.monotonic() - started


def disturbed(
    name: str, world: harness.World, folder: Path, which: str, delay: float, expected: dict[str, Any]
) -> tuple[str, list[str]]:
    """What came of it in a word, and what was wrong."""
    kind, number = KINDS[name], getattr(signal, which)
    out, count = folder / "out", folder / "count"
    folder.mkdir()
    words = [*kind.words(world), "--out", out]
    command = harness.Command(words, world.path, partial(counted, count))
    time.sleep(delay)
    command.send(number)
    done = command.wait()
    wrong = [f"a traceback: {done.err[-600:]}"] if done.traceback or "Exception ignored" in done.err else []
    wrong += harness.damaged(out)
    what = "stopped"
    if done.status == 0:
        what = "had ended"
    elif done.status == -number and not out.exists():
        what = "had not begun"
    elif done.status != Interrupted(number).status:
        wrong.append(f"status {done.status}, not {Interrupted(number).status}: {done.err[-300:]}")
    elif "interrupted by" not in done.err:
        wrong.append(f"it does not say what happened: {done.err[-300:]}")
    if what != "had ended":
        _, there, again = done.err.partition("continue with: ldm ")
        again_words: list[object] = list(shlex.split(again.splitlines()[0])) if there else words
        if not there and name != "sample":
            shutil.rmtree(out, ignore_errors=True)
        resumed = harness.run(again_words, world.path, partial(counted, count))
        if resumed.status:
            wrong.append(f"could not go on ({resumed.status}): {resumed.err[-300:]}")
    if not wrong:
        left = kind.left(out)
        same = left.keys() == expected.keys() and all(_same(left[key], expected[key]) for key in expected)
        wrong += [] if same else ["it is not what an undisturbed command leaves"]
    steps = count.stat().st_size if count.exists() else 0
    if name in ("run", "stage") and steps != STEPS:
        wrong.append(f"{steps} steps were made for {STEPS}")
    return what, wrong


def _same(a: Any, b: Any) -> bool:
    return torch.equal(a, b) if isinstance(a, torch.Tensor) else a == b


def torture(n: int, seed: int) -> harness.Row:
    """``n`` signals, to the four kinds of command in turn."""
    rng, names = random.Random(seed), list(KINDS)
    with harness.scratch() as folder, harness.timed(harness.Row("signals at random moments")) as row:
        world = harness.build_world(folder / "world")
        known = {name: whole(KINDS[name], world, folder / name) for name in names[:n]}
        for i in range(n):
            name, which = names[i % len(names)], rng.choice(SIGNALS)
            expected, seconds = known[name]
            delay = rng.uniform(0, seconds)
            what, wrong = disturbed(name, world, folder / f"{i}", which, delay, expected)
            row.times += 1
            row.note(what)
            row.lost += [f"{i} {name} {which} after {delay:.2f} s: {text}" for text in wrong]
            shutil.rmtree(folder / f"{i}", ignore_errors=True)
    return row


if __name__ == "__main__":
    options = harness.arguments(__doc__ or "", 200).parse_args()
    sys.exit(harness.finish([torture(options.n, options.seed)]))
