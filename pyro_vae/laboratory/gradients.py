"""Measure gradients: bias, variance and signal-to-noise ratio.

An objective's gradient is drawn many times at the same weights and data. The draws are kept as a
few groups, whose means are all that bias, variance and signal-to-noise ratio are made of; leaving
out one group after the other gives each its standard error.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import pyro
import torch
from pyro.infer import (
    ELBO,
    RenyiELBO,
    Trace_ELBO,
    TraceEnum_ELBO,
    TraceGraph_ELBO,
    TraceMeanField_ELBO,
)
from torch import Tensor

from pyro_vae.engine.optimizers import adam
from pyro_vae.engine.svi import SVI
from pyro_vae.evaluation.batching import check_counts
from pyro_vae.evaluation.estimates import Estimate, Result
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.inference import objectives
from pyro_vae.inference.detached import reached
from pyro_vae.inference.importance import Renyi
from pyro_vae.inference.objectives import Objective, data_scale
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.terms import SiteTerms, site_terms

__all__ = ["Gradients", "OwnBound", "draw_gradients", "own_bound"]

PARTS = ("model", "guide")
_SQUARED = "squared nats per datum"
_OF_PYRO = (Trace_ELBO, TraceMeanField_ELBO, TraceGraph_ELBO, TraceEnum_ELBO)


@dataclass(frozen=True, eq=False, repr=False)
class Gradients(Result):
    r"""Gradients of one objective at the same weights and data, under new noise each time.

    Of the bound, upwards, in nats per datum and unit of a parameter. P is the number of entries
    of all parameters, G that of groups.

    Attributes:
        means: The mean of each group, ``[G, P]``.
        squares: The mean square of each group, ``[G, P]``.
        num_repeats: n, the number of gradients in all groups together.
        entries: Which of the P entries are of the "model" and of the "guide", ``[P]`` each;
            of both where the two share a parameter, of neither for an objective's own.
    """

    means: Tensor
    squares: Tensor
    num_repeats: int
    entries: dict[str, Tensor]

    def of(self, part: str) -> Gradients:
        """Return the gradients of the "model" or of the "guide" alone."""
        kept = self.entries[part]
        entries = {name: entry[kept] for name, entry in self.entries.items()}
        return Gradients(self.means[:, kept], self.squares[:, kept], self.num_repeats, entries)

    @property
    def mean(self) -> Tensor:
        """The mean gradient, ``[P]``."""
        return self.means.mean(0)

    @property
    def variance(self) -> Tensor:
        """The variance of each entry, without bias, ``[P]``."""
        return self._variance(torch.arange(len(self.means)))

    def snr(self) -> Estimate:
        r"""Return the signal-to-noise ratio, the mean over entries that vary of

        .. math:: |\mathrm E\, g_i| / \sqrt{\mathrm{Var}\, g_i}

        Noise alone reads ``snr_floor``; NaN if no entry varies.

        References:
            Tighter Variational Bounds are Not Necessarily Better (Rainforth et al., 2018)
        """

        def ratio(groups: Tensor) -> float:
            variance = self._variance(groups)
            varies = variance > 0
            mean = self.means[groups].mean(0)[varies]
            return float((mean.abs() / variance[varies].sqrt()).mean())

        return _jackknife(ratio, len(self.means))

    @property
    def snr_floor(self) -> float:
        r"""What ``snr`` reads of gradients that are noise alone, :math:`\sqrt{2 / (\pi n)}`."""
        return math.sqrt(2 / (math.pi * self.num_repeats))

    def total_variance(self) -> Estimate:
        """Return the variance summed over entries, in squared nats per datum."""
        return _jackknife(
            lambda groups: float(self._variance(groups).sum()), len(self.means), _SQUARED
        )

    def relative_bias(self, reference: Gradients) -> Estimate:
        r"""Return how far the mean is from a reference's, in units of the latter's length.

        .. math:: b = \frac{\| \mathrm E\, g - \mathrm E\, r \|}{\| \mathrm E\, r \|}

        Both squares are estimated without bias, by products of different groups, so that noise is
        not taken for bias; a negative estimate reads 0. With s for the standard error of
        :math:`b^2`, that of b is :math:`s / \sqrt{\max(b^2, s)}`: b is k of them from 0 where
        :math:`b^2` is k of its own, and far from 0 the error is twice what it needs to be.

        Args:
            reference: Gradients of other noise, in as many groups, of the same parameters.

        Returns:
            NaN if the reference cannot be distinguished from 0, or there is no parameter.

        Raises:
            ValueError: If the shapes differ.
        """
        if self.means.shape != reference.means.shape:
            shapes = f"{tuple(self.means.shape)} and {tuple(reference.means.shape)}"
            raise ValueError(
                f"gradients in [groups, parameters] of {shapes}: measure both with the same "
                "num_groups, of one program"
            )
        apart = self.means - reference.means
        products, lengths = apart @ apart.T, reference.means @ reference.means.T

        def squared(groups: Tensor) -> float:
            length = _between(lengths, groups)
            return _between(products, groups) / length if length > 0 else math.nan

        square = _jackknife(squared, len(self.means))
        error = square.standard_error
        if math.isnan(square) or math.isnan(error):
            return Estimate(math.nan, math.nan)
        largest = max(square, error)
        spread = error / math.sqrt(largest) if largest > 0 else 0.0
        return Estimate(math.sqrt(max(square, 0.0)), spread)

    def _variance(self, groups: Tensor) -> Tensor:
        num = self.num_repeats * len(groups) / len(self.means)
        mean = self.means[groups].mean(0)
        # Rounding can leave a little less than nothing where an entry does not vary.
        spread = (self.squares[groups].mean(0) - mean.square()).clamp(min=0)
        negligible = 1e-14 * mean.square()
        return torch.where(spread > negligible, spread, 0.0) * num / (num - 1)


@takes_program
def draw_gradients(
    probe: Probe,
    objective: ELBO,
    x: Tensor,
    *fields: Tensor,
    num_repeats: int = 300,
    num_groups: int = 10,
    seed: int = 0,
    engine: str = "auto",
) -> Gradients:
    """Draw an objective's gradient again and again, at the weights and data as they are.

    No weight is changed; gradients that parameters hold are cleared, and buffers put back. An
    objective with modules of its own, such as a running baseline, first settles for a tenth as
    many steps.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        objective: An objective of ours or a ``pyro.infer.ELBO``.
        x: A batch, ``[B, *event_shape]``.
        fields: What else the program takes, ``[B, ...]`` each.
        num_repeats: How many gradients; a multiple of ``num_groups``, or the next below.
        num_groups: Among how many groups they are shared; 3 or more.
        seed: Of the noise; the random state outside is not touched.
        engine: How a step is run, see ``SVI``.

    Raises:
        ValueError: If there are fewer than 3 groups of 2, or the program breaks the convention.
    """
    args = (x, *fields)
    check_counts(num_repeats=num_repeats, num_groups=num_groups)
    if num_groups < 3 or num_repeats < 2 * num_groups:
        raise ValueError(
            f"num_repeats={num_repeats}, num_groups={num_groups}: standard errors take 3 groups "
            "of 2 gradients or more"
        )
    program, layout = probe.program, probe.layout
    svi = SVI(program.model, program.guide, adam, objective, engine=engine)
    with _aside(program, args[0].device, seed):
        svi.find_parameters(*args)
        entries = _entries(program, layout, args, svi)
        settling = num_repeats // 10 if svi.modules_of_loss else 0
        draw = _Draw(svi, args, -1.0 / (layout.full_size or len(x)))
        for _ in range(settling):
            draw()
        groups = [draw.group(num_repeats // num_groups) for _ in range(num_groups)]
    means, squares = (torch.stack(column) for column in zip(*groups, strict=True))
    return Gradients(means, squares, num_repeats // num_groups * num_groups, entries)


class OwnBound(Objective):
    r"""The bound that an objective reports, and that bound's own gradient, for any latents.

    What the objective's gradient is held against. It is the gradient of the value through
    reparameterised samples; for others, with the bound L of one table and L' of a second,

    .. math:: \nabla L + (L - L') \sum_s \nabla \log q(z_s \mid x)

    averaged over both orders: without bias for every bound.

    Args:
        objective: Whose bound.

    References:
        Buy 4 REINFORCE Samples, Get a Baseline for Free! (Kool, van Hoof & Welling, 2019)
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__(objective.num_particles)
        self.objective, self.averages = objective, objective.averages

    def table(self, program: Program, layout: Layout, *args: Any) -> SiteTerms:
        """Run the program once; twice, if a latent is not reparameterised."""
        run = partial(
            site_terms, program, layout, *args,
            num_particles=self.num_particles, in_strata=self.averages,
        )  # fmt: skip
        first = run()
        if all(first.pathwise.values()):
            return first
        if first.log_share is not None:
            raise ValueError(
                "the bound's own gradient is not known where some sites are enumerated and others "
                "are sampled without gradients: mark none of them, or all"
            )
        other = run()
        return _Pair(**vars(first), other=other)

    def value(self, terms: SiteTerms) -> Tensor:
        """Return the objective's bound of each datum in nats, ``[B]``."""
        return self.objective.value(terms)

    def surrogate(self, terms: SiteTerms) -> Tensor:
        """Return what is differentiated for each datum, ``[B]``."""
        value = self.value(terms)
        if not isinstance(terms, _Pair):
            return data_scale(terms) * value
        other = self.value(terms.other)
        signal = (value - other).detach()
        scored = signal * (_score(terms) - _score(terms.other))
        return data_scale(terms) * 0.5 * (value + other + scored)


@dataclass(frozen=True)
class _Pair(SiteTerms):
    """Two tables of the same data."""

    other: SiteTerms = field(kw_only=True)


def own_bound(objective: Any) -> OwnBound | None:
    """Return the objective's bound with the bound's own gradient; None where it is not known.

    Args:
        objective: An objective of ours, or a ``pyro.infer.ELBO`` whose bound ours have, too.
    """
    if isinstance(objective, Objective):
        return OwnBound(objective)
    if isinstance(objective, RenyiELBO):
        return OwnBound(Renyi(float(objective.alpha), objective.num_particles))
    if type(objective) in _OF_PYRO:
        return OwnBound(objectives.ELBO(objective.num_particles))
    return None


class _Draw:
    """Draws gradients, flat, in nats per datum."""

    def __init__(self, svi: SVI, args: tuple[Tensor, ...], scale: float) -> None:
        self._svi, self._args, self._scale = svi, args, scale
        self._parameters = list(svi.parameters.values())

    def __call__(self) -> Tensor:
        for parameter in self._parameters:
            parameter.grad = None
        self._svi.loss_and_grads(*self._args)
        found = [
            p.new_zeros(p.numel()) if p.grad is None else p.grad.flatten() for p in self._parameters
        ]
        for parameter in self._parameters:
            parameter.grad = None
        flat = torch.cat(found) * self._scale
        return flat if flat.device.type == "mps" else flat.double()

    def group(self, num: int) -> tuple[Tensor, Tensor]:
        """Return the mean of so many gradients, and of their squares, ``[P]`` each."""
        first = second = torch.zeros(())
        for _ in range(num):
            gradient = self()
            first, second = first + gradient, second + gradient.square()
        return first / num, second / num


@contextmanager
def _aside(program: Program, device: torch.device, seed: int) -> Iterator[None]:
    """Take steps without validation under a random state of their own; put buffers back."""
    states = [copy.deepcopy(module.state_dict()) for module in program.reachable]
    devices = [device.index or 0] if device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices), pyro.validation_enabled(False):
            torch.manual_seed(seed)
            yield
    finally:
        for module, state in zip(program.reachable, states, strict=True):
            module.load_state_dict(state, strict=False)


