"""Values of a command line and of a file, by the types that arguments are annotated with."""

from __future__ import annotations

import collections.abc
import enum
import re
from pathlib import Path
from typing import Any, Literal

import pytest
import yaml
from torch import nn

from pyro_vae.cli.components import Component, as_stored, built
from pyro_vae.cli.config_files import read_config, refuse_changes, refuse_edited
from pyro_vae.cli.options import training_parser
from pyro_vae.cli.parser import as_dict, as_text
from pyro_vae.cli.values import read
from pyro_vae.components import Normal
from pyro_vae.inference import BetaVAE, Schedule
from pyro_vae.inference.schedules import Linear, Scheduled


class Mode(enum.Enum):
    FAST = 1
    SLOW = 2


class Rich:
    """A class of a user's, with arguments of many types."""

    def __init__(
        self,
        mode: Mode = Mode.FAST,
        sizes: dict[str, int] | None = None,
        untyped=None,
        build: collections.abc.Callable[[int], nn.Module] = nn.BatchNorm1d,
    ) -> None:
        self.given = mode, sizes, untyped, build


RELU = Component("torch.nn.ReLU")
# By type: what is typed, and the value that Python has for it.
VALUES: dict[Any, dict[Any, Any]] = {
    int: {"3": 3, "-3": -3, "1e3": 1000, 3: 3},
    float: {"3": 3.0, ".5": 0.5, "-1e-3": -0.001, 3: 3.0, float("inf"): float("inf")},
    int | float: {"3": 3, "3.0": 3.0, 2.5: 2.5},
    bool: {"yes": True, "False": False, True: True},
    bool | None: {"null": None, None: None, "on": True},
    str: {"3": "3", "null": "null", "a,b": "a,b", "": ""},
    str | None: {"null": None, "none": "none"},
    Path | None: {"~/a b": Path("~/a b"), "null": None, "3": Path("3")},
    Literal["a", "b"]: {"a": "a"},
    Literal[1, 2] | None: {"2": 2, 1: 1, "null": None},
    Mode: {"SLOW": Mode.SLOW},
    list[int]: {"3": [3], "3,4": [3, 4], "(3, 4)": [3, 4], "[]": []},
    tuple[float, ...]: {"1 2.5": (1.0, 2.5)},
    int | collections.abc.Sequence[int]: {"3": 3, "3,4": [3, 4]},
    list[str]: {"a,b": ["a", "b"]},
    list[nn.Module]: {"ReLU, relu()": [RELU, RELU]},
    dict[str, int]: {"{a: 1}": {"a": 1}},
    Any: {"3": 3, "0.5": 0.5, "1e1": 10, "text": "text", "[1, a]": [1, "a"], "null": None},
    type[nn.GRU] | type[nn.LSTM]: {"LSTM": nn.LSTM, "torch.nn.GRU": nn.GRU},
    collections.abc.Callable[[], nn.Module]: {"nn.ReLU": RELU, "torch.nn.ReLU": RELU},
    float | Schedule: {"2": 2.0, "Linear(1)": Component(
        "pyro_vae.inference.schedules.Linear", {"start": 1.0})},
}  # fmt: skip
EACH = [(hint, word, value) for hint, words in VALUES.items() for word, value in words.items()]


@pytest.mark.parametrize(("hint", "word", "value"), EACH)
def test_a_word_is_a_value_of_the_type(hint: Any, word: Any, value: Any) -> None:
    found = read("--x", hint, word)
    assert found == value
    assert type(found) is type(value)
    again = as_stored(read("--x", hint, as_stored(found)))
    assert again == as_stored(value), "a stored value is read as it was"


WRONG: dict[Any, dict[Any, str]] = {
    int: {"1.5": "a whole number", "x": "a whole number", "": "a whole number", True: "whole"},
    float: {"nan": "a finite number", "1e400": "a finite number", "1,5": "without a comma: 1.5"},
    bool: {"maybe": "true or false", 1: "true or false"},
    Literal["a", "b"]: {"c": "choose from 'a', 'b'"},
    Mode: {"QUICK": "choose from 'FAST', 'SLOW'"},
    list[int]: {"a": "such as 300,300", "": "such as 300,300", None: "such as 300,300"},
    nn.Module: {"relo": "did you mean ReLU", "3": "unknown", "os.system": "not a class derived"},
    Path: {3: "the name of a file or folder"},
}
EVERY_WRONG = [(hint, word, said) for hint, words in WRONG.items() for word, said in words.items()]


