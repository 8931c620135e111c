"""A request to end is answered in time, whatever a process is doing, and leaves children alone."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time

import pytest
import torch
from disk import child

from pyro_vae import signals
from pyro_vae.signals import Interrupted, answered, owning_process


@pytest.fixture(autouse=True)
def short(monkeypatch):
    monkeypatch.setattr(signals, "GRACE_SECONDS", 0.2)
    monkeypatch.setattr(signals, "_UNWINDING_SECONDS", 0.3)


def computing() -> None:
    end = time.monotonic() + 120
    while time.monotonic() < end:
        pass


def multiplying(doublings: int = 20) -> None:
    """Seconds, or minutes, inside one operation."""
    torch.linalg.matrix_power(torch.zeros(1, 1).expand(4000, 4000), 2**doublings)


def sent(work, *signums: int, at_once: bool = False, owned: bool = True) -> int:
    """Return the exit status of a process that gets signals while it works; 7 if interrupted."""

    def send(clock: int) -> None:
        """Send each once the main thread, whose clock this is, has worked for a while."""
        for signum in signums:
            since = time.clock_gettime(clock)
            while time.clock_gettime(clock) < since + 0.05:
                time.sleep(0.01)
            os.kill(os.getpid(), signum)

    def action() -> None:
        clock = time.pthread_getcpuclockid(threading.get_ident())
        with contextlib.ExitStack() as stack:
            if owned:
                stack.enter_context(owning_process())
            stack.enter_context(answered(at_once=at_once))
            threading.Thread(target=send, args=(clock,), daemon=True).start()
            try:
                work()
            except Interrupted as stopped:
                os._exit(7 if stopped.signum == signums[0] else 8)

    return child(action)


SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.mark.parametrize("signum", SIGNALS)
@pytest.mark.parametrize("at_once", [True, False])
def test_a_loop_of_python_is_interrupted(signum, at_once):
    assert sent(computing, signum, at_once=at_once) == 7


@pytest.mark.parametrize("signum", SIGNALS)
def test_a_long_operation_is_ended(signum):
    started = time.monotonic()
    assert sent(multiplying, signum) == 128 + signum
    assert time.monotonic() - started < 30


def test_a_second_signal_is_answered_at_once(monkeypatch):
    monkeypatch.setattr(signals, "GRACE_SECONDS", 60.0)
    assert sent(computing, signal.SIGTERM, signal.SIGTERM) == 7
    assert sent(multiplying, signal.SIGTERM, signal.SIGINT) == 128 + signal.SIGTERM


def test_ctrl_c_does_not_end_a_process_that_is_the_callers():
    """As in a notebook: it waits for the operation, as Python does."""
    assert sent(lambda: multiplying(1), signal.SIGINT, owned=False) == 7
    assert sent(multiplying, signal.SIGTERM, owned=False) == 128 + signal.SIGTERM


def test_a_request_that_is_heard_has_time_to_be_answered():
    with answered(at_once=False) as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.signum == signal.SIGTERM
        stop.heard = True
        time.sleep(0.5)


def test_a_hang_up_that_is_ignored_from_outside_stays_so():
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with answered(at_once=True):
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, before)


def test_the_signals_of_a_child_are_not_taken_for_ones_own():
    with answered(at_once=False) as stop:
        pid = os.fork()
        if pid == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            os._exit(0)
        os.waitpid(pid, 0)
        time.sleep(0.5)
        assert stop.signum == 0


def test_everything_is_as_before_afterwards():
    handlers = [signal.getsignal(s) for s in SIGNALS]
    threads = threading.active_count()
    with answered(at_once=True), answered(at_once=False):
        pass
    assert [signal.getsignal(s) for s in SIGNALS] == handlers
    assert threading.active_count() == threads
    assert signal.set_wakeup_fd(-1) == -1
