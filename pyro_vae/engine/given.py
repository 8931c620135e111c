"""What ``fit`` is given: a program, as an object or as a pair of functions, and data."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from pyro.infer import ELBO

from pyro_vae.arguments import shown
from pyro_vae.inference.program import Program

__all__ = ["Given", "program_and_data"]


@dataclass(frozen=True)
class Given:
    """What one replica is made of: a program, and an objective that no other replica changes."""

    program: Any
    objective: ELBO | None = None

    @property
    def model(self) -> Callable[..., Any]:
        """Declares p(x, z)."""
        whole = not isinstance(self.program, tuple)
        return getattr(self.program, "model", self.program) if whole else self.program[0]

    @property
    def guide(self) -> Any:
        """Declares q(z | x)."""
        whole = not isinstance(self.program, tuple)
        return getattr(self.program, "guide", None) if whole else self.program[1]

    @property
    def pair(self) -> Program:
        """The model and the guide."""
        return Program(self.model, self.guide)


def program_and_data(model: Any, guide: Any, data: Any) -> tuple[Any, Any]:
    """Return the program, as an object or a pair, and the data, from what ``fit`` was given.

    Raises:
        TypeError: If there is no such program, or there are no data.
        ValueError: If a list of programs is empty.
    """
    if data is not None:
        for role, function in (("model", model), ("guide", guide)):
            if isinstance(function, type) or not callable(function):
                raise TypeError(
                    f"{role}={shown(function)}: expected a function, a module or a method of one, "
                    "as in fit(vae.model, vae.guide, data)"
                )
        return (model, guide), data
    if guide is None:
        raise TypeError("there are no data: fit(vae, data) or fit(model, guide, data)")
    if isinstance(model, list) and not model:
        raise ValueError("the list of programs is empty: give one or more")
    for each in model if isinstance(model, list) else [model]:
        if isinstance(each, type):
            raise TypeError(f"{shown(each)} is no program yet: build one, {each.__name__}(...)")
        pair = each if isinstance(each, tuple) and len(each) == 2 else _parts(each)
        if not all(map(callable, pair)):
            raise TypeError(
                f"{shown(each)} is no program: expected an object with methods model and guide, as "
                "in fit(vae, data), or fit(model, guide, data)"
            )
    return model, guide


def _parts(program: Any) -> tuple[Any, Any]:
    return getattr(program, "model", None), getattr(program, "guide", None)
