"""Parts with their arguments as one word, ``IWAE(16)`` or ``MLP(hidden=[300, 300])``.

A word is read as Python's literals and names of parts; nothing in it is ever evaluated.
"""

from __future__ import annotations

import ast
import collections.abc
import importlib
import inspect
import re
import types
import typing
from collections.abc import Iterable, Iterator
from typing import Any

from torch import nn

import pyro_vae.components.networks
import pyro_vae.inference
import pyro_vae.inference.schedules
from pyro_vae.cli.messages import nearest
from pyro_vae.cli.names import PARTS, known_as
from pyro_vae.cli.parts import FUNCTIONS, named
from pyro_vae.components import Family
from pyro_vae.components.automatic import class_path, distribution_names

__all__ = [
    "arguments_of",
    "as_class",
    "as_typed",
    "check_arguments",
    "choices",
    "imported",
    "is_call",
    "is_list",
    "nested",
    "part",
    "results",
    "value_of",
]

_FILLED_IN = ("event_shape", "latent_shape", "in_shape", "out_shape", "levels", "context_shape")
_WORDS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False,
          "null": None, "none": None}  # fmt: skip
_CALL = re.compile(r"\s*([^()\[\]{}'\"\s]+)\s*(\(.*\))\s*", re.DOTALL)
_NUMBER = r"[-+]?(?:[0-9][0-9_]*)?\.?[0-9][0-9_]*\.?(?:[eE][-+]?[0-9]+)?"
_NUMBERS = re.compile(rf"\s*{_NUMBER}(?:\s*,\s*{_NUMBER})*\s*,?\s*", re.ASCII)
_LIST = re.compile(
    rf"\s*[\[(]?\s*({_NUMBER}(?:(?:\s*,\s*|\s+){_NUMBER})*)?\s*,?\s*[\])]?\s*", re.ASCII
)
_ODD_NUMBER = re.compile(
    r"[-+]?(?:0[xXoObB]\w*|0[0-9_]+|[0-9]+(?::[0-9.]+)+|[0-9_.eE]*[^\x00-\x7f][\w.]*)"
)
_SYNONYMS = {"swish": "silu"}
_FUNCTIONS = {
    f.__name__: f"{pyro_vae.components.networks.__name__}.{f.__name__}" for f in FUNCTIONS
}
_MODULES = (
    pyro_vae.inference.schedules, pyro_vae.inference, pyro_vae.components,
    pyro_vae.components.networks, nn,
)  # fmt: skip


def is_call(word: str) -> bool:
    """Whether a word names a part with arguments in parentheses."""
    return _CALL.fullmatch(word) is not None


def part(option: str, role: str, word: str) -> dict[str, Any]:
    """Return the part that a word names, as class_path and init_args.

    Args:
        option: What it is given for, for messages.
        role: What it is, such as "objective" or "likelihood".
        word: ``NAME`` or ``NAME(1, argument=2)``.

    Raises:
        ValueError: It is no such part, or takes no such argument; suggests the nearest name.
    """
    name, call = _read(option, word)
    try:
        path = named(role, name)
    except ValueError as error:
        raise ValueError(str(error).replace(f"--{role} ", f"{option} ", 1)) from error
    return _built(option, word, path, call)


def value_of(option: str, annotation: Any, word: str) -> dict[str, Any]:
    """Return a part's argument that is a part itself, ``Scheduled(Linear(0, 1))``.

    Raises:
        ValueError: As ``part``.
    """
    name, call = _read(option, word)
    return _built(option, word, nested(option, name, annotation), call)


def arguments_of(path: str) -> dict[str, Any]:
    """Return a class's arguments and their types; those of its bases, too, where it hands on."""
    found: dict[str, Any] = {}
    for parent in imported(path).__mro__:
        parameters = inspect.signature(parent).parameters.values()
        try:
            hints = typing.get_type_hints(parent.__init__)
        except (NameError, TypeError):
            hints = {}
        kinds = inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY
        names = [p.name for p in parameters if p.kind in kinds and p.name not in _FILLED_IN]
        found = {name: hints.get(name, Any) for name in names} | found
        if all(p.kind is not p.VAR_KEYWORD for p in parameters):
            break
    return found


