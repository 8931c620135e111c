"""Warn about failed pictures and files without losing a run's numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from pyro_vae.wording import warn

__all__ = ["Failure", "attempted", "optional"]

_Made = TypeVar("_Made")


class Failure(str):
    """One line on why something was not made."""


def attempted(what: str, make: Callable[[], _Made]) -> _Made | Failure:
    """Return what is made; or, after a warning, why it could not be.

    Training is over then, and may have taken days.

    Args:
        what: Is made, as a sentence begins: "the linear probe".
        make: Makes it.

    Raises:
        OSError: If a file cannot be written.
    """
    try:
        return make()
    except OSError:
        raise
    except Exception as error:  # whatever a program of the user's own may raise
        said = " ".join(str(error).split())[:300]
        reason = f"{type(error).__name__}: {said}" if said else type(error).__name__
        warn(f"{what} could not be made: {reason}")
        return Failure(reason)


def optional(what: str, make: Callable[[], _Made]) -> _Made | None:
    """Return what is made; after a warning None if it could not be, see ``attempted``."""
    made = attempted(what, make)
    return None if isinstance(made, Failure) else made
