"""Score-function objectives: exact expectations over all draws, variances, and Pyro's own."""

from __future__ import annotations

import itertools
import math
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from exact import (
    Bed,
    Bits,
    Gaussian,
    distance,
    exact,
    expected,
    hermite,
    injected,
    log_bernoulli,
    log_normal,
)
from pyro.infer import TraceEnum_ELBO, TraceGraph_ELBO, config_enumerate
from torch import Tensor, nn
from torch.nn.functional import logsigmoid

from pyro_vae import SVI, VAE, fit
from pyro_vae.components import MLP, Bernoulli
from pyro_vae.components.relaxed import (
    Concrete,
    RelaxedBernoulli,
    StraightThroughBernoulli,
    StraightThroughCategorical,
)
from pyro_vae.distributions.relaxed import _keeping
from pyro_vae.inference import ELBO, IWAE, Probe, Program, objectives, score_function
from pyro_vae.inference.score_function import NVIL, RLOO, VIMCO, DisARM


def elbo(log_w: Tensor) -> Tensor:
    return log_w.mean(0)


def iwae(log_w: Tensor) -> Tensor:
    return log_w.logsumexp(0) - math.log(len(log_w))


def nvil(num_particles: int, *, center=0.0, variance=0.0, network=None) -> NVIL:
    objective = NVIL(network, num_particles=num_particles)
    objective.baseline.double()
    objective.baseline.center.fill_(center)
    objective.baseline.variance.fill_(variance)
    return objective


def linear() -> nn.Linear:
    network = nn.Linear(4, 1).double()
    with torch.no_grad():
        network.weight.copy_(torch.tensor([[0.3, -2.0, 1.5, 0.7]]))
        network.bias.fill_(-4.0)
    return network


class Mixed(Bed):
    """A normal z, bits b given z and a normal e given both: pathwise sites before and after b."""

    of_model = ("r", "w", "v")
    of_guide = ("a", "c", "d", "s")
    num_dims = 3

    def __init__(self, **options) -> None:
        shapes = {"r": (1,), "w": (4,), "v": (4,), "a": (4, 1), "c": (2,), "d": (2,), "s": (2,)}
        super().__init__(shapes, scale=0.6, **options)
        self.x = Bits().x

    def model(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(torch.zeros_like(self.r), 1.0).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(logits=self.r + z).to_event(1))
            e = pyro.sample("e", dist.Normal(0.5 * z, 1.0).to_event(1))
            logits = (b + e) * self.w + z * self.v
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            z = pyro.sample("z", dist.Normal(x @ self.a, self.s[:1].exp()).to_event(1))
            b = pyro.sample("b", dist.Bernoulli(logits=self.of_b(z)).to_event(1))
            pyro.sample("e", dist.Normal(self.of_e(b, z), self.s[1:].exp()).to_event(1))

    def of_b(self, z):
        return self.c[0] * z + self.c[1]

    def of_e(self, b, z):
        return self.d[0] * b + self.d[1] * z.sin()

    def tuples(self, num_particles):
        # Few nodes: the gradient of a sum over nodes is the sum of the gradients, for any of them.
        grid, weigh = hermite(3, num_particles, 2)
        flips = torch.tensor(list(itertools.product([0.0, 1.0], repeat=num_particles)))
        flips = flips.double().T[:, None, :, None].expand(-1, grid.shape[1], -1, 1)
        ends = grid.unsqueeze(2).expand(-1, -1, flips.shape[2], -1)
        noise = torch.cat([ends[..., :1], flips, ends[..., 1:]], -1).flatten(1, 2)
        mass = weigh(noise).expand(-1, flips.shape[2]).reshape(-1, 1)

        def probability(_):
            z = self.draw(noise, self.x)
            return mass * log_bernoulli(z[..., 1], self.of_b(z[..., 0])).sum(0).exp()

        return noise, probability

    def draw(self, noise, x):
        e1, b, e2 = noise.unsqueeze(-2).split(1, -1)
        z = x @ self.a + self.s[0].exp() * e1
        b = b.expand_as(z)
        return torch.cat([z, b, self.of_e(b, z) + self.s[1].exp() * e2], -1)

    def log_q(self, value, x):
        z, b, e = value.unbind(-1)
        log_q = log_normal(z, (x @ self.a).squeeze(-1), self.s[0].exp())
        log_q = log_q + log_bernoulli(b, self.of_b(z))
        return log_q + log_normal(e, self.of_e(b, z), self.s[1].exp())

    def log_joint(self, value, x):
        z, b, e = value.split(1, -1)
        log_prior = log_normal(z, 0.0, 1.0) + log_bernoulli(b, self.r + z)
        log_prior = log_prior + log_normal(e, 0.5 * z, 1.0)
        logits = (b + e) * self.w + z * self.v
        return log_prior.squeeze(-1) + log_bernoulli(x, logits).sum(-1)


# ---------------------------------------------------------------------------- unbiased, exactly

UNBIASED = {
    "RLOO, 2": (partial(RLOO, 2), elbo),
    "RLOO, 3": (partial(RLOO, 3), elbo),
    "VIMCO, 2": (partial(VIMCO, 2), iwae),
    "VIMCO, 3": (partial(VIMCO, 3), iwae),
    "NVIL, 1": (partial(nvil, 1), elbo),
    "NVIL, 2, centred": (partial(nvil, 2, center=-7.3), elbo),
    "NVIL, 1, learned": (lambda: nvil(1, center=2.0, network=linear()), elbo),
}
unbiased = pytest.mark.parametrize("name", UNBIASED)


