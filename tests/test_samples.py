"""Pictures of a linear program, whose every pixel is known."""

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from laws import PROGRAMS
from pyro.distributions.transforms import TanhTransform
from torch import nn

from pyro_vae.distributions.spheres import HypersphericalUniform
from pyro_vae.evaluation import (
    decode,
    interpolate,
    manifold,
    observed,
    prior_samples,
    reconstruct,
    traverse,
)

WEIGHT = torch.tensor([[1.0, 0.0, 2.0], [0.0, -1.0, 1.0]])  # [units, dims]
BIAS = torch.tensor([1.0, 2.0, 3.0])
GAIN = torch.tensor([[0.5, 0.0, 0.0], [0.0, 3.0, 0.0]])


def model(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT + BIAS, 0.1).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        pyro.sample("z", dist.Normal(x @ GAIN.T, 0.3).to_event(1))


def mean_at(z):
    return z @ WEIGHT + BIAS


@pytest.fixture
def x():
    return torch.randn(5, 3)


def test_deterministic_reconstruction_is_the_mean_at_the_mean(x):
    found = reconstruct(model, guide, x)
    torch.testing.assert_close(found, mean_at(x @ GAIN.T))
    assert torch.equal(found, reconstruct(model, guide, x, seed=1))


def test_stochastic_reconstruction_has_the_spread_of_both_draws(x):
    many = x[:1].expand(4000, 3)
    found = reconstruct(model, guide, many, stochastic=True)
    torch.testing.assert_close(found.mean(0), mean_at(x[0] @ GAIN.T), rtol=0, atol=0.05)
    expected = (0.09 * (WEIGHT**2).sum(0) + 0.01).sqrt()
    torch.testing.assert_close(found.std(0), expected, rtol=0.06, atol=0)
    assert torch.equal(found, reconstruct(model, guide, many, stochastic=True))
    assert not torch.equal(found, reconstruct(model, guide, many, stochastic=True, seed=1))


@pytest.mark.parametrize("stochastic", [False, True])
def test_prior_samples_have_the_moments_of_the_model(stochastic, x):
    found = prior_samples(model, x, 4000, stochastic=stochastic)
    assert found.shape == (4000, 3)
    torch.testing.assert_close(found.mean(0), BIAS, rtol=0, atol=0.15)
    expected = WEIGHT.T @ WEIGHT + (0.01 if stochastic else 0.0) * torch.eye(3)
    torch.testing.assert_close(found.T.cov(), expected, rtol=0.1, atol=0.1)
    rank = torch.linalg.matrix_rank(found.T.cov(), rtol=1e-4)
    assert rank == (3 if stochastic else 2)


def test_prior_samples_do_not_look_at_the_data(x):
    assert torch.equal(prior_samples(model, x, 7), prior_samples(model, x * 0 + 9, 7))


def test_decoding_sets_the_latents(x):
    z = torch.randn(7, 2)
    torch.testing.assert_close(decode(model, {"z": z}, x), mean_at(z))
    noisy = decode(model, {"z": z}, x, stochastic=True) - mean_at(z)
    assert 0.03 < noisy.std() < 0.3


def test_interpolation_is_a_line_between_the_reconstructions(x):
    found = interpolate(model, guide, x[:2], x[2:4], num_steps=5)
    assert found.shape == (2, 5, 3)
    start, end = (reconstruct(model, guide, part) for part in (x[:2], x[2:4]))
    torch.testing.assert_close(found[:, 0], start)
    torch.testing.assert_close(found[:, -1], end)
    torch.testing.assert_close(found[:, 1], 0.75 * start + 0.25 * end)


def test_traversal_moves_one_unit_from_end_to_end(x):
    found = traverse(model, guide, x, units=[1, 0], span=2.0, num_steps=3)
    z = x[0] @ GAIN.T
    expected = torch.stack(
        [
            torch.stack([mean_at(torch.stack([z[0], torch.tensor(t)])) for t in (-2.0, 0.0, 2.0)]),
            torch.stack([mean_at(torch.stack([torch.tensor(t), z[1]])) for t in (-2.0, 0.0, 2.0)]),
        ]
    )
    torch.testing.assert_close(found, expected)


def test_traversal_takes_the_most_active_units_first(x):
    # The second unit's gain is six times the first's.
    many = torch.cat([x, torch.randn(50, 3)])
    both = traverse(model, guide, many, num_steps=3)
    assert torch.equal(both, traverse(model, guide, many, units=[1, 0], num_steps=3))
    assert torch.equal(traverse(model, guide, many, num_units=1, num_steps=3), both[:1])


