"""Bounds of several particles: expectations of value and gradient, exactly, and their order."""

from __future__ import annotations

import gc
import math
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise

import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as flows
import pytest
import torch
from exact import (
    Bed,
    Bits,
    Chain,
    Gaussian,
    apart,
    bed_mean,
    bits,
    distance,
    exact,
    expected,
    hermite,
    injected,
)
from laws import PROGRAMS
from pyro import poutine
from pyro.infer import RenyiELBO, ReweightedWakeSleep
from pyro.nn import AutoRegressiveNN
from quick import some
from torch import nn

from pyro_vae import SVI
from pyro_vae.inference import ELBO, IWAE, Probe, Program, ProgramError, SiteTerms, site_terms
from pyro_vae.inference.detached import detached, split_terms, through_samples
from pyro_vae.inference.importance import CIWAE, MIWAE, PIWAE, DReG, InChunks, Renyi
from pyro_vae.inference.objectives import data_scale, log_mean_exp, weighed
from pyro_vae.inference.wake_sleep import RWS, TVO, RWSDReG

# ---------------------------------------------------------------------------- the exact bounds


def mean(log_w):
    return log_w.mean(0)


def log_mean(log_w):
    return log_w.logsumexp(0) - math.log(len(log_w))


def power(alpha):
    return lambda log_w: log_mean((1 - alpha) * log_w) / (1 - alpha)


def between(log_w):
    return 0.3 * mean(log_w) + 0.7 * log_mean(log_w)


def pairs(log_w):
    return (log_mean(log_w[:2]) + log_mean(log_w[2:])) / 2


def path(log_w):
    return 0.1 * mean(log_w) + 0.9 * ((0.1 * log_w).softmax(0) * log_w).sum(0)


def wake(bed, num_particles):
    """The expectation of sum_s w_s grad log q(z_s | x), and of the same for log p, by its words."""
    noise, weigh = bed.tuples(num_particles)
    z = bed.draw(noise, bed.x).detach()
    log_q, log_p = bed.log_q(z, bed.x), bed.log_joint(z, bed.x)
    weights = torch.softmax((log_p - log_q).detach(), 0)
    total = (weigh(log_q).detach() * (weights * (log_q + log_p)).sum(0)).sum(0).mean()
    gradients = torch.autograd.grad(total, list(bed.parameters()))
    names = [name for name, _ in bed.named_parameters()]
    value = bed_mean(bed, num_particles, lambda log_p, log_q: log_mean(log_p - log_q))
    return value.detach(), dict(zip(names, gradients, strict=True))


def parts(bed, num_particles):
    whole = exact(bed, num_particles, log_mean)
    return apart(whole, model=whole, guide=exact(bed, num_particles, pairs), bed=bed)


@dataclass(frozen=True)
class Member:
    """An objective, beds on which it works, and a function to its exact expectation."""

    build: Callable
    reference: Callable
    beds: tuple = ()


def bound(function):
    return lambda bed, num_particles: exact(bed, num_particles, function)


ONE, TWO, THREE = (
    (partial(Gaussian), 1),
    (partial(Gaussian), 2),
    (partial(Gaussian, num_nodes=16), 3),
)
FOUR = (partial(Gaussian, num_nodes=6), 4)
CHAIN, BITS = (partial(Chain), 2), (partial(Bits), 2)
PATHWISE = (ONE, TWO, THREE, CHAIN)
MEMBERS = {
    "ELBO": Member(ELBO, bound(mean), (TWO, CHAIN, BITS)),
    "IWAE": Member(IWAE, bound(log_mean), PATHWISE),
    "Renyi 0.5": Member(lambda n: Renyi(0.5, n), bound(power(0.5)), PATHWISE),
    "Renyi 2": Member(lambda n: Renyi(2.0, n), bound(power(2.0)), PATHWISE),
    "CIWAE": Member(lambda n: CIWAE(0.3, n), bound(between), PATHWISE),
    "MIWAE, each alone": Member(lambda n: MIWAE(n, n), bound(mean), (TWO,)),
    "MIWAE": Member(lambda n: MIWAE(n, 2), bound(pairs), (FOUR,)),
    "PIWAE": Member(lambda n: PIWAE(n, 2), parts, (FOUR,)),
    "PIWAE, one group": Member(lambda n: PIWAE(n, 1), bound(log_mean), (TWO, CHAIN)),
    "DReG": Member(DReG, bound(log_mean), PATHWISE),
    "DReG 0.5": Member(lambda n: DReG(n, alpha=0.5), bound(power(0.5)), (TWO, CHAIN)),
    "DReG 2": Member(lambda n: DReG(n, alpha=2.0), bound(power(2.0)), (TWO, CHAIN)),
    "RWS": Member(RWS, wake, (TWO, CHAIN, BITS, (partial(Bits), 3))),
    "RWSDReG": Member(RWSDReG, wake, (TWO, THREE, CHAIN)),
    "TVO, no points": Member(lambda n: TVO(n, points=()), bound(mean), (TWO, BITS)),
}