def bias(name: str, bed: Bed) -> float:
    build, bound = UNBIASED[name]
    objective = build()
    return distance(expected(objective, bed), exact(bed, objective.num_particles, bound))


@unbiased
def test_value_and_gradient_have_the_bounds_expectation(name: str) -> None:
    assert bias(name, Bits()) < 1e-10


@pytest.mark.parametrize("name", [name for name in UNBIASED if "3" not in name])
def test_reparameterised_sites_keep_their_pathwise_gradient(name: str) -> None:
    assert bias(name, Mixed()) < 1e-10


@pytest.mark.parametrize("name", ["RLOO, 2", "VIMCO, 2", "NVIL, 1, learned"])
def test_a_plate_that_stands_for_more_data_scales_the_gradient_once(name: str) -> None:
    build, bound = UNBIASED[name]
    objective = build()
    num_rows = 2 * 8**objective.num_particles
    value, gradient = expected(objective, Bits(full_size=10 * num_rows))
    reference, exactly = exact(Bits(), objective.num_particles, bound)
    scaled = {key: 10 * entry for key, entry in exactly.items()}
    assert distance((value, gradient), (reference, scaled)) < 1e-9


def test_running_variance_shortens_the_scores_gradient_and_nothing_else() -> None:
    reference = exact(Bits(), 1, elbo)
    _, gradient = expected(nvil(1, center=-3.0, variance=6.25), Bits())
    for name, entry in reference[1].items():
        factor = 2.5 if name in Bits.of_guide else 1.0
        torch.testing.assert_close(factor * gradient[name], entry, rtol=1e-10, atol=1e-10)


def of_each_tuple(objective, bed: Bed) -> tuple[Tensor, Tensor]:
    """Return the surrogate of each tuple and datum, [T, N], and their probabilities."""
    noise, weigh = bed.tuples(objective.num_particles)
    x = bed.x.repeat(noise.shape[1], 1)
    weights = weigh(bed.log_q(bed.draw(noise, bed.x), bed.x)).detach()
    program = Program(bed.model, bed.guide)
    layout = Probe(program, x).layout
    with program.running(), injected(noise.repeat_interleave(len(bed.x), 1)):
        surrogate = objective.surrogate(objective.table(program, layout, x))
    return surrogate.unflatten(0, weights.shape), weights


def test_the_learned_baseline_follows_its_squared_error() -> None:
    bed, network = Bits(), linear()
    surrogate, weights = of_each_tuple(nvil(1, center=0.5, variance=4.0, network=network), bed)
    found = torch.autograd.grad((weights * surrogate).sum(), list(network.parameters()))
    noise, _ = bed.tuples(1)
    z = bed.draw(noise, bed.x)
    log_w = (bed.log_joint(z, bed.x) - bed.log_q(z, bed.x)).detach().squeeze(0)
    error = log_w - 0.5 - network(bed.x).squeeze(-1)
    reference = -(weights * error.square()).sum() / (2 * 2.0)
    expected_gradient = torch.autograd.grad(reference, list(network.parameters()))
    torch.testing.assert_close(found, expected_gradient, rtol=1e-10, atol=1e-10)


# ---------------------------------------------------------------------------- DisARM


