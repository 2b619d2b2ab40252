"""The device that computes: which one, its precision, how tensors get there, when its memory is out."""

from __future__ import annotations

import logging
import platform
from functools import cache, lru_cache
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from ldm.errors import UserError

log = logging.getLogger(__name__)


def carry(tensor: Tensor, device: torch.device) -> Tensor:
    """``tensor`` on ``device``.

    A copy from ordinary memory makes the host wait until a GPU has done all that it was given; one
    from pinned memory takes its place in the queue.
    """
    if device.type == "cuda" and tensor.device.type == "cpu":
        return tensor.pin_memory().to(device, non_blocking=True)
    return tensor.to(device)


#: words of allocators that raise a plain RuntimeError: torch's for the CPU, cuBLAS's workspace
REFUSALS = ("not enough memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


def out_of_memory(error: BaseException) -> bool:
    """Whether an allocator gave up, be it the GPU's or the CPU's."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    return isinstance(error, RuntimeError) and any(words in str(error) for words in REFUSALS)


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


@cache
def machine(device: torch.device) -> str:
    """What computes, such as ``NVIDIA A100`` or the processor's name; the host is not named."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()