def test_traversal_steps_in_units_of_the_prior(x):
    def wide(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.tensor([5.0, 0.0]), 4.0).to_event(1))
            pyro.sample("x", dist.Normal(z @ WEIGHT + BIAS, 0.1).to_event(1), obs=x)

    found = traverse(wide, guide, x, units=[0], span=1.0, num_steps=2)
    torch.testing.assert_close(found[0, :, 0], torch.tensor([1.0, 9.0]) + BIAS[0])


BOUNDED = {
    "bits": (dist.Bernoulli(torch.tensor([0.3, 0.5])).to_event(1), 0.0, 1.0),
    "shares": (dist.Dirichlet(torch.tensor([3.0, 1.0])), 0.0, 1.0),
    "directions": (HypersphericalUniform(torch.zeros(2)), -1.0, 1.0),
    "positive numbers": (dist.Gamma(torch.ones(2), 1.0).to_event(1), 0.0, math.inf),
    "numbers of an interval": (dist.Uniform(-torch.ones(2), 2.0).to_event(1), -1.0, 2.0),
}


@pytest.mark.parametrize("name", BOUNDED)
def test_traversal_stays_within_the_bounds_of_the_prior(name, x):
    prior, low, high = BOUNDED[name]

    def bounded(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", prior)
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            pyro.sample("z", prior)

    found = traverse(bounded, guide, x[:, :2], units=[0, 1], span=9.0, num_steps=5)
    moved = torch.stack([found[0, :, 0], found[1, :, 1]])
    assert (moved[:, 0] == low).all()
    assert (moved[:, -1] == high).all() if math.isfinite(high) else (moved[:, -1] > 5).all()


def test_manifold_lies_on_the_quantiles_of_the_prior(x):
    found = manifold(model, x, num_steps=4)
    assert found.shape == (4, 4, 3)
    low, high = dist.Normal(0.0, 1.0).icdf(torch.tensor([0.125, 0.875]))
    corners = {(3, 0): (low, low), (3, 3): (high, low), (0, 0): (low, high), (0, 3): (high, high)}
    for place, z in corners.items():
        torch.testing.assert_close(found[place], mean_at(torch.stack(z)))


def flow_prior(x):
    with pyro.plate("data", len(x)):
        base = dist.Normal(torch.zeros(2), 1.0).to_event(1)
        z = pyro.sample("z", dist.TransformedDistribution(base, [TanhTransform()]))
        pyro.sample("x", dist.Normal(z @ WEIGHT, 0.1).to_event(1), obs=x)


def gamma_prior(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Gamma(torch.ones(2), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT, 0.1).to_event(1), obs=x)


def one_unit(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Normal(torch.zeros(1), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z @ WEIGHT[:1], 0.1).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (flow_prior, "two units that are independent"),
        (gamma_prior, "'z' is Gamma, which has no inverse distribution"),
        (one_unit, "found the sites and units 'z' of 1"),
    ],
)
def test_manifold_says_what_it_needs(wrong, message, x):
    with pytest.raises(ValueError, match=message):
        manifold(wrong, x)


def test_manifold_refuses_two_sites():
    pair = PROGRAMS["two latents"]()
    with pytest.raises(ValueError, match="'z2' of 1, 'z1' of 2"):
        manifold(pair.model, *pair.args)


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_program_can_be_looked_at(name):
    pair = PROGRAMS[name]()
    x, *labels = pair.args
    seen = reconstruct(pair.model, pair.guide, x, *labels)
    assert seen.shape == x.shape
    assert ((seen > 0) & (seen < 1)).all()  # means of Bernoulli pixels
    drawn = reconstruct(pair.model, pair.guide, x, *labels, stochastic=True)
    assert set(drawn.unique().tolist()) <= {0.0, 1.0}
    assert prior_samples(pair.model, x, 9, *labels).shape == (9, *x.shape[1:])
    swapped = [label.flip(0)[:3] for label in labels]
    assert interpolate(pair.model, pair.guide, x[:3], x[3:], *swapped).shape == (3, 8, *x.shape[1:])
    units = traverse(pair.model, pair.guide, x, *labels, units=[0], num_steps=4)
    assert units.shape == (1, 4, *x.shape[1:])
    assert units[0].std(0).max() > 0