def imported(path: str) -> Any:
    """Return what an import path names."""
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


def as_typed(option: str, annotation: Any, word: str) -> str:
    """Return a number, or several, as a person types them, in the parser's notation.

    ``300,300``, ``300 300`` and ``(300, 300)`` are lists, as is ``300`` where a list is due;
    ``1e3`` is a whole number.

    Raises:
        ValueError: A number that programs read differently: 0x10, 007, 1:30; a decimal comma; or
            no numbers where only numbers will do.
    """
    kinds = set(_members(annotation))
    if str in kinds or not (kinds & {int, float, Any} or _is_list(kinds)):
        return word
    if _ODD_NUMBER.fullmatch(word.strip()) and Any not in kinds:
        raise ValueError(f"{option} {word}: write numbers in plain decimal digits, such as 16")
    if _is_list(kinds):
        return _several(option, annotation, word)
    if _NUMBERS.fullmatch(word) is None:
        return word
    if "," in word:
        if Any not in kinds:
            raise ValueError(f"{option} {word}: {_without_comma(word, whole=float not in kinds)}")
        return _listed(word.strip().rstrip(",").split(","))
    return _whole(word) if int in kinds and float not in kinds else word


def _several(option: str, annotation: Any, word: str) -> str:
    found = _LIST.fullmatch(word)
    if found and (found[1] or word.strip()[:1] in ("[", "(")):
        return _listed(re.findall(_NUMBER, found[1] or ""))
    example = _only_numbers(annotation)
    if example and word.strip().lower() not in _WORDS:
        raise ValueError(f"{option} {word}: expected numbers, such as {example}")
    return word


def _only_numbers(annotation: Any) -> str:
    """Return an example of what an argument takes, if that is nothing but a list of numbers."""
    kinds = {*_each(annotation)} - {type(None)}
    inner = {kind for each in kinds for kind in typing.get_args(each)} - {...}
    if len(kinds) != 1 or not inner or not inner <= {int, float}:
        return ""
    return "300,300" if inner == {int} else "0.1,0.2"


def _listed(numbers: Iterable[str]) -> str:
    return "[" + ", ".join(map(_whole, numbers)) + "]"


def _without_comma(word: str, *, whole: bool) -> str:
    """Say how a number is written that is given with commas."""
    joined, pointed = word.replace(",", ""), word.replace(",", ".")
    grouped = re.fullmatch(r"[-+]?[1-9][0-9]{0,2}(,[0-9]{3})+", word.strip()) is not None
    ways = [joined] if grouped else []
    ways += [pointed] if not whole and word.count(",") == 1 and "." not in word else []
    kind = "whole number" if whole else "number"
    return f"expected one {kind}" + (f", without a comma: {' or '.join(ways)}" if ways else "")


def _is_list(kinds: set[Any]) -> bool:
    return any(
        inspect.isclass(kind) and issubclass(kind, (collections.abc.Sequence, set))
        for kind in kinds - {str, bytes}
    )


def _whole(word: str) -> str:
    """Write 1e3 as 1000; leave what is no whole number as it is."""
    number = float(word)
    return str(int(number)) if number.is_integer() and "e" in word.lower() else word.strip()


def _members(annotation: Any) -> Iterator[Any]:
    """The kinds of a union, and what generic ones of them are made of."""
    return (typing.get_origin(kind) or kind for kind in _each(annotation))


