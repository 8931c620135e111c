"""MCMC in training: the model's gradient is that of log p(x), the guide's that of the ELBO."""

from __future__ import annotations

import itertools
import math
import os
import re
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from bits import same
from exact import Chain, Gaussian, injected
from laws import Pair, functions_with_modules
from linear import LinearGaussian
from quick import some
from recorded import both
from runs import child, final
from torch import nn

from pyro_vae import SVI, VAE, fit
from pyro_vae.components import MLP, Bernoulli, DiagonalNormal, Normal, SparsePoint
from pyro_vae.inference import ELBO, KLWeight, Probe, Program, Refined, refined
from pyro_vae.inference.hmc import leapfrog

X = torch.randn(40, 3, generator=torch.Generator().manual_seed(2))
adam = partial(torch.optim.Adam, lr=0.01)
SMALL = partial(MLP, hidden=(8,))


def gradients(objective, program, *args, seed: int = 3):
    """Return the loss and the gradient of every parameter."""
    program.zero_grad()
    torch.manual_seed(seed)
    loss = objective.loss_and_grads(program.model, program.guide, *args)
    found = {n: p.grad.clone() for n, p in program.named_parameters() if p.grad is not None}
    return loss, found


class Exact(LinearGaussian):
    """The guide is the exact posterior, shifted by so many of its deviations; z is noted."""

    def __init__(self, *, shift: float = 0.0, **options) -> None:
        super().__init__(**options)
        self.shift, self.seen = shift, []

    def guide(self, x):
        with pyro.plate("data", len(x)):
            q = self.posterior(x)
            loc = q.loc + self.shift * q.covariance_matrix.diagonal(dim1=-2, dim2=-1).sqrt()
            pyro.sample("z", dist.MultivariateNormal(loc, q.covariance_matrix))

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))
            self.seen.append(z.detach())
            mean = z @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(mean, self.scale).to_event(1), obs=x)


# ------------------------------------------------------------------------------ the gradients


@pytest.mark.parametrize("num_particles", [1, 3])
def test_value_and_guide_are_the_plain_elbos_bit_for_bit(num_particles):
    program = LinearGaussian()
    x = torch.randn(6, 3).double()
    plain_loss, plain = gradients(ELBO(num_particles), program, x)
    loss, found = gradients(Refined(num_particles, num_steps=2, num_leapfrog=3), program, x)
    assert loss == plain_loss
    for name in ("gain", "offset", "spread"):
        assert same(found[name], plain[name])
    for name in ("weight", "bias"):
        assert not torch.equal(found[name], plain[name])


def stay(density, start, step_size, *, num_steps):
    """Stand in for a move of all chains: none moves."""
    return start, torch.ones_like(start.log_density)


def integrated(objective) -> float:
    """Integrate over the exact posterior; return how far value and gradient are from log p's."""
    bed = Gaussian()
    with torch.no_grad():
        precision = 1 + (bed.w / bed.noise_scale).square().sum()
        bed.a.copy_((bed.w / bed.noise_scale**2 / precision).T)
        bed.c.copy_(-bed.b @ bed.a)
        bed.s.copy_(-0.5 * precision.log())
    noise, weigh = bed.tuples(1)
    num_rows = len(bed.x)
    x = bed.x.repeat(noise.shape[1], 1)
    layout = Probe(Program(bed.model, bed.guide), x).layout
    guide = injected(noise.squeeze(0).repeat_interleave(num_rows, 0))(bed.guide)
    program = Program(bed.model, guide)
    weights = weigh(None).expand(-1, num_rows).flatten() / num_rows
    with program.running():
        terms = objective.table(program, layout, x)
        value = (weights * objective.value(terms)).sum()
        total = (weights * objective.surrogate(terms)).sum()
    found = torch.autograd.grad(total, [bed.w, bed.b])
    log_p = bed.log_p().mean()
    expected = torch.autograd.grad(log_p, [bed.w, bed.b])
    gaps = [value - log_p, *(a - b for a, b in zip(found, expected, strict=True))]
    return max(float(gap.detach().abs().max()) for gap in gaps)


def test_under_the_exact_posterior_the_models_gradient_is_that_of_log_p(monkeypatch):
    monkeypatch.setattr(refined, "transition", stay)
    assert integrated(Refined()) < 1e-10
    # Mutant: the model's gradient of the ELBO is followed, too.
    monkeypatch.setattr(refined, "_frozen", lambda program: program)
    assert integrated(Refined()) > 0.01