@pytest.mark.parametrize(("hint", "word", "said"), EVERY_WRONG)
def test_another_word_is_refused_with_what_would_do(hint: Any, word: Any, said: str) -> None:
    with pytest.raises(ValueError, match=f"^--x.*{said}"):
        read("--x", hint, word)


def test_objects_are_those_of_python() -> None:
    option = "--objective"
    words = [option, "BetaVAE", f"{option}.beta", "Scheduled(Linear(0, until=0.2))"]
    config = training_parser().parse([*words, "--likelihood", "Normal(scale=0.5)"])
    found = built(option, BetaVAE, config.objective)
    assert type(found) is BetaVAE
    assert repr(found.beta) == repr(Scheduled(Linear(0.0, until=0.2)))
    hint = collections.abc.Callable[[tuple[int, ...]], nn.Module]
    likelihood = built("--likelihood", hint, config.likelihood)((3,))
    assert repr(likelihood) == repr(Normal((3,), scale=0.5))


def test_a_class_of_many_types_is_built_and_stored() -> None:
    part = Component(f"{__name__}.Rich", {"mode": Mode.SLOW, "sizes": {"a": 1}})
    mode, sizes, untyped, build = built("--model", Rich, part).given
    assert (mode, sizes, untyped, build) == (Mode.SLOW, {"a": 1}, None, nn.BatchNorm1d)
    assert as_stored(part)["init_args"]["mode"] == "SLOW"
    assert as_stored(part.with_arguments(mode=None))["init_args"]["mode"] is None, "no default"
    assert "untyped" not in as_stored(part.with_arguments(untyped=None))["init_args"]
    assert as_stored(part)["init_args"]["build"]["class_path"] == "torch.nn.BatchNorm1d"


def test_what_a_builder_is_called_with_need_not_be_given() -> None:
    builders = {
        collections.abc.Callable[[int], nn.Module]: ("BatchNorm1d", {}),
        collections.abc.Callable[[int, int], nn.Module]: ("torch.nn.Linear", {}),
        collections.abc.Callable[..., nn.Module]: ("torch.nn.Linear", {}),
    }
    for hint, (name, arguments) in builders.items():
        assert read("--x", hint, name).arguments == arguments
        assert isinstance(built("--x", hint, read("--x", hint, name))(3, 3), nn.Module)
    for hint in (collections.abc.Callable[[int], nn.Module], nn.Module):
        with pytest.raises(ValueError, match=r"^--x: give .*--x.out_features too"):
            built("--x", hint, read("--x", hint, "torch.nn.Linear"))


@pytest.mark.parametrize("role", ["likelihood", "model", "objective", "observation", "encoder"])
def test_a_role_may_be_left_to_the_data_again(role: str, tmp_path) -> None:
    (tmp_path / "run.yaml").write_text(f"{role}: null\n")
    for words in ([f"--{role}", "null"], ["--config", str(tmp_path / "run.yaml")]):
        assert vars(training_parser().parse(words))[role] is None


@pytest.mark.parametrize(("role", "own"), [("prior", "UniformCodes"), ("posterior", "NearestCode")])
def test_a_family_may_be_left_to_the_program_again(role: str, own: str) -> None:
    config = training_parser().parse(["--model", "VQVAE", f"--{role}", "null"])
    assert vars(config)[role].name == own


@pytest.mark.parametrize("role", ["network", "schedule"])
def test_a_role_that_has_to_be_is_not_left_out(role: str) -> None:
    with pytest.raises(ValueError, match=f"^--{role} null: "):
        training_parser().parse([f"--{role}", "null"])


# Files of earlier versions ------------------------------------------------------------------------

OLD = """
data: digits
data_root: /data
observation:
  class_path: pyro_vae.engine.AsFloat
model:
  class_path: pyro_vae.models.VAE
prior:
  class_path: pyro_vae.components.posteriors.DiagonalNormal
likelihood:
  class_path: pyro_vae.components.automatic.Laplace
  init_args: {}
posterior:
  class_path: pyro_vae.components.InverseAutoregressive
  init_args:
    num_flows: 2
    num_context: 16
network:
  class_path: pyro_vae.components.MLP
  init_args:
    hidden:
    - 500
    activation:
      class_path: torch.nn.SiLU
      init_args:
        inplace: false
    initialise: pyro_vae.components.networks.he
latent: 40
objective:
  class_path: pyro_vae.inference.regularized.BetaVAE
  init_args:
    beta:
      class_path: pyro_vae.inference.schedules.Scheduled
      init_args:
        schedule:
          class_path: pyro_vae.inference.schedules.Linear
          init_args:
            start: 0.0
            end: 1.0
            until: 0.3
    num_particles: 1
epochs: 30
batch_size: 128
lr: 0.001
schedule:
  class_path: pyro_vae.inference.Cosine
  init_args:
    final: 0.0
num_samples: 1000
weights: best
engine: auto
precision: float32
device: auto
seed: 0
tensorboard: false
"""


