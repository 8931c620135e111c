"""A user's own classes and programs, from import paths and from Python files."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Collection, Iterator
from contextvars import ContextVar
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from pyro_vae.cli.names import ROLES, offered, serves

__all__ = [
    "TRUSTED",
    "Functions",
    "check_class",
    "check_derived",
    "class_of",
    "functions_path",
    "importing_only",
    "load_file",
    "public_path",
    "refuse_role",
    "untrusted",
]


TRUSTED = ("pyro_vae.", "pyro.infer.", "torch.nn.")
"""Where the classes are defined that a file of options may name without being asked."""

_ALLOWED: ContextVar[Collection[str] | None] = ContextVar("allowed", default=None)


@contextlib.contextmanager
def importing_only(modules: Collection[str] | None) -> Iterator[None]:
    """Import no module but these and ours, whatever is named: a context for a stranger's file."""
    token = _ALLOWED.set(modules)
    try:
        yield
    finally:
        _ALLOWED.reset(token)


def untrusted(name: str) -> str:
    """Return what to do about a class that a file of options names and the user does not."""
    return (
        f"it names {name!r}, which is not part of pyro_vae: name that class again on the command "
        "line (such as --model my_file.py:MyVAE) to have it imported"
    )


def _check_allowed(name: str, module: str) -> None:
    allowed = _ALLOWED.get()
    if allowed is not None and module not in allowed and not f"{module}.".startswith(TRUSTED):
        raise ValueError(f"the file of options cannot be used: {untrusted(name)}")


class Functions(nn.Module):
    """A program of two plain functions, ``model`` and ``guide``, in a file of the user's.

    Args:
        file: The Python file.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        # A stored configuration gets here too: only the command line may have a file loaded.
        if _loaded(Path(file)) is None:
            raise ValueError(f"{file} is a file of your own: name it again, --model {file}")
        # Anew, so that the weights that it makes start from the run's seed.
        module = _executed(Path(file))
        for role in ("model", "guide"):
            if not callable(getattr(module, role, None)):
                raise ValueError(
                    f"{file} has no function {role!r}: define model(x) and guide(x) in it, or name "
                    f"a class, {file}:MyVAE"
                )
        self.model = module.model
        self.guide = module.guide


def functions_path() -> str:
    """Return the import path of ``Functions``."""
    return f"{__name__}.{Functions.__name__}"


# Files --------------------------------------------------------------------------------------------


def class_of(option: str, name: str) -> tuple[str, Any]:
    """Return the import path of ``my_file.py:Class`` or ``package.Class``, and what it names.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be imported.
    """
    if ".py" not in name:
        return name, _imported_class(option, name)
    file, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"{option} {name}: say which class of the file, {file}:MyPrior")
    module = load_file(Path(file))
    return f"{module.__name__}.{attribute}", getattr(module, attribute, None)


def _imported_class(option: str, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    _check_allowed(name, module)
    try:
        return getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the user's own module may raise anything
        raise ValueError(
            f"{option} {name}: cannot import {module!r} ({_reason(error)}); install it, or "
            f"name a file: {option} my_file.py:{attribute}"
        ) from error


def load_file(file: Path) -> ModuleType:
    """Import a Python file under its own name, once.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it cannot be imported, or its name is that of another module.
    """
    _check_allowed(str(file), _module_name(file))
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file; name a Python file of yours")
    loaded = _loaded(file)
    if loaded is not None:
        return loaded
    name = _module_name(file)
    if name in sys.modules:
        raise ValueError(f"{file}: a module named {name!r} is loaded already; rename the file")
    return _executed(file)


def _loaded(file: Path) -> ModuleType | None:
    module = sys.modules.get(_module_name(file))
    path = getattr(module, "__file__", None)
    return module if path and Path(path).resolve() == file.resolve() else None


def _module_name(file: Path) -> str:
    name = re.sub(r"\W", "_", file.stem)
    return name if name.isidentifier() else f"_{name}"


def _executed(file: Path) -> ModuleType:
    name = _module_name(file)
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise ValueError(f"{file} is no Python file: its name ends in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:  # the user's own file may raise anything
        del sys.modules[name]
        raise ValueError(f"{file} cannot be imported: {_reason(error)}; correct it") from error
    return module


def _reason(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


# Classes ------------------------------------------------------------------------------------------


def check_class(option: str, name: str, found: Any, role: str) -> None:
    """Check that what was named is a class that serves in a role.

    Raises:
        ValueError: If it is not.
    """
    base = ROLES[role][1]
    if role == "model" and inspect.isclass(found) and not issubclass(found, base):
        found = _as_module(found)
        if not issubclass(found, base):
            raise ValueError(
                f"{option} {name}: has no methods model(x) and guide(x), and is not a class "
                f"derived from {public_path(base)}; write these methods"
            )
    check_derived(option, name, found, (base,))
    if not serves(found, role):
        refuse_role(option, name, found, role)


def check_derived(option: str, name: str, found: Any, bases: tuple[type, ...]) -> None:
    """Check that what was named is a class of one of several kinds.

    Raises:
        ValueError: If it is not, or there was nothing of that name.
    """
    if found is None:
        raise ValueError(
            f"{option} {name}: there is no {re.split('[.:]', name)[-1]!r} in it; check the spelling"
        )
    if not (inspect.isclass(found) and issubclass(found, bases)):
        needed = " or ".join(map(public_path, bases))
        raise ValueError(
            f"{option} {name}: not a class derived from {needed}; derive it from that class"
        )


def public_path(part: Any) -> str:
    """Return where a person finds a class: ``torch.nn.Module``, not the file that defines it."""
    name, packages = part.__qualname__, part.__module__.split(".")
    modules = [".".join(packages[:length]) for length in range(2, len(packages))]
    public = [m for m in modules if getattr(sys.modules.get(m), name, None) is part]
    return f"{[*public, part.__module__][0]}.{name}"


def refuse_role(option: str, name: str, part: Any, role: str) -> None:
    """Say what a class is for that does not serve as what it is named for.

    Raises:
        ValueError: Always.
    """
    roles = [f"--{other}" for other in ROLES if part in offered(other).values()]
    does = f"serves as {' or '.join(roles)}" if roles else "is for programs in Python"
    blind = ""
    with contextlib.suppress(TypeError, ValueError):  # it takes more than a shape
        if role in ("likelihood", "posterior") and part((2,)).is_fixed:
            given = "x" if role == "posterior" else "z"
            blind = f": it has no numbers to set, and would be the same for every {given}"
    raise ValueError(
        f"{option} {name}: {part.__name__} {does}, not as the {role}{blind}; 'pyro-vae list' "
        f"shows what does"
    )


def _as_module(program: type) -> type:
    """Return a class with methods model and guide as a module, which registers what it holds.

    It takes the class's place in its file, by whose name it is found again.
    """
    if not all(callable(getattr(program, role, None)) for role in ("model", "guide")):
        return program

    initialise = inspect.getattr_static(program, "__init__")

    def __init__(self: Any, *args: Any, **kwargs: Any) -> None:
        nn.Module.__init__(self)
        initialise(self, *args, **kwargs)

    own = {
        "__init__": functools.wraps(initialise)(__init__),
        "__module__": program.__module__,
        "__qualname__": program.__qualname__,
        "__doc__": program.__doc__,
        "__hash__": object.__hash__,  # that of a data class is by value
    }
    module = type(program.__name__, (nn.Module, program), own)
    setattr(sys.modules[program.__module__], program.__name__, module)
    return module
