"""What a part states of itself is all that the command line, the tables and the README need."""

from __future__ import annotations

import importlib
import re
from pathlib import Path

import pytest
import torch
import yaml
from command import TINY, write_data

import pyro_vae.components
import pyro_vae.inference
from pyro_vae.cli import main
from pyro_vae.cli.classes import named
from pyro_vae.cli.combinations import Combination, matching_posterior, small_parts
from pyro_vae.cli.names import ROLES, by_data, hints, known_as, offered, plain, stated

README = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
SYNONYMS = [
    (option, name, synonym)
    for option in ROLES
    for name, part in offered(option).items()
    for synonym in stated(part, "synonyms", ())
]
# What people write in papers and chats, and the part that it is, in one role or more.
EXACTLY = {
    "IAF": ({"posterior", "prior"}, "InverseAutoregressive"),
    "MAF": ({"posterior", "prior"}, "MaskedAutoregressive"),
    "RealNVP": ({"posterior", "prior"}, "AffineCoupling"),
    "Real-NVP": ({"prior"}, "AffineCoupling"),
    "NSF": ({"posterior", "prior"}, "NeuralSpline"),
    "MoG": ({"prior", "posterior", "likelihood"}, "MixtureOfNormals"),
    "GMM": ({"prior"}, "MixtureOfNormals"),
    "vMF": ({"posterior"}, "VonMisesFisher"),
    "gru": ({"network", "encoder"}, "Recurrent"),
    "GRU": ({"decoder"}, "RecurrentDecoder"),
    "CNN": ({"network", "encoder", "decoder"}, "Convolutional"),
    "BCE": ({"likelihood"}, "Bernoulli"),
    "Gaussian": ({"posterior", "prior"}, "DiagonalNormal"),
    "gaussian": ({"likelihood"}, "Normal"),
    "gumbel-softmax": ({"posterior"}, "Concrete"),
    "CVAE": ({"model"}, "ConditionalVAE"),
    "mlp": ({"network"}, "MLP"),
    "vampprior": ({"prior"}, "VampPrior"),
    "iwae": ({"objective"}, "IWAE"),
    "laplace": ({"likelihood"}, "Laplace"),
}
NEARLY = {
    ("prior", "MADE"): "MaskedAutoregressive",
    ("likelihood", "PixelCNN++"): "LogisticLevels",
    ("likelihood", "mse"): "Normal",
    ("encoder", "LSTM"): "Recurrent",
    ("decoder", "LSTM"): "RecurrentDecoder",
    ("objective", "REINFORCE"): "ELBO",
    ("prior", "delta-VAE"): "AutoregressiveNormal",
}


@pytest.mark.parametrize("name", EXACTLY)
def test_the_fields_abbreviations_are_the_parts(name):
    options, part = EXACTLY[name]
    for option in options:
        assert named(option, name).rpartition(".")[2] == part


@pytest.mark.parametrize(("option", "name"), NEARLY)
def test_what_is_nearly_a_part_leads_to_it_in_one_sentence(option, name):
    with pytest.raises(
        ValueError, match=f"^--{option} {re.escape(name)}: .*{NEARLY[option, name]}"
    ):
        named(option, name)


@pytest.mark.parametrize(("option", "name", "synonym"), SYNONYMS)
def test_a_synonym_is_one_part_however_it_is_written(option, name, synonym):
    meant = known_as(synonym, option)
    assert meant is not None
    assert synonym in stated(offered(option)[meant], "synonyms", ())
    for written in (synonym.lower(), synonym.upper()):
        assert known_as(written, option) == meant
    at_home = [
        part
        for part in offered(option).values()
        if synonym in stated(part, "synonyms", ()) and stated(part, "roles", (option,))[0] == option
    ]
    assert len(at_home) <= 1 or {"prior", "likelihood", "posterior"} >= {option}


@pytest.mark.parametrize("option", ROLES)
def test_names_that_are_nearly_parts_are_no_parts_and_lead_to_some(option):
    everything = {name for other in ROLES for name in offered(other)}
    for name, sentence in hints(option).items():
        assert known_as(name, option) is None
        assert any(part in sentence for part in everything)
        assert "\n" not in sentence


def test_a_name_in_another_case_is_taken_only_where_one_is_meant():
    for option in ROLES:
        names = [plain(name) for name in offered(option)]
        assert len(names) == len(set(names))


