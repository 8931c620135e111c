"""Parts by name: what the command line offers, and how a user's own file is named.

Names come from the packages' own ``__all__``; there is nothing to register.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import inspect
import re
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pyro.infer
from pyro.infer import ELBO
from torch import nn

import pyro_vae.components
import pyro_vae.components.networks
import pyro_vae.engine.data
import pyro_vae.inference.schedules
import pyro_vae.models
from pyro_vae.components import Family

__all__ = ["PARTS", "Functions", "check_trusted", "named", "offered", "with_loaded_files"]

_ELBOS = ("Trace_ELBO", "TraceMeanField_ELBO", "TraceGraph_ELBO", "TraceEnum_ELBO", "RenyiELBO")

PARTS: dict[str, tuple[ModuleType, type]] = {
    "model": (pyro_vae.models, nn.Module),
    "prior": (pyro_vae.components, Family),
    "likelihood": (pyro_vae.components, Family),
    "posterior": (pyro_vae.components, Family),
    "network": (pyro_vae.components.networks, nn.Module),
    "objective": (pyro.infer, ELBO),
    "observation": (pyro_vae.engine.data, pyro_vae.engine.data.Observation),
    "schedule": (pyro_vae.inference.schedules, pyro_vae.inference.Schedule),
}
_TRUSTED = ("pyro_vae.", "pyro.", "torch.")
_IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)+")
_NOT_IMPORTED = {"data", "data_root", "out", "device", "config", "resume"}


class Functions(nn.Module):
    """A program of two plain functions, ``model`` and ``guide``, in a file of the user's.

    Args:
        file: The Python file.
    """

    def __init__(self, file: str) -> None:
        super().__init__()
        module = _load_file(Path(file))
        for role in ("model", "guide"):
            if not callable(getattr(module, role, None)):
                raise ValueError(
                    f"{file} has no function {role!r}: define model(x) and guide(x) in it, or name "
                    f"a class, {file}:MyVAE"
                )
        self.model = module.model
        self.guide = module.guide


def offered(option: str) -> dict[str, type]:
    """Return the classes that an option offers by name, from the public names of its package."""
    package, base = PARTS[option]
    names = _ELBOS if option == "objective" else package.__all__
    found = {name: getattr(package, name) for name in names}
    return {
        name: value
        for name, value in found.items()
        if inspect.isclass(value)
        and issubclass(value, base)
        and value is not base
        and not inspect.isabstract(value)
        and not (option == "network" and name == "Standardize")
    }


def named(option: str, name: str) -> str:
    """Return the import path of a part named by class, import path, or ``file.py:Class``.

    Raises:
        ValueError: If there is no such part; suggests the nearest name.
        FileNotFoundError: If the file does not exist.
    """
    if ".py" in name:
        return _named_in_file(option, name)
    classes = offered(option)
    if name in classes:
        return f"{classes[name].__module__}.{name}"
    if "." not in name:
        near = difflib.get_close_matches(name, classes, n=1, cutoff=0.4)
        hint = f"did you mean {near[0]}? " if near else ""
        raise ValueError(
            f"--{option} {name}: no such part; {hint}Choose from {', '.join(classes)}, or give an "
            "import path (my_package.MyPart) or a file (my_file.py:MyPart)"
        )
    _imported(option, name)
    return name


def with_loaded_files(arguments: list[str]) -> tuple[list[str], set[str]]:
    """Replace parts on a command line by import paths, loading the files that it names.

    Returns:
        The arguments, and the modules that the user named.
    """
    result, modules = [], set()
    previous = ""
    for argument in arguments:
        option, separator, value = argument.partition("=")
        if separator and option.removeprefix("--") in PARTS and option.startswith("--"):
            path = _part_arguments(option.removeprefix("--"), value)
            result += [f"{option}={path[0]}", *path[1:]]
        elif previous.startswith("--") and previous.removeprefix("--") in PARTS:
            path = _part_arguments(previous.removeprefix("--"), argument)
            result += path
        else:
            result.append(argument)
            previous = argument
            continue
        modules.add(path[0].rpartition(".")[0])
        previous = ""
    return result, modules


def check_trusted(config: Any, modules: set[str], key: str = "") -> None:
    """Refuse a stored configuration that would import what the user has not named.

    Args:
        config: The parsed YAML.
        modules: Modules that the user named on this command line.
        key: Where in the configuration this value is.

    Raises:
        ValueError: If a value is an import path outside pyro_vae, Pyro's and torch's own classes.
    """
    if isinstance(config, dict):
        if config.get("class_path") == f"{__name__}.Functions" and __name__ not in modules:
            raise ValueError(
                "the run's program is in a file of your own: name it again, --model my_file.py"
            )
        for name, value in config.items():
            if name not in _NOT_IMPORTED:
                check_trusted(value, modules, name)
    elif isinstance(config, list):
        for value in config:
            check_trusted(value, modules, key)
    elif isinstance(config, str) and _IMPORT_PATH.fullmatch(config):
        if config.rpartition(".")[0] in modules or _is_ours(config):
            return
        raise ValueError(
            f"the run's configuration names {config!r}, which is not part of pyro_vae: name that "
            "part again on the command line (such as --model my_file.py:MyVAE) to have it imported"
        )


def _is_ours(path: str) -> bool:
    if not path.startswith(_TRUSTED):
        return False
    try:
        module, _, name = path.rpartition(".")
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return False
    # The definition counts, not the path: pyro_vae.cli.os.system is not ours.
    return inspect.isclass(found) and found.__module__.startswith(_TRUSTED)


def _part_arguments(option: str, value: str) -> list[str]:
    if option == "model" and value.endswith(".py"):
        _load_file(Path(value))
        return [f"{__name__}.Functions", "--model.file", value]
    if value.startswith(("{", "[")) or value in ("null", ""):
        return [value]
    return [named(option, value)]


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
    except ImportError as error:
        raise ValueError(f"--{option} {name}: cannot import {module!r} ({error})") from error
    _checked_part(option, name, found)


def _checked_part(option: str, name: str, found: Any) -> None:
    base = PARTS[option][1]
    if found is None:
        raise ValueError(f"--{option} {name}: there is no {name.rpartition(':')[2]!r} in it")
    if inspect.isclass(found) and not issubclass(found, base):
        raise ValueError(
            f"--{option} {name}: {found.__name__} is no {base.__module__}.{base.__name__}; "
            "derive it from that class"
        )


def _load_file(file: Path) -> ModuleType:
    if not file.is_file():
        raise FileNotFoundError(f"{file}: there is no such file")
    name = re.sub(r"\W", "_", file.stem)
    loaded = sys.modules.get(name)
    if loaded is not None:
        if Path(getattr(loaded, "__file__", None) or "").resolve() == file.resolve():
            return loaded
        raise ValueError(f"{file}: a module named {name!r} is loaded already; rename the file")
    specification = importlib.util.spec_from_file_location(name, file)
    if specification is None or specification.loader is None:
        raise ValueError(f"{file} is no Python file")
    module = importlib.util.module_from_spec(specification)
    sys.modules[name] = module
    try:
        specification.loader.exec_module(module)
    except Exception as error:
        del sys.modules[name]
        raise ValueError(f"{file} cannot be imported: {type(error).__name__}: {error}") from error
    return module
