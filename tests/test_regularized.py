"""Regularised objectives against closed forms, brute force and enumeration."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import Bits, Chain, Gaussian, bed_mean, distance, exact, expected
from laws import PROGRAMS
from pyro.infer import TraceMeanField_ELBO
from quick import some
from torch import nn
from torch.distributions import kl_divergence

from pyro_vae import SVI
from pyro_vae.inference import ELBO, Probe, Program, site_terms
from pyro_vae.inference.aggregate import (
    DIPVAE,
    BetaTCVAE,
    GaussianKernel,
    InfoVAE,
    InverseMultiquadratic,
    OfMeans,
    OfSamples,
    mmd2,
    stratified_weights,
)
from pyro_vae.inference.handlers import KLWeight
from pyro_vae.inference.objectives import AnalyticELBO
from pyro_vae.inference.regularized import BetaVAE, Capacity, FreeBits, Groups, Layers, Units
from pyro_vae.inference.schedules import Linear, Scheduled

B, D = 5, 4


class Free(nn.Module):
    """z ~ N(m, t^2) in D units, x ~ N(zw, 1); the posterior of each datum is free."""

    def __init__(self, *, full_size=None, num_rows=B):
        super().__init__()
        generator = torch.Generator().manual_seed(6)
        draw = partial(torch.randn, generator=generator, dtype=torch.float64)
        self.x = draw(num_rows, 3)
        self.loc, self.raw = nn.Parameter(draw(num_rows, D)), nn.Parameter(0.3 * draw(num_rows, D))
        self.w = nn.Parameter(draw(D, 3))
        self.m = nn.Parameter(0.4 * draw(D))
        self.full_size = full_size

    def plate(self, x):
        return pyro.plate("data", self.full_size or len(x), subsample=x)

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(self.m, 1.3).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            scale = self.raw[: len(x)].exp()
            pyro.sample("z", dist.Normal(self.loc[: len(x)], scale).to_event(1))

    def kl(self):
        """The KL of each unit, written out: [B, D]."""
        scale = self.raw.exp() / 1.3
        return 0.5 * (scale.square() + ((self.loc - self.m) / 1.3) ** 2 - 1) - scale.log()


class Correlated(Free):
    """The same, with a posterior whose units depend on each other."""

    def guide(self, x):
        with self.plate(x):
            tril = torch.eye(D).double() + 0.1 * torch.ones(D, D).double().tril(-1)
            pyro.sample("z", dist.MultivariateNormal(self.loc[: len(x)], scale_tril=tril))


class Dimmed(Free):
    """The same, with binary latents."""

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Bernoulli(logits=self.m).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            pyro.sample("z", dist.Bernoulli(logits=self.loc[: len(x)]).to_event(1))


def table(program, num_particles=1, seed=0):
    torch.manual_seed(seed)
    found = Program(program.model, program.guide)
    with found.running():
        layout = Probe(found, program.x).layout
        torch.manual_seed(seed)
        return site_terms(found, layout, program.x, num_particles=num_particles)


def gradient(total, program):
    parameters = list(program.parameters())
    found = torch.autograd.grad(total, parameters, allow_unused=True)
    return [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, found, strict=True)]


def gap(found, expected):
    return max((a - b).abs().max().item() for a, b in zip(found, expected, strict=True))


# -------------------------------------------------------------------------- closed forms of the KL


BEDS = {"mean-field": Gaussian, "not mean-field": Chain, "bits": Bits}


@pytest.mark.parametrize("num_particles", [1, 2])
@pytest.mark.parametrize("build", BEDS.values(), ids=BEDS)
def test_the_analytic_elbo_has_the_elbos_expectation(build, num_particles):
    if build is Chain and num_particles > 1:
        pytest.skip("a grid of 12^4 nodes")
    bed = build()
    reference = exact(bed, num_particles, lambda log_w: log_w.mean(0))
    assert distance(expected(AnalyticELBO(num_particles), bed), reference) < 1e-10
    for mutant in (Heavier, Halved):
        assert distance(expected(mutant(num_particles), bed), reference) > 1e-5


class Heavier(AnalyticELBO):
    """A KL 0.1 % too large."""

    def surrogate(self, terms):
        (name, *_) = terms.log_q
        return super().surrogate(terms) - 1e-3 * terms.kl(name).mean(0)


class Halved(AnalyticELBO):
    """A sum over particles where the mean is due, or a likelihood that counts half."""

    def surrogate(self, terms):
        return super().surrogate(terms) + 0.5 * terms.distortion.mean(0)


class MeanFieldAnyway(AnalyticELBO):
    """The closed form of every site, as Pyro takes it."""

    def value(self, terms):
        kl = sum(site.kl() for sites in terms.latents.values() for site in sites)
        return (-terms.distortion - kl).mean(0)


def test_a_guide_that_is_not_mean_field_is_right_here_and_wrong_in_pyro():
    # z2 ~ N(0, 1), z1 ~ N(z2, 1), x ~ N(z1, 1), with the exact posterior drawn as q(z1) q(z2 | z1).
    def model(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.Normal(x.new_zeros(()), 1.0))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0))
            pyro.sample("x", dist.Normal(z1, 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            z1 = pyro.sample("z1", dist.Normal(2 * x / 3, math.sqrt(2 / 3)))
            pyro.sample("z2", dist.Normal(z1 / 2, math.sqrt(0.5)))

    x = torch.tensor([1.0], dtype=torch.float64)
    log_p = dist.Normal(0.0, math.sqrt(3.0)).log_prob(x).item()
    torch.manual_seed(0)
    n = 20_000
    ours = -AnalyticELBO(n).loss(model, guide, x)
    pyros = TraceMeanField_ELBO(n, vectorize_particles=True, max_plate_nesting=1)
    with pytest.warns(UserWarning, match="mean field"):
        theirs = -pyros.loss(model, guide, x)
    assert ours == pytest.approx(log_p, abs=0.02)
    assert abs(theirs - log_p) > 0.1
    assert MeanFieldAnyway(n).loss(model, guide, x) == pytest.approx(-theirs, abs=0.02)


def test_which_sites_have_a_closed_form():
    closed = {name: [] for name in PROGRAMS}
    for name, build in PROGRAMS.items():
        pyro.clear_param_store()
        pair = build()
        program = Program(pair.model, pair.guide)
        with program.running():
            terms = site_terms(
                program, Probe(program, *pair.args).layout, *pair.args, num_particles=2
            )
        closed[name] = [site for site in terms.log_q if terms.closed_kl(site) is not None]
        for site in closed[name]:
            assert terms.kl(site).shape == terms.log_q[site].shape
            units = Units()(terms, site)
            torch.testing.assert_close(units.sum(-1), terms.kl(site))
    # In the guide of "two latents" z1 comes first, in its model z2: the KL of z1 is sampled.
    assert closed.pop("two latents") == ["z2"]
    assert closed.pop("inner plate") == ["z", "e"]
    assert all(sites == ["z"] for sites in closed.values())


def test_a_closed_kl_is_that_of_torch_for_any_pair():
    program = Free()
    terms = table(program, num_particles=3)
    q = dist.Normal(program.loc, program.raw.exp())
    expected = kl_divergence(q, torch.distributions.Normal(program.m, 1.3))
    torch.testing.assert_close(terms.closed_kl("z"), expected.sum(-1).expand(3, B))
    torch.testing.assert_close(terms.unit_kl("z"), program.kl().expand(3, B, D))
    assert table(Correlated()).unit_kl("z") is None
    assert table(Correlated()).closed_kl("z") is None


class Masked(Free):
    """The same, with a latent that counts for some data only; in the model for others, if told."""

    def __init__(self, *, shifted=False):
        super().__init__()
        self.in_guide = torch.arange(B) < 3
        self.in_model = torch.arange(B) < 2 if shifted else self.in_guide

    def model(self, x):
        with self.plate(x):
            with pyro.poutine.mask(mask=self.in_model[: len(x)] if len(x) < B else self.in_model):
                z = pyro.sample("z", dist.Normal(self.m, 1.3).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.poutine.mask(mask=self.in_guide[: len(x)] if len(x) < B else self.in_guide):
            super().guide(x)


def test_a_mask_holds_for_the_closed_form_where_both_sides_have_it():
    program = Masked()
    terms = table(program)
    expected = torch.where(program.in_guide, program.kl().sum(-1), 0.0)
    torch.testing.assert_close(terms.closed_kl("z")[0], expected)
    terms = table(Masked(shifted=True))
    assert terms.closed_kl("z") is None
    torch.testing.assert_close(terms.kl("z"), terms.rate)


def test_a_point_with_a_density_of_its_own_is_not_taken_for_one_without():
    # Pyro registers the KL of a Delta without its log-density, which here is that of a normal.
    class Injected(Free):
        def guide(self, x):
            with self.plate(x):
                q = dist.Normal(self.loc[: len(x)], 0.5)
                z = q.rsample()
                pyro.sample("z", dist.Delta(z, q.log_prob(z)).to_event(1))

    terms = table(Injected())
    torch.testing.assert_close(terms.kl("z"), terms.rate)
    fns = (terms.latents["z"][0].guide["fn"], terms.latents["z"][0].model["fn"])
    assert (kl_divergence(*fns) - terms.rate[0]).abs().min() > 0.1


def test_uneven_scales_keep_the_expectation_of_what_they_weigh():
    # a log p - b log q with different weights: Pyro takes b KL for it.
    bed = Gaussian()

    def weighed(log_p, log_q):
        noise, _ = bed.tuples(1)
        z = bed.draw(noise, bed.x)
        log_prior = -0.5 * (z.square() + math.log(2 * math.pi)).sum(-1)
        return (log_p - 0.9 * log_prior - 0.7 * log_q).mean(0)

    total = bed_mean(bed, 1, weighed)
    reference = dict(zip(dict(bed.named_parameters()), gradient(total, bed), strict=True))
    uneven = Gaussian()
    uneven.model, uneven.guide = KLWeight(0.1)(uneven.model), KLWeight(0.7)(uneven.guide)
    value = exact(bed, 1, lambda log_w: log_w.mean(0))[0]
    assert distance(expected(AnalyticELBO(), uneven), (value, reference)) < 1e-10
    assert distance(expected(ELBO(), uneven), (value, reference)) < 1e-10


# ------------------------------------------------------------------------ what is reported, always

OBJECTIVES = {
    "BetaVAE": partial(BetaVAE, 3.0),
    "Capacity": partial(Capacity, 2.0, 30.0),
    "FreeBits, layers": partial(FreeBits, 1.0),
    "FreeBits, groups": partial(FreeBits, 0.4, Groups(2)),
    "FreeBits, units": partial(FreeBits, 0.2, Units()),
    "InfoVAE": InfoVAE,
    "InfoVAE, multiquadratic": partial(InfoVAE, 0.5, 20.0, InverseMultiquadratic()),
    "BetaTCVAE": partial(BetaTCVAE, num_data=50),
    "DIPVAE, means": partial(DIPVAE, OfMeans()),
    "DIPVAE, samples": partial(DIPVAE, OfSamples()),
}
objectives = pytest.mark.parametrize("build", OBJECTIVES.values(), ids=OBJECTIVES)
EVERY = {
    **{name: (build, Free) for name, build in OBJECTIVES.items()},
    "AnalyticELBO": (AnalyticELBO, Free),
    "AnalyticELBO, no closed form": (AnalyticELBO, Correlated),
    "AnalyticELBO, bits": (AnalyticELBO, Dimmed),
}
every = pytest.mark.parametrize(("build", "of_program"), EVERY.values(), ids=EVERY)


@objectives
@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_elbo_is_reported_and_something_else_optimised(build, num_particles):
    losses, gradients = [], []
    for objective in (ELBO(num_particles), build(num_particles=num_particles)):
        program = Free()
        torch.manual_seed(4)
        loss = objective.differentiable_loss(program.model, program.guide, program.x)
        losses.append(loss.item())
        gradients.append(gradient(loss, program))
    assert losses[1] == pytest.approx(losses[0], rel=1e-13)
    assert gap(*gradients) > 0.01


@every
def test_a_subsampled_plate_scales_the_whole(build, of_program):
    results = []
    for full_size in (None, 50):
        program = of_program(full_size=full_size)
        torch.manual_seed(4)
        loss = build().differentiable_loss(program.model, program.guide, program.x)
        results.append((loss.item(), gradient(loss, program)))
    assert results[1][0] == pytest.approx(10 * results[0][0])
    assert gap([10 * g for g in results[0][1]], results[1][1]) < 1e-9


@pytest.mark.parametrize("name", some(EVERY, "FreeBits, groups", "BetaTCVAE"))
def test_recorded_steps_have_the_bits_of_eager_ones(name):
    build, of_program = EVERY[name]

    def run(engine):
        torch.manual_seed(3)
        program = of_program()
        adam = partial(torch.optim.Adam, lr=0.05)
        svi = SVI(program.model, program.guide, adam, build(num_particles=2), engine=engine)
        losses = [svi.step(program.x) for _ in range(3)]
        return losses, [p.tolist() for p in program.parameters()], svi.recorded

    found, expected = run("recorded"), run("eager")
    assert found[:2] == expected[:2]
    assert (found[2], expected[2]) == (True, False)


@objectives
def test_a_last_batch_of_one_datum_does_no_harm(build):
    program = Free()
    objective = build()
    objective.loss(program.model, program.guide, program.x)
    loss = objective.differentiable_loss(program.model, program.guide, program.x[:1])
    assert all(g.isfinite().all() for g in gradient(loss, program))


# ---------------------------------------------------------------------- KL against closed forms


def penalty_and_gradient(objective, program, num_particles=1):
    """Return the mean penalty over the batch, and its gradient."""
    penalty = objective.penalty(table(program, num_particles))
    assert penalty.shape == (len(program.x),)
    return penalty.mean().item(), gradient(penalty.mean(), program)


def free_bits(program, nats, groups):
    """Written out: the gradient of the parts above the threshold, and of no other."""
    kl = program.kl().unflatten(1, (groups, -1)).sum(-1).mean(0)
    above = (kl > nats).double()
    assert 0 < above.sum() <= groups or groups == 1
    return torch.where(kl > nats, kl, torch.as_tensor(nats)).sum(), (above.detach() * kl).sum()


CLOSED = {
    "BetaVAE": (BetaVAE(3.0), lambda p: (3 * p.kl().sum(-1).mean(),) * 2),
    "BetaVAE, 0": (BetaVAE(0.0), lambda p: (0 * p.kl().sum(-1).mean(),) * 2),
    "Capacity above": (Capacity(50.0, 7.0), lambda p: (7 * (50 - p.kl().sum(-1).mean()),) * 2),
    "Capacity below": (Capacity(0.5, 7.0), lambda p: (7 * (p.kl().sum(-1).mean() - 0.5),) * 2),
    "FreeBits, layer below": (FreeBits(1e3), lambda p: free_bits(p, 1e3, 1)),
    "FreeBits, layer above": (FreeBits(0.1, Layers()), lambda p: free_bits(p, 0.1, 1)),
    "FreeBits, groups": (FreeBits(1.2, Groups(2)), lambda p: free_bits(p, 1.2, 2)),
    "FreeBits, units": (FreeBits(0.6, Units()), lambda p: free_bits(p, 0.6, 4)),
    "DIPVAE, means": (
        DIPVAE(OfMeans(), off_diagonal=2.0, diagonal=3.0),
        lambda p: (p.kl().sum(-1).mean() + dip(p, torch.zeros(D)),) * 2,
    ),
    "DIPVAE, samples": (
        DIPVAE(off_diagonal=2.0, diagonal=3.0),
        lambda p: (p.kl().sum(-1).mean() + dip(p, (2 * p.raw).exp().mean(0)),) * 2,
    ),
}


def dip(program, extra):
    """By the definition of a covariance, entry by entry."""
    total = 0.0
    for i, j in itertools.product(range(D), repeat=2):
        a, b = program.loc[:, i], program.loc[:, j]
        c = (a * b).mean() - a.mean() * b.mean() + (extra[i] if i == j else 0.0)
        total = total + (3 * (c - 1) ** 2 if i == j else 2 * c**2)
    return total


@pytest.mark.parametrize("num_particles", [1, 3])
@pytest.mark.parametrize(("objective", "closed"), CLOSED.values(), ids=CLOSED)
def test_penalties_have_their_closed_forms(objective, closed, num_particles):
    program = Free()
    value, differentiated = closed(program)
    expected = gradient(differentiated, program) if differentiated.requires_grad else None
    found, slopes = penalty_and_gradient(objective, program, num_particles)
    assert found == pytest.approx(value.item(), rel=1e-12, abs=1e-12)
    assert gap(slopes, expected) < 1e-10


def test_a_part_below_its_free_bits_has_exactly_no_gradient():
    program = Free()
    kl = program.kl().mean(0)
    threshold = kl.sort().values[1:3].mean().item()  # two units below, two above
    _, slopes = penalty_and_gradient(FreeBits(threshold, Units()), program)
    below = kl < threshold
    assert below.sum() == 2
    of_loc = slopes[0]
    assert (of_loc[:, below] == 0).all()
    assert (of_loc[:, ~below] != 0).all()
    # Were it decided for each datum, as a mutant does, some of these would not be.
    each = torch.where(program.kl() > threshold, program.kl(), threshold).sum(-1).mean()
    assert gap(slopes, gradient(each, program)) > 1e-3


@pytest.mark.parametrize("weight", [0.5, 0.0])
def test_handlers_weigh_the_penalty(weight):
    for objective, _ in list(CLOSED.values())[:2] + list(CLOSED.values())[4:8]:
        plain = Free()
        value, slopes = penalty_and_gradient(objective, plain)
        weighed = Free()
        weighed.model = KLWeight(weight)(weighed.model)
        weighed.guide = KLWeight(weight)(weighed.guide)
        found, halved = penalty_and_gradient(objective, weighed)
        assert found == pytest.approx(weight * value)
        assert gap(halved, [weight * s for s in slopes]) < 1e-12


@pytest.mark.parametrize("program", [Gaussian, Chain], ids=["one latent", "two latents"])
def test_beta_one_is_the_analytic_elbo(program):
    bed = program()
    reference = exact(bed, 1, lambda log_w: log_w.mean(0))
    assert distance(expected(BetaVAE(1.0), bed), reference) < 1e-10
    assert distance(expected(BetaVAE(1.001), bed), reference) > 1e-5
    assert distance(expected(BetaVAE(Scheduled(Linear(1.0))), bed), reference) < 1e-10


# --------------------------------------------------------------------- the maximum mean discrepancy

KERNELS = {"Gaussian": GaussianKernel(0.8), "multiquadratic": InverseMultiquadratic(1.7)}


def kernel_of(kernel, a, b):
    square = sum((float(x) - float(y)) ** 2 for x, y in zip(a, b, strict=True))
    width = 2 * len(a) * kernel.length_scale**2
    gaussian = isinstance(kernel, GaussianKernel)
    return math.exp(-square / width) if gaussian else width / (width + square)


def brute_mmd2(kernel, a, b, *, diagonal=False):
    def within(c):
        pairs = [(i, j) for i in range(len(c)) for j in range(len(c)) if diagonal or i != j]
        return sum(kernel_of(kernel, c[i], c[j]) for i, j in pairs) / len(pairs)

    between = sum(kernel_of(kernel, x, y) for x in a for y in b) / (len(a) * len(b))
    return within(a) + within(b) - 2 * between


@pytest.mark.parametrize("kernel", KERNELS.values(), ids=KERNELS)
def test_the_discrepancy_is_that_of_two_loops(kernel):
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(2, 6, 3, generator=generator, dtype=torch.float64)
    b = torch.randn(2, 4, 3, generator=generator, dtype=torch.float64) + 0.5
    found = mmd2(a, b, kernel)
    for i in range(2):
        assert found[i].item() == pytest.approx(brute_mmd2(kernel, a[i], b[i]), abs=1e-12)
        # Mutants: the diagonal kept, as pixyz does, and the axes of data and units swapped.
        assert found[i].item() != pytest.approx(
            brute_mmd2(kernel, a[i], b[i], diagonal=True), abs=1e-3
        )
    swapped = mmd2(a[:, :4].mT, b.mT, kernel)
    assert (swapped - mmd2(a[:, :4], b, kernel)).abs().min() > 1e-3
    same = [mmd2(*torch.randn(2, 20, 3, generator=generator), kernel) for _ in range(400)]
    z_score = torch.stack(same).mean() / torch.stack(same).std() * 20
    assert abs(z_score) < 5  # unbiased: zero where the distributions agree


def test_info_vae_weighs_kl_and_distance():
    program = Free()
    kernel = GaussianKernel()
    torch.manual_seed(0)
    terms = table(program, 2)
    torch.manual_seed(8)
    distances = InfoVAE(kernel=kernel).distance(terms)
    torch.manual_seed(8)
    prior = dist.Normal(program.m.expand(2, B, D), 1.3).to_event(1).rsample()
    z, prior = terms.values["z"].detach(), prior.detach()
    by_hand = [brute_mmd2(kernel, z[s], prior[s]) for s in range(2)]
    assert distances.item() == pytest.approx(sum(by_hand) / 2, abs=1e-10)
    for alpha, weight in ((0.0, 10.0), (0.5, 3.0), (1.0, 2.0)):
        torch.manual_seed(8)
        found = InfoVAE(alpha, weight, kernel).penalty(terms)
        expected = (1 - alpha) * program.kl().sum(-1) + (alpha + weight - 1) * distances
        torch.testing.assert_close(found, expected)


# -------------------------------------------------------------------------------- total correlation


@pytest.mark.parametrize("num_particles", [1, 3])
def test_the_three_parts_add_up_to_the_kl(num_particles):
    terms = table(Free(), num_particles)
    for num_data in (B, 50, 10**6):
        parts = BetaTCVAE(num_data=num_data).parts(terms)
        total = sum(parts.values())
        torch.testing.assert_close(total, terms.rate, rtol=1e-12, atol=1e-12)
        assert all(part.shape == (num_particles, B) for part in parts.values())
        penalty = BetaTCVAE(1.0, num_data=num_data).penalty(terms)
        torch.testing.assert_close(penalty, terms.rate.mean(0), rtol=1e-12, atol=1e-12)


def test_with_the_whole_data_set_the_aggregate_is_exact():
    program = Free()
    terms = table(program)
    z = terms.values["z"][0]
    parts = BetaTCVAE(num_data=B).parts(terms)
    q = [dist.Normal(program.loc[n], program.raw[n].exp()) for n in range(B)]
    for i in range(B):
        each = torch.stack([q[n].log_prob(z[i]) for n in range(B)])  # [N, D]
        joint = each.sum(-1).logsumexp(0) - math.log(B)
        product = (each.logsumexp(0) - math.log(B)).sum()
        expected = [each[i].sum() - joint, joint - product]
        found = [parts["mutual_information"][0, i], parts["total_correlation"][0, i]]
        assert gap(found, expected) < 1e-12


def paper(batch, num_data):
    """The weights of the paper's appendix, for the first datum: the last of the others is odd."""
    others = batch - 1
    rest = [1 / others] * (others - 1) + [(num_data - others) / (num_data * others)]
    return torch.tensor([1 / num_data, *rest], dtype=torch.float64)