def test_likelihoods_are_grouped_by_their_kind_of_data(capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out.partition("--likelihood\n")[2].partition("\n\n")[0]
    groups = re.split(r"^ of (.*):\n", shown, flags=re.MULTILINE)[1:]
    found = dict(zip(groups[::2], groups[1::2], strict=True))
    assert found.keys() == by_data().keys()
    for kind, lines in found.items():
        assert re.findall(r"^  (\w+)", lines, re.MULTILINE) == list(by_data()[kind])


# Documentation ------------------------------------------------------------------------------------


def undocumented(text: str) -> set[str]:
    """Return the offered parts that a text does not name in code."""
    tables = "\n".join(line for line in text.splitlines() if line.startswith("|"))
    said = {name for code in re.findall(r"`([^`]+)`", tables) for name in re.findall(r"\w+", code)}
    options = ("prior", "likelihood", "posterior", "network", "objective")
    return {name for option in options for name in offered(option)} - said


def test_the_readme_has_every_part_in_its_tables():
    assert undocumented(README) == set()


# A new part ---------------------------------------------------------------------------------------

FILE = '''
"""A likelihood and an objective, as their authors would write them."""

import pyro.distributions as dist

from pyro_vae.components import Family
from pyro_vae.distributions import positive
from pyro_vae.inference import ELBO


class Peaked(Family):
    """Independent numbers with a peak that has no corner.

    Args:
        event_shape: The shape of one event.
        tails: How heavy the tails are.
    """

    roles = ("likelihood",)
    data = "peaked numbers"
    example = {"tails": 2.0}
    synonyms = ("SoftPeak",)
    near = {"Peak": "with a corner it is Laplace, without one Peaked"}

    def __init__(self, event_shape, tails: float):
        super().__init__(event_shape, raw_shape=(2, *event_shape))
        self.tails = tails

    def forward(self, raw):
        loc, raw_scale = raw.unbind(-1 - len(self.event_shape))
        peaked = dist.SoftLaplace(loc, self.tails * positive(raw_scale))
        return peaked.to_event(len(self.event_shape))


class Pessimist(ELBO):
    """The evidence lower bound, followed twice as far."""

    synonyms = ("Worrier",)

    def surrogate(self, terms):
        return 2 * super().surrogate(terms)
'''


@pytest.fixture
def added(tmp_path, monkeypatch):
    """Add a likelihood and an objective as one does: a file, a name in ``__all__``, a line."""
    (tmp_path / "added_parts.py").write_text(FILE)
    monkeypatch.syspath_prepend(tmp_path)
    module = importlib.import_module("added_parts")
    for package, name in ((pyro_vae.components, "Peaked"), (pyro_vae.inference, "Pessimist")):
        monkeypatch.setattr(package, name, getattr(module, name), raising=False)
        monkeypatch.setattr(package, "__all__", [*package.__all__, name])
    return tmp_path


def test_a_new_part_is_listed_named_run_judged_and_missed_in_the_readme(added, monkeypatch, capsys):
    assert main(["list"]) == 0
    shown = capsys.readouterr().out
    assert " of peaked numbers:\n  Peaked " in shown
    assert "  Pessimist " in shown
    assert "Also Worrier." in shown

    write_data(added)
    monkeypatch.chdir(added)
    parts = ["--likelihood", "soft-peak(tails=2.0)", "--objective", "Worrier"]
    assert main(["train", "--data", "real.npy", *TINY, *parts, "--out", "run"]) == 0
    stored = yaml.safe_load(Path("run/config.yaml").read_text())
    assert stored["likelihood"]["class_path"] == "added_parts.Peaked"
    assert stored["objective"]["class_path"] == "added_parts.Pessimist"
    with pytest.raises(ValueError, match="--likelihood Peak: with a corner it is Laplace"):
        named("likelihood", "Peak")
    with pytest.raises(ValueError, match="Peaked serves as --likelihood, not as the prior"):
        named("prior", "Peaked")

    table = small_parts()
    assert table.likelihoods["Peaked"]((4,)).tails == 2.0
    combination = Combination(
        ("StandardNormal", table.priors["StandardNormal"]),
        ("Peaked", table.likelihoods["Peaked"]),
        ("DiagonalNormal", table.posteriors["DiagonalNormal"]),
        ("Pessimist", table.objectives["Pessimist"]),
    )
    assert combination.refusal() is None
    vae, x = combination.program()
    assert torch.isfinite(torch.tensor(combination.objective[1]().loss(vae.model, vae.guide, x)))

    assert undocumented(README) == {"Peaked", "Pessimist"}
    assert undocumented(README + "\n| `Peaked`, `Pessimist` | |") == set()


def test_every_prior_has_a_posterior():
    parts = small_parts()
    for name in ("UniformSphere", "Bernoulli", "StandardNormal"):
        found = matching_posterior(parts, name)
        expected = {"UniformSphere": "VonMisesFisher", "Bernoulli": "Bernoulli"}
        assert found == expected.get(name, "DiagonalNormal")