def cases(members):
    return [
        pytest.param(member, bed, id=f"{name}, {bed[0].func.__name__} {bed[1]}")
        for name, member in members.items()
        for bed in member.beds
    ]


@pytest.mark.parametrize(("member", "place"), cases(MEMBERS))
def test_value_and_gradient_have_the_exact_expectation(member, place):
    build, num_particles = place
    bed = build()
    found = expected(member.build(num_particles), bed)
    reference = member.reference(bed, num_particles)
    assert all(gradient.abs().max() > 1e-4 for gradient in reference[1].values())
    assert distance(found, reference) < 1e-10


# ---------------------------------------------------------------------------- mutants


class JointWeights(IWAE):
    """Weighs the particles of all data together."""

    def surrogate(self, terms):
        return (
            terms.log_w.detach().flatten().softmax(0).reshape(terms.log_w.shape)
            * len(terms.log_w[0])
            * terms.log_w
        ).sum(0)


class SwappedAxis(MIWAE):
    def value(self, terms):
        return log_mean_exp(terms.log_w.reshape(-1, self.num_groups, terms.log_w.shape[-1]).mean(1))


class SlightlyMore(DReG):
    def surrogate(self, terms):
        log_p, log_q = weighed(terms)
        weights = (log_p - log_q).detach().softmax(0)
        moved = through_samples(terms, log_p - log_q)
        return (weights * log_p + 1.001 * weights**2 * moved).sum(0)


class LostWeight(DReG):
    """Sticking the landing in a bound of several particles: biased."""

    def surrogate(self, terms):
        log_p, log_q = weighed(terms)
        weights = (log_p - log_q).detach().softmax(0)
        return (weights * (log_p + through_samples(terms, log_p - log_q))).sum(0)


class LatentByLatent(DReG):
    """Leaves out what one latent of the guide does to the density of the next."""

    def surrogate(self, terms):
        log_p, log_q = weighed(terms)
        held = replace(terms, log_q={"z1": terms.log_q["z1"], "z2": terms.log_q["z2"].detach()})
        weights = (log_p - log_q).detach().softmax(0)
        moved = through_samples(terms, log_p - weighed(held)[1])
        return (weights * log_p + weights**2 * moved).sum(0)


class SameForTheGuide(PIWAE):
    def surrogate(self, terms):
        return log_mean_exp(terms.log_w)

    def table(self, program, layout, *args):
        return site_terms(program, layout, *args, num_particles=self.num_particles)


class NoSquare(RWSDReG):
    def surrogate(self, terms):
        log_p, log_q = weighed(terms)
        weights = (log_p - log_q).detach().softmax(0)
        return (weights * (log_p + through_samples(terms, log_p - log_q))).sum(0)


class WrongWay(RWS):
    """Follows the importance-weighted bound's gradient at given values."""

    def surrogate(self, terms):
        return (terms.log_w.detach().softmax(0) * terms.log_w).sum(0)


class AttachedValues(RWS):
    """Lets the wake phase pass through the samples."""

    def table(self, program, layout, *args):
        return site_terms(program, layout, *args, num_particles=self.num_particles)


class NoCorrection(TVO):
    """Divides the covariance by S instead of S - 1."""

    def surrogate(self, terms):
        log_w, log_q = terms.log_w, terms.log_q["z"]
        excess = (log_w - log_w.mean(0)).detach()
        return (log_w + excess * log_q).mean(0)


MUTANTS = {
    "joint weights": replace(MEMBERS["IWAE"], build=JointWeights, beds=(TWO,)),
    "swapped axis": replace(MEMBERS["MIWAE"], build=lambda n: SwappedAxis(n, 2), beds=(FOUR,)),
    "0.1 % more": replace(MEMBERS["DReG"], build=SlightlyMore, beds=(TWO,)),
    "lost weight": replace(MEMBERS["DReG"], build=LostWeight, beds=(TWO, CHAIN)),
    "latent by latent": replace(MEMBERS["DReG"], build=LatentByLatent, beds=(CHAIN,)),
    "same for the guide": replace(
        MEMBERS["PIWAE"], build=lambda n: SameForTheGuide(n, 2), beds=(FOUR,)
    ),
    "no square": replace(MEMBERS["RWSDReG"], build=NoSquare, beds=(TWO,)),
    "wrong way": replace(MEMBERS["RWS"], build=WrongWay, beds=(TWO, BITS)),
    "attached values": replace(MEMBERS["RWS"], build=AttachedValues, beds=(TWO,)),
    "no correction": replace(MEMBERS["TVO, no points"], build=NoCorrection, beds=(BITS,)),
}