def pythae(batch, num_data):
    """The weights of pythae and beta-tcvae: 1/N in the first column, not on the diagonal."""
    weights = torch.full((batch, batch), 1 / (batch - 1), dtype=torch.float64)
    weights.view(-1)[::batch] = 1 / num_data
    weights.view(-1)[1::batch] = (num_data - batch + 1) / (num_data * (batch - 1))
    return weights


@pytest.mark.parametrize(("num_data", "batch"), [(5, 2), (5, 3), (5, 5), (6, 4)])
def test_stratified_weights_integrate_the_aggregate_over_all_batches(num_data, batch):
    densities = torch.rand(num_data, num_data, generator=torch.Generator().manual_seed(2)).double()
    weights = stratified_weights(batch, num_data).exp()
    assert torch.allclose(weights.sum(1), torch.ones(batch).double())
    errors = {"ours": [], "paper": [], "pythae": [], "uniform": [], "0.1 %": []}
    for chosen in itertools.permutations(range(num_data), batch):
        for place in range(batch):
            n = chosen[place]
            others = [m for k, m in enumerate(chosen) if k != place]
            row = densities[n]
            exact = row.mean()
            found = weights[place] @ row[list(chosen)]
            errors["ours"].append(found - exact)
            errors["paper"].append(paper(batch, num_data) @ row[[n, *others]] - exact)
            errors["pythae"].append(pythae(batch, num_data)[place] @ row[list(chosen)] - exact)
            errors["uniform"].append(row[list(chosen)].mean() - exact)
            errors["0.1 %"].append(1.001 * found - exact)
    bias = {name: torch.stack(found).mean().abs().item() for name, found in errors.items()}
    spread = {name: torch.stack(found).square().mean().item() for name, found in errors.items()}
    assert bias["ours"] < 1e-12
    assert bias["0.1 %"] > 1e-4
    if batch > 2:
        assert bias["paper"] < 1e-12
        assert spread["ours"] <= spread["paper"] + 1e-15
    if batch < num_data:
        assert bias["pythae"] > 1e-3
        assert bias["uniform"] > 1e-4  # each datum is in its own batch: too much of itself
    else:
        assert spread["ours"] < 1e-20


