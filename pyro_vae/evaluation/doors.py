"""Convert the arguments of an evaluation to the program's dtype and device."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.exclusive import EXCLUSIVE
from pyro_vae.inference.explaining import explaining
from pyro_vae.inference.program import Program

__all__ = ["judges"]

_P = ParamSpec("_P")
_R = TypeVar("_R")

_DATA = ("x", "x_like", "x_start", "x_end")


def judges(function: Callable[_P, _R]) -> Callable[_P, _R]:
    """Check a function's arguments, and hand it data and labels as its program takes them.

    Arrays and lists become tensors, and move to the device of the program's parameters. Numbers of
    another type than the parameters' become that type where the program cannot be run on them as
    they are: symbols stay whole numbers where a program wants these.

    Raises:
        TypeError: As in ``at_the_door``.
        ValueError: Likewise.
    """
    signature = inspect.signature(function)

    @functools.wraps(function)
    def fitted(*args: _P.args, **kwargs: _P.kwargs) -> _R:
        bound = signature.bind(*args, **kwargs)
        with EXCLUSIVE:
            return judged(bound)

    def judged(bound: inspect.BoundArguments) -> _R:
        program = _fit(bound.arguments)
        with explaining("the program cannot be judged", program.reachable):
            return function(*bound.args, **bound.kwargs)

    return at_the_door(fitted)


def _fit(given: dict[str, Any]) -> Program:
    program = Program(given["model"], given.get("guide") or given["model"])
    parameter = next(
        (p for m in program.reachable for p in m.parameters() if p.is_floating_point()), None
    )
    if parameter is None or torch.nn.parameter.is_lazy(parameter):
        return program
    labels = tuple(label.to(parameter.device) for label in given.get("labels", ()))
    if labels:
        given["labels"] = labels
    for name in _DATA:
        if name in given and given[name].dim() > 0 and len(given[name]) > 0:
            given[name] = _as_taken(program, parameter, given[name].to(parameter.device), labels)
    return program


def _as_taken(program: Program, parameter: Tensor, x: Tensor, labels: tuple[Tensor, ...]) -> Tensor:
    if x.dtype == parameter.dtype or program.model is program.guide:
        return x
    try:
        program.check(x, *labels)
    except ValueError:
        return x.to(parameter.dtype)
    return x
