"""MCMC in training: the model follows latents that HMC has moved from the guide's draws."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro.poutine.messenger import Messenger
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.inference.auxiliary import AuxiliaryLosses
from pyro_vae.inference.handlers import Frozen
from pyro_vae.inference.hmc import Point, adapted, transition
from pyro_vae.inference.latent_space import LatentSpace, shape_of
from pyro_vae.inference.objectives import ELBO, data_weight
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import SiteTerms, losses_of

__all__ = ["Refined", "StepSize"]

_RATE = 0.2


class Refined(ELBO):
    r"""The ELBO for the guide; for the model, log p(x, z) at latents that HMC has moved.

    .. math::
        \nabla_\phi = \nabla_\phi \mathrm{ELBO}, \qquad
        \nabla_\theta = \nabla_\theta \log p_\theta(x, z_T), \qquad
        z_0 \sim q(z \mid x), \quad z_t \sim K(z_t \mid z_{t-1})

    K leaves :math:`p(z \mid x)` as it is. So the longer the chain, the nearer is the model's
    gradient to that of log p(x), of which :math:`\nabla_\theta \log p_\theta(x, z)` is the mean
    over the exact posterior. Reported is the ELBO of the guide, a bound; what the chain gains shows
    in log p(x). No gradient passes through the chain, in which the model is in evaluation mode.
    Auxiliary losses are followed as densities are: by the guide's parameters at the guide's draws,
    by the model's at the latents that were moved.
    A step costs ``num_steps * num_leapfrog`` further evaluations of the model and its gradient.

    The chains have one step size. It is a buffer, which belongs to a checkpoint; every training
    step moves it towards the target acceptance, for the step after.

    Args:
        num_particles: S, the number of samples of the latents, and of chains, for each datum.
        num_steps: T, how often each chain is moved.
        num_leapfrog: How many leapfrog steps a move has.
        step_size: Of the integrator at the start, for latents as real numbers without bounds.
        target_acceptance: The part of moves that the step size lets be accepted; None keeps the
            step size as it is.

    Attributes:
        size: The module that holds the step size.

    Raises:
        ValueError: If a count is less than 1, the step size is not positive, or the target is not
            between 0 and 1; before the first step, if a latent is discrete.

    References:
        Learning Deep Latent Gaussian Models with Markov Chain Monte Carlo (Hoffman, 2017)
    """

    synonyms = ("HMC",)
    averages = False
    exact_instead = "ELBO"

    @at_the_door
    def __init__(
        self,
        num_particles: int = 1,
        *,
        num_steps: int = 5,
        num_leapfrog: int = 5,
        step_size: float = 0.1,
        target_acceptance: float | None = 0.8,
    ) -> None:
        super().__init__(num_particles)
        for name, count in (("num_steps", num_steps), ("num_leapfrog", num_leapfrog)):
            if count < 1:
                raise ValueError(f"{name}={count}: give 1 or more")
        self.num_steps, self.num_leapfrog = num_steps, num_leapfrog
        self.size = StepSize(step_size, target_acceptance)

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program, and in training move its latents; the model's log p is at both."""
        if not torch.is_grad_enabled():
            return super().table(program, layout, *args)
        frozen = _frozen(program)
        terms = super().table(frozen, layout, *args)
        rows = tuple(arg.repeat(self.num_particles, *[1] * (arg.dim() - 1)) for arg in args)
        space = _space_of(terms, frozen, layout)
        # Where a chain leaves the numbers that a distribution takes, the move is rejected.
        with frozen.in_evaluation_mode(), torch.no_grad(), pyro.validation_enabled(False):
            moved, acceptance = self._moved(space, terms, rows)
        with AuxiliaryLosses() as losses:
            found = LatentSpace(program, layout, space.shapes).log_p(moved, *rows)
        refined = {name: log_p.unflatten(0, terms.log_w.shape) for name, log_p in found.items()}
        lost = losses_of(losses.declared, (1, len(moved)), layout.max_plate_nesting)
        return _Moved(
            **vars(terms), log_p_moved=refined, acceptance=acceptance,
            auxiliary_moved={n: e.reshape(terms.log_w.shape) for n, e in lost.items()},
        )  # fmt: skip

    def _moved(
        self, space: LatentSpace, terms: SiteTerms, rows: tuple[Tensor, ...]
    ) -> tuple[Tensor, Tensor]:
        """Return where the chains end, ``[R, D]``, and how many moves were accepted, 0-d."""
        density = partial(_point, space, rows)
        point = density(_positions(space, terms, rows))
        sizes = self.size.value.to(point.log_density).expand_as(point.log_density)
        total = torch.zeros_like(point.log_density)
        for _ in range(self.num_steps):
            point, acceptance = transition(density, point, sizes, num_steps=self.num_leapfrog)
            total = total + acceptance
        return point.position, total.mean() / self.num_steps

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``, and move the step size."""
        guided = super().surrogate(terms)
        if not isinstance(terms, _Moved):
            return guided
        self.size.observe(terms.acceptance)
        log_p: Any = sum(terms.scale_p[name] * each for name, each in terms.log_p_moved.items())
        losses: Any = sum(terms.auxiliary_moved.values())
        return guided + data_weight(terms) * (log_p - losses).mean(0)

    def refusal(self, terms: SiteTerms) -> str | None:
        """Say which latent HMC cannot move, or what of the model would not be trained."""
        try:
            _shapes_of(terms)
        except ValueError as error:
            return f"Refined moves latents by HMC: {error}"
        return super().refusal(terms)


class StepSize(nn.Module):
    """A step size that moves towards an acceptance, a buffer that is filled in place.

    Args:
        start: The step size at the start.
        target: The acceptance aimed at; None: it stays.

    Attributes:
        value: The step size now, a 0-d tensor.

    Raises:
        ValueError: If the step size is not positive, or the target is not between 0 and 1.
    """

    value: Tensor

    def __init__(self, start: float, target: float | None) -> None:
        super().__init__()
        if not 0 < start < math.inf:
            raise ValueError(f"step_size={start}: it is positive and finite")
        if target is not None and not 0 < target < 1:
            raise ValueError(
                f"target_acceptance={target}: give a number between 0 and 1, or None for a step "
                "size that stays"
            )
        self.start, self.target = start, target
        self.register_buffer("value", torch.tensor(float(start)))

    @torch.no_grad()
    def observe(self, acceptance: Tensor) -> None:
        """Move by the acceptance of a step, a 0-d tensor."""
        if self.target is not None:
            acceptance = acceptance.to(self.value)
            self.value.copy_(adapted(self.value, acceptance, target=self.target, rate=_RATE))

    def extra_repr(self) -> str:
        """Show the start and the target."""
        return f"start={self.start}, target={self.target}"


@dataclass(frozen=True)
class _Moved(SiteTerms):
    """The table of the guide's draws, and the model's log p at the latents that HMC has moved.

    In the table, log p has gradients in the latents, and none in the model's parameters.

    Attributes:
        log_p_moved: Of every site of the model, ``[S, B]``, with the gradients of its parameters.
        acceptance: The part of moves that were accepted, 0-d.
        auxiliary_moved: The losses that the model declares there, ``[S, B]``, likewise.
    """

    log_p_moved: dict[str, Tensor] = field(default_factory=dict)
    acceptance: Tensor = field(default_factory=lambda: torch.zeros(()))
    auxiliary_moved: dict[str, Tensor] = field(default_factory=dict)


class _Unstored(Messenger):
    """Give parameters of Pyro's store no gradient."""

    def _pyro_post_param(self, msg: Any) -> None:
        if isinstance(msg["value"], Tensor):
            msg["value"] = msg["value"].detach()