def test_the_parts_weigh_as_told_and_n_comes_from_the_plate():
    terms = table(Free(full_size=50))
    parts = BetaTCVAE(num_data=50).parts(terms)
    assert gap(BetaTCVAE().parts(terms).values(), parts.values()) == 0
    found = BetaTCVAE(5.0, alpha=2.0, gamma=3.0).penalty(terms)
    mi, tc, kl = (parts[n] for n in ("mutual_information", "total_correlation", "unit_wise_kl"))
    torch.testing.assert_close(found, (2 * mi + 5 * tc + 3 * kl).mean(0))


def test_particles_of_one_run_or_of_several_give_the_same():
    program = Free()
    together = table(program, 2)

    class OneByOne(Free):
        def model(self, x):
            with self.plate(x):
                z = pyro.sample("z", dist.Normal(self.m, 1.3).to_event(1))
                if z.dim() > 2:
                    raise ValueError("one particle at a time")
                pyro.sample("x", dist.Normal(z @ self.w, 1.0).to_event(1), obs=x)

    looped = table(OneByOne(), 2)
    assert len(looped.latents["z"]) == 2
    assert looped.kl("z").shape == together.kl("z").shape == (2, B)
    torch.testing.assert_close(looped.kl("z"), together.kl("z"))
    for objective in (FreeBits(0.4, Units()), DIPVAE(), DIPVAE(OfMeans())):
        torch.testing.assert_close(objective.penalty(looped), objective.penalty(together))
    parts = BetaTCVAE(num_data=9).parts(looped)
    torch.testing.assert_close(sum(parts.values()), looped.rate)