def regions(bed: Bed, num_pairs: int, monkeypatch) -> tuple[Tensor, Tensor]:
    """Make DisARM draw u from every region in which both samples of each pair are constant.

    With p the probability of a one and q the smaller of p and 1 - p, a pair differs for u below q
    and above 1 - q, and is twice the likelier value between. Return x and the probabilities.
    """
    each = itertools.product([0, 1, 2], repeat=3 * num_pairs)
    which = torch.tensor(list(each)).T.reshape(num_pairs, 3, -1)
    which = which.permute(0, 2, 1).repeat_interleave(len(bed.x), 1)  # [pairs, rows, 3]
    x = bed.x.repeat(which.shape[1] // len(bed.x), 1)
    p = (x @ bed.a + bed.c).sigmoid().detach()
    q = torch.minimum(p, 1 - p)
    width = torch.stack([q, 1 - 2 * q, q])
    middle = torch.stack([q / 2, torch.full_like(q, 0.5), 1 - q / 2])
    chosen = partial(torch.gather, dim=0, index=which)
    half, mass = chosen(middle), chosen(width)
    uniform = torch.cat([half, 1 - half])
    monkeypatch.setattr(
        score_function._AntitheticPairs,
        "_uniform",
        lambda self, msg, like: uniform if like.shape == uniform.shape else torch.rand_like(like),
    )
    return x, mass.prod(-1).prod(0)


def disarm_of_each_row(bed: Bed, num_pairs: int, monkeypatch) -> tuple[Tensor, Tensor, Tensor]:
    objective = DisARM(2 * num_pairs)
    x, mass = regions(bed, num_pairs, monkeypatch)
    program = Program(bed.model, bed.guide)
    layout = Probe(program, x).layout
    with program.running():
        terms = objective.table(program, layout, x)
        return objective.value(terms), objective.surrogate(terms), mass


def disarm_bias(num_pairs: int, monkeypatch) -> float:
    bed = Bits()
    value, surrogate, mass = disarm_of_each_row(bed, num_pairs, monkeypatch)
    assert mass.sum().item() == pytest.approx(len(bed.x), rel=1e-12)
    total = (mass * surrogate).sum() / len(bed.x)
    parameters = dict(bed.named_parameters())
    gradient = dict(zip(parameters, torch.autograd.grad(total, list(parameters.values()))))  # noqa: B905
    found = ((mass * value).sum().detach() / len(bed.x), gradient)
    return distance(found, exact(bed, 1, elbo))


@pytest.mark.parametrize("num_pairs", [1, 2])
def test_disarm_has_the_elbos_expectation(num_pairs: int, monkeypatch) -> None:
    assert disarm_bias(num_pairs, monkeypatch) < 1e-10


@pytest.mark.parametrize("vectorized", [True, False])
def test_pairs_are_antithetic(vectorized: bool, monkeypatch) -> None:
    bed = Bits()
    with torch.no_grad():
        bed.a.zero_()
        bed.c.zero_()  # at p = 1/2 the samples of a pair differ in every bit
    program = Program(bed.model, bed.guide)
    layout = Probe(program, bed.x).layout
    object.__setattr__(layout, "vectorizes", vectorized)
    torch.manual_seed(0)
    with program.running():
        z = DisARM(6).table(program, layout, bed.x).values["z"]
    pairs = z.unflatten(0, (2, 3) if vectorized else (3, 2))
    first, second = pairs.unbind(0 if vectorized else 1)
    assert torch.equal(first + second, torch.ones_like(first))
    assert len(first.flatten(1).unique(dim=0)) > 1


def test_a_pairs_samples_follow_the_guide() -> None:
    # 20,000 draws: a frequency is off by 5 standard errors with p < 1e-6.
    logits = torch.tensor([-3.0, -0.4, 0.0, 1.5])

    class One(nn.Module):
        def model(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(torch.full((4,), 0.5)).to_event(1))
                pyro.sample("x", dist.Normal(0.0, 1.0).expand([len(x)]), obs=x)

        def guide(self, x):
            with pyro.plate("data", len(x)):
                pyro.sample("z", dist.Bernoulli(logits=logits.expand(len(x), 4)).to_event(1))

    program, x = Program(One().model, One().guide), torch.zeros(10_000)
    torch.manual_seed(3)
    with program.running():
        z = DisARM(2).table(program, Probe(program, x).layout, x).values["z"]
    p = logits.sigmoid()
    error = (p * (1 - p) / 10_000).sqrt()
    for half in z:
        assert bool(((half.mean(0) - p).abs() < 5 * error).all())


# ---------------------------------------------------------------------------- mutants


def includes_its_own(log_w: Tensor) -> Tensor:
    return log_w.mean(0).expand_as(log_w)


def geometric_with_its_own(log_w: Tensor) -> Tensor:
    num = len(log_w)
    own = torch.eye(num, dtype=torch.bool).unsqueeze(-1)
    return iwae(torch.where(own, log_w.mean(0), log_w).transpose(0, 1))


def over_the_batch(log_w: Tensor) -> Tensor:
    return (log_w.sum(1, keepdim=True) - log_w) / (log_w.shape[1] - 1)


def of_other_particles(log_w: Tensor) -> Tensor:
    return original_without_each(log_w).flip(0)


def without_log_q(terms):
    return sum(terms.log_p.values())


original_score = objectives.score
original_without_each = score_function._bound_without_each

MUTANTS = {
    "own sample in the baseline": ("RLOO, 3", "_mean_of_others", includes_its_own),
    "own sample in the mean": ("VIMCO, 3", "_bound_without_each", geometric_with_its_own),
    "0.1 % of the score": ("RLOO, 2", "score", lambda terms: 1.001 * original_score(terms)),
    "0.1 % of the score, VIMCO": (
        *("VIMCO, 2", "score"),
        lambda terms: 1.001 * original_score(terms),
    ),
    "0.1 % of the score, NVIL": (
        *("NVIL, 1", "score"),
        lambda terms: 1.001 * original_score(terms),
    ),
    "swapped axis": ("RLOO, 2", "_mean_of_others", over_the_batch),
    "swapped particles": ("VIMCO, 2", "_bound_without_each", of_other_particles),
    "lost log q": ("RLOO, 2", "weighed_log_w", without_log_q),
    "lost log q, VIMCO": ("VIMCO, 2", "weighed_log_w", without_log_q),
    "lost log q, NVIL": ("NVIL, 1", "weighed_log_w", without_log_q),
    "lost the score": ("VIMCO, 2", "score", lambda terms: torch.zeros(())),
}


@pytest.mark.parametrize("mutant", MUTANTS)
def test_mutants_are_caught(mutant: str, monkeypatch) -> None:
    name, attribute, replacement = MUTANTS[mutant]
    for module in (objectives, score_function):
        monkeypatch.setattr(module, attribute, replacement, raising=False)
    assert bias(name, Bits()) > 1e-5


def test_a_center_of_the_steps_own_is_caught() -> None:
    class Early(NVIL):
        def surrogate(self, terms):
            self.baseline.observe(score_function.weighed_log_w(terms).detach()[:, :1])
            return super().surrogate(terms)

    bed = Bits()
    bed.x = bed.x[:1]
    program = Program(bed.model, bed.guide)
    layout = Probe(program, bed.x).layout
    noise, weigh = bed.tuples(1)
    weights = weigh(bed.log_q(bed.draw(noise, bed.x), bed.x)).detach()
    total = torch.zeros(())
    for t, weight in enumerate(weights):
        objective = Early(decay=0.5)
        with program.running(), injected(noise[0, t : t + 1]):
            surrogate = objective.surrogate(objective.table(program, layout, bed.x))
        total = total + (weight * surrogate).sum()
    gradient = torch.autograd.grad(total, bed.c)[0]
    assert (gradient - exact(bed, 1, elbo)[1]["c"]).abs().max() > 1e-3


def program_layout(bed: Bed):
    return Probe(Program(bed.model, bed.guide), bed.x).layout


DISARM_MUTANTS = {
    "logit for its size": lambda logits: logits.sigmoid(),
    "0.1 %": lambda logits: 1.001 * logits.abs().sigmoid(),
    "REINFORCE's": lambda logits: torch.ones_like(logits),
}


@pytest.mark.parametrize("mutant", DISARM_MUTANTS)
def test_mutants_of_disarm_are_caught(mutant: str, monkeypatch) -> None:
    def log_prob(self, value):
        logits = self.logits.detach()
        partner = (1 - self.uniform < self.probs.detach()).to(logits.dtype)
        score = (value - partner) * DISARM_MUTANTS[mutant](logits)
        return dist.Bernoulli.log_prob(self, value).detach() + score * (self.logits - logits)

    monkeypatch.setattr(score_function._AntitheticBernoulli, "log_prob", log_prob)
    assert disarm_bias(1, monkeypatch) > 1e-5


# ---------------------------------------------------------------------------- variance, exactly


def total_variance(surrogate: Tensor, weights: Tensor, bed: Bed) -> float:
    """Return the trace of the covariance of the guide's gradient, summed over the data."""
    guide = [getattr(bed, name) for name in bed.of_guide]
    each = [
        torch.cat([g.flatten() for g in torch.autograd.grad(row, guide, retain_graph=True)])
        for row in surrogate.flatten()
    ]
    gradients = torch.stack(each).unflatten(0, surrogate.shape)  # [T, N, parameters]
    mean = (weights.unsqueeze(-1) * gradients).sum(0)
    second = (weights * gradients.square().sum(-1)).sum(0)
    return (second - mean.square().sum(-1)).sum().item()


def variance(objective, bed: Bed) -> float:
    return total_variance(*of_each_tuple(objective, bed), bed)


def test_leaving_one_out_lowers_the_variance() -> None:
    assert variance(RLOO(2), Bits()) < 0.7 * variance(ELBO(2), Bits())


def test_vimcos_variance_is_below_that_without_a_baseline(monkeypatch) -> None:
    with_baseline = variance(VIMCO(2), Bits())
    monkeypatch.setattr(score_function, "_bound_without_each", torch.zeros_like)
    assert bias("VIMCO, 2", Bits()) < 1e-10
    assert with_baseline < 0.5 * variance(VIMCO(2), Bits())


def test_a_center_near_the_bound_lowers_the_variance() -> None:
    mean = exact(Bits(), 1, elbo)[0].item()
    assert variance(nvil(1, center=mean), Bits()) < 0.7 * variance(nvil(1), Bits())


def test_disarms_variance_is_at_most_that_of_leaving_one_out(monkeypatch) -> None:
    bed = Bits()
    _, surrogate, mass = disarm_of_each_row(bed, 1, monkeypatch)
    shape = (-1, len(bed.x))
    found = total_variance(surrogate.reshape(shape), mass.reshape(shape), bed)
    assert found <= variance(RLOO(2), bed)


# ---------------------------------------------------------------------------- relations


@pytest.mark.parametrize("pair", [(VIMCO(2), IWAE(2)), (RLOO(2), ELBO(2)), (nvil(2), ELBO(2))])
def test_reparameterised_latents_need_no_score(pair) -> None:
    ours, plain = pair
    assert distance(expected(ours, Gaussian()), expected(plain, Gaussian())) < 1e-12


def test_impossible_draws_leave_the_others_finite() -> None:
    log_w = torch.tensor([[0.3], [-math.inf], [1.2]], dtype=torch.float64)
    found = score_function._bound_without_each(log_w)
    assert found[1].item() == pytest.approx(iwae(torch.tensor([0.3, 0.75, 1.2])).item())
    third = math.log(1 / 3)
    assert found[0].item() == pytest.approx(1.2 + third)
    assert found[2].item() == pytest.approx(0.3 + third)


@pytest.mark.parametrize(
    "objective", [RLOO(3), VIMCO(3), DisARM(4), nvil(2)], ids=lambda o: type(o).__name__
)
def test_losses_agree_at_one_seed(objective) -> None:
    bed = Bits(full_size=20)
    torch.manual_seed(4)
    loss = objective.loss(bed.model, bed.guide, bed.x)
    torch.manual_seed(4)
    assert objective.differentiable_loss(bed.model, bed.guide, bed.x).item() == loss
    torch.manual_seed(4)
    assert objective.loss_and_grads(bed.model, bed.guide, bed.x) == loss


def trained(objective, engine: str):
    bed = Bits()
    torch.manual_seed(1)
    adam = partial(torch.optim.Adam, lr=0.05)
    svi = SVI(bed.model, bed.guide, adam, objective, engine=engine)
    losses = [svi.step(bed.x[: 2 - step % 2]) for step in range(4)]
    return losses, [p.detach() for p in bed.parameters()], svi


@pytest.mark.parametrize(
    "build",
    [
        pytest.param(partial(VIMCO, 3), marks=pytest.mark.slow),
        partial(DisARM, 2),
        partial(nvil, 2),
    ],
    ids=["VIMCO", "DisARM", "NVIL"],
)
def test_recorded_steps_have_the_bits_of_eager_ones(build) -> None:
    eager_objective, objective = build(), build()
    eager, weights, _ = trained(eager_objective, "eager")
    recorded, found, svi = trained(objective, "recorded")
    assert svi.recorded
    assert eager == recorded
    assert all(map(torch.equal, weights, found))
    if isinstance(objective, NVIL):
        averages = [dict(o.baseline.named_buffers()) for o in (eager_objective, objective)]
        assert averages[0]["center"] != 0
        torch.testing.assert_close(*averages, rtol=0, atol=0)


def test_running_averages_are_those_of_earlier_steps() -> None:
    bed, objective = Bits(), NVIL(decay=0.6)
    center, spread = 0.0, 0.0
    for step in range(3):
        torch.manual_seed(step)
        objective.differentiable_loss(bed.model, bed.guide, bed.x)
        torch.manual_seed(step)
        program = Program(bed.model, bed.guide)
        with program.running():
            log_w = ELBO().table(program, program_layout(bed), bed.x).log_w
        center = 0.6 * center + 0.4 * log_w.mean().item()
        spread = 0.6 * spread + 0.4 * log_w.var(correction=0).item()
        assert objective.baseline.center.item() == pytest.approx(center, rel=1e-5)
        assert objective.baseline.variance.item() == pytest.approx(spread, rel=1e-5)
    before = objective.baseline.center.clone()
    objective.loss(bed.model, bed.guide, bed.x)
    assert torch.equal(objective.baseline.center, before)


def test_nvil_learns_its_baseline_beside_the_program() -> None:
    bed = Bits()
    objective = nvil(8, network=linear())
    optimizer = torch.optim.Adam([*bed.parameters(), *objective.baseline.parameters()], lr=0.05)
    torch.manual_seed(0)
    before = exact(bed, 1, elbo)[0]
    for _ in range(200):
        optimizer.zero_grad()
        objective.loss_and_grads(bed.model, bed.guide, bed.x)
        optimizer.step()
    assert exact(bed, 1, elbo)[0] > before + 1.0
    noise, weigh = bed.tuples(1)
    z = bed.draw(noise, bed.x)
    log_q = bed.log_q(z, bed.x)
    each = (weigh(log_q) * (bed.log_joint(z, bed.x) - log_q).squeeze(0)).sum(0)
    learned = objective.baseline(bed.x) + objective.baseline.center
    assert (learned - each).abs().max() < 0.5


def test_the_state_of_a_baseline_is_a_state_dict() -> None:
    objective, other = (
        nvil(1, center=2.0, variance=3.0, network=linear()),
        nvil(1, network=linear()),
    )
    other.baseline.load_state_dict(objective.baseline.state_dict())
    assert other.baseline.center == 2.0
    assert {"center", "variance", "network.weight"} <= set(other.baseline.state_dict())


# ---------------------------------------------------------------------------- refusals


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (partial(RLOO, 1), "num_particles=1: leaving one out takes at least two"),
        (partial(VIMCO, 0), "num_particles=0: leaving one out takes at least two"),
        (partial(DisARM, 3), "num_particles=3: DisARM draws pairs"),
        (partial(DisARM, 0), "num_particles=0: DisARM draws pairs"),
        (partial(NVIL, num_particles=0), "num_particles=0: at least one sample"),
        (partial(NVIL, decay=1.0), r"decay=1.0: the part that is kept lies in \[0, 1\)"),
    ],
)
def test_impossible_numbers_are_refused(build, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        build()


@pytest.mark.parametrize(
    ("bed", "message"),
    [
        (Gaussian(), "the guide draws 'z' from a Normal: use ELBO"),
        (Mixed(), "one latent site, but the guide has 'z' and 'b'"),
    ],
    ids=["normal", "several"],
)
def test_disarm_refuses_other_latents(bed: Bed, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DisARM(2).differentiable_loss(bed.model, bed.guide, bed.x)


def test_a_baseline_gives_one_number_for_each_datum() -> None:
    bed = Bits()
    objective = NVIL(nn.Linear(4, 3).double())
    with pytest.raises(ValueError, match=r"shape \(2, 3\) for 2 data: it should give one number"):
        objective.differentiable_loss(bed.model, bed.guide, bed.x)


# ---------------------------------------------------------------------------- Pyro's own


class Sites(Bed):
    """The three bits as sites of their own, which Pyro can enumerate."""

    of_model, of_guide = Bits.of_model, Bits.of_guide

    def __init__(self) -> None:
        super().__init__({"r": (3,), "w": (3, 4), "b": (4,), "a": (4, 3), "c": (3,)}, scale=1.0)
        self.x = Bits().x

    def model(self, x):
        with self.plate(x):
            z = [pyro.sample(f"z{i}", dist.Bernoulli(logits=self.r[i])) for i in range(3)]
            logits = self.b + sum(z[i].unsqueeze(-1) * self.w[i] for i in range(3))
            pyro.sample("x", dist.Bernoulli(logits=logits).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x):
            logits = x @ self.a + self.c
            for i in range(3):
                pyro.sample(f"z{i}", dist.Bernoulli(logits=logits[..., i]))


def gradient_of(bed: Bed) -> dict[str, Tensor]:
    return {name: -p.grad.clone() / len(bed.x) for name, p in bed.named_parameters()}


def test_pyros_enumeration_is_exact_in_our_svi() -> None:
    bed = Sites()
    guide = config_enumerate(bed.guide, default="parallel")
    svi = SVI(bed.model, guide, torch.optim.SGD, TraceEnum_ELBO(max_plate_nesting=1))
    loss = svi.loss_and_grads(bed.x)
    # The partial that config_enumerate makes hides the module from the guide, not from the model.
    found = torch.tensor(-loss / len(bed.x), dtype=torch.float64), gradient_of(bed)
    assert distance(found, exact(Bits(), 1, elbo)) < 1e-10


def test_pyros_graph_elbo_is_unbiased_in_our_svi() -> None:
    bed, reference = Sites(), Bits()
    noise, weigh = reference.tuples(1)
    total = torch.zeros((), dtype=torch.float64)
    gradient = {name: torch.zeros_like(p) for name, p in bed.named_parameters()}
    for row in range(len(bed.x)):
        x = bed.x[row : row + 1]
        weights = weigh(reference.log_q(reference.draw(noise, x), x)).detach()
        for t in range(noise.shape[1]):
            bed.zero_grad()
            svi = SVI(bed.model, bed.guide, torch.optim.SGD, TraceGraph_ELBO())
            with injected(noise[0, t : t + 1]):
                total = total - weights[t, 0] * svi.loss_and_grads(x) / len(bed.x)
            for name, entry in gradient_of(bed).items():
                gradient[name] += weights[t, 0] * entry
    assert distance((total, gradient), exact(reference, 1, elbo)) < 1e-10


quick = partial(torch.optim.Adam, lr=0.06)


@pytest.mark.parametrize(
    "objective",
    [
        pytest.param(VIMCO(4), marks=pytest.mark.slow),
        DisARM(2),
        NVIL(),
        pytest.param(TraceGraph_ELBO(), marks=pytest.mark.slow),
    ],
    ids=lambda o: type(o).__name__,
)
def test_discrete_vaes_fit(objective) -> None:
    torch.manual_seed(0)
    vae = VAE.assemble(
        (4,), (3,), prior=Bernoulli, posterior=Bernoulli, network=partial(MLP, hidden=(5,))
    )
    data = Bits().x.float().repeat(40, 1)
    x = data[:2]
    before = RLOO(200).loss(vae.model, vae.guide, x)
    done = fit(vae, data, objective=objective, optim=quick, epochs=8, batch_size=16)
    assert done.epochs == 8
    assert RLOO(200).loss(vae.model, vae.guide, x) < before - 0.5


# ---------------------------------------------------------------------------- relaxations


def smooth(z: Tensor) -> Tensor:
    """A function whose slope in the middle has the other sign than its difference of the ends."""
    return 0.3 * z - 5.0 * (z - 0.5) ** 2 + 0.4 * z**3


def slope(z: Tensor) -> Tensor:
    return 0.3 - 10.0 * (z - 0.5) + 1.2 * z**2


def expected_gradient(family, temperature: float, logit: float, monkeypatch) -> float:
    """Return the derivative in the logit of the mean of ``smooth``, by quadrature over u."""
    num = 400_000
    nodes = (torch.arange(num, dtype=torch.float64) + 0.5) / num
    raw = torch.full((1, 1), logit, dtype=torch.float64, requires_grad=True)
    built = family((1,), temperature=temperature).double()
    monkeypatch.setattr(torch, "rand", lambda shape, **_: nodes.reshape(shape))
    mean = smooth(built(raw).rsample((num,))).mean()
    return torch.autograd.grad(mean, raw)[0].item()


def test_the_relaxed_gradient_tends_to_the_exact_one(monkeypatch) -> None:
    logit = 1.2
    p = 1 / (1 + math.exp(-logit))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    reference = p * (1 - p) * (smooth(ends[1]) - smooth(ends[0])).item()
    found = [
        expected_gradient(RelaxedBernoulli, temperature, logit, monkeypatch)
        for temperature in (1.0, 0.5, 0.25, 0.1, 0.02, 0.01)
    ]
    errors = [abs(gradient - reference) for gradient in found]
    assert errors == sorted(errors, reverse=True)
    assert found[0] < 0 < reference  # at a high temperature even its sign is wrong
    assert 2 * found[-1] - found[-2] == pytest.approx(reference, rel=2e-3)  # the bias is O(T)


def test_the_straight_through_gradient_tends_to_the_trapezoid_rule(monkeypatch) -> None:
    """The mean slope at the ends stands for the difference: exact for quadratic functions only."""
    logit = 1.2
    p = 1 / (1 + math.exp(-logit))
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    trapezoid = p * (1 - p) * slope(ends).mean().item()
    reference = p * (1 - p) * (smooth(ends[1]) - smooth(ends[0])).item()
    coarse, fine = (
        expected_gradient(StraightThroughBernoulli, temperature, logit, monkeypatch)
        for temperature in (0.02, 0.01)
    )
    assert 2 * fine - coarse == pytest.approx(trapezoid, rel=2e-3)
    assert abs(trapezoid - reference) > 0.02


def discrete(family, prior, event_shape=(3,), **options) -> VAE:
    torch.manual_seed(0)
    parts = {"network": partial(MLP, hidden=(5,)), "prior": prior, "posterior": family}
    return VAE.assemble((4,), event_shape, **parts, **options)


STRAIGHT = {
    "Bernoulli": (StraightThroughBernoulli, Bernoulli, (3,)),
    "Categorical": (StraightThroughCategorical, StraightThroughCategorical, (2, 3)),
}


@pytest.mark.parametrize("name", STRAIGHT)
def test_straight_through_values_are_hard_and_weighed_by_their_mass(name: str) -> None:
    family, prior, shape = STRAIGHT[name]
    vae = discrete(family, prior, shape).double()
    x = Bits().x
    program = Program(vae.model, vae.guide)
    torch.manual_seed(2)
    with program.running():
        terms = ELBO(50).table(program, Probe(program, x).layout, x)
    z = terms.values["z"].detach()
    assert set(z.unique().tolist()) == {0.0, 1.0}
    logits = vae.posterior.network(x).squeeze(1)
    if name == "Bernoulli":
        mass = log_bernoulli(z, logits).sum(-1)
    else:
        assert torch.equal(z.sum(-1), torch.ones(50, 2, 2, dtype=z.dtype))
        mass = (z * logits.log_softmax(-1)).sum((-2, -1))
    torch.testing.assert_close(terms.log_q["z"], mass)
    through_values = torch.autograd.grad(terms.log_p["x"].sum(), vae.posterior.offset)[0]
    assert bool((through_values != 0).all())


@pytest.mark.parametrize("family", [StraightThroughBernoulli, RelaxedBernoulli])
def test_halves_of_the_unit_interval_have_the_bernoullis_probabilities(family) -> None:
    # 20,000 draws: a frequency is off by 5 standard errors with p < 1e-6.
    raw = torch.tensor([[-2.0, -0.3, 0.0, 1.4]])
    torch.manual_seed(5)
    ones = (family((4,))(raw).rsample((20_000,)) > 0.5).float().mean(0)
    p = raw[0].sigmoid()
    assert bool(((ones - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all())


@pytest.mark.parametrize("family", [StraightThroughCategorical, Concrete])
def test_corners_of_the_simplex_have_the_categoricals_probabilities(family) -> None:
    raw = torch.tensor([[-1.0, 0.3, 1.1]])
    torch.manual_seed(6)
    largest = family((3,))(raw).rsample((20_000,)).argmax(-1)
    p = raw[0].softmax(-1)
    found = torch.bincount(largest, minlength=3) / 20_000
    assert bool(((found - p).abs() < 5 * (p * (1 - p) / 20_000).sqrt()).all())


RELAXED = {
    "RelaxedBernoulli": (RelaxedBernoulli, dist.RelaxedBernoulli, (3,)),
    "Concrete": (Concrete, dist.RelaxedOneHotCategorical, (2, 3)),
}


@pytest.mark.parametrize("name", RELAXED)
def test_relaxed_densities_are_pyros_where_numbers_suffice(name: str) -> None:
    family, theirs, shape = RELAXED[name]
    raw = torch.linspace(-1, 1, 6, dtype=torch.float64)[: math.prod(shape)].reshape(1, *shape)
    raw.requires_grad_()
    posterior = family(shape, temperature=0.7).double()(raw)
    torch.manual_seed(7)
    z = posterior.rsample((20,))
    temperature = torch.tensor(0.7).double()
    reference = theirs(temperature, logits=raw[0]).to_event(len(shape) - (name == "Concrete"))
    expected_density = reference.log_prob(z.clone())  # which remembers nothing
    for value in (z, z.clone()):
        torch.testing.assert_close(posterior.log_prob(value), expected_density, rtol=1e-8, atol=0)
    weights = torch.linspace(-1, 1, 20, dtype=torch.float64)
    for wanted in (raw, z):  # through the value itself, where a hook of DReG's would be
        gradients = [
            torch.autograd.grad((weights * density).sum(), wanted, retain_graph=True)[0]
            for density in (posterior.log_prob(z), expected_density)
        ]
        torch.testing.assert_close(*gradients, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("name", RELAXED)
def test_saturated_samples_keep_their_weight_in_float32(name: str) -> None:
    family, theirs, shape = RELAXED[name]
    raw = 9.0 * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0, 1.0])[: math.prod(shape)]
    raw, one = raw.reshape(1, *shape), torch.ones(())
    posterior = family(shape, temperature=0.15)
    prior = family(shape, temperature=0.1)
    torch.manual_seed(8)
    z = posterior(raw).rsample((200,))
    found = prior(torch.zeros_like(raw)).log_prob(z) - posterior(raw).log_prob(z)
    exactly = z._logits[0].double()
    z = _keeping(exactly, exactly.sigmoid() if name == "RelaxedBernoulli" else exactly.exp(), one)
    posterior, prior, raw = posterior.double(), prior.double(), raw.double()
    reference = prior(torch.zeros_like(raw)).log_prob(z) - posterior(raw).log_prob(z)
    torch.testing.assert_close(found.double(), reference, rtol=1e-4, atol=1e-3)
    other = [
        theirs(torch.tensor(t), logits=logits[0].float()).to_event(1).log_prob(z.float().clone())
        for t, logits in ((0.1, torch.zeros_like(raw)), (0.15, raw))
    ]
    wrong = (other[0] - other[1]).double()
    wrong = wrong.sum(-1) if wrong.dim() > 1 else wrong
    assert not torch.allclose(wrong, reference, atol=0.5)


def test_a_relaxed_pair_has_a_bound_of_its_own_evidence() -> None:
    """By quadrature over the logit of z: E_q[log w] < log E_p[p(x | z)]."""
    vae = discrete(
        partial(RelaxedBernoulli, temperature=0.66),
        partial(RelaxedBernoulli, temperature=0.5),
        (1,),
    ).double()
    x = Bits().x[:1]
    logit = torch.linspace(-120, 120, 60_001, dtype=torch.float64)
    z = _keeping(logit, logit.sigmoid(), torch.ones(()))
    z, z._logits = z.unsqueeze(-1), tuple(part.unsqueeze(-1) for part in z._logits)
    jacobian = logsigmoid(logit) + logsigmoid(-logit)
    with torch.no_grad():
        log_prior = vae.prior().log_prob(z)
        log_q = vae.posterior(x).log_prob(z)
        log_joint = log_prior + vae.likelihood(z).log_prob(x)
    step = logit[1] - logit[0]
    integrate = partial(torch.sum, dim=0)
    evidence = (integrate((log_joint + jacobian).exp()) * step).log().item()
    density = (log_q + jacobian).exp()
    assert (integrate(density) * step).item() == pytest.approx(1, abs=1e-6)
    bound = (integrate(density * (log_joint - log_q)) * step).item()
    torch.manual_seed(9)
    found = -ELBO(20_000).loss(vae.model, vae.guide, x)
    assert bound < evidence
    assert found == pytest.approx(bound, abs=0.05)


@pytest.mark.parametrize(
    ("family", "prior", "shape"),
    [
        pytest.param(RelaxedBernoulli, RelaxedBernoulli, (3,), marks=pytest.mark.slow),
        (Concrete, partial(Concrete, temperature=0.5), (2, 3)),
        pytest.param(*STRAIGHT["Bernoulli"], marks=pytest.mark.slow),
        pytest.param(*STRAIGHT["Categorical"], marks=pytest.mark.slow),
    ],
)
def test_relaxed_vaes_fit(family, prior, shape) -> None:
    vae = discrete(family, prior, shape)
    data = Bits().x.float().repeat(40, 1)
    before = ELBO(500).loss(vae.model, vae.guide, data[:2])
    fit(vae, data, objective=ELBO(), optim=quick, epochs=8, batch_size=16)
    assert ELBO(500).loss(vae.model, vae.guide, data[:2]) < before - 0.5


@pytest.mark.parametrize(
    ("family", "prior", "shape", "names"),
    [
        (RelaxedBernoulli, Bernoulli, (3,), "RelaxedBernoulli, whose values a Bernoulli"),
        (Bernoulli, RelaxedBernoulli, (3,), "Bernoulli, whose values a .*RelaxedBernoulli"),
        (Concrete, StraightThroughCategorical, (3,), "Categorical, whose values a .*Straight"),
        (StraightThroughBernoulli, RelaxedBernoulli, (3,), "Straight.*, whose values a .*Relaxed"),
    ],
)
def test_a_mass_over_a_density_is_refused(family, prior, shape, names: str) -> None:
    with pytest.raises(ValueError, match=names):
        fit(discrete(family, prior, shape), Bits().x.float().repeat(4, 1), batch_size=4)


def test_a_temperature_moves_a_recorded_step() -> None:
    def run(engine: str):
        vae = discrete(RelaxedBernoulli, RelaxedBernoulli)
        svi = SVI(vae.model, vae.guide, quick, ELBO(2), engine=engine)
        torch.manual_seed(1)
        losses = []
        for step in range(5):
            vae.posterior.family.temperature.fill_(2.0 * 0.6**step)
            losses.append(svi.step(Bits().x.float()))
        return losses, svi

    (eager, _), (recorded, svi) = run("eager"), run("recorded")
    assert svi.recorded
    assert eager == recorded


@pytest.mark.parametrize(
    "family", [RelaxedBernoulli, Concrete, StraightThroughBernoulli, StraightThroughCategorical]
)
def test_a_temperature_is_positive(family) -> None:
    with pytest.raises(ValueError, match="temperature=0"):
        family((3,), temperature=0)
    with pytest.raises(ValueError, match=f"{family.__name__} needs its raw parameters"):
        family((3,))()
    assert "temperature" in family((3,)).state_dict()
