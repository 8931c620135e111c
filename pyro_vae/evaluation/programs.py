"""Take programs as ``fit`` takes them, and data of any kind of array, for evaluations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Concatenate, ParamSpec, TypeVar

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor

from pyro_vae.arguments import door_of
from pyro_vae.datasets.data import Data
from pyro_vae.fields import by_name, check_labelled, field_of, names_by_position, names_taken
from pyro_vae.inference.explaining import explaining
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import EXCLUSIVE, Program

__all__ = ["Prior", "generates", "takes_program", "takes_program_or_prior"]

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Function = Callable[Concatenate[Probe, _P], _R]

# The data of a function: what else it is given of them follows these, or is held by the first.
_X = ("x", "x_like", "x_start", "x_end")
_FIELDS = Tensor | Data | Mapping[str, Tensor]


class Prior(Program):
    """A model without a guide: its own prior is one.

    Args:
        model: Declares p(x, z).
    """

    def __init__(self, model: Callable[..., Any]) -> None:
        def prior(*args: Any) -> None:
            with poutine.block(hide_fn=lambda msg: msg["is_observed"] and msg["type"] == "sample"):
                model(*args)

        super().__init__(model, prior)


def takes_program(function: _Function[_P, _R]) -> Callable[..., _R]:
    """Let a function of a probe and of data be called as ``fit`` is.

    ``function(vae, x)``, ``function(model, guide, x)``, or with a probe, which spares another look
    at the program. x is one array, with others behind it in the order of the program's arguments,
    or fields by name: a ``Data``, or ``{"x": x, "covariates": c}``.

    Arguments are checked; arrays and lists become tensors on the device of the
    program's parameters. Numbers of another type than the parameters' become that type where the
    program cannot be run on them as they are: symbols stay whole numbers where a program wants
    these.

    Raises:
        TypeError: As in ``at_the_door``.
        ValueError: Likewise, if the data are unusable, or the program breaks the convention.
    """
    return _taking(function, Callable[..., Any])


def takes_program_or_prior(function: _Function[_P, _R]) -> Callable[..., _R]:
    """As ``takes_program``, for functions that do without a guide: None takes the prior for one."""
    return _taking(function, Callable[..., Any] | None)


def generates(function: _Function[_P, _R]) -> Callable[..., _R]:
    """As ``takes_program``, for functions of the model alone: ``function(model, x)``."""
    return _taking(function, None)


def _taking(function: _Function[_P, _R], guide: Any) -> Callable[..., _R]:
    rest = [*inspect.signature(function).parameters.values()][1:]
    own = inspect.Parameter("model", inspect.Parameter.POSITIONAL_OR_KEYWORD)
    others = [] if guide is None else [own.replace(name="guide")]
    public = inspect.Signature([own, *others, *rest])
    hints: dict[str, Any] = dict.fromkeys(_X, _FIELDS)
    bound = door_of(function, public, {**hints, "model": Callable[..., Any], "guide": guide})

    @functools.wraps(function)
    def evaluated(*args: Any, **kwargs: Any) -> _R:
        probe, args, kwargs = _parted(args, kwargs, with_guide=guide is not None)
        given = bound(args, kwargs).arguments
        functions = given.pop("model"), given.pop("guide", None)
        with EXCLUSIVE:
            program = _program(functions, given, probe)
            with explaining("the program cannot be evaluated", program.reachable):
                _place(given, program)
                probe = _looked_at(probe or program, given)
                call = inspect.Signature(rest).bind_partial()
                call.arguments.update(given)
                return function(probe, *call.args, **call.kwargs)

    evaluated.__signature__ = public  # type: ignore[attr-defined]
    return evaluated


def _parted(
    args: tuple[Any, ...], kwargs: dict[str, Any], *, with_guide: bool
) -> tuple[Probe | None, tuple[Any, ...], dict[str, Any]]:
    """Return the arguments with model and guide apart, and the probe if it is one."""
    if "model" in kwargs and not args:
        kwargs = dict(kwargs)
        args = (kwargs.pop("model"),)
    if not args:
        return None, args, kwargs
    first, *others = args
    probe = first if isinstance(first, Probe) else None
    first = first.program if isinstance(first, Probe) else first
    apart = (bool(others) and _is_guide(others[0])) or "guide" in kwargs
    pair = first if isinstance(first, tuple) and len(first) == 2 else None
    if isinstance(first, type):
        pair = (first, first)  # the check of arguments says that it is to be built
    elif pair is None and hasattr(first, "model") and hasattr(first, "guide"):
        pair = (first.model, first.guide)
    if pair is not None and not (apart and with_guide):
        return probe, (*pair[: 1 + with_guide], *others), kwargs
    if apart and not with_guide and others:
        others = others[1:]
    return probe, (first, *others), kwargs


def _is_guide(value: Any) -> bool:
    return value is None or (callable(value) and not isinstance(value, ELBO))


def _program(functions: tuple[Any, Any], given: dict[str, Any], probe: Probe | None) -> Program:
    """Return the program on the fields that it is given; put those that it takes in turn."""
    roles = {role: f for role, f in zip(("model", "guide"), functions, strict=True) if f}
    x = next(name for name in _X if name in given)
    if isinstance(given[x], Tensor):
        names = names_by_position([*roles.values()], 1 + len(given.get("fields", ())))
    else:
        data = _data(given[x])
        names = names_taken(roles, data.names)
        given["fields"] = data.tensors(names)[1:]
    for name in (name for name in _X if name in given):
        given[name] = given[name] if isinstance(given[name], Tensor) else _data(given[name]).x
        values = (given[name], *given.get("fields", ()))
        _check_rows(values, [*names, *["fields"] * (len(values) - len(names))])
    if len(names) == len(values):
        check_labelled(names, values, "rows")
        roles = {role: by_name(function, names) for role, function in roles.items()}
    if probe is not None:
        return probe.program
    return Program(**roles) if "guide" in roles else Prior(**roles)


def _data(fields: Data | Mapping[str, Tensor]) -> Data:
    if isinstance(fields, Data):
        return fields
    named = {field_of(name): values for name, values in fields.items()}
    if "x" not in named:
        raise ValueError(f"x is missing: the fields are {', '.join(fields)}")
    return Data(**named)


def _check_rows(values: Sequence[Tensor], names: Sequence[str]) -> None:
    for name, value in zip(names, values, strict=True):
        if value.dim() == 0:
            raise ValueError(
                f"{name} is {type(value).__name__}: expected a tensor with one row for each datum "
                "(torch.as_tensor makes one)"
            )
    num_rows = len(values[0])
    if num_rows == 0:
        raise ValueError(f"x is empty, of shape {tuple(values[0].shape)}: give at least one datum")
    for name, value in zip(names, values, strict=True):
        if len(value) != num_rows:
            raise ValueError(
                f"there are {len(value)} {name} for {num_rows} data: give one for each"
            )


def _place(given: dict[str, Any], program: Program) -> None:
    """Move data to the program's device, and numbers beside x to its type."""
    parameter = _parameter(program)
    if parameter is not None:
        given.update({name: given[name].to(parameter.device) for name in _X if name in given})
        given["fields"] = tuple(
            field.to(parameter if field.is_floating_point() else parameter.device)
            for field in given.get("fields", ())
        )


def _looked_at(program: Program | Probe, given: dict[str, Any]) -> Probe:
    """Look at a program on the data, in the type of numbers that it takes; change them to it."""
    names = [name for name in _X if name in given]
    fields = tuple(given.get("fields", ()))
    probe = program if isinstance(program, Probe) else _look(program, given[names[0]], fields)
    for name in names:
        given[name] = given[name].to(probe.rows[0].dtype)
    return probe


def _look(program: Program, x: Tensor, fields: tuple[Tensor, ...]) -> Probe:
    parameter = _parameter(program)
    if parameter is None or x.dtype == parameter.dtype or isinstance(program, Prior):
        return Probe(program, x, *fields)
    try:
        return Probe(program, x, *fields)
    except ValueError:
        return Probe(program, x.to(parameter.dtype), *fields)


def _parameter(program: Program) -> Tensor | None:
    """Return a parameter that tells type and device; None where there is none."""
    held = (p for module in program.reachable for p in module.parameters())
    found = next((p for p in held if p.is_floating_point()), None)
    return None if found is None or torch.nn.parameter.is_lazy(found) else found