def _entries(
    program: Program, layout: Layout, args: tuple[Tensor, ...], svi: SVI
) -> dict[str, Tensor]:
    """Find what reaches log p at given latents, and what log q, ``[P]`` each."""
    parameters = list(svi.parameters.values())
    with program.running():
        flags = reached(program, layout, parameters, *args)
    sizes = torch.tensor([parameter.numel() for parameter in parameters])
    return {part: torch.tensor(flags[part]).repeat_interleave(sizes) for part in PARTS}


def _score(terms: SiteTerms) -> Tensor:
    """Return the sum over particles of log q of latents that are not reparameterised, ``[B]``."""
    scored = [log_q for name, log_q in terms.log_q.items() if not terms.pathwise[name]]
    return torch.stack(scored).sum((0, 1))


def _between(products: Tensor, groups: Tensor) -> float:
    """Return the mean product of two different groups."""
    inner = products[groups][:, groups]
    num = len(groups)
    return float((inner.sum() - inner.diagonal().sum()) / (num * (num - 1)))


def _jackknife(statistic: Callable[[Tensor], float], num_groups: int, unit: str = "") -> Estimate:
    groups = torch.arange(num_groups)
    without = torch.tensor(
        [statistic(groups[groups != left]) for left in range(num_groups)], dtype=torch.float64
    )
    spread = (without - without.mean()).square().sum() * (num_groups - 1) / num_groups
    return Estimate(statistic(groups), float(spread.sqrt()), unit)