@pytest.mark.parametrize(("mutant", "place"), cases(MUTANTS))
def test_mutants_are_caught(mutant, place):
    build, num_particles = place
    bed = build()
    found = expected(mutant.build(num_particles), bed)
    assert distance(found, mutant.reference(bed, num_particles)) > 1e-7


# ---------------------------------------------------------------------------- sleep


class Dreaming(Bits):
    """One particle of the guide, and a dream of the model: three bits and four pixels more."""

    def tuples(self, num_particles):
        assert num_particles == 1
        dreams = bits(7)
        noise = torch.cat(
            [bits(3).repeat_interleave(len(dreams), 0), dreams.repeat(8, 1)], -1
        ).unsqueeze(0)
        log_p = self.log_joint(noise[0, :, 3:6], noise[0, :, 6:])
        return noise, lambda log_q: (log_q.sum(0) + log_p.unsqueeze(-1)).exp()

    def draw(self, noise, x):
        return super().draw(noise[..., :3], x)

    def dreamt(self):
        """The expectation under the model of log q, differentiated in the guide alone."""
        z, x = bits(7).split([3, 4], -1)
        return (self.log_joint(z, x).detach().exp() * self.log_q(z, x)).sum()


@pytest.mark.parametrize("insomnia", [0.0, 0.3])
def test_the_sleep_phase_fits_the_guide_to_what_the_model_dreams(insomnia):
    bed = Dreaming()
    value, found = expected(RWS(1, insomnia=insomnia), bed)
    elbo, whole = exact(Bits(), 1, mean)
    assert value.item() == pytest.approx(elbo.item(), abs=1e-12)
    awake = wake(Bits(), 1)[1]
    asleep = torch.autograd.grad(bed.dreamt(), [bed.a, bed.c])
    for name, gradient in zip(bed.of_guide, asleep, strict=True):
        reference = insomnia * awake[name] + (1 - insomnia) * gradient
        assert gradient.abs().max() > 1e-3
        torch.testing.assert_close(found[name], reference, rtol=0, atol=1e-10)
    for name in bed.of_model:
        torch.testing.assert_close(found[name], whole[name], rtol=0, atol=1e-10)


def test_the_sleep_phase_needs_data_that_can_be_dreamt():
    bed = Bits()

    def model(x):
        return bed.model(x + 0.0)

    with pytest.raises(ProgramError, match="not the argument itself: write obs=x"):
        RWS(2, insomnia=0.5).loss(model, bed.guide, bed.x)
    assert RWS(2).loss(model, bed.guide, bed.x) > 0

    flow = Flow("planar")
    with pytest.raises(ProgramError, match="a flow without an inverse"):
        RWS(2, insomnia=0.5).loss(flow.model, flow.guide, flow.x)


# ---------------------------------------------------------------------------- TVO


def every_state(bed, copies):
    """The table whose particles are all states, each as often, under a uniform guide."""
    z = bits(3).repeat(copies, 1)
    log_p = bed.log_joint(z[:, None], bed.x)
    log_q = torch.full_like(log_p, -3 * math.log(2)) + 0.0 * bed.log_q(z[:, None], bed.x)
    score = bed.log_q(z[:, None], bed.x)
    log_q = log_q.detach() + score - score.detach()
    ones = {"z": 1.0}
    return SiteTerms(
        {"z": log_p, "x": torch.zeros_like(log_p)}, {"z": log_q}, {}, {**ones, "x": 1.0}, ones
    )