def _frozen(program: Program) -> Program:
    """Return the program with no gradient in the model's parameters."""
    model = _Unstored()(program.model)
    modules = [each for each in program.reachable if any(True for _ in each.parameters())]
    return Program(Frozen(*modules)(model) if modules else model, program.guide)


def _shapes_of(terms: SiteTerms) -> dict[str, tuple[int, ...]]:
    """Return the shape of one row's position at each latent, in the order of the model."""
    for name in terms.log_q:
        if name not in terms.log_p:
            raise ValueError(f"the model has no site {name!r}, along which it could be moved")
    found = {}
    for name in (name for name in terms.log_p if name in terms.log_q):
        fn, value = terms.latents[name][0].model["fn"], terms.values[name]
        found[name] = shape_of(name, fn, value.shape[2 : value.dim() - fn.event_dim])
    return found


def _space_of(terms: SiteTerms, program: Program, layout: Layout) -> LatentSpace:
    return LatentSpace(program, layout, _shapes_of(terms))


def _positions(space: LatentSpace, terms: SiteTerms, rows: tuple[Tensor, ...]) -> Tensor:
    """Return the guide's draws as positions, ``[R, D]``: particle after particle, all data."""
    values = {}
    for name, value in terms.values.items():
        num_plates = value.dim() - 2 - terms.latents[name][0].model["fn"].event_dim
        values[name] = value.detach().flatten(0, 1).movedim(0, num_plates)
    return space.positions(values, *rows)


def _point(space: LatentSpace, rows: tuple[Tensor, ...], position: Tensor) -> Point:
    with torch.enable_grad():
        moved = position.detach().requires_grad_()
        log_prior, log_likelihood = space.log_densities(moved, *rows, with_guide=False)
        log_density = log_prior + log_likelihood
        (gradient,) = torch.autograd.grad(log_density.sum(), moved)
    log_density = log_density.detach()
    return Point(position, log_density, gradient, log_density, gradient)
