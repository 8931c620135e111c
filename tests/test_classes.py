"""Parts by name: what is offered, how it is named, and what a stored name may import."""

from __future__ import annotations

import importlib
import inspect
import re
import sys

import pytest
import torch
from command import FUNCTIONS, PRIOR, PROGRAM
from examples import examples
from hypothesis import given
from hypothesis import strategies as st
from pyro.infer import Trace_ELBO

import pyro_vae.cli.train  # noqa: F401 - what it imports is not for the sake of a name
from pyro_vae.cli.classes import named
from pyro_vae.cli.config_files import check_trusted
from pyro_vae.cli.names import ROLES, nearest, offered, summary
from pyro_vae.cli.options import training_parser
from pyro_vae.cli.user_files import Functions

every_role = pytest.mark.parametrize("option", ROLES)


@pytest.fixture
def files(tmp_path, monkeypatch):
    """Three files of a user's, unloaded afterwards."""
    monkeypatch.chdir(tmp_path)
    before = set(sys.modules)
    for name, source in (("mine", PROGRAM), ("pair", FUNCTIONS), ("priors", PRIOR)):
        (tmp_path / f"{name}.py").write_text(source)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def imported(path: str):
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)


# Names --------------------------------------------------------------------------------------------


@every_role
def test_a_name_stands_for_its_class(option):
    for name, offer in offered(option).items():
        part = imported(named(option, name))
        assert part is offer
        assert issubclass(part, ROLES[option][1])
        assert part is not ROLES[option][1]


@every_role
def test_a_name_is_public_and_has_one_line(option):
    for name, part in offered(option).items():
        module = inspect.getmodule(part)
        assert not name.startswith("_")
        assert module.__name__.startswith("pyro.") or name in module.__all__
        line = summary(part)
        assert line.endswith("."), name
        assert line.count("\n") == 0
        assert 10 < len(line) < 100, name


@every_role
def test_an_import_path_is_its_own_name(option):
    for name in offered(option):
        path = named(option, name)
        assert named(option, path) == path


@every_role
def test_a_misspelt_name_is_mended(option):
    for name in offered(option):
        with pytest.raises(ValueError, match=f"did you mean {name}[?]"):
            named(option, name[:-2] + name[-1])


def test_something_else_is_not_taken_for_a_part():
    for name in ("os.system", "torch.nn.Linear", "collections.OrderedDict"):
        with pytest.raises(ValueError, match="not a class derived from"):
            named("prior", name)


def test_a_file_is_loaded_once_and_under_one_name(files):
    path = named("model", "mine.py:MyVAE")
    module = sys.modules["mine"]
    assert path == "mine.MyVAE"
    assert named("model", f"{files}/mine.py:MyVAE") == path
    assert sys.modules["mine"] is module


def test_a_file_takes_no_name_that_is_taken(files):
    (files / "json.py").write_text(PROGRAM)
    with pytest.raises(ValueError, match=r"json\.py: a module named 'json' is loaded already"):
        named("model", "json.py:MyVAE")


def test_a_file_that_fails_can_be_mended(files):
    (files / "failing.py").write_text("import nosuch_module")
    with pytest.raises(ValueError, match=r"failing\.py cannot be imported: ModuleNotFoundError"):
        named("model", "failing.py:MyVAE")
    (files / "failing.py").write_text(PROGRAM + "\n")
    assert named("model", "failing.py:MyVAE") == "failing.MyVAE"


@pytest.mark.parametrize("name", ["my model.py", "2nd.py", "café-1.py"])
def test_a_file_may_have_any_name(name, files):
    (files / name).write_text(PROGRAM)
    assert imported(named("model", f"{name}:MyVAE")).__name__ == "MyVAE"


# Spellings on the command line --------------------------------------------------------------------

SPELLINGS = {
    "a name": ("--prior", "Normal", "pyro_vae.components.Normal"),
    "an import path": ("--prior", "pyro_vae.components.likelihoods.Normal", None),
    "JSON": (
        "--prior",
        '{"class_path": "Normal", "init_args": {"scale": 2.0}}',
        "pyro_vae.components.Normal",
    ),
    "YAML": ("--prior", "{class_path: Normal}", "pyro_vae.components.Normal"),
    "a class in a file": ("--prior", "priors.py:StudentPrior", "priors.StudentPrior"),
    "in JSON": ("--prior", '{"class_path": "priors.py:StudentPrior"}', "priors.StudentPrior"),
    "functions": ("--model", "pair.py", "pyro_vae.cli.user_files.Functions"),
}


