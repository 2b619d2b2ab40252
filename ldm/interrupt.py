"""Signals that ask a process to end: work is saved first, and the exit status says what happened.

==========================  ======  ==========================================================
signal                      status  sent by
==========================  ======  ==========================================================
SIGINT                      130     Ctrl-C
SIGTERM                     143     ``kill``, ``timeout``, ``docker stop``, ``scancel``
SIGHUP                      129     a terminal that is closed
SIGUSR1, SIGUSR2            75      a job system before a time limit: give the command again
==========================  ======  ==========================================================

Within :func:`listening` a signal raises :class:`Interrupted` where the program is. Within
:func:`saved_first` it is only noted; who works there looks at :func:`noted` where its state is whole, saves
and stops. A signal that is ignored (``nohup``) stays ignored, and one that somebody else handles is theirs.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

#: "restart me": ``EX_TEMPFAIL`` of ``sysexits.h``
RESTART = 75
#: a second Ctrl-C after so many seconds does not wait for anything to be saved
PATIENCE = 1.0

_OURS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2")
_STATUS = {
    name: RESTART if "USR" in name else 128 + getattr(signal, name) for name in _OURS if hasattr(signal, name)
}


class Interrupted(KeyboardInterrupt):
    """A signal ended the work; :func:`ldm.cli.main.guarded` makes its status the process's.

    Attributes:
        signal: its number.
        impatient: it was raised within ``saved_first``, wherever that was.
    """

    def __init__(self, number: int, *, impatient: bool = False) -> None:
        super().__init__(signal.Signals(number).name)
        self.signal, self.impatient = number, impatient

    @property
    def name(self) -> str:
        """``SIGTERM``, for example."""
        return signal.Signals(self.signal).name

    @property
    def status(self) -> int:
        """The exit status, see the table above."""
        return _STATUS.get(self.name, 128 + self.signal)


class _State:
    """Of the process: signals are the process's, not an object's.

    Attributes:
        noted: the first signal that came, and when.
        saving: depth of ``saved_first``.
        ours: the signals that are handled here.
        terminals: file descriptors of the output that are a terminal.
    """

    noted: int | None = None
    when = 0.0
    saving = 0
    ours: frozenset[int] = frozenset()
    terminals: tuple[int, ...] = ()


def noted() -> int | None:
    """The number of the signal that came, if one did."""
    return _State.noted


def check() -> None:
    """Raise :class:`Interrupted` if a signal came that was noted or got lost (Python drops what is raised
    in a destructor), unless work is to be saved first."""
    if _State.noted is not None and not _State.saving:
        raise Interrupted(_State.noted)


def _handle(number: int, frame: Any) -> None:
    now = time.monotonic()
    _leave_lost_terminals()
    if _State.noted is None:
        _State.noted, _State.when = number, now
        if _State.saving:
            _tell(f"{signal.Signals(number).name}: saving what was learned, then stopping")
            return
        raise Interrupted(number)
    if number == signal.SIGINT and now - _State.when > PATIENCE:
        raise Interrupted(number, impatient=True)
    # the same signal again, as `timeout` sends it: the first one is being obeyed


def _leave_lost_terminals() -> None:
    """Send output nowhere whose terminal was closed: else the next line of a progress bar is an error, and
    ends what is to be saved."""
    for descriptor in _State.terminals:
        if not os.isatty(descriptor):
            nowhere = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nowhere, descriptor)
            os.close(nowhere)


def _tell(text: str) -> None:
    """A line on stderr, by the system call: a handler may have interrupted Python's own writing."""
    try:
        os.write(2, f"\nldm: {text}\n".encode())
    except OSError:
        pass


@contextmanager
def listening() -> Iterator[None]:
    """Handle the signals in this block, as far as nobody does; elsewhere than in the main thread nothing
    is changed, since Python runs handlers there alone."""
    before: dict[int, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for name in _STATUS:
            number = getattr(signal, name)
            if signal.getsignal(number) in (signal.SIG_DFL, signal.default_int_handler):
                before[number] = signal.signal(number, _handle)
    if before:
        _State.noted, _State.ours = None, _State.ours | before.keys()
        _State.terminals = tuple(descriptor for descriptor in (1, 2) if os.isatty(descriptor))
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if before:
            _State.noted, _State.ours = None, _State.ours - before.keys()


def take_back() -> None:
    """Handle those signals again that a library has taken in the meantime."""
    if threading.current_thread() is threading.main_thread():
        for number in _State.ours:
            signal.signal(number, _handle)


@contextmanager
def saved_first() -> Iterator[None]:
    """Note signals in this block and raise nothing (but at an impatient second Ctrl-C).

    Raises:
        Interrupted: at the end of the outermost block, if a signal was noted and nobody raised it.
    """
    with listening():
        _State.saving += 1
        try:
            yield
        finally:
            _State.saving -= 1
        check()


@contextmanager
def skippable() -> Iterator[None]:
    """Within :func:`saved_first`, a block that may be left out, such as pictures on the way: a signal ends
    it at once (at its next :func:`check`, if it came before), and nothing is raised beyond it."""
    depth, _State.saving = _State.saving, 0
    try:
        yield
    except Interrupted:
        if not depth:
            raise
    finally:
        _State.saving = depth