def _each(annotation: Any) -> Iterator[Any]:
    """The kinds of a union."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for kind in typing.get_args(annotation):
            yield from _each(kind)
    else:
        yield annotation


def results(annotation: Any) -> Iterator[type]:
    """The classes among what an argument takes; of builders, what they return."""
    if typing.get_origin(annotation) in (typing.Union, types.UnionType):
        for kind in typing.get_args(annotation):
            yield from results(kind)
    elif typing.get_origin(annotation) is collections.abc.Callable:
        yield from results(typing.get_args(annotation)[-1])
    elif inspect.isclass(annotation) and annotation.__module__.partition(".")[0] != "builtins":
        yield annotation


def _read(option: str, word: str) -> tuple[str, ast.Call]:
    """Part ``NAME(...)`` into the name, which may be a file's, and the call of its arguments."""
    found = _CALL.fullmatch(word)
    name, arguments = (found[1], found[2]) if found else (word.strip(), "()")
    try:
        if set(name) & set("()[]{}'\"") or not name:
            raise SyntaxError
        call = ast.parse(f"f{arguments}", mode="eval").body
        if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Name):
            raise SyntaxError
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        raise ValueError(_expected(option, word)) from None
    return name, call


def _expected(option: str, word: str) -> str:
    example = "Categorical(num_categories=4)" if option.endswith(".columns") else "IWAE(16)"
    role = option.removeprefix("--").partition(".")[0]
    examples = {"prior": "MixtureOfNormals(10)", "likelihood": "Normal(scale=0.1)",
                "network": "MLP(hidden=[300, 300])", "encoder": "MLP(hidden=[300, 300])",
                "decoder": "MLP(hidden=[300, 300])", "schedule": "Linear(1.0, 0.1)",
                "posterior": "InverseAutoregressive(num_flows=2)"}  # fmt: skip
    example = example if option.endswith(".columns") else examples.get(role, example)
    return f"{option} {word}: expected a name, or one with its arguments, such as '{example}'"


def check_arguments(option: str, word: str, path: str, given: Iterable[str]) -> None:
    """Refuse arguments that a class does not take.

    Raises:
        ValueError: Names it, the nearest, and all.
    """
    known, name = arguments_of(path), path.rpartition(".")[2]
    takes = f"it takes {', '.join(known)}" if known else "it takes none"
    for argument in given:
        if argument not in known:
            raise ValueError(
                f"{option} {word}: {name} has no argument {argument!r}; "
                f"{nearest(argument, known)}{takes}"
            )


def _built(option: str, word: str, path: str, call: ast.Call) -> dict[str, Any]:
    known, name = arguments_of(path), path.rpartition(".")[2]
    if len(call.args) > len(known):
        takes = f"it takes {', '.join(known)}" if known else "it takes none"
        raise ValueError(f"{option} {word}: too many arguments; {takes}")
    check_arguments(option, word, path, (str(keyword.arg) for keyword in call.keywords))
    given = dict(zip(known, call.args, strict=False))
    for keyword in call.keywords:
        if keyword.arg in given:
            raise ValueError(
                f"{option} {word}: {name} is given {keyword.arg!r} twice; give it once"
            )
        given[str(keyword.arg)] = keyword.value
    values = {key: _value(option, word, known[key], node) for key, node in given.items()}
    return {"class_path": path, "init_args": values}


def _value(option: str, word: str, annotation: Any, node: ast.expr) -> Any:
    """Return a literal, a name of a part or a call of one, or a list of such."""
    if isinstance(node, ast.Call):
        return _built(option, word, nested(option, _dotted(option, word, node.func), annotation),
                      node)  # fmt: skip
    if isinstance(node, (ast.Name, ast.Attribute)):
        name = _dotted(option, word, node)
        if name.lower() in _WORDS:
            return _WORDS[name.lower()]
        if not [*results(annotation)]:
            return as_class(option, annotation, name)
        return {"class_path": nested(option, name, annotation)}
    if isinstance(node, (ast.List, ast.Tuple)):
        inner = next(iter(typing.get_args(annotation)), Any)
        return [_value(option, word, inner, element) for element in node.elts]
    try:
        value = ast.literal_eval(node)
    except (ValueError, SyntaxError, TypeError, RecursionError, MemoryError):
        raise ValueError(_expected(option, word)) from None
    if isinstance(value, (bytes, complex, set)) or value is ...:
        raise ValueError(_expected(option, word))
    kinds = set(_members(annotation))
    if isinstance(value, float) and value.is_integer() and int in kinds and float not in kinds:
        return int(value)
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return [value] if number and _is_list(kinds) and not kinds & {int, float} else value


