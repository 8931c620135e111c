"""What a program takes of a data set: the fields that its arguments name, in every part."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from pyro_vae.datasets import Dataset
from pyro_vae.fields import check_labelled, meant
from pyro_vae.inference.program import Program
from pyro_vae.wording import warn

__all__ = ["taking", "warn_of_unused"]

# Of use beside programs: to evaluations, and to every step.
_OF_USE = ("x", "labels", "weights")


def taking(program: Program, data: Dataset) -> Program:
    """Return a program on the fields of a data set that it takes, with ``fields`` to say which.

    Raises:
        ValueError: If a field is missing, in all parts or in one; if there are rows without a label
            or labels beyond ``num_classes``, and the program does not know of them.
    """
    found = program.on(data.train.names)
    for name, part in data.parts.items():
        missing = [field for field in found.fields if field not in part.names]
        if missing:
            raise ValueError(
                f"the program takes {missing[0]}, which the {name} data do not have: give it for "
                "all parts"
            )
        check_labelled(found.fields, part.tensors(found.fields), f"{name} rows")
    if "labels" in found.fields:
        _check_classes(data, getattr(program.model, "__self__", program.model))
    return found


def _check_classes(data: Dataset, model: Any) -> None:
    num_classes = getattr(model, "num_classes", None)
    if not isinstance(num_classes, int):
        return
    for part, rows in data.parts.items():
        largest = max([-1, *rows.labels.unique().tolist()])
        if largest >= num_classes:
            names = data.classes or ()
            name = f" ({names[largest]!r})" if largest < len(names) else ""
            raise ValueError(
                f"the {part} labels go up to {largest}{name}, but the program has "
                f"num_classes={num_classes}: give it {largest + 1} classes or more, or repair the "
                "labels"
            )


def warn_of_unused(programs: Sequence[Program], data: Dataset) -> None:
    """Say once which fields no program takes, those aside that are of use without one."""
    there = data.train.names
    taken = {field for program in programs for field in program.on(there).fields}
    unused = [name for name in data.train.fields if name not in {*taken, *_OF_USE}]
    if unused:
        asked = next(filter(None, map(meant, unused)), "")
        warn(
            f"no argument of the program is called {', '.join(unused)}: the data have "
            f"{'these fields' if unused[1:] else 'this field'} for nothing{asked}"
        )
