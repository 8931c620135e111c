"""A number that is not finite: no step is taken, and its parameter, site and line are named."""

from __future__ import annotations

import math

import pyro
import pyro.distributions as dist
import pytest
import torch
from pyro.nn import PyroModule
from torch import nn

from pyro_vae import fit
from pyro_vae.datasets import Dataset
from pyro_vae.datasets.arrays import Data
from pyro_vae.engine import TrainingError, checkpoint
from pyro_vae.engine.failure import not_finite


class Trap(torch.autograd.Function):
    """The identity, whose gradient is NaN."""

    @staticmethod
    def forward(ctx, x):
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


class Net(PyroModule):
    """A finite loss whose gradient is NaN on rows that hold a number above 5."""

    trap = "none"

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.e = nn.Linear(3, 4)
        self.d = nn.Linear(2, 6)
        self.bias = nn.Parameter(torch.zeros(3))

    def bad(self, x, number):
        root = (number * (x.amax(-1, keepdim=True) < 5)).abs().sqrt()  # sqrt(0) on those rows
        return torch.where(x.amax(-1, keepdim=True) < 5, root, 0.0 * number.detach())

    def model(self, x):
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(torch.zeros(2), 1.0).to_event(1))
            loc, scale = self.d(z).chunk(2, -1)
            if self.trap == "model":
                scale = self.bad(x, scale)
            if self.trap == "one parameter":
                loc = loc + Trap.apply(self.bias)
            if self.trap == "loss":
                loc = loc + torch.where(x.amax(-1, keepdim=True) < 5, 0.0, math.inf)
            loc = loc + self.bias
            pyro.sample("x", dist.Normal(loc, scale.exp() + 1.0).to_event(1), obs=x)

    def guide(self, x):
        with pyro.plate("data", len(x)):
            loc, scale = self.e(x.clamp(max=1.0)).chunk(2, -1)
            if self.trap == "guide":
                scale = self.bad(x, scale)
            if self.trap == "draw":
                loc = loc + torch.where(x.amax(-1, keepdim=True) < 5, 0.0, math.nan)
            pyro.sample("z", dist.Normal(loc, scale.exp() + 0.1).to_event(1))


def rows(num_bad):
    x = torch.rand(12, 3, generator=torch.Generator().manual_seed(0)) * 2 - 1
    bad = x.clone()
    bad[:num_bad] += 7.0
    return Dataset("toy", Data(bad), Data(x), Data(x), levels=None)


SAID = {
    "model": (
        r"the loss is finite at step {}, but the gradient of 'e.weight', 'e.bias', 'd.weight', "
        r"'d.bias' is not, at site 'x' \(log p\), by sqrt \(test_failure.py:\d+\): torch.where"
    ),
    "guide": r"'e.weight', 'e.bias' is not, at site 'z' \(drawn by the guide\), by sqrt",
    "one parameter": r"the gradient of 'bias' is not, at site 'x' \(log p\), by trap \(test_fail",
    "loss": r"the loss is (inf|nan) at step {}, at site 'x' \(log p\): lower the learning rate",
}
CASES = [
    *((trap, "eager") for trap in SAID),
    pytest.param("one parameter", "recorded", marks=pytest.mark.slow),
    pytest.param("model", "recorded", marks=pytest.mark.slow),
    pytest.param("model", "compiled", marks=pytest.mark.slow),
]  # fmt: skip


@pytest.mark.parametrize(("trap", "engine"), CASES)
def test_no_step_is_taken_and_the_culprits_are_named(trap, engine, tmp_path):
    net = Net()
    fit(net, rows(0), epochs=1, batch_size=4, out=tmp_path, engine=engine)
    before = {name: p.detach().clone() for name, p in net.named_parameters()}
    net.trap, data = trap, rows(12)
    at = r"\d+ \(epoch \d+\)"
    with pytest.raises(TrainingError, match=SAID[trap].format(at)):
        fit(net, data, epochs=2, batch_size=4, out=tmp_path / "next", engine=engine,
            checkpoint_seconds=0.0)  # fmt: skip
    assert all(torch.equal(p, before[name]) for name, p in net.named_parameters())
    assert not list(tmp_path.glob("next/checkpoints/*"))


def test_a_guide_that_draws_nan_is_refused_before_the_first_step():
    net = Net()
    net.trap = "draw"
    with pytest.raises(ValueError, match="the guide draws NaN at site 'z', at the weights that it"):
        fit(net, rows(12), epochs=2, batch_size=4)


def test_the_last_checkpoint_is_that_before_the_failing_step(tmp_path):
    net = Net()
    net.trap = "model"
    with pytest.raises(TrainingError, match=r"last good checkpoint is .*step-") as caught:
        fit(net, rows(1), epochs=9, batch_size=1, out=tmp_path, checkpoint_seconds=0.0, seed=3)
    newest = checkpoint.latest(tmp_path / "checkpoints")
    step = int(newest.name.removeprefix("step-"))
    assert f"at step {step + 1} (" in str(caught.value)
    saved = checkpoint.load(newest)["weights"]["modules"][0]
    assert all(bool(value.isfinite().all()) for value in saved.values())
    assert all(torch.equal(p, saved[name]) for name, p in net.named_parameters())


def test_a_replica_says_the_same(tmp_path):
    nets = [Net(), Net()]
    nets[1].d.weight.data.mul_(2.0)
    for net in nets:
        net.trap = "one parameter"
    with pytest.raises(TrainingError, match=r"replica 0: .* the gradient of 'bias' is not"):
        fit(nets, rows(0), epochs=3, batch_size=4)


def test_weights_that_an_update_makes_infinite_are_not_saved(tmp_path):
    def optim(parameters):
        return torch.optim.SGD(parameters, lr=3e38)

    with pytest.raises(TrainingError, match=r"left the parameter .* not finite: lower"):
        fit(Net(), rows(0), epochs=2, batch_size=4, out=tmp_path, optim=optim,
            checkpoint_seconds=0.0, engine="eager")  # fmt: skip
    assert not list(tmp_path.glob("checkpoints/step*"))


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_every_gradient_is_looked_at(bad):
    def gradient(value=1.0, dtype=torch.float32):
        return torch.tensor([3e37, -1.0, value], dtype=dtype)

    sparse = torch.eye(3).mul(torch.tensor([bad, 1, 1]).nan_to_num(bad)).to_sparse()
    found = not_finite(
        [None, gradient(), gradient(bad), gradient(bad, torch.float64), sparse], torch.zeros(())
    )
    assert found.tolist()[:4] == [0, 0, 1, 1]
    assert not_finite([], torch.zeros(())).shape == (0,)
