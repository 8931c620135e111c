"""The names of the fields of the data, and which of them a program's functions take.

A function takes a field by the name of an argument, and x by its first argument, whatever that is
called. What is handed over by position elsewhere has the order of ``names_taken``.
"""

from __future__ import annotations

import difflib
import functools
import inspect
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from torch import Tensor, nn

__all__ = [
    "DERIVED",
    "KNOWN",
    "by_name",
    "check_labelled",
    "field_of",
    "meant",
    "names_by_position",
    "names_taken",
]

KNOWN = {
    "x": ("x", "images", "image", "data", "features", "inputs", "text", "texts"),
    "labels": ("y", "labels", "label", "targets", "target"),
    "weights": ("weights", "weight"),
    "mask": ("mask",),
    "covariates": ("covariates",),
}
"""What each field is called, in files, dictionaries and arguments. Others keep their own names."""


DERIVED = ("labelled", "row")
"""Fields that are made of others: which rows have a label, and which row of all data each is."""


def field_of(name: str) -> str:
    """Return the field that a name stands for: "y" for "labels", and any other for itself."""
    return next((field for field, names in KNOWN.items() if name.lower() in names), name)


def meant(name: str) -> str:
    """Ask after the field that a mistyped name may be meant for; empty if there is none near."""
    known = [each for names in KNOWN.values() for each in names if len(each) > 1]
    near = difflib.get_close_matches(name, known, n=1)
    return f" (is {near[0]} meant?)" if near and near[0] != name else ""


# ------------------------------------------------------------------------------ taken by functions


def names_taken(functions: Mapping[str, Callable[..., Any]], there: Collection[str]) -> list[str]:
    """Return the fields that functions take of those that are there, x first.

    An argument with a default takes its field where it is there.

    Args:
        functions: By role, as "model" and "guide".
        there: The names of the fields that there are.

    Raises:
        ValueError: If an argument without a default names no field that is there.
    """
    found = {"x": None}
    for role, function in functions.items():
        for field, argument in list(_arguments(function).items())[1:]:
            if field in there:
                found[field] = None
            elif argument.default is argument.empty:
                raise ValueError(_missing(role, field, argument.name, there))
    return [*found]


def _missing(role: str, field: str, argument: str, there: Collection[str]) -> str:
    stands_for = "" if argument == field else f", which stands for {field}"
    held = ", ".join(name for name in there if name not in DERIVED)
    return (
        f"the {role} takes {argument!r}{stands_for}, but the data have no such field: they have "
        f"{held}; give it by name beside x, in a dictionary or a .npz file, or give the argument "
        "a default"
    )


def names_by_position(functions: Sequence[Callable[..., Any]], num_fields: int) -> list[str]:
    """Return what x and the tensors behind it are, in the order of the functions' arguments."""
    bound = next((f._fields for f in functions if hasattr(f, "_fields")), None)
    if bound is not None:
        return list(bound)[:num_fields]
    return [*dict.fromkeys(field for f in functions for field in ("x", *_arguments(f)))][
        :num_fields
    ]


def by_name(function: Callable[..., Any], names: Sequence[str]) -> Callable[..., Any]:
    """Return a function that is called with these fields in turn, and takes its own of them."""
    taken = _arguments(function)
    by_place = [
        field for field, p in taken.items() if p.default is p.empty and p.kind is not p.KEYWORD_ONLY
    ]
    if not taken or _takes_all(function) or by_place == [*names]:
        return function

    @functools.wraps(function, updated=())
    def handed(x: Any, *others: Any, **kwargs: Any) -> Any:
        given = dict(zip(names[1:], others, strict=True))
        own = {taken[field].name: value for field, value in given.items() if field in taken}
        return function(x, **own, **kwargs)

    handed._fields = tuple(names)  # type: ignore[attr-defined]
    return handed


def _signature(function: Callable[..., Any]) -> list[inspect.Parameter]:
    inner = inspect.unwrap(function)
    called = inner.forward if isinstance(inner, nn.Module) else function
    return list(inspect.signature(called).parameters.values())


def _takes_all(function: Callable[..., Any]) -> bool:
    return any(p.kind is p.VAR_POSITIONAL for p in _signature(function))


def _arguments(function: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """Return the arguments of a function by the field that each takes, x first."""
    several = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    named = [p for p in _signature(function) if p.kind not in several]
    fields = [p.name if field_of(p.name) == "x" else field_of(p.name) for p in named]
    return dict(zip(["x", *fields[1:]], named, strict=False))


def check_labelled(names: Sequence[str], values: Sequence[Tensor], whose: str) -> None:
    """Refuse rows without a label for functions that do not say that they know of such rows.

    Args:
        names: Of the fields that the functions take.
        values: The fields.
        whose: What the rows are called.

    Raises:
        ValueError: If labels are missing, and ``labelled`` is not among the names.
    """
    if "labels" not in names or "labelled" in names:
        return
    labels = values[list(names).index("labels")]
    missing = 0 if labels.is_floating_point() else int((labels < 0).sum())
    if missing:
        raise ValueError(
            f"{missing:,} of {len(labels):,} {whose} have no label (-1), and the program takes a "
            "label for each: leave these rows out, or let it take an argument labelled, True where "
            "a row has one, as in model(x, labels, labelled)"
        )
