"""Imports point one way, importing has no effect, and nothing in the package is unpickled."""

from __future__ import annotations

import ast
import functools
import importlib
import inspect
import json
import subprocess
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1] / "pyro_vae"
FILES = {
    ".".join(("pyro_vae", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(
        ".__init__"
    ): path
    for path in sorted(PACKAGE.rglob("*.py"))
}


@functools.cache
def parsed(module: str) -> ast.Module:
    return ast.parse(FILES[module].read_text(encoding="utf-8"))


GROUND = {
    "arguments",
    "arithmetic",
    "budget",
    "datasets",
    "fields",
    "files",
    "inference",
    "memory",
    "wording",
}
# What each part may import besides itself; the longest name that fits a module counts.
MAY_IMPORT = {
    "wording": set(),
    "arguments": {"wording"},
    "arithmetic": set(),
    "fields": set(),
    "files": set(),
    "terminal": set(),
    "signals": set(),
    "memory": set(),
    "budget": {"memory"},
    "datasets": {"arguments", "fields", "files", "memory", "wording"},
    "distributions": {"wording"},
    "components.networks": {"arguments", "wording"},
    "components": {
        "arguments",
        "budget",
        "components.networks",
        "distributions",
        "inference",
        "wording",
    },
    "models": {"arguments", "components", "components.networks", "distributions", "inference"},
    "inference": {"arguments", "fields", "memory", "wording"},
    "recording": {"budget", "files", "inference", "wording"},
    # What follows builds on these; engine and evaluation are blind to each other.
    "engine": {*GROUND, "recording", "signals", "terminal"},
    "evaluation": {*GROUND, "distributions", "recording"},
    "replicas": {*GROUND, "recording", "engine"},
    "fitting": {*GROUND, "engine", "replicas", "signals"},
    "laboratory": {
        *GROUND,
        "recording",
        "engine",
        "evaluation",
        "replicas",
        "fitting",
        "components",
    },
    "molecules": {"datasets", "evaluation"},
    "report": {"files", "wording", "inference", "evaluation", "laboratory"},
}
TOP = {"", "cli"}  # the package itself and the command: may all


def part_of(module: str) -> str:
    inner = module.removeprefix("pyro_vae").removeprefix(".")
    parts = [part for part in (*MAY_IMPORT, *TOP) if inner == part or inner.startswith(part + ".")]
    assert parts, f"{module} belongs to no part: give it a layer"
    return max(parts, key=len)


@functools.cache
def imports(module: str) -> set[str]:
    """Return the full names of all that a module imports, anywhere in it."""
    found = set()
    for node in ast.walk(parsed(module)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module}: imports are written in full"
            inner = {f"{node.module}.{alias.name}" for alias in node.names}
            submodules = inner & FILES.keys()
            found |= submodules
            if len(submodules) < len(inner):
                found.add(str(node.module))
    return found


def edges(module: str) -> set[str]:
    return {name for name in imports(module) if name in FILES and name != module}


def test_the_files_are_found() -> None:
    assert {"pyro_vae", "pyro_vae.models.vae", "pyro_vae.inference.program"} <= FILES.keys()
    assert "pyro_vae.components.conditional" in edges("pyro_vae.components.priors")


def test_imports_point_down() -> None:
    for module in FILES:
        part = part_of(module)
        for imported in edges(module):
            target = part_of(imported)
            if part in TOP:
                assert module != "pyro_vae" or target not in TOP - {""}, f"{module} -> {imported}"
            else:
                assert target in {part, *MAY_IMPORT[part]}, f"{module} -> {imported}"


def test_there_is_no_cycle() -> None:
    open_modules: list[str] = []
    done: set[str] = set()

    def visit(module: str) -> None:
        assert module not in open_modules, " -> ".join([*open_modules, module])
        if module in done:
            return
        open_modules.append(module)
        for imported in edges(module):
            visit(imported)
        done.add(open_modules.pop())

    for module in FILES:
        visit(module)


def test_matplotlib_is_imported_in_the_report_alone() -> None:
    for module in FILES:
        if any(name.split(".")[0] == "matplotlib" for name in imports(module)):
            assert part_of(module) == "report", module


def test_nothing_is_unpickled() -> None:
    for module in FILES:
        foreign = {name.split(".")[0] for name in imports(module)}
        assert not foreign & {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"}, (
            module
        )
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.Attribute) and node.attr in ("load", "save"):
                called = ast.unparse(node.value)
                assert called not in ("torch", "optim", "optimizer", "store"), ast.unparse(node)
                assert "get_param_store" not in called, ast.unparse(node)
            if isinstance(node, ast.keyword):
                assert node.arg != "weights_only", module
                if node.arg == "allow_pickle":
                    assert ast.unparse(node.value) == "False", module


def test_every_module_says_what_it_is_and_what_is_public() -> None:
    for module in FILES:
        tree = parsed(module)
        assert ast.get_docstring(tree), f"{module} has no docstring"
        is_package = FILES[module].name == "__init__.py"
        has_contents = any(not isinstance(node, ast.Expr) for node in tree.body)
        if is_package and not has_contents:
            continue
        names = [
            ast.unparse(t)
            for node in tree.body
            if isinstance(node, ast.Assign)
            for t in node.targets
        ]
        assert "__all__" in names, f"{module} has no __all__"


def test_public_names_exist_and_are_documented() -> None:
    for module in FILES:
        imported = importlib.import_module(module)
        for name in getattr(imported, "__all__", []):
            member = getattr(imported, name)
            home = getattr(member, "__module__", "")
            if (inspect.isclass(member) or inspect.isfunction(member)) and home == module:
                assert inspect.getdoc(member), f"{module}.{name} has no docstring"


def test_functions_stay_short() -> None:
    for module in FILES:
        for node in ast.walk(parsed(module)):
            if isinstance(node, ast.FunctionDef):
                first = (
                    node.body[1] if len(node.body) > 1 and ast.get_docstring(node) else node.body[0]
                )
                length = (node.end_lineno or 0) - first.lineno + 1
                assert length <= 60, f"{module}.{node.name} has {length} lines"


GLOBALS = """
import json, logging, random, signal, sys, warnings
import numpy, pyro, torch
def state():
    return [
        str(pyro.settings.get()), torch.distributions.Distribution._validate_args,
        str(torch.get_default_dtype()), torch.get_num_threads(), torch.is_grad_enabled(),
        torch.get_rng_state().sum().item(), hash(random.getstate()), str(numpy.random.get_state()),
        sorted(pyro.get_param_store().keys()), str(warnings.filters),
        torch.get_num_interop_threads(),
        str(torch.backends.cuda.matmul.allow_tf32), torch.backends.cudnn.benchmark,
        str(logging.getLogger().handlers), str(signal.getsignal(signal.SIGINT)),
        str(sys.excepthook), str(logging.root.level),
    ]
before = state()
import pyro_vae, pyro_vae.fitting, pyro_vae.evaluation, pyro_vae.laboratory, pyro_vae.molecules
after = state()
changed = [i for i, (a, b) in enumerate(zip(before, after)) if a != b]
foreign = "matplotlib", "sklearn", "torchvision", "tensorboard", "PIL", "rdkit", "selfies"
loaded = [m for m in foreign if m in sys.modules]
import matplotlib
keys = [key for key in matplotlib.rcParams if key != "backend"]  # to read it imports pyplot
before = [matplotlib.rcParams[key] for key in keys]
from pyro_vae.report import page, plots
plots.png(plots.unit_bars(torch.rand(3), torch.rand(3)))
plots.png(plots.image_grid(torch.rand(3, 1, 2, 2), title="t"))
if "matplotlib.pyplot" in sys.modules or before != [matplotlib.rcParams[key] for key in keys]:
    loaded.append("matplotlib's global state")
print(json.dumps([changed, loaded]))
"""


def test_importing_has_no_effect() -> None:
    command = [sys.executable, "-W", "error::UserWarning:pyro_vae", "-c", GLOBALS]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, cwd=PACKAGE.parent, timeout=600
    )
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == 1, f"importing printed {lines[:-1]}"
    changed, loaded = json.loads(lines[0])
    assert not changed, f"importing changed the states {changed}"
    assert not loaded, f"importing loaded {loaded}"
    assert not done.stderr, done.stderr