def test_the_options_of_an_earlier_version_are_read_and_stay_what_they_were(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(OLD)
    parser = training_parser()
    stored = parser.read_file(path, set())
    found = as_dict(parser.config(stored))
    expected = yaml.safe_load(OLD)
    del expected["likelihood"]["init_args"]
    assert found.pop("network")["init_args"]["hidden"] == [500]
    expected.pop("network")
    assert found == expected
    path.write_text(as_text(as_dict(parser.config(stored))))
    again = parser.read_file(path, set())
    assert as_dict(parser.config(again)) == as_dict(parser.config(stored))
    renamed = parser.read_line(["--prior", "DiagonalNormal", "--posterior", "IAF", "--lr", "0.01"])
    changed = as_dict(parser.config(stored, renamed))
    assert refuse_changes(tmp_path, as_dict(parser.config(stored)), changed), "the rate has changed"


def test_an_argument_that_was_renamed_is_read_by_its_class_alone(tmp_path) -> None:
    path = tmp_path / "config.yaml"
    old = {
        "class_path": "pyro_vae.evaluation.aggressive.Aggressive",
        "init_args": {"num_judged": 9},
    }
    path.write_text(yaml.safe_dump({"turns": old, "model": {"init_args": {"num_judged": 8}}}))
    found = read_config(path, set())
    assert found["turns"]["init_args"] == {"num_data": 9}
    assert found["model"]["init_args"] == {"num_judged": 8}


def test_a_class_that_has_moved_is_no_edit(tmp_path) -> None:
    before = {
        "model": {"class_path": "pyro_vae.cli.parts.Functions", "init_args": {"file": "a.py"}},
        "objective": {"class_path": "pyro_vae.inference.objectives.IWAE"},
        "network": {"init_args": {"initialise": "pyro_vae.components.networks.he"}},
    }
    now = {
        "model": {"class_path": "pyro_vae.cli.user_files.Functions", "init_args": {"file": "b.py"}},
        "objective": {"class_path": "pyro_vae.inference.IWAE"},
        "network": {"init_args": {"initialise": "pyro_vae.components.he"}},
    }
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump(now))
    refuse_edited(path, yaml.safe_dump(before))
    path.write_text(yaml.safe_dump(now | {"objective": {"class_path": "pyro_vae.inference.ELBO"}}))
    with pytest.raises(ValueError, match="was edited: it has --objective"):
        refuse_edited(path, yaml.safe_dump(before))


HELD = [
    None, True, 2.5, float("nan"), "", "IWAE(", 10**30, b"x", [], [None], [[1]], {}, {"a": 1},
    {"class_path": None}, {"class_path": "MLP", "init_args": []}, {"init_args": "x"},
    {"class_path": "MLP", "init_args": {"hidden": {"a": 1}}}, {"class_path": {"class_path": "x"}},
    {"class_path": "MLP", "init_args": {1: 2}}, {"class_path": "Normal", "extra": 1},
]  # fmt: skip
PLACES = ("network", "model", "prior.class_path", "network.hidden", "latent", "epochs", "missing",
          "tensorboard", "init_from", "weights", 3, "a.b")  # fmt: skip


@pytest.mark.parametrize("place", PLACES)
def test_whatever_a_file_holds_is_read_or_refused_in_one_line(place: Any, tmp_path) -> None:
    parser, path = training_parser(), tmp_path / "run.yaml"
    for held in HELD:
        path.write_text(yaml.safe_dump({place: held}))
        said = ""
        try:
            as_text(as_dict(parser.config(parser.read_file(path, set()))))
        except ValueError as error:
            said = str(error)
        assert not re.search("\n|NoneType", said), said


def test_a_class_that_is_named_again_keeps_its_arguments_and_another_does_not() -> None:
    parser = training_parser()
    first = parser.read_line(["--prior", "MoG(3)", "--network", "MLP(8)"])
    config = parser.config(first, parser.read_line(["--prior", "MoG", "--network", "Residual"]))
    assert config.prior.arguments == {"num_components": 3}
    assert config.network.arguments == {}
