"""One optimisation step against its floor and against diffusers; or, with --sampling, one picture.

    python benchmarks/step.py [--size emoji mid] [--peer] [--threads 2] [--steps 12]
    python benchmarks/step.py --size ldm sd1 --peer --device cuda --precision bf16-mixed
    python benchmarks/step.py --sampling --size mid --peer

The step is the real one: ``ldm.inversion.run.learn`` with its data, Lightning's loop, loggers, monitor and
checkpoints, timed from the end of one step to the end of the next. The floor is one UNet forward and one
backward with respect to the contexts only. After each step of ours, one of the floor's and one of the
peer's follow in the same process, with the same weights, shapes and precision; figures are medians.
What the parts of a step take is measured in a second run, where the clock waits for the device. Peak
memory is that of a process of its own. Prints one Markdown table, a column a size.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from sizes import BATCHES, Size, build_model, conditions, markdown, pictures, shapes
from torch import Tensor

from ldm.backbone.forms import COMPUTE_DTYPE
from ldm.backbone.model import LatentDiffusion
from ldm.cli.common import add_settings
from ldm.config import load_yaml
from ldm.inversion import run as inversion_run
from ldm.inversion import step as inversion_step
from ldm.inversion.callbacks import FixedBatchMonitor
from ldm.inversion.config import settle
from ldm.inversion.module import TextualInversion
from ldm.inversion.sections import StopConfig
from ldm.io.runs import create_run
from ldm.sampling.sample import sample

PARTS = ("data", "encode", "text", "UNet forward", "loss", "backward", "optimiser")
WARM_UP = 2
NEVER = 10**9


class Clock:
    """Seconds by ``perf_counter`` after the device has done what it was given."""

    def __init__(self, device: str) -> None:
        self.cuda = device == "cuda"

    def __call__(self) -> float:
        if self.cuda:
            torch.cuda.synchronize()
        return time.perf_counter()


class Rivals(Callback):
    """Times the steps of a training, and after each one lets others run that are timed as well.

    Args:
        others: name -> a step.
        chunk: steps between two readings of the clock; more than 1 on a device that works ahead.
    """

    def __init__(self, others: dict[str, Callable[..., Any]], clock: Clock, chunk: int) -> None:
        self.others, self.clock, self.chunk = others, clock, chunk
        self.seconds: dict[str, list[float]] = defaultdict(list)
        self.began: float | None = None
        self.start, self.first = 0.0, 0.0

    def on_train_start(self, *_: Any) -> None:
        self.start = self.clock()

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self.first = self.first or self.clock() - self.start
        if trainer.global_step % self.chunk:
            return
        if self.began is not None:
            self._note("ours", self.clock() - self.began)
        self.let_others_run()
        self.began = self.clock()

    def let_others_run(self) -> None:
        for name, step in self.others.items():
            start = self.clock()
            for _ in range(self.chunk):
                step()
            self._note(name, self.clock() - start)

    def _note(self, name: str, seconds: float) -> None:
        self.seconds[name].append(seconds / self.chunk)

    def median(self, name: str) -> float:
        return statistics.median(self.seconds[name][WARM_UP:])


class Parts(Callback):
    """Where a step's time goes: seconds of every part, and of the whole step."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.now: dict[str, float] = defaultdict(float)
        self.steps: list[dict[str, float]] = []
        self.began: float | None = None
        self.state_bytes, self.monitor = 0, 0.0

    @contextlib.contextmanager
    def watching(self, model: LatentDiffusion) -> Iterator[None]:
        """Time the calls that a step is made of; ``loss`` is what of ``training_step`` remains."""
        with contextlib.ExitStack() as stack:
            for owner, name, part in (
                (inversion_step.Objective, "draw", "data"),
                (model, "encode", "encode"),
                (inversion_step, "contexts", "text"),
                (model, "predict", "UNet forward"),
                (TextualInversion, "training_step", "loss"),
                (TextualInversion, "backward", "backward"),
            ):
                stack.enter_context(patch.object(owner, name, self._timed(getattr(owner, name), part)))
            measure = FixedBatchMonitor._measure

            def timed(*words: Any) -> None:
                start = self.clock()
                measure(*words)
                self.monitor = self.monitor or self.clock() - start  # the first measures, the last has

            stack.enter_context(patch.object(FixedBatchMonitor, "_measure", timed))
            yield

    def _timed(self, call: Callable[..., Any], part: str) -> Callable[..., Any]:
        def timed(*args: Any, **kwargs: Any) -> Any:
            inside, start = sum(self.now.values()), self.clock()
            try:
                return call(*args, **kwargs)
            finally:  # less what was counted inside
                self.now[part] += self.clock() - start - (sum(self.now.values()) - inside)

        return timed

    def on_train_start(self, trainer: pl.Trainer, *_: Any) -> None:
        def after(*_: Any) -> None:
            self.now["optimiser"] += self.clock() - self.ready

        trainer.optimizers[0].register_step_post_hook(after)

    def on_before_optimizer_step(self, *_: Any) -> None:
        self.ready = self.clock()

    def on_train_batch_end(self, trainer: pl.Trainer, *_: Any) -> None:
        end = self.clock()
        if self.began is not None:
            self.steps.append({**self.now, "step": end - self.began})
        self.state_bytes = trained_bytes(trainer.optimizers[0])
        self.now.clear()
        self.began = self.clock()

    def median(self, part: str) -> float:
        """Seconds of a part a step; ``logging and loop`` is what no other part accounts for."""
        steps = self.steps[WARM_UP:]
        if part == "logging and loop":
            return statistics.median(step["step"] - sum(step.get(p, 0.0) for p in PARTS) for step in steps)
        return statistics.median(step.get(part, 0.0) for step in steps)


