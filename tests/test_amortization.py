"""Posteriors without an encoder, and with one that gradient steps correct."""

from __future__ import annotations

import math
from functools import partial

import pyro.distributions as dist
import pytest
import torch
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from recorded import both
from torch import Tensor, nn

from pyro_vae import SVI, evaluation
from pyro_vae.components import (
    MLP,
    Bernoulli,
    Conditional,
    DiagonalNormal,
    FullNormal,
    PerDatum,
    StandardNormal,
    VampPrior,
)
from pyro_vae.datasets import Data, Dataset
from pyro_vae.fitting import fit
from pyro_vae.inference import Probe, Program, site_terms
from pyro_vae.models import VAE, SemiAmortizedVAE, UnamortizedVAE

NETWORK = partial(MLP, hidden=(5,))
semi_amortized = partial(
    SemiAmortizedVAE.assemble, (4,), (2,), network=NETWORK, num_steps=2, step_size=0.05
)


def binary(num_rows: int = 6) -> Tensor:
    return torch.randint(0, 2, (num_rows, 4), generator=torch.Generator().manual_seed(7)).float()


class LinearNormal(nn.Module):
    """p(x | z) = N(zW, 0.5^2 I), whose exact posteriors are known."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.register_buffer("weight", torch.randn(2, 3, generator=generator))

    def forward(self, z: Tensor):
        return dist.Normal(z @ self.weight, 0.5).to_event(1)

    def log_p(self, x: Tensor) -> Tensor:
        covariance = self.weight.mT @ self.weight + 0.25 * torch.eye(3)
        return dist.MultivariateNormal(torch.zeros(3), covariance).log_prob(x)


# ---------------------------------------------------------------------------------- per datum


def test_each_datum_reaches_its_own_exact_posterior() -> None:
    x, rows = torch.randn(8, 3), torch.arange(8)
    likelihood = LinearNormal()
    posterior = PerDatum(FullNormal((2,)), num_data=8, rate_factor=1.0)
    vae = UnamortizedVAE(prior=StandardNormal((2,)), likelihood=likelihood, posterior=posterior)
    optim = partial(torch.optim.Adam, lr=0.1)
    svi = SVI(vae.model, vae.guide, optim, TraceMeanField_ELBO())
    for _ in range(60):
        svi.step(x, rows)
    bound = evaluation.elbo(vae.model, vae.guide, x, rows, num_particles=100)
    assert bound.elbo_nats == pytest.approx(float(likelihood.log_p(x).mean()), abs=0.2)


def test_row_numbers_stand_where_labels_do() -> None:
    vae = UnamortizedVAE.assemble((4,), (2,), num_data=6, network=NETWORK)
    part = Data(binary())
    before = vae.posterior.raw.detach().clone()
    done = fit(vae, Dataset("toy", part, part, part, levels=1), epochs=1, batch_size=3)
    assert len(done.history) == 1
    assert bool((vae.posterior.raw != before).flatten(1).any(1).all())


def test_a_datum_has_the_same_posterior_in_any_batch() -> None:
    vae = UnamortizedVAE.assemble((4,), (2,), num_data=6, network=NETWORK)
    q = vae.posterior(torch.tensor([4, 1]))
    torch.testing.assert_close(q.mean[0], vae.posterior.raw[4, 0])
    gradient = torch.autograd.grad(q.mean.sum() + q.variance.sum(), vae.posterior.raw)[0]
    assert gradient.flatten(1).any(1).tolist() == [False, True, False, False, True, False]


def rows_of(x: Tensor) -> Dataset:
    part = Data(x)
    return Dataset("rows", part, part, part, levels=1)


def test_free_numbers_have_a_rate_of_their_own_by_default() -> None:
    """Without it, training at defaults leaves them at the prior."""
    torch.manual_seed(0)
    codes = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]).repeat(8, 1)
    x = codes.repeat(1, 6)  # two bits a datum, which z has to tell
    found = {}
    for factor, epochs in ((1.0, 60), (None, 160)):
        vae = UnamortizedVAE.assemble((12,), (2,), num_data=32, network=partial(MLP, hidden=(16,)))
        if factor is not None:
            vae.posterior.rate_factor = factor
        fit(vae, rows_of(x), epochs=epochs, batch_size=32, engine="eager")
        found[factor] = evaluation.elbo(vae.model, vae.guide, x, torch.arange(32)).rate_nats
    assert found[1.0] < 0.2
    assert found[None] > 0.5  # of 2 log 2 = 1.39


def test_a_factor_of_the_rate_is_any_modules_and_keeps_recorded_bits() -> None:
    def build() -> VAE:
        torch.manual_seed(0)
        vae = VAE.assemble((4,), (2,), network=NETWORK)
        vae.likelihood.rate_factor = 3.0
        vae.likelihood.network.rate_factor = 0.5
        vae.posterior.network.layers[0].bias.rate_factor = 0.25
        return vae

    vae = build()
    svi = SVI(vae.model, vae.guide, partial(torch.optim.SGD, lr=0.1), Trace_ELBO())
    before = {name: p.detach().clone() for name, p in vae.named_parameters()}
    svi.loss_and_grads(binary())
    gradients = {name: p.grad.clone() for name, p in vae.named_parameters() if p.grad is not None}
    svi.apply_gradients()
    for name, gradient in gradients.items():
        factor = {"likelihood.": 3.0}.get(name[:11], 1.0)
        factor *= 0.5 if name.startswith("likelihood.network") else 1.0
        factor *= 0.25 if name == "posterior.network.layers.0.bias" else 1.0
        moved = before[name] - dict(vae.named_parameters())[name].detach()
        torch.testing.assert_close(moved, 0.1 * factor * gradient)
    eager, recorded = build(), build()
    done = [
        fit(each, binary(30), epochs=4, batch_size=8, engine=engine)
        for each, engine in ((eager, "eager"), (recorded, "recorded"))
    ]
    assert done[0].history == done[1].history
    for one, other in zip(eager.parameters(), recorded.parameters(), strict=True):
        assert torch.equal(one, other)


def test_rows_outside_are_refused() -> None:
    vae = UnamortizedVAE.assemble((4,), (2,), num_data=6, network=NETWORK)
    with pytest.raises(ValueError, match="raw numbers for the rows 0 to 5") as caught:
        evaluation.elbo(vae.model, vae.guide, binary(), torch.arange(6) + 4)
    assert "\n" not in str(caught.value)


def test_a_prior_of_encoded_data_is_refused() -> None:
    prior = partial(VampPrior, num_pseudo_inputs=3)
    with pytest.raises(ValueError, match="here is no encoder"):
        UnamortizedVAE.assemble((4,), (2,), num_data=6, prior=prior, data=binary())


def test_recorded_steps_of_free_numbers_are_eager_steps() -> None:
    def pair():
        vae = UnamortizedVAE.assemble((4,), (2,), num_data=9, network=NETWORK)
        args = (binary(), torch.arange(6) + 2)
        return type("Pair", (), {"model": vae.model, "guide": vae.guide, "args": args})

    assert any(both(pair, Trace_ELBO, sizes=(6, 6)).replayed)


# ------------------------------------------------------------------------------ semi-amortised


def log_weights(vae: SemiAmortizedVAE, x: Tensor, num_samples: int) -> Tensor:
    """Return log-weights, ``[num_samples, B]``: data are refined apart, so repeat them."""
    program = Program(vae.model, vae.guide)
    repeated = x.repeat(num_samples, 1)
    layout = Probe(program, repeated).layout
    with program.evaluating(seed=2):
        return site_terms(program, layout, repeated).log_w.reshape(num_samples, len(x))


def test_no_steps_leave_the_encoder() -> None:
    vae = semi_amortized(num_steps=0)
    plain = VAE(prior=vae.prior, likelihood=vae.likelihood, posterior=vae.posterior)
    found, expected = (evaluation.elbo(v.model, v.guide, binary(), seed=3) for v in (vae, plain))
    assert found == expected


def test_steps_climb_to_the_exact_posterior() -> None:
    x = torch.randn(5, 3)
    likelihood = LinearNormal()
    posterior = Conditional(FullNormal((2,)), context_shape=(3,), network=NETWORK)
    parts = {"prior": StandardNormal((2,)), "likelihood": likelihood, "posterior": posterior}
    bounds = [
        float(log_weights(SemiAmortizedVAE(**parts, num_steps=n, step_size=0.08), x, 20).mean())
        for n in (0, 10, 60)
    ]
    log_p = float(likelihood.log_p(x).mean())
    assert bounds[0] < bounds[1] < bounds[2] < log_p + 0.05
    assert bounds[2] > log_p - 0.5


def test_gradients_pass_through_the_steps() -> None:
    # The whole derivative, against central differences of the same seeded bound.
    vae = semi_amortized(posterior=DiagonalNormal).double()
    x = binary().double()
    program = Program(vae.model, vae.guide)
    layout = Probe(program, x).layout

    def bound() -> Tensor:
        torch.manual_seed(5)
        with program.running():
            return site_terms(program, layout, x).log_w.mean()

    parameters = [vae.posterior.offset, next(vae.likelihood.network.parameters())]
    gradients = torch.autograd.grad(bound(), parameters)
    for parameter, gradient in zip(parameters, gradients, strict=True):
        step = 1e-5 * torch.randn_like(parameter)
        with torch.no_grad():
            parameter.add_(step)
            above = bound()
            parameter.sub_(2 * step)
            below = bound()
            parameter.add_(step)
        expected = (gradient * step).sum()
        torch.testing.assert_close((above - below) / 2, expected, rtol=1e-5, atol=1e-13)


def test_refinement_leaves_the_bound_a_bound() -> None:
    vae = semi_amortized(num_steps=4, step_size=0.3).double()
    x = binary().double()
    log_w = log_weights(vae, x, 5000)
    found = log_w.logsumexp(0) - math.log(5000)
    with torch.no_grad():
        z = torch.randn(50_000, 1, 2).double()
        log_p = vae.likelihood(z).log_prob(x).logsumexp(0) - math.log(50_000)
    torch.testing.assert_close(found, log_p, rtol=0, atol=0.1)
    assert float(log_w.mean()) < float(log_p.mean())


def test_evaluation_leaves_no_graph_and_no_gradients() -> None:
    vae = semi_amortized()
    with torch.no_grad():
        raw = vae.refined(binary())
    assert not raw.requires_grad
    evaluation.elbo(vae.model, vae.guide, binary())
    assert all(parameter.grad is None for parameter in vae.parameters())


def test_recorded_steps_of_steps_are_eager_steps() -> None:
    def pair():
        vae = semi_amortized(num_steps=1)
        return type("Pair", (), {"model": vae.model, "guide": vae.guide, "args": (binary(),)})

    assert any(both(pair, Trace_ELBO, sizes=(6, 6)).replayed)


@pytest.mark.parametrize(
    ("build", "said"),
    [
        (lambda: semi_amortized(num_steps=-1), "num_steps=-1"),
        (lambda: semi_amortized(step_size=0.0), "step_size=0.0"),
        (lambda: semi_amortized(max_norm=float("nan")), "max_norm=nan"),
        (
            lambda: semi_amortized(prior=Bernoulli, posterior=Bernoulli).refined(binary()),
            "those of Bernoulli carry no gradients",
        ),
    ],
)
def test_bad_arguments_say_which(build, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        build()
