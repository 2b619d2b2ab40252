"""Ray's workers behind the interface of ``concurrent.futures`` (the optional extra ``ldm[ray]``)."""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any

from ldm.errors import UserError

#: of a local cluster's object store, in bytes; what passes through it are settings and results
STORE = 2**27
#: seconds in which a cluster must answer, the start of Ray included
ANSWER = 60


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
        UserError: Ray is not installed, there is no cluster at the address or it asks for another token, or
            a task asks for more than the whole cluster has.
    """

    def __init__(
        self, address: str, *, cpus: int = 1, gpus: float | None = None, verbose: bool = False
    ) -> None:
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        if not verbose:  # also the last pages of a killed node's log, which Ray would print
            os.environ.setdefault("RAY_DEDUP_LOGS_SKIP_REGEX", ".")
        try:
            import ray
        except ImportError:
            raise UserError(
                "Ray is not installed; install it with: pip install 'ray>=2.60' (or learn on this "
                "machine without it: ldm invert --concepts)"
            ) from None
        self.ray = ray
        local: dict[str, Any] = {"include_dashboard": False, "object_store_memory": STORE}
        try:
            if address not in ("local", "auto"):
                _knock(address)
                _ask(address)
            with _signals_kept():
                ray.init(
                    address=address,
                    log_to_driver=verbose,
                    logging_level=logging.INFO if verbose else logging.ERROR,
                    **(local if address == "local" else {}),
                )
        except UserError:
            raise
        except (OSError, ValueError) as error:
            raise _nobody(address) from error
        except ray.exceptions.RayError as error:
            raise _needs_token(address) if "oken" in str(error) else _nobody(address) from error
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


@contextmanager
def _signals_kept() -> Iterator[None]:
    """SIGTERM stays with whoever handles it; ``ray.init`` would put a plain exit in its place."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _knock(address: str) -> None:
    """OSError or ValueError if nobody listens at "host:port"; Ray itself would try for minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    socket.create_connection((host, int(port)), timeout=10).close()


def _ask(address: str) -> None:
    """Refuse a server that is no Ray cluster, or one that does not take this machine's token.

    In a process of its own: Ray would try for 20 seconds, and for each of them print a line.
    """
    if "://" in address:  # of Ray's client, which has no such command
        return
    words = [sys.executable, "-m", "ray.scripts.scripts", "health-check", "--address", address]
    try:
        asked = subprocess.run(words, capture_output=True, text=True, timeout=ANSWER, check=False)
    except subprocess.TimeoutExpired as error:
        raise _nobody(address) from error
    if "AuthenticationError" in asked.stderr:
        raise _needs_token(address)
    if asked.returncode and "RpcError" in asked.stderr:
        raise _nobody(address)


def _nobody(address: str) -> UserError:
    return UserError(
        f"there is no Ray cluster at {address!r}; start one with `ray start --head` and `ray start --address "
        "HOST:PORT`, or use --address local"
    )


def _needs_token(address: str) -> UserError:
    given = os.environ.get("RAY_AUTH_MODE", "").lower() == "token"
    what = "takes another token than this one" if given else "asks for a token: set RAY_AUTH_MODE=token"
    return UserError(
        f"the Ray cluster at {address!r} {what}; copy ~/.ray/auth_token from its head, or set RAY_AUTH_TOKEN "
        "to what `ray get-auth-token` prints there"
    )


def _call(fn: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    return fn(*args, **kwargs)
