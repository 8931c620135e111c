"""Rewrite the parser's errors, which hold whole type expressions, as one readable line."""

from __future__ import annotations

import difflib
import importlib
import inspect
import itertools
import re
from collections.abc import Iterable, Mapping, Sequence

__all__ = ["nearest", "readable"]

_LONGEST = 300
_KINDS = {"int": "a whole number", "float": "a finite number", "bool": "true or false"}
_FILLED_IN = ("self", "event_shape", "latent_shape", "in_shape", "out_shape", "levels")
_OF_THE_PARSER = re.compile(r"jsonargparse|<class|Namespace|typing|NoneType|Not of type|Expected")
_KEY = re.compile(r'Parser key "([^"]+)": ')
_VALUE = re.compile(
    r"(?:Got value|Given value): (?:NestedArg\(.*val=')?(.*?)(?:'\)| - Expected .*)?$"
)


def nearest(name: str, known: Iterable[str]) -> str:
    """Return ``"did you mean ...? "`` with the known name most like ``name``, or nothing."""
    spelt = {other.lower(): other for other in known}
    near = difflib.get_close_matches(name.lower(), list(spelt), n=1, cutoff=0.4)
    return f"did you mean {spelt[near[0]]}? " if near else ""


def readable(
    message: str, given: Sequence[str], options: Sequence[str], classes: Mapping[str, str]
) -> str:
    """Return an error of the parser's as one short line: the option, its value and what would do.

    Args:
        message: What the parser said.
        given: The command line.
        options: All options of the command.
        classes: The import paths of the parts that are taken unless given.
    """
    text = " ".join(message.split())
    if found := re.match(r"unrecognized arguments: (.*)", text, re.IGNORECASE):
        return _unrecognised(found[1].split(), options)
    if found := re.match(r"argument (--[^:]+): expected .*argument", text):
        return f"{found[1]}: give it a value"
    if found := re.search(r"argument --[\w-]+: (--.*)", text):  # of a type of our own
        return found[1]
    keys = _KEY.findall(text)
    option = _option(keys)
    reason = _KEY.split(text)[-1].rpartition("Errors: - ")[2]
    value = _given_value(text)
    if found := re.match(r"Expected a <class '(\w+)'>", reason):
        # Where a number of either kind will do, the last thing tried was no number at all.
        either = found[1] == "int" and "Expected a <class 'float'>" in reason
        kind = _KINDS["float"] if either else _KINDS.get(found[1], f"a {found[1]}")
        return f"{option} {value}: expected {kind}"
    if found := re.match(r"Expected a typing\.Literal\[(.*?)\]", reason):
        return f"{option} {value}: choose from {found[1]}"
    if found := re.search(r"Option '(\w+)' is not accepted", reason):
        if not keys:
            return _unrecognised([_option([found[1]])], options)
        return _unknown_argument(option, found[1], given, classes)
    if "instantiatable class" in reason:
        return f"{option}: name a part that takes it, such as {option} NAME"
    if found := re.match(r"Expected a dot import path string: (\S+)", reason):
        return f"{option} {found[1]}: there is no such part; 'pyro-vae list' shows them"
    if reason.startswith("Not of type Path"):
        return f"{option}: expected the name of a file or folder"
    if found := re.search(r"arguments are required: (.*?)(?: - |$)", reason):
        if not keys:
            return f"{found[1]} is missing: --help shows how the command is used"
        needed = " and ".join(f"{option}.{name}" for name in found[1].split(", "))
        return f"{option}: give {needed} too"
    if found := re.match(r"(?:Key|Option|Group|Unknown key) ['\"](\S+?)['\"]", reason):
        return _unrecognised([_option([found[1]])], options)
    reason = re.split(r" - Expected a <class 'NoneType'>| Got value:", reason)[0]
    if _OF_THE_PARSER.search(reason):
        reason = f"{value or 'its value'} cannot be taken; --help shows what can"
    return f"{option}: {reason}"[:_LONGEST] if keys else reason[:_LONGEST]


def _option(keys: Sequence[str]) -> str:
    first, *rest = ".".join(keys).replace("init_args.", "").split(".")
    return "--" + ".".join([first.replace("_", "-"), *rest])


def _given_value(text: str) -> str:
    found = _VALUE.search(text)
    return found[1][:80] if found else ""


def _unrecognised(words: Sequence[str], options: Sequence[str]) -> str:
    unknown = next((word for word in words if word.startswith("-")), None)
    if unknown is None:
        return (
            f"{' '.join(words)}: an option begins with --, and takes one value; several numbers "
            "are one, such as 300,300"
        )
    name = unknown.partition("=")[0]
    return f"{name}: there is no such option; {nearest(name, options)}--help shows them all"


def _unknown_argument(
    option: str, name: str, given: Sequence[str], classes: Mapping[str, str]
) -> str:
    path = _class_path(option, given) or classes.get(option.removeprefix("--"))
    if path is None:
        return f"{option}.{name}: name a part that takes it, such as {option} NAME"
    known = _arguments(path)
    part = path.rpartition(".")[2]
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    return f"{option}.{name}: {part} takes no such argument; {nearest(name, known)}{takes}"


def _class_path(option: str, given: Sequence[str]) -> str | None:
    path = None
    for word, following in itertools.pairwise([*given, ""]):
        if word == option:
            path = following
        elif word.startswith(f"{option}="):
            path = word.partition("=")[2]
    found = re.match(r'\{"class_path": "([\w.]+)"', path or "")
    return found[1] if found else path


def _arguments(path: str) -> list[str]:
    module, _, name = path.rpartition(".")
    try:
        part = getattr(importlib.import_module(module), name)
        parameters = inspect.signature(part).parameters.values()
    except (ImportError, AttributeError, TypeError, ValueError):
        return []
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return [p.name for p in parameters if p.kind in named and p.name not in _FILLED_IN]