def trained_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of all that an optimiser trains: parameters, gradients and its own state."""
    tensors: list[Tensor] = []
    for group in optimizer.param_groups:
        for p in group["params"]:
            tensors += [p, *([p] if p.requires_grad else [])]  # its gradient is as large
            tensors += [v for v in optimizer.state[p].values() if isinstance(v, Tensor)]
    return sum(t.nbytes for t in tensors)


def floor(precision: contextlib.AbstractContextManager[Any], model: LatentDiffusion, size: Size) -> None:
    """One UNet forward and one backward with respect to the contexts."""
    text = model.text
    z = torch.randn(size.batch, *model.latent_shape, device=model.device, dtype=model.dtype)
    t = torch.randint(0, model.schedule.num_timesteps, (size.batch,), device=model.device)
    context = torch.randn(
        size.batch, text.max_length, text.width, device=model.device, dtype=model.dtype, requires_grad=True
    )
    with precision:
        loss = model.unet(z, t, context).float().square().mean()
    torch.autograd.grad(loss, context)


def learn(
    model: LatentDiffusion,
    size: Size,
    args: argparse.Namespace,
    steps: int,
    *callbacks: Callback,
    captions: Sequence[Sequence[str]] | None = None,
) -> None:
    """The real training, with further callbacks; ``captions`` of every picture instead of templates."""
    fit = inversion_run.fit

    def watched(*words: Any, **settings: Any) -> pl.Trainer:
        return fit(*words, **settings | {"callbacks": [*settings["callbacks"], *callbacks]})

    given = {
        "images": ".",
        "placeholder": "<word>",
        "init": "cat",
        "batch_size": size.batch,
        # the share of a measurement is told apart
        "stop": {"monitor_every": NEVER, "allow_untrained": True},
        "show": {"prompts": ["{}"], "samples_per_prompt": 1, "steps": 1},
        "optim": {"lr": 1e-3, "schedule": "constant"},
        "trainer": {
            "max_steps": steps,
            "image_every": 0,
            "precision": args.precision,
            "accelerator": "gpu" if args.device == "cuda" else "cpu",
        },
    }
    config = settle(given, load_yaml([], args.set))
    with (
        tempfile.TemporaryDirectory() as folder,
        patch.object(inversion_run, "fit", watched),
        contextlib.redirect_stdout(sys.stderr),  # the progress bar; the table alone goes to stdout
    ):
        run = create_run(Path(folder) / "run")
        inversion_run.learn(model, pictures(model), config, captions=captions, run=run)


def plain_kernels() -> Any:
    """The attention kernels that torch chooses among by itself, whatever ours are set to."""
    from torch.nn.attention import SDPBackend, sdpa_kernel

    kernels = (SDPBackend.FLASH_ATTENTION, SDPBackend.EFFICIENT_ATTENTION, SDPBackend.CUDNN_ATTENTION)
    return sdpa_kernel([*kernels, SDPBackend.MATH])


def measure(name: str, args: argparse.Namespace) -> dict[str, str]:
    """A column of the table of one size: title -> value."""
    size, clock = Size(name, args.batch or BATCHES[name], args.tiny), Clock(args.device)
    model = build_model(size, args.device, dtype_of(args))
    others: dict[str, Callable[..., Any]] = {"floor": lambda: floor(autocast(args), model, size)}
    peer = None
    if args.peer:
        from peer import Peer

        peer = Peer(model, pictures(model), size.batch)
        apart = peer.check()
        assert apart < (1e-3 if model.dtype == torch.float32 else 0.1), apart

        def their_step() -> None:
            with plain_kernels():
                peer.step()

        others["diffusers"] = their_step
    chunk = 1 if args.device == "cpu" else 10
    rivals, parts = Rivals(others, clock, chunk), Parts(clock)
    learn(model, size, args, (args.steps + WARM_UP + 1) * chunk, rivals)
    with parts.watching(model):
        learn(model, size, args, args.steps + WARM_UP + 1, parts)
    ours, lowest = rivals.median("ours"), rivals.median("floor")
    column = {"shapes": shapes(model, size.batch), "n": f"{args.steps} x {chunk}"}
    column |= {"floor, s": f"{lowest:.4f}", "our step, s": f"{ours:.4f}"}
    column["**step / floor**"] = f"**{ours / lowest:.3f}**"
    if peer:
        theirs = rivals.median("diffusers")
        column |= {"diffusers' step, s": f"{theirs:.4f}", "**diffusers / ours**": f"**{theirs / ours:.2f}**"}
        column["their outputs differ by"] = f"{apart:.1e}"
    for part in (*PARTS, "logging and loop"):
        column[f"- {part}, s"] = f"{parts.median(part):.5f}"
    column["first step, s"] = f"{rivals.first:.2f}"
    every = StopConfig.monitor_every
    column[f"monitor, s a step (each of {every})"] = f"{parts.monitor / every:.5f}"
    column["trained state, bytes"] = f"{parts.state_bytes:,}"
    if peer:
        column["diffusers' trained state, bytes"] = f"{trained_bytes(peer.optimizer):,}"
    for who in ("imports", "floor", "ours", *(["diffusers"] if peer else [])):
        column[f"peak memory, {who}, MiB"] = f"{peak_of(who, name, args):,.0f}"
    return column


def dtype_of(args: argparse.Namespace) -> torch.dtype:
    return COMPUTE_DTYPE[args.precision.partition("-")[0]]


def autocast(args: argparse.Namespace) -> torch.autocast:
    """As of Lightning and of packs in this precision."""
    return torch.autocast(args.device, dtype_of(args), enabled=args.precision != "32-true")


# ------------------------------------------------------------------------------ memory
def peak_of(who: str, name: str, args: argparse.Namespace) -> float:
    """Peak memory, MiB, of a process that only does three steps of one kind."""
    words = ["--memory", who, "--size", name, "--device", args.device, "--precision", args.precision]
    words += ["--threads", str(args.threads), *(["--tiny"] if args.tiny else [])]
    words += ["--batch", str(args.batch), *(f"--set={item}" for item in args.set)]
    done = subprocess.run([sys.executable, __file__, *words], check=True, stdout=subprocess.PIPE, text=True)
    return float(json.loads(done.stdout.splitlines()[-1]))


def peak() -> float:
    """Highest resident set so far, or the device's highest allocation, MiB."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**20
    status = Path("/proc/self/status")
    if status.is_file():  # of this program alone: getrusage remembers the one that started it
        return int(re.search(r"VmHWM:\s+(\d+)", status.read_text())[1]) / 1024  # type: ignore[index]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def memory(who: str, name: str, args: argparse.Namespace) -> float:
    """Peak memory, MiB, after three steps."""
    size = Size(name, args.batch or BATCHES[name], args.tiny)
    import open_clip  # noqa: F401  (libraries are loaded before there is a model)

    if who == "imports":
        return peak()
    found: list[float] = []
    model = build_model(size, args.device, dtype_of(args))

    class Reader(Callback):
        """Reads the peak before the report's pictures are drawn."""

        def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, *_: Any) -> None:
            found.append(peak())

    if who == "ours":
        learn(model, size, args, 3, Reader())
        return found[-1]
    if who == "diffusers":
        from peer import Peer

        peer = Peer(model, pictures(model), size.batch)
        step: Callable[[], None] = peer.step
    else:

        def step() -> None:
            floor(autocast(args), model, size)

    for _ in range(3):
        step()
    return peak()


