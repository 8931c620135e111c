"""Parts by name: from what a person types to an import path, a user's own files included."""

from __future__ import annotations

import contextlib
import functools
import importlib
import importlib.util
import inspect
import json
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import yaml
from torch import nn

import pyro_vae.components.networks
from pyro_vae.cli.messages import nearest
from pyro_vae.cli.names import PARTS, hints, known_as, offered, plain, serves
from pyro_vae.components import Family
from pyro_vae.components.automatic import class_path, distribution_names

__all__ = [
    "FUNCTIONS",
    "Functions",
    "check_trusted",
    "named",
    "with_loaded_files",
]

# Where the classes that a stored configuration may name are defined.
_TRUSTED = ("pyro_vae.", "pyro.infer.", "torch.nn.")
FUNCTIONS = (
    pyro_vae.components.networks.glorot,
    pyro_vae.components.networks.he,
    pyro_vae.components.networks.orthogonal,
)
"""Functions among the parts, which a stored configuration may name too."""

_UNREAD = ("data", "data_root", "data_weights", "out", "device")


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


def named(option: str, name: str) -> str:
    """Return the import path of a part named by class, import path, or ``file.py:Class``.

    Families may also be named after any of Pyro's distributions.

    Raises:
        ValueError: If there is no such part; suggests the nearest name.
        FileNotFoundError: If the file does not exist.
    """
    if ".py" in name:
        return _named_in_file(option, name)
    classes = offered(option)
    others = distribution_names() if PARTS[option][1] is Family else ()
    found = known_as(name, option, others)
    if found in classes:
        return f"{classes[found].__module__}.{found}"
    if found is not None:
        return class_path(found)
    if "." not in name:
        package = PARTS[option][0]
        if name in package.__all__ and not serves(getattr(package, name), option):
            _refuse_role(option, name, getattr(package, name))
        if hint := hints(option).get(plain(name)):
            raise ValueError(f"--{option} {name}: {hint}")
        pyros = "any of Pyro's distributions, " if others else ""
        near = nearest(name, [*classes, *others]).strip()
        raise ValueError(
            f"--{option} {name}: no such part{near and f' ({near})'}; choose from what pyro-vae "
            f"list shows, or give {pyros}an import path (my_package.MyPart) or a file "
            "(my_file.py:MyPart)"
        )
    _imported(option, name)
    return name


def _refuse_role(option: str, name: str, part: type) -> None:
    """Say what a part of ours is for that does not serve as what it is named for."""
    serves = [f"--{role}" for role in PARTS if part in offered(role).values()]
    does = f"serves as {' or '.join(serves)}" if serves else "is for programs in Python"
    blind = ""
    with contextlib.suppress(TypeError, ValueError):  # it takes more than a shape
        build: Any = part
        if option in ("likelihood", "posterior") and build((2,)).is_fixed:
            given = "x" if option == "posterior" else "z"
            blind = f": it has no numbers to set, and would be the same for every {given}"
    raise ValueError(
        f"--{option} {name}: {part.__name__} {does}, not as the {option}{blind}; 'pyro-vae list' "
        f"shows what does"
    )


