"""The linear-Gaussian program on which gradients are compared, and the statistics of estimates."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae import SVI
from pyro_vae.engine.optimizers import adam
from pyro_vae.inference import Objective

__all__ = ["LinearGaussian", "data", "gradients", "jackknifed", "slope"]

_NUM_GROUPS = 10  # of estimates, for the jackknife


class LinearGaussian(nn.Module):
    r"""A linear-Gaussian program near its optimum.

    .. math:: z \sim N(\mu, I), \qquad x \mid z \sim N(z, I), \qquad q(z \mid x) = N(A x + b, v I)

    The optimum is :math:`\mu^* = \bar x`, :math:`A^* = I / 2`, :math:`b^* = \mu^* / 2`; the exact
    posterior has v = 1/2.

    ======  =====  ======
    symbol  site   shape
    ======  =====  ======
    z       "z"    [B, D]
    x       "x"    [B, D]
    ======  =====  ======

    Args:
        x: The data, ``[N, D]``.
        variance: v.
        offset: The scale of a random offset of every parameter from its optimum.

    References:
        Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018), section 4
    """

    def __init__(self, x: Tensor, *, variance: float = 2 / 3, offset: float = 0.01) -> None:
        super().__init__()
        optimum = {"loc": x.mean(0), "A": torch.eye(x.shape[1]) / 2, "b": x.mean(0) / 2}
        for name, value in optimum.items():
            value = value.to(x) + offset * torch.randn_like(value.to(x))
            setattr(self, name, nn.Parameter(value))
        self.scale = math.sqrt(variance)

    def model(self, x: Tensor) -> None:
        """Declare p(z) p(x | z) for the data ``x``, ``[B, D]``."""
        with pyro.plate("data", len(x)):
            z = pyro.sample("z", dist.Normal(self.loc, 1.0).to_event(1))
            pyro.sample("x", dist.Normal(z, 1.0).to_event(1), obs=x)

    def guide(self, x: Tensor) -> None:
        """Declare q(z | x) for the data ``x``, ``[B, D]``."""
        with pyro.plate("data", len(x)):
            pyro.sample("z", dist.Normal(x @ self.A.T + self.b, self.scale).to_event(1))


def data(num_data: int, num_dims: int = 20) -> Tensor:
    """Draw data from the model, its location from a standard normal."""
    loc = torch.randn(num_dims)
    return loc + math.sqrt(2) * torch.randn(num_data, num_dims)


def gradients(
    program: LinearGaussian,
    x: Tensor,
    objective: Objective,
    num_estimates: int,
    guide: Callable[[Tensor], None] | None = None,
) -> dict[str, Tensor]:
    """Return estimates of the bound's gradient per datum, of "encoder" and "decoder", ``[R, P]``.

    Args:
        program: Whose gradient, at the parameters it has.
        x: The data, ``[N, D]``.
        objective: The bound.
        num_estimates: R.
        guide: The guide under a handler; the program's own unless given.
    """
    guide = guide or program.guide
    svi = SVI(program.model, guide, partial(adam, lr=0.0), objective, engine="recorded")
    found: dict[str, list[Tensor]] = {"encoder": [], "decoder": []}
    for _ in range(num_estimates):
        program.zero_grad()
        svi.loss_and_grads(x)
        parts = {"encoder": (program.A, program.b), "decoder": (program.loc,)}
        for part, parameters in parts.items():
            flat = [-p.grad.flatten() / len(x) for p in parameters if p.grad is not None]
            found[part].append(torch.cat(flat))
    return {part: torch.stack(rows).double() for part, rows in found.items()}


def jackknifed(statistic: Callable[..., Tensor], *samples: Tensor) -> tuple[Tensor, Tensor]:
    """Return a statistic of samples ``[R, ...]`` and its standard error, leaving groups out."""
    groups = torch.arange(len(samples[0])) % _NUM_GROUPS
    kept = (tuple(sample[groups != group] for sample in samples) for group in range(_NUM_GROUPS))
    without = torch.stack([statistic(*sample) for sample in kept])
    spread = without.std(0, correction=0) * math.sqrt(_NUM_GROUPS - 1)
    return statistic(*samples), spread


def slope(places: Sequence[float], values: Tensor) -> Tensor:
    """Return the slope of the least-squares line of log values on log places."""
    log_places = torch.tensor(places, dtype=torch.float64).log()
    centred = log_places - log_places.mean()
    return (centred * values.log()).sum() / centred.square().sum()