def spread_of(values: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    stacked = torch.stack(values)
    return stacked.mean(0), stacked.std(0) / math.sqrt(len(values))


def distance_to_log_p(objective, program, num_repeats: int = 30) -> float:
    """Return how many standard errors the model's gradient is from that of log p(x), at most."""
    x = torch.randn(2, 3, generator=torch.Generator().manual_seed(4)).double()
    rows = x.repeat(300, 1)
    noise = program.scale**2 * torch.eye(3).double()
    covariance = program.weight @ program.weight.T + noise
    log_p = dist.MultivariateNormal(program.bias, covariance).log_prob(x).mean()
    expected = torch.autograd.grad(-log_p, [program.weight, program.bias])
    found = [gradients(objective, program, rows, seed=seed)[1] for seed in range(num_repeats)]
    errors = []
    for name, slope in zip(("weight", "bias"), expected, strict=True):
        mean, error = spread_of([each[name] / len(rows) for each in found])
        errors.append(((mean - slope).abs() / error).max())
    return float(max(errors))


# Nine numbers, of 30 repeats each: more than six standard errors at one seed in 1e5, and the seeds
# are the same in every run.
def test_the_exact_posterior_stays_as_it_is(monkeypatch):
    options = {"num_steps": 3, "num_leapfrog": 3, "step_size": 0.6, "target_acceptance": None}
    assert distance_to_log_p(Refined(**options), Exact()) < 6

    def accepting(density, start, step_size, *, num_steps):
        momentum = torch.randn_like(start.position)
        end, _ = leapfrog(density, start, momentum, step_size, num_steps=num_steps)
        return end, torch.ones_like(start.log_density)

    # Mutant: every end is accepted.
    monkeypatch.setattr(refined, "transition", accepting)
    assert distance_to_log_p(Refined(**options), Exact()) > 12


def test_a_wrong_guide_is_left_for_the_posterior():
    options = {"num_leapfrog": 4, "step_size": 0.35, "target_acceptance": None}
    assert distance_to_log_p(Refined(num_steps=12, **options), Exact(shift=1.0), 20) < 6
    # Mutant: a chain that is too short.
    assert distance_to_log_p(Refined(num_steps=1, **options), Exact(shift=1.0), 20) > 12


def test_moved_latents_have_the_moments_of_the_posterior():
    program, num_rows = Exact(), 20_000
    x = torch.randn(1, 3).double()
    objective = Refined(num_steps=3, num_leapfrog=3, step_size=0.5)
    gradients(objective, program, x.expand(num_rows, -1))
    z, posterior = program.seen[-1], program.posterior(x)
    start = program.seen[0]
    assert not torch.equal(z, start)
    deviations = posterior.covariance_matrix[0].diagonal().sqrt()
    off = ((z.mean(0) - posterior.loc[0]) / deviations * math.sqrt(num_rows)).abs().max()
    assert off < 6
    ratio = z.T.cov() / posterior.covariance_matrix[0]
    assert bool(((ratio.diagonal() - 1).abs() < 6 * math.sqrt(2 / num_rows)).all())


class Counts(nn.Module):
    """z ~ Gamma(a, 1), x ~ Poisson(z): the posterior is Gamma(a + x, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.raw = nn.Parameter(torch.tensor(0.7))
        self.logs = nn.Parameter(torch.tensor([0.6, -0.5]))
        self.seen = []

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Gamma(self.raw.exp(), 1.0))
            self.seen.append(z.detach())
            pyro.sample("x", dist.Poisson(z), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, raw_scale = self.logs
            pyro.sample("z", dist.LogNormal(loc + 0 * x, raw_scale.exp()))


def test_latents_with_bounds_are_moved_within_them():
    program, x = Counts(), torch.full((20_000,), 3.0)
    gradients(Refined(num_steps=12, num_leapfrog=4, step_size=0.3), program, x)
    z, posterior = program.seen[-1], dist.Gamma(program.raw.detach().exp() + 3, 2.0)
    assert bool((z > 0).all())
    off = (z.mean() - posterior.mean) / posterior.stddev * math.sqrt(len(x))
    assert abs(float(off)) < 6
    assert float(z.var() / posterior.variance) == pytest.approx(1, abs=0.1)


def test_weights_of_the_kl_are_followed_and_not_reported():
    program, x = LinearGaussian(), torch.randn(6, 3).double()
    weight = KLWeight(0.5)
    torch.manual_seed(3)
    found = Refined().loss(weight(program.model), weight(program.guide), x)
    torch.manual_seed(3)
    assert found == Refined().loss(program.model, program.guide, x)


# ---------------------------------------------------------------------- recorded, any program


class Dropping(LinearGaussian):
    """Dropout in the decoder, and a second latent in a plate inside the datum."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.modes = []

    def model(self, x):
        self.modes.append(self.training)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.zeros, 1.0).to_event(1))
            loc = self.dropout(z) @ self.weight.T + self.bias
            pyro.sample("x", dist.Normal(loc, self.scale).to_event(1), obs=x)


