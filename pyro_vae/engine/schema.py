"""Schemas for values read from files: small checks that nest as the values do.

A check is called with a value's place and the value, and gives one line for each fault. It never
raises, whatever the value is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = [
    "Check",
    "anything",
    "count",
    "each",
    "exactly",
    "like",
    "listed",
    "nullable",
    "number",
    "plain",
    "record",
    "signature",
    "summary",
    "tensor",
    "tensor_of",
    "text",
]

Check = Callable[[str, Any], Iterable[str]]

_SHOWN_FAULTS = 3


def record(checks: Mapping[Any, Check], *, others: Check | None = None) -> Check:
    """Check a dict that has these keys; others only where there is a check for them."""

    def check(place: str, value: Any) -> Iterator[str]:
        if not isinstance(value, dict):
            yield f"{place or 'the state'} is {_shown(value)}, expected a dictionary"
            return
        for key, inner in checks.items():
            where = _below(place, key)
            yield from inner(where, value[key]) if key in value else [f"{where} is missing"]
        for key in [key for key in value if key not in checks]:
            where = _below(place, key)
            yield from [f"{where} is unexpected"] if others is None else others(where, value[key])

    return check


def listed(checks: Sequence[Check]) -> Check:
    """Check a list of as many items, one by one."""

    def check(place: str, value: Any) -> Iterator[str]:
        if not isinstance(value, list) or len(value) != len(checks):
            yield f"{place} is {_shown(value)}, expected a list of {len(checks)}"
            return
        for index, (inner, item) in enumerate(zip(checks, value, strict=True)):
            yield from inner(f"{place}.{index}", item)

    return check


def each(inner: Check) -> Check:
    """Check a list of any length."""

    def check(place: str, value: Any) -> Iterator[str]:
        items = len(value) if isinstance(value, list) else 0
        yield from listed([inner] * items)(place, value)

    return check


def nullable(inner: Check) -> Check:
    """Check a value that may be None."""
    return lambda place, value: () if value is None else inner(place, value)


def exactly(expected: Any) -> Check:
    """Check a plain value that can only be one."""

    def check(place: str, value: Any) -> Iterator[str]:
        if type(value) is not type(expected) or value != expected:
            yield f"{place} is {_shown(value)}, expected {_shown(expected)}"

    return check


def number(kind: type[int] | type[float], low: float = -math.inf, high: float = math.inf) -> Check:
    """Check a finite number of one kind, float or int, from ``low`` to ``high``."""

    def check(place: str, value: Any) -> Iterator[str]:
        if type(value) is not kind:
            yield f"{place} is {_shown(value)}, expected {kind.__name__}"
        elif not (low <= value <= high and -math.inf < value < math.inf):
            yield f"{place} is {_shown(value)}, expected a number from {low} to {high}"

    return check


def count(own: Any, low: int, high: int) -> Check:
    """Check a whole number from ``low`` to ``high``, a number or a tensor as ``own`` is."""

    def check(place: str, value: Any) -> Iterator[str]:
        faults = list(like(own)(place, value))
        yield from faults
        if not faults and not (low <= float(value) <= high and float(value).is_integer()):
            yield f"{place} is {float(value):g}, expected a whole number from {low} to {high}"

    return check


def anything(place: str, value: Any) -> Iterable[str]:
    """Check nothing."""
    return ()


def plain(place: str, value: Any) -> Iterator[str]:
    """Check a value that is a finite number, a string or None."""
    if type(value) is float and not math.isfinite(value):
        yield f"{place} is {value}, expected a finite number"
    elif not (value is None or type(value) in (bool, int, float, str)):
        yield f"{place} is {_shown(value)}, expected a number"


def text(place: str, value: Any) -> Iterator[str]:
    """Check a string."""
    if type(value) is not str:
        yield f"{place} is {_shown(value)}, expected a string"


def tensor(expected: Tensor, low: float = -math.inf, high: float = math.inf) -> Check:
    """Check a tensor of the same shape and type.

    Values are finite, unless those of ``expected`` are not either (a mask of -inf).
    """

    def check(place: str, value: Any) -> Iterator[str]:
        if not isinstance(value, Tensor) or signature(value) != signature(expected):
            yield f"{place} ({signature(value)}, expected {signature(expected)})"
        elif not bool(torch.isfinite(value).all()) and bool(torch.isfinite(expected).all()):
            yield f"{place} is not finite"
        elif value.numel() and not value.is_complex() and not _within(value, low, high):
            yield f"{place} has values outside {low} to {high}"

    return check


def tensor_of(dtype: torch.dtype, dim: int) -> Check:
    """Check a tensor of a type and a number of dimensions, of any size."""

    def check(place: str, value: Any) -> Iterator[str]:
        if not isinstance(value, Tensor) or value.dtype != dtype or value.dim() != dim:
            expected = f"{str(dtype).removeprefix('torch.')} in {dim} dimensions"
            yield f"{place} is {_shown(value)}, expected {expected}"

    return check


def like(own: Any) -> Check:
    """Check a value that is built as ``own`` is: the same keys, kinds, shapes and types."""
    if isinstance(own, Tensor):
        return tensor(own)
    if isinstance(own, dict):
        return record({key: like(value) for key, value in own.items()})
    if isinstance(own, list):
        return listed([like(value) for value in own])
    if type(own) in (int, float):
        return number(type(own))
    return text if type(own) is str else exactly(own)


def summary(faults: Iterable[str]) -> str:
    """Return the first faults on one line, and how many more there are; nothing for none."""
    found = list(faults)
    shown = "; ".join(found[:_SHOWN_FAULTS])
    more = len(found) - _SHOWN_FAULTS
    return f"{shown}; and {more} more" if more > 0 else shown


def _within(value: Tensor, low: float, high: float) -> bool:
    if low == -math.inf and high == math.inf:
        return True
    return bool(value.min() >= low) and bool(value.max() <= high)


def signature(value: Any) -> str:
    """Return the type and shape of a tensor, the class of anything else."""
    if not isinstance(value, Tensor):
        return type(value).__name__
    return f"{str(value.dtype).removeprefix('torch.')}{list(value.shape)}"


def _below(place: str, key: Any) -> str:
    return f"{place}.{str(key)[:60]}".removeprefix(".")


def _shown(value: Any) -> str:
    if isinstance(value, Tensor):
        return signature(value)
    if isinstance(value, (dict, list, tuple)):
        return f"a {type(value).__name__} of {len(value)}"
    return repr(value)[:60]
