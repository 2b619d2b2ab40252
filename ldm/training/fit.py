"""One way to run a LightningModule: loggers, checkpoints, progress, attention backend, resume."""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback, LearningRateMonitor, ModelCheckpoint
from pytorch_lightning.loggers import Logger
from pytorch_lightning.plugins.io import TorchCheckpointIO
from pytorch_lightning.strategies import StrategyRegistry
from torch import Tensor

from ldm import interrupt
from ldm.device import Precision, device_of, working_precision
from ldm.errors import UserError
from ldm.io.atomic import atomic_write
from ldm.ranges import Count, Factor, Positive, Range
from ldm.training.callbacks import StepProgressBar
from ldm.training.dashboard import About, Dashboard
from ldm.training.limits import TimeLimit, due
from ldm.training.loggers import make_loggers
from ldm.training.quiet import quiet

log = logging.getLogger(__name__)

#: no network has such weights that learned anything
EXPLODED = 1e5
#: in a run's folder, what it goes on from
LAST = Path("checkpoints", "last.ckpt")


@dataclass(frozen=True)
class TrainerConfig:
    """How long, where and in which precision something trains, and how often it is looked at.

    Attributes:
        max_steps: Optimiser steps.
        max_minutes: Stop with a checkpoint after this many minutes; ``null`` is no limit.
        precision: ``32-true``, ``bf16-mixed`` or ``16-mixed``. ``auto`` is bf16-mixed on a device that
            computes in bfloat16, else 32-true.
        accelerator: Kind of device, as in Lightning's Trainer.
        devices: Number of devices on each machine, one process for each.
        nodes: Number of machines; SLURM or torchrun starts their processes.
        strategy: How several devices share a batch, as in Lightning's Trainer, such as ``ddp``.
        accumulate: Batches whose mean gradient one optimiser step takes.
        log_every: Optimiser steps between two log entries.
        checkpoint_every: Optimiser steps between two checkpoints.
        image_every: Optimiser steps between two sets of pictures; 0 draws none on the way.
        threads: CPU threads of torch; 0 leaves their number as it is.
        attention: ``auto`` is torch's fastest attention kernel for the device. ``plain`` can be faster on a
            CPU in bfloat16 where there are few tokens.
    """

    max_steps: Positive = 1000
    max_minutes: Factor | None = None
    precision: Precision = "32-true"
    accelerator: Literal["auto", "cpu", "gpu", "cuda", "mps", "tpu"] = "auto"
    devices: Positive = 1
    nodes: Positive = 1
    strategy: str = "auto"
    accumulate: Positive = 1
    log_every: Positive = 10
    checkpoint_every: Positive = 500
    image_every: Count = 500
    threads: Annotated[int, Range(0, 1024)] = 0
    attention: Literal["auto", "plain"] = "auto"

    @property
    def processes(self) -> int:
        """How many take part, one a device; :class:`UserError` if the settings leave none."""
        if self.devices < 1 or self.nodes < 1:
            raise UserError(f"{self.devices} devices on {self.nodes} nodes cannot train; give 1 or more")
        return self.devices * self.nodes

    def check_machine(self) -> None:
        """Raise :class:`UserError` for a device, precision or strategy that this machine does not have."""
        refuse_machine(self.accelerator, self.devices, self.precision, self.strategy)

    @property
    def compute_precision(self) -> str:
        """``precision`` in Lightning's words: "auto" is decided here."""
        return working_precision(self.precision, self.accelerator)

    @property
    def writes(self) -> bool:
        """Whether this process is the run's first, the only one that may write files.

        Known before Lightning starts: whoever starts the others (Lightning, torchrun, SLURM) gives
        the first one rank 0 by every count.
        """
        counts = ("RANK", "LOCAL_RANK", "NODE_RANK", "SLURM_PROCID")
        return self.processes == 1 or all(os.environ.get(name, "0") == "0" for name in counts)