def _dotted(option: str, word: str, node: ast.expr) -> str:
    if isinstance(node, ast.Attribute):
        return f"{_dotted(option, word, node.value)}.{node.attr}"
    if not isinstance(node, ast.Name):
        raise ValueError(_expected(option, word))
    return node.id


def nested(option: str, name: str, annotation: Any) -> str:
    """Return the import path of a part inside another, by what that takes there.

    Raises:
        ValueError: There is none of that name; suggests the nearest, or says which there are.
    """
    wanted = tuple(results(annotation))
    known = choices(annotation, name)
    if (found := known.get(name) or _alike(name, known)) is not None:
        return found
    if Family in wanted:
        meant = known_as(name, option.removeprefix("--").partition(".")[0], distribution_names())
        if meant in known:
            return known[meant]
        if meant is not None:
            return class_path(meant)
    role = next((role for role, (_, base) in PARTS.items() if base in wanted), None)
    if "." in name and role is not None:
        return named(role, name)
    fitting = [found for found in sorted(known) if _takes_as_called(known[found], annotation)]
    numbers = "a number, or " if {int, float} & set(_members(annotation)) else ""
    listed = f"expected {numbers}{', '.join(fitting[:30]) or 'a number'}"
    near = nearest(name, [*fitting, *(distribution_names() if Family in wanted else ())])
    raise ValueError(f"{option} {name}: unknown; {near.strip() or listed}")


def _alike(name: str, known: dict[str, str]) -> str | None:
    """Return the one class whose name is spelt otherwise, as ``relu`` and ``leaky_relu`` are."""
    sought = _SYNONYMS.get(_plain(name), _plain(name))
    found = {path for other, path in known.items() if _plain(other) == sought}
    return found.pop() if len(found) == 1 else None


def _plain(name: str) -> str:
    return name.replace("_", "").replace("-", "").lower()


def _takes_as_called(path: str, annotation: Any) -> bool:
    """Whether a class can be built from as much as an argument calls it with."""
    builders = [kind for kind in _each(annotation)
                if typing.get_origin(kind) is collections.abc.Callable]  # fmt: skip
    try:
        for builder in builders:
            inspect.signature(imported(path)).bind(*typing.get_args(builder)[0])
    except TypeError:
        return False
    return True


def as_class(option: str, annotation: Any, word: Any) -> Any:
    """Return the import path of a class that is named where one is due; anything else as it is.

    Raises:
        ValueError: As ``nested``.
    """
    if not isinstance(word, str) or word.lower() in _WORDS or str in {*_members(annotation)}:
        return word
    name = word.removeprefix("torch.").removeprefix("nn.")
    if not name.isidentifier() or not choices(annotation):
        return word
    return nested(option, name, annotation)


def choices(annotation: Any, *more: str) -> dict[str, str]:
    """Return the classes that an argument takes, by name, with their import paths.

    Args:
        annotation: The argument's type.
        more: Names to look for beside the public ones of the package.
    """
    wanted = tuple(results(annotation))
    if not wanted and collections.abc.Callable in _members(annotation):
        return dict(_FUNCTIONS)
    found: dict[str, str] = {}
    for module in _MODULES:
        public = nn.modules.__all__ if module is nn else getattr(module, "__all__", ())
        for name in (*more, *public):
            part = getattr(module, name, None)
            fits = inspect.isclass(part) and (not wanted or issubclass(part, wanted))
            if fits and (wanted or name in more):
                found.setdefault(name, f"{module.__name__}.{name}")
    return {name: path for name, path in found.items() if imported(path) not in wanted}


def is_list(annotation: Any) -> bool:
    """Whether an argument takes several values."""
    return _is_list(set(_members(annotation)))
