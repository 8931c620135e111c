"""Posterior means and the use of each unit, against closed forms and by counting."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import PROGRAMS
from pyro.distributions.transforms import AffineTransform, TanhTransform
from torch import nn

from pyro_vae.evaluation import elbo, embed, linear_probe, posterior_means, unit_activity

GAIN = torch.tensor([[1.0, 0.5], [0.0, 0.0], [0.05, 0.0], [0.0, -2.0]])  # [units, data]
SCALE = torch.tensor([0.5, 1.0, 1.0, 0.2])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(4), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ GAIN, 1.0).to_event(1), obs=x)


def linear(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ GAIN.T, SCALE).to_event(1))


def without_mean(x):
    """The same distribution, which no longer knows its mean."""
    with pyro.plate("data", len(x)):
        base = dist.Normal(torch.zeros(4), 1.0).to_event(1)
        transform = AffineTransform(x @ GAIN.T, SCALE.expand(len(x), 4), event_dim=1)
        pyro.sample("z", dist.TransformedDistribution(base.expand([len(x)]), [transform]))


@pytest.fixture
def x():
    return torch.randn(500, 2, generator=torch.Generator().manual_seed(3))


def closed_form_kl(x):
    return (0.5 * ((x @ GAIN.T) ** 2 + SCALE**2 - 1) - SCALE.log()).mean(0)


def test_means_are_the_encoders_where_it_has_one(x):
    means = posterior_means(model, linear, x, batch_size=64)
    assert list(means) == ["z"]
    torch.testing.assert_close(means["z"], x @ GAIN.T)


def test_means_without_a_mean_are_averages_over_samples(x):
    means = posterior_means(model, without_mean, x, num_samples=400, batch_size=64)["z"]
    error = SCALE / math.sqrt(400)
    assert ((means - x @ GAIN.T).abs() < 5 * error).all()
    assert not torch.equal(means, x @ GAIN.T)


def test_activity_and_kl_of_a_linear_encoder_are_the_closed_forms(x):
    found = unit_activity(model, linear, x, batch_size=64)["z"]
    centred = (x - x.mean(0)).double()
    covariance = centred.T @ centred / len(x)
    expected = torch.einsum("ud,de,ue->u", GAIN.double(), covariance, GAIN.double())
    torch.testing.assert_close(found.activity.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(found.kl_nats, closed_form_kl(x), rtol=1e-4, atol=1e-6)
    assert found.num_active == 2
    assert unit_activity(model, linear, x, threshold=1e-3)["z"].num_active == 3


def test_unused_units_stay_inactive_where_means_are_averages(x):
    # 16 samples: the average of an unused unit has variance 1/16, six times the threshold.
    found = unit_activity(model, without_mean, x, num_samples=16)["z"]
    assert found.activity[1] < 0.01
    assert found.num_active == 2
    assert found.kl_nats is None


def test_units_without_a_closed_form_are_averaged(x):
    def laplace(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Laplace(x @ GAIN.T, SCALE).to_event(1))

    found = unit_activity(model, laplace, x, num_samples=50)["z"]
    rate = elbo(model, laplace, x, num_particles=50).rate_nats
    assert found.kl_nats.sum().item() == pytest.approx(rate, abs=0.1)


def test_kls_of_the_units_sum_to_the_kl(x):
    found = unit_activity(model, linear, x)["z"]
    rate = elbo(model, linear, x, num_particles=200).rate_nats
    assert found.kl_nats.sum().item() == pytest.approx(rate, abs=0.02)


def test_a_prior_that_is_not_independent_has_no_kl_per_unit(x):
    def correlated(x):
        with pyro.plate("data", len(x)):
            prior = dist.MultivariateNormal(torch.zeros(4), torch.eye(4) + 0.5)
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z @ GAIN, 1.0).to_event(1), obs=x)

    found = unit_activity(correlated, linear, x)["z"]
    assert found.kl_nats is None
    assert found.num_active == 2


def test_means_of_a_hierarchy_are_marginal():
    pair = PROGRAMS["two latents"]()
    module = pair.guide.__self__
    found = posterior_means(pair.model, pair.guide, *pair.args, num_samples=20_000)
    z1 = module.up(pair.args[0]).detach()
    z2 = module.top(z1).detach()
    assert list(found) == ["z1", "z2"]
    torch.testing.assert_close(found["z1"], z1)
    spread = 0.5 * module.top.weight.norm().item() / math.sqrt(20_000)
    torch.testing.assert_close(found["z2"], z2, rtol=0, atol=5 * spread)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_has_means_and_kls_that_sum_to_its_rate(name):
    pair = PROGRAMS[name]()
    means = posterior_means(pair.model, pair.guide, *pair.args, batch_size=4)
    found = unit_activity(pair.model, pair.guide, *pair.args, num_samples=300, batch_size=4)
    bound = elbo(pair.model, pair.guide, *pair.args, num_particles=300)
    assert tuple(means) == tuple(found) == pair.latents
    for site in pair.latents:
        assert len(means[site]) == len(pair.args[0])
        assert found[site].activity.shape == (means[site][0].numel(),)
        total = found[site].kl_nats.sum().item()
        assert total == pytest.approx(bound.kl_nats[site], abs=0.3, rel=0.1)


def test_discrete_latents_have_means():
    logits = torch.tensor([[0.0, 3.0, 0.0], [3.0, 0.0, 0.0]])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Normal(z.float(), 1.0), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Categorical(logits=logits[(x > 0).long()]))

    x = torch.tensor([-1.0, 1.0])
    found = posterior_means(model, guide, x, num_samples=5000)["z"]
    expected = logits.softmax(-1) @ torch.arange(3.0)
    torch.testing.assert_close(found, expected, rtol=0, atol=0.06)
    activity = unit_activity(model, guide, x, num_samples=5000)["z"]
    q = dist.Categorical(logits=logits)
    kl = torch.distributions.kl_divergence(q, dist.Categorical(torch.ones(3) / 3)).mean()
    torch.testing.assert_close(activity.kl_nats, kl.reshape(1))


def test_a_guide_that_squashes_has_no_mean_but_works(x):
    def squashed(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(x @ GAIN.T, SCALE).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [TanhTransform(cache_size=1)]))

    means = posterior_means(model, squashed, x)["z"]
    assert means.shape == (500, 4)
    assert (means.abs() < 1).all()
    assert unit_activity(model, squashed, x)["z"].kl_nats is None


@pytest.mark.parametrize("function", [posterior_means, unit_activity])
def test_looking_changes_nothing(function):
    norm = nn.BatchNorm1d(2)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(norm(x) @ GAIN.T, SCALE).to_event(1))

    def snapshot():
        state = {name: value.tolist() for name, value in norm.state_dict().items()}
        return state, norm.training, torch.get_rng_state().tolist(), pyro.settings.get()

    before = snapshot()
    first = function(model, guide, torch.randn(9, 2, generator=torch.Generator().manual_seed(1)))
    assert snapshot() == before
    assert first.keys() == {"z"}


def test_mistakes_name_the_count(x):
    with pytest.raises(ValueError, match="num_samples=0: at least 1"):
        posterior_means(model, linear, x, num_samples=0)
    with pytest.raises(ValueError, match="batch_size=-1: at least 1"):
        unit_activity(model, linear, x, batch_size=-1)


def test_probe_reads_what_is_there_and_nothing_else():
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(300) % 3
    centres = torch.tensor([[0.0, 0.0], [1e4, 0.0], [0.0, 1e-3]])
    noise = torch.randn(300, 2, generator=generator) * torch.tensor([1e3, 1e-4])
    told = {"a": (centres[labels] + noise)[:, :1], "b": (centres[labels] + noise)[:, 1:]}
    assert linear_probe(told, labels, told, labels) > 0.99
    random = torch.randn(300, 2, generator=generator)
    assert linear_probe(random[:200], labels[:200], random[200:], labels[200:]) < 0.5


def test_probe_refuses_what_it_cannot_learn():
    z = torch.randn(6, 2)
    with pytest.raises(ValueError, match="5 test labels for 6 latents"):
        linear_probe(z, torch.arange(6), z, torch.arange(5))
    with pytest.raises(ValueError, match="two classes"):
        linear_probe(z, torch.zeros(6), z, torch.zeros(6))


def test_embedding_keeps_planes_pads_lines_and_separates_clusters():
    plane = torch.randn(7, 2)
    assert torch.equal(embed(plane), plane)
    line = embed({"z": plane[:, 0]})
    assert torch.equal(line[:, 0], plane[:, 0])
    assert (line[:, 1] == 0).all()
    labels = torch.arange(60) % 2
    clusters = torch.randn(60, 5) + 20 * labels[:, None]
    points = embed(clusters)
    assert points.shape == (60, 2)
    assert torch.equal(points, embed(clusters))
    assert linear_probe(points, labels, points, labels) == 1.0
    assert embed(torch.zeros(8, 5)).shape == (8, 2)
    assert embed(torch.zeros(1, 5)).shape == (1, 2)
    with pytest.raises(ValueError, match="2,001 points"):
        embed(torch.randn(2001, 3))