def test_the_covariance_gradient_is_that_of_the_path():
    # With every state once the weighted means are exact; the factor S / (S - 1) of the covariance
    # is taken out with a second number of copies, in which it is linear.
    bed = Bits()
    with torch.no_grad():
        bed.a.zero_()
        bed.c.zero_()  # so that the guide is uniform, as the table has it

    def gradient(total):
        parameters = list(bed.parameters())
        return torch.cat([g.flatten() for g in torch.autograd.grad(total, parameters)])

    z = bits(3)[:, None]
    log_q, log_p = bed.log_q(z, bed.x), bed.log_joint(z, bed.x)
    log_w = log_p - log_q
    thermodynamic = 0.0
    for beta, end in ((0.0, 0.1), (0.1, 0.5), (0.5, 1.0)):
        tilted = (log_q + beta * log_w).softmax(0)
        thermodynamic = thermodynamic + (end - beta) * (tilted * log_w).sum(0)
    objective = TVO(8, points=(0.1, 0.5))
    once, twice = (every_state(bed, copies) for copies in (1, 2))
    torch.testing.assert_close(objective.value(once), thermodynamic.detach(), rtol=0, atol=1e-12)
    found = [gradient(objective.surrogate(terms).sum()) for terms in (once, twice)]
    factors = [8 / 7, 16 / 15]
    covariance = (found[0] - found[1]) / (factors[0] - factors[1])
    reference = gradient(thermodynamic.sum())
    assert covariance.abs().max() > 1e-2
    torch.testing.assert_close(
        found[0] - (factors[0] - 1) * covariance, reference, rtol=0, atol=1e-10
    )


def test_tvo_lies_between_the_elbo_and_iwae_for_any_samples():
    log_w = 3 * torch.randn(5, 200, dtype=torch.float64)
    terms = SiteTerms({"x": log_w}, {}, {})
    lines = [(), (0.3,), (0.03, 0.3), (0.03, 0.1, 0.3, 0.7)]
    values = [TVO(5, points=points).value(terms) for points in lines]
    values = [ELBO(5).value(terms), *values, IWAE(5).value(terms)]
    torch.testing.assert_close(values[0], values[1])
    assert all(bool((low < high).all()) for low, high in pairwise(values[1:]))


def test_the_value_of_tvo_has_the_exact_expectation():
    value, _ = expected(TVO(2, points=(0.1,)), Bits())
    assert value.item() == pytest.approx(exact(Bits(), 2, path)[0].item(), abs=1e-12)


# ---------------------------------------------------------------------------- order


@pytest.mark.parametrize("build", [Bits, partial(Gaussian, num_nodes=12)], ids=["Bits", "Gaussian"])
def test_the_bounds_grow_towards_log_p(build):
    bed = build()
    objectives = [ELBO(1), IWAE(2), IWAE(3)] if build is not Bits else [ELBO(1), RWS(2), RWS(3)]
    values = [expected(objective, bed)[0] for objective in objectives]
    assert values[0] < values[1] < values[2] < bed.log_p().mean()
    assert values[1] - values[0] > 1e-3


def test_the_bounds_of_the_same_samples_are_in_order():
    log_w = 2 * torch.randn(8, 100, dtype=torch.float64)
    terms = SiteTerms({"x": log_w}, {}, {})
    rising = [
        *(Renyi(alpha, 8) for alpha in (20.0, 3.0, 1.5)),
        ELBO(8),
        *(Renyi(alpha, 8) for alpha in (0.9, 0.5, 0.1, 0.0)),
    ]
    values = [objective.value(terms) for objective in rising]
    assert all(bool((low < high).all()) for low, high in pairwise(values))
    torch.testing.assert_close(values[-1], IWAE(8).value(terms))
    torch.testing.assert_close(Renyi(-1.0, 8).value(terms), values[-1])
    torch.testing.assert_close(Renyi(1 + 1e-7, 8).value(terms), values[3], rtol=1e-5, atol=1e-5)
    groups = [MIWAE(8, num_groups).value(terms).mean() for num_groups in (8, 4, 2, 1)]
    assert groups == sorted(groups)
    assert bool((CIWAE(0.3, 8).value(terms) > values[3]).all())
    torch.testing.assert_close(CIWAE(0.0, 8).value(terms), values[-1])
    torch.testing.assert_close(CIWAE(1.0, 8).value(terms), values[3])
    for same in (DReG(8), PIWAE(8), RWS(8), RWSDReG(8)):
        torch.testing.assert_close(same.value(terms), values[-1])


# ---------------------------------------------------------------------------- batches and plates

EVERY = {
    "Renyi": Renyi(0.5, 4),
    "MIWAE": MIWAE(4, 2),
    "CIWAE": CIWAE(0.3, 4),
    "PIWAE": PIWAE(4, 2),
    "DReG": DReG(4),
    "DReG 0.5": DReG(4, alpha=0.5),
    "RWS": RWS(4),
    "RWSDReG": RWSDReG(4),
    "TVO": TVO(4),
}
every = pytest.mark.parametrize("objective", EVERY.values(), ids=EVERY)


