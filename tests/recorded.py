"""Small programs, and runs of steps that note everything, to hold engines against each other."""

from __future__ import annotations

import itertools
import random
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import numpy as np
import pyro
import pyro.distributions as dist
import pyro.distributions.transforms as transforms
import torch
from bits import same
from laws import Pair, functions_with_modules
from pyro import poutine
from pyro.nn import PyroModule, PyroParam
from torch import Tensor, nn

from pyro_vae.engine.svi import SVI

DIMS, LATENTS = 4, 2
SIZES = (6, 6, 4, 6)  # eager, recorded, a smaller batch recorded, replayed
adam = partial(torch.optim.Adam, lr=0.05)


class Small(PyroModule):
    """z ~ N(0, I), x ~ Bernoulli(decoder(z)), q = N(encoder(x)); leaves change a part."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(DIMS, 2 * LATENTS)
        self.decoder = nn.Linear(LATENTS, DIMS)

    def prior(self, x: Tensor) -> Any:
        return dist.Normal(x.new_zeros(LATENTS), 1.0).to_event(1)

    def posterior(self, x: Tensor) -> Any:
        loc, raw_scale = self.encoder(x).chunk(2, -1)
        return dist.Normal(loc, raw_scale.exp()).to_event(1)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def model(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            pyro.sample("z", self.posterior(x))


class BatchNormAndDropout(Small):
    def __init__(self) -> None:
        super().__init__()
        convolution = nn.Conv2d(1, 3, 2)
        norm, dropout = nn.BatchNorm2d(3), nn.Dropout(0.4)
        flat = nn.Sequential(nn.Flatten(), nn.Linear(3, 2 * LATENTS))
        self.encoder = nn.Sequential(
            nn.Unflatten(-1, (1, 2, 2)), convolution, norm, nn.ReLU(), dropout, flat
        )
        self.decoder = nn.Sequential(nn.Linear(LATENTS, 5), nn.Dropout(), nn.Linear(5, DIMS))


class Recurrent(Small):
    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(1, 3, batch_first=True)
        self.encoder = nn.Linear(3, 2 * LATENTS)

    def posterior(self, x: Tensor) -> Any:
        return super().posterior(self.gru(x.unsqueeze(-1))[0][:, -1])


class LongShortTerm(Recurrent):
    """On a processor, its recorded gradient lacks what the fused kernel keeps for it."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.LSTM(1, 3, batch_first=True)


class Autoregressive(Small):
    def __init__(self) -> None:
        super().__init__()
        self.flow = transforms.affine_autoregressive(LATENTS, hidden_dims=[4])

    def posterior(self, x: Tensor) -> Any:
        return dist.TransformedDistribution(super().posterior(x), [self.flow])


class SplinePrior(Small):
    def __init__(self) -> None:
        super().__init__()
        self.flow = transforms.spline_coupling(LATENTS, hidden_dims=[4], count_bins=4)

    def prior(self, x: Tensor) -> Any:
        return dist.TransformedDistribution(super().prior(x), [self.flow])


class MixturePrior(Small):
    def __init__(self) -> None:
        super().__init__()
        self.logits_of_parts = nn.Parameter(torch.tensor([0.1, -0.2, 0.3]))
        self.locs = nn.Parameter(torch.linspace(-1, 1, 3 * LATENTS).reshape(3, LATENTS))

    def prior(self, x: Tensor) -> Any:
        parts = dist.Normal(self.locs, 1.0).to_event(1)
        return dist.MixtureSameFamily(dist.Categorical(logits=self.logits_of_parts), parts)


class Discrete(Small):
    def prior(self, x: Tensor) -> Any:
        return dist.Bernoulli(logits=x.new_zeros(LATENTS)).to_event(1)

    def posterior(self, x: Tensor) -> Any:
        return dist.Bernoulli(logits=self.encoder(x)[..., :LATENTS]).to_event(1)


