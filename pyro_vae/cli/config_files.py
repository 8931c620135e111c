"""Read configuration files, which may come from strangers; check and compare them."""

from __future__ import annotations

import contextlib
import importlib.util
import inspect
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml

from pyro_vae.cli.classes import FUNCTIONS, imported
from pyro_vae.cli.names import ROLES
from pyro_vae.cli.user_files import TRUSTED, functions_path, untrusted
from pyro_vae.files import replace_file

__all__ = [
    "CONFIG",
    "check_trusted",
    "leaves",
    "read_config",
    "refuse_changes",
    "refuse_edited",
    "replaced_config",
    "run_config",
]

CONFIG = "config.yaml"
# Where earlier versions had what a stored configuration names.
_MOVED = {
    "pyro_vae.evaluation.aggressive.Aggressive": "pyro_vae.laboratory.aggressive.Aggressive",
    "pyro_vae.cli.parts.Functions": functions_path(),
}
# What earlier versions called arguments, by class.
_RENAMED = {"pyro_vae.laboratory.aggressive.Aggressive": {"num_judged": "num_data"}}
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 30
_NO_NAMES = ("data", "data_root", "data_weights", "out", "device")
_DOTTED = re.compile(r"[^\W\d]\w*(?:\.[^\W\d]\w*)+")
# What may differ when a run is resumed: the checkpoint knows the data by their fingerprint.
_MAY_CHANGE = {"config", "data", "data_root", "device", "num_samples", "out", "resume", "weights"}
_MAY_BE_EDITED = _MAY_CHANGE - {"data"}  # --data says where they are now
# What may change on the way: the run is resumed, and says that its bits differ.
_CHANGES_BITS = {
    "epochs",
    "lr",
    "momentum",
    "schedule",
    "patience",
    "clip_norm",
    "engine",
    "precision",
}


# Reading ------------------------------------------------------------------------------------------


def run_config(folder: Path) -> Path:
    """Return the configuration file of a run.

    Raises:
        FileNotFoundError: If the folder is no run's.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder: it has no {CONFIG}; name the folder that pyro-vae train "
            "wrote, such as runs/digits-VAE-..."
        )
    return path


def read_config(path: Path, modules: set[str]) -> dict[str, Any]:
    """Return what a configuration file holds, once it is known to import nothing unnamed.

    Args:
        path: The YAML file.
        modules: Modules that the user named on this command line.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or names what the user did not name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: there is no such file; give a YAML file")
    try:
        held = _moved(_read(path))
        check_trusted(held, modules)
    except yaml.MarkedYAMLError as error:
        where = "" if error.problem_mark is None else f"line {error.problem_mark.line + 1}: "
        tagged = isinstance(error, yaml.constructor.ConstructorError)
        problem = "a tag (!!...), which stands for code, is not taken" if tagged else error.problem
        raise ValueError(f"{path} is not a YAML file of options: {where}{problem}") from error
    except (UnicodeDecodeError, yaml.YAMLError) as error:
        said = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} is not a YAML file of options: {said}") from error
    except ValueError as error:
        raise ValueError(f"{path} cannot be used: {error}") from error
    return held


def _moved(held: Any) -> Any:
    """Return a configuration of an older version with the import paths and names of today."""
    if isinstance(held, str):
        return _MOVED.get(held, held)
    if not isinstance(held, dict):
        return held
    moved = {name: _moved(value) for name, value in held.items()}
    path, given = moved.get("class_path"), moved.get("init_args")
    renamed = _RENAMED.get(path) if isinstance(path, str) else None
    if renamed and isinstance(given, dict):
        moved["init_args"] = {renamed.get(name, name): value for name, value in given.items()}
    return moved


def _read(path: Path) -> Any:
    if path.stat().st_size > _MAX_BYTES:
        raise ValueError(f"it has {path.stat().st_size:,} bytes, too many for options")
    text = path.read_text(encoding="utf-8")
    depth = 0
    # Before anything is built: a few lines of aliases stand for more values than memory holds.
    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        depth += isinstance(event, yaml.CollectionStartEvent)
        depth -= isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        if isinstance(event, yaml.AliasEvent):
            raise ValueError("it has YAML aliases (*NAME): write values out")
    return yaml.safe_load(text)


# Trust --------------------------------------------------------------------------------------------


def check_trusted(config: Any, modules: set[str]) -> None:
    """Refuse a stored configuration that would import what the user has not named.

    Args:
        config: The parsed YAML.
        modules: Modules that the user named on this command line.

    Raises:
        ValueError: If it holds no options, names another file of options, or names a class that is
            no class of pyro_vae, objective of Pyro's or module of torch's.
    """
    if not isinstance(config, dict):
        raise ValueError(f"a {type(config).__name__} instead of options such as 'latent: 40'")
    for option, value in config.items():
        if option in ("config", "resume"):
            raise ValueError(f"it has the option {option!r}, which belongs on the command line")
        if option not in _NO_NAMES:
            _check_value(value, modules, is_class=str(option).partition(".")[0] in ROLES)