def run(objective, bed, x, noise):
    """Return the loss and the gradient over the batch."""
    program = Program(bed.model, bed.guide)
    layout = Probe(program, x).layout
    with program.running(), injected(noise):
        terms = objective.table(program, layout, x)
        loss = -data_scale(terms) * objective.value(terms).sum()
        total = -objective.surrogate(terms).sum()
    gradients = torch.autograd.grad(total, list(bed.parameters()))
    return loss.item(), torch.cat([gradient.flatten() for gradient in gradients])


@every
@pytest.mark.parametrize("bed", [Gaussian, Chain], ids=lambda bed: bed.__name__)
def test_each_datum_counts_for_itself(objective, bed):
    x = torch.randn(5, 2, dtype=torch.float64)
    noise = torch.randn(4, 5, bed.num_dims, dtype=torch.float64)
    loss, gradient = run(objective, bed(), x, noise)
    alone = [run(objective, bed(), x[i : i + 1], noise[:, i : i + 1]) for i in range(5)]
    assert loss == pytest.approx(sum(part for part, _ in alone), rel=1e-12)
    torch.testing.assert_close(gradient, sum(part for _, part in alone))
    scaled, found = run(objective, bed(full_size=15), x, noise)
    assert scaled == pytest.approx(3 * loss, rel=1e-12)
    torch.testing.assert_close(found, 3 * gradient)


def weighted(bed, weight):
    """Wrap model and guide so that all latents have a weight, as a KL weight does."""

    class Weight(poutine.messenger.Messenger):
        def _pyro_sample(self, msg):
            if not msg["is_observed"] and not poutine.util.site_is_subsample(msg):
                msg["scale"] = msg["scale"] * weight

    return Weight()(bed.model), Weight()(bed.guide)


