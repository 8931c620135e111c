"""Every option that a message or a docstring names is one that a command declares."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pyro_vae

ROOT = Path(pyro_vae.__file__).parent
# Of other programs and of every parser (--print_config), and the colours of a report's page.
OTHERS = {
    "--upgrade",
    "--back",
    "--card",
    "--ink",
    "--line",
    "--soft",
    "--help",
    "--version",
    "--print",
}


def trees() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(ROOT.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def declared() -> set[str]:
    """Return the first arguments of calls that begin with two dashes: ``add("--epochs", ...)``."""
    return {
        value
        for _, tree in trees()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and isinstance(call.func, ast.Name | ast.Attribute)
        and re.search("add|option", getattr(call.func, "id", getattr(call.func, "attr", "")))
        for argument in call.args
        for value in [getattr(argument, "value", None)]
        if isinstance(value, str) and value.startswith("--")
    }


def test_every_option_that_is_named_exists():
    known = declared() | OTHERS | {"--objectives"}  # whose name is a constant of the module
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {option}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value)
        if option not in known
    ]
    assert not missing, "\n".join(missing)
