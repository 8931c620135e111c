"""Refine the posterior of each datum: gradient steps in the guide's family, or HMC.

The model stays as it is, and so do the encoder's weights. Both ways start at what the encoder says:
semi-amortised inference, at evaluation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import pyro
import torch
from torch import Tensor, nn
from tqdm import tqdm

from pyro_vae.evaluation.batching import (
    batches,
    check_counts,
    double,
    pairs_at_once,
    refuse_sampled,
)
from pyro_vae.evaluation.estimates import Result
from pyro_vae.evaluation.offsets import Offsets, free_offsets
from pyro_vae.evaluation.paths import Path
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.inference.hmc import Density, adapted, first_step_sizes, transition
from pyro_vae.inference.latent_space import LatentSpace
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout
from pyro_vae.inference.support import check_support
from pyro_vae.inference.terms import SiteTerms, site_terms
from pyro_vae.recording.replaying import Replayed

__all__ = ["PosteriorSamples", "Refinement", "refine", "sample_posterior"]

_ADAPTATION_RATE = 0.2


@dataclass(frozen=True, eq=False, repr=False)
class Refinement(Result):
    r"""The bound of each datum, by the encoder and by the best q of its family.

    Attributes:
        elbo: Of the encoder's q, in nats, ``[N]``.
        refined_elbo: Of the refined one, ``[N]``; both under the same noise.
        values: Draws from the refined q by site, ``[S, N, *event_shape]``.
        num_samples: For each datum, behind both bounds.
    """

    elbo: Tensor
    refined_elbo: Tensor
    values: dict[str, Tensor]
    num_samples: int


@dataclass(frozen=True, eq=False, repr=False)
class PosteriorSamples(Result):
    """Samples of p(z | x) by HMC.

    Attributes:
        values: By site, ``[K, N, *event_shape]``: one of each chain.
        acceptance: The average probability that a transition was accepted, ``[N]``.
    """

    values: dict[str, Tensor]
    acceptance: Tensor


@takes_program
def refine(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_updates: int = 300,
    num_particles: int = 8,
    learning_rate: float = 0.03,
    num_samples: int = 1000,
    seed: int = 0,
    batch_size: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> Refinement:
    r"""Maximise each datum's own ELBO over the numbers that the encoder hands to the guide.

    .. math:: \max_\delta \; \mathrm{E}_{q_\delta}[\log p(x, z) - \log q_\delta(z \mid x)]

    by Adam, from :math:`\delta = 0`, with a learning rate that falls to zero; KLs are in closed
    form where there is one. What is moved: see ``Offsets``.

    Args:
        probe: The program: ``vae``, or ``model, guide``; its latents are reparameterised.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        num_updates: Of every datum's numbers.
        num_particles: For each datum and update.
        learning_rate: At the first update.
        num_samples: For each datum, of the bounds that are returned.
        seed: Of the samples; the random state outside is not touched.
        batch_size: How many data at once; None: as many as memory has room for.
        progress: Show a progress bar on the standard error stream.
        engine: How an update's gradient is computed: "eager", "recorded", "compiled", or "auto".

    Raises:
        ValueError: If a number is out of range, a latent's samples carry no gradients, or its
            distribution cannot be taken apart.

    References:
        Semi-Amortized Variational Autoencoders (Kim, Wiseman, Miller, Sontag & Rush, 2018)
        Inference Suboptimality in Variational Autoencoders (Cremer, Li & Duvenaud, 2018)
    """
    check_counts(
        num_updates=num_updates, num_particles=num_particles, num_samples=num_samples,
        batch_size=batch_size,
    )  # fmt: skip
    if not 0 < learning_rate < math.inf:
        raise ValueError(f"learning_rate={learning_rate}: it is positive and finite")
    args, program, layout = _start(probe, x, fields)
    rows = batch_size or max(1, pairs_at_once(program, layout, *args) // num_particles)
    num_calls = math.ceil(len(x) / rows) * num_updates
    refiner = _Refiner(program, layout, num_particles, engine, num_calls, rows)
    title = f"best q: {len(x):,} data x {num_updates:,} updates"
    bar = tqdm(total=len(x) * num_updates, desc=title, unit_scale=True, disable=not progress)
    with bar, program.evaluating(seed=seed), pyro.validation_enabled(False):
        found = []
        for batch in batches(args, rows):
            families, offsets = free_offsets(program, layout, *batch)
            unmoved = [zeros.clone() for zeros in offsets]
            gradient = refiner.gradient(families, offsets, batch)
            for _ in _climbed(offsets, gradient, num_updates, learning_rate):
                bar.update(len(batch[0]))
            found.append(
                [
                    refiner.bound(families, chosen, batch, num_samples, seed)
                    for chosen in (unmoved, offsets)
                ]
            )
    starts, ends = zip(*found, strict=True)
    return Refinement(
        elbo=torch.cat([bound for bound, _ in starts]),
        refined_elbo=torch.cat([bound for bound, _ in ends]),
        values=_joined([values for _, values in ends]),
        num_samples=num_samples,
    )


@takes_program
def sample_posterior(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    num_chains: int = 8,
    num_transitions: int = 100,
    num_steps: int = 10,
    target_acceptance: float = 0.8,
    seed: int = 0,
    max_pairs: int | None = None,
    progress: bool = False,
    engine: str = "auto",
) -> PosteriorSamples:
    r"""Draw from p(z | x) by HMC that starts at draws from the guide, all chains in one batch.

    The first half of the transitions adapts the step sizes; the samples are where the chains end.

    Args:
        probe: The program: ``vae``, or ``model, guide``; its latents are continuous, and
            chains start at the guide.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        num_chains: K, for each datum; each gives one sample.
        num_transitions: Of each chain.
        num_steps: Of the leapfrog integrator, in each transition.
        target_acceptance: What step sizes adapt to.
        seed: Of the chains; the random state outside is not touched.
        max_pairs: How many chains are in memory at once; None: found by measuring.
        progress: Show a progress bar on the standard error stream.
        engine: How densities and gradients are computed: "eager", "recorded", "compiled", "auto".

    Raises:
        ValueError: If a number is out of range, or a latent is discrete.

    References:
        Learning Deep Latent Gaussian Models with Markov Chain Monte Carlo (Hoffman, 2017)
    """
    check_counts(
        num_chains=num_chains, num_transitions=num_transitions, num_steps=num_steps,
        max_pairs=max_pairs,
    )  # fmt: skip
    if not 0 < target_acceptance < 1:
        raise ValueError(f"target_acceptance={target_acceptance}: a probability, such as 0.8")
    args, program, layout = _start(probe, x, fields)
    refuse_sampled(layout, "what the chains stay in")
    space = LatentSpace.of(program, layout, *(arg[:2] for arg in args))
    rows = max(1, (max_pairs or pairs_at_once(program, layout, *args)) // num_chains)
    path = Path(
        space, with_guide=False, engine=engine, num_rows=min(rows, len(x)) * num_chains,
        num_calls=math.ceil(len(x) / rows) * num_transitions * (num_steps + 1),
    )  # fmt: skip
    title = f"HMC: {len(x):,} data x {num_chains:,} chains"
    bar = tqdm(total=len(x) * num_transitions, desc=title, unit_scale=True, disable=not progress)
    with bar, program.evaluating(seed=seed), pyro.validation_enabled(False):
        found = []
        for batch in batches(args, rows):
            repeated = tuple(arg.repeat_interleave(num_chains, 0) for arg in batch)
            density = path.density(torch.ones(len(repeated[0])), repeated)
            position, acceptance = _moved(
                density, space.draw(*repeated), num_transitions=num_transitions,
                num_steps=num_steps, target=target_acceptance,
                after_each=partial(bar.update, len(batch[0])),
            )  # fmt: skip
            found.append((space.values(position, *repeated), acceptance))
    by_chain = (-1, num_chains)
    chains = [
        {name: value.unflatten(0, by_chain).transpose(0, 1) for name, value in values.items()}
        for values, _ in found
    ]
    acceptance = torch.cat([acceptance.unflatten(0, by_chain).mean(1) for _, acceptance in found])
    return PosteriorSamples(_joined(chains), acceptance)


def _moved(
    density: Density,
    position: Tensor,
    *,
    num_transitions: int,
    num_steps: int,
    target: float,
    after_each: Callable[[], Any],
) -> tuple[Tensor, Tensor]:
    """Return where chains end that start at ``position``, and the acceptance of each."""
    point = density(position)
    size, total = first_step_sizes(point.position), torch.zeros_like(point.log_density)
    for number in range(num_transitions):
        point, acceptance = transition(density, point, size, num_steps=num_steps)
        if number < num_transitions // 2:
            size = adapted(size, acceptance, target=target, rate=_ADAPTATION_RATE)
        total = total + acceptance
        after_each()
    return point.position, total / num_transitions


class _Refiner:
    """Computes bounds under offsets, and their gradients, from recordings where there are any."""

    def __init__(
        self, program: Program, layout: Layout, num_particles: int, engine: str, num_calls: int,
        num_rows: int,
    ) -> None:  # fmt: skip
        self._program, self._layout, self._num_particles = program, layout, num_particles
        self._families: tuple[nn.Module, ...] = ()
        self._num_offsets = self._num_done = 0
        self._replayed = Replayed(
            program, self._gradients, engine=engine, num_calls=num_calls,
            rare=lambda *tensors: len(tensors[-1]) < num_rows,
        )  # fmt: skip

    def gradient(
        self, families: tuple[nn.Module, ...], offsets: Sequence[Tensor], batch: tuple[Tensor, ...]
    ) -> Callable[[], tuple[Tensor, ...]]:
        """Return a function that draws samples and gives the bounds' gradient in each offset."""
        self._families, self._num_offsets = families, len(offsets)

        def compute() -> tuple[Tensor, ...]:
            tensors = (*offsets, *batch)
            found: Any = self._replayed(self._num_done, None, *tensors)
            self._num_done += 1
            return found or self._gradients(*tensors)

        return compute

    def bound(
        self, families: tuple[nn.Module, ...], offsets: Sequence[Tensor], batch: tuple[Tensor, ...],
        num_samples: int, seed: int,
    ) -> tuple[Tensor, dict[str, Tensor]]:  # fmt: skip
        """Return the bound of each datum, ``[B]``, and the last samples; one seed, one noise."""
        torch.manual_seed(seed)
        total: Any = 0.0
        for done in range(0, num_samples, self._num_particles):
            num = min(self._num_particles, num_samples - done)
            terms = self._terms(families, offsets, batch, num)
            total = total + double(_bounds(terms)).sum(0)
        return total / num_samples, terms.values

    def _gradients(self, *tensors: Tensor) -> tuple[Tensor, ...]:
        offsets, batch = tensors[: self._num_offsets], tensors[self._num_offsets :]
        with torch.enable_grad():
            free = [offset.detach().requires_grad_() for offset in offsets]
            terms = self._terms(self._families, free, batch, self._num_particles)
            return torch.autograd.grad(_bounds(terms).mean(0).sum(), free, materialize_grads=True)

    def _terms(
        self, families: tuple[nn.Module, ...], offsets: Sequence[Tensor], batch: tuple[Tensor, ...],
        num: int,
    ) -> SiteTerms:  # fmt: skip
        moved = Program(self._program.model, Offsets(families, offsets)(self._program.guide))
        return site_terms(moved, self._layout, *batch, num_particles=num)


