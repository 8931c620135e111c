"""Data are held against the support of the likelihood before anything is trained."""

from __future__ import annotations

import math
import re
from functools import partial

import pytest
import torch
from laws import PROGRAMS, binary

from pyro_vae import SVI, components
from pyro_vae.components import (
    MLP,
    Automatic,
    Bernoulli,
    Binomial,
    Categorical,
    CategoricalSequence,
    Columns,
    ContinuousBernoulli,
    DiscretizedLogistic,
    Incomplete,
    LogitNormal,
    Multinomial,
    Normal,
    StraightThroughBernoulli,
    StraightThroughCategorical,
    VampPrior,
)
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import ELBO, Probe, Program, check_support
from pyro_vae.inference import support as support_module
from pyro_vae.models import VAE


def check(likelihood, x: torch.Tensor) -> None:
    network = partial(MLP, hidden=(4,))
    vae = VAE.assemble(tuple(x.shape[1:]), (2,), likelihood=likelihood, network=network)
    program = Program(vae.model, vae.guide)
    check_support(Probe(program, x), x)


def with_value(x: torch.Tensor, value: float) -> torch.Tensor:
    x = x.clone()
    x[3, 1] = value
    return x


GREY = torch.linspace(0, 1, 24).reshape(6, 4)
BITS = binary(6, 4).float()
COUNTS = torch.arange(24.0).reshape(6, 4) % 17

TABLE = partial(
    Columns, columns=[Normal, Bernoulli, partial(Categorical, num_categories=17), Normal]
)
ROWS = torch.stack([GREY[:, 0], BITS[:, 1], COUNTS[:, 2], -COUNTS[:, 3]], 1)

GOOD = [
    (Bernoulli, BITS),
    (Binomial, COUNTS),
    (partial(Binomial, total_count=1), BITS),
    (Normal, GREY * 300 - 20),
    (partial(Automatic, distribution="Poisson"), COUNTS),
    (partial(Automatic, distribution="Beta"), GREY * 0.9 + 0.05),
    (partial(Automatic, distribution="Gamma"), GREY + 0.1),
    (ContinuousBernoulli, GREY),
    (Categorical, COUNTS),
    (DiscretizedLogistic, COUNTS),
    (Multinomial, COUNTS),
    (CategoricalSequence, COUNTS.fliplr().sort(1, descending=True).values),
    (TABLE, ROWS),
    (Incomplete, with_value(GREY, torch.nan)),
    (partial(Incomplete, family=Bernoulli), with_value(BITS, torch.nan)),
    (partial(Incomplete, family=TABLE), with_value(ROWS, torch.nan)),
]
BAD = [
    (Bernoulli, GREY, r"'x' is Bernoulli.*0 or 1.*index \(0, 1\) is 0.04.*binarise.*Normal"),
    (Bernoulli, COUNTS, r"index \(0, 2\) is 2 .*range 0 to 16.*binarise.*total_count=16"),
    (Bernoulli, with_value(BITS, -1), r"index \(3, 1\) is -1"),
    (Bernoulli, with_value(BITS, torch.nan), r"nan at index \(3, 1\), and 1"),
    (partial(Binomial, total_count=9), COUNTS, r"integers 0 to 9.*is 10.*value to 16"),
    (Binomial, GREY, r"integers 0 to 16.*is 0.04"),
    (Binomial, with_value(COUNTS, -3), r"index \(3, 1\) is -3.*Normal"),
    (Normal, with_value(GREY, torch.nan), r"nan at index \(3, 1\), and 1.*Incomplete.*Normal"),
    (Normal, with_value(GREY, torch.inf), r"inf at index \(3, 1\), and 1"),
    (Binomial, with_value(COUNTS, torch.inf), r"inf at index \(3, 1\), and 1"),
    (partial(Automatic, distribution="Poisson"), with_value(COUNTS, 0.5), r"\(3, 1\) is 0.5"),
    (partial(Automatic, distribution="Gamma"), with_value(GREY + 1, -2), r"\(3, 1\) is -2"),
    (partial(Automatic, distribution="Dirichlet"), GREY, r"index \(0,\) is a row"),
    (Incomplete, with_value(GREY, torch.inf), r"inf at index \(3, 1\), and 1.*repair"),
    (partial(Incomplete, family=Bernoulli), with_value(BITS, 2.0), r"0 or 1, .*\(3, 1\) is 2"),
    (ContinuousBernoulli, COUNTS, r"from 0 to 1, .*integers: .*Binomial.*16.*Poisson.*Dequantize"),
    (ContinuousBernoulli, GREY * 2, r"from 0 to 1, .*range 0 to 2.*Normal, Laplace or StudentT"),
    (LogitNormal, GREY, r"above 0 and below 1, .*ContinuousBernoulli, or Normal"),
    (Bernoulli, GREY * 0.9 + 0.05, r"ContinuousBernoulli, Beta or LogitNormal, or Normal"),
    (partial(Automatic, distribution="Gamma"), -COUNTS - 1, "Normal, Laplace or StudentT"),
    (partial(Automatic, distribution="Poisson"), GREY, r"0, 1, 2.*AsFloat.*ContinuousBernoulli"),
    (partial(Categorical, num_categories=9), COUNTS, r"0 to 8, .*is 9"),
    (Multinomial, with_value(COUNTS, 0.5), r"rows of counts.*index \(3,\) is a row"),
    (CategoricalSequence, COUNTS, r"nothing but 0 after the first 0.*index \(0,\) is a row"),
    (TABLE, with_value(ROWS, 0.5), r"0 or 1, .*index \(3, 1\) is 0.5 .*range 0 to 1.*grey"),
    (partial(Incomplete, family=TABLE), with_value(ROWS, 3.0), r"0 or 1, .*index \(3, 1\) is 3"),
]


