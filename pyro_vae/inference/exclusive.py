"""A lock for calls from several threads: Pyro's handlers and torch's generators are global.

Calls from other threads wait. So a call draws the numbers that it draws alone, and puts back what
it found, not what another one had set in the meantime.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable
from typing import ParamSpec, TypeVar

__all__ = ["EXCLUSIVE", "exclusively"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

EXCLUSIVE = threading.RLock()


def exclusively(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Let calls of a function wait until no other thread runs a program."""

    @functools.wraps(function)
    def waiting(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        with EXCLUSIVE:
            return function(*args, **kwargs)

    return waiting