class Constrained(Small):
    """PyroParams, one of them frozen, a tied weight, and a parameter that is never used."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = PyroParam(torch.ones(LATENTS), constraint=dist.constraints.positive)
        self.tied, self.shift = nn.Parameter(torch.zeros(DIMS)), nn.Parameter(torch.zeros(DIMS))
        self.unused = nn.Parameter(torch.zeros(3))
        self.frozen = nn.Parameter(torch.full((DIMS,), 0.5), requires_grad=False)

    def prior(self, x: Tensor) -> Any:
        return dist.Normal(x.new_zeros(LATENTS), self.scale).to_event(1)

    def logits(self, z: Tensor) -> Tensor:
        return z @ self.decoder.weight.T + (self.tied + self.shift) * self.frozen


class Scheduled(Small):
    """A tensor scales the KL; noise is drawn and thrown away; a plain tensor changes by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.tensor(0.25)

    def model(self, x: Tensor) -> None:
        with torch.no_grad():
            self.weight.mul_(1.1)
        with pyro.plate("data", len(x)):
            torch.randn(3)
            with poutine.scale(scale=self.weight):
                z = pyro.sample("z", self.prior(x))
            pyro.sample("x", dist.Bernoulli(logits=self.logits(z)).to_event(1), obs=x)


class OwnTorchGenerator(Small):
    def __init__(self) -> None:
        super().__init__()
        self.source = torch.Generator().manual_seed(1)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * torch.rand((), generator=self.source)


RECORDED = {
    "batch norm and dropout": BatchNormAndDropout,
    "GRU": Recurrent,
    "IAF posterior": Autoregressive,
    "spline prior": SplinePrior,
    "mixture prior": MixturePrior,
    "discrete, score function": Discrete,
    "constrained, tied, unused": Constrained,
    "scheduled": Scheduled,
    "own torch generator": OwnTorchGenerator,
}


def small(leaf: type[Small], dtype: torch.dtype = torch.float32) -> Pair:
    module = leaf().to(dtype)
    x = torch.randint(0, 2, (6, DIMS), generator=torch.Generator().manual_seed(7)).to(dtype)
    return Pair(module.model, module.guide, (x,))


# ---------------------------------------------------------------------------- not to be recorded


class Branches(Small):
    def logits(self, z: Tensor) -> Tensor:
        if z.sum() > 0:
            z = 2 * z
        return self.decoder(z)


class Items(Small):
    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * z.mean().item()


class Flag(Small):
    """One number in a tensor decides a branch: recording would know it."""

    def __init__(self) -> None:
        super().__init__()
        self.flag = torch.tensor(1.0)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) if self.flag > 0 else -self.decoder(z)


class Lists(Flag):
    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * self.flag.tolist()


class OfPython(Small):
    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * random.random()


class OfNumpy(Small):
    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * float(np.random.rand())