def test_a_hierarchy_is_decoded_from_any_of_its_layers():
    pair = PROGRAMS["two latents"]()
    module = pair.model.__self__
    x = pair.args[0]
    z1, z2 = torch.randn(3, 2).double(), torch.randn(3, 1).double()
    from_both = decode(pair.model, {"z1": z1, "z2": z2}, x)
    torch.testing.assert_close(from_both, module.out(z1).sigmoid().detach())
    torch.testing.assert_close(from_both, decode(pair.model, {"z1": z1}, x))
    from_top = decode(pair.model, {"z2": z2}, x)
    expected = module.out(module.down(z2.expand(3, 2))).sigmoid().detach()
    torch.testing.assert_close(from_top, expected)
    seen = reconstruct(pair.model, pair.guide, x)
    torch.testing.assert_close(seen, module.out(module.up(x)).sigmoid().detach())


def test_labels_are_repeated_in_turn():
    pair = PROGRAMS["labels"]()
    x, y = pair.args
    found = prior_samples(pair.model, x, 1200, y)
    by_label = torch.stack([found[label::3].mean(0) for label in range(3)])
    alone = torch.stack(
        [prior_samples(pair.model, x, 400, torch.full_like(y, k)).mean(0) for k in range(3)]
    )
    torch.testing.assert_close(by_label, alone, rtol=0, atol=0.1)
    assert (alone[0] - alone[1]).abs().max() > 0.1


def test_a_guide_without_a_mean_is_averaged(x):
    def squashed(x):
        with pyro.plate("data", len(x)):
            base = dist.Normal(x @ GAIN.T, 1e-3).to_event(1)
            pyro.sample("z", dist.TransformedDistribution(base, [TanhTransform()]))

    found = reconstruct(model, squashed, x)
    torch.testing.assert_close(found, mean_at((x @ GAIN.T).tanh()), rtol=0, atol=0.01)


def test_a_discrete_latent_is_its_mode_and_a_likelihood_without_a_mean_is_drawn():
    table = torch.tensor([0.0, 10.0, 20.0])

    def model(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Categorical(torch.ones(3) / 3))
            pyro.sample("x", dist.Cauchy(table[z], 1e-3), obs=x)

    def guide(x):
        with pyro.plate("data", len(x)):
            closeness = -((x[:, None] - table) ** 2)
            pyro.sample("z", dist.Categorical(logits=closeness))

    x = torch.tensor([1.0, 9.0, 22.0])
    found = reconstruct(model, guide, x)
    torch.testing.assert_close(found, table, rtol=0, atol=2.0)
    path = interpolate(model, guide, x[:1], x[2:], num_steps=4)
    torch.testing.assert_close(path[0].round(), torch.tensor([0.0, 0, 20, 20]), rtol=0, atol=1.0)


