r"""Codes without noise: the posterior of an autoencoder is a point, z = f(x), plain or sparse.

A point has no density, and its ELBO is minus infinity. So the objective is ``Reconstruction``,
which reports log p(x | z) and names it so; what asks for a bound refuses a point. Sparsity is an
auxiliary loss or a nonlinearity of the family; the prior plays no part until it is fitted to the
codes afterwards.
"""

from __future__ import annotations

import math
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.inference.auxiliary import auxiliary_loss

__all__ = ["Point", "PointFamily", "RatePoint", "SparsePoint", "TopKPoint"]

_SMALLEST_RATE = 1e-6  # of a code's mean: float32 tells it from 0 and 1


class PointFamily(Family):
    """A point at a function of raw numbers, ``[*batch, 1, *event_shape]``; a leaf is the function.

    Args:
        event_shape: The shape of one code.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))

    def code(self, raw: Tensor) -> Tensor:
        """Return the code of raw numbers, ``[*batch, *event_shape]`` both."""
        raise NotImplementedError

    def forward(self, raw: Tensor) -> Distribution:
        """Return the point at the code of ``raw``, ``[*batch, 1, *event_shape]``."""
        event_dim = len(self.event_shape)
        return distributions.Point(self.code(raw.squeeze(-1 - event_dim)), event_dim=event_dim)


class Point(PointFamily):
    r"""A point that the encoder computes, :math:`z = f(x)`: the code of an autoencoder.

    With a shrinkage of :math:`\lambda` its codes cost :math:`\tfrac\lambda2 \|z\|^2` nats each, as
    in a regularised autoencoder, which keeps them where a density can be fitted to them.

    Args:
        event_shape: The shape of one code.
        shrinkage: The weight of the squared norm, not negative.

    Raises:
        ValueError: If the shrinkage is negative or not finite.

    References:
        Reducing the Dimensionality of Data with Neural Networks (Hinton & Salakhutdinov, 2006)
        From Variational to Deterministic Autoencoders (Ghosh et al., 2020)
    """

    roles = ("posterior",)
    synonyms = ("Deterministic", "Delta")

    @at_the_door
    def __init__(self, event_shape: Shape, shrinkage: float = 0.0) -> None:
        super().__init__(event_shape)
        self.shrinkage = _weight("shrinkage", shrinkage)

    def code(self, raw: Tensor) -> Tensor:
        """Return the raw numbers, and declare what their squares cost."""
        if self.shrinkage:
            loss = 0.5 * self.shrinkage * _event_sum(raw.square(), self.event_shape)
            auxiliary_loss("shrinkage", loss)
        return raw


class SparsePoint(PointFamily):
    r"""A point with an L1 cost, :math:`z = \max(0, r)` at :math:`\lambda \|z\|_1` nats.

    Codes that do not pay for themselves are exactly zero. A decoder that grows would make up for
    codes that shrink: ``--decoder Dictionary`` has columns of norm 1.

    Args:
        event_shape: The shape of one code.
        weight: :math:`\lambda`, not negative, in nats for each unit of a code.

    Raises:
        ValueError: If the weight is negative or not finite.

    References:
        Emergence of Simple-Cell Receptive Field Properties by Learning a Sparse Code for Natural
        Images (Olshausen & Field, 1996)
    """

    roles = ("posterior",)

    @at_the_door
    def __init__(self, event_shape: Shape, weight: float = 1.0) -> None:
        super().__init__(event_shape)
        self.weight = _weight("weight", weight)

    def code(self, raw: Tensor) -> Tensor:
        """Return the positive part, and declare what it costs."""
        code = raw.relu()
        auxiliary_loss("sparsity", self.weight * _event_sum(code, self.event_shape))
        return code


class RatePoint(PointFamily):
    r"""A point in (0, 1) whose units are on at a given rate over the batch.

    .. math:: z = \sigma(r), \qquad
        \lambda \sum_j \rho \log\frac{\rho}{\hat\rho_j} + (1 - \rho) \log\frac{1-\rho}{1-\hat\rho_j}

    nats for each datum, where :math:`\hat\rho_j` is the mean of unit j over the batch. A batch that
    is split over processes has to gather these means.

    Args:
        event_shape: The shape of one code.
        rate: :math:`\rho`, between 0 and 1.
        weight: :math:`\lambda`, not negative.

    Raises:
        ValueError: If the rate does not lie between 0 and 1, or the weight is negative.

    References:
        Sparse Autoencoder, lecture notes CS294A (Ng, 2011)
    """

    roles = ("posterior",)

    @at_the_door
    def __init__(self, event_shape: Shape, rate: float = 0.05, weight: float = 1.0) -> None:
        super().__init__(event_shape)
        if not 0 < rate < 1:
            raise ValueError(f"rate={rate}: the share of data that a unit is on for is in (0, 1)")
        self.rate, self.weight = rate, _weight("weight", weight)

    def code(self, raw: Tensor) -> Tensor:
        """Return the sigmoid, and declare how far its means are from the rate."""
        code, rate = raw.sigmoid(), self.rate
        event_dim = len(self.event_shape)
        mean = code.reshape(-1, *self.event_shape).mean(0)
        mean = mean.clamp(_SMALLEST_RATE, 1 - _SMALLEST_RATE)
        kl = rate * (math.log(rate) - mean.log())
        kl = kl + (1 - rate) * (math.log1p(-rate) - (1 - mean).log())
        batch = code.shape[: code.dim() - event_dim]
        auxiliary_loss("sparsity", (self.weight * kl.sum()).expand(batch))
        return code


class TopKPoint(PointFamily):
    """A point of which the K largest numbers are kept, and the others are zero.

    Args:
        event_shape: The shape of one code.
        num_active: K, at least 1 and at most all.

    Raises:
        ValueError: If K is out of range.

    References:
        k-Sparse Autoencoders (Makhzani & Frey, 2014)
    """

    roles = ("posterior",)
    synonyms = ("KSparse",)
    example: ClassVar = {"num_active": 2}

    @at_the_door
    def __init__(self, event_shape: Shape, num_active: int = 10) -> None:
        super().__init__(event_shape)
        size = math.prod(self.event_shape)
        if not 1 <= num_active <= size:
            raise ValueError(f"num_active={num_active}: a code of {size} numbers keeps 1 to {size}")
        self.num_active = num_active

    def code(self, raw: Tensor) -> Tensor:
        """Return the largest numbers in their places, and zero elsewhere."""
        flat = raw.flatten(raw.dim() - len(self.event_shape))
        largest = flat.topk(self.num_active, dim=-1)
        return torch.zeros_like(flat).scatter(-1, largest.indices, largest.values).view_as(raw)


def _event_sum(values: Tensor, event_shape: Shape) -> Tensor:
    return values.flatten(values.dim() - len(event_shape)).sum(-1)


def _weight(name: str, weight: float) -> float:
    if not 0 <= weight < math.inf:
        raise ValueError(f"{name}={weight}: give a finite number of 0 or more")
    return weight