class CumulativeNorm(Small):
    """Its batch norm reads the number of batches as a Python number."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Sequential(self.encoder, nn.BatchNorm1d(2 * LATENTS, momentum=None))


class OwnGenerator(Small):
    def __init__(self, source: Any = np.random.default_rng) -> None:
        super().__init__()
        self.source = source(0)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) * float(self.source.random())


class Seeds(Small):
    def logits(self, z: Tensor) -> Tensor:
        torch.manual_seed(5)
        return self.decoder(z) + torch.randn(DIMS)


class Counts(Small):
    num_calls = 0

    def logits(self, z: Tensor) -> Tensor:
        self.num_calls += 1
        return self.decoder(z) / self.num_calls


class Appends(Small):
    def __init__(self) -> None:
        super().__init__()
        self._calls = []

    def logits(self, z: Tensor) -> Tensor:
        self._calls.append(1)
        return self.decoder(z) / len(self._calls)


class Iterates(Small):
    def __init__(self) -> None:
        super().__init__()
        self.numbers = itertools.count(1)

    def logits(self, z: Tensor) -> Tensor:
        return self.decoder(z) / next(self.numbers)


class Late(Counts):
    """Makes a parameter at its second run."""

    def guide(self, x: Tensor) -> None:
        super().guide(x)
        if self.num_calls > 0:
            self.late = nn.Parameter(torch.zeros(3))


def late_function() -> Pair:
    pair, calls = functions_with_modules(), []

    def guide(x: Tensor) -> None:
        calls.append(1)
        if len(calls) > 1:
            pyro.param("late", torch.zeros(3))
        pair.guide(x)

    return Pair(pair.model, guide, pair.args)


class Raises(Small):
    """Fails where it meets tensors without data, after it has changed itself."""

    def __init__(self) -> None:
        super().__init__()
        self.num_calls = 0

    def logits(self, z: Tensor) -> Tensor:
        self.num_calls += 1
        self.register_buffer("last", z.detach())
        random.random()
        np.random.rand()
        torch.nn.functional.dropout(z)
        return self.decoder(z) * z.sum().item()


class Injected(Small):
    """Its noise is data, so that no engine has random numbers of its own."""

    def guide(self, x: Tensor, noise: Tensor) -> None:
        with pyro.plate("data", len(x)):
            posterior = self.posterior(x).base_dist
            z = posterior.loc + posterior.scale * noise
            pyro.sample("z", dist.Delta(z, posterior.log_prob(z)).to_event(1))

    def model(self, x: Tensor, noise: Tensor) -> None:
        super().model(x)


def injected() -> Pair:
    pair = small(Injected)
    return Pair(pair.model, pair.guide, (*pair.args, torch.randn(6, LATENTS)))


# ---------------------------------------------------------------------------- runs


@dataclass
class Run:
    """All that a run of steps leaves behind."""

    svi: SVI
    losses: list[float] = field(default_factory=list)
    replayed: list[bool] = field(default_factory=list)
    gradients: list[Any] = field(default_factory=list)
    state: dict[str, Any] = field(default_factory=dict)


def run(build, objective, engine: str, *, sizes=SIZES, between=None, whole=False, **options) -> Run:
    """Take steps from one seed, with batches of these sizes, and note everything.

    Whole steps are taken in one call, which shows no gradients.
    """
    pyro.clear_param_store()
    torch.manual_seed(3)
    random.seed(3)
    np.random.seed(3)
    pair = build()
    svi = SVI(
        pair.model, pair.guide, options.pop("optim", adam), objective, engine=engine, **options
    )
    found = Run(svi)
    torch.manual_seed(11)
    for step, size in enumerate(sizes):
        if between is not None:
            between(step, svi)
        batch = [arg[:size] for arg in pair.args]
        if whole:
            found.losses.append(svi.step(*batch))
        else:
            found.losses.append(svi.loss_and_grads(*batch))
            found.gradients.append(copies({n: p.grad for n, p in svi.parameters.items()}))
            svi.apply_gradients()
        found.replayed.append(svi.recorded)
    found.state = {
        "parameters": copies(svi.parameters),
        "optimizer": copies(of_optimizer(svi)),
        "modules": [copies(module.state_dict()) for module in svi.program.reachable],
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "numpy": np.random.get_state()[1].tolist(),
    }
    return found


def of_optimizer(svi: SVI) -> dict[str, Any]:
    return {
        f"{place}.{name}": value
        for place, state in enumerate(svi.optimizer.state.values())
        for name, value in state.items()
        if isinstance(value, Tensor)
    }


def copies(tensors: dict[str, Any]) -> dict[str, Any]:
    return {n: None if t is None else t.detach().clone() for n, t in tensors.items()}


def assert_same(found: Run, expected: Run) -> None:
    assert found.losses == expected.losses
    assert same(found.gradients, expected.gradients)
    assert same(found.state, expected.state)


def both(build, objective, **options) -> Run:
    """Hold the recorded run against the eager one; return the recorded one."""
    found = run(build, objective(), "recorded", **options)
    expected = run(build, objective(), "eager", **options)
    assert not any(expected.replayed)
    assert_same(found, expected)
    return found