@pytest.mark.parametrize(("likelihood", "x"), GOOD)
def test_good_data_pass(likelihood, x: torch.Tensor) -> None:
    check(likelihood, x)


@pytest.mark.parametrize(("likelihood", "x", "said"), BAD)
def test_bad_data_are_named(likelihood, x: torch.Tensor, said: str) -> None:
    with pytest.raises(ValueError, match=said) as caught:
        check(likelihood, x)
    assert "\n" not in str(caught.value)
    assert "site 'x'" in str(caught.value)


UNIT = torch.rand(8, 4, generator=torch.Generator().manual_seed(0)) * 0.8 + 0.1
ROWS_OF_ONE = UNIT / UNIT.sum(1, keepdim=True)
MIXED = partial(Columns, columns=[Normal, partial(Automatic, distribution="Gamma"), Normal, Normal])
EDGES = [
    *((name, UNIT, edge) for name in ("Beta", "Kumaraswamy") for edge in (0.0, 1.0)),
    *((LogitNormal, UNIT, edge) for edge in (0.0, 1.0)),
    *((name, UNIT, 0.0) for name in ("Gamma", "LogNormal", "Weibull", "InverseGamma", "Chi2")),
    *((name, 3 * UNIT, 0.0) for name in ("Gamma", "LogNormal", "FisherSnedecor")),
    ("Gamma", (9 * UNIT).round(), 0.0),
    (MIXED, UNIT, 0.0),
    (partial(Incomplete, family=partial(Automatic, distribution="Gamma")), UNIT, 0.0),
]
CLOSED = [
    *((ContinuousBernoulli, UNIT, edge) for edge in (0.0, 1.0)),
    *((name, UNIT, 0.0) for name in ("Exponential", "HalfNormal", "HalfCauchy", "VonMises")),
    (partial(Automatic, distribution="Pareto", scale=0.1), UNIT + 0.1, 0.1),
    (partial(Automatic, distribution="Gamma", concentration=1.0), UNIT, 0.0),
]


def family(name):
    return named(name) if isinstance(name, str) else name


def named(name: str):
    return getattr(components, name, None) or partial(Automatic, distribution=name)