# -------------------------------------------------------------------------------------- bad input

WRONG = {
    "beta=-1": partial(BetaVAE, -1.0),
    "BetaVAE: beta=nan": partial(BetaVAE, math.nan),
    "beta=-0.5": partial(BetaTCVAE, -0.5),
    "gamma=-2": partial(Capacity, 1.0, -2.0),
    "capacity=-1": partial(Capacity, -1.0),
    "nats=-1": partial(FreeBits, -1.0),
    "num_groups=0": partial(Groups, 0),
    "1 - alpha=-0.5": partial(InfoVAE, 1.5),
    r"alpha \+ weight - 1=-1": partial(InfoVAE, 0.0, 0.0),
    "length_scale=0": partial(GaussianKernel, 0.0),
    "length_scale=-1": partial(InverseMultiquadratic, -1.0),
    "num_data=1": partial(BetaTCVAE, num_data=1),
    "off_diagonal=-1": partial(DIPVAE, off_diagonal=-1.0),
    "num_particles=0": partial(BetaVAE, num_particles=0),
    "num_data=3: a batch of 4": partial(stratified_weights, 4, 3),
}


@pytest.mark.parametrize(("message", "build"), WRONG.items(), ids=WRONG)
def test_what_is_wrong_is_named(message, build):
    with pytest.raises(ValueError, match=f"^{message}"):
        build()