class Inside(nn.Module):
    """Two latents, of which one is in a plate of three inside the datum."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 4))
        self.shift = nn.Parameter(torch.zeros(2))

    def model(self, x):
        with pyro.plate("data", len(x)):
            u = pyro.sample("u", dist.Normal(0.0, 1.0))
            with pyro.plate("parts", 3, dim=-2):
                prior = dist.Normal(u.unsqueeze(-1).expand(*u.shape, 2), 1.0).to_event(1)
                z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z.sum(-3) @ self.weight, 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            pyro.sample("u", dist.Normal(x.mean(-1), 1.0))
            with pyro.plate("parts", 3, dim=-2):
                loc = x[:, :2] + self.shift
                pyro.sample("z", dist.Normal(loc.expand(3, *loc.shape), 1.0).to_event(1))


def of_bed() -> Pair:
    bed = Chain()
    return Pair(bed.model, bed.guide, (torch.randn(6, 2).double(),))


def of_vae() -> Pair:
    torch.manual_seed(0)
    vae = VAE.assemble((3,), (2,), likelihood=Normal, network=SMALL, prior=DiagonalNormal)
    return Pair(vae.model, vae.guide, (X[:6],))


def of(build) -> Pair:
    torch.manual_seed(0)
    program = build()
    x = torch.randn(6, 4) if build is Inside else torch.randn(6, 3).double()
    return Pair(program.model, program.guide, (x,))


PROGRAMS = {
    "VAE": of_vae,
    "two latents": of_bed,
    "a plate inside": partial(of, Inside),
    "parameters in the store": functions_with_modules,
}


@pytest.mark.parametrize("name", some(PROGRAMS, "two latents"))
def test_recorded_steps_are_eager_steps_bit_for_bit(name):
    num_particles = 2 if name == "two latents" else 1
    build = partial(Refined, num_particles, num_steps=1, num_leapfrog=2)
    assert any(both(PROGRAMS[name], build, sizes=(6, 6)).replayed)


def with_parameters() -> Pair:
    """Return functions that state parameters of their own."""

    def model(x):
        weight = pyro.param("weight", torch.tensor([[0.5, -1.0, 0.3]]))
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ weight, 1.0).to_event(1), obs=x)

    def guide(x):
        scale = pyro.param("scale", torch.tensor(0.7), constraint=dist.constraints.positive)
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x[:, :1], scale).to_event(1))

    return Pair(model, guide, (X[:6],))


@pytest.mark.parametrize("build", [functions_with_modules, with_parameters])
def test_parameters_in_the_store_get_the_models_gradient_once(build, monkeypatch):
    monkeypatch.setattr(refined, "transition", stay)
    found = []
    for objective in (ELBO(), Refined()):
        pyro.clear_param_store()
        torch.manual_seed(1)
        pair = build()
        svi = SVI(pair.model, pair.guide, adam, objective)
        torch.manual_seed(2)
        svi.loss_and_grads(*pair.args)
        found.append({name: p.grad for name, p in svi.parameters.items()})
    assert found[0].keys() == found[1].keys()
    for name, gradient in found[0].items():
        torch.testing.assert_close(found[1][name], gradient)


def test_the_chain_is_in_evaluation_mode_and_the_model_in_training_mode():
    program = Dropping()
    gradients(Refined(num_steps=2, num_leapfrog=2), program, torch.randn(6, 3).double())
    first = program.modes.index(True)
    modes = program.modes[first:]  # after the look at the program
    assert modes[0]
    assert modes[-1]
    assert not any(modes[1:-1])
    assert len(modes) == 2 + 1 + 1 + 4  # the ELBO's, the model's, positions, start, four moves
    assert program.training
    assert program.dropout.training


# --------------------------------------------------------------------------------- step size


def test_the_step_size_moves_to_its_target_and_stays_without_one():
    program, x = LinearGaussian(), torch.randn(100, 3).double()
    for start in (0.05, 3.0):
        objective = Refined(num_steps=2, num_leapfrog=3, step_size=start)
        for seed in range(60):
            gradients(objective, program, x, seed=seed)
        with Program(program.model, program.guide).running():
            layout = Probe(Program(program.model, program.guide), x).layout
            terms = objective.table(Program(program.model, program.guide), layout, x)
        assert float(terms.acceptance) == pytest.approx(0.8, abs=0.07)
    fixed = Refined(step_size=0.3, target_acceptance=None)
    gradients(fixed, program, x)
    assert float(fixed.size.value) == pytest.approx(0.3)


def test_only_training_moves_the_latents_and_the_step_size(monkeypatch):
    program, x = LinearGaussian(), torch.randn(6, 3).double()
    objective = Refined()
    calls = itertools.count()
    move = refined.transition

    def counted(*args, **kwargs):
        next(calls)
        return move(*args, **kwargs)

    monkeypatch.setattr(refined, "transition", counted)
    objective.loss(program.model, program.guide, x)
    assert next(calls) == 0
    assert float(objective.size.value) == pytest.approx(0.1)
    objective.loss_and_grads(program.model, program.guide, x)
    assert next(calls) == objective.num_steps + 1
    assert float(objective.size.value) != pytest.approx(0.1)


def run(out, *, resume: bool) -> Refined:
    torch.set_num_threads(1)
    torch.manual_seed(0)
    vae = VAE.assemble((3,), (2,), likelihood=Normal, network=SMALL)
    objective = Refined(num_steps=1, num_leapfrog=2)
    fit(
        vae, X, out=out, resume=resume, objective=objective,
        epochs=2, batch_size=8, checkpoint_seconds=0.0, engine="eager",
    )  # fmt: skip
    return objective


def test_a_killed_run_goes_on_to_the_same_bits_and_step_size(tmp_path):
    whole = run(tmp_path / "whole", resume=False)
    assert float(whole.size.value) != pytest.approx(0.1)
    number = itertools.count()
    move = refined.transition

    def dying(*args, **kwargs):
        if next(number) == 7:
            os._exit(137)
        return move(*args, **kwargs)

    def killed() -> None:
        refined.transition = dying
        run(tmp_path / "killed", resume=False)

    _, status = os.waitpid(child(killed), 0)
    assert os.WEXITSTATUS(status) == 137
    again = run(tmp_path / "killed", resume=True)
    assert same(final(tmp_path / "killed"), final(tmp_path / "whole"))
    assert same(again.size.value, whole.size.value)
    with pytest.raises(ValueError, match="objective"):
        fit(
            VAE.assemble((3,), (2,), likelihood=Normal, network=SMALL), X, out=tmp_path / "whole",
            resume=True, objective=Refined(num_steps=2, num_leapfrog=2), epochs=2, batch_size=8,
        )  # fmt: skip


# ---------------------------------------------------------------------------------- refusals

BAD = {
    "num_steps=0: give 1 or more": {"num_steps": 0},
    "num_leapfrog=0: give 1 or more": {"num_leapfrog": 0},
    "num_particles=0": {"num_particles": 0},
    "step_size=0": {"step_size": 0.0},
    "step_size=-1": {"step_size": -1.0},
    "step_size=nan": {"step_size": math.nan},
    "target_acceptance=1": {"target_acceptance": 1.0},
    "target_acceptance=0": {"target_acceptance": 0.0},
}


@pytest.mark.parametrize("message", BAD)
def test_unusable_numbers_are_named(message):
    with pytest.raises(ValueError, match=re.escape(message)):
        Refined(**BAD[message])


@pytest.mark.parametrize("train", ["fit", "SVI"])
def test_discrete_latents_are_refused_before_the_first_step(train):
    vae = VAE.assemble((3,), (2,), likelihood=Normal, prior=Bernoulli, posterior=Bernoulli)
    steps = {
        "fit": partial(fit, vae, objective=Refined(), epochs=1),
        "SVI": SVI(vae.model, vae.guide, adam, Refined()).step,
    }
    with pytest.raises(ValueError, match="'z' is discrete"):
        steps[train](X)


def test_points_are_refused():
    vae = VAE.assemble((3,), (2,), likelihood=Normal, posterior=SparsePoint)
    with pytest.raises(ValueError, match="point"):
        fit(vae, X, objective=Refined(), epochs=1)
