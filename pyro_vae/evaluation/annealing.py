r"""log p(x) by annealed importance sampling, and its bracket from both sides on simulated data.

The path from a start :math:`f_0` (the prior, or the guide) to :math:`f_1(z) = p(x, z)` is
geometric,

.. math:: f_\beta(z) = f_0(z)^{1 - \beta} f_1(z)^\beta,

and all chains of all data move along it in one batch, by the HMC of ``hmc``. Their step sizes come
from a pilot run with chains of its own: chains that adapt to their own past leave none of the
densities on the path invariant, and their weights would no longer have p(x) as their mean.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae import memory
from pyro_vae.evaluation.batching import (
    CHUNK_ELEMENTS,
    batches,
    check_counts,
    cycled,
    double,
    pairs_at_once,
    refuse_sampled,
)
from pyro_vae.evaluation.estimates import NATS, Estimate, Result
from pyro_vae.evaluation.hmc import Density, Point, adapted, first_step_sizes, transition
from pyro_vae.evaluation.judging import Prior, judges_from_prior
from pyro_vae.evaluation.latent_space import LatentSpace, Path
from pyro_vae.evaluation.likelihood import importance_estimate
from pyro_vae.evaluation.substitution import substituted
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.sites import dreamt
from pyro_vae.inference.support import check_support
from pyro_vae.wording import option, warn

__all__ = [
    "AnnealedEstimate",
    "Bracket",
    "annealed_importance_sampling",
    "bidirectional",
    "temperatures",
]

_STEEPNESS = 4.0
_WARM_UP = 10
# As large as the largest of a run, that a move holds at once: its gradients, and the two points.
_TENSORS = 4
_PILOT_SHARE, _FEWEST_PILOT, _PILOT_RATE = 5, 30, 0.5
_WIDE = 1.0


@dataclass(frozen=True, eq=False, repr=False)
class AnnealedEstimate(Result):
    r"""log p(x) of each datum from the weights of annealed chains.

    Attributes:
        log_p: In nats, ``[N]``. In expectation a lower bound; an upper one of chains that were
            run backwards from samples of the posterior.
        effective_sample_size: :math:`1 / \sum_k \bar w_k^2` of the chains' normalised weights,
            ``[N]``: ``num_chains`` where annealing is exact, 1 where one chain carries everything.
        acceptance: The average probability that a transition was accepted, ``[N]``.
        num_chains: K, for each datum.
        num_temperatures: T, the steps from the start to p(x, z).
        mean: The average of ``log_p``, as that over the population the data come from.
        monte_carlo_error: Of ``mean`` as the average over these very data. NaN for one chain.
    """

    log_p: Tensor
    effective_sample_size: Tensor
    acceptance: Tensor
    num_chains: int
    num_temperatures: int
    mean: Estimate
    monte_carlo_error: float


@dataclass(frozen=True, eq=False, repr=False)
class Bracket(Result):
    r"""log p(x) of data that the model has simulated, from below and from above.

    Attributes:
        x: The data, ``[N, *event_shape]``.
        lower: From chains that run from the start to p(x, z).
        upper: From chains that run back from z, which was drawn together with x.
        width_nats: How far the upper mean lies above the lower one.
    """

    x: Tensor
    lower: AnnealedEstimate
    upper: AnnealedEstimate
    width_nats: Estimate


@judges_from_prior
def annealed_importance_sampling(
    probe: Probe,
    x: Tensor,
    *labels: Tensor,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_steps: int = 10,
    target_acceptance: float = 0.65,
    seed: int = 0,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> AnnealedEstimate:
    r"""Estimate log p(x) by chains that are annealed from a start to p(x, z).

    .. math:: \log \hat p(x) = \log \frac1K \sum_k \prod_{t=1}^T
        \left[\frac{p(x, z_{t-1}^k)}{f_0(z_{t-1}^k)}\right]^{\beta_t - \beta_{t-1}}

    where :math:`z_0 \sim f_0` and :math:`z_t` follows :math:`z_{t-1}` by a transition that leaves
    :math:`f_{\beta_t}` invariant. One temperature would be importance sampling.

    Args:
        probe: The program, with continuous latents: ``vae``, or ``model, guide``. The path starts
            at q(z | x), or, where the guide is None, at the prior.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        labels: ``[N, ...]`` each, where the program takes them.
        num_temperatures: T, at least 2; a sigmoid schedule, dense at both ends.
        num_chains: K, for each datum.
        num_steps: Of the leapfrog integrator, in each transition.
        target_acceptance: What the pilot run adapts each datum's step sizes to.
        seed: Of the chains; the random state outside is not touched.
        max_pairs: How many chains are in memory at once; None: found by measuring the largest
            tensor of the program.
        progress: Show a progress bar on the standard error stream.
        engine: How densities and gradients are computed: "eager", "recorded" (the same bits),
            "compiled", or "auto", which records and compiles where so many of them make up for it.

    Raises:
        ValueError: If a number is out of range, a latent is discrete, the guide gives no density
            to values it has not drawn, or ``importance_sampling`` would refuse the data.

    References:
        Annealed Importance Sampling (Neal, 2001)
        On the Quantitative Analysis of Decoder-Based Generative Models
        (Wu, Burda, Salakhutdinov & Grosse, 2017)
    """
    settings = _Settings(num_temperatures, num_chains, num_steps, target_acceptance, engine)
    args = (x, *labels)
    annealing = _Annealing(probe, args, settings, max_pairs)
    title = f"AIS: {len(x):,} data x {num_chains:,} chains x {num_temperatures:,} temperatures"
    with annealing.running(seed, title if progress else None, num_ways=1):
        runs = [annealing.forward(batch) for batch in batches(args, annealing.num_data)]
    return _estimate(runs, x, settings)


@judges_from_prior
def bidirectional(
    probe: Probe,
    x_like: Tensor,
    *labels: Tensor,
    num_data: int = 100,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_steps: int = 10,
    target_acceptance: float = 0.65,
    seed: int = 0,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> Bracket:
    r"""Bracket log p(x) of the model's own data, by annealing in both directions.

    Data that are simulated, :math:`z \sim p(z), x \sim p(x \mid z)`, come with a sample of their
    exact posterior. Chains that start there and run the path backwards have weights with the mean
    :math:`1 / p(x)`, and so bound log p(x) from above:

    .. math:: -\log \frac1K \sum_k \prod_{t=1}^T
        \left[\frac{p(x, z_t^k)}{f_0(z_t^k)}\right]^{\beta_{t-1} - \beta_t}

    The width says how far off annealing can be, with these settings and this model; on real data,
    where there is no upper bound, as far as the simulated ones are like them. More than 1 nat
    is warned of.

    Args:
        probe: As in ``annealed_importance_sampling``; the model looks at x in no other way than by
            observing it.
        x_like: Data, ``[M, *event_shape]``: only shape, type and device count.
        labels: ``[M, ...]`` each, where the model takes them; repeated in turn.
        num_data: How many to simulate.
        num_temperatures: As in ``annealed_importance_sampling``, and so the others.
        num_chains: For each datum and direction.
        num_steps: Likewise.
        target_acceptance: Likewise.
        seed: Of the data and of the chains.
        max_pairs: Likewise.
        progress: Likewise.
        engine: Likewise.

    Raises:
        ValueError: As ``annealed_importance_sampling``.

    References:
        Sandwiching the Marginal Likelihood Using Bidirectional Monte Carlo
        (Grosse, Ghahramani & Adams, 2015)
    """
    settings = _Settings(num_temperatures, num_chains, num_steps, target_acceptance, engine)
    check_counts(num_data=num_data)
    args, values = _simulated(probe, (x_like, *labels), num_data, seed)
    annealing = _Annealing(probe, args, settings, max_pairs)
    title = (
        f"bracket: {num_data:,} data x {num_chains:,} chains x {num_temperatures:,} temperatures"
    )
    with annealing.running(seed, title if progress else None, num_ways=2):
        ends = annealing.space.positions(values, *args)
        pairs = zip(*(batches(p, annealing.num_data) for p in (args, (ends,))), strict=True)
        both = [annealing.both_ways(batch, end) for batch, (end,) in pairs]
    forward, backward = zip(*both, strict=True)
    lower = _estimate(forward, args[0], settings)
    upper = _estimate([run.inverted() for run in backward], args[0], settings, sign=-1)
    return _bracket(args[0], lower, upper)


def temperatures(num_temperatures: int) -> Tensor:
    r"""Return :math:`0 = \beta_0 < \dots < \beta_T = 1`, ``[T + 1]``, dense at both ends.

    .. math:: \beta_t \propto \sigma(\delta (2 t / T - 1)) - \sigma(-\delta), \qquad \delta = 4
    """
    line = torch.linspace(-_STEEPNESS, _STEEPNESS, num_temperatures + 1, dtype=torch.float64)
    curve = line.sigmoid()
    return (curve - curve[0]) / (curve[-1] - curve[0])


@dataclass(frozen=True)
class _Settings:
    num_temperatures: int
    num_chains: int
    num_steps: int
    target_acceptance: float
    engine: str

    def __post_init__(self) -> None:
        check_counts(num_chains=self.num_chains, num_steps=self.num_steps)
        if self.num_temperatures < 2:
            raise ValueError(
                f"num_temperatures={self.num_temperatures}: annealing needs 2 or more, some "
                "hundreds for a narrow bracket; with 1 it is importance sampling"
            )
        if not 0 < self.target_acceptance < 1:
            raise ValueError(
                f"target_acceptance={self.target_acceptance}: a probability between 0 and 1, such "
                "as 0.65"
            )


def _refuse_chains(num_chains: int, pairs: int) -> None:
    """Refuse chains of a single datum that memory cannot hold; so many pairs make a chunk."""
    needed = _TENSORS * 4 * CHUNK_ELEMENTS * num_chains // pairs
    what = f"{option('num_chains', num_chains)}: moving the chains of a single datum"
    memory.refuse_beyond(needed, what, "give fewer")


@dataclass(frozen=True)
class _Run:
    """Of a batch: the logarithms of weights ``[K, B]``, and average acceptance ``[B]``."""

    log_w: Tensor
    acceptance: Tensor

    def inverted(self) -> _Run:
        """Return the run with inverse weights."""
        return _Run(-self.log_w, self.acceptance)


class _Annealing:
    """Chains that are annealed in either direction, batch by batch."""

    def __init__(
        self,
        probe: Probe,
        args: tuple[Tensor, ...],
        settings: _Settings,
        max_pairs: int | None,
    ) -> None:
        check_counts(max_pairs=max_pairs)
        refuse_sampled(probe.layout, "annealing")
        check_support(probe, *args)
        program, layout = probe.program, probe.layout
        at_guide = not isinstance(program, Prior)
        self.settings, self._program = settings, program
        few = tuple(arg[:2] for arg in args)
        self.space = LatentSpace(program, layout, *few)
        if at_guide:
            self.space.check_guide(*few)
        pairs = max_pairs or pairs_at_once(program, layout, *args)
        _refuse_chains(settings.num_chains, pairs)
        most = max(1, pairs // settings.num_chains)
        num_batches = math.ceil(len(args[0]) / most)
        self.num_data = math.ceil(len(args[0]) / num_batches)
        self._all_data = len(args[0])
        self._betas = temperatures(settings.num_temperatures)
        num_pilot = max(_FEWEST_PILOT, settings.num_temperatures // _PILOT_SHARE)
        self._pilot_betas = temperatures(num_pilot)
        self._num_moves = _WARM_UP + num_pilot + settings.num_temperatures
        self._path = Path(
            self.space, with_guide=at_guide, engine=settings.engine,
            num_calls=num_batches * self._num_moves * (settings.num_steps + 1),
            num_rows=self.num_data * settings.num_chains,
        )  # fmt: skip
        self._bar: Any = None

    @contextmanager
    def running(self, seed: int, title: str | None, *, num_ways: int) -> Iterator[None]:
        """Run without validation: a chain that leaves the support is rejected, not an error."""
        num_moves = self._num_moves + (num_ways - 1) * self.settings.num_temperatures
        total = self._all_data * num_moves
        self._bar = tqdm(total=total, desc=title, unit_scale=True, disable=title is None)
        with self._bar, self._program.evaluating(seed=seed), pyro.validation_enabled(False):
            yield

    def forward(self, batch: tuple[Tensor, ...]) -> _Run:
        """Run from the start to p(x, z)."""
        rows = self._rows(batch)
        return self._forward(rows, self._pilot(rows))

    def both_ways(self, batch: tuple[Tensor, ...], end: Tensor) -> tuple[_Run, _Run]:
        """Run from the start to p(x, z), and back from samples of the posterior, ``[B, D]``."""
        rows, (end,) = self._rows(batch), self._rows((end,))
        step_sizes = self._pilot(rows)
        return self._forward(rows, step_sizes), self._backward(rows, step_sizes, end)

    def _rows(self, batch: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        return tuple(arg.repeat_interleave(self.settings.num_chains, 0) for arg in batch)

    def _forward(self, rows: tuple[Tensor, ...], step_sizes: Tensor) -> _Run:
        position = self.space.draw(*rows)
        log_w: Any = 0.0
        total: Any = 0.0
        for t in range(1, self.settings.num_temperatures + 1):
            density = self._path.density(self._betas[t], rows)
            point = density(position)
            log_w = log_w + (self._betas[t] - self._betas[t - 1]).item() * double(point.log_ratio)
            point, acceptance = self._moved(density, point, step_sizes[t])
            position, total = point.position, total + acceptance
        return self._run(log_w, total)

    def _backward(self, rows: tuple[Tensor, ...], step_sizes: Tensor, position: Tensor) -> _Run:
        log_w: Any = 0.0
        total: Any = 0.0
        for t in range(self.settings.num_temperatures, 0, -1):
            density = self._path.density(self._betas[t], rows)
            point, acceptance = self._moved(density, density(position), step_sizes[t])
            log_w = log_w + (self._betas[t] - self._betas[t - 1]).item() * double(point.log_ratio)
            position, total = point.position, total + acceptance
        return self._run(log_w, total)

    def _pilot(self, rows: tuple[Tensor, ...]) -> Tensor:
        """Return the step sizes at every temperature, ``[T + 1, R]``.

        Chains of their own adapt along a coarser path; the geometric mean over those of a datum
        is kept.
        """
        position = self.space.draw(*rows)
        step_size, kept = first_step_sizes(position), []
        for number, beta in enumerate([*[self._pilot_betas[0]] * _WARM_UP, *self._pilot_betas[1:]]):
            density = self._path.density(beta, rows)
            point, acceptance = self._moved(density, density(position), step_size)
            target = self.settings.target_acceptance
            step_size = adapted(step_size, acceptance, target=target, rate=_PILOT_RATE)
            position = point.position
            if number >= _WARM_UP - 1:
                kept.append(step_size.log().unflatten(0, (-1, self.settings.num_chains)).mean(1))
        log_sizes = _resampled(torch.stack(kept), len(self._betas))
        return log_sizes.exp().repeat_interleave(self.settings.num_chains, 1)

    def _moved(self, density: Density, point: Point, step_size: Tensor) -> tuple[Point, Tensor]:
        moved = transition(density, point, step_size, num_steps=self.settings.num_steps)
        self._bar.update(len(step_size) // self.settings.num_chains)
        return moved

    def _run(self, log_w: Any, total: Any) -> _Run:
        by_chain = (-1, self.settings.num_chains)
        acceptance = total.unflatten(0, by_chain).mean(1) / self.settings.num_temperatures
        return _Run(log_w.unflatten(0, by_chain).T, acceptance)


def _simulated(
    probe: Probe, args: tuple[Tensor, ...], num_data: int, seed: int
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Draw data (beside labels that are repeated in turn), and the latents that they came from."""
    # The order of latents is the model's here, as with its prior for a guide.
    program = Prior(probe.program.model)
    layout = Probe(program, *args).layout
    rows = cycled(args, num_data)
    with program.evaluating(seed=seed):
        trace = substituted(program.model, {}, layout, rows, stochastic=True)
    x = dreamt(
        trace, layout, rows, what="the bracket is that of data which the model has drawn",
        mend="estimate without it (annealed_importance_sampling)",
    )  # fmt: skip
    return x, {name: trace.nodes[name]["value"] for name in layout.latents}


