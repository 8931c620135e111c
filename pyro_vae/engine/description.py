"""Describe a program in words, so that a resumed run is known to be the same.

A checkpoint holds tensors; a likelihood's fixed scale, an activation or a number of flows is in the
code that built the program. It is written beside them, so that weights are not taken up by another
program of the same shapes.
"""

from __future__ import annotations

import ast
import dataclasses
import enum
import functools
import hashlib
import inspect
import textwrap
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from pyro.nn import PyroModule
from torch import Tensor, nn

from pyro_vae.inference.program import Program

__all__ = ["constant_settings", "in_words", "program_settings", "settings_of", "source"]

_INTERNAL = {
    *vars(nn.Module()),
    *vars(PyroModule()),
    "_pyro_name",
    "_modules",
    "_is_full_backward_hook",
}
_LIBRARIES = {"torch", "pyro", "pyro_vae", "builtins", "functools"}
_LONGEST = 500


def program_settings(program: Program) -> dict[str, str]:
    """Return the settings of a program's modules, but for those around it, see ``settings_of``.

    What stands around a program is of how it is fitted: weights mean the same without it.
    """
    return settings_of([root for root in program.reachable if root not in program.around])


def settings_of(roots: Sequence[nn.Module]) -> dict[str, str]:
    """Return each module's class and each of its settings, by place: ``"0.likelihood:scale"``.

    Classes of the user's own may be renamed; what is in them, ``source`` tells.
    Settings are attributes of plain values: numbers, strings, functions, classes and collections of
    them. Tensors are left out: they are in the weights, or made anew. Nor is what data decide: a
    module's class names it in ``of_data``.
    """
    settings = {}
    for place, root in enumerate(roots):
        for name, module in root.named_modules():
            where = f"{place}.{name}".rstrip(".")
            settings[where] = (
                _path(type(module)) if _is_known(type(module)) else "a class of your own"
            )
            skipped = {*_INTERNAL, *getattr(type(module), "of_data", ())}
            for key, value in vars(module).items():
                if key not in skipped and (text := in_words(value)) is not None:
                    settings[f"{where}:{key}"] = text[:_LONGEST]
    return settings


def constant_settings(program: Program, built: dict[str, str]) -> dict[str, str]:
    """Return the settings of a program that running it has not changed.

    Args:
        program: After it was run.
        built: Its settings before.
    """
    now = program_settings(program)
    return {p: text for p, text in now.items() if ":" not in p or built.get(p) == text}


def in_words(value: Any) -> str | None:
    """Return a plain value in words that every process would choose; None for any other."""
    if value is None or isinstance(value, (bool, int, float, str, bytes, torch.dtype)):
        return repr(value)
    if isinstance(value, enum.Enum):
        return str(value)
    if isinstance(value, (Tensor, nn.Module)):
        return None
    if isinstance(value, functools.partial):
        return f"{in_words(value.func)}{in_words((value.args, value.keywords))}"
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = {f.name: getattr(value, f.name, None) for f in dataclasses.fields(value)}
        return f"{_path(type(value))}{in_words(fields)}"
    if isinstance(value, dict):
        pairs = sorted((f"{in_words(k)}: {in_words(v)}") for k, v in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, (set, frozenset)):
        return f"{{{', '.join(sorted(str(in_words(v)) for v in value))}}}"
    if isinstance(value, (tuple, list)):
        return f"({', '.join(str(in_words(v)) for v in value)})"
    if inspect.ismethod(value):
        return _path(value.__func__)
    return _path(value) if inspect.isroutine(value) or isinstance(value, type) else None


def source(program: Program) -> str:
    """Return a hash of the source of model, guide and the modules' classes that are the user's own.

    Comments, blank lines and the file's place do not count.
    """
    digest = hashlib.sha256()
    for text in _sources(program):
        digest.update(text.encode(errors="replace"))
    return digest.hexdigest()[:16]


def _sources(program: Program) -> Iterator[str]:
    classes = {type(m): None for root in program.reachable for m in root.modules()}
    functions = [getattr(f, "__func__", f) for f in (program.model, program.guide)]
    for member in [*functions, *classes]:
        if _is_known(member):
            continue
        try:
            yield ast.unparse(ast.parse(textwrap.dedent(inspect.getsource(member))))
        except (OSError, TypeError, SyntaxError, ValueError):  # written in a prompt, or in part
            yield _path(member)


def _is_known(member: Any) -> bool:
    return _library(member) in _LIBRARIES


def _library(member: Any) -> str:
    return (getattr(member, "__module__", None) or "").partition(".")[0]


def _path(member: Any) -> str:
    # A script's own module is named after how it was started, and a file's after where it lies.
    name: str = getattr(member, "__qualname__", type(member).__qualname__)
    return f"{_library(member)}.{name}" if _is_known(member) else name
