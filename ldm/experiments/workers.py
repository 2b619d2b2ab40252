"""Who works on groups of cells: this process, processes beside it, or a Ray cluster."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from concurrent.futures import Executor, Future, ProcessPoolExecutor, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any

from ldm.errors import UserError


class Here(Executor):
    """This process: a function is called when it is submitted."""

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it now; only a signal is raised here, any other error is the future's."""
        future: Future[Any] = Future()
        try:
            future.set_result(fn(*args, **kwargs))
        except Exception as error:
            future.set_exception(error)
        return future


class Processes(Executor):
    """So many processes of this machine, each of which keeps its model from one call to the next.

    A process that dies takes only its own call with it, and another one takes its place. All end with this
    process, even if it is killed.

    Args:
        count: how many.
        threads: of each, for computing.
    """

    def __init__(self, count: int, threads: int) -> None:
        if count < 1:
            raise UserError(f"{count} workers do nothing; give 1 or more")
        self._threads = ThreadPoolExecutor(count, thread_name_prefix="worker")
        self._compute = threads
        self._own = threading.local()
        self._pools: set[ProcessPoolExecutor] = set()
        self._busy: set[ProcessPoolExecutor] = set()

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Call it in the next process that is free."""
        return self._threads.submit(self._call, fn, *args, **kwargs)

    def _call(self, fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        pool = getattr(self._own, "pool", None) or self._start()
        self._busy.add(pool)
        try:
            return pool.submit(fn, *args, **kwargs).result()
        except BrokenProcessPool:
            self._pools.discard(pool)
            self._own.pool = None
            raise RuntimeError("the worker process died, most likely for want of memory") from None
        finally:
            self._busy.discard(pool)

    def _start(self) -> ProcessPoolExecutor:
        from multiprocessing import get_context

        pool = ProcessPoolExecutor(1, get_context("spawn"), _begin, (self._compute,))
        self._own.pool = pool
        self._pools.add(pool)
        return pool

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the processes; those that still work are ended too, what they have finished is on the disk."""
        self._threads.shutdown(wait=False, cancel_futures=True)
        for pool in list(self._pools):
            for process in list((pool._processes or {}).values()) if pool in self._busy else ():
                process.terminate()
            pool.shutdown(wait=True, cancel_futures=True)


def _begin(threads: int) -> None:
    """In a new process: end with the parent, leave Ctrl-C to it, and compute with so many threads."""
    import multiprocessing
    import signal
    from multiprocessing.connection import wait

    import torch

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(threads)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        wait([parent.sentinel])
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()
