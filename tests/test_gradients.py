"""Measured gradients against closed forms: their mean, variance, signal and bias."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import pytest
import torch
from exact import Bed, Bits, Chain, Gaussian, expected
from laws import PROGRAMS
from pyro.infer import RenyiELBO, ReweightedWakeSleep, Trace_ELBO, TraceMeanField_ELBO
from quick import some
from torch import nn

from pyro_vae.inference import (
    CIWAE,
    ELBO,
    IWAE,
    NVIL,
    PIWAE,
    RLOO,
    RWS,
    VIMCO,
    AnalyticELBO,
    DisARM,
    DReG,
    KLWeight,
    Renyi,
)
from pyro_vae.laboratory import gradients as measuring
from pyro_vae.laboratory.gradients import Gradients, OwnBound, draw_gradients, own_bound

pytestmark = pytest.mark.filterwarnings("ignore:running eagerly")


def away(build) -> Bed:
    """A bed whose guide is off the posterior, so that its gradient is not noise alone."""
    bed = build()
    with torch.no_grad():
        bed.c.add_(0.5)
    return bed


def measured(bed: Bed, objective, *, num_repeats=600, seed=1, copies=1, **options) -> Gradients:
    """Gradients on so many copies of the bed's data, which divide the variance."""
    x = bed.x.repeat(copies, 1)
    options = {"num_repeats": num_repeats, "seed": seed, "engine": "recorded", **options}
    return draw_gradients(bed.model, bed.guide, objective, x, **options)


def flat(bed: Bed, named: dict) -> torch.Tensor:
    return torch.cat([named[name].flatten() for name, _ in bed.named_parameters()])


def moments(bed: Bed, num_particles: int, bound):
    """The exact mean and variance of the pathwise gradient on the bed's data, by quadrature."""
    noise, weigh = bed.tuples(num_particles)
    parameters = list(bed.parameters())
    total = torch.zeros(sum(p.numel() for p in parameters), dtype=torch.float64)
    variance = total.clone()
    probability = weigh(torch.zeros(())).flatten()
    for x in bed.x.split(1):
        rows = []
        for column in noise.split(1, 1):
            z = bed.draw(column, x)
            value = bound(bed.log_joint(z, x) - bed.log_q(z, x)).sum()
            found = torch.autograd.grad(value, parameters)
            rows.append(torch.cat([g.flatten() for g in found]))
        table = torch.stack(rows)
        mean = probability @ table
        total += mean / len(bed.x)
        variance += probability @ (table - mean).square() / len(bed.x) ** 2
    return total, variance


def mean(log_w):
    return log_w.mean(0)


