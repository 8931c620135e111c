"""Our objectives: equal to Pyro's where those are right, and to closed forms."""

from __future__ import annotations

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro import poutine
from pyro.infer import RenyiELBO, Trace_ELBO
from torch import nn

from pyro_vae import SVI, fit
from pyro_vae.evaluation import log_likelihood
from pyro_vae.inference import ELBO, IWAE


class Gaussian(nn.Module):
    """z ~ N(0, I), x ~ N(Wz, 0.5^2 I), q = N(Ax, exp(s)^2); scales and a discrete guide on call."""

    def __init__(self, *, discrete=False, full_size=None, scale=None):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        self.w = nn.Parameter(torch.randn(2, 3, generator=generator, dtype=torch.float64))
        self.a = nn.Parameter(0.3 * torch.randn(3, 2, generator=generator, dtype=torch.float64))
        self.s = nn.Parameter(torch.full((2,), -0.5, dtype=torch.float64))
        self.discrete, self.full_size, self.scale = discrete, full_size, scale

    def plate(self, x):
        return pyro.plate("data", self.full_size or len(x), subsample=x)

    def model(self, x):
        prior = dist.Bernoulli(torch.full((2,), 0.4, dtype=torch.float64))
        prior = prior if self.discrete else dist.Normal(torch.zeros_like(self.s), 1.0)
        with self.plate(x), poutine.scale(scale=self.scale or 1.0):
            z = pyro.sample("z", prior.to_event(1))
            pyro.sample("x", dist.Normal(z @ self.w, 0.5).to_event(1), obs=x)

    def guide(self, x):
        with self.plate(x), poutine.scale(scale=self.scale or 1.0):
            if self.discrete:
                pyro.sample("z", dist.Bernoulli(logits=x @ self.a + self.s).to_event(1))
            else:
                pyro.sample("z", dist.Normal(x @ self.a, self.s.exp()).to_event(1))

    def log_p(self, x):
        covariance = self.w.T @ self.w + 0.25 * torch.eye(3, dtype=torch.float64)
        zeros = torch.zeros(3, dtype=torch.float64)
        return torch.distributions.MultivariateNormal(zeros, covariance).log_prob(x).detach()


X = torch.randn(5, 3, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def value_and_gradient(objective, program, seed=0):
    torch.manual_seed(seed)
    for parameter in program.parameters():
        parameter.grad = None
    # Pyro's own ELBOs go backward only where a trace shows a parameter.
    svi = SVI(program.model, program.guide, torch.optim.SGD, objective)
    loss = svi.loss_and_grads(X)
    gradient = torch.cat([p.grad.flatten() for p in program.parameters()])
    return loss, gradient


@pytest.mark.parametrize("num_particles", [1, 4])
@pytest.mark.parametrize(
    "options",
    [{}, {"discrete": True}, {"full_size": 40}, {"discrete": True, "full_size": 40}],
    ids=str,
)
def test_the_elbo_is_pyros(num_particles, options):
    program = Gaussian(**options)
    theirs = Trace_ELBO(num_particles, max_plate_nesting=1, vectorize_particles=True)
    expected, gradient = value_and_gradient(theirs, program)
    loss, found = value_and_gradient(ELBO(num_particles), program)
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-11, atol=1e-11)
    torch.manual_seed(0)
    assert ELBO(num_particles).loss(program.model, program.guide, X) == pytest.approx(expected)


def test_a_scale_moves_the_gradient_but_not_the_reported_bound():
    plain, gradient = value_and_gradient(ELBO(), Gaussian())
    for objective in (ELBO(), IWAE(1)):
        loss, found = value_and_gradient(objective, Gaussian(scale=0.25))
        torch.testing.assert_close(found, 0.25 * gradient)
        assert loss == pytest.approx(plain)