def take_a_step(likelihood, x: torch.Tensor) -> None:
    check(likelihood, x)
    network = partial(MLP, hidden=(4,))
    vae = VAE.assemble(tuple(x.shape[1:]), (2,), likelihood=likelihood, network=network, data=x)
    svi = SVI(vae.model, vae.guide, adam, ELBO(), engine="eager")
    assert math.isfinite(float(svi.step(x)))
    assert all(bool(p.isfinite().all()) for p in vae.parameters())


@pytest.mark.parametrize(("likelihood", "x", "edge"), CLOSED)
def test_a_bound_with_a_density_passes(likelihood, x: torch.Tensor, edge: float) -> None:
    take_a_step(family(likelihood), with_value(x, edge))


@pytest.mark.parametrize(("likelihood", "x", "edge"), EDGES)
def test_a_bound_without_a_density_is_named_and_each_cure_cures(
    likelihood, x: torch.Tensor, edge: float
) -> None:
    x = with_value(x, edge)
    with pytest.raises(ValueError, match=rf"index \(3, 1\) is {edge:g}[ ,].*; 1 such\)") as caught:
        check(family(likelihood), x)
    said = str(caught.value)
    assert not isinstance(likelihood, str) or f"is {likelihood}, whose" in said
    cures = re.findall(r"\b[A-Z]\w+", said.partition(" such); ")[2])
    assert len(cures) > 1
    for cure in {*cures} - {"Binomial", "Dequantize", "AsFloat", "Binarize"}:
        number = {"num_categories": 10} if cure == "Categorical" else {}
        take_a_step(partial(named(cure), **number), x)


def test_a_row_with_a_zero_is_named_and_the_cure_cures() -> None:
    x = ROWS_OF_ONE.clone()
    x[5] = torch.tensor([0.0, 0.5, 0.25, 0.25])
    with pytest.raises(
        ValueError, match=r"Dirichlet.*index \(5,\) .*not finite.*; 1 such\)"
    ) as caught:
        check(named("Dirichlet"), x)
    assert "(x + 0.001) / (1 + 0.001 * D)" in str(caught.value)
    take_a_step(named("Dirichlet"), (x + 0.001) / (1 + 0.001 * 4))
    take_a_step(Normal, x)


@pytest.mark.parametrize("value", [7, torch.nan])
def test_the_index_is_right_in_a_later_chunk(monkeypatch: pytest.MonkeyPatch, value: float) -> None:
    monkeypatch.setattr(support_module, "_CHUNK_ELEMENTS", 4)
    with pytest.raises(ValueError, match=r"index \(3, 1\)"):
        check(Bernoulli, with_value(BITS, value))


@pytest.mark.parametrize("seed", range(8))
def test_latents_that_fit_the_prior_by_chance_are_refused(seed: int) -> None:
    """One draw of four bits is one of four categories once in four times."""
    torch.manual_seed(seed)
    parts = {"prior": StraightThroughCategorical, "posterior": StraightThroughBernoulli}
    vae = VAE.assemble((4,), (4,), network=partial(MLP, hidden=(4,)), **parts)
    program = Program(vae.model, vae.guide)
    with pytest.raises(ValueError, match="whose values a StraightThroughCategorical"):
        check_support(Probe(program, binary(30, 4).float()), binary(30, 4).float())


def test_a_prior_of_components_with_bounds_of_their_own_passes() -> None:
    x = binary(30, 4).float()
    prior, network = partial(VampPrior, num_pseudo_inputs=3), partial(MLP, hidden=(4,))
    vae = VAE.assemble((4,), (4,), prior=prior, posterior=Binomial, network=network, data=x)
    program = Program(vae.model, vae.guide)
    check_support(Probe(program, x), x)


@pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS.keys())
def test_every_program_of_the_table_passes(build) -> None:
    pair = build()
    program = Program(pair.model, pair.guide)
    state = torch.get_rng_state()
    check_support(Probe(program, *pair.args), *pair.args)
    assert torch.equal(state, torch.get_rng_state())