def _bounds(terms: SiteTerms) -> Tensor:
    """Return each sample's part of the ELBO, ``[S, B]``, with KLs in closed form if there are."""
    return -terms.distortion - torch.stack([terms.kl(name) for name in terms.log_q]).sum(0)


def _climbed(
    offsets: Sequence[Tensor], gradient: Callable[[], tuple[Tensor, ...]], num_updates: int,
    learning_rate: float,
) -> Iterator[None]:  # fmt: skip
    """Move the offsets up the gradient, which has a sum over data: each is on its own."""
    optimizer = torch.optim.Adam(list(offsets), lr=learning_rate, maximize=True)
    for number in range(num_updates):
        share = 0.5 * (1 + math.cos(math.pi * number / num_updates))
        optimizer.param_groups[0]["lr"] = learning_rate * share
        for offset, its_gradient in zip(offsets, gradient(), strict=True):
            offset.grad = its_gradient
        optimizer.step()
        yield


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Join the data of batches, ``[S, B, ...]`` each."""
    return {name: torch.cat([part[name] for part in parts], 1) for name in parts[0]}


def _start(
    probe: Probe, x: Tensor, fields: tuple[Tensor, ...]
) -> tuple[tuple[Tensor, ...], Program, Layout]:
    check_support(probe, x, *fields)
    return (x, *fields), probe.program, probe.layout
