"""Read configuration files, which may come from strangers; check and compare them."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from jsonargparse import Namespace

from pyro_vae.cli.lists import with_calls
from pyro_vae.cli.parts import check_trusted
from pyro_vae.files import replace_file

__all__ = [
    "CONFIG",
    "check_config",
    "refuse_changes",
    "refuse_edited",
    "run_config",
    "with_checked",
]

CONFIG = "config.yaml"
_MOVED = {
    "pyro_vae.evaluation.aggressive.Aggressive": "pyro_vae.laboratory.aggressive.Aggressive",
}
_MAX_BYTES = 1_000_000
_MAX_DEPTH = 30
# What may differ when a run goes on: the checkpoint knows the data by their fingerprint.
_MAY_CHANGE = {"config", "data", "data_root", "device", "num_samples", "out", "resume", "weights"}
_MAY_BE_EDITED = _MAY_CHANGE - {"data"}  # --data says where they are now
# What may change on the way: the run goes on, and says that its bits differ.
_CHANGES_BITS = {"epochs", "lr", "schedule", "patience", "clip_norm", "engine", "precision"}


def run_config(folder: Path, modules: set[str]) -> Path:
    """Return the configuration file of a run, once it is known to import nothing unnamed.

    Raises:
        FileNotFoundError: If the folder is no run's.
        ValueError: If it cannot be read or trusted.
    """
    path = folder / CONFIG
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} is no run folder: it has no {CONFIG}; name the folder that pyro-vae train "
            "wrote, such as runs/digits-VAE-..."
        )
    check_config(path, modules)
    return path


def check_config(path: Path, modules: set[str]) -> str:
    """Check that a configuration file can be read, and imports nothing that was not named.

    Args:
        path: The YAML file.
        modules: Modules that the user named on this command line.

    Returns:
        What the parser is given for it: the path, or what the file holds where calls such as
        ``IWAE(16)`` stand in it, which the parser does not know.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not YAML, or names what the user did not name.
    """
    if not path.is_file():
        raise FileNotFoundError(f"--config {path}: there is no such file; give a YAML file")
    try:
        written = _read(path)
        held = _moved(written)
        check_trusted(held, modules)
        read = with_calls(held, modules)
        return str(path) if read == written else yaml.safe_dump(read)
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


def with_checked(arguments: list[str], modules: set[str]) -> list[str]:
    """Return a command line whose files of options are checked, as ``check_config`` does."""
    result = list(arguments)
    for place, word in enumerate(arguments):
        option, separator, value = word.partition("=")
        if option == "--config" and separator:
            result[place] = f"--config={check_config(Path(value), modules)}"
        elif option == "--config" and place + 1 < len(arguments):
            result[place + 1] = check_config(Path(arguments[place + 1]), modules)
    return result


def _moved(held: Any) -> Any:
    """Return a configuration of an older version with the import paths of today."""
    if isinstance(held, dict):
        return {name: _moved(value) for name, value in held.items()}
    return _MOVED.get(held, held) if isinstance(held, str) else held


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


def refuse_changes(folder: Path, stored: Namespace, config: Namespace) -> bool:
    """Refuse to go on with a run under options that make it another one.

    Returns:
        Whether any of those that may change has changed.

    Raises:
        ValueError: Names the option and both values.
    """
    before, now = _flat(stored), _flat(config)
    changed = [key for key in [*now, *before] if before.get(key) != now.get(key)]
    for key in changed:
        if key.partition(".")[0] not in _CHANGES_BITS:
            option = f"--{key.replace('_', '-')}"
            raise ValueError(
                f"{option} {now.get(key)}: the run was started with {before.get(key)} and goes on "
                f"with its own options; leave {option} out, or start a new run with --config "
                f"{folder / CONFIG}"
            )
    return bool(changed)


def refuse_edited(path: Path, trained_with: str) -> None:
    """Refuse a run's file of options that says another thing than the run was trained with.

    Args:
        path: The file.
        trained_with: The text of the options, kept beside the data; empty where nothing was kept.

    Raises:
        ValueError: Names the option and both values.
    """
    if not trained_with:
        return
    told, now = _leaves(yaml.safe_load(trained_with)), _leaves(_read(path))
    for key in [*now, *told]:
        option = key.replace(".init_args", "").replace(".class_path", "")
        free = option.partition(".")[0] in _MAY_BE_EDITED | _CHANGES_BITS or option == "model.file"
        if not free and told.get(key) != now.get(key):
            name = f"--{option.replace('_', '-')}"
            after, before = (f"{name} {t[key]}" if key in t else f"no {name}" for t in (now, told))
            raise ValueError(
                f"{path} was edited: it has {after} where the run was trained with {before}; put "
                "that back, or train a new run with the file as --config"
            )


def _leaves(options: Any, place: str = "") -> dict[str, Any]:
    """Return the options of a file by their place, ``network.init_args.hidden``."""
    if not isinstance(options, dict):
        return {place: options}
    return {
        key: value
        for name, inner in options.items()
        for key, value in _leaves(inner, f"{place}.{name}".lstrip(".")).items()
    }


@contextlib.contextmanager
def replaced_config(folder: Path, text: str) -> Iterator[None]:
    """Store the options that a run goes on with; what it cannot go on with leaves the old ones."""
    path = folder / CONFIG
    before = path.read_bytes()
    replace_file(path, text.encode())
    try:
        yield
    except ValueError:
        replace_file(path, before)
        raise


def _flat(config: Namespace) -> dict[str, Any]:
    return {
        key.replace(".init_args", "").replace(".class_path", ""): value
        for key, value in config.items()
        if key.partition(".")[0] not in _MAY_CHANGE and key != "model.init_args.file"
    }