REFUSED = {
    "not reparameterised": (BetaVAE(), Dimmed, "BetaVAE needs reparameterised latents, .* 'z'"),
    "units": (
        FreeBits(split=Units()),
        Correlated,
        r"units of site 'z', .* use FreeBits\(split=Lay",
    ),
    "groups": (FreeBits(split=Groups(3)), Free, "num_groups=3: the first axis of site 'z'"),
    "no product": (BetaTCVAE(num_data=9), Correlated, "BetaTCVAE needs a guide .* use InfoVAE"),
    "no size": (BetaTCVAE(), Free, r"give BetaTCVAE\(num_data=...\)"),
    "moments": (DIPVAE(), Correlated, "DIPVAE needs a guide of independent units .* use InfoVAE"),
    "one datum": (InfoVAE(), partial(Free, num_rows=1), "the batch has one; take larger batches"),
    "sites": (InfoVAE(), Chain, "of one latent site, and the program has 'z1', 'z2'; use"),
    "sites, TC": (BetaTCVAE(num_data=9), Chain, "the program has 'z1', 'z2'"),
    "sites, DIP": (DIPVAE(), Chain, "the program has 'z1', 'z2'"),
}


@pytest.mark.parametrize(("objective", "build", "message"), REFUSED.values(), ids=REFUSED)
def test_what_cannot_be_trained_is_refused_before_the_first_step(objective, build, message):
    program = build()
    with pytest.raises(ValueError, match=message) as caught:
        objective.loss_and_grads(program.model, program.guide, program.x)
    assert "\n" not in str(caught.value)
    assert all(p.grad is None for p in program.parameters())


def test_more_data_in_a_batch_than_in_all_is_refused():
    program = Free()
    with pytest.raises(ValueError, match="num_data=4: a batch of 5"):
        BetaTCVAE(num_data=4).differentiable_loss(program.model, program.guide, program.x)