def _check_value(value: Any, modules: set[str], *, is_class: bool) -> None:
    if isinstance(value, dict):
        if value.get("class_path") == functions_path():
            _check_functions(modules)
            return  # `Functions` itself refuses a file that the command line has not named
        for key, inner in value.items():
            _check_value(inner, modules, is_class=key == "class_path")
    elif isinstance(value, list):
        for inner in value:
            _check_value(inner, modules, is_class=is_class)
    elif isinstance(value, str):
        for path in _DOTTED.findall(value) if "(" in value else [value]:
            if not _is_import_path(path, may_be_absent=is_class or path != value):
                continue
            if path.rpartition(".")[0] not in modules and not _is_ours(path):
                raise ValueError(untrusted(path))


def _check_functions(modules: set[str]) -> None:
    if functions_path().rpartition(".")[0] not in modules:
        raise ValueError("its program is in a file of your own: name it again, --model my_file.py")


def _is_import_path(text: str, *, may_be_absent: bool) -> bool:
    top, *rest = text.split(".")
    if not rest or not all(part.isidentifier() for part in (top, *rest)):
        return False
    # A program's own argument may read like one: "weights.npy" is imported by nobody.
    return may_be_absent or top in sys.modules or importlib.util.find_spec(top) is not None


def _is_ours(path: str) -> bool:
    if not f"{path.rpartition('.')[0]}.".startswith(TRUSTED):
        return False
    try:
        found = imported(path)
    except (ImportError, AttributeError):
        return False
    if any(found is function for function in FUNCTIONS):
        return True
    # The definition counts, not the path: pyro_vae.cli.os.system is not ours.
    bases = tuple(base for _, base in ROLES.values())
    defined = f"{found.__module__}." if inspect.isclass(found) else ""
    # Of components, what they are made of as well, such as how a pixel's levels are told.
    return defined.startswith("pyro_vae.components.") or (
        defined.startswith(TRUSTED) and issubclass(found, bases)
    )


# Comparing ----------------------------------------------------------------------------------------


def refuse_changes(folder: Path, stored: dict[str, Any], options: dict[str, Any]) -> bool:
    """Refuse to resume the run in a folder under options that make it another one.

    Returns:
        Whether any of the options that may change has changed.

    Raises:
        ValueError: Names the option and both values.
    """
    changes = _differences(stored, options)
    for key, (before, now) in changes.items():
        if key.partition(".")[0] not in _CHANGES_BITS | _MAY_CHANGE:
            option = f"--{key.replace('_', '-')}"
            raise ValueError(
                f"{option} {now}: the run was started with "
                f"{'the default' if before is None else before} and goes on with its own "
                f"options; leave {option} out, or start a new run with --config {folder / CONFIG}"
            )
    return any(key.partition(".")[0] in _CHANGES_BITS for key in changes)


def refuse_edited(path: Path, trained_with: str) -> None:
    """Refuse a run's file of options that says another thing than the run was trained with.

    Args:
        path: The file.
        trained_with: The text of the options, kept beside the data; empty where nothing was kept.

    Raises:
        ValueError: Names the option and both values.
    """
    changes = _differences(yaml.safe_load(trained_with), _read(path)) if trained_with else {}
    for key, values in changes.items():
        if key.partition(".")[0] not in _MAY_BE_EDITED | _CHANGES_BITS:
            name = f"--{key.replace('_', '-')}"
            before, after = (f"no {name}" if v is None else f"{name} {v}" for v in values)
            raise ValueError(
                f"{path} was edited: it has {after} where the run was trained with {before}; put "
                "that back, or train a new run with the file as --config"
            )


def _differences(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return both values of the options that differ, but for where a program's file is."""
    old, new = leaves(before), leaves(now)
    keys = [key for key in dict.fromkeys([*new, *old]) if key != "model.file"]
    values = {key: (old.get(key), new.get(key)) for key in keys}
    return {key: pair for key, pair in values.items() if not _are_same(*pair)}


def _are_same(one: Any, other: Any) -> bool:
    """Whether two values are equal, or import paths of one class, which may have moved."""
    paths = [_MOVED.get(path, path) for path in (one, other) if isinstance(path, str)]
    if one == other or len(paths) < 2 or not all(map(_is_ours, paths)):
        return bool(one == other)
    return imported(paths[0]) is imported(paths[1])


def leaves(options: Any, place: str = "") -> dict[str, Any]:
    """Return the options of a file by their place, such as ``network.hidden``."""
    if not isinstance(options, dict):
        return {place: options}
    found: dict[str, Any] = {}
    for name, inner in options.items():
        within = place if name in ("class_path", "init_args") else f"{place}.{name}".lstrip(".")
        found |= leaves(inner, within)
    return found


@contextlib.contextmanager
def replaced_config(folder: Path, text: str) -> Iterator[None]:
    """Store the options that a run is resumed with; if it cannot be, the old ones stay."""
    path = folder / CONFIG
    before = path.read_bytes()
    replace_file(path, text.encode())
    try:
        yield
    except ValueError:
        replace_file(path, before)
        raise
