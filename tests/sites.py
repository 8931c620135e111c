"""Programs that observe several sites, parts of x, what is computed of x, and inner plates."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import pyro
import pyro.distributions as dist
import torch
from pyro import poutine
from pyro.nn import PyroModule
from torch import Tensor, nn


class Program(PyroModule):
    """z ~ N(0, I), x = what ``observe`` makes of as many numbers as a datum has.

    Args:
        observe: Called with a tensor of parameters, ``[..., *event_shape]``, and x.
        event_shape: Of a datum.
        read: What the guide makes of x.
    """

    def __init__(
        self,
        observe: Callable[[Tensor, Tensor], Any],
        event_shape: tuple[int, ...] = (3,),
        read: Callable[[Tensor], Tensor] = torch.Tensor.float,
    ) -> None:
        super().__init__()
        size = torch.Size(event_shape).numel()
        self.observe, self.read, self.event_shape = observe, read, event_shape
        self.encoder, self.decoder = nn.Linear(size, 4), nn.Linear(2, size)

    def model(self, x: Tensor) -> Any:
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(x.new_zeros(2), 1.0).to_event(1))
            raw = self.decoder(z).unflatten(-1, self.event_shape)
            return self.observe(raw, x)

    def guide(self, x: Tensor) -> None:
        with pyro.plate("data", len(x)):
            raw = self.encoder(self.read(x).flatten(1).clamp(-3, 3))
            loc, scale = raw.chunk(2, -1)
            pyro.sample("z", dist.Normal(loc, nn.functional.softplus(scale)).to_event(1))


def bits(raw: Tensor, x: Tensor) -> None:
    pyro.sample("bits", dist.Bernoulli(logits=raw[..., :2]).to_event(1), obs=x[:, :2])


def real(raw: Tensor, x: Tensor) -> None:
    pyro.sample("real", dist.Normal(raw[..., 2:], 1.0).to_event(1), obs=x[:, 2:])


def bits_first(raw: Tensor, x: Tensor) -> None:
    bits(raw, x)
    real(raw, x)


def real_first(raw: Tensor, x: Tensor) -> None:
    real(raw, x)
    bits(raw, x)


def binarised(raw: Tensor, x: Tensor) -> None:
    pyro.sample("x", dist.Bernoulli(logits=raw).to_event(1), obs=(x > 127).float())


def masked(raw: Tensor, x: Tensor) -> None:
    fn = dist.Normal(raw, 1.0).mask(~x.isnan()).to_event(1)
    pyro.sample("x", fn, obs=x.nan_to_num())


def masked_rows(raw: Tensor, x: Tensor) -> None:
    with poutine.mask(mask=x[:, 0] >= 0):
        pyro.sample("x", dist.Poisson(raw.exp()).to_event(1), obs=x.clamp(min=0))


def logarithm(raw: Tensor, x: Tensor) -> None:
    pyro.sample("log x", dist.Normal(raw, 1.0).to_event(1), obs=x.log())


def scalars(raw: Tensor, x: Tensor) -> None:
    """One site for each number, none with an event dimension."""
    for number in range(x.shape[1]):
        pyro.sample(f"x_{number}", dist.Poisson(raw[..., number].exp()), obs=x[:, number])


def rows_of(number: int, family: Callable[[Tensor], Any]) -> Callable[[Tensor, Tensor], None]:
    """Return an observation of x ``[N, 4, 5]``, the first ``number`` of whose axes are plates."""

    def observe(raw: Tensor, x: Tensor) -> None:
        x = x.flatten(1).unflatten(1, (4, 5))
        order = (1, 0, 2) if number == 1 else (2, 1, 0)
        inner = raw.permute(*range(raw.dim() - 3), *(raw.dim() - 3 + place for place in order))
        if inner.dim() > 3:  # particles, and the places that z has for the plates
            inner = inner.reshape(*inner.shape[: -3 - number], *inner.shape[-3:])
        with ExitStack() as stack:
            for plate in range(number):
                size = x.shape[1 + plate]
                stack.enter_context(pyro.plate(f"inner_{plate}", size, dim=-2 - plate))
            pyro.sample("x", family(inner).to_event(2 - number), obs=x.permute(order))

    return observe


def poisson(raw: Tensor) -> Any:
    return dist.Poisson(raw.exp())


def binomial(raw: Tensor) -> Any:
    return dist.Binomial(20, logits=raw)
