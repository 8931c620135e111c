"""Parts with arguments as one word, numbers as users type them, one flag for a common wish."""

from __future__ import annotations

import inspect
import itertools
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from command import PROGRAM

from pyro_vae import components
from pyro_vae.cli import config_files, main
from pyro_vae.cli.compare import comparison_parser
from pyro_vae.cli.components import Component
from pyro_vae.cli.config_files import read_config
from pyro_vae.cli.names import ROLES, offered
from pyro_vae.cli.options import training_parser
from pyro_vae.cli.shorthand import settle_objective


def parsed(*arguments: str) -> dict[str, Any]:
    return vars(training_parser().parse(arguments))


def given(part: Any) -> Any:
    """Names and all arguments, without the module of a class."""
    if isinstance(part, Component):
        return part.name, given(part.all_arguments())
    if isinstance(part, dict):
        return {key: given(value) for key, value in part.items()}
    return [given(value) for value in part] if isinstance(part, list) else part


WARM = ("Scheduled", {"schedule": ("Linear", {"start": 0, "end": 1, "until": 0.2})})
CALLS = {
    "objective": [
        ("IWAE(16)", ("IWAE", {"num_particles": 16})),
        ("IWAE(num_particles=16)", ("IWAE", {"num_particles": 16})),
        ("IWAE(1e1)", ("IWAE", {"num_particles": 10})),
        ("ELBO()", ("ELBO", {})),
        ("BetaVAE(Scheduled(Linear(0, 1, until=0.2)))", ("BetaVAE", {"beta": WARM})),
        ("InChunks(IWAE(8), 4)", ("InChunks", {"objective": ("IWAE", {"num_particles": 8}),
                                               "particles_at_once": 4})),
    ],
    "prior": [
        ("MixtureOfNormals(10)", ("MixtureOfNormals", {"num_components": 10})),
        ("VampPrior(num_pseudo_inputs=1_0)", ("VampPrior", {"num_pseudo_inputs": 10})),
    ],
    "likelihood": [
        ("Normal(scale=0.1)", ("Normal", {"scale": 0.1})),
        ("Laplace(scale=1.0)", ("Laplace", {"scale": 1.0})),
        ("Incomplete(Laplace)", ("Incomplete", {"family": ("Laplace", {})})),
        ("Columns([Normal, Categorical(4)])",
         ("Columns", {"columns": [("Normal", {}), ("Categorical", {"num_categories": 4})]})),
    ],
    "posterior": [("Planar(num_flows=2)", ("Planar", {"num_flows": 2}))],
    "network": [
        ("MLP(hidden=[300,300])", ("MLP", {"hidden": [300, 300]})),
        ("MLP((3, 4), ReLU)", ("MLP", {"hidden": [3, 4], "activation": ("ReLU", {})})),
        ("MLP(hidden=300)", ("MLP", {"hidden": [300]})),
    ],
    "encoder": [("GatedMLP(hidden=[3])", ("GatedMLP", {"hidden": [3]}))],
    "schedule": [("Linear(1.0, 0.1)", ("Linear", {"start": 1.0, "end": 0.1}))],
    "observation": [("Binarize(resample=false)", ("Binarize", {"resample": False}))],
    "turns": [("Aggressive(window=3)", ("Aggressive", {"window": 3}))],
    "model": [("VAE()", ("VAE", {}))],
}  # fmt: skip
EVERY_CALL = [(role, *call) for role, calls in CALLS.items() for call in calls]


def contains(found: Any, expected: Any) -> bool:
    if isinstance(expected, dict):
        return all(contains(found.get(key), value) for key, value in expected.items())
    if isinstance(expected, (tuple, list)) and isinstance(found, (tuple, list)):
        return len(found) == len(expected) and all(map(contains, found, expected))
    return bool(found == expected)


@pytest.mark.parametrize(("role", "word", "expected"), EVERY_CALL)
def test_a_call_is_a_part_on_the_command_line_and_in_a_file(tmp_path, role, word, expected):
    (tmp_path / "run.yaml").write_text(f"{role}: '{word}'\n")
    file = ["--config", str(tmp_path / "run.yaml")]
    for arguments in ([f"--{role}", word], [f"--{role}={word}"], file):
        assert contains(given(parsed(*arguments)[role]), expected)


def test_compare_takes_the_same_words(tmp_path):
    words = [word for word, _ in CALLS["objective"]]
    expected = [part for _, part in CALLS["objective"]]
    (tmp_path / "run.yaml").write_text(f"objectives: {words}\n")
    for arguments in (["--objectives", *words], ["--config", str(tmp_path / "run.yaml")]):
        found = comparison_parser().parse(arguments).objectives
        assert contains(given(found), expected)


