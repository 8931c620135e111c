"""The ELBO and its parts, and log p(x) by importance sampling.

Every number is in nats per datum, of normalised densities, never scaled. Nothing is changed by
looking: parameters, buffers, modes and random states are the same afterwards.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from pyro_vae.evaluation.batching import (
    batches,
    check_counts,
    double,
    pairs_at_once,
    refuse_sampled,
)
from pyro_vae.evaluation.estimates import BITS, Estimate, Result
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.support import check_support
from pyro_vae.inference.terms import SiteTerms, site_terms
from pyro_vae.recording.replaying import Replayed

__all__ = [
    "Bound",
    "ImportanceEstimate",
    "elbo",
    "elbo_of_each",
    "importance_estimate",
    "importance_sampling",
    "log_likelihood",
]


@dataclass(frozen=True, eq=False, repr=False)
class ImportanceEstimate(Result):
    r"""Importance-sampled log p(x).

    Attributes:
        log_p: In nats, ``[N]``.
        effective_sample_size: :math:`1 / \sum_s \bar w_s^2` of the normalised weights, ``[N]``;
            ``num_samples`` where q is the exact posterior, 1 where one sample carries everything.
        num_samples: S, for each datum.
        num_dims: How many numbers one datum has.
        mean: The average of ``log_p``. Each datum has samples of its own, so that its standard
            error, as the average over the population the data come from, holds the Monte-Carlo
            error too.
        monte_carlo_error: Of ``mean`` as the average over these very data: the part from the
            finite number of samples alone, by the delta method
            :math:`\mathrm{Var}(\log \hat p) \approx \mathrm{Var}(w) / (S\, \mathrm{E}(w)^2)`.
            NaN for one sample. Too small where the effective sample size is.
    """

    log_p: Tensor
    effective_sample_size: Tensor
    num_samples: int
    num_dims: int
    mean: Estimate
    monte_carlo_error: float

    @property
    def bits_per_dim(self) -> Estimate:
        """Return -mean in bits per number of a datum; for data that are counted, as pixels are."""
        return self.mean.times(-1 / (self.num_dims * math.log(2)), BITS)


@dataclass(frozen=True, repr=False)
class Bound(Result):
    """The evidence lower bound and its parts, averages over the data in nats per datum.

    Their standard errors hold the Monte-Carlo error, too.

    Attributes:
        elbo_nats: The bound, ``-(rate_nats + distortion_nats)``.
        rate_nats: The KL of q(z | x) from p(z), over all latent sites.
        distortion_nats: Of the observed sites, the average of -log p(x | z).
        kl_nats: The part of the rate of each latent site.
        site_distortion_nats: The part of the distortion of each observed site.
        num_data: N.
        num_dims: How many numbers one datum has.
    """

    elbo_nats: Estimate
    rate_nats: Estimate
    distortion_nats: Estimate
    kl_nats: dict[str, Estimate]
    site_distortion_nats: dict[str, Estimate]
    num_data: int
    num_dims: int

    @property
    def bits_per_dim(self) -> Estimate:
        """Return -ELBO in bits per number of a datum; for data that are counted, as pixels are."""
        return self.elbo_nats.times(-1 / (self.num_dims * math.log(2)), BITS)


@takes_program
def log_likelihood(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_samples: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
) -> Tensor:
    """Return importance-sampled log p(x) in nats per datum, ``[N]``.

    The values of ``importance_sampling``, which has the arguments, the errors and the formula.
    """
    options = {"seed": seed, "batch_size": batch_size, "progress": progress}
    return importance_sampling(probe, x, *fields, num_samples=num_samples, **options).log_p


@takes_program
def importance_sampling(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_samples: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> ImportanceEstimate:
    r"""Estimate log p(x) with the guide as proposal, in bounded memory.

    .. math:: \log \hat p(x) = \log \frac1S \sum_{s=1}^S \frac{p(x, z_s)}{q(z_s \mid x)},
        \qquad z_s \sim q(z \mid x)

    In expectation a lower bound, whose gap falls as 1/S. Samples are drawn chunk by chunk and
    reduced as they come, in float64. The same seed gives the same numbers for the same
    ``batch_size`` and ``max_pairs``.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        num_samples: S, the number of samples of the latents for each datum.
        seed: Of the samples; the random state outside is not touched.
        batch_size: How many data at once; None: as many as ``max_pairs`` has room for.
        max_pairs: How many pairs of a datum and a sample are in memory at once; None: found by
            measuring the largest tensor of the program.
        progress: Show a progress bar on the standard error stream.
        engine: How the program is run: "eager", "recorded" (the same bits), "compiled", or "auto",
            which records and compiles where so many samples make up for it.

    Raises:
        ValueError: If a count is less than 1, ``x`` is empty or outside the support of the
            likelihood, the program breaks the convention, a plate inside a datum takes some of
            its elements at random, or the program gives NaN.

    References:
        Importance Weighted Autoencoders (Burda, Grosse & Salakhutdinov, 2016)
    """
    args = (x, *fields)
    check_counts(num_samples=num_samples, batch_size=batch_size, max_pairs=max_pairs)
    refuse_sampled(probe.layout, "the importance-sampled log p(x)")
    check_support(probe, *args)
    program, layout = probe.program, probe.layout
    pairs = max_pairs or pairs_at_once(program, layout, *args)
    rows, particles = _chunk_shape(layout, len(x), num_samples, batch_size, pairs)
    weigh = _Weigh(program, layout, engine, len(x) * num_samples // (rows * particles), rows)
    title = f"log p(x): {len(x):,} data x {num_samples:,} samples"
    bar = tqdm(total=len(x) * num_samples, desc=title, unit_scale=True, disable=not progress)
    # Written in place: small results kept among the large tensors of the chunks would pin the heap.
    log_sums = double(torch.empty(2, len(x), device=x.device))
    with bar, program.evaluating(seed=seed):
        for index, batch in enumerate(batches(args, rows)):
            weights = _log_weights(weigh, batch, num_samples, particles, bar)
            log_sums[:, index * rows : (index + 1) * rows] = _log_sums(weights)
    return importance_estimate(log_sums[0], log_sums[1], num_samples, x)


@takes_program
def elbo(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_particles: int = 1,
    seed: int = 0,
    batch_size: int = 1000,
) -> Bound:
    r"""Return the bound and its parts, averaged over the data.

    .. math:: \mathrm{E}_q[\log p(x \mid z)] - \mathrm{KL}(q(z \mid x) \| p(z))

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        num_particles: The number of samples of the latents for each datum.
        seed: Of the samples; the random state outside is not touched.
        batch_size: How many data at once.

    Raises:
        ValueError: As in ``importance_sampling``.

    References:
        Auto-Encoding Variational Bayes (Kingma & Welling, 2014)
        Fixing a Broken ELBO (Alemi et al., 2018), for rate and distortion
    """
    parts = _parts(probe, (x, *fields), num_particles, seed, batch_size)
    return _bound(parts, probe.layout, x)


@takes_program
def elbo_of_each(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_particles: int = 1,
    seed: int = 0,
    batch_size: int = 1000,
) -> Tensor:
    """Return the bound of each datum in nats, ``[N]``; see ``elbo``."""
    parts = _parts(probe, (x, *fields), num_particles, seed, batch_size)
    return -_loss(parts, probe.layout)[0]


def _parts(
    probe: Probe, args: tuple[Tensor, ...], num_particles: int, seed: int, batch_size: int
) -> dict[str, Tensor]:
    """Return rate and distortion of each datum by site, ``[N]``."""
    check_counts(num_particles=num_particles, batch_size=batch_size)
    check_support(probe, *args)
    program, layout = probe.program, probe.layout
    pairs = pairs_at_once(program, layout, *args)
    rows, particles = _chunk_shape(layout, len(args[0]), num_particles, batch_size, pairs)
    parts: dict[str, list[Tensor]] = {}
    with program.evaluating(seed=seed):
        for batch in batches(args, rows):
            for name, mean in _mean_parts(program, layout, batch, num_particles, particles).items():
                parts.setdefault(name, []).append(mean)
    return {name: torch.cat(means) for name, means in parts.items()}


def _chunk_shape(
    layout: Layout, num_data: int, num_samples: int, batch_size: int | None, pairs: int
) -> tuple[int, int]:
    """Return how many data and how many samples of each make a chunk.

    All samples of a datum come first, so that the guide's networks run once for each datum;
    a program that takes one sample at a time wants many data instead.
    """
    if batch_size is None:
        batch_size = max(1, pairs // num_samples) if layout.vectorizes else pairs
    rows = min(batch_size, num_data)
    particles = max(1, min(num_samples, pairs // rows)) if layout.vectorizes else 1
    return rows, particles


def _tables(
    program: Program, layout: Layout, batch: tuple[Tensor, ...], num_samples: int, particles: int
) -> Iterator[SiteTerms]:
    for done in range(0, num_samples, particles):
        count = min(particles, num_samples - done)
        yield site_terms(program, layout, *batch, num_particles=count)


class _Weigh:
    """Draws samples of the latents and gives their log-weights, ``[S, B]``, in float64."""

    def __init__(
        self, program: Program, layout: Layout, engine: str, num_calls: int, num_rows: int
    ) -> None:
        self._program, self._layout = program, layout
        self._settings: dict[str, Any] = {
            "engine": engine,
            "num_calls": num_calls,
            "rare": lambda *batch: len(batch[0]) < num_rows,
        }
        self._replayed: dict[int, Replayed] = {}
        self._num_done = 0

    def __call__(self, batch: tuple[Tensor, ...], num_particles: int) -> Tensor:
        run = partial(self._run, num_particles)
        if num_particles not in self._replayed:
            self._replayed[num_particles] = Replayed(self._program, run, **self._settings)
        (log_w,) = self._replayed[num_particles](self._num_done, None, *batch) or run(*batch)
        self._num_done += 1
        assert log_w is not None
        return log_w

    def _run(self, num_particles: int, *batch: Tensor) -> tuple[Tensor]:
        terms = site_terms(self._program, self._layout, *batch, num_particles=num_particles)
        return (double(terms.log_w),)


def _log_weights(
    weigh: _Weigh, batch: tuple[Tensor, ...], num_samples: int, particles: int, bar: Any
) -> Iterator[Tensor]:
    for done in range(0, num_samples, particles):
        log_w = weigh(batch, min(particles, num_samples - done))
        bar.update(log_w.numel())
        yield log_w


def _log_sums(chunks: Iterator[Tensor]) -> Tensor:
    """Return log sum w and log sum w^2 of each datum, ``[2, B]``, from chunks of log w."""
    sums = torch.tensor(-math.inf)
    for log_w in chunks:
        powers = torch.stack([log_w, 2 * log_w])
        sums = torch.logaddexp(sums.to(powers), powers.logsumexp(1))
    return sums


def importance_estimate(
    log_sum: Tensor, log_squares: Tensor, num_samples: int, x: Tensor
) -> ImportanceEstimate:
    """Return the estimate of the data ``x`` from log sum w and log sum w^2 of each, ``[N]``."""
    log_p = log_sum - math.log(num_samples)
    _refuse_nan(log_p)
    size = torch.where(log_sum.isinf(), 0.0, (2 * log_sum - log_squares).exp())
    dtype = x.dtype if x.dtype.is_floating_point else torch.get_default_dtype()
    return ImportanceEstimate(
        log_p=log_p.to(x.device, dtype),
        effective_sample_size=size.to(x.device, dtype),
        num_samples=num_samples,
        num_dims=x[0].numel(),
        mean=Estimate.of(log_p),
        monte_carlo_error=_monte_carlo_error(size, num_samples),
    )


def _monte_carlo_error(effective_sample_size: Tensor, num_samples: int) -> float:
    if num_samples == 1:
        return math.nan
    # Var(w) / (S E(w)^2), with the unbiased variance, in terms of the effective sample size.
    relative = (num_samples / effective_sample_size - 1).clamp(min=0) / (num_samples - 1)
    return relative.sum().sqrt().item() / len(relative)


def _mean_parts(
    program: Program, layout: Layout, batch: tuple[Tensor, ...], num_samples: int, particles: int
) -> dict[str, Tensor]:
    """Average over the samples: the KL of each latent site, -log p of each observed one.

    The distortion of all observed sites together is under the name "".
    """
    sums: dict[str, Tensor] = {}
    for table in _tables(program, layout, batch, num_samples, particles):
        parts = {"": table.distortion}
        for name, log_q in table.log_q.items():
            parts[name] = log_q - table.log_p[name] if name in table.log_p else log_q
        parts |= {name: -table.log_p[name] for name in layout.observed}
        for name, part in parts.items():
            sums[name] = sums.get(name, torch.zeros(())) + double(part).sum(0)
    return {name: total / num_samples for name, total in sums.items()}


def _bound(parts: dict[str, Tensor], layout: Layout, x: Tensor) -> Bound:
    loss, rate = _loss(parts, layout)
    return Bound(
        elbo_nats=Estimate.of(-loss),
        rate_nats=Estimate.of(rate),
        distortion_nats=Estimate.of(parts[""]),
        kl_nats={name: Estimate.of(parts[name]) for name in _of_latents(parts, layout)},
        site_distortion_nats={name: Estimate.of(parts[name]) for name in layout.observed},
        num_data=len(x),
        num_dims=x[0].numel(),
    )


def _loss(parts: dict[str, Tensor], layout: Layout) -> tuple[Tensor, Tensor]:
    """Return -ELBO and the rate of each datum, ``[N]``."""
    rates = [parts[name] for name in _of_latents(parts, layout)]
    rate = torch.stack([torch.zeros_like(parts[""]), *rates]).sum(0)
    loss = rate + parts[""]
    _refuse_nan(loss)
    return loss, rate


def _of_latents(parts: dict[str, Tensor], layout: Layout) -> list[str]:
    return [name for name in parts if name and name not in layout.observed]


def _refuse_nan(per_datum: Tensor) -> None:
    if bool(per_datum.isnan().any()):
        bad = per_datum.isnan().nonzero()
        raise ValueError(
            f"the program gives NaN for {len(bad)} of {len(per_datum)} data, first at row "
            f"{bad[0].item()}: its parameters have diverged, or its densities are undefined there"
        )
