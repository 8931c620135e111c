r"""Hamiltonian Monte Carlo with thousands of chains in one batch, each with its own step size.

Pyro's ``HMC`` kernel runs one chain: one accept decision and one step size for the whole state,
with Python between all of its steps. Here every row of a batch is a chain of its own, so that a
transition of all of them is a few operations on tensors around a density that can be compiled.
Where a chain stands is a vector of real numbers; ``latent_space`` makes one of any latents.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TypeAlias

import torch
from torch import Tensor

__all__ = ["Density", "Point", "adapted", "first_step_sizes", "leapfrog", "transition"]

_JITTER = 0.2
_SMALLEST_STEP, _LARGEST_STEP = 1e-6, 10.0


@dataclass(frozen=True)
class Point:
    r"""Where each of R chains stands.

    Attributes:
        position: u, ``[R, D]``.
        log_density: :math:`\log f(u)` in nats, not normalised, ``[R]``.
        gradient: :math:`\nabla_u \log f(u)`, ``[R, D]``.
        log_ratio: What annealing weighs the chain with: :math:`\log f_1(u) - \log f_0(u)`, ``[R]``.
        ratio_gradient: Of that, ``[R, D]``.
    """

    position: Tensor
    log_density: Tensor
    gradient: Tensor
    log_ratio: Tensor
    ratio_gradient: Tensor

    def where(self, chosen: Tensor, other: Point) -> Point:
        """Return this point for the chains that are ``chosen``, ``[R]``, the other for the rest."""
        rows = chosen.unsqueeze(-1)
        return Point(
            torch.where(rows, self.position, other.position),
            torch.where(chosen, self.log_density, other.log_density),
            torch.where(rows, self.gradient, other.gradient),
            torch.where(chosen, self.log_ratio, other.log_ratio),
            torch.where(rows, self.ratio_gradient, other.ratio_gradient),
        )

    def further(self, change: Tensor) -> Point:
        r"""Return this point under :math:`f_{\beta + \Delta}`, which needs no evaluation.

        Args:
            change: :math:`\Delta` of each chain, ``[R]``.
        """
        return replace(
            self,
            log_density=self.log_density + change * self.log_ratio,
            gradient=self.gradient + change.unsqueeze(-1) * self.ratio_gradient,
        )


Density: TypeAlias = Callable[[Tensor], Point]
"""What all chains are run on: from positions ``[R, D]`` to the points there."""


def transition(
    density: Density, start: Point, step_size: Tensor, *, num_steps: int
) -> tuple[Point, Tensor]:
    r"""Move every chain once, and leave the density invariant.

    Momenta are drawn from N(0, I), the leapfrog integrator proposes, and the end is accepted with
    probability :math:`\min(1, \exp(H_{start} - H_{end}))`, where
    :math:`H = \frac12 |r|^2 - \log f(u)`. Step sizes vary by a fifth from transition to
    transition, so that no chain goes round in a closed orbit. What is not finite is rejected.

    Args:
        density: Of the chains.
        start: Where they stand.
        step_size: Of each chain, ``[R]``; it may not depend on where the chains have been.
        num_steps: Of the integrator.

    Returns:
        Where the chains stand now, and the probability with which each end was accepted, ``[R]``.

    References:
        MCMC using Hamiltonian dynamics (Neal, 2011)
    """
    momentum = torch.randn_like(start.position)
    factor = 1 + _JITTER * (2 * torch.rand_like(start.log_density) - 1)
    end, moved = leapfrog(density, start, momentum, step_size * factor, num_steps=num_steps)
    change = (end.log_density - _kinetic(moved)) - (start.log_density - _kinetic(momentum))
    acceptance = change.nan_to_num(nan=-math.inf, posinf=math.inf).clamp(max=0).exp()
    accepted = torch.rand_like(acceptance) < acceptance
    return end.where(accepted, start), acceptance


def leapfrog(
    density: Density, start: Point, momentum: Tensor, step_size: Tensor, *, num_steps: int
) -> tuple[Point, Tensor]:
    r"""Integrate the motion :math:`\dot u = r, \; \dot r = \nabla \log f(u)` of all chains.

    .. math::
        r \leftarrow r + \tfrac{\epsilon}{2} \nabla \log f(u), \quad
        u \leftarrow u + \epsilon r, \quad
        r \leftarrow r + \tfrac{\epsilon}{2} \nabla \log f(u)

    It preserves volume and, run again with the momentum reversed, it comes back.

    Args:
        density: Of the chains.
        start: Where they stand.
        momentum: r, ``[R, D]``.
        step_size: :math:`\epsilon` of each chain, ``[R]``.
        num_steps: How many.
    """
    step = step_size.unsqueeze(-1)
    point = start
    for _ in range(num_steps):
        momentum = momentum + 0.5 * step * point.gradient
        point = density(point.position + step * momentum)
        momentum = momentum + 0.5 * step * point.gradient
    return point, momentum


def first_step_sizes(position: Tensor) -> Tensor:
    """Return step sizes to begin with, ``[R]``: good for a standard normal of D dimensions."""
    size = min(1.0, position.shape[1] ** -0.25)
    return position.new_full(position.shape[:1], size)


def adapted(step_size: Tensor, acceptance: Tensor, *, target: float, rate: float) -> Tensor:
    r"""Return each chain's step size moved towards a target acceptance.

    .. math:: \log \epsilon \leftarrow \log \epsilon + \eta\, (\alpha - \alpha^\star)

    Args:
        step_size: :math:`\epsilon`, ``[R]``.
        acceptance: :math:`\alpha` of the last transition, ``[R]``.
        target: :math:`\alpha^\star`.
        rate: :math:`\eta`.

    References:
        A tutorial on adaptive MCMC (Andrieu & Thoms, 2008)
    """
    moved = step_size * (rate * (acceptance - target)).exp()
    return moved.clamp(_SMALLEST_STEP, _LARGEST_STEP)


def _kinetic(momentum: Tensor) -> Tensor:
    return 0.5 * momentum.square().sum(-1)
