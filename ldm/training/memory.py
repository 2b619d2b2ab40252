"""Memory of a training step: how much it takes, how much is free, and which errors mean that it ran out."""

from __future__ import annotations

import ctypes
import platform
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import torch
from torch import Tensor
from torch.autograd.graph import saved_tensors_hooks

from ldm.device import out_of_memory
from ldm.errors import UserError

#: of the free memory, the share that is planned with: allocators leave gaps
USABLE = 0.8
#: on a CPU, peak over what autograd saves: operands and results of the operation in progress
TRANSIENT = 1.5
#: limit of a container, and what it uses, where the kernel has control groups (version 2)
CGROUP = Path("/sys/fs/cgroup")
#: options of glibc's ``mallopt``, in bytes: what the top of the heap may keep, what is a mapping of its own
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
#: the most that glibc raises the two to by itself
TRIM_DEFAULT, MMAP_DEFAULT = 2**26, 2**25


def too_large(batch_size: int) -> UserError:
    """One concept alone does not fit."""
    return UserError(
        f"out of memory with this concept alone: lower its batch_size ({batch_size}; trainer.accumulate "
        "makes up for it), use bf16-mixed, or set checkpointing=true"
    )


@contextmanager
def in_one_line(batch_size: int) -> Iterator[None]:
    """Turns an allocator's error into :func:`too_large`."""
    try:
        yield
    except Exception as error:
        if not out_of_memory(error):
            raise
        raise too_large(batch_size) from None


def free_bytes(device: torch.device) -> int:
    """Bytes that can still be allocated on a device, those that torch keeps for itself included."""
    if device.type == "cuda":
        cached = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return torch.cuda.mem_get_info(device)[0] + cached
    free = psutil.virtual_memory().available
    try:
        limit, used = ((CGROUP / name).read_text() for name in ("memory.max", "memory.current"))
        return min(free, int(limit) - int(used))
    except (OSError, ValueError):  # no such groups, or no limit ("max")
        return free


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Keep what is freed for the next allocation, on systems with glibc; afterwards the system gets it.

    glibc maps blocks beyond 32 MB anew each time, and a page is filled with zeros at its first touch: a
    fifth of a step of 128 samples of the emoji model, whose feed-forwards have results of 50 MB.
    """
    if platform.libc_ver()[0] != "glibc":
        yield
        return
    libc, most = ctypes.CDLL(None), 2**31 - 1
    libc.mallopt(M_TRIM_THRESHOLD, most)
    libc.mallopt(M_MMAP_THRESHOLD, most)
    try:
        yield
    finally:
        libc.mallopt(M_TRIM_THRESHOLD, TRIM_DEFAULT)
        libc.mallopt(M_MMAP_THRESHOLD, MMAP_DEFAULT)
        libc.malloc_trim(0)


def step_bytes(step: Callable[[], object], device: torch.device, weights: Iterable[Tensor] = ()) -> int:
    """Bytes that ``step()`` takes at its peak beyond what it finds; ``weights`` are there already.

    On a GPU measured by its allocator; on a CPU what autograd saves for the backward pass, times
    ``TRANSIENT``.
    """
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        step()
        return torch.cuda.max_memory_allocated(device) - before
    there = {tensor.untyped_storage().data_ptr() for tensor in weights}
    saved: dict[int, int] = {}  # the graph keeps every storage alive, so an address names one

    def note(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in there:
            saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with saved_tensors_hooks(note, lambda tensor: tensor):
        step()
    return int(TRANSIENT * sum(saved.values()))
