"""Layers that stay and layers that are redrawn, where all can be read off the data."""

import pyro
import pyro.distributions as dist
import pytest
import torch

from pyro_vae.evaluation import reconstruct_from_top, resample_below


def model(x):
    """Each layer is the one above and a draw of its own; the data are all three."""
    with pyro.plate("data", len(x)):
        z3 = pyro.sample("z3", dist.Normal(x.new_zeros(1), 1.0).to_event(1))
        z2 = pyro.sample("z2", dist.Normal(z3, 1.0).to_event(1))
        z1 = pyro.sample("z1", dist.Normal(z2, 1.0).to_event(1))
        loc = torch.cat([z1, z2, z3], -1)
        pyro.sample("x", dist.Normal(loc, 0.1).to_event(1), obs=x)


def guide(x):
    with pyro.plate("data", len(x)):
        for place, name in enumerate(("z1", "z2", "z3")):
            pyro.sample(name, dist.Normal(x[:, place : place + 1], 1e-6).to_event(1))


X = torch.tensor([[1.0, 2.0, 3.0], [-4.0, -5.0, -6.0]])


def test_what_is_fixed_stays_and_what_is_below_is_redrawn():
    found = resample_below(model, X, num_samples=5)
    assert found.shape == (3, 5, 3)
    varies = found.std(1) > 0
    # Row 0 keeps z3, row 1 also z2, row 2 all; the data are z1, z2, z3.
    assert varies.tolist() == [[True, True, False], [True, False, False], [False, False, False]]
    assert torch.equal(found[0, 0, 2:], found[2, 0, 2:])
    assert torch.equal(found[1, 0, 1:], found[2, 0, 1:])


def test_lower_layers_are_drawn_given_the_fixed_ones():
    found = resample_below(model, X, num_samples=4000)
    torch.testing.assert_close(found[0, :, 1].mean(), found[0, 0, 2], rtol=0, atol=0.08)
    assert found[0, :, 0].var().item() == pytest.approx(2.0, rel=0.1)
    assert found[1, :, 0].var().item() == pytest.approx(1.0, rel=0.1)


def test_the_upper_layers_of_data_are_the_guides():
    found = reconstruct_from_top(model, guide, X)
    assert found.shape == (3, 2, 3)
    torch.testing.assert_close(found[2], X, rtol=0, atol=1e-4)
    torch.testing.assert_close(found[1, :, 1:], X[:, 1:], rtol=0, atol=1e-4)
    torch.testing.assert_close(found[0, :, 2], X[:, 2], rtol=0, atol=1e-4)
    assert bool(((found[1, :, 0] - X[:, 0]).abs() > 1e-3).all())


def test_layers_repeat_with_their_seed():
    assert torch.equal(resample_below(model, X, seed=1), resample_below(model, X, seed=1))
    assert not torch.equal(resample_below(model, X, seed=1), resample_below(model, X, seed=2))


def test_no_sample_is_refused():
    with pytest.raises(ValueError, match="num_samples=0: at least 1"):
        resample_below(model, X, num_samples=0)
