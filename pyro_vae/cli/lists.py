"""Lists of parts on the command line: ``IWAE(16)`` beside ``ELBO``, or a table's columns."""

from __future__ import annotations

import ast
import inspect
import json
import re
import sys
from typing import Any

import yaml

from pyro_vae.cli.messages import nearest
from pyro_vae.cli.parts import named

__all__ = ["as_list", "with_lists", "words_of"]


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
    """Replace the words of options such as ``--likelihood.columns`` by lists of dictionaries."""
    result = list(arguments)
    for place, word in enumerate(arguments):
        option, separator, value = word.partition("=")
        role = option.removeprefix("--").partition(".")[0]
        if not option.startswith("--") or not option.endswith(".columns"):
            continue
        if separator:
            result[place] = f"{option}={as_list(option, role, words_of(value))}"
        elif place + 1 < len(arguments):
            result[place + 1] = as_list(option, role, words_of(arguments[place + 1]))
    return result


def _part(option: str, role: str, word: str) -> dict[str, Any]:
    given = _dictionary(option, word) if word.startswith("{") else _call(option, word)
    try:
        path = named(role, given["class_path"])
    except ValueError as error:
        raise ValueError(str(error).replace(f"--{role} ", f"{option} ", 1)) from error
    module, _, name = path.rpartition(".")
    known = _arguments(getattr(sys.modules[module], name))
    values = {
        **_by_name(option, word, given.pop("positional", []), known),
        **given.get("init_args", {}),
    }
    for argument in values:
        if argument not in known:
            takes = f"it takes {', '.join(known)}" if known else "it takes none"
            raise ValueError(
                f"{option} {word}: {name} has no argument {argument!r}; "
                f"{nearest(argument, known)}{takes}"
            )
    return {"class_path": path, "init_args": values}


def _dictionary(option: str, word: str) -> dict[str, Any]:
    try:
        given = yaml.safe_load(word)
    except yaml.YAMLError:
        given = None
    if not isinstance(given, dict) or not isinstance(given.get("class_path"), str):
        raise ValueError(
            f"{option} {word}: expected {{class_path: NAME, init_args: {{ARGUMENT: VALUE}}}}"
        )
    return {"init_args": {}, **given}


def _call(option: str, word: str) -> dict[str, Any]:
    """Read ``NAME`` or ``NAME(1, argument=2)``; values are Python's literals."""
    is_table = option.endswith(".columns")
    example = "'Categorical(num_categories=4)'" if is_table else "'IWAE(num_particles=16)'"
    found = re.fullmatch(r"([^()]+?)(\(.*\))?", word, re.DOTALL)
    try:
        if found is None:
            raise SyntaxError
        call = ast.parse(f"f{found[2] or '()'}", mode="eval").body
        if not isinstance(call, ast.Call):
            raise SyntaxError
        values = {str(keyword.arg): ast.literal_eval(keyword.value) for keyword in call.keywords}
        positional = [ast.literal_eval(value) for value in call.args]
    except (SyntaxError, ValueError):
        raise ValueError(
            f"{option} {word}: expected a name, or one with its arguments, such as {example}"
        ) from None
    return {"class_path": found[1].strip(), "init_args": values, "positional": positional}


def _arguments(part: type) -> list[str]:
    """Return the names of a class's arguments; those of its bases, too, where it hands on."""
    names: list[str] = []
    for parent in part.__mro__:
        found = inspect.signature(parent).parameters.values()
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        names += [p.name for p in found if p.kind in kinds and p.name != "event_shape"]
        if all(p.kind is not p.VAR_KEYWORD for p in found):
            break
    return list(dict.fromkeys(names))


def _by_name(option: str, word: str, values: list[Any], known: list[str]) -> dict[str, Any]:
    if len(values) > len(known):
        raise ValueError(f"{option} {word}: too many arguments; it takes {', '.join(known)}")
    return dict(zip(known, values, strict=False))