def test_a_class_in_a_file_is_called_too(tmp_path):
    (tmp_path / "called_program.py").write_text(PROGRAM)
    found = parsed("--model", f"{tmp_path / 'called_program.py'}:MyVAE(hidden=3)")
    assert given(found["model"])[1]["hidden"] == 3


def test_arguments_of_a_call_can_be_given_beside_it():
    found = parsed("--network", "MLP(hidden=[3])", "--network.activation", "torch.nn.ReLU")
    assert contains(given(found["network"]), ("MLP", {"hidden": [3], "activation": ("ReLU", {})}))


@pytest.mark.parametrize("role", ROLES)
def test_every_part_by_name_is_itself_called_with_nothing(role):
    for name in offered(role):
        assert parsed(f"--{role}", f"{name}()")[role].name == name


BAD_CALLS = {
    "IWAE(16": "expected a name, or one with its arguments, such as 'IWAE(16)'",
    "IWAE)16(": "such as 'IWAE(16)'",
    "IWEA(16)": "did you mean IWAE?",
    "IWAE(nm=1)": "IWAE has no argument 'nm'; it takes num_particles",
    "IWAE(1, 2)": "too many arguments; it takes num_particles",
    "IWAE(1, num_particles=2)": "given 'num_particles' twice",
    "IWAE(*[1])": "expected a name",
    "IWAE(**{})": "no argument",
    "IWAE(1 + 1)": "expected a name",
    "IWAE(b'x')": "expected a name",
    "IWAE(__import__('os').system('touch pwned'))": "expected a name",
    "IWAE((lambda: 1)())": "expected a name",
    "BetaVAE(Scheduld(Linear(0, 1)))": "did you mean Scheduled?",
    "BetaVAE(Scheduled(Line(0, 1)))": "did you mean Linear?",
    "BetaVAE(IWAE(3))": "expected a number, or Controlled, Scheduled",
    "(3)": "expected a name",
    "IWAE(" + "(" * 300 + ")" * 300 + ")": "expected a name",
}


@pytest.mark.parametrize("word", BAD_CALLS)
def test_a_wrong_call_is_told_and_nothing_is_run(word, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=re.escape(BAD_CALLS[word])) as caught:
        parsed("--objective", word)
    assert str(caught.value).startswith("--objective")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "pwned").exists()


