"""Which device trains, and the precision that suits it."""

from __future__ import annotations

import logging
from functools import lru_cache
from typing import Literal

import torch
from pytorch_lightning.strategies import StrategyRegistry

from ldm.errors import UserError

log = logging.getLogger(__name__)

Precision = Literal["auto", "32-true", "bf16-mixed", "16-mixed", "bf16-true", "16-true", "64-true"]
"""Lightning's names, and "auto"."""


def device_of(accelerator: str) -> torch.device:
    """Of Lightning's name for it, the CPU or the current GPU.

    Raises:
        UserError: there is no such device.
    """
    found = torch.cuda.is_available()
    if accelerator == "cpu" or (accelerator == "auto" and not found):
        return torch.device("cpu")
    if accelerator not in ("auto", "gpu", "cuda") or not found:
        raise UserError(f"no {accelerator} that torch can use was found; give trainer.accelerator=cpu")
    return torch.device("cuda", torch.cuda.current_device())


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


def cpu_has_bfloat16() -> bool:
    """Whether the CPU has instructions for bfloat16.

    One that has none emulates it: the shipped UNet then trains twenty times slower than in float32
    (``benchmarks/training_speed.py``).
    """
    if not hasattr(torch.cpu, "get_capabilities"):  # an older torch cannot tell
        return False
    capabilities = torch.cpu.get_capabilities()
    return bool(capabilities.get("amx_bf16") or capabilities.get("avx512_bf16"))


def working_precision(precision: str, accelerator: str) -> str:
    """A Lightning precision string; ``auto`` becomes bf16-mixed where the device has it, else 32-true.

    bf16-mixed that was asked for by name stays, with a warning on a CPU that is slow at it.
    """
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    on_cpu = accelerator == "cpu" or (accelerator == "auto" and not on_gpu)
    if precision == "bf16-mixed" and on_cpu and not cpu_has_bfloat16():
        _warn_of_emulation()
    if precision != "auto":
        return precision
    if on_gpu:
        native = torch.cuda.is_bf16_supported(including_emulation=False)
    else:
        native = on_cpu and cpu_has_bfloat16()
    return "bf16-mixed" if native else "32-true"


@lru_cache(maxsize=1)  # once a process
def _warn_of_emulation() -> None:
    log.warning(
        "bf16-mixed on this CPU is emulated and many times slower than float32; --set trainer.precision=auto "
        "takes what is faster"
    )
