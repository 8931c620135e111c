"""Every evaluation is called as ``fit`` is: with a program or its two functions, and any array."""

from __future__ import annotations

import copy
import json
import math
from functools import partial

import pytest
import torch

from pyro_vae import VAE, evaluation, fit, laboratory
from pyro_vae.components import MLP, Normal
from pyro_vae.evaluation import Estimate
from pyro_vae.inference import ELBO, IWAE, Probe, Program

FEW = {"num_temperatures": 2, "num_chains": 1, "num_steps": 1, "engine": "eager"}
X = torch.linspace(-1, 1, 12).view(4, 3)

OF_BOTH = {
    "elbo": evaluation.elbo,
    "log_likelihood": partial(evaluation.log_likelihood, num_samples=2),
    "importance_sampling": partial(evaluation.importance_sampling, num_samples=2),
    "annealing": partial(evaluation.annealed_importance_sampling, **FEW),
    "refine": partial(evaluation.refine, num_updates=1, num_samples=2, engine="eager"),
    "sample_posterior": partial(
        evaluation.sample_posterior, num_chains=1, num_transitions=1, engine="eager"
    ),
    "posterior_means": evaluation.posterior_means,
    "unit_activity": evaluation.unit_activity,
    "mutual_information": evaluation.mutual_information,
    "observed": evaluation.observed,
    "reconstruct": evaluation.reconstruct,
    "reconstruct_from_top": evaluation.reconstruct_from_top,
    "traverse": partial(evaluation.traverse, num_steps=2),
    "interpolate": lambda *args, **kwargs: evaluation.interpolate(*args, X.flip(0), **kwargs),
}
OF_MODEL = {
    "prior_samples": lambda *args: evaluation.prior_samples(*args, 4),
    "resample_below": partial(evaluation.resample_below, num_samples=2),
    "manifold": partial(evaluation.manifold, num_steps=2),
}


@pytest.fixture(scope="module")
def vae() -> VAE:
    torch.manual_seed(0)
    return VAE.assemble((3,), (2,), likelihood=Normal, network=partial(MLP, hidden=(4,)))


def numbers(found) -> list:
    """Return all numbers of a result, as they are to the last bit."""
    if isinstance(found, torch.Tensor):
        return found.double().flatten().tolist()
    if isinstance(found, dict):
        return [number for part in found.values() for number in numbers(part)]
    if hasattr(found, "__dataclass_fields__"):
        return numbers(vars(found))
    return [None if found != found else found]


@pytest.mark.parametrize("name", OF_BOTH)
def test_ways_to_name_a_program(name: str, vae) -> None:
    function = OF_BOTH[name]
    found = function(vae.model, vae.guide, X)
    expected = numbers(found)
    assert len(expected) > 0
    if hasattr(found, "__dataclass_fields__"):
        assert len(repr(found)) < 700
    probe = Probe(Program(vae.model, vae.guide), X[:2])
    for program, x in ((vae, X.numpy()), ((vae.model, vae.guide), X), (probe, X)):
        assert numbers(function(program, x)) == expected


@pytest.mark.parametrize("name", OF_MODEL)
def test_ways_to_name_a_model(name: str, vae) -> None:
    function = OF_MODEL[name]
    expected = numbers(function(vae.model, X))
    for given in ((vae,), (vae.model, vae.guide)):
        assert numbers(function(*given, X.numpy())) == expected


def test_arguments_may_be_named(vae) -> None:
    named = evaluation.elbo(model=vae.model, guide=vae.guide, x=X.tolist())
    assert numbers(named) == numbers(evaluation.elbo(vae, x=X))


def test_latents_are_decoded_by_a_program(vae) -> None:
    z = torch.ones(3, 2)
    assert torch.equal(
        evaluation.decode(vae, {"z": z}, X), evaluation.decode(vae.model, {"z": z.numpy()}, X)
    )


def test_gradients_are_those_of_a_program(vae) -> None:
    draw = partial(laboratory.draw_gradients, num_repeats=6, num_groups=3, engine="eager")
    by_parts = draw(vae.model, vae.guide, ELBO(), X)
    assert torch.equal(draw(vae, ELBO(), X).means, by_parts.means)


SAID = {
    "no data": (lambda vae: evaluation.elbo(vae), TypeError, "missing a required argument: 'x'"),
    "no guide": (
        lambda vae: evaluation.elbo(vae.model, None, X), TypeError, "guide=None: expected a func",
    ),
    "a class": (lambda vae: evaluation.elbo(VAE, X), TypeError, r"build one: VAE\(...\)"),
    "no rows": (lambda vae: evaluation.elbo(vae, X[:0]), ValueError, "x is empty"),
    "a number": (lambda vae: evaluation.elbo(vae, torch.tensor(1.0)), ValueError, "one row for"),
    "labels of another length": (
        lambda vae: evaluation.elbo(vae, X, torch.zeros(3)), ValueError, "3 fields for 4 data",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SAID)
def test_mistakes_are_told(name: str, vae) -> None:
    call, kind, said = SAID[name]
    with pytest.raises(kind, match=said):
        call(vae)


def test_a_probe_is_looked_at_once(vae, monkeypatch) -> None:
    probe, seen = Probe(Program(vae.model, vae.guide), X), []
    looks = Program.first_traces
    monkeypatch.setattr(Program, "first_traces", lambda *a: seen.append(1) or looks(*a))
    evaluation.elbo(probe, X)
    evaluation.importance_sampling(probe, X, num_samples=2)
    evaluation.unit_activity(probe, X)
    assert not seen
    evaluation.elbo(vae, X)
    assert len(seen) == 1


@pytest.mark.parametrize("objective", [None, ELBO(), IWAE(2)])
def test_fit_looks_once(objective, vae, monkeypatch) -> None:
    seen, looks = [], Program.first_traces
    monkeypatch.setattr(Program, "first_traces", lambda *a: seen.append(1) or looks(*a))
    torch.manual_seed(0)
    data = torch.randn(40, 3)
    fit(copy.deepcopy(vae), data, objective=objective, epochs=1, engine="eager", progress=False)
    assert len(seen) == 1


def test_an_estimate_is_a_number_with_its_error_and_unit(vae) -> None:
    rows = torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    found = Estimate.of(rows)
    assert found.value == pytest.approx(7 / 3)
    assert found.standard_error == pytest.approx(rows.std().item() / math.sqrt(3))
    assert (found.unit, math.isnan(Estimate.of(rows[:1]).standard_error)) == (
        "nats per datum",
        True,
    )
    assert repr(found) == "2.33333 +- 0.8819 nats per datum"
    assert found + 1 == found.value + 1
    assert json.dumps(found) == repr(found.value)
    bits = found.times(-2.0, "bits")
    assert (bits, bits.standard_error, bits.unit) == (-2 * found, 2 * found.standard_error, "bits")
    twin = copy.deepcopy(found)
    assert (twin, twin.standard_error, twin.unit) == (found, found.standard_error, found.unit)
