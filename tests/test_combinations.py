"""Every pair of parts that ``fit`` does not refuse trains; a refusal says why."""

from __future__ import annotations

import random
import sys
from collections import Counter
from collections.abc import Iterator
from functools import cache, partial
from itertools import combinations
from pathlib import Path

import pytest
import torch
from pyro.infer import Trace_ELBO

from pyro_vae import SVI
from pyro_vae.cli.combinations import (
    Combination,
    kind_of,
    matching_prior,
    objective_of,
    small_parts,
    tables,
)
from pyro_vae.cli.listing import list_components
from pyro_vae.engine.optimizers import adam

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "experiments"))

from combinations import pair

PARTS = small_parts()
AXES = (PARTS.priors, PARTS.likelihoods, PARTS.posteriors, PARTS.objectives)
_TRIES = 40
pytestmark = pytest.mark.filterwarnings("ignore:.*found no sample sites configured for enumeration")


def combined(*names: str) -> Combination:
    return Combination(*((name, axis[name]) for name, axis in zip(names, AXES, strict=True)))


@cache
def refusals(prior: str, posterior: str) -> dict[str, str | None]:
    """The likelihood is left out: ``test_no_likelihood_refuses_another_part`` shows why."""
    return combined(prior, "Bernoulli", posterior, "ELBO").refusals(PARTS.objectives)


def refused(prior: str, posterior: str, objective: str = "ELBO") -> str | None:
    return refusals(prior, posterior)[objective]


def train(combination: Combination, engine: str) -> list[float]:
    vae, x = combination.program()
    torch.manual_seed(1)
    loss = combination.objective[1]()
    svi = SVI(vae.model, vae.guide, partial(adam, lr=1e-3), loss, engine=engine)
    return [float(svi.update(x)) for _ in range(2)]


def covering(pairs_of: tuple[int, ...], *, seed: int = 0) -> Iterator[Combination]:
    """Return combinations in which every legal pair along these axes stands at least once."""
    dice = random.Random(seed)
    open_pairs = {
        ((i, a), (j, b)) for i, j in combinations(pairs_of, 2) for a in AXES[i] for b in AXES[j]
    }
    while open_pairs:
        first = min(open_pairs)
        best: tuple[str, ...] | None = None
        most = 0
        for _ in range(_TRIES):
            names = [dice.choice(list(axis)) for axis in AXES]
            for place, name in first:
                names[place] = name
            found = set(combinations(list(enumerate(names)), 2)) & open_pairs
            if len(found) > most and refused(names[0], names[2], names[3]) is None:
                best, most = tuple(names), len(found)
        if best is None:
            open_pairs.discard(first)  # refused in whatever company: the tables say why
            continue
        open_pairs -= set(combinations(list(enumerate(best)), 2))
        yield combined(*best)


@pytest.mark.parametrize("name", PARTS.likelihoods)
def test_no_likelihood_refuses_another_part(name):
    plain = combined("StandardNormal", name, "DiagonalNormal", "ELBO")
    assert plain.refusal() is None
    other = combined("StandardNormal", name, "Bernoulli", "ELBO").refusal()
    assert other is not None
    assert "'z'" in other


@pytest.mark.parametrize("name", PARTS.posteriors)
def test_every_posterior_has_a_prior_and_trains_with_it(name):
    prior = matching_prior(PARTS, name)
    losses = train(combined(prior, "Bernoulli", name, objective_of(PARTS, name)), "eager")
    assert all(loss == loss and abs(loss) < 1e6 for loss in losses)


def test_reasons_are_told_on_one_line_and_grouped():
    some = type(PARTS)(
        {name: PARTS.priors[name] for name in ("StandardNormal", "Bernoulli")},
        {"Bernoulli": PARTS.likelihoods["Bernoulli"]},
        {name: PARTS.posteriors[name] for name in ("DiagonalNormal", "Bernoulli")},
        {name: PARTS.objectives[name] for name in ("ELBO", "IWAE", "DReG")},
    )
    lines = list(tables(some))
    assert "DiagonalNormal  . a" in lines
    assert "Bernoulli       a ." in lines
    assert "IWAE  . a" in lines
    assert "DReG  . a" in lines  # the same reason but for the objective's name
    reason = refused("StandardNormal", "Bernoulli", "IWAE")
    assert reason is not None
    assert "\n" not in reason
    assert f"a: {kind_of(reason)}" in lines


def test_the_command_offers_the_tables(monkeypatch, capsys):
    monkeypatch.setattr("pyro_vae.cli.combinations.tables", lambda parts: ["a table"])
    list_components(["--combinations"])
    assert capsys.readouterr().out == "a table\n"


class NotFinite(Trace_ELBO):
    def loss_and_grads(self, *args, **kwargs) -> float:
        super().loss_and_grads(*args, **kwargs)
        return float("nan")


class Raising(Trace_ELBO):
    def loss_and_grads(self, *args, **kwargs) -> float:
        raise RuntimeError("it breaks\nin a second line")


def few_parts(**objectives):
    return type(PARTS)(
        {name: PARTS.priors[name] for name in ("StandardNormal", "Bernoulli")},
        {name: PARTS.likelihoods[name] for name in ("Bernoulli", "Normal", "Categorical")},
        {name: PARTS.posteriors[name] for name in ("DiagonalNormal", "Bernoulli")},
        {name: PARTS.objectives[name] for name in ("ELBO", "IWAE")} | objectives,
    )


def test_the_whole_product_is_counted():
    parts = few_parts()
    reason = refused("Bernoulli", "Bernoulli", "IWAE")
    assert reason is not None
    found = pair(parts, "Bernoulli", "Bernoulli")
    assert (found.legal, found.trained, found.failed) == (3, 3, {})
    assert found.refused == Counter({kind_of(reason): 3})
    whole = pair(parts, "StandardNormal", "Bernoulli")
    assert (whole.legal, whole.trained, whole.refused.total()) == (0, 0, 6)
    whole.add(found)
    assert (whole.legal, whole.trained, whole.refused.total()) == (3, 3, 9)


def test_what_fails_in_the_product_is_named():
    found = pair(few_parts(A=NotFinite, B=Raising), "StandardNormal", "DiagonalNormal")
    assert (found.legal, found.trained) == (12, 12)
    assert found.failed.keys() == {
        f"StandardNormal, {likelihood}, DiagonalNormal, {objective}"
        for likelihood in ("Bernoulli", "Normal", "Categorical")
        for objective in "AB"
    }
    (raised,) = {error for error in found.failed.values() if "RuntimeError" in error}
    assert "RuntimeError: it breaks" in raised


def test_a_share_of_the_product_is_trained():
    found = pair(few_parts(), "StandardNormal", "DiagonalNormal", share=0.4)
    assert found.legal == 6
    assert 0 < found.trained < 6


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:running eagerly")
@pytest.mark.parametrize("engine", ["eager", "recorded"])
def test_every_legal_pair_of_parts_trains_two_steps(engine):
    seen = 0
    for combination in covering((0, 1, 2, 3)):
        losses = train(combination, engine)
        assert all(map(torch.isfinite, map(torch.tensor, losses))), combination.names
        seen += 1
    assert seen > max(len(axis) for axis in AXES) ** 2 / 4


@pytest.mark.slow
def test_every_legal_pair_of_prior_and_posterior_trains_two_steps():
    for combination in covering((0, 2)):
        losses = train(combination, "eager")
        assert all(map(torch.isfinite, map(torch.tensor, losses))), combination.names