@pytest.mark.parametrize("separator", [" ", "="])
@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_names_the_class_and_its_module(spelling, separator, files):
    option, word, path = SPELLINGS[spelling]
    given = [option, word] if separator == " " else [f"{option}={word}"]
    parser = training_parser()
    found = parser.read_line(["--latent", "2", *given, "--lr=1"])
    component = found.values[option[2:]]
    assert component.path == (path or word)
    assert component.arguments.get("scale") == (2.0 if "scale" in word else None)
    assert found.modules == {component.path.rpartition(".")[0]}


def test_a_file_inside_a_component_names_its_module(files):
    given = training_parser().read_line(
        ["--likelihood", "Incomplete", "--likelihood.family", "priors.py:StudentPrior"]
    )
    assert "priors" in given.modules


# Trust --------------------------------------------------------------------------------------------


@every_role
def test_our_own_parts_are_trusted(option):
    for name in offered(option):
        check_trusted({option: {"class_path": named(option, name)}}, set())


@pytest.mark.parametrize("name", ["glorot", "he", "orthogonal"])
def test_our_own_functions_are_trusted(name):
    arguments = {"initialise": f"pyro_vae.components.networks.{name}"}
    check_trusted(
        {"network": {"class_path": "pyro_vae.components.MLP", "init_args": arguments}}, set()
    )


FOREIGN = ["os.system", "subprocess.Popen", "nosuch.Thing", "pyro_vae.cli.os.system", "torch.load"]
FOREIGN += ["pyro_vae.engine.svi.SVI", "torch.nn.Parameter", "torch.fx.GraphModule"]
FOREIGN += ["torch.package.PackageImporter", "pyro_vae.cli.train.train", "builtins.eval"]


def wrap(inner: st.SearchStrategy) -> st.SearchStrategy:
    keys = st.sampled_from(["init_args", "a", "data", "class_path", "hidden"])
    return st.lists(inner, min_size=1, max_size=2) | st.dictionaries(keys, inner, min_size=1)


@examples(100)
@given(
    place=st.recursive(st.just("HERE"), wrap, max_leaves=4),
    option=st.sampled_from(list(ROLES)),
    path=st.sampled_from(["os.system", "subprocess.Popen", "builtins.eval"]),
)
def test_a_foreign_name_is_refused_wherever_it_stands(place, option, path):
    def filled(value):
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        return [filled(v) for v in value] if isinstance(value, list) else path

    with pytest.raises(ValueError, match=f"names '{path}'"):
        check_trusted({"latent": 3, option: filled(place)}, set())


@pytest.mark.parametrize("path", FOREIGN)
def test_a_foreign_class_is_refused_and_not_imported(path):
    loaded = set(sys.modules)
    with pytest.raises(ValueError, match=f"names '{path}'"):
        check_trusted({"prior": {"class_path": path}}, set())
    assert not {name for name in set(sys.modules) - loaded if not name.startswith("torch")}


def test_trust_is_by_module_and_not_by_its_beginning():
    check_trusted({"prior": {"class_path": "mine.Prior"}}, {"mine"})
    for other in ("mine2.Prior", "mine.more.Prior", "min.Prior"):
        with pytest.raises(ValueError, match=other):
            check_trusted({"prior": {"class_path": other}}, {"mine"})


def test_plain_values_are_no_imports():
    check_trusted(
        {
            "data": "os.path", "out": "a.b", "latent": 3, "lr": "1e-3", "patience": None,
            "model": {"class_path": "mine.M", "init_args": {"weights": "weights.npy", "n": 1.5}},
        },
        {"mine"},
    )  # fmt: skip


@pytest.mark.parametrize("config", [None, [], "latent", 3])
def test_what_holds_no_options_is_refused(config):
    with pytest.raises(ValueError, match="instead of options"):
        check_trusted(config, set())


STRANGERS = [
    "prior: evil_file.py:X",
    "prior: '[evil_file.X]'",
    "prior: '{class_path: evil_file.X}'",
    "prior: '{class_path: \"evil_file.py:X\"}'",
    "prior.class_path: evil_file.py:X",
    "model: evil_file.py",
    "model: evil_file.py:X",
    "model: 'evil_file.py:X(3)'",
    "model: {class_path: Functions, init_args: {file: evil_file.py}}",
    "model: {class_path: pyro_vae.cli.user_files.Functions, init_args: {file: evil_file.py}}",
    "network: {class_path: MLP, init_args: {activation: 'evil_file.py:X'}}",
    "network: {class_path: MLP, init_args: {activation: evil_file.X}}",
    "network: {class_path: MLP, init_args: {initialise: 'evil_file.py:X'}}",
    "network: {class_path: 'MLP(activation=evil_file.X)'}",
    "network: {init_args: {activation: 'evil_file.py:X'}}",
    "network.activation: evil_file.py:X",
    "network.activation: '{class_path: \"evil_file.py:X\"}'",
    "likelihood: 'Incomplete(evil_file.X)'",
    "likelihood: 'Incomplete(family=\"evil_file.py:X\")'",
    "likelihood: {class_path: Columns, init_args: {columns: 'Normal,evil_file.X'}}",
    "likelihood: {class_path: Columns, init_args: {columns: ['evil_file.py:X']}}",
    "objective: {class_path: NVIL, init_args: {network: {class_path: 'evil_file.py:X'}}}",
]


