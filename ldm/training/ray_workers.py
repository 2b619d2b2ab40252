"""Ray's workers behind the interface of ``concurrent.futures`` (the optional extra ``ldm[ray]``)."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from concurrent.futures import Executor, Future
from typing import Any

from ldm.errors import UserError

#: of a local cluster's object store, in bytes; what passes through it are settings and results
STORE = 2**27


class RayWorkers(Executor):
    """Runs functions as Ray tasks, on a cluster or on this machine.

    A future's exception is the function's own, or Ray's if the worker died. Nothing is retried here.

    Args:
        address: "local" starts a cluster on this machine, for as long as this object is used; "auto" or
            "host:port" joins one that runs, whose workers must have ldm installed.
        cpus: a task, also its threads.
        gpus: a task, 0.5 for two on one GPU; None: one if the cluster has any.
        verbose: show what Ray and the workers say.

    Raises:
        UserError: Ray is not installed, there is no cluster at the address, or a task asks for more
            than the whole cluster has.
    """

    def __init__(
        self, address: str, *, cpus: int = 1, gpus: float | None = None, verbose: bool = False
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        try:
            import ray
        except ImportError:
            raise UserError(
                "Ray is not installed; install it with: pip install 'ray>=2.40' (or learn on this "
                "machine without it: ldm invert --concepts)"
            ) from None
        self.ray = ray
        level = "INFO" if verbose else "ERROR"
        local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE}
        try:
            if address not in ("local", "auto"):
                _knock(address)
            ray.init(
                address=address,
                log_to_driver=verbose,
                logging_level=level,
                **(local if address == "local" else {}),
            )
        except (OSError, ValueError) as error:
            raise UserError(
                f"there is no Ray cluster at {address!r}; start one with `ray start --head` and `ray "
                "start --address HOST:PORT`, or use --address local"
            ) from error
        has = ray.cluster_resources()
        gpus = float(has.get("GPU", 0) > 0) if gpus is None else gpus
        for kind, wanted in (("CPU", cpus), ("GPU", gpus)):
            if wanted > has.get(kind, 0):
                self.shutdown()
                raise UserError(f"a task asks for {wanted:g} {kind}, the cluster has {has.get(kind, 0):g}")
        # max_calls=0: else Ray ends a worker after each GPU task, and its model is loaded again
        self.task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_retries=0, max_calls=0)(_call)

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run ``fn(*args, **kwargs)`` on a worker."""
        result: Future[Any] = Future()
        result.set_running_or_notify_cancel()

        def take(future: Future[Any]) -> None:
            error = future.exception()
            if error is None:
                result.set_result(future.result())
            else:
                wrapped = isinstance(error, self.ray.exceptions.RayTaskError)
                result.set_exception(error.cause if wrapped else error)  # type: ignore[attr-defined]

        self.task.remote(fn, *args, **kwargs).future().add_done_callback(take)
        return result

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Leave the cluster; a local one ends. Tasks that run then end too."""
        self.ray.shutdown()


def _knock(address: str) -> None:
    """OSError or ValueError if nobody listens at "host:port"; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)