def log_mean(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


@pytest.mark.parametrize(
    ("objective", "num_particles", "bound"),
    [
        pytest.param(ELBO(1), 1, mean, id="ELBO 1", marks=pytest.mark.slow),
        pytest.param(ELBO(2), 2, mean, id="ELBO 2", marks=pytest.mark.slow),
        pytest.param(IWAE(2), 2, log_mean, id="IWAE 2"),
    ],
)
def test_mean_variance_and_signal_are_those_of_quadrature(objective, num_particles, bound):
    bed = Gaussian(num_nodes=24 if num_particles == 1 else 16)
    expectation, variance = moments(bed, num_particles, bound)
    variance = variance / 10
    found = measured(bed, objective, num_repeats=1000, copies=10)
    errors = (variance / found.num_repeats).sqrt()
    assert ((found.mean - expectation).abs() < 4.5 * errors).all()
    torch.testing.assert_close(found.variance, variance, rtol=0.2, atol=0)
    exact = {
        "total variance": (found.total_variance(), variance.sum().item()),
        "snr": (found.snr(), (expectation.abs() / variance.sqrt()).mean().item()),
    }
    for name, (estimate, reference) in exact.items():
        assert abs(estimate.value - reference) < 5 * estimate.standard_error, name
        assert 0 < estimate.standard_error < 0.15 * reference, name


def test_half_the_variance_of_two_particles_is_told_apart():
    # What catches a variance that forgets a factor: S particles have 1 / S of it.
    bed = Gaussian()
    one, two = (
        measured(bed, ELBO(num), num_repeats=300, copies=20).total_variance().value
        for num in (1, 2)
    )
    assert one / two == pytest.approx(2, rel=0.2)


def drawn(num, size, generator):
    """Groups of gradients that are a fixed vector and noise, without a program."""
    signal = torch.linspace(0, 1, size, dtype=torch.float64)
    noise = torch.randn(10, num // 10, size, generator=generator, dtype=torch.float64)
    draws = signal + 3 * noise
    whole = {part: torch.ones(size).bool() for part in ("model", "guide")}
    return Gradients(draws.mean(1), draws.square().mean(1), num, whole)


@pytest.mark.parametrize("name", ["snr", "total_variance"])
def test_the_standard_errors_are_those_of_repetition(name):
    generator = torch.Generator().manual_seed(1)
    runs = [getattr(drawn(1000, 5, generator), name)() for _ in range(300)]
    found = torch.tensor([(run.value, run.standard_error) for run in runs])
    told = found[:, 1].square().mean().sqrt()
    assert told / found[:, 0].std() == pytest.approx(1, rel=0.15)


@pytest.mark.slow
def test_the_signal_of_the_guide_fades_with_particles_and_the_models_grows():
    # Rainforth et al. (2018): as 1 / sqrt(S) and as sqrt(S); under DReG the guide's grows, too.
    def slope(build, part):
        runs = (measured(away(Gaussian), build(num), num_repeats=400, copies=20) for num in (4, 32))
        few, many = (run.of(part).snr().value for run in runs)
        return math.log(many / few) / math.log(8)

    assert slope(IWAE, "guide") == pytest.approx(-0.5, abs=0.25)
    assert slope(IWAE, "model") == pytest.approx(0.5, abs=0.1)
    assert slope(DReG, "guide") > 0.2


def test_noise_alone_reads_the_floor():
    noise = torch.randn(400, 500, dtype=torch.float64)
    groups = noise.reshape(10, 40, 500)
    everything = {"model": torch.ones(500).bool(), "guide": torch.zeros(500).bool()}
    found = Gradients(groups.mean(1), groups.square().mean(1), 400, everything)
    assert found.snr().value == pytest.approx(found.snr_floor, rel=0.1)
    assert found.of("model").mean.shape == (500,)
    guide = found.of("guide")
    variance, bias = guide.total_variance(), guide.relative_bias(guide)
    assert (variance, variance.standard_error) == (0.0, 0.0)
    for ratio in (guide.snr(), bias):
        assert math.isnan(ratio)
        assert math.isnan(ratio.standard_error)


# ---------------------------------------------------------------------------- bias


@dataclass(frozen=True)
class Case:
    """An objective on a bed, and which parts of its gradient are those of its own bound."""

    build: object
    bed: object
    unbiased: tuple = ("model", "guide")


CASES = {
    "ELBO": Case(partial(ELBO, 2), Gaussian),
    "ELBO, bits": Case(partial(ELBO, 2), Bits),
    "AnalyticELBO": Case(partial(AnalyticELBO, 2), Gaussian),
    "IWAE": Case(partial(IWAE, 3), Chain),
    "DReG": Case(partial(DReG, 3), Chain),
    "Renyi": Case(partial(Renyi, 0.5, 3), Gaussian),
    "CIWAE": Case(partial(CIWAE, 0.3, 3), Gaussian),
    "VIMCO, bits": Case(partial(VIMCO, 3), Bits),
    "RLOO, bits": Case(partial(RLOO, 2), Bits),
    "DisARM, bits": Case(partial(DisARM, 2), Bits),
    "PIWAE": Case(partial(PIWAE, 4, 2), Gaussian, ("model",)),
    "RWS": Case(partial(RWS, 3), Gaussian, ("model",)),
    "RWS, bits": Case(partial(RWS, 3), Bits, ("model",)),
    "Trace_ELBO": Case(Trace_ELBO, Gaussian),
    "TraceMeanField_ELBO": Case(TraceMeanField_ELBO, Gaussian),
    "RenyiELBO": Case(
        partial(RenyiELBO, 0.5, num_particles=2, vectorize_particles=True, max_plate_nesting=2),
        Gaussian,
    ),
}


def biases(objective, bed, **options):
    reference = own_bound(objective)
    assert reference is not None
    options = {"num_repeats": 100, "copies": 50, **options}
    against = measured(bed, reference, seed=2, **options)
    found = measured(bed, objective, seed=1, **options)
    return {part: found.of(part).relative_bias(against.of(part)) for part in ("model", "guide")}


@pytest.mark.parametrize("name", some(CASES, "VIMCO, bits", "RWS, bits"))
def test_bias_is_none_within_its_error_and_seen_where_there_is_one(name):
    case = CASES[name]
    for part, bias in biases(case.build(), away(case.bed)).items():
        assert bias.standard_error < 0.2
        if part in case.unbiased:
            assert bias.value < 3 * bias.standard_error, part
        else:
            assert bias.value > 5 * bias.standard_error, part


class FivePerCentMore(ELBO):
    """The mutant: its gradient is off by a twentieth."""

    def surrogate(self, terms):
        return 1.05 * super().surrogate(terms)


class FivePerCentAside(ELBO):
    """Another: off by as much in a direction of its own, in the guide alone."""

    def surrogate(self, terms):
        log_q = terms.log_q["z"]
        return (
            super().surrogate(terms)
            + 0.1 * (log_q - log_q.detach()).mean(0).square()
            + (0.05 * terms.values["z"].flatten(2).sum(-1).mean(0))
        )


def test_a_gradient_that_is_off_is_seen_to_be():
    wrong = biases(FivePerCentMore(8), away(Gaussian), copies=200)
    for part in ("model", "guide"):
        bias = wrong[part]
        assert bias.value == pytest.approx(0.05, abs=0.02)
        assert bias.value > 4 * bias.standard_error


@pytest.mark.slow
def test_a_gradient_that_is_off_in_one_part_is_seen_to_be_off_there_alone():
    right, aside = (
        biases(objective(8), away(Gaussian), copies=200) for objective in (ELBO, FivePerCentAside)
    )
    for part in ("model", "guide"):
        assert right[part].value < 3 * right[part].standard_error < 0.05
    assert aside["guide"].value > 5 * aside["guide"].standard_error
    assert aside["model"].value < 3 * aside["model"].standard_error


def test_the_size_of_a_bias_is_the_exact_one():
    bed = away(Gaussian)
    exact = {n: flat(bed, expected(o, bed)[1]) for n, o in (("ELBO", ELBO(1)), ("IWAE", IWAE(2)))}
    size = ((exact["ELBO"] - exact["IWAE"]).norm() / exact["IWAE"].norm()).item()
    few = {"num_repeats": 200, "copies": 50}
    found = measured(bed, ELBO(1), **few).relative_bias(measured(bed, IWAE(2), seed=2, **few))
    assert size > 0.1
    assert found.value == pytest.approx(size, abs=2 * found.standard_error)
    assert found.standard_error < 0.1


def test_false_alarms_are_as_rare_as_the_error_says():
    generator = torch.Generator().manual_seed(1)
    runs = [drawn(100, 30, generator) for _ in range(400)]
    pairs = [a.relative_bias(b) for a, b in zip(runs[:200], runs[200:], strict=True)]
    alarms = sum(bias.value > 2 * bias.standard_error for bias in pairs)
    assert alarms <= 10
    assert sum(bias.value > 0 for bias in pairs) > 50  # not by never telling one


def test_the_own_bounds_gradient_is_exact_where_latents_are_scored():
    # Twice the particles of the bed: those of the second table.
    bed = Bits()
    found = measured(bed, OwnBound(VIMCO(2)), num_repeats=200, copies=100)
    exact = flat(bed, expected(VIMCO(2), bed)[1])
    errors = (found.variance / found.num_repeats).sqrt()
    assert ((found.mean - exact).abs() < 4.5 * errors + 1e-12).all()


class NoOther(OwnBound):
    """A mutant: the second table's score is forgotten, but not its value."""

    def surrogate(self, terms):
        return self.value(terms) + (self.value(terms.other) * measuring._score(terms))


def test_a_forgotten_score_is_seen():
    bed = Bits()
    exact = flat(bed, expected(VIMCO(2), bed)[1])
    found = measured(bed, NoOther(VIMCO(2)), num_repeats=200, copies=50)
    errors = (found.variance / found.num_repeats).sqrt()
    assert ((found.mean - exact).abs() > 6 * errors).any()


@pytest.mark.slow
def test_a_kl_weight_is_a_bias_against_the_true_bound():
    bed = away(Gaussian)
    x = bed.x.repeat(50, 1)
    model, guide = KLWeight(0.5)(bed.model), KLWeight(0.5)(bed.guide)
    runs = [
        draw_gradients(model, guide, objective, x, num_repeats=100, seed=seed).of("guide")
        for seed, objective in enumerate((ELBO(1), OwnBound(ELBO(1))))
    ]
    bias = runs[0].relative_bias(runs[1])
    assert bias.value > 5 * bias.standard_error


def test_there_is_no_own_bound_of_what_has_none():
    assert own_bound(ReweightedWakeSleep()) is None
    assert own_bound(RenyiELBO(alpha=0.0, num_particles=3)).objective.alpha == 0.0


# ---------------------------------------------------------------------------- use


@pytest.mark.parametrize("name", PROGRAMS)
def test_parts_are_told_apart_in_every_program(name):
    pair = PROGRAMS[name]()
    found = draw_gradients(pair.model, pair.guide, ELBO(), *pair.args, num_repeats=6, num_groups=3)
    whole = found.entries["model"] | found.entries["guide"]
    assert whole.all()
    assert not (found.entries["model"] & found.entries["guide"]).any()
    assert found.of("model").mean.abs().max() > 0
    assert found.of("guide").mean.abs().max() > 0


def test_the_parts_of_a_bed_are_its_own():
    bed = Chain()
    found = measured(bed, ELBO(), num_repeats=6, num_groups=3)
    names = [n for n, p in bed.named_parameters() for _ in range(p.numel())]
    for part, own in (("model", bed.of_model), ("guide", bed.of_guide)):
        assert [n in own for n in names] == found.entries[part].tolist()


def test_an_objectives_own_parameters_are_of_neither_part():
    bed = Bits()
    found = measured(bed, NVIL(nn.Linear(4, 1).double()), num_repeats=60, num_groups=3)
    neither = ~(found.entries["model"] | found.entries["guide"])
    assert neither.sum() == 5


def test_nothing_is_changed_and_the_seed_decides():
    torch.manual_seed(5)
    bed = Gaussian()
    before = {name: p.clone() for name, p in bed.named_parameters()}
    state = torch.get_rng_state()
    runs = [measured(bed, IWAE(2), num_repeats=30, seed=seed) for seed in (3, 3, 4)]
    assert torch.equal(runs[0].means, runs[1].means)
    assert not torch.equal(runs[0].means, runs[2].means)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(before[name], p) for name, p in bed.named_parameters())
    assert all(p.grad is None for p in bed.parameters())


def test_recorded_gradients_are_the_eager_ones():
    runs = [measured(Gaussian(), DReG(3), num_repeats=60, engine=e) for e in ("eager", "recorded")]
    assert torch.equal(runs[0].means, runs[1].means)


def test_a_subsampled_plate_changes_nothing():
    runs = [measured(bed, IWAE(3), num_repeats=30) for bed in (Gaussian(), Gaussian(full_size=100))]
    torch.testing.assert_close(runs[0].means, runs[1].means)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_repeats": 5}, "num_repeats=5, num_groups=10: standard errors take"),
        ({"num_groups": 2}, "num_repeats=300, num_groups=2"),
        ({"num_repeats": 0}, "num_repeats=0: at least 1"),
    ],
)
def test_too_few_are_refused(options, said):
    bed = Gaussian()
    with pytest.raises(ValueError, match=said):
        draw_gradients(bed.model, bed.guide, ELBO(), bed.x, **options)


def test_gradients_of_other_programs_are_not_compared():
    generator = torch.Generator().manual_seed(1)
    found = [drawn(100, size, generator) for size in (8, 11)]
    with pytest.raises(ValueError, match=r"\(10, 8\) and \(10, 11\)"):
        found[0].relative_bias(found[1])
