"""Enumerated latents: value and gradient are those of the sum over all values."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from exact import Bits, Gaussian, distance, log_normal
from pyro import poutine
from pyro.infer import TraceEnum_ELBO, config_enumerate
from quick import some
from torch import nn

from pyro_vae import SVI, fit, inference
from pyro_vae.distributions import DiagonalNormalMixture
from pyro_vae.engine.validation import Validation
from pyro_vae.evaluation import importance_sampling
from pyro_vae.inference import (
    CIWAE,
    ELBO,
    IWAE,
    MIWAE,
    AnalyticELBO,
    BetaVAE,
    Capacity,
    Enumerated,
    FreeBits,
    KLWeight,
    Objective,
    Probe,
    Program,
    Renyi,
    Units,
    importance,
    terms,
)

float64 = partial(torch.tensor, dtype=torch.float64)
X = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


# ------------------------------------------------------------------------------------- the programs


def categorical(logits):
    return dist.Categorical(logits=logits[..., :3])


def one_hot(logits):
    return dist.OneHotCategorical(logits=logits[..., :4])


def bit(logits):
    return dist.Bernoulli(logits=logits[..., 0])


def three_bits(logits):
    return dist.Bernoulli(logits=logits[..., :3]).to_event(1)


def two_one_hots(logits):
    return dist.OneHotCategorical(logits=logits.unflatten(-1, (2, 3))).to_event(1)


def binomial(logits):
    return dist.Binomial(3, logits=logits[..., 0])


ROWS3 = torch.eye(3, dtype=torch.float64)
# By name: for each latent a family, and all of its values.
SITES = {
    "Categorical": {"y": (categorical, torch.arange(3))},
    "OneHotCategorical": {"y": (one_hot, torch.eye(4, dtype=torch.float64))},
    "Bernoulli": {"y": (bit, float64([0.0, 1.0]))},
    "three bits": {
        "y": (three_bits, float64(list(itertools.product([0.0, 1.0], repeat=3)))),
    },
    "two one-hot vectors": {
        "y": (two_one_hots, torch.stack([torch.stack([a, b]) for a in ROWS3 for b in ROWS3])),
    },
    "Binomial": {"y": (binomial, float64([0.0, 1.0, 2.0, 3.0]))},
    "two sites": {
        "y": (categorical, torch.arange(3)),
        "w": (three_bits, float64(list(itertools.product([0.0, 1.0], repeat=3)))),
    },
}


class Discrete(nn.Module):
    """Latents one after the other, each given the one before; x ~ N(m(latents), 0.7^2 I)."""

    def __init__(self, sites):
        super().__init__()
        generator = torch.Generator().manual_seed(5)
        self.sites = sites

        def numbers(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.a, self.c = numbers(3, 6), numbers(6)
        self.p, self.d, self.m = numbers(6), numbers(6), numbers(3)

    def q(self, name, x, before):
        return self.sites[name][0](x @ self.a + self.c + before * self.d)

    def p_of(self, name, before):
        return self.sites[name][0](self.p + before * self.d.sin())

    def likelihood(self, total):
        return dist.Normal((total * self.m).sin() + total * self.m.cos(), 0.7).to_event(1)

    def model(self, x):
        self.run(x, self.p_of, observed=True)

    def guide(self, x):
        self.run(x, lambda name, before: self.q(name, x, before), observed=False)

    def run(self, x, of, *, observed):
        before = torch.zeros(1, dtype=torch.float64)
        with pyro.plate("data", len(x)):
            for name in self.sites:
                fn = of(name, before)
                value = pyro.sample(name, fn)
                before = before + summed(value, len(fn.event_shape))
            if observed:
                pyro.sample("x", self.likelihood(before), obs=x)

    def log_densities(self, x):
        """Return log p(x, y) and log q(y | x) of all combinations of values, ``[K, N]`` each."""
        found = []
        for values in itertools.product(*(values for _, values in self.sites.values())):
            before, log_p, log_q = torch.zeros(1, dtype=torch.float64), 0.0, 0.0
            for name, value in zip(self.sites, values, strict=True):
                log_q = log_q + self.q(name, x, before).log_prob(value)
                log_p = log_p + self.p_of(name, before).log_prob(value)
                before = before + summed(value, value.dim())
            found.append((log_p + self.likelihood(before).log_prob(x), log_q))
        log_p, log_q = zip(*found, strict=True)
        return torch.stack(log_p), torch.stack(log_q)


def summed(value, event_dim):
    """Return one number for each value, another one for each: its digits, weighed."""
    value = value.to(torch.float64)
    flat = value.flatten(value.dim() - event_dim) if event_dim else value.unsqueeze(-1)
    return 0.3 * (flat * torch.arange(1, flat.shape[-1] + 1)).sum(-1, keepdim=True)


def in_strata(program, objective, x=X):
    """Return value and gradient, per datum, of an objective whose sites are enumerated."""
    guide = Enumerated([*program.sites])(program.guide)
    return found_by(objective, program, program.model, guide, x)


def found_by(objective, program, model, guide, x=X):
    for parameter in program.parameters():
        parameter.grad = None
    loss = SVI(model, guide, torch.optim.SGD, objective).loss_and_grads(x)
    gradient = {
        name: torch.zeros_like(p) if p.grad is None else -p.grad
        for name, p in program.named_parameters()
    }
    return float64(-loss), gradient


def written_out(program, bound):
    log_p, log_q = program.log_densities(X)
    value = bound(log_p, log_q).sum()
    parameters = dict(program.named_parameters())
    found = torch.autograd.grad(value, parameters.values(), allow_unused=True)
    gradient = {
        name: torch.zeros_like(p) if g is None else g
        for (name, p), g in zip(parameters.items(), found, strict=True)
    }
    return value.detach(), gradient


def elbo_of(log_p, log_q):
    return (log_q.exp() * (log_p - log_q)).sum(0)


def log_p_of(log_p, log_q):
    return log_p.logsumexp(0)


def renyi_of(log_p, log_q, alpha=0.3):
    return ((1 - alpha) * log_p + alpha * log_q).logsumexp(0) / (1 - alpha)


OBJECTIVES = {
    "ELBO": (ELBO(), elbo_of),
    "ELBO of 3": (ELBO(3), elbo_of),
    "analytic": (AnalyticELBO(2), elbo_of),
    "beta = 1": (BetaVAE(1.0), elbo_of),
    "free bits of 0": (FreeBits(0.0), elbo_of),
    "IWAE": (IWAE(2), log_p_of),
    "Renyi": (Renyi(0.3, 2), renyi_of),
    "MIWAE": (MIWAE(4, 2), log_p_of),
    "CIWAE": (CIWAE(0.25, 2), lambda p, q: 0.25 * elbo_of(p, q) + 0.75 * log_p_of(p, q)),
}


TRIED = {(sites, objective) for sites in SITES for objective in OBJECTIVES}
IN_SHORT = {
    *((sites, "ELBO") for sites in SITES if sites != "Bernoulli"),
    *(("Bernoulli", objective) for objective in OBJECTIVES),
}


@pytest.mark.parametrize(
    ("sites", "objective"),
    [pytest.param(*each, marks=() if each in IN_SHORT else pytest.mark.slow)
     for each in sorted(TRIED)],
)  # fmt: skip
def test_an_enumerated_bound_is_the_sum_over_all_values(sites, objective, monkeypatch):
    program, (objective, bound) = Discrete(SITES[sites]), OBJECTIVES[objective]
    reference = written_out(program, bound)
    assert distance(in_strata(program, objective), reference) < 1e-10
    if bound is elbo_of:
        # Mutants: q that weighs but has no gradient, and values that all count alike.
        right = terms.log_share_of
        monkeypatch.setattr(terms, "log_share_of", lambda *a: right(*a).detach())
        assert distance(in_strata(program, objective), reference) > 1e-3
        monkeypatch.setattr(terms, "log_share_of", lambda *a: right(*a) * 0 - math.log(7))
        assert distance(in_strata(program, objective), reference) > 1e-3


def test_the_groups_of_miwae_have_all_values(monkeypatch):
    """Mutant: samples in the outer dimension, so that a group has some values of all samples."""
    program = Discrete(SITES["Categorical"])
    reference = written_out(program, log_p_of)
    monkeypatch.setattr(
        importance, "_in_groups", lambda w, m: w.reshape(m, -1, w.shape[-1]).transpose(0, 1)
    )
    assert distance(in_strata(program, MIWAE(4, 2)), reference) > 1e-3


# ----------------------------------------------------------------- beside latents that are sampled


class Clusters(nn.Module):
    """y ~ Cat, z ~ N(of y, 1), x ~ N(zw, 0.8^2); q(y | x) q(z | x, y), or q(z | x) q(y | z)."""

    sites = ("y",)

    def __init__(self, *, style_first=False, given=None):
        super().__init__()
        generator = torch.Generator().manual_seed(6)
        self.style_first, self.given = style_first, given

        def numbers(*shape):
            return nn.Parameter(torch.randn(*shape, generator=generator, dtype=torch.float64))

        self.p, self.loc, self.w = numbers(4), numbers(4, 2), numbers(2, 3)
        self.a, self.b, self.e, self.s = numbers(3, 4), numbers(3, 2), numbers(4, 2), numbers(2)
        self.u = numbers(2, 4)

    def masked(self):
        return poutine.mask(mask=True if self.given is None else self.given < 0)

    def known(self, y):
        if self.given is None:
            return y
        return torch.where(self.given >= 0, self.given.clamp(min=0), y)

    def model(self, x):
        with pyro.plate("data", len(x)):
            with self.masked():
                y = pyro.sample("y", dist.Categorical(logits=self.p))
            y = self.known(y)
            z = pyro.sample("z", dist.Normal(self.loc[y], 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w, 0.8).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            if self.style_first:
                z = pyro.sample("z", dist.Normal(x @ self.b, self.s.exp()).to_event(1))
                pyro.sample("y", dist.Categorical(logits=z @ self.u))
                return
            with self.masked():
                y = pyro.sample("y", dist.Categorical(logits=x @ self.a))
            loc = x @ self.b + self.e[self.known(y)]
            pyro.sample("z", dist.Normal(loc, self.s.exp()).to_event(1))

    def log_densities(self, noise):
        """Return log p(x, y, z), log q(y) and log q(z) for all y, ``[4, S, N]``, of this noise."""
        y = torch.arange(4)[:, None, None].expand(4, noise.shape[1], len(X))
        loc = X @ self.b + (0.0 if self.style_first else self.e[y])
        z = loc + self.s.exp() * noise
        logits = z @ self.u if self.style_first else (X @ self.a).expand(*y.shape, 4)
        log_q_y = logits.log_softmax(-1).gather(-1, y[..., None])[..., 0]
        log_p = self.p.log_softmax(0)[y] + log_normal(z, self.loc[y], 1.0).sum(-1)
        log_p = log_p + log_normal(X, z @ self.w, 0.8).sum(-1)
        return log_p, log_q_y, log_normal(z, loc, self.s.exp()).sum(-1)


@pytest.mark.parametrize("style_first", [False, True])
@pytest.mark.parametrize("num_samples", [1, 3])
def test_other_latents_are_sampled_within_each_value(style_first, num_samples, monkeypatch):
    program = Clusters(style_first=style_first)
    torch.manual_seed(3)
    noise = torch.randn(4, num_samples, len(X), 2, dtype=torch.float64)
    noise = noise[:1] if style_first else noise  # drawn before y, it is the same for all values

    def of(bound):
        log_p, log_q_y, log_q_z = program.log_densities(noise.expand(4, -1, -1, -1))
        share = log_q_y - math.log(num_samples)
        value = bound(log_p - log_q_y - log_q_z, share).sum()
        parameters = dict(program.named_parameters())
        found = torch.autograd.grad(value, parameters.values(), allow_unused=True)
        zeros = [torch.zeros_like(p) if g is None else g for p, g in
                 zip(parameters.values(), found, strict=True)]  # fmt: skip
        return value.detach(), dict(zip(parameters, zeros, strict=True))

    def found(objective):
        torch.manual_seed(3)
        return in_strata(program, objective)

    elbo = of(lambda w, share: (share.exp() * w).sum((0, 1)))
    assert distance(found(ELBO(num_samples)), elbo) < 1e-10
    weighed = of(lambda w, share: (w + share).flatten(0, 1).logsumexp(0))
    assert distance(found(IWAE(num_samples)), weighed) < 1e-10
    monkeypatch.setattr(terms.Stratified, "_pyro_post_sample", lambda *_: None)
    is_same = distance(found(ELBO(num_samples)), elbo) < 1e-10
    assert is_same == (not style_first)  # mutant: noise before y of its own for each value


def test_the_elbo_is_that_of_pyros_enumeration():
    for program in (Clusters(), Discrete(SITES["Categorical"]), Discrete(SITES["Bernoulli"])):
        torch.manual_seed(3)
        theirs = TraceEnum_ELBO(max_plate_nesting=1)
        expected = found_by(theirs, program, program.model, config_enumerate(program.guide))
        torch.manual_seed(3)
        found = found_by(ELBO(), program, program.model, config_enumerate(program.guide))
        assert distance(found, expected) < 1e-10


class Labelled(Clusters):
    """The same, with a class where one is given, which counts no log p(y)."""

    def model(self, x, given):
        self.given = given
        super().model(x)

    def guide(self, x, given):
        self.given = given
        super().guide(x)


@pytest.mark.parametrize("num_samples", [1, 2])
def test_where_a_mask_leaves_the_site_out_its_particles_are_draws(num_samples, monkeypatch):
    given, program = torch.tensor([-1, 2, 0, -1, 3]), Labelled()
    torch.manual_seed(3)
    noise = torch.randn(4, num_samples, len(X), 2, dtype=torch.float64)
    log_p, log_q_y, log_q_z = program.log_densities(noise)
    log_w = log_p - log_q_y - log_q_z
    unlabelled = (log_q_y.exp() * log_w).sum(0).mean(0)
    y = given.clamp(min=0)
    loc = X @ program.b + program.e[y]
    z = loc + program.s.exp() * noise
    log_w = log_normal(z, program.loc[y], 1.0) - log_normal(z, loc, program.s.exp())
    labelled = (log_w.sum(-1) + log_normal(X, z @ program.w, 0.8).sum(-1)).mean((0, 1))
    value = torch.where(given < 0, unlabelled, labelled).sum()
    parameters = dict(program.named_parameters())
    found = torch.autograd.grad(value, parameters.values(), allow_unused=True)
    zeros = [torch.zeros_like(p) if g is None else g
             for p, g in zip(parameters.values(), found, strict=True)]  # fmt: skip
    reference = (value.detach(), dict(zip(parameters, zeros, strict=True)))

    def bound():
        for parameter in program.parameters():
            parameter.grad = None
        torch.manual_seed(3)
        svi = SVI(program.model, Enumerated(["y"])(program.guide), torch.optim.SGD,
                  ELBO(num_samples))  # fmt: skip
        loss = svi.loss_and_grads(X, given)
        gradient = {n: torch.zeros_like(p) if p.grad is None else -p.grad
                    for n, p in program.named_parameters()}  # fmt: skip
        return float64(-loss), gradient

    assert distance(bound(), reference) < 1e-10
    monkeypatch.setattr(terms, "log_share_of", lambda trace, log_q, *rest: log_q["y"])  # mutant
    assert distance(bound(), reference) > 1e-3


# --------------------------------------------------------------------------- mixtures as posteriors


class Mixed(nn.Module):
    """z ~ N(0, 1), x ~ N(sin(z)w, 0.8^2), and q(z | x) a mixture of three normals."""

    sites = ("z",)

    def __init__(self, build, *, encoded=True):
        super().__init__()
        generator = torch.Generator().manual_seed(8)
        self.build, self.encoded = build, encoded
        for name, shape in {"w": (2, 3), "l": (3, 3), "m": (3, 3, 2), "s": (3, 2)}.items():
            raw = torch.randn(shape, generator=generator, dtype=torch.float64)
            setattr(self, name, nn.Parameter(raw))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z.sin() @ self.w, 0.8).to_event(1), obs=x)

    def numbers(self, x):
        """Return logits, locations and scales of the components."""
        x = x if self.encoded else torch.ones(3, dtype=x.dtype)
        return x @ self.l, torch.einsum("...d,dke->...ke", x, self.m), self.s.exp()

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.build(*self.numbers(x)))

    def reference(self, noise, bound):
        """Return a bound and its gradient from noise ``[3, S, N, 2]``, one normal each."""
        logits, loc, scale = self.numbers(X)
        logits, loc = logits.expand(5, 3), loc.expand(5, 3, 2)
        log_pi = logits.log_softmax(-1).T  # [3, N]
        z = loc.transpose(0, 1)[:, None] + scale[:, None, None] * noise
        of_each = log_normal(z.unsqueeze(-2), loc, scale).sum(-1)  # [3, S, N, 3]
        log_q = (log_pi.T + of_each).logsumexp(-1)
        log_p = log_normal(z, 0.0, 1.0).sum(-1) + log_normal(X, z.sin() @ self.w, 0.8).sum(-1)
        share = (log_pi[:, None] - math.log(noise.shape[1])).expand(log_q.shape)
        value = bound(log_p - log_q, share).sum()
        parameters = dict(self.named_parameters())
        found = torch.autograd.grad(value, parameters.values())
        return value.detach(), dict(zip(parameters, found, strict=True))


def of_torch(logits, loc, scale):
    components = dist.Normal(loc, scale.expand(loc.shape)).to_event(1)
    weights = dist.Categorical(logits=logits)
    return dist.MixtureSameFamily(weights, components)


def of_ours(logits, loc, scale):
    return DiagonalNormalMixture(logits, loc, scale.expand(loc.shape))


def elbo_of_shares(log_w, share):
    return (share.exp() * log_w).sum((0, 1))


@pytest.mark.parametrize("encoded", [True, False], ids=["amortized", "one for all data"])
@pytest.mark.parametrize("num_samples", [1, 2])
@pytest.mark.parametrize("build", [of_ours, of_torch])
def test_each_component_of_a_mixture_has_particles_of_its_own(
    build, num_samples, encoded, monkeypatch
):
    program = Mixed(build, encoded=encoded)
    generator = torch.Generator().manual_seed(9)
    noise = torch.randn(3, num_samples, 5, 2, generator=generator, dtype=torch.float64)

    def found(objective):
        with injected(noise, build):
            return in_strata(program, objective)

    elbo = program.reference(noise, elbo_of_shares)
    assert distance(found(ELBO(num_samples)), elbo) < 1e-10
    weighed = program.reference(noise, lambda w, share: (w + share).flatten(0, 1).logsumexp(0))
    assert distance(found(IWAE(num_samples)), weighed) < 1e-10
    # Mutant: the density of the component alone that was drawn from, not of the whole mixture.
    monkeypatch.setattr(terms, "_log_density", component_density(terms._log_density))
    assert distance(found(ELBO(num_samples)), elbo) > 1e-3


def component_density(right):
    def density(site):
        if site["name"] != "z" or not hasattr(site["fn"], "component_distribution"):
            return right(site)
        of_each = site["fn"].component_distribution.log_prob(site["value"].unsqueeze(-2))
        return of_each.unflatten(0, (3, -1)).diagonal(dim1=0, dim2=-1).movedim(-1, 0).flatten(0, 1)

    return density


class injected:
    """Let normals take this noise, whatever the order in which they draw it."""

    def __init__(self, noise, build):
        self.noise, self.build = noise, build

    def drawn(self, shape, dtype, device):
        if tuple(shape[-2:]) != (3, 2):
            return self.original(shape, dtype, device)
        num_samples, num_rows = self.noise.shape[1:3]
        if shape[-3] != num_rows:  # the few rows of a look at the program
            return self.original(shape, dtype, device)
        if self.build is of_ours:  # [S, N, 3, 2]
            return self.noise.permute(1, 2, 0, 3)
        # A draw of every component for every particle, of which one each is taken.
        found = torch.full(tuple(shape), math.nan, dtype=dtype).unflatten(0, (3, num_samples))
        for each in range(3):
            found[each, :, :, each] = self.noise[each]
        return found.flatten(0, 1).nan_to_num(0.0)

    def __enter__(self):
        from torch.distributions import normal

        self.module, self.original = normal, normal._standard_normal
        normal._standard_normal = self.drawn

    def __exit__(self, *error):
        self.module._standard_normal = self.original


# ---------------------------------------------------------------------------------- what it refuses


def test_what_does_more_than_means_is_refused_by_name():
    program = Discrete(SITES["Categorical"])
    guide = Enumerated(["y"])(program.guide)
    offered = {name: getattr(inference, name) for name in inference.__all__}
    kinds = {
        name: kind
        for name, kind in offered.items()
        if isinstance(kind, type) and issubclass(kind, Objective)
    }
    takes = {"ELBO", "AnalyticELBO", "IWAE", "Renyi", "MIWAE", "CIWAE", "BetaVAE", "Capacity",
             "FreeBits", "Reconstruction"}  # fmt: skip
    still = partial(torch.optim.SGD, lr=0.0)
    for name in sorted(kinds.keys() - takes - {"Objective", "Bound"}):
        kind = kinds[name]
        objective = kind(**vars(kind).get("example", {}))
        with pytest.raises(ValueError, match=f"^{name} .*'y' is marked to be enumerated.*: use "):
            SVI(program.model, guide, torch.optim.SGD, objective).step(X)
    for name in sorted(takes):
        SVI(program.model, guide, still, kinds[name]()).step(X)


class Wide(Bits):
    """As many bits as there are units, of which each is one value or the other."""

    num_units = 60

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Bernoulli(logits=torch.zeros(60).double()).to_event(1))
            pyro.sample("x", dist.Bernoulli(logits=z[..., :4]).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            logits = (x @ self.a).repeat(1, 20)
            pyro.sample("z", dist.Bernoulli(logits=logits).to_event(1))


class InnerPlate(Bits):
    def model(self, x):
        with self.plate(x):
            with pyro.plate("units", 3, dim=-2):
                z = pyro.sample("z", dist.Bernoulli(logits=self.r.unsqueeze(-1)))
            logits = z.transpose(-1, -2) @ self.w + self.b
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x), pyro.plate("units", 3, dim=-2):
            pyro.sample("z", dist.Bernoulli(logits=(x @ self.a + self.c).T))


class OneAtATime(Bits):
    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Bernoulli(logits=self.r).to_event(1))
            both = torch.cat([z, z], 1)
            logits = both[:, :3] @ self.w + self.b
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)


REFUSED = {
    "a normal": (Gaussian, r"site 'z' \(exact.py:\d+\) is marked .* but a Normal is neither"),
    "too many": (Wide, r"enumerating 'z' takes 10\^18.1 particles, .* bytes for a single datum"),
    "inner plate": (InnerPlate, r"site 'z' \(test_enumerated.py:\d+\) .* plate 'units' .*to_event"),
    "one at a time": (OneAtATime, r"all values of 'z' .* at site 'x' \(test_enumerated.py:\d+\)"),
}


@pytest.mark.parametrize("program", REFUSED)
def test_what_cannot_be_run_through_is_refused_in_one_line(program):
    build, message = REFUSED[program]
    bed = build()
    with pytest.raises(ValueError, match=message) as caught:
        SVI(bed.model, Enumerated(["z"])(bed.guide), torch.optim.SGD, ELBO()).step(bed.x)
    assert "\n" not in str(caught.value)
    if build is not Gaussian:  # Pyro's objectives and evaluations sample it, as ever
        importance_sampling(bed.model, Enumerated(["z"])(bed.guide), bed.x, num_samples=2)


def test_a_site_that_is_not_there_is_refused():
    program = Discrete(SITES["Categorical"])
    with pytest.raises(ValueError, match="no latent site 'u'"):
        SVI(program.model, Enumerated(["u"])(program.guide), torch.optim.SGD, ELBO()).step(X)


# --------------------------------------------------------------------------------- engines and runs

PROGRAMS = {
    "classes and styles": Clusters,
    "mixture": partial(Mixed, of_ours),
    "bits": partial(Discrete, SITES["three bits"]),
}


RECORDED = {"ELBO": ELBO(2), "analytic": AnalyticELBO(), "IWAE": IWAE(2)}


@pytest.mark.parametrize("objective", some(RECORDED, "analytic"))
@pytest.mark.parametrize("program", some(PROGRAMS, "classes and styles"))
def test_recorded_steps_have_the_bits_of_eager_ones(program, objective):
    def run(engine):
        built = PROGRAMS[program]()
        guide = Enumerated(built.sites)(built.guide)
        adam = partial(torch.optim.Adam, lr=0.01)
        svi = SVI(built.model, guide, adam, RECORDED[objective], engine=engine)
        torch.manual_seed(0)
        losses = [svi.step(X) for _ in range(4)]
        assert svi.recorded == (engine == "recorded")
        return losses, list(built.parameters())

    (eager, before), (recorded, after) = run("eager"), run("recorded")
    assert eager == recorded
    assert all(map(same, before, after))


@pytest.mark.slow
def test_compiled_steps_are_close_to_eager_ones():
    def run(engine):
        built = Clusters()
        torch.manual_seed(0)
        adam = partial(torch.optim.Adam, lr=0.01)
        svi = SVI(built.model, Enumerated(["y"])(built.guide), adam, AnalyticELBO(), engine=engine)
        return [svi.step(X) for _ in range(3)]

    assert run("compiled")[0] == pytest.approx(run("eager")[0], rel=1e-9)


def test_validation_is_the_sum():
    program = Discrete(SITES["Categorical"])
    log_p, log_q = program.log_densities(X)
    pair = Program(program.model, Enumerated(["y"])(program.guide))
    probe = Probe(pair, X)
    found = Validation(probe, ELBO(), (X,), seed=0, engine="eager", num_epochs=1)()
    exact = elbo_of(log_p, log_q).mean().item()
    assert found["validation_elbo_nats"] == pytest.approx(exact, rel=1e-12)
    log_prior = log_p - torch.stack([program.likelihood(summed(y, 0)).log_prob(X)
                                     for y in torch.arange(3)])  # fmt: skip
    rate = (log_q.exp() * (log_q - log_prior)).sum(0).mean().item()
    assert found["validation_rate_nats"] == pytest.approx(rate, rel=1e-12)


def test_a_fit_takes_the_exact_bound_unless_told_otherwise(monkeypatch):
    program = Bits().float()
    x = program.x.repeat(20, 1)
    seen = []
    right = AnalyticELBO.value
    monkeypatch.setattr(
        AnalyticELBO, "value", lambda self, t: seen.append(t.log_share) or right(self, t)
    )
    done = fit(program.model, Enumerated(["z"])(program.guide), x, epochs=2, device="cpu")
    assert done.history[-1]["train_nats"] < 0
    assert seen
    assert all(share.shape[0] == 8 for share in seen)


def test_a_kl_weight_weighs_what_is_enumerated():
    program = Discrete(SITES["Categorical"])
    warm = KLWeight(0.25)
    found = found_by(ELBO(), program, warm(program.model), Enumerated(["y"])(warm(program.guide)))
    bound, _ = written_out(program, elbo_of)
    assert found[0].item() == pytest.approx(bound.item(), rel=1e-12)


def test_capacity_and_free_bits_of_units_take_the_mean_over_values():
    program = Discrete(SITES["three bits"])
    log_p, log_q = program.log_densities(X)
    exact = elbo_of(log_p, log_q).sum().item()
    for objective in (Capacity(0.0, 1.0), FreeBits(0.1, Units())):
        value, gradient = in_strata(program, objective)
        assert value.item() == pytest.approx(exact, rel=1e-12)
        assert gradient["a"].abs().max() > 1e-3
