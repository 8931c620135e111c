"""Rewrite what users type (calls of parts, lists, numbers) in the parser's notation."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import yaml

from pyro_vae.cli import calls
from pyro_vae.cli.names import PARTS
from pyro_vae.cli.parser import DEFAULT_PARTS
from pyro_vae.cli.parts import check_trusted, named

__all__ = ["annotation_of", "as_list", "class_given", "with_calls", "with_lists", "words_of"]

_DOTTED = re.compile(r"[A-Za-z_]\w*(?:\.[A-Za-z_]\w*)+")


def words_of(text: str) -> list[str]:
    """Split at commas and blanks that stand in no bracket and no quotes."""
    text = text.strip()
    if text.startswith("[") and text.endswith("]"):
        text = text[1:-1]
    depth, quote, words = 0, "", [""]
    for sign in text:
        if quote or sign in "'\"":
            quote = "" if sign == quote else quote or sign
        depth += (sign in "([{") - (sign in ")]}")
        if depth == 0 and not quote and (sign == "," or sign.isspace()):
            words.append("")
        else:
            words[-1] += sign
    return [word for word in words if word]


def as_list(option: str, role: str, words: list[str]) -> str:
    """Return parts as a list that the parser reads.

    Args:
        option: What the list is given for, for messages.
        role: What the parts are, such as "objective" or "likelihood".
        words: ``NAME``, ``NAME(1, argument=2)``, or a dictionary of class_path and init_args.

    Raises:
        ValueError: If one is no such part, or takes no such argument; suggests the nearest name.
    """
    return json.dumps([_part(option, role, word) for word in words])


def with_lists(arguments: list[str]) -> list[str]:
    """Replace parts with arguments, lists of parts, and numbers as a person types them.

    ``--objective 'IWAE(16)'`` becomes a dictionary of class_path and init_args, the words of
    ``--likelihood.columns`` a list of them, and ``--network.hidden 300,300`` ``[300, 300]``.

    Raises:
        ValueError: If a part is none, or takes no such argument; suggests the nearest name.
    """
    arguments = _parts_first(arguments)
    result = list(arguments)
    for place, option, value in _options(arguments):
        role, *inner = option.removeprefix("--").split(".")
        if role not in PARTS or inner[-1:] == ["help"]:
            continue
        typed = _typed(option, role, inner, value, arguments)
        result[place] = f"{option}={typed}" if arguments[place].startswith("--") else typed
    return result


def _parts_first(arguments: list[str]) -> list[str]:
    """Put the arguments of a part behind its name, where the parser knows whose they are."""
    groups: list[list[str]] = []
    for word in arguments:
        alone = groups and (len(groups[-1]) > 1 or "=" in groups[-1][0])
        if groups and groups[-1][0].startswith("--") and not alone and not word.startswith("--"):
            groups[-1].append(word)
        else:
            groups.append([word])
    options = [group[0].partition("=")[0] for group in groups]
    for role in PARTS:
        if f"--{role}" in options:
            name = len(options) - 1 - options[::-1].index(f"--{role}")
            early = [i for i in range(name) if options[i].startswith(f"--{role}.")]
            first = [i for i in range(name + 1) if i not in early]
            order = [*first, *early, *range(name + 1, len(options))]
            groups, options = [groups[i] for i in order], [options[i] for i in order]
    return [word for group in groups for word in group]


def _options(arguments: list[str]) -> Iterator[tuple[int, str, str]]:
    """Each option with its value, and the place of the word that holds the value."""
    for place, word in enumerate(arguments):
        option, separator, value = word.partition("=")
        if not option.startswith("--"):
            continue
        if separator:
            yield place, option, value
        elif place + 1 < len(arguments) and not arguments[place + 1].startswith("--"):
            yield place + 1, option, arguments[place + 1]


def _typed(option: str, role: str, inner: list[str], value: str, arguments: list[str]) -> str:
    if not inner:
        is_call = "(" in value and not value.endswith(".py") and not value.startswith("{")
        return json.dumps(calls.part(option, role, value)) if is_call else value
    if inner[-1] == "columns":
        return as_list(option, role, words_of(value))
    annotation = annotation_of(option, arguments)
    if calls.is_call(value):
        return json.dumps(calls.value_of(option, annotation, value))
    return calls.as_class(option, annotation, calls.as_typed(option, annotation, value))


def with_calls(config: dict[str, Any], modules: set[str]) -> dict[str, Any]:
    """Return the options of a file with calls of parts, such as ``IWAE(16)``, as dictionaries.

    Args:
        config: What the file holds.
        modules: Modules that the user named on this command line.

    Raises:
        ValueError: As ``with_lists``; or one names what the user has not named.
    """
    changed = {role: _stored(f"--{role}", role, config[role], modules) for role in config.keys()
               & PARTS.keys()}  # fmt: skip
    if isinstance(several := config.get("objectives"), list):
        changed["objectives"] = [
            _stored("--objectives", "objective", each, modules) for each in several
        ]
    return config | changed


def _stored(option: str, role: str, value: Any, modules: set[str]) -> Any:
    if isinstance(value, str) and calls.is_call(value):
        return calls.part(option, role, _trusted(value, modules))
    inner = value.get("init_args") if isinstance(value, dict) else None
    path = value.get("class_path") if isinstance(value, dict) else None
    if not isinstance(inner, dict) or not isinstance(path, str):
        return value
    if not any(isinstance(given, str) for given in inner.values()):
        return value
    known = calls.arguments_of(named(role, _trusted(path, modules)))
    read = {
        key: _stored_argument(f"{option}.{key}", known.get(key, Any), given, modules)
        for key, given in inner.items()
    }
    return {**value, "init_args": inner | read}


def _stored_argument(option: str, annotation: Any, given: Any, modules: set[str]) -> Any:
    if isinstance(given, str) and calls.is_call(given):
        return calls.value_of(option, annotation, _trusted(given, modules))
    return calls.as_class(option, annotation, given)


def _trusted(word: str, modules: set[str]) -> str:
    for path in _DOTTED.findall(word):
        check_trusted({"model": path}, modules)
    return word


def annotation_of(option: str, arguments: list[str]) -> Any:
    """Return the type of a part's argument, by the class that the command line names for the part.

    Args:
        option: Such as ``--network.hidden`` or ``--objective.beta.schedule``.
        arguments: The command line.
    """
    owner, _, argument = option.rpartition(".")
    path = class_given(owner, arguments)
    return Any if path is None else calls.arguments_of(path).get(argument, Any)


def class_given(option: str, arguments: list[str]) -> str | None:
    """Return the import path of the class that an option is given, or has unless given."""
    words = [value for _, name, value in _options(arguments) if name == option]
    role = option.removeprefix("--")
    if not words:
        return DEFAULT_PARTS.get(role)
    try:
        if words[-1].startswith("{"):
            path = yaml.safe_load(words[-1])["class_path"]
        else:
            path = words[-1].partition("(")[0].strip()
        if role in PARTS:
            return named(role, path)
        return calls.nested(option, path, annotation_of(option, arguments))
    except (ValueError, OSError, KeyError, TypeError, yaml.YAMLError):
        return None  # the parser says what is wrong with it


def _part(option: str, role: str, word: str) -> dict[str, Any]:
    if not word.startswith("{"):
        return calls.part(option, role, word)
    try:
        given = yaml.safe_load(word)
    except yaml.YAMLError:
        given = None
    if not isinstance(given, dict) or not isinstance(given.get("class_path"), str):
        raise ValueError(
            f"{option} {word}: expected {{class_path: NAME, init_args: {{ARGUMENT: VALUE}}}}"
        )
    found = calls.part(option, role, given["class_path"])
    calls.check_arguments(option, word, found["class_path"], given.get("init_args", {}))
    return {**found, "init_args": given.get("init_args", {})}