@pytest.mark.parametrize("name", ["reconstruct", "prior", "decode", "lines", "units", "plane"])
def test_looking_changes_nothing(name, x):
    norm = nn.BatchNorm1d(3)

    def normed(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            pyro.sample("x", dist.Normal(norm(z @ WEIGHT), 1.0).to_event(1), obs=x)

    def snapshot():
        state = {name: value.tolist() for name, value in norm.state_dict().items()}
        store = sorted(pyro.get_param_store().keys())
        return state, norm.training, torch.get_rng_state().tolist(), pyro.settings.get(), store

    looks = {
        "reconstruct": lambda: reconstruct(normed, guide, x, stochastic=True),
        "prior": lambda: prior_samples(normed, x, 3),
        "decode": lambda: decode(normed, {"z": torch.ones(2, 2)}, x),
        "lines": lambda: interpolate(normed, guide, x, x),
        "units": lambda: traverse(normed, guide, x),
        "plane": lambda: manifold(normed, x, num_steps=2),
    }
    before, data = snapshot(), x.clone()
    picture = looks[name]()
    assert snapshot() == before
    assert torch.equal(x, data)
    assert not picture.requires_grad


def test_mistakes_name_what_was_given(x):
    with pytest.raises(ValueError, match="no latent site 'w': its latent sites are 'z'"):
        decode(model, {"w": torch.ones(2, 2)}, x)
    with pytest.raises(ValueError, match="no values are given"):
        decode(model, {}, x)
    with pytest.raises(
        ValueError, match=r"site 'z' have shape \(2, 3\) where the model has \(2, 2"
    ):
        decode(model, {"z": torch.ones(2, 3)}, x)
    with pytest.raises(ValueError, match="num_samples=0"):
        prior_samples(model, x, 0)
    with pytest.raises(ValueError, match=r"x_start has shape \(2, 3\), x_end \(3, 3\)"):
        interpolate(model, guide, x[:2], x[:3])
    with pytest.raises(ValueError, match=r"units=\[2\]: expected indices from 0 to 1"):
        traverse(model, guide, x, units=[2])
    with pytest.raises(ValueError, match="no latent site 'w'"):
        traverse(model, guide, x, site="w")
    assert math.isfinite(traverse(model, guide, x[:1]).sum())


# Temperature --------------------------------------------------------------------------------------


@pytest.mark.parametrize("temperature", [0.0, 0.5, 1.0])
def test_temperature_scales_the_distance_from_the_priors_mean(temperature, x):
    found = prior_samples(model, x, 4000, temperature=temperature)
    torch.testing.assert_close(found.mean(0), BIAS, rtol=0, atol=0.15)
    expected = temperature**2 * WEIGHT.T @ WEIGHT
    torch.testing.assert_close(found.T.cov(), expected, rtol=0.1, atol=0.05)


def test_temperature_acts_from_layer_to_layer_and_in_the_base_of_a_flow(x):
    def chain(x):
        with pyro.plate("data", len(x)):
            z2 = pyro.sample("z2", dist.LogNormal(0.5 * torch.ones(3), 1.0).to_event(1))
            z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z1, 1.0).to_event(1), obs=x)

    at_zero = prior_samples(chain, x, 3, temperature=0.0)
    torch.testing.assert_close(at_zero, torch.full((3, 3), 0.5).exp())
    spread = prior_samples(chain, x, 4000, temperature=0.2).std(0)
    moment = dist.LogNormal(0.5, 0.2).variance + 0.04
    torch.testing.assert_close(spread**2, moment.expand(3), rtol=0.15, atol=0.0)


def directions(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", HypersphericalUniform(torch.zeros(3)))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def bits(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Bernoulli(0.5 * torch.ones(3)).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


def heavy(x):
    with pyro.plate("data", len(x)):
        z = pyro.sample("z", dist.Cauchy(torch.zeros(3), 1.0).to_event(1))
        pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)


@pytest.mark.parametrize(
    ("function", "temperature", "message"),
    [
        (bits, 0.5, "temperature=0.5: the distribution of site 'z' is discrete, of directions"),
        (heavy, 0.5, "temperature=0.5: the distribution of site 'z' .* or has no mean"),
        (directions, 0.5, "temperature=0.5: the distribution of site 'z' is .* of directions"),
        (model, 1.5, "temperature=1.5: it lies between 0, all means, and 1"),
        (model, -0.1, "temperature=-0.1: it lies between"),
    ],
)
def test_temperatures_that_mean_nothing_are_refused(function, temperature, message, x):
    with pytest.raises(ValueError, match=message):
        prior_samples(function, x, 3, temperature=temperature)


def test_every_observed_site_is_generated_by_name():
    def both(x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc = z @ WEIGHT + BIAS
            pyro.sample("first", dist.Normal(loc[..., :1], 0.1).to_event(1), obs=x[:, :1])
            pyro.sample("sign", dist.Bernoulli(logits=loc[..., 1]), obs=(x[:, 1] > 0).float())

    x = torch.randn(5, 3)
    z = torch.randn(7, 2)
    found = decode(both, {"z": z}, x)
    torch.testing.assert_close(found["first"], mean_at(z)[:, :1])
    torch.testing.assert_close(found["sign"], mean_at(z)[:, 1].sigmoid())
    rows = {
        (5,): (reconstruct(both, guide, x), observed(both, guide, x)),
        (6,): (prior_samples(both, x, 6), prior_samples(both, x, 6, stochastic=True)),
        (2, 4): (interpolate(both, guide, x[:2], x[2:4], num_steps=4),),
        (2, 3): (traverse(both, guide, x, num_steps=3),),
        (4, 4): (manifold(both, x, num_steps=4),),
    }
    for shape, parts in rows.items():
        for part in parts:
            assert {name: value.shape for name, value in part.items()} == {
                "first": (*shape, 1),
                "sign": shape,
            }
    assert torch.equal(observed(both, guide, x)["sign"], (x[:, 1] > 0).float())
