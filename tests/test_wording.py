"""Advice is in the language of who reads it."""

from __future__ import annotations

import ast
import re
from pathlib import Path

import pytest
import torch

import pyro_vae
from pyro_vae import VAE, fit
from pyro_vae.cli.option_messages import in_options
from pyro_vae.components import MLP, Bernoulli
from pyro_vae.inference.advice import Range, advice
from pyro_vae.wording import command, on_the_command_line, option, part

PACKAGE = Path(pyro_vae.__file__).parent
SAID = {
    "option": (lambda: option("batch_size", 2), "batch_size=2", "--batch-size 2"),
    "bare option": (lambda: option("out"), "out", "--out"),
    "zero": (lambda: option("beta", 0), "beta=0", "--beta 0"),
    "another name": (lambda: option("lr", python="lr of optim"), "lr of optim", "--lr"),
    "nested": (lambda: option("network.hidden", 3), "network.hidden=3", "--network.hidden 3"),
    "class": (lambda: part("prior", "Normal"), "prior=Normal", "--prior Normal"),
    "class with arguments": (
        lambda: part("likelihood", "Binomial", total_count=16),
        "likelihood=partial(Binomial, total_count=16)",
        "--likelihood Binomial --likelihood.total_count 16",
    ),
    "object": (
        lambda: part("objective", "IWAE", num_particles=8),
        "objective=IWAE(num_particles=8)",
        "--objective IWAE --objective.num_particles 8",
    ),
    "next command": (
        lambda: command("train", "resume", "run", python="fit(..., resume=True)"),
        "fit(..., resume=True)",
        "pyro-vae train --resume run",
    ),
}


@pytest.mark.parametrize("what", SAID)
def test_a_setting_is_written_as_the_caller_writes_it(what):
    say, in_python, on_the_line = SAID[what]
    assert say() == in_python
    with on_the_command_line():
        assert say() == on_the_line
    assert say() == in_python


def literals(path: Path) -> list[ast.Constant]:
    """Return the texts of a file, the pieces of formatted ones too, but no docstrings."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef)
    docs = {
        id(node.body[0].value)
        for node in ast.walk(tree)
        if isinstance(node, documented) and node.body and isinstance(node.body[0], ast.Expr)
    }
    return [
        node
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in docs
    ]


def test_the_library_names_no_option_but_through_one_place():
    # Style sheets have names that begin with two hyphens, too.
    written = [
        f"{path.relative_to(PACKAGE)}:{node.lineno}: {found[0]}"
        for path in sorted(PACKAGE.rglob("*.py"))
        if "cli" not in path.relative_to(PACKAGE).parts
        for node in literals(path)
        if (found := re.search(r"(?<![\w-])--[a-z][\w.-]*", node.value)) and "{ " not in node.value
    ]
    assert written == []


def test_a_fault_of_the_data_is_told_in_arguments_in_python():
    vae = VAE.assemble((3,), (2,), likelihood=Bernoulli, network=MLP)
    with pytest.raises(ValueError, match=r"\(observation=Binarize\(levels=5\)\)") as caught:
        fit(vae, torch.full((20, 3), 5.0), epochs=1, device="cpu")
    assert "--" not in str(caught.value)


def test_advice_on_the_command_line_names_options():
    with on_the_command_line():
        said = advice(torch.distributions.constraints.boolean, Range(0.0, 5.0, True, 0))
    assert "--observation Binarize" in said
    assert "--likelihood Binomial --likelihood.total_count 5" in said


@pytest.mark.parametrize(
    ("line", "message", "told"),
    [
        ("--objective.num_particles 0", "num_particles=0: give 1",
         "--objective.num_particles 0: give 1"),
        ("--prior MixtureOfNormals(0)", "num_components=0: one or more",
         "--prior MixtureOfNormals(0): num_components=0: one or more"),
        ("--network.hidden 8 --encoder.hidden 0 --encoder MLP", "hidden=(0,): positive",
         "--encoder.hidden (0,): positive"),
        ("--network.hidden 0 --encoder.hidden 8 --encoder MLP", "hidden=(0,): positive",
         "--network.hidden (0,): positive"),
        ("--epochs 3", "x=3: of another", "x=3: of another"),
    ],
)  # fmt: skip
def test_an_argument_of_a_part_is_told_as_the_option_that_was_given(line, message, told):
    assert in_options(message, line.split()) == told
