"""Every option that a message or a docstring names is one that a command declares."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pyro_vae
from pyro_vae.cli.compare import comparison_parser
from pyro_vae.cli.options import training_parser

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
    """Return the options of the parsers, and the names of calls that add one to others."""
    added = {
        call.args[1].value if len(call.args) > 1 and isinstance(call.args[1], ast.Constant) else ""
        for _, tree in trees()
        for call in ast.walk(tree)
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", getattr(call.func, "attr", "")) in ("add", "option", "flag")
    }
    return added | {*training_parser().names, *comparison_parser().names}


def test_every_option_that_is_named_exists():
    known = declared() | OTHERS
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno}: {option}"
        for path, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
        for option in re.findall(r"(?<![\w-])--[a-z][a-z-]+", node.value)
        if option not in known
    ]
    assert not missing, "\n".join(missing)