@pytest.mark.parametrize(
    "objective", [IWAE(3), Renyi(0.5, 3), PIWAE(3, 1), MIWAE(3, 1)], ids=lambda o: type(o).__name__
)
def test_a_kl_weight_moves_the_gradient_but_not_the_reported_bound(objective):
    bed = Gaussian()
    model, guide = weighted(bed, 0.5)
    noise = torch.randn(3, 2, 1, dtype=torch.float64)
    loss, _ = run(objective, bed, bed.x, noise)
    program = Program(model, guide)
    layout = Probe(program, bed.x).layout
    with program.running(), injected(noise):
        terms = objective.table(program, layout, bed.x)
        value, total = objective.value(terms).sum(), objective.surrogate(terms).sum()
    assert -value.item() == pytest.approx(loss, rel=1e-12)
    found = torch.autograd.grad(total, list(bed.parameters()))
    z = bed.x @ bed.a + bed.c + bed.s.exp() * noise
    log_prior = dist.Normal(0.0, 1.0).log_prob(z).sum(-1)
    kl = bed.log_q(z, bed.x) - log_prior
    log_w = bed.log_joint(z, bed.x) - log_prior - 0.5 * kl
    alpha = getattr(objective, "alpha", 0.0)
    reference = torch.autograd.grad(power(alpha)(log_w).sum(), list(bed.parameters()))
    for one, other in zip(found, reference, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("objective", [DReG(3), RWSDReG(3)], ids=["DReG", "RWSDReG"])
def test_what_would_be_biased_by_a_kl_weight_is_refused(objective):
    bed = Gaussian()
    with pytest.raises(ValueError, match=r"weighs that of site 'z' with 0\.5"):
        objective.loss(*weighted(bed, 0.5), bed.x)
    model, guide = (poutine.scale(f, scale=0.25) for f in (bed.model, bed.guide))
    assert objective.loss(model, guide, bed.x) > 0


# ---------------------------------------------------------------------------- beside Pyro's


@pytest.mark.parametrize("alpha", [0.0, 0.5, 2.0, -1.0])
def test_renyi_is_pyros(alpha):
    bed = Gaussian()

    def gradient(objective):
        torch.manual_seed(0)
        bed.zero_grad()
        svi = SVI(bed.model, bed.guide, torch.optim.SGD, objective)
        loss = svi.loss_and_grads(bed.x)
        return loss, torch.cat([p.grad.flatten() for p in bed.parameters()])

    theirs = RenyiELBO(alpha, num_particles=5, vectorize_particles=True, max_plate_nesting=1)
    (loss, found), (expected_loss, reference) = gradient(Renyi(alpha, 5)), gradient(theirs)
    if alpha >= 0:
        assert loss == pytest.approx(expected_loss, rel=1e-12)
    torch.testing.assert_close(found, reference)


def test_pyros_renyi_does_not_train_a_discrete_guide_and_ours_says_so():
    bed = Bits()
    theirs = RenyiELBO(0.0, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    theirs.loss_and_grads(bed.model, bed.guide, bed.x)
    assert bed.a.grad is None or bool((bed.a.grad == 0).all())
    with pytest.raises(ValueError, match=r"'z'.*(VIMCO|RWS)"):
        SVI(bed.model, bed.guide, torch.optim.SGD, theirs).step(bed.x)
    with pytest.raises(ValueError, match=r"Renyi needs .* site 'z' carry no .* use VIMCO or RWS"):
        Renyi(0.0, 3).loss(bed.model, bed.guide, bed.x)
    assert wake(bed, 2)[1]["a"].abs().max() > 1e-2


def test_pyros_renyi_is_no_bound_of_a_subsampled_plate():
    bed, noise = Gaussian(full_size=2000), torch.randn(3, 2, 1, dtype=torch.float64)
    theirs = RenyiELBO(0.5, num_particles=3, vectorize_particles=True, max_plate_nesting=1)
    with injected(noise):
        wrong = theirs.loss(bed.model, bed.guide, bed.x)
    loss, _ = run(Renyi(0.5, 3), Gaussian(), bed.x, noise)
    ours, _ = run(Renyi(0.5, 3), bed, bed.x, noise)
    assert ours == pytest.approx(1000 * loss)
    assert wrong != pytest.approx(1000 * loss, rel=1e-3)


def test_pyros_wake_sleep_weighs_the_data_together_and_ours_does_not():
    bed, noise = Bits(), torch.randint(0, 2, (3, 2, 3)).double()

    def theirs(x, noise):
        pyro_rws = ReweightedWakeSleep(
            num_particles=3, vectorize_particles=True, max_plate_nesting=1
        )
        with injected(noise):
            return pyro_rws.loss(bed.model, bed.guide, x)[0]

    alone = [(bed.x[i : i + 1], noise[:, i : i + 1]) for i in range(2)]
    ours = [run(RWS(3), bed, *one)[0] for one in alone]
    assert [theirs(*one) for one in alone] == pytest.approx(ours)
    assert run(RWS(3), bed, bed.x, noise)[0] == pytest.approx(sum(ours))
    assert theirs(bed.x, noise) != pytest.approx(sum(ours), rel=1e-3)


# ---------------------------------------------------------------------------- any program


class Flow(Bed):
    """A guide whose posterior is a flow: of one layer that can only be run forwards, or of two."""

    of_model, of_guide, num_dims = ("w", "b"), (), 2

    def __init__(self, kind, *, num_nodes=14):
        super().__init__({"w": (2, 2), "b": (2,), "a": (2, 2)}, scale=0.2)
        self.num_nodes = num_nodes
        self.x = torch.tensor([[0.4, -0.3]], dtype=torch.float64)
        torch.manual_seed(2)
        self.layers = nn.ModuleList(FLOWS[kind]())
        with torch.no_grad():
            for parameter in self.layers.parameters():
                parameter.mul_(0.3)
        self.double()

    def model(self, x):
        with self.plate(x):
            prior = dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ self.w + self.b, 1.0).to_event(1), obs=x)

    def guide(self, x):
        base = dist.Normal(x @ self.a, 0.9).to_event(1)
        with self.plate(x):
            pyro.sample("z", dist.TransformedDistribution(base, list(self.layers)))

    def tuples(self, num_particles):
        return hermite(self.num_nodes, num_particles, 2)

    def draw(self, noise, x):
        return noise.unsqueeze(-2)

    def log_q(self, z, x):
        return z.sum(-1).expand(*z.shape[:-2], len(x))  # its weights do not depend on it


def autoregressive(**options):
    return flows.AffineAutoregressive(AutoRegressiveNN(2, [3], nonlinearity=nn.Tanh()), **options)


FLOWS = {
    "planar": lambda: [flows.planar(2)],
    "autoregressive": lambda: [autoregressive()],
    "two layers": lambda: [autoregressive(stable=True), flows.planar(2)],
}