@pytest.mark.parametrize("num_particles", [1, 2, 7])
def test_iwae_is_renyi_at_zero(num_particles):
    theirs = RenyiELBO(
        0, num_particles=max(2, num_particles), max_plate_nesting=1, vectorize_particles=True
    )
    if num_particles == 1:
        theirs = Trace_ELBO(max_plate_nesting=1)
    expected, gradient = value_and_gradient(theirs, Gaussian())
    loss, found = value_and_gradient(IWAE(num_particles), Gaussian())
    assert loss == pytest.approx(expected, rel=1e-12)
    torch.testing.assert_close(found, gradient, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("objective", [ELBO(3), IWAE(3)], ids=lambda o: type(o).__name__)
def test_the_loss_of_a_subsampled_plate_is_so_many_times_that_of_the_batch(objective):
    loss, gradient = value_and_gradient(objective, Gaussian())
    scaled, found = value_and_gradient(objective, Gaussian(full_size=50))
    assert scaled == pytest.approx(10 * loss)
    torch.testing.assert_close(found, 10 * gradient)
    if isinstance(objective, IWAE):
        theirs = RenyiELBO(0, num_particles=3, max_plate_nesting=1, vectorize_particles=True)
        with pytest.raises(ValueError, match="no bound"):
            value_and_gradient(theirs, Gaussian(full_size=50))


def test_the_bounds_are_ordered_below_log_p():
    program = Gaussian()
    exact = program.log_p(X).mean().item()
    means = []
    for num_particles in (1, 5, 50):
        torch.manual_seed(0)
        losses = [IWAE(num_particles).loss(program.model, program.guide, X) for _ in range(30)]
        means.append(-torch.tensor(losses).mean().item() / len(X))
    assert means[0] < means[1] < means[2] < exact
    assert exact - means[2] < (exact - means[0]) / 2


def test_iwae_value_is_the_importance_sampled_likelihood():
    program = Gaussian()
    estimate = log_likelihood(program.model, program.guide, X, num_samples=20_000).mean().item()
    loss = IWAE(20_000).loss(program.model, program.guide, X)
    assert -loss / len(X) == pytest.approx(estimate, abs=0.02)


def test_iwae_refuses_latents_that_carry_no_gradient():
    program = Gaussian(discrete=True)
    with pytest.raises(ValueError, match="site 'z' carry no gradients"):
        value_and_gradient(IWAE(3), program)


@pytest.mark.parametrize("objective", [ELBO, IWAE])
def test_at_least_one_particle(objective):
    with pytest.raises(ValueError, match="num_particles=0"):
        objective(num_particles=0)


@pytest.mark.parametrize("objective", [ELBO(2), IWAE(4)], ids=lambda o: type(o).__name__)
def test_recorded_steps_have_the_bits_of_eager_ones(objective):
    def run(engine):
        program = Gaussian()
        torch.manual_seed(1)
        adam = torch.optim.Adam
        svi = SVI(program.model, program.guide, adam, objective, engine=engine)
        losses = [svi.step(X[: 5 - step % 2]) for step in range(6)]
        return losses, [p.detach() for p in program.parameters()]

    (eager, weights), (recorded, found) = run("eager"), run("recorded")
    assert eager == recorded
    assert all(map(torch.equal, weights, found))


def test_they_work_in_pyros_own_svi_and_in_fit():
    decoder = nn.Linear(2, 3).double()

    def model(x):
        pyro.module("decoder", decoder)
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2, dtype=x.dtype), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(decoder(z), 0.5).to_event(1), obs=x)

    def guide(x):
        loc = pyro.param("loc", torch.zeros(3, 2, dtype=torch.float64))
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ loc, 0.7).to_event(1))

    svi = pyro.infer.SVI(model, guide, pyro.optim.Adam({"lr": 1e-2}), IWAE(5))
    losses = [svi.step(X) for _ in range(200)]
    assert sum(losses[-20:]) < sum(losses[:20])
    program = Gaussian().float()
    done = fit(program, torch.randn(60, 3), objective=IWAE(3), epochs=2, batch_size=16)
    assert done.epochs == 2