# ------------------------------------------------------------------------------ sampling
def measure_sampling(name: str, args: argparse.Namespace) -> dict[str, str]:
    """Seconds a picture at 50 DDIM steps with guidance, and peak memory."""
    size, clock = Size(name, args.batch or BATCHES[name], args.tiny), Clock(args.device)
    model = build_model(size, args.device, dtype_of(args))
    prompts = ["a photo of a cat"] * size.batch
    runs: dict[str, Callable[[], Any]] = {"ours": lambda: sample(model, prompts, steps=50, scale=5.0, seed=0)}
    if args.peer:
        from peer import Peer

        peer = Peer(model, pictures(model), size.batch)
        runs["diffusers"] = lambda: peer.sample(prompts, 50, 5.0)
    seconds: dict[str, list[float]] = defaultdict(list)
    for turn in range(1 + args.repeats):  # the first one warms up
        for who, draw in runs.items():
            start = clock()
            draw()
            if turn:
                seconds[who].append((clock() - start) / size.batch)
    column = {"shapes": shapes(model, size.batch), "n": f"{args.repeats} x {size.batch} pictures"}
    column |= {f"{who}, s a picture": f"{statistics.median(s):.3f}" for who, s in seconds.items()}
    if args.peer:
        ratio = statistics.median(seconds["diffusers"]) / statistics.median(seconds["ours"])
        column["**diffusers / ours**"] = f"**{ratio:.2f}**"
    column["peak memory, MiB"] = f"{peak():,.0f}"
    return column