@pytest.mark.parametrize("kind", FLOWS)
def test_dreg_trains_flows_without_inverting_them(kind, monkeypatch):
    def inverts(self, value):
        raise AssertionError("inverted")

    monkeypatch.setattr(flows.AffineAutoregressive, "_inverse", inverts)
    monkeypatch.setattr(flows.AffineAutoregressive, "_inverse_stable", inverts)
    # The integrand of two particles is not as smooth: what is left is the quadrature's error.
    for num_particles, nodes, tolerance in ((1, 40, 1e-9), (2, 10, 1e-4)):
        bed = Flow(kind, num_nodes=nodes)
        reference = expected(IWAE(num_particles), bed)
        assert reference[1]["a"].abs().max() > 1e-3
        assert distance(expected(DReG(num_particles), bed), reference) < tolerance
        gap = distance(expected(LostWeight(num_particles), bed), reference)
        assert num_particles == 1 or gap > 1e-2


class Whole(ELBO):
    def surrogate(self, terms):
        return terms.log_w.mean(0)


class Ways(ELBO):
    def table(self, program, layout, *args):
        return split_terms(program, layout, *args, num_particles=self.num_particles)

    def surrogate(self, terms):
        log_p, log_q = weighed(terms)
        return (log_p - log_q + through_samples(terms, log_p - log_q)).mean(0)


@pytest.mark.parametrize("name", PROGRAMS)
def test_the_three_ways_add_up_to_the_whole_gradient_of_any_program(name):
    pair = PROGRAMS[name]()
    gradients = []
    for objective in (Whole(3), Ways(3)):
        torch.manual_seed(0)
        svi = SVI(pair.model, pair.guide, torch.optim.SGD, objective)
        loss = svi.loss_and_grads(*pair.args)
        gradients.append([loss, *(p.grad.clone() for p in svi.parameters.values())])
        svi.optimizer.zero_grad()
    assert len(gradients[0]) > 1
    for whole, ways in zip(*gradients, strict=True):
        torch.testing.assert_close(ways, whole)


RECORDED = {
    **{name: (objective, Chain) for name, objective in EVERY.items()},
    "sleeping": (RWS(3, insomnia=0.3), Chain),
    "sleeping, Bits": (RWS(3, insomnia=0.3), Bits),
    "TVO, Bits": (TVO(3), Bits),
}


@pytest.mark.parametrize("name", some(RECORDED, "DReG 0.5", "sleeping, Bits"))
def test_recorded_steps_have_the_bits_of_eager_ones(name):
    recorded_as_eager(*RECORDED[name])


def recorded_as_eager(objective, build):
    # Each shape is recorded anew: it decides what is dreamt, and nothing else here.
    sizes = (5, 4, 5) if getattr(objective, "insomnia", 1.0) < 1 else (5, 5, 5)

    def steps(engine):
        bed = build()
        x = bed.x.repeat(5, 1)
        torch.manual_seed(1)
        svi = SVI(bed.model, bed.guide, torch.optim.Adam, objective, engine=engine)
        losses = [svi.step(x[:size]) for size in sizes]
        return losses, [p.detach() for p in bed.parameters()], svi.recorded

    (eager, weights, _), (recorded, found, replayed) = steps("eager"), steps("recorded")
    assert replayed
    assert eager == recorded
    assert all(map(torch.equal, weights, found))


@pytest.mark.slow
def test_a_recorded_step_of_a_flow_has_its_eager_bits():
    recorded_as_eager(DReG(3), partial(Flow, "two layers"))


@pytest.mark.parametrize(
    "objective", [DReG(3), PIWAE(4, 2), RWS(3), TVO(3)], ids=lambda o: type(o).__name__
)
def test_they_work_in_pyros_own_svi(objective):
    bed = Gaussian()

    def model(x):
        pyro.module("bed", bed)
        bed.model(x)

    before = [p.detach().clone() for p in bed.parameters()]
    svi = pyro.infer.SVI(model, bed.guide, pyro.optim.Adam({"lr": 0.01}), objective)
    assert all(math.isfinite(svi.step(bed.x)) for _ in range(3))
    assert not any(map(torch.equal, before, bed.parameters()))


# ---------------------------------------------------------------------------- chunks


class Chunked(IWAE):
    """All particles with the random numbers of the chunks."""

    def table(self, program, layout, *args):
        tables = [site_terms(program, layout, *args, num_particles=size) for size in (4, 4, 2)]
        columns = {
            part: {
                name: torch.cat([getattr(table, part)[name] for table in tables])
                for name in getattr(tables[0], part)
            }
            for part in ("log_p", "log_q")
        }
        return replace(tables[0], **columns)


def test_chunks_give_the_gradient_of_all_particles_at_once():
    bed = Chain()

    def gradient(objective):
        torch.manual_seed(0)
        bed.zero_grad()
        svi = SVI(bed.model, bed.guide, torch.optim.SGD, objective)
        return svi.loss_and_grads(bed.x), [p.grad.clone() for p in bed.parameters()]

    loss, found = gradient(InChunks(IWAE(10), particles_at_once=4))
    expected_loss, reference = gradient(Chunked(10))
    assert loss == expected_loss
    assert all(map(torch.equal, found, reference))


