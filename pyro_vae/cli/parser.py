"""The parser of a command: a command line, and files of options, to values; values to objects."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from pyro_vae.cli import config_files
from pyro_vae.cli.calls import split_words
from pyro_vae.cli.classes import HINTS, literals
from pyro_vae.cli.components import (
    Component,
    as_stored,
    built,
    components_in,
    part_of_program,
)
from pyro_vae.cli.names import ROLES, nearest, offered
from pyro_vae.cli.user_files import importing_only, load_file
from pyro_vae.cli.values import component, merged, read, with_argument

__all__ = ["Given", "Parser", "as_dict", "as_text", "components_built"]


class Given(NamedTuple):
    """What a command line or a file of options says.

    Attributes:
        values: By option.
        inner: Arguments of components by their way, such as ``("objective", "beta")``, as typed.
        helps: The components of which help is asked, by their way, with the names given.
        allowed: The modules that may be imported for them; all unless a file says them.
    """

    values: dict[str, Any]
    inner: list[tuple[list[str], Any]]
    helps: list[tuple[list[str], str | None]]
    allowed: Collection[str] | None = None

    @property
    def options(self) -> set[str]:
        """Return the options that are given, alone or by an argument of theirs."""
        return {*self.values, *(way[0] for way, _ in self.inner)}

    def only(self, names: Collection[str]) -> Given:
        """Return what is given to some of the options."""
        values = {name: value for name, value in self.values.items() if name in names}
        return Given(values, [entry for entry in self.inner if entry[0][0] in names], [])

    @property
    def modules(self) -> set[str]:
        """Return the modules whose classes are named, which a file may then name, too."""
        found = {each.path for value in self.values.values() for each in components_in(value)}
        for _, word in self.inner:
            if isinstance(word, str) and ".py:" in word:
                file, _, name = word.partition(":")
                found.add(f"{load_file(Path(file)).__name__}.{name}")
            elif isinstance(word, str):
                found.add(word)
        return {path.rpartition(".")[0] for path in found}


_REQUIRED = object()


class _Help(argparse.HelpFormatter):
    """Options in one column, their help in another."""

    def __init__(self, prog: str, **options: Any) -> None:
        super().__init__(prog, max_help_position=24, **options)


class Parser(argparse.ArgumentParser):
    """The options of a command, each with a type, and how they are read, once.

    Args:
        command: Such as "train".
        description: What it does.
        options: As of ``argparse.ArgumentParser``.
    """

    def __init__(self, command: str, description: str, **options: Any) -> None:
        super().__init__(
            prog=f"pyro-vae {command}", description=description, formatter_class=_Help,
            allow_abbrev=False, exit_on_error=False, argument_default=argparse.SUPPRESS, **options,
        )  # fmt: skip
        self.defaults: dict[str, Any] = {}
        self._readers: dict[str, Callable[[Any], Any]] = {}
        self._of_program: dict[str, str] = {}

    def option(
        self, group: Any, name: str, hint: Any, help_: str, default: Any = None, metavar: str = ""
    ) -> None:
        """Add an option of a type to a group, as ``--help`` shows them."""
        choices = ["true", "false"] if hint is bool else literals(hint)
        metavar = metavar or (f"{{{','.join(choices)}}}" if choices else "")
        help_ += "" if default is None or default is False else f" (default: {default})"
        self._add(group, name, partial(read, name, hint), default, help_, metavar=metavar or None)

    def role_of_program(
        self, group: Any, role: str, help_: str, otherwise: str = "", *, names: bool = True
    ) -> None:
        """Add the option of a role for which each program has a part of its own, or another."""
        name = otherwise.rpartition(".")[2]
        default = f" (default: the program's own, or {name})" if name else ""
        self.role(group, role, f"{help_}{default}", names=names)
        self._of_program[role] = otherwise

    def role(
        self, group: Any, role: str, help_: str, default: str = "", *, names: bool = True
    ) -> None:
        """Add the option of a role, which takes a component; its help may list their names."""
        chosen = Component(default) if default else None
        listed = f"{help_}: {', '.join(offered(role))}, or your own" if names else help_
        listed += f" (default: {chosen.name})" if chosen else ""

        def reader(given: Any) -> Component | None:
            nothing = chosen is None and given in (None, "null")
            return None if nothing else component(f"--{role}", role, given)

        self._add(group, f"--{role}", reader, chosen, listed, metavar="NAME")

    def components(self, group: Any, name: str, role: str, help_: str, default: str) -> None:
        """Add an option that takes several components of a role, as many words."""

        def reader(given: Any) -> list[Component]:
            given = given if isinstance(given, list) else [given]
            if all(isinstance(each, str) for each in given):
                given = split_words(" ".join(given))
            return [component(name, role, each) for each in given]

        self._add(group, name, reader, default.split(), f"{help_} (default: {default})",
                  metavar="NAME", nargs="*")  # fmt: skip

    def positional(self, name: str, hint: Any, help_: str) -> None:
        """Add a value without an option's name, which has to be given."""
        reader = partial(read, name, hint)
        self._add(self, name, reader, _REQUIRED, help_, nargs="?", metavar=name.upper())

    def flag(self, group: Any, name: str, help_: str) -> None:
        """Add an option without a value."""
        group.add_argument(name, action="store_true", help=help_, default=argparse.SUPPRESS)
        self.defaults[_dest(name)] = False
        self._readers[_dest(name)] = bool

    def _add(
        self, group: Any, name: str, reader: Callable[[Any], Any], default: Any, help_: str,
        **options: Any,
    ) -> None:  # fmt: skip
        group.add_argument(name, help=help_.replace("%", "%%"), **options)
        self.defaults[_dest(name)] = default
        self._readers[_dest(name)] = reader

    @property
    def names(self) -> list[str]:
        """Return the options."""
        return [name for action in self._actions for name in action.option_strings]

    # Reading ---------------------------------------------------------------------------------

    def read_line(self, words: Sequence[str]) -> Given:
        """Read a command line.

        Raises:
            ValueError: If it cannot be read; says on one line what was wrong, and what would do.
        """
        for option in dict.fromkeys(word.partition("=")[0] for word in words):
            if self._is_of_component(option) and option not in self._option_string_actions:
                nargs = "?" if option.endswith(".help") else None
                self.add_argument(option, help=argparse.SUPPRESS, nargs=nargs)
        try:
            found, unknown = self.parse_known_args(self._joined(words))
        except argparse.ArgumentError as error:
            said = "it takes no value" if self._is_flag(error.argument_name) else "give it a value"
            raise ValueError(f"{error.argument_name}: {said}") from error
        if unknown:
            raise ValueError(self._unrecognised(unknown))
        return self._read(vars(found))

    def read_file(self, path: Path, modules: set[str]) -> Given:
        """Read a file of options, which may name classes of modules that the user has named.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it cannot be read or trusted.
        """
        values: dict[str, Any] = {}
        for key, value in config_files.read_config(path, modules).items():
            dest = str(key).removesuffix(".class_path")
            role = dest.partition(".")[0]
            if dest not in self._readers and not (role in self._readers and role in ROLES):
                raise ValueError(self._unrecognised([f"--{dest.replace('_', '-')}"]))
            inner = value.get("init_args") if isinstance(value, dict) else None
            if dest in ROLES and isinstance(inner, dict) and len(value) == 1:
                values |= {f"{dest}.{name}": v for name, v in inner.items()}
            else:
                values[dest] = value
        with importing_only(modules):
            return self._read(values)._replace(allowed=modules)

    def config(self, *given: Given) -> argparse.Namespace:
        """Return the values of all options: those given, the last first, or their defaults.

        Raises:
            ValueError: If an argument is none of its component's, or not of its type.
        """
        values = {name: self._default(name) for name in self.defaults}
        for name in values.keys() - {option for each in given for option in each.values}:
            if values[name] is _REQUIRED:
                raise ValueError(f"{name} is missing: --help shows how the command is used")
        for each in given:
            for name, value in each.values.items():
                values[name] = merged(values[name], value)
            with importing_only(each.allowed):
                for (role, *names), value in each.inner:
                    self._take_of_program(values, role)
                    values[role] = with_argument(f"--{role}", values[role], names, value)
        for role in self._of_program:
            self._take_of_program(values, role)
        return argparse.Namespace(**values)

    def _take_of_program(self, values: dict[str, Any], role: str) -> None:
        if role in self._of_program and values[role] is None:
            values[role] = part_of_program(values["model"], role, self._of_program[role])

    def parse(self, words: Sequence[str]) -> argparse.Namespace:
        """Return the values of all options from a command line and the files that it names."""
        given = self.read_line(words)
        return self.config(*self.read_files(given), given)

    def read_files(self, given: Given) -> list[Given]:
        """Return what the files say that a command line names by ``--config``."""
        path = given.values.get("config")
        return [] if path is None else [self.read_file(path, given.modules)]

    def _default(self, name: str) -> Any:
        default = self.defaults[name]
        return self._readers[name](default) if isinstance(default, list) else default

    def _read(self, found: Mapping[str, Any]) -> Given:
        given = Given({}, [], [])
        for dest, value in found.items():
            role, *names = [name for name in dest.split(".") if name != "init_args"]
            if dest in self._readers:
                given.values[dest] = self._readers[dest](value)
            elif names[-1] == "help":
                given.helps.append(([role, *names[:-1]], value))
            else:
                given.inner.append(([role, *names], value))
        # What a component is comes before its arguments.
        given.inner.sort(key=lambda entry: len(entry[0]))
        return given

    def _joined(self, words: Sequence[str]) -> list[str]:
        """Join options with values that begin with a minus, which argparse takes for options."""
        joined: list[str] = []
        for word in words:
            option = joined[-1] if joined and joined[-1].startswith("--") else "="
            takes_value = "=" not in option and not self._is_flag(option)
            if takes_value and word.startswith("-") and not word.startswith("--"):
                joined[-1] += f"={word}"
            else:
                joined.append(word)
        return joined

    def _is_flag(self, option: str | None) -> bool:
        action = self._option_string_actions.get(option or "")
        return action is not None and action.nargs == 0

    def _is_of_component(self, option: str) -> bool:
        role, point, inner = option.removeprefix("--").partition(".")
        return option.startswith("--") and bool(point and inner) and (
            (role in ROLES and role in self._readers) or inner == "help"
        )  # fmt: skip

    def _unrecognised(self, words: Sequence[str]) -> str:
        unknown = next((word for word in words if word.startswith("-")), None)
        if unknown is None:
            hint = "several numbers are one, such as 300,300"
            return f"{' '.join(words)}: an option begins with --, and takes one value; {hint}"
        name = unknown.partition("=")[0]
        near = nearest(name, self.names)
        return f"{name}: there is no such option; {near}--help shows them all"


def _dest(name: str) -> str:
    return name.lstrip("-").replace("-", "_")


# Configurations -----------------------------------------------------------------------------------


def as_dict(config: Any, *without: str) -> dict[str, Any]:
    """Return options as a file holds them, but for some of them and those that have no value."""
    left_out = {"config", "print_config", *without}
    stored = {
        name: as_stored(value) for name, value in vars(config).items() if name not in left_out
    }
    return {name: value for name, value in stored.items() if value is not None}


def as_text(options: dict[str, Any]) -> str:
    """Return options as YAML."""
    return yaml.safe_dump(options, sort_keys=False, allow_unicode=True, default_flow_style=False)


def components_built(config: Any) -> argparse.Namespace:
    """Return the objects of all roles: partials of the classes that wait for shapes or levels.

    Raises:
        ValueError: If an argument is missing, or a class refuses one; one line.
    """
    roles = HINTS.keys() & vars(config).keys() - {"model"}
    objects = {role: built(f"--{role}", HINTS[role], getattr(config, role)) for role in roles}
    return argparse.Namespace(**objects)