def table(sizes: Sequence[str], columns: Sequence[dict[str, str]], head: dict[str, str]) -> str:
    titles = dict.fromkeys(title for column in columns for title in column)
    rows = [[title, *(value for _ in columns)] for title, value in head.items()]
    rows += [[title, *(column.get(title, "") for column in columns)] for title in titles]
    return markdown(["", *sizes], rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    add = parser.add_argument
    add("--size", nargs="+", default=["emoji", "mid"], choices=list(BATCHES), help="which models")
    add("--peer", action="store_true", help="diffusers and transformers as well")
    add("--sampling", action="store_true", help="seconds a picture at 50 DDIM steps with guidance")
    add("--batch", type=int, default=0, help="instead of the size's own")
    add("--steps", type=int, default=12, help="measured steps (on a GPU: tens of them)")
    add("--repeats", type=int, default=3, help="measured batches of pictures")
    add("--threads", type=int, default=2)
    add("--device", default="cpu", choices=("cpu", "cuda"))
    add("--precision", default="32-true", help="32-true, bf16-mixed or 16-mixed")
    add_settings(parser, "settings of the inversion")
    add("--tiny", action="store_true", help="all but emoji: the layout with little in it, to try it out")
    add("--memory", choices=("imports", "floor", "ours", "diffusers"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if args.memory:  # in the process of its own
        sys.stdout.write(json.dumps(memory(args.memory, args.size[0], args)) + "\n")
        return
    measured = measure_sampling if args.sampling else measure
    head = conditions(args.device, args.precision) | ({"settings": " ".join(args.set)} if args.set else {})
    sys.stdout.write(table(args.size, [measured(name, args) for name in args.size], head))


if __name__ == "__main__":
    main()