def test_only_one_chunk_is_held_in_memory():
    held = weakref.WeakSet()

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
            hidden = (pyro.param("w", x.new_ones(1, 50)) * z).tanh()
            held.add(hidden.untyped_storage())
            pyro.sample("x", dist.Normal(hidden.mean(-1), 1.0), obs=x[:, 0])

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(pyro.param("loc", x.new_zeros(1)), 1.0).to_event(1))

    x = torch.zeros(3, 1)

    def most(objective):
        objective.loss(model, guide, x)
        held.clear()
        loss = objective.differentiable_loss(model, guide, x)
        gc.collect()
        return sum(storage.nbytes() for storage in held), loss

    whole, kept = most(IWAE(12))
    assert whole >= 12 * 3 * 50 * 4
    chunks, kept = most(InChunks(IWAE(12), particles_at_once=2))
    assert chunks == 0
    kept.backward()
    assert pyro.param("w").grad.abs().max() > 0


def test_chunks_are_only_for_objectives_made_of_log_densities():
    with pytest.raises(TypeError, match=r"InChunks\(DReG\).*use IWAE"):
        InChunks(DReG(4), 2)
    with pytest.raises(ValueError, match="particles_at_once=0"):
        InChunks(IWAE(4), 0)
    bed = Bits()
    with pytest.raises(ValueError, match="IWAE needs reparameterised latents"):
        InChunks(IWAE(4), 2).loss(bed.model, bed.guide, bed.x)
    bed = Gaussian()
    svi = SVI(bed.model, bed.guide, torch.optim.SGD, InChunks(IWAE(4), 2), engine="recorded")
    svi.step(bed.x)
    with pytest.warns(UserWarning, match="running eagerly"):
        svi.step(bed.x)


# ---------------------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Renyi(1.0), "alpha=1: .* use ELBO"),
        (lambda: Renyi(math.inf), "alpha=inf: the order is a finite number"),
        (lambda: Renyi(math.nan), "alpha=nan"),
        (lambda: DReG(alpha=1), "alpha=1: .* use ELBO"),
        (lambda: CIWAE(-0.1), r"beta=-0\.1: .* between 0 and 1"),
        (lambda: CIWAE(math.nan), "beta=nan"),
        (lambda: MIWAE(10, 3), "num_groups=3: 10 particles .* divisor of num_particles=10"),
        (lambda: PIWAE(10, 0), "num_groups=0"),
        (lambda: RWS(insomnia=1.5), r"insomnia=1\.5: .* between 0 and 1"),
        (lambda: RWSDReG(1), "num_particles=1: .* take more, or ELBO"),
        (lambda: TVO(1), "num_particles=1: the covariance"),
        (lambda: TVO(points=(0.3, 0.1)), r"points=\(0\.3, 0\.1\): .* increase"),
        (lambda: TVO(points=(0.0,)), "from above 0 to below 1"),
        (lambda: TVO(points=(math.nan,)), "points=.nan"),
        *((partial(kind, num_particles=0), "num_particles=0") for kind in (Renyi, CIWAE, DReG)),
        *((partial(kind, num_particles=0), "num_particles=0") for kind in (RWS, RWSDReG, TVO)),
        (lambda: MIWAE(0, 1), "num_particles=0"),
        (lambda: detached(3.0), r"detached\(3\.0\): expected a distribution"),
        (lambda: detached(dist.Bernoulli(0.5)), "over discrete values has no gradient"),
    ],
)
def test_bad_arguments_are_named(build, message):
    with pytest.raises((ValueError, TypeError), match=message) as caught:
        build()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "objective",
    [Renyi(0.5, 4), MIWAE(4, 2), CIWAE(0.3, 4), PIWAE(4, 2), DReG(4), RWSDReG(4)],
    ids=lambda o: type(o).__name__,
)
def test_latents_without_gradients_are_refused_before_the_first_step(objective):
    bed = Bits()
    svi = SVI(bed.model, bed.guide, partial(torch.optim.SGD, lr=1.0), objective)
    before = torch.get_rng_state()
    with pytest.raises(ValueError, match=f"{type(objective).__name__} needs .* use VIMCO or RWS"):
        svi.step(bed.x)
    assert torch.equal(before, torch.get_rng_state())
    assert all(parameter.grad is None for parameter in bed.parameters())
