"""A cache keyed by objects, which lives as long as they do."""

from __future__ import annotations

import weakref
from types import MethodType
from typing import Any, Generic, TypeVar

__all__ = ["Remembered"]

_T = TypeVar("_T")


class Remembered(Generic[_T]):
    """A table by objects' identity that keeps none of them alive.

    A method is its object and its function. Of objects that have no weak references nothing is
    remembered.
    """

    def __init__(self) -> None:
        self._found: dict[tuple[int, ...], tuple[list[Any], _T]] = {}

    def __len__(self) -> int:
        return len(self._found)

    def of(self, *objects: Any) -> _T | None:
        """Return what was noted of these objects; None if nothing was."""
        parts = _parts(objects)
        references, value = self._found.get(_key(parts), ([], None))
        known = len(references) == len(parts)
        return value if known and all(map(_is_of, references, parts)) else None

    def note(self, value: _T, *objects: Any) -> None:
        """Remember something of these objects together."""
        parts = _parts(objects)
        key, found = _key(parts), self._found

        def forget(_: Any) -> None:
            found.pop(key, None)

        try:
            found[key] = ([weakref.ref(part, forget) for part in parts], value)
        except TypeError:
            return


def _parts(objects: tuple[Any, ...]) -> list[Any]:
    parts: list[Any] = []
    for each in objects:
        parts += [each.__self__, each.__func__] if isinstance(each, MethodType) else [each]
    return parts


def _key(parts: list[Any]) -> tuple[int, ...]:
    return tuple(map(id, parts))


def _is_of(reference: Any, part: Any) -> bool:
    return reference() is part