def _resampled(values: Tensor, num: int) -> Tensor:
    """Interpolate between rows, so that there are ``num`` of them."""
    place = torch.linspace(0, len(values) - 1, num, dtype=values.dtype, device=values.device)
    below = place.floor().clamp(max=len(values) - 2)
    weight = (place - below).unsqueeze(-1)
    return torch.lerp(values[below.long()], values[below.long() + 1], weight)


def _estimate(
    runs: Sequence[_Run], x: Tensor, settings: _Settings, *, sign: int = 1
) -> AnnealedEstimate:
    log_w = torch.cat([run.log_w for run in runs], 1)
    of_weights = importance_estimate(log_w.logsumexp(0), (2 * log_w).logsumexp(0), len(log_w), x)
    return AnnealedEstimate(
        log_p=sign * of_weights.log_p,
        effective_sample_size=of_weights.effective_sample_size,
        acceptance=torch.cat([run.acceptance for run in runs]),
        num_chains=settings.num_chains,
        num_temperatures=settings.num_temperatures,
        mean=of_weights.mean.times(sign, NATS),
        monte_carlo_error=of_weights.monte_carlo_error,
    )


def _bracket(x: Tensor, lower: AnnealedEstimate, upper: AnnealedEstimate) -> Bracket:
    width = Estimate.of(double(upper.log_p - lower.log_p))
    if width > _WIDE:
        warn(
            f"the bracket of log p(x) is {width:.2f} nats wide: annealing is that far off; "
            f"more temperatures than {lower.num_temperatures} narrow it"
        )
    return Bracket(x, lower, upper, width)