@dataclass(frozen=True)
class LoggingConfig:
    """Where a run writes its curves and pictures to.

    Attributes:
        loggers: Any of ``csv``, ``tensorboard``, ``wandb``, ``mlflow`` and ``trackio``. Python and ``--set``
            may also give the dotted name of any Lightning ``Logger``, which a file may not.
        project: Project of the run on W&B and Trackio, experiment on MLflow.
        name: Name of the run there; ``null`` is the run folder's.
        group: Runs that belong together there, such as the cells of an experiment.
        job_type: What a run is among those of its group, such as the setup of a cell.
        tags: Tags of the run there.
        wandb_mode: ``auto`` is online where there is an account (``WANDB_API_KEY`` or a login), else
            offline. The variable ``WANDB_MODE`` wins over this setting.
        options: Further arguments of ``wandb.init``.
    """

    loggers: tuple[str, ...] = ("csv", "tensorboard")
    project: str = "textual-inversion"
    name: str | None = None
    group: str | None = None
    job_type: str | None = None
    tags: tuple[str, ...] = ()
    wandb_mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    options: dict = field(default_factory=dict)

    @property
    def labels(self) -> dict[str, str]:
        """``group`` and ``job_type``, as far as they are given."""
        given = {"group": self.group, "job_type": self.job_type}
        return {name: value for name, value in given.items() if value is not None}


class AtomicCheckpoints(TorchCheckpointIO):
    """Lightning's checkpoints through ``atomic_write``.

    Its own way is a temporary file in the system's folder and a move, which across file systems is
    a copy: a disk that fills up then leaves half a checkpoint under its final name.
    """

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        _refuse_exploded(checkpoint)
        with atomic_write(path) as temporary, open(temporary, "wb") as stream:
            torch.save(checkpoint, stream)  # to a stream: a path would be stored in the file


def _refuse_exploded(checkpoint: Mapping[str, Any]) -> None:
    """Weights that no training comes back from are an error, and not saved over those that were good.

    Raises:
        UserError: some are not finite, or beyond ``EXPLODED``.
    """
    for name, value in checkpoint["state_dict"].items():
        numbers = isinstance(value, Tensor) and value.is_floating_point() and value.numel()
        if numbers and not value.detach().abs().max() <= EXPLODED:
            raise UserError(
                f"the weights exploded by step {checkpoint.get('global_step', 0)} ({name}): nothing more is "
                "saved; start again with a lower learning rate (optim.lr), or precision 32-true"
            )


def attention_kernel(name: str) -> AbstractContextManager[Any]:
    """The attention kernel while training: ``auto`` is torch's choice, ``plain`` two matrix products.

    torch's fused kernel is the faster one, by far where tokens are many (a thousand tokens: the plain
    products write and read gigabytes). The exception is its backward on a CPU in bfloat16 at the 64
    tokens of a small UNet and large batches (`benchmarks/training_speed.py`).
    """
    from torch.nn.attention import SDPBackend, sdpa_kernel

    return sdpa_kernel([SDPBackend.MATH]) if name == "plain" else nullcontext()


def _checkpoints(folder: Path, every: int) -> ModelCheckpoint:
    """Keep the newest checkpoint, and ``last.ckpt`` to resume from."""
    return ModelCheckpoint(
        folder / "checkpoints",
        filename="{step}",
        every_n_train_steps=every,
        save_top_k=1,
        monitor="step",
        mode="max",
        save_last=True,
        enable_version_counter=False,  # in a copied run folder too, the newest is `last.ckpt`
        save_on_train_epoch_end=False,
    )


class EndCheckpoint(Callback):
    """Saves ``last.ckpt`` where training ends, and where a signal ends it: after the optimiser step that the
    signal came in.

    Args:
        path: of the checkpoint; None: nothing is saved.
        every: optimiser steps between the checkpoints that are saved anyway.
    """

    def __init__(self, path: Path | None, every: int) -> None:
        self.path, self.every = path, every
        self._step, self._ends = -1, False

    def on_train_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        interrupt.take_back()  # Lightning's handler of SIGTERM ends the process with status 0
        self._step = trainer.global_step
        self._stop_at_signal(trainer)

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        step = trainer.global_step
        self._ends = self._ends or trainer.should_stop or step >= trainer.max_steps
        if step == self._step:  # gradients are being accumulated: what is saved now could not go on exactly
            trainer.should_stop = False
            return
        self._step, trainer.should_stop = step, self._ends
        if self._ends and not due(step, self.every):
            self._save(trainer)
        self._stop_at_signal(trainer)

    def _stop_at_signal(self, trainer: pl.Trainer) -> None:
        number = interrupt.noted() or 0
        if trainer.world_size > 1:  # together: a process that goes on would wait for the others for ever
            everywhere = torch.tensor(float(number), device=trainer.strategy.root_device)
            number = int(trainer.strategy.reduce(everywhere, reduce_op="max"))
        if number:
            if self._step:
                self._save(trainer)
            raise _Stopped(number)

    def _save(self, trainer: pl.Trainer) -> None:
        if self.path is not None:
            trainer.save_checkpoint(self.path)