def with_loaded_files(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Replace parts on a command line by import paths, loading the files that it names.

    Returns:
        The arguments, and the modules that the user named.
    """
    result: list[str] = []
    modules: set[str] = set()
    words = iter(arguments)
    for word in words:
        option, separator, value = word.partition("=")
        name = option.removeprefix("--")
        role, _, inner = name.partition(".")
        if not option.startswith("--") or role not in PARTS or (inner and not _NAMES(inner)):
            result.append(word)
            continue
        if not separator:
            result.append(word)
            value = next(words, "")
            if not value:
                continue
        if inner:
            path, rest = _inner_name(role, inner, value, modules), []
        else:
            path, *rest = _part_arguments(role, value, modules)
        result += [f"{option}={path}" if separator else path, *rest]
    return result, modules


# Arguments of families that are families themselves, or lists of them, and the help of one.
_NAMES = re.compile(r"(?:\w+\.)*(?:family|columns|help)$").match


def _inner_name(role: str, inner: str, value: str, modules: set[str]) -> str:
    """Return the value of an argument that names families, with import paths for names."""
    if inner == "help":
        return class_path(value) if _is_automatic(role, value) else value
    if not value.startswith(("[", "{")):
        path = named(role, value)
        modules.add(path.rpartition(".")[0])
        return path
    try:
        given = yaml.safe_load(value)
    except yaml.YAMLError:
        return value  # the parser says what is wrong with it
    return json.dumps(_with_paths(role, given, modules))


def _with_paths(role: str, given: Any, modules: set[str]) -> Any:
    if isinstance(given, list):
        return [_with_paths(role, value, modules) for value in given]
    if isinstance(given, str):
        path = named(role, given)
        modules.add(path.rpartition(".")[0])
        return path
    if isinstance(given, dict) and isinstance(given.get("class_path"), str):
        return {**given, "class_path": _with_paths(role, given["class_path"], modules)}
    return given


def _is_automatic(role: str, name: str) -> bool:
    families = PARTS[role][1] is Family
    return families and name in distribution_names() and name not in offered(role)


def check_trusted(config: Any, modules: set[str]) -> None:
    """Refuse a stored configuration that would import what the user has not named.

    Args:
        config: The parsed YAML.
        modules: Modules that the user named on this command line.

    Raises:
        ValueError: If it holds no options, names another file of options, or names a class that is
            no part of pyro_vae, objective of Pyro's or module of torch's.
    """
    if not isinstance(config, dict):
        raise ValueError(f"a {type(config).__name__} instead of options such as 'latent: 40'")
    for option, value in config.items():
        if option in ("config", "resume"):
            raise ValueError(f"it has the option {option!r}, which belongs on the command line")
        if option not in _UNREAD:
            _check_value(value, modules, is_class=option in PARTS)


def _check_value(value: Any, modules: set[str], *, is_class: bool) -> None:
    if isinstance(value, dict):
        path = value.get("class_path")
        if path == f"{__name__}.Functions":
            if __name__ not in modules:
                raise ValueError(
                    "its program is in a file of your own: name it again, --model my_file.py"
                )
            return  # `Functions` itself refuses a file that the command line has not named
        for key, inner in value.items():
            _check_value(inner, modules, is_class=key == "class_path")
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, modules, is_class=is_class)
    elif isinstance(value, str) and _is_import_path(value, may_be_absent=is_class):
        if value.rpartition(".")[0] in modules or _is_ours(value):
            return
        raise ValueError(
            f"it names {value!r}, which is not part of pyro_vae: name that part again on the "
            "command line (such as --model my_file.py:MyVAE) to have it imported"
        )


def _is_import_path(text: str, *, may_be_absent: bool) -> bool:
    top, *rest = text.split(".")
    if not rest or not all(part.isidentifier() for part in (top, *rest)):
        return False
    # A program's own argument may read like one: "weights.npy" is imported by nobody.
    return may_be_absent or top in sys.modules or importlib.util.find_spec(top) is not None


def _is_ours(path: str) -> bool:
    module, _, name = path.rpartition(".")
    if not f"{module}.".startswith(_TRUSTED):
        return False
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    if any(found is function for function in FUNCTIONS):
        return True
    # The definition counts, not the path: pyro_vae.cli.os.system is not ours.
    bases = tuple(base for _, base in PARTS.values())
    return (
        inspect.isclass(found)
        and issubclass(found, bases)
        and f"{found.__module__}.".startswith(_TRUSTED)
    )


def _part_arguments(option: str, value: str, modules: set[str]) -> list[str]:
    """Return a part's value for the parser, and note the module that the user named."""
    if option == "model" and value.endswith(".py"):
        _load_file(Path(value))
        modules.add(__name__)
        return [f"{__name__}.Functions", "--model.file", value]
    if value == "null":
        return [value]
    if value.startswith("{"):
        return [_with_named_class(option, value, modules)]
    path = named(option, value)
    modules.add(path.rpartition(".")[0])
    return [path]


def _with_named_class(option: str, value: str, modules: set[str]) -> str:
    """Name the class of a part that is given as a dictionary."""
    try:
        given = yaml.safe_load(value)
    except yaml.YAMLError:
        given = None
    if not isinstance(given, dict) or not isinstance(given.get("class_path"), str):
        raise ValueError(
            f"--{option} {value}: expected a name, or a dictionary like "
            "{class_path: NAME, init_args: {ARGUMENT: VALUE}}"
        )
    path = named(option, given["class_path"])
    modules.add(path.rpartition(".")[0])
    return json.dumps({**given, "class_path": path})


def _named_in_file(option: str, name: str) -> str:
    file, _, attribute = name.partition(":")
    if not attribute:
        raise ValueError(f"--{option} {name}: say which class of the file, {file}:MyPart")
    module = _load_file(Path(file))
    _checked_part(option, name, getattr(module, attribute, None))
    return f"{module.__name__}.{attribute}"


def _imported(option: str, name: str) -> None:
    module, _, attribute = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module), attribute, None)
    except Exception as error:  # the user's own module may raise anything
        raise ValueError(
            f"--{option} {name}: cannot import {module!r} ({_said(error)}); install it, or "
            f"name a file: --{option} my_file.py:{attribute}"
        ) from error
    _checked_part(option, name, found)


def _public_path(base: type) -> str:
    """Return where a person finds a class: ``torch.nn.Module``, not the file that defines it."""
    parts = base.__module__.split(".")
    for length in range(1, len(parts) + 1):
        module = ".".join(parts[:length])
        if getattr(sys.modules.get(module), base.__name__, None) is base:
            return f"{module}.{base.__name__}"
    return f"{base.__module__}.{base.__name__}"


def _checked_part(option: str, name: str, found: Any) -> None:
    base = PARTS[option][1]
    if option == "model" and inspect.isclass(found) and not issubclass(found, base):
        found = _as_module(found)
    if found is None:
        raise ValueError(
            f"--{option} {name}: there is no {re.split('[.:]', name)[-1]!r} in it; "
            "check the spelling"
        )
    if not (inspect.isclass(found) and issubclass(found, base)):
        needs = "has no methods model(x) and guide(x), and is " if option == "model" else ""
        raise ValueError(
            f"--{option} {name}: {needs}not a class derived from {_public_path(base)}; "
            f"{'write these methods' if needs else 'derive it from that class'}"
        )
    if not serves(found, option):
        _refuse_role(option, name, found)


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


def _loaded(file: Path) -> ModuleType | None:
    module = sys.modules.get(_module_name(file))
    path = getattr(module, "__file__", None)
    return module if path and Path(path).resolve() == file.resolve() else None


def _module_name(file: Path) -> str:
    name = re.sub(r"\W", "_", file.stem)
    return name if name.isidentifier() else f"_{name}"


def _load_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file; name a Python file of yours")
    loaded = _loaded(file)
    if loaded is not None:
        return loaded
    name = _module_name(file)
    if name in sys.modules:
        raise ValueError(f"{file}: a module named {name!r} is loaded already; rename the file")
    return _executed(file)


def _executed(file: Path) -> ModuleType:
    name = _module_name(file)
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise ValueError(f"{file} is no Python file: its name ends in .py")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{file} cannot be imported: {_said(error)}; correct it") from error
    return module


def _said(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"
