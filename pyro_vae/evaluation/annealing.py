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
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae import memory
from pyro_vae.arithmetic import suited_arithmetic
from pyro_vae.budget import Budget
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
from pyro_vae.evaluation.latent_space import LatentSpace, Path
from pyro_vae.evaluation.likelihood import importance_estimate
from pyro_vae.evaluation.programs import Prior, takes_program_or_prior
from pyro_vae.evaluation.substitution import substituted
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.sites import dreamt
from pyro_vae.inference.support import check_support
from pyro_vae.wording import option, warn

__all__ = [
    "AnnealedEstimate",
    "Bracket",
    "annealed_importance_sampling",
    "annealed_with_bracket",
    "bidirectional",
    "temperatures",
]

_STEEPNESS = 4.0
_WARM_UP = 10
# As large as the largest of a run, that a move holds at once: its gradients, and the two points.
_TENSORS = 4
_PILOT_SHARE, _FEWEST_PILOT, _PILOT_RATE, _PILOT_CHAINS = 5, 30, 0.5, 4
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


@takes_program_or_prior
def annealed_importance_sampling(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
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
        fields: What else the program takes, ``[N, ...]`` each.
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
    args = (x, *fields)
    annealing = _Annealing(probe, args, settings, max_pairs)
    chains = _Chains.forward(args, annealing.space.num_dims)
    return _estimate(annealing.run(chains, seed, progress=progress), x, settings)


@takes_program_or_prior
def bidirectional(
    probe: Probe,
    x_like: Tensor,
    *fields: Tensor,
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
        fields: What else the model takes, ``[M, ...]`` each; repeated in turn.
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
    args, values = _simulated(probe, (x_like, *fields), num_data, seed)
    annealing = _Annealing(probe, args, settings, max_pairs)
    chains = _Chains.forward(args, annealing.space.num_dims)
    chains = chains.and_backward(args, annealing.ends(values, args, seed))
    return _bracket(annealing.run(chains, seed, progress=progress), args[0], settings)


@takes_program_or_prior
def annealed_with_bracket(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_data: int = 5,
    num_temperatures: int = 1000,
    num_chains: int = 16,
    num_steps: int = 10,
    target_acceptance: float = 0.65,
    seed: int = 0,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> tuple[AnnealedEstimate, Bracket]:
    """Return both of the above; all chains move in one batch, which is faster than one by one.

    Args:
        probe: As in ``annealed_importance_sampling``, and so the others.
        x: Likewise.
        fields: Likewise.
        num_data: How many to simulate for the bracket.
        num_temperatures: Likewise.
        num_chains: Likewise.
        num_steps: Likewise.
        target_acceptance: Likewise.
        seed: Likewise.
        max_pairs: Likewise.
        progress: Likewise.
        engine: Likewise.

    Raises:
        ValueError: As ``annealed_importance_sampling``.
    """
    settings = _Settings(num_temperatures, num_chains, num_steps, target_acceptance, engine)
    given = (x, *fields)
    args, values = _simulated(probe, given, num_data, seed)
    annealing = _Annealing(probe, given, settings, max_pairs)
    chains = _Chains.forward(
        tuple(torch.cat([a, b.to(a)]) for a, b in zip(given, args, strict=True)),
        annealing.space.num_dims,
    )
    chains = chains.and_backward(args, annealing.ends(values, args, seed))
    run = annealing.run(chains, seed, progress=progress)
    return _estimate(run[: len(x)], x, settings), _bracket(run[len(x) :], args[0], settings)


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
class _Chains:
    """Chains of N data and where they go.

    Attributes:
        args: The data (and what else the program takes), ``[N, ...]`` each.
        backward: Whether a datum's chains run from p(x, z) to the start, ``[N]``.
        ends: Where these begin, ``[N, D]``.
    """

    args: tuple[Tensor, ...]
    backward: Tensor
    ends: Tensor

    @classmethod
    def forward(cls, args: tuple[Tensor, ...], num_dims: int) -> _Chains:
        """Let chains of all data run from the start to p(x, z)."""
        x = args[0]
        backward = torch.zeros(len(x), dtype=torch.bool, device=x.device)
        return cls(args, backward, torch.zeros(len(x), num_dims, device=x.device))

    def and_backward(self, args: tuple[Tensor, ...], ends: Tensor) -> _Chains:
        """Let chains of further data run from ``ends`` to the start."""
        more = torch.ones_like(ends[:, 0], dtype=torch.bool)
        return _Chains(
            tuple(torch.cat([a, b.to(a)]) for a, b in zip(self.args, args, strict=True)),
            torch.cat([self.backward, more]), torch.cat([self.ends.to(ends), ends]),
        )  # fmt: skip

    def batches(self, num_data: int) -> Iterator[_Chains]:
        """Yield so many data at a time."""
        for args, (backward, ends) in zip(
            batches(self.args, num_data), batches((self.backward, self.ends), num_data), strict=True
        ):
            yield _Chains(args, backward, ends)

    def repeated(self, times: int) -> _Chains:
        """Give every datum several chains, one row each."""
        repeat = partial(torch.repeat_interleave, repeats=times, dim=0)
        return _Chains(tuple(map(repeat, self.args)), repeat(self.backward), repeat(self.ends))


@dataclass(frozen=True)
class _Run:
    """The logarithms of the chains' weights ``[K, N]``, and average acceptance ``[N]``."""

    log_w: Tensor
    acceptance: Tensor

    def __getitem__(self, data: slice) -> _Run:
        return _Run(self.log_w[:, data], self.acceptance[data])


class _Annealing:
    """Moves the chains of all data along a path, batch by batch."""

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
        self._at_guide = not isinstance(program, Prior)
        self._settings, self._program = settings, program
        few = tuple(arg[:2] for arg in args)
        self.space = LatentSpace(program, layout, *few)
        if self._at_guide:
            self.space.check_guide(*few)
        pairs = max_pairs or pairs_at_once(program, layout, *args)
        _refuse_chains(settings.num_chains, pairs)
        self._most_data = max(1, pairs // settings.num_chains)
        num_pilot = max(_FEWEST_PILOT, settings.num_temperatures // _PILOT_SHARE)
        device = args[0].device
        precise = torch.float32 if device.type == "mps" else torch.float64
        self._betas, self._pilot_betas = (
            temperatures(number).to(device=device, dtype=precise)
            for number in (settings.num_temperatures, num_pilot)
        )
        self._product = self._largest_product(few)
        self._num_moves = _WARM_UP + num_pilot + settings.num_temperatures

    def _largest_product(self, few: tuple[Tensor, ...]) -> int:
        """Return the multiplications of a density's largest product, for a single chain."""
        with self._program.evaluating(seed=0), Budget() as counted:
            position = self.space.draw(*few)
            self.space.log_densities(position, *few, with_guide=self._at_guide)
        return counted.largest_product // len(few[0])

    def ends(self, values: dict[str, Tensor], args: tuple[Tensor, ...], seed: int) -> Tensor:
        """Return where latents that were drawn with the data stand, ``[N, D]``."""
        with self._program.evaluating(seed=seed), pyro.validation_enabled(False):
            return self.space.positions(values, *args)

    def run(self, chains: _Chains, seed: int, *, progress: bool) -> _Run:
        """Return the weights of chains that have gone all their way."""
        num_data = len(chains.backward)
        num_batches = math.ceil(num_data / self._most_data)
        at_once, settings = math.ceil(num_data / num_batches), self._settings
        self._path = Path(
            self.space, with_guide=self._at_guide, engine=settings.engine,
            num_calls=num_batches * self._num_moves * settings.num_steps,
            num_rows=at_once * settings.num_chains,
        )  # fmt: skip
        title = (
            f"AIS: {num_data:,} data x {settings.num_chains:,} chains x "
            f"{settings.num_temperatures:,} temperatures"
        )
        total = num_data * self._num_moves
        bar = tqdm(total=total, desc=title, unit_scale=True, disable=not progress)
        # Without validation: a chain that leaves the support is rejected, not an error.
        on_cpu = chains.backward.device.type == "cpu"
        suited = suited_arithmetic(self._product * at_once * settings.num_chains, "float32")
        with (
            bar, suited if on_cpu else nullcontext(),
            self._program.evaluating(seed=seed), pyro.validation_enabled(False),
        ):  # fmt: skip
            runs = [self._annealed(batch, bar) for batch in chains.batches(at_once)]
        return _Run(
            torch.cat([run.log_w for run in runs], 1), torch.cat([run.acceptance for run in runs])
        )

    def _annealed(self, data: _Chains, bar: Any) -> _Run:
        r"""Move the chains of some data.

        Between transitions, beta changes by :math:`\Delta`; each change adds
        :math:`\Delta (\log f_1 - \log f_0)` to the weights' logarithms. Forward, the first change
        comes before the first transition; backward, the last one comes after the last.
        """
        sizes = self._pilot(data, bar).repeat_interleave(self._settings.num_chains, 1)
        chains = data.repeated(self._settings.num_chains)
        backward, last = chains.backward, self._settings.num_temperatures
        position = self.space.draw(*chains.args)
        position = torch.where(backward.unsqueeze(-1), chains.ends.to(position), position)
        density = self._path.density(backward.to(position), chains.args)
        point = density(position)
        steps = self._betas.diff()
        log_w, total = torch.zeros_like(sizes[0], dtype=steps.dtype), torch.zeros_like(sizes[0])
        for t in range(1, last + 1):
            point, log_w = _changed(point, log_w, torch.where(backward, 0, steps[t - 1]))
            at = torch.where(backward, self._betas[last + 1 - t], self._betas[t])
            size = torch.where(backward, sizes[last + 1 - t], sizes[t])
            point, acceptance = self._moved(self._path.density(at, chains.args), point, size)
            point, log_w = _changed(point, log_w, torch.where(backward, -steps[last - t], 0))
            total = total + acceptance
            bar.update(len(data.backward))
        by_chain = (-1, self._settings.num_chains)
        acceptance = total.unflatten(0, by_chain).mean(1) / last
        return _Run(log_w.unflatten(0, by_chain).T, acceptance)

    def _pilot(self, data: _Chains, bar: Any) -> Tensor:
        """Return the step sizes of data at every temperature, ``[T + 1, N]``.

        A few chains of their own adapt along a coarser path; the geometric mean over those of a
        datum is kept.
        """
        num_chains = min(_PILOT_CHAINS, self._settings.num_chains)
        chains = data.repeated(num_chains)
        position = self.space.draw(*chains.args)
        step_size, kept = first_step_sizes(position), []
        point = self._path.density(torch.zeros_like(step_size), chains.args)(position)
        before = self._pilot_betas[0]
        for number, beta in enumerate([*[before] * _WARM_UP, *self._pilot_betas[1:]]):
            density = self._path.density(beta.expand(len(position)), chains.args)
            point = point.further((beta - before).expand(len(position)).to(position))
            point, acceptance = self._moved(density, point, step_size)
            before = beta
            target = self._settings.target_acceptance
            step_size = adapted(step_size, acceptance, target=target, rate=_PILOT_RATE)
            if number >= _WARM_UP - 1:
                kept.append(step_size.log().unflatten(0, (-1, num_chains)).mean(1))
            bar.update(len(data.backward))
        return _resampled(torch.stack(kept), len(self._betas)).exp()

    def _moved(self, density: Density, point: Point, step_size: Tensor) -> tuple[Point, Tensor]:
        return transition(density, point, step_size, num_steps=self._settings.num_steps)


def _changed(point: Point, log_w: Tensor, change: Tensor) -> tuple[Point, Tensor]:
    log_ratio = point.log_ratio
    return point.further(change.to(log_ratio)), log_w + change * log_ratio.to(log_w)


def _simulated(
    probe: Probe, args: tuple[Tensor, ...], num_data: int, seed: int
) -> tuple[tuple[Tensor, ...], dict[str, Tensor]]:
    """Draw data (beside fields that are repeated in turn), and the latents that they came from."""
    check_counts(num_data=num_data)
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


def _estimate(run: _Run, x: Tensor, settings: _Settings, *, sign: int = 1) -> AnnealedEstimate:
    log_w = run.log_w
    of_weights = importance_estimate(log_w.logsumexp(0), (2 * log_w).logsumexp(0), len(log_w), x)
    return AnnealedEstimate(
        log_p=sign * of_weights.log_p,
        effective_sample_size=of_weights.effective_sample_size,
        acceptance=run.acceptance,
        num_chains=settings.num_chains,
        num_temperatures=settings.num_temperatures,
        mean=of_weights.mean.times(sign, NATS),
        monte_carlo_error=of_weights.monte_carlo_error,
    )


def _bracket(run: _Run, x: Tensor, settings: _Settings) -> Bracket:
    """Return the bracket of chains that ran forward, and then as many backward."""
    lower = _estimate(run[: len(x)], x, settings)
    upper = _estimate(run[len(x) :], x, settings, sign=-1)
    width = Estimate.of(double(upper.log_p - lower.log_p))
    if width > _WIDE:
        warn(
            f"the bracket of log p(x) is {width:.2f} nats wide: annealing is that far off; "
            f"more temperatures than {lower.num_temperatures} narrow it"
        )
    return Bracket(x, lower, upper, width)