class _Stopped(BaseException):
    """A signal ended the training. No KeyboardInterrupt, of which Lightning makes a plain exit."""


@contextmanager
def _as_interrupted() -> Iterator[None]:
    """What Lightning makes of signals, as :class:`ldm.interrupt.Interrupted`."""
    try:
        yield
    except _Stopped as stopped:
        raise interrupt.Interrupted(stopped.args[0]) from None
    except SystemExit as left:
        number = interrupt.noted() or isinstance(left.__context__, KeyboardInterrupt) and signal.SIGINT
        if not number:
            raise
        raise interrupt.Interrupted(number) from None


def fit(
    module: pl.LightningModule,
    folder: Path | None,
    config: TrainerConfig,
    logging_config: LoggingConfig,
    *,
    seed: int,
    callbacks: Sequence[Callback] = (),
    clip_norm: float = 0.0,
    resume: Path | None = None,
    progress: bool = True,
    about: About | None = None,
    keep_open: bool = False,
) -> pl.Trainer:
    """Train ``module`` (which brings its own ``train_dataloader``) in ``folder``; returns the Trainer.

    Checkpoints go to ``folder/checkpoints``; ``resume`` continues from one of them, bit for bit where
    the device is deterministic. Without a folder nothing is written: no checkpoints, no logs.

    Args:
        about: What the run is, for its loggers.
        keep_open: Whether the caller closes the Trainer's loggers (``Dashboard.close``), having told them
            what came of the run. After an error they are closed here in any case.

    Raises:
        Interrupted: a signal ended it; ``last.ckpt`` is what was learned by then.
    """
    if config.threads:
        torch.set_num_threads(config.threads)
    pl.seed_everything(seed, verbose=False)
    keep: list[Callback] = []
    loggers: list[Logger] = []
    if folder is not None:
        keep = [_checkpoints(folder, config.checkpoint_every)]
        loggers = make_loggers(logging_config, folder / "logs")
    dashboard = Dashboard(loggers)
    if about is not None:
        dashboard.begin(about)
    end = EndCheckpoint(None if folder is None else folder / LAST, config.checkpoint_every)
    bars: list[Callback] = [StepProgressBar()] if progress else []
    monitor: list[Callback] = [LearningRateMonitor("step")] if loggers else []
    with quiet():
        trainer = pl.Trainer(
            max_steps=config.max_steps,
            plugins=[AtomicCheckpoints()],
            max_epochs=-1,
            precision=config.compute_precision,  # type: ignore[arg-type]
            accelerator=config.accelerator,
            devices=config.devices,
            num_nodes=config.nodes,
            strategy=config.strategy,
            accumulate_grad_batches=config.accumulate,
            gradient_clip_val=clip_norm or None,
            log_every_n_steps=config.log_every,
            logger=loggers,
            callbacks=[*keep, *bars, *monitor, *callbacks, TimeLimit(config.max_minutes), end],
            enable_progress_bar=progress,
            enable_checkpointing=bool(keep),
            enable_model_summary=False,
            num_sanity_val_steps=0,
            inference_mode=False,
            default_root_dir=str(folder) if folder is not None else None,
        )
        try:
            with attention_kernel(config.attention), interrupt.saved_first(), _as_interrupted():
                trainer.fit(module, ckpt_path=str(resume) if resume else None)
        except BaseException:
            dashboard.close("failed")
            raise
    if not keep_open:
        dashboard.close()
    return trainer


def refuse_machine(accelerator: str, devices: int, precision: str, strategy: str) -> None:
    """Refuse what Lightning would stop at in the middle of a traceback; arguments as in its Trainer.

    Raises:
        UserError: says what this machine lacks.
    """
    mps = torch.backends.mps.is_available()
    if accelerator == "cuda" or (accelerator == "gpu" and not mps):
        device_of(accelerator)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if accelerator in ("gpu", "cuda", "auto") and 0 < found < devices:
        raise UserError(f"trainer.devices is {devices}, but torch finds {found} GPUs; give at most these")
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not found and not mps)
    if on_cpu and precision in ("16-mixed", "16-true"):
        raise UserError(f"trainer.precision {precision} needs a GPU; give 32-true, bf16-mixed or auto")
    known = StrategyRegistry.available_strategies()
    if strategy != "auto" and strategy not in known:
        raise UserError(f"unknown trainer.strategy {strategy!r}; use auto or one of {', '.join(known)}")
