"""A VAE of labelled data: every part is given the label, and the bound is that of p(x | y)."""

from __future__ import annotations

from functools import partial

import pyro.distributions as dist
import pytest
import torch
from laws import Pair, binary
from pyro.infer import Trace_ELBO, TraceMeanField_ELBO
from recorded import both
from torch import nn

from pyro_vae import evaluation, fit
from pyro_vae.components import (
    MLP,
    Bernoulli,
    Convolutional,
    DiagonalNormal,
    MaskedAutoregressive,
    MixtureOfNormals,
    Normal,
    VampPrior,
)
from pyro_vae.components.labelled import beside
from pyro_vae.datasets import from_arrays
from pyro_vae.inference import Probe, Program
from pyro_vae.models import ConditionalVAE

X, Y = binary(6, 4), torch.tensor([0, 1, 2, 0, 1, 2])
small = partial(MLP, hidden=(5,))


def built(event_shape=(4,), num_classes: int = 3, **parts) -> ConditionalVAE:
    options = {"network": small, "prior": DiagonalNormal, **parts}
    return ConditionalVAE.assemble(event_shape, (2,), num_classes=num_classes, **options).double()


PRIORS = {
    "DiagonalNormal": DiagonalNormal,
    "MixtureOfNormals": partial(MixtureOfNormals, num_components=2),
    "MaskedAutoregressive": partial(MaskedAutoregressive, hidden_dims=[4], num_context=2),
}


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())
def test_the_prior_is_another_for_every_label(prior) -> None:
    vae = built(prior=prior)
    nn.init.normal_(vae.prior.network.layers[0].weight)
    z = torch.randn(3, 2).double()
    together = vae.prior(vae.one_hot).log_prob(z)
    alone = torch.stack([vae.prior(vae.one_hot[k]).log_prob(z[k]) for k in range(3)])
    torch.testing.assert_close(together, alone)
    assert len(vae.prior(vae.one_hot).log_prob(z[0]).unique()) == 3


@pytest.mark.parametrize("prior", PRIORS.values(), ids=PRIORS.keys())
def test_every_parameter_gets_a_gradient(prior) -> None:
    vae = built(prior=prior, data=X.float())
    elbo = Trace_ELBO(num_particles=2, vectorize_particles=True, max_plate_nesting=1)
    elbo.differentiable_loss(vae.model, vae.guide, X, Y).backward()
    for name, parameter in vae.named_parameters():
        assert parameter.grad is not None, name
        assert bool(parameter.grad.isfinite().all()), name
        assert bool((parameter.grad != 0).any()), name


def test_the_bound_is_written_out() -> None:
    vae = built()
    expected = torch.zeros(()).double()
    for x, y in zip(X, Y, strict=True):
        label = vae.one_hot[y]
        q = vae.posterior(torch.cat([x, label]))
        kl = torch.distributions.kl_divergence(q, vae.prior(label))
        z = q.base_dist.loc
        expected = expected + vae.likelihood(torch.cat([z, label])).log_prob(x) - kl
    point = partial(_AtTheMean, posterior=vae.posterior)
    vae.posterior = point()
    found = -TraceMeanField_ELBO(max_plate_nesting=1).loss(vae.model, vae.guide, X, Y)
    torch.testing.assert_close(torch.tensor(found).double(), expected.detach())


class _AtTheMean(nn.Module):
    """A posterior whose samples are its means."""

    def __init__(self, posterior) -> None:
        super().__init__()
        self.inner = posterior

    def forward(self, context):
        q = self.inner(context)
        return _MeanSamples(q.base_dist.loc, q.base_dist.scale).to_event(1)


class _MeanSamples(dist.Normal):
    def rsample(self, sample_shape=()):
        return self.loc.expand(self._extended_shape(torch.Size(sample_shape)))


def test_the_program_keeps_the_convention_and_takes_particles() -> None:
    vae = built()
    layout = Probe(Program(vae.model, vae.guide), X, Y).layout
    assert layout.latents == ("z",)
    assert layout.vectorizes
    estimate = evaluation.importance_sampling(vae.model, vae.guide, X, Y, num_samples=3)
    assert estimate.mean < 0


def test_a_recorded_step_gives_the_bits_of_the_eager_one() -> None:
    def build() -> Pair:
        vae = built().float()
        return Pair(vae.model, vae.guide, (X.float(), Y))

    assert both(build, partial(Trace_ELBO, max_plate_nesting=1), sizes=[6] * 2).replayed[1]


def test_labels_are_learned_from() -> None:
    # Two classes of constant data: given the label there is nothing left to say.
    y = torch.arange(40) % 2
    x = y[:, None].float().expand(40, 4).contiguous()
    parts = {"data": x, "network": small}
    vae = ConditionalVAE.assemble((4,), (2,), num_classes=2, **parts)
    adam = partial(torch.optim.Adam, lr=0.03)
    fit(vae, (x, y), epochs=60, batch_size=32, optim=adam, engine="eager")
    assert evaluation.elbo(vae.model, vae.guide, x, y).elbo_nats > -0.5
    assert evaluation.elbo(vae.model, vae.guide, x, 1 - y).elbo_nats < -4


def test_images_and_likelihoods_of_several_numbers() -> None:
    network = partial(Convolutional, channels=(2,), hidden=4)
    vae = built((1, 5, 4), network=network, likelihood=Normal, data=torch.rand(6, 1, 5, 4))
    x = torch.rand(6, 1, 5, 4).double()
    assert Probe(Program(vae.model, vae.guide), x, Y).layout.vectorizes


def test_pseudo_inputs_are_data_with_their_labels() -> None:
    prior = partial(VampPrior, num_pseudo_inputs=5)
    vae = built(prior=prior, data=X.float(), labels=Y)
    inputs = vae.prior.family.pseudo_inputs()
    assert inputs.shape == (5, 7)
    rows = beside(X, vae.one_hot[Y], event_dim=1)
    assert torch.cdist(inputs, rows, p=float("inf")).amin(1).max() < 0.1
    assert Probe(Program(vae.model, vae.guide), X, Y).layout.latents == ("z",)
    with pytest.raises(ValueError, match="data=None"):
        built(prior=prior, data=X.float())


def test_no_class_is_refused() -> None:
    with pytest.raises(ValueError, match="num_classes=0"):
        built(num_classes=0)
    assert isinstance(built().likelihood.family, Bernoulli)


LABELS = {
    "gaps": torch.tensor([0, 1000, 2000])[torch.arange(40) % 3],
    "text": [("cat", "cow", "dog")[row % 3] for row in range(40)],
    "whole floats": (1000.0 * (torch.arange(40) % 3)).tolist(),
    "from 0": torch.arange(40) % 3,
}


@pytest.mark.parametrize("kind", LABELS)
def test_classes_are_those_that_occur_whatever_the_labels(kind: str) -> None:
    x = binary(40, 4).float()
    vae = built(num_classes=3).float()
    done = fit(vae, [x, LABELS[kind]], epochs=1, batch_size=8, engine="eager", device="cpu")
    assert done.epochs == 1
    data = from_arrays(x, LABELS[kind])
    assert len(data.classes) == 3
    assert evaluation.elbo(vae.model, vae.guide, data.test.x.float(), data.test.labels)


def test_labels_that_would_be_taken_for_other_classes_are_told() -> None:
    x = binary(40, 4).float()
    with pytest.warns(UserWarning, match="so label 1 is 0; give evaluation these numbers"):
        fit(built(num_classes=2).float(), (x, 1 + torch.arange(40) % 2), epochs=1, engine="eager")
