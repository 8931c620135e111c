"""Split what a person types into names and literals; nothing in it is ever evaluated."""

from __future__ import annotations

import ast
import re
import types
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import yaml

__all__ = ["Call", "as_call", "as_yaml", "split_words"]

_CALL = re.compile(r"\s*(.*?\.py(?::\w+)?|[^()\[\]{}'\"\s]+)\s*(\(.*\))?\s*", re.DOTALL)
_EXAMPLES = {
    "prior": "MixtureOfNormals(10)", "likelihood": "Normal(scale=0.1)",
    "network": "MLP(hidden=[300, 300])", "encoder": "MLP(hidden=[300, 300])",
    "decoder": "MLP(hidden=[300, 300])", "schedule": "Linear(1.0, 0.1)",
    "posterior": "InverseAutoregressive(num_flows=2)",
}  # fmt: skip


class Call(NamedTuple):
    """What is written as ``IWAE(16)``: a name, and values by place and by name."""

    name: str
    by_place: Sequence[Any] = ()
    by_name: Mapping[str, Any] = types.MappingProxyType({})


def as_call(option: str, given: Any) -> Call:
    """Return the name and the arguments of a class, however they are written."""
    if isinstance(given, Call):
        return given
    is_text = isinstance(given, str)
    if isinstance(given, dict) or (is_text and given.lstrip().startswith("{")):
        held = as_yaml(given) if is_text else given
        held = held if isinstance(held, dict) else {}
        name, arguments = held.get("class_path"), held.get("init_args") or {}
        others = held.keys() - {"class_path", "init_args"}
        if others or not isinstance(name, str) or not isinstance(arguments, dict):
            raise ValueError(
                f"{option} {given}: expected a name, or a dictionary like "
                "{class_path: NAME, init_args: {ARGUMENT: VALUE}}"
            )
        call = as_call(option, name)
        by_name = {str(argument): value for argument, value in arguments.items()}
        return call._replace(by_name=by_name) if by_name else call
    found = _CALL.fullmatch(given) if is_text else None
    try:
        if found is None:
            raise SyntaxError
        tree = ast.parse(f"f{found[2] or '()'}", mode="eval").body
        call = _literal(tree)
        if not isinstance(call, Call) or call.name != "f":
            raise SyntaxError
    except (SyntaxError, ValueError, TypeError, RecursionError, MemoryError):
        raise ValueError(_expected(option, given)) from None
    return call._replace(name=found[1])


def _literal(node: ast.expr) -> Any:
    """Return a literal; a name as its text; a call and lists of what they hold.

    Raises:
        SyntaxError: If it is anything else.
    """
    if isinstance(node, ast.Call):
        by_name = {str(keyword.arg): _literal(keyword.value) for keyword in node.keywords}
        return Call(_name(node.func), [*map(_literal, node.args)], by_name)
    if isinstance(node, (ast.Attribute, ast.Name)):
        return _name(node)
    if isinstance(node, (ast.List, ast.Tuple)):
        return [*map(_literal, node.elts)]
    value = ast.literal_eval(node)
    if isinstance(value, (bytes, complex, set)) or value is ...:
        raise SyntaxError
    return value


def _name(node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_name(node.value)}.{node.attr}"
    if not isinstance(node, ast.Name):
        raise SyntaxError
    return node.id


def _expected(option: str, given: Any) -> str:
    role, *inner = option.removeprefix("--").split(".")
    example = "IWAE(16)" if inner else _EXAMPLES.get(role, "IWAE(16)")
    example = "Categorical(num_categories=4)" if inner[-1:] == ["columns"] else example
    shown = given if isinstance(given, (str, int, float)) else "null" if given is None else "a list"
    return f"{option} {shown}: expected a name, or one with its arguments, such as '{example}'"


def as_yaml(word: str) -> Any:
    """Return what a word is as YAML; the word itself if it is none."""
    try:
        return yaml.safe_load(word)
    except yaml.YAMLError:
        return word


def split_words(text: str) -> list[str]:
    """Split at commas and blanks that stand in no bracket and no quotes."""
    text = text.strip()
    if text[:1] + text[-1:] in ("[]", "()"):
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
