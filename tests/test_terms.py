"""The table of site terms against Pyro's own bounds, closed forms, and itself one by one."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import NUM_DIMS, NUM_LATENTS, NUM_ROWS, PROGRAMS, Pair, X, functions_with_params
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import Tensor

from pyro_vae.inference import Probe, Program, site_terms

programs = pytest.mark.parametrize("build", PROGRAMS.values(), ids=PROGRAMS.keys())


def value_and_gradients(pair: Pair, evaluate) -> tuple[float, dict[str, Tensor]]:
    """Return a loss and its gradients, at one seed; ``evaluate`` takes the program."""
    program = Program(pair.model, pair.guide)
    with program.running(), poutine.trace(param_only=True) as capture:
        torch.manual_seed(5)
        loss = evaluate(program)
    leaves = dict(program.parameters())
    for name, site in capture.trace.nodes.items():
        value = site["value"]
        leaves[name] = value.unconstrained() if hasattr(value, "unconstrained") else value
    gradients = {n: p.grad.clone() for n, p in leaves.items() if p.grad is not None}
    for leaf in leaves.values():
        leaf.grad = None
    return loss, gradients


def of_table(pair: Pair, reduce, **options):
    def evaluate(program):
        layout = Probe(program, *pair.args).layout
        torch.manual_seed(5)
        loss = -reduce(site_terms(program, layout, *pair.args, **options).log_w).sum()
        loss.backward()
        return loss.item()

    return value_and_gradients(pair, evaluate)


def of_pyro(pair: Pair, elbo):
    def evaluate(program):
        # Without a parameter in a trace, as for methods of a module, Pyro does not go backward.
        def model(*args):
            pyro.param("unused", torch.zeros(()))
            return program.model(*args)

        return elbo.loss_and_grads(model, program.guide, *pair.args)

    return value_and_gradients(pair, evaluate)


def log_mean_exp(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def assert_same(found, expected) -> None:
    assert found[0] == pytest.approx(expected[0], rel=1e-12, abs=1e-12)
    assert found[1]
    assert found[1].keys() == expected[1].keys()
    torch.testing.assert_close(found[1], expected[1], rtol=1e-12, atol=1e-12)


@programs
@pytest.mark.parametrize("num_particles", [1, 3])
def test_elbo_equals_pyros(build, num_particles: int) -> None:
    pair = build()
    elbo = Trace_ELBO(
        num_particles=num_particles,
        vectorize_particles=pair.vectorizes and num_particles > 1,
        max_plate_nesting=pair.nesting,
    )
    found = of_table(pair, lambda log_w: log_w.mean(0), num_particles=num_particles)
    assert_same(found, of_pyro(pair, elbo))


@programs
def test_importance_weighted_bound_equals_pyros(build) -> None:
    pair = build()
    if pair.nesting > 1:
        pytest.skip("RenyiELBO takes the cells of an inner plate for data of their own")
    elbo = RenyiELBO(
        alpha=0.0,
        num_particles=3,
        vectorize_particles=pair.vectorizes,
        max_plate_nesting=pair.nesting,
    )
    assert_same(of_table(pair, log_mean_exp, num_particles=3), of_pyro(pair, elbo))


def table_of(pair: Pair, **options):
    program = Program(pair.model, pair.guide)
    layout = Probe(program, *pair.args).layout
    with program.evaluating(seed=9):
        return site_terms(program, layout, *pair.args, **options)


@programs
@pytest.mark.parametrize("num_particles", [1, 3])
def test_shapes(build, num_particles: int) -> None:
    pair = build()
    terms = table_of(pair, num_particles=num_particles)
    assert set(terms.log_q) == set(terms.values) == set(pair.latents)
    assert set(terms.log_p) == {*pair.latents, "x"}
    for term in [*terms.log_p.values(), *terms.log_q.values()]:
        assert term.shape == (num_particles, NUM_ROWS)
        assert term.dtype == torch.float64
    for value in terms.values.values():
        assert value.shape[:2] == (num_particles, NUM_ROWS)
    torch.testing.assert_close(terms.log_w, -terms.distortion - terms.rate)


def test_values_of_an_inner_plate_follow_the_data() -> None:
    terms = table_of(PROGRAMS["inner plate"](), num_particles=3)
    assert terms.values["z"].shape == (3, NUM_ROWS)
    assert terms.values["e"].shape == (3, NUM_ROWS, NUM_DIMS)


def test_terms_equal_the_closed_forms() -> None:
    pair = functions_with_params()
    x = pair.args[0]
    terms = table_of(pair, num_particles=4)
    z = terms.values["z"]
    constant = 0.5 * NUM_LATENTS * math.log(2 * math.pi)
    loc = x @ torch.full((NUM_DIMS, NUM_LATENTS), 0.1).double()
    logits = z @ torch.ones(NUM_LATENTS, NUM_DIMS).double()
    log_q = -0.5 * (z - loc).square().sum(-1) - constant
    log_p_x = (x * logits - torch.log1p(logits.exp())).sum(-1)
    torch.testing.assert_close(terms.log_p["z"], -0.5 * z.square().sum(-1) - constant)
    torch.testing.assert_close(terms.log_q["z"], log_q)
    torch.testing.assert_close(terms.log_p["x"], log_p_x)
    torch.testing.assert_close(terms.distortion, -log_p_x)
    torch.testing.assert_close(terms.rate, terms.log_q["z"] - terms.log_p["z"])


def test_masked_data_count_nothing() -> None:
    pair = PROGRAMS["mask"]()
    log_p = table_of(pair, num_particles=2).log_p["x"]
    seen = pair.args[0][:, 0] > 0
    assert bool((log_p[:, seen] != 0).all())
    assert bool((log_p[:, ~seen] == 0).all())


@pytest.mark.parametrize("scale", [0.3, 40.0])
def test_scales_leave_the_terms_alone(scale: float) -> None:
    pair = functions_with_params()
    scaled = Pair(poutine.scale(pair.model, scale), poutine.scale(pair.guide, scale), pair.args)
    expected, found = table_of(pair, num_particles=2), table_of(scaled, num_particles=2)
    torch.testing.assert_close(found.log_w, expected.log_w, rtol=0, atol=0)


def test_subsampled_plates_leave_the_terms_alone() -> None:
    def pair_with(plate) -> Pair:
        def model(x):
            with plate(x):
                z = pyro.sample("z", dist.Normal(x.new_zeros(NUM_LATENTS), 1.0).to_event(1))
                logits = z.sum(-1, keepdim=True).expand(*z.shape[:-1], NUM_DIMS)
                pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

        def guide(x):
            with plate(x):
                pyro.sample("z", dist.Normal(x[:, :NUM_LATENTS], 1.0).to_event(1))

        return Pair(model, guide, (X(),))

    rows = torch.arange(1000)
    whole = pair_with(lambda x: pyro.plate("data", len(x)))
    part = pair_with(lambda x: pyro.plate("data", 1000, subsample=rows[: len(x)]))
    found, expected = table_of(part, num_particles=2), table_of(whole, num_particles=2)
    torch.testing.assert_close(found.log_w, expected.log_w, rtol=0, atol=0)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param("VAE, convolutional", marks=pytest.mark.slow),
        "two latents",
        "inner plate",
        "labels",
    ],
)
def test_particles_at_once_have_the_law_of_one_by_one(name: str) -> None:
    # Means of 300 weights for each of 6 data differ by 5 standard errors with p < 1e-5.
    pair = PROGRAMS[name]()
    program = Program(pair.model, pair.guide)
    layout = Probe(program, *pair.args).layout
    with program.evaluating(seed=1):
        at_once = site_terms(program, layout, *pair.args, num_particles=300).log_w
        apart = [site_terms(program, layout, *pair.args).log_w for _ in range(300)]
    one_by_one = torch.cat(apart)
    error = (at_once.var(0) / 300 + one_by_one.var(0) / 300).sqrt()
    assert bool(((at_once.mean(0) - one_by_one.mean(0)).abs() < 5 * error).all())
    assert len(at_once[:, 0].unique()) == 300


@pytest.mark.parametrize("num_particles", [0, -2])
def test_bad_number_of_particles(num_particles: int) -> None:
    with pytest.raises(ValueError, match=f"num_particles={num_particles}"):
        table_of(functions_with_params(), num_particles=num_particles)