@pytest.mark.parametrize("line", STRANGERS)
@pytest.mark.parametrize("named_by", ["evil_file.py:X", "evil_file.X"])
def test_a_strangers_file_imports_nothing_however_it_is_written(line, named_by, files, monkeypatch):
    monkeypatch.syspath_prepend(files)
    (files / "evil_file.py").write_text("open('pwned', 'w')\nfrom torch.nn import ReLU as X\n")
    line = line.replace("evil_file.py:X", named_by).replace("evil_file.X", named_by)
    (files / "run.yaml").write_text(f"{line}\n")
    parser = training_parser()
    with pytest.raises(ValueError, match=r"cannot be used|expected|no such"):
        parser.config(parser.read_file(files / "run.yaml", {"mine"}))
    assert not (files / "pwned").exists()
    assert "evil_file" not in sys.modules


# Functions in a file ------------------------------------------------------------------------------


def test_functions_are_loaded_only_where_the_file_was_named(files):
    with pytest.raises(ValueError, match=r"pair\.py is a file of your own: name it again"):
        Functions("pair.py")
    training_parser().read_line(["--model", "pair.py"])
    assert callable(Functions("pair.py").guide)
    with pytest.raises(ValueError, match=r"mine\.py is a file of your own"):
        Functions("mine.py")


def test_functions_start_from_the_seed(files):
    training_parser().read_line(["--model", "pair.py"])
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(Functions("pair.py").guide.__globals__["encoder"].weight.detach())
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])


# Roles, and classes that are no modules -----------------------------------------------------------


@pytest.mark.parametrize(
    ("option", "name", "said"),
    [
        ("posterior", "StandardNormal", "serves as --prior, not as the posterior: it has no"),
        ("posterior", "VampPrior", "would be the same for every x"),
        ("likelihood", "StandardNormal", "would be the same for every z"),
        ("prior", "Columns", "serves as --likelihood, not as the prior"),
        ("decoder", "Recurrent", "serves as --network or --encoder, not as the decoder"),
        ("objective", "Objective", "is for programs in Python"),
    ],
)
def test_a_part_that_serves_elsewhere_is_refused_with_what_it_is_for(option, name, said):
    package = ROLES[option][0].__name__
    for word in (name, f"{package}.{name}"):
        with pytest.raises(ValueError, match=re.escape(said)):
            named(option, word)


PLAIN = PROGRAM.replace("(PyroModule)", "").replace("        super().__init__()\n", "")
OTHERS = """
from dataclasses import dataclass

@dataclass
class Fields(MyVAE):
    hidden: int = 4

    def __post_init__(self):
        MyVAE.__init__(self, (3,), (2,))

class Slots(MyVAE):
    __slots__ = ("own",)

class Half:
    def model(self, x):
        pass
"""


@pytest.mark.parametrize("name", ["MyVAE", "Fields", "Slots"])
def test_a_plain_class_is_a_program_too(files, name):
    (files / "plain.py").write_text(PLAIN + OTHERS)
    given = training_parser().read_line(["--model", f"plain.py:{name}"])
    assert given.modules == {"plain"}
    path = given.values["model"].path
    program = imported(path)() if name == "Fields" else imported(path)((3,), (2,), hidden=5)
    assert {n.partition(".")[0] for n, _ in program.named_parameters()} == {"encoder", "decoder"}
    assert named("model", path) == path
    Trace_ELBO().differentiable_loss(program.model, program.guide, torch.randn(40, 3)).backward()
    assert all(p.grad is not None for p in program.parameters())


def test_a_class_without_the_two_methods_is_no_program(files):
    (files / "plain.py").write_text(PLAIN + OTHERS)
    with pytest.raises(ValueError, match="has no methods model"):
        training_parser().read_line(["--model", "plain.py:Half"])


# Messages -----------------------------------------------------------------------------------------


def test_the_nearest_name():
    assert nearest("Bernouli", ["Binomial", "Bernoulli"]) == "did you mean Bernoulli? "
    assert nearest("xyz", ["Binomial", "Bernoulli"]) == ""
