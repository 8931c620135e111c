"""How many rows a batch has: the default, a single one that is left over, and lazy modules."""

from __future__ import annotations

import copy
from functools import partial

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_vae import VAE, evaluation, fit
from pyro_vae.components import MLP, Normal
from pyro_vae.datasets import Dataset, from_arrays
from pyro_vae.datasets.arrays import Data
from pyro_vae.engine.data import Batches
from pyro_vae.engine.observations import AsFloat
from pyro_vae.inference import DIPVAE, Program, ProgramError


class Net(PyroModule):
    """A program around an encoder of the test's own."""

    def __init__(self, encoder, decoder=None, width=4):
        super().__init__()
        self.encoder = encoder
        self.decoder = decoder or nn.Linear(2, width)

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(len(x), 2), 1.0).to_event(1))
            loc = self.decoder(z).view(x.shape)
            pyro.sample("x", dist.Normal(loc, 1.0).to_event(x.dim() - 1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, raw = self.encoder(x).chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(raw) + 0.1).to_event(1))


class Spread(nn.Module):
    """Standardise by the batch's own moments, which one row does not have."""

    def forward(self, x):
        return (x - x.mean(0)) / (x.std(0) + 1e-3) if self.training else x


def normalised(layer):
    return nn.Sequential(nn.Linear(4, 8), layer, nn.ReLU(), nn.Linear(8, 4))


def toy(num):
    part = Data(torch.randn(num, 4))
    return Dataset("toy", part, part, part, levels=None)


BATCHED = {
    "batch norm": lambda: normalised(nn.BatchNorm1d(8)),
    "batch norm without moments": lambda: normalised(nn.BatchNorm1d(8, track_running_stats=False)),
    "its own statistics": lambda: normalised(Spread()),
    "inside the model": lambda: nn.Linear(4, 4),
}


@pytest.mark.filterwarnings("ignore:the density at site 'z'")  # without moments it does depend
@pytest.mark.parametrize(
    ("name", "engine"),
    [
        *((name, "eager") for name in BATCHED),
        pytest.param("batch norm", "recorded", marks=pytest.mark.slow),
    ],
)
def test_a_single_row_left_over_joins_the_batch_before_it_where_it_has_to(name, engine):
    torch.manual_seed(0)
    decoder = nn.Sequential(nn.Linear(2, 8), nn.BatchNorm1d(8), nn.Linear(8, 4))
    net = Net(BATCHED[name](), decoder if name == "inside the model" else None)
    buffers = copy.deepcopy(dict(net.named_buffers()))
    if engine == "recorded":
        assert fit(copy.deepcopy(net), toy(9), epochs=0, batch_size=4).steps == 0
        assert all(torch.equal(b, buffers[n]) for n, b in net.named_buffers())
    assert fit(net, toy(9), epochs=2, batch_size=4, engine=engine).steps == 4
    if engine == "eager":
        assert fit(net, toy(10), epochs=1, batch_size=4).steps == 3


def test_a_single_row_is_a_batch_of_its_own_elsewhere():
    assert fit(Net(nn.Linear(4, 4)), toy(9), epochs=2, batch_size=4).steps == 6


def test_batches_of_one_row_are_refused_with_the_cure_where_they_cannot_train():
    with pytest.raises(ValueError, match=r"batch_size=1: .* give 2 or more"):
        fit(Net(normalised(nn.BatchNorm1d(8))), toy(9), epochs=1, batch_size=1)


def test_an_objective_of_the_batchs_moments_counts_too():
    vae = VAE.assemble((4,), (2,), likelihood=Normal, network=partial(MLP, hidden=(4,)))
    assert fit(vae, toy(9), objective=DIPVAE(), epochs=1, batch_size=4).steps in (2, 3)