@pytest.mark.parametrize(
    "line",
    [
        "objective: os.system(1)",
        "prior: evil.py:Prior(1)",
        "network: MLP(activation=os.system)",
        "network: MLP(activation=os.system())",
        "network: {class_path: MLP, init_args: {activation: os.system(1)}}",
    ],
)
def test_a_call_in_a_file_imports_nothing_that_is_not_ours(line, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("open('pwned', 'w')")
    (tmp_path / "run.yaml").write_text(line)
    with pytest.raises(ValueError, match="not part of pyro_vae"):
        read_config(tmp_path / "run.yaml", set())
    assert not (tmp_path / "pwned").exists()


def test_every_public_class_of_ours_may_be_named_in_a_file():
    """What a run stores is what its folder is opened with, whatever it is a part of."""
    for package in (components, components.networks):
        for name in package.__all__:
            if inspect.isclass(getattr(package, name)):
                assert config_files._is_ours(f"{package.__name__}.{name}"), name
    assert not config_files._is_ours("pyro_vae.cli.os.system")


# Numbers ------------------------------------------------------------------------------------------

NUMBERS = {
    "--seed": {"16": 16, "1_000": 1000, "1e3": 1000, "0": 0, "+5": 5},
    "--epochs": {"2e1": 20},
    "--lr": {"1e-3": 1e-3, "1_000": 1000.0, "0.5e2": 50.0, ".5": 0.5, "3": 3.0},
    "--tensorboard": dict.fromkeys(("true", "True", "yes", "on"), True)
    | dict.fromkeys(("false", "no"), False),
    "--network.hidden": {
        "300,300": [300, 300], "[300,300]": [300, 300], "300": [300], "300, 20": [300, 20],
        "1e2,": [100], "1_000": [1000], "300 20": [300, 20], "(300,20)": [300, 20],
        "[3 2]": [3, 2], "[]": [], "()": [],
    },
    "--latent": {"16 8": "16,8", "16, 8": "16,8", "16": 16},
    "--objective.num_particles": {"1e1": 10, "1_0": 10},
}  # fmt: skip
EVERY_NUMBER = [
    (option, word, value) for option, words in NUMBERS.items() for word, value in words.items()
]


@pytest.mark.parametrize(("option", "word", "value"), EVERY_NUMBER)
def test_numbers_are_read_as_users_type_them(option, word, value):
    found: Any = parsed("--objective", "IWAE", option, word)
    for key in option.removeprefix("--").replace("-", "_").split("."):
        found = (found.arguments if isinstance(found, Component) else found)[key]
    assert found == value
    assert type(found) is type(value)


ODD_FOR = ["--seed", "--lr", "--network.hidden", "--objective.num_particles"]
ODD = ["0x10", "007", "0b11", "0o7", "1:30", "-0x1", "\u0663", "0_1"]


@pytest.mark.parametrize(
    ("option", "word"),
    [*itertools.product(ODD_FOR, ODD)],
)
def test_numbers_that_programs_read_differently_are_refused(option, word):
    with pytest.raises(ValueError, match=re.escape(f"{option} {word}: write numbers in plain")):
        parsed("--objective", "IWAE", option, word)


NO_NUMBERS = {
    ("--lr", "0,001"): "expected one number, without a comma: 0.001",
    ("--lr", "1,000"): "without a comma: 1000 or 1.000",
    ("--beta", "0,5"): "without a comma: 0.5",
    ("--epochs", "1,5"): "expected one whole number",
    ("--epochs", "1,000"): "expected one whole number, without a comma: 1000",
    ("--objective.num_particles", "1,5"): "expected one whole number",
    **{("--network.hidden", word): "expected numbers, such as 300,300"
       for word in ("300;300", "300x300", "abc", "[3,a]", "")},
}  # fmt: skip


LINES = {
    "--seed -1": ("seed", -1), "--lr=-2": ("lr", -2.0), "--missing -1e30": ("missing", "-1e30"),
    "--out -x": ("out", Path("-x")), "--out ~": ("out", Path("~")),
}  # fmt: skip


@pytest.mark.parametrize("line", LINES)
def test_a_value_may_begin_with_a_minus(line):
    name, value = LINES[line]
    assert parsed(*line.split())[name] == value


NO_VALUES = {
    "--tensorboard": "--tensorboard: give it a value", "--lr": "--lr: give it a value",
    "--prior.scale": "--prior.scale: give it a value", "--print_config=3": "it takes no value",
    "--lr --seed 1": "--lr: give it a value", "stray": "stray: an option begins with --",
}  # fmt: skip


@pytest.mark.parametrize("line", NO_VALUES)
def test_a_value_that_is_missing_or_too_much_is_said(line):
    with pytest.raises(ValueError, match=NO_VALUES[line]):
        parsed(*line.split())


@pytest.mark.parametrize(("option", "word"), NO_NUMBERS)
def test_what_is_no_number_is_told_with_what_is(option, word):
    said = f"{option} {word}: "
    with pytest.raises(ValueError, match=re.escape(said)) as caught:
        parsed("--objective", "IWAE", option, word)
    assert NO_NUMBERS[option, word] in str(caught.value)


def test_words_that_are_no_numbers_stay():
    found = parsed("--data", "007", "--out", "0x10", "--device", "1,2")
    assert (found["data"], str(found["out"]), found["device"]) == ("007", "0x10", "1,2")


# Names inside parts -------------------------------------------------------------------------------

SPELT = {
    "ReLU": ("relu", "ReLU", "RELU", "nn.ReLU", "torch.nn.ReLU"),
    "LeakyReLU": ("leaky_relu", "LeakyReLU", "leakyrelu"),
    "SiLU": ("silu", "swish"), "GELU": ("gelu",), "ELU": ("elu",), "Tanh": ("tanh",),
}  # fmt: skip


@pytest.mark.parametrize("name", SPELT)
def test_activations_are_named_as_people_name_them(tmp_path, name):
    for word in SPELT[name]:
        (tmp_path / "run.yaml").write_text(
            f"network: {{class_path: MLP, init_args: {{activation: {word}}}}}\n"
        )
        file = ["--config", str(tmp_path / "run.yaml")]
        for arguments in (["--network.activation", word], file):
            found = parsed(*arguments)["network"].arguments["activation"]
            assert found.path == f"torch.nn.{name}"
    found = parsed("--network", f"MLP(activation={SPELT[name][0]})")["network"]
    assert found.arguments["activation"].path == f"torch.nn.{name}"


def test_other_arguments_that_take_names():
    network = parsed("--network.initialise", "he", "--network.normalise", "BatchNorm1d")["network"]
    assert network.arguments["initialise"].__name__ == "he"
    assert network.arguments["normalise"].name == "BatchNorm1d"
    for option, word, said in (
        ("--network.activation", "relo", "relo: unknown; did you mean"),
        ("--network.initialise", "xavier", "expected glorot, he, orthogonal"),
        ("--objective.beta.schedule", "Lin", "did you mean Linear?"),
    ):
        with pytest.raises(ValueError, match=re.escape(said)):
            parsed("--objective", "BetaVAE", "--objective.beta", "Scheduled", option, word)


def test_an_argument_of_a_part_may_stand_before_its_name():
    before = ["--prior.num_components=3", "--seed", "1", "--prior", "MixtureOfNormals"]
    found = given(parsed(*before)["prior"])
    assert contains(found, ("MixtureOfNormals", {"num_components": 3}))


# Wishes -------------------------------------------------------------------------------------------


def wishes(**given_: float) -> Any:
    return SimpleNamespace(**{"kl_warmup": None, "beta": None, "free_bits": None,
                              "objective": None} | given_)  # fmt: skip


def warmed(end: float) -> Any:
    return ("Scheduled", {"schedule": ("Linear", {"start": 0, "end": end, "until": 0.3})})


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ({"kl_warmup": 0.3}, ("BetaVAE", {"beta": warmed(1.0)})),
        ({"kl_warmup": 0.3, "beta": 4.0}, ("BetaVAE", {"beta": warmed(4.0)})),
        ({"beta": 4.0}, ("BetaVAE", {"beta": 4.0})),
        ({"free_bits": 0.1}, ("FreeBits", {"nats": 0.1})),
    ],
)
def test_a_common_wish_is_one_flag(flags, expected):
    words = [word for flag, value in flags.items()
             for word in (f"--{flag.replace('_', '-')}", str(value))]  # fmt: skip
    config = training_parser().parse(words)
    settle_objective(config)
    assert contains(given(config.objective), expected)
    assert all(vars(config)[flag] is None for flag in flags), "stored with the objective, refused"


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"kl_warmup": 3.0}, "--kl-warmup 3: give a fraction"),
        ({"kl_warmup": 0.0}, "--kl-warmup 0: give a fraction"),
        ({"beta": -1.0}, "--beta -1: give 0 or more"),
        ({"free_bits": 1.0, "beta": 1.0}, "not together with --free-bits"),
        ({"beta": 1.0, "objective": Component("a.IWAE")}, "--objective IWAE"),
    ],
)
def test_wishes_that_contradict_are_refused(flags, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        settle_objective(wishes(**flags))


# Help ---------------------------------------------------------------------------------------------

HELPS = {
    "--prior.help": "StandardNormal",
    "--prior MixtureOfNormals(3) --prior.help": "--prior.num_components",
    "--prior.help MixtureOfNormals": "--prior.num_components  The number of components, K.",
    "--prior.help=VampPrior": "--prior.num_pseudo_inputs",
    "--objective.help": "IWAE ",
    "--objective BetaVAE --objective.beta.help": "Scheduled ",
    "--objective BetaVAE --objective.beta.help Scheduled": "--objective.beta.schedule",
    "--objective BetaVAE --objective.beta Scheduled --objective.beta.schedule.help": "Cosine ",
    "--network.hidden.help": "numbers, as 3,4; default: (500, 500)",
    "--likelihood.help Laplace": "--likelihood.scale",
    "--likelihood Columns --likelihood.columns.help": "a list, as NAME,NAME",
    "--model.help": "HierarchicalVAE ",
}


@pytest.mark.parametrize("line", HELPS)
def test_every_part_has_help_at_any_depth(line, capsys):
    assert main(["train", *line.split(" ")]) == 0
    assert HELPS[line] in " ".join(capsys.readouterr().out.split("\n"))


@pytest.mark.parametrize("line", ["--seed.help", "--objective.beta.help", "--prior.help Nope",
                                  "--prior.num.help"])  # fmt: skip
def test_help_on_nothing_is_refused(line, capsys):
    assert main(["train", *line.split()]) == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_paths_with_brackets_are_paths(tmp_path):
    path = tmp_path / "runs (1)" / "model_in_brackets.py"
    path.parent.mkdir()
    path.write_text(PROGRAM)
    assert parsed("--model", str(path))["model"].arguments == {"file": str(path)}
    found = parsed("--model", f"{path}:MyVAE(hidden=3)", "--data", "x(1).npy")
    assert (given(found["model"])[1]["hidden"], found["data"]) == (3, "x(1).npy")
