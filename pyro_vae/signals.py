"""Answer SIGINT and SIGTERM within seconds, whatever the process is doing.

A handler in Python runs between two instructions of Python: not while an operation of minutes is
under way. So a thread waits beside the main one for the byte that the interpreter writes when a
signal arrives. If the request is not answered in time, or comes again, it interrupts what runs in
Python, and after that ends the process where ending is the signal's own effect. Files are written
whole or not at all: what is on the disk stays good.
"""

from __future__ import annotations

import contextlib
import functools
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass

__all__ = ["GRACE_SECONDS", "Interrupted", "Stop", "answered", "owning_process"]

GRACE_SECONDS = 5.0
_SAVING_SECONDS = 120.0
_UNWINDING_SECONDS = 2.0
_DONE = 0  # no signal has this number

_owned: ContextVar[bool] = ContextVar("the process is a command's", default=False)


class Interrupted(KeyboardInterrupt):
    """A signal stopped what was running.

    Attributes:
        signum: The signal.
    """

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.signum = signum


@dataclass
class Stop:
    """A request to stop.

    Attributes:
        signum: The signal that asked for it; 0 while none did.
        heard: Set by who has seen the request and brings the work to an end.
        farewell: What to say where the work is cut short.
    """

    signum: int = 0
    heard: bool = False
    farewell: Callable[[], str] = lambda: "interrupted"


@contextlib.contextmanager
def owning_process() -> Iterator[None]:
    """Let Ctrl-C, too, end the process where it is not answered: a context for commands."""
    token = _owned.set(True)
    try:
        yield
    finally:
        _owned.reset(token)


@contextlib.contextmanager
def answered(*, at_once: bool) -> Iterator[Stop]:
    """Turn SIGINT, SIGTERM and SIGHUP into a request: a context; gives the request.

    A second signal interrupts at once. A hang-up that was ignored from outside (``nohup``) stays
    so. In another thread than the main one, which gets no signals, nothing is changed.

    Args:
        at_once: Raise ``Interrupted`` at the first signal; otherwise it is noted, and raised where
            nobody hears it within ``GRACE_SECONDS``.
    """
    stop = Stop()
    if threading.current_thread() is not threading.main_thread():
        yield stop
        return

    def request(signum: int, frame: object) -> None:
        first, stop.signum = not stop.signum, stop.signum or signum
        if at_once or not first:
            raise Interrupted(stop.signum, stop.farewell())

    before = {s: signal.signal(s, request) for s in _signals()}
    try:
        with _watched(stop, set(before)):
            yield stop
    finally:
        for signum, handler in before.items():
            if handler is not None:  # one that was not set from Python cannot be set again
                signal.signal(signum, handler)


def _signals() -> list[int]:
    found = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        found.append(signal.SIGHUP)
    return [*map(int, found)]


@contextlib.contextmanager
def _watched(stop: Stop, signals: set[int]) -> Iterator[None]:
    """Keep a thread that answers where the main one does not."""
    if os.name != "posix":  # Windows wakes nobody by a pipe
        yield
        return
    _leave_children_alone()
    read, write = os.pipe()
    os.set_blocking(write, False)
    owned, main = _owned.get(), threading.get_ident()
    thread = threading.Thread(
        target=_wait, args=(stop, read, signals, owned, main), name="signals", daemon=True
    )
    before = signal.set_wakeup_fd(write, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        os.write(write, bytes([_DONE]))
        thread.join()
        os.close(read)
        os.close(write)


@functools.cache
def _leave_children_alone() -> None:
    # A child that is forked would write the byte of its own signals into its parent's pipe.
    os.register_at_fork(after_in_child=lambda: signal.set_wakeup_fd(-1))


def _wait(stop: Stop, read: int, signals: set[int], owned: bool, main: int) -> None:
    """Wait for a signal; see to it that it is answered."""
    signum = _next(read, signals, None)
    if signum in (_DONE, None):
        return
    since, again = time.monotonic(), None
    while again is None and _patience(stop, since) > 0:
        again = _next(read, signals, min(_patience(stop, since), 0.1))
    if again == _DONE:
        return
    stop.signum = stop.signum or signum or 0
    if again is None:
        signal.pthread_kill(main, stop.signum)
    until = time.monotonic() + _UNWINDING_SECONDS
    while (left := until - time.monotonic()) > 0:
        if _next(read, signals, left) == _DONE:
            return
    if owned or stop.signum != signal.SIGINT:
        _say(f"pyro-vae: {stop.farewell()}")
        os._exit(128 + stop.signum)
    while _next(read, signals, None) != _DONE:  # as Python does, after what is under way
        pass


def _patience(stop: Stop, since: float) -> float:
    """Return how many seconds a request has left; one that is being answered has more."""
    seconds = GRACE_SECONDS + (_SAVING_SECONDS if stop.heard else 0.0)
    return max(0.0, since + seconds - time.monotonic())


def _next(read: int, signals: set[int], seconds: float | None) -> int | None:
    """Return the next of these signals, ``_DONE``, or None after so many seconds."""
    until = None if seconds is None else time.monotonic() + seconds
    while True:
        left = None if until is None else max(0.0, until - time.monotonic())
        if not select.select([read], [], [], left)[0]:
            return None
        signum = os.read(read, 1)[0]
        if signum == _DONE or signum in signals:
            return signum


def _say(line: str) -> None:
    # Not through a file object: the main thread may be inside of it.
    with contextlib.suppress(OSError, ValueError):
        if select.select([], [2], [], 0.5)[1]:
            os.write(2, f"\n{line}\n".encode(errors="backslashreplace"))