@pytest.mark.parametrize("memory_budget", [2**31, 0])
def test_joined_batches_hold_every_row_once_and_go_on_anywhere(memory_budget):
    data = Data(torch.arange(9.0)[:, None])
    made = Batches(data, AsFloat(), batch_size=4, seed=0, device="cpu", memory_budget=memory_budget)
    apart = [x for (x,) in made.epoch(0)]
    made.joins_single = True
    whole = [x for (x,) in made.epoch(0)]
    assert made.num_batches == len(whole) == 2
    assert torch.equal(torch.cat(whole), torch.cat(apart))
    assert [len(x) for x in whole] == [4, 5]
    for start in range(3):
        rest = [x for (x,) in made.epoch(0, start=start)]
        assert len(rest) == 2 - start
        assert all(torch.equal(a, b) for a, b in zip(rest, whole[start:], strict=True))


def test_a_joined_run_that_was_stopped_goes_on_to_the_same_bits(tmp_path):
    def run(epochs, **options):
        torch.manual_seed(0)
        net = Net(normalised(nn.BatchNorm1d(8)))
        data = from_arrays(torch.linspace(-1, 1, 44).view(11, 4))
        fit(net, data, epochs=epochs, batch_size=8, patience=9, **options)
        return net

    run(2, out=tmp_path / "whole")
    whole = run(2, out=tmp_path / "whole", resume=True)
    again = run(2)
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name]), name


@pytest.mark.parametrize(("num", "steps"), [(12, 1), (100, 1), (150, 1), (200, 2)])
def test_the_default_batch_is_128_rows_or_all(num, steps):
    vae = VAE.assemble((4,), (2,), likelihood=Normal, network=partial(MLP, hidden=(4,)))
    assert fit(vae, torch.randn(num, 4), epochs=1).steps == steps
    with pytest.raises(ValueError, match=rf"batch_size={num} .* training rows; choose one from 1"):
        fit(vae, torch.randn(num, 4), epochs=1, batch_size=num)


class Nested(nn.Module):
    def __init__(self):
        super().__init__()
        self.parts = nn.ModuleDict({"a": nn.Sequential(nn.Flatten(), nn.LazyLinear(8))})
        self.head = nn.LazyLinear(4)

    def forward(self, x):
        return self.head(self.parts["a"](x).relu())


LAZY = {
    "after convolutions": lambda: Net(
        nn.Sequential(nn.Conv2d(1, 2, 3, 2), nn.Flatten(), nn.LazyLinear(4)), width=36
    ),
    "a convolution": lambda: Net(
        nn.Sequential(nn.LazyConv2d(2, 3), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(4)),
        width=36,
    ),
    "nested": lambda: Net(Nested(), width=36),
    "in the model alone": lambda: Net(
        nn.Sequential(nn.Flatten(), nn.Linear(36, 4)), nn.LazyLinear(36)
    ),
}


@pytest.mark.parametrize("build", LAZY.values(), ids=LAZY)
@pytest.mark.parametrize("options", [{}, {"num_replicas": 2}], ids=["one", "replicas"])
def test_lazy_modules_take_their_shapes_from_the_data(build, options):
    net = build()
    x = torch.randn(30, 1, 6, 6)
    done = fit(net, x, epochs=1, batch_size=8, engine="eager", **options)
    assert done.steps == 3
    assert not Program(net.model, net.guide).is_lazy
    assert evaluation.elbo(net.model, net.guide, x).num_data == 30


def test_lazy_weights_follow_the_callers_seed():
    def weights(seed):
        torch.manual_seed(seed)
        net = LAZY["nested"]()
        fit(net, torch.zeros(30, 1, 6, 6), epochs=0)
        return net.encoder.head.weight

    assert torch.equal(weights(1), weights(1))
    assert not torch.equal(weights(1), weights(2))


def test_a_lazy_module_without_a_part_is_named():
    net = LAZY["nested"]()
    net.spare = nn.LazyLinear(3)
    with pytest.raises(ProgramError, match=r"'spare.weight' has no part .* remove it"):
        fit(net, torch.randn(30, 1, 6, 6), epochs=1)
