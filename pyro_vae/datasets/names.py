"""Which name in a file or a dictionary stands for which field of which split."""

from __future__ import annotations

import difflib
from collections.abc import Collection

from pyro_vae.fields import KNOWN, field_of

__all__ = ["parts_by_name", "split_names"]

_SPLITS = {
    "train": ("train", "training"),
    "validation": ("validation", "valid", "val", "dev"),
    "test": ("test", "testing"),
}


def parts_by_name(names: Collection[str], where: str) -> dict[str, dict[str, str]]:
    """Which name stands for which field of which split; for "" where none are names of splits.

    Rows of a split are `train` or `x_train`, labels `train_labels`, `y_train` and the like.

    Raises:
        ValueError: one split is missing, or has two names.
    """
    stems = {name.removeprefix("x_"): name for name in names if name.startswith("x_")}
    splits = split_names([*names, *(stem for stem in stems if stem not in names)], where)
    if splits is None:
        return {"": _fields(names)}
    found = {}
    for part, stem in splits.items():
        found[part] = {"x": stems.get(stem, stem)}
        for field in [*KNOWN][1:]:
            both = (each for n in KNOWN[field] for each in (f"{stem}_{n}", f"{n}_{stem}"))
            if (name := next((each for each in both if each in names), None)) is not None:
                found[part][field] = name
    return found


def _fields(names: Collection[str]) -> dict[str, str]:
    """Return which of some names each field has: of several the one that is listed first."""
    ordered = [name for known in sum(KNOWN.values(), ()) for name in names if name.lower() == known]
    others = [name for name in names if name not in ordered]
    found: dict[str, str] = {}
    for name in [*ordered, *others]:
        field = field_of(name)
        found.setdefault(name if field == "x" and field in found else field, name)
    return found


def split_names(found: Collection[str], where: str) -> dict[str, str] | None:
    """Which name stands for which split, in any case of letters; None where none are splits'.

    Raises:
        ValueError: one split is missing, or has two names.
    """
    lower: dict[str, list[str]] = {}
    for name in found:
        lower.setdefault(name.lower(), []).append(name)
    names = {
        part: [name for alias in aliases for name in lower.get(alias, ())]
        for part, aliases in _SPLITS.items()
    }
    missing = [part for part, known in names.items() if not known]
    if len(missing) > 1:
        return None
    doubled = next((known for known in names.values() if len(known) > 1), None)
    if doubled is not None:
        raise ValueError(f"{where}: {' and '.join(doubled)} are names of one split; leave one")
    if missing:
        others = [name for name in found if all(name not in known for known in names.values())]
        raise ValueError(
            f"{where}: no {missing[0]} split beside the other two{_meant(missing[0], others)}; "
            f"add one, named {' or '.join(_SPLITS[missing[0]])}"
        )
    return {part: known[0] for part, known in names.items()}


def _meant(due: str, others: Collection[str]) -> str:
    """Ask after the name that may be a mistyped one of a split."""
    lower = {name.lower(): name for name in others}
    near = [n for alias in _SPLITS[due] for n in difflib.get_close_matches(alias, lower, n=1)]
    return f" (is {lower[near[0]]!r} meant for it?)" if near else ""
