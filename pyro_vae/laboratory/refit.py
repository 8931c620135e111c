r"""Replace the prior of a trained program and train it alone: encoder and decoder stay as they are.

A prior that is nearer to the aggregate posterior, q(z) = E_x q(z | x), lowers the rate of every
datum without touching what is decoded. It is the second stage of models whose first has no prior
worth sampling from: deterministic autoencoders, and codes of a codebook.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from pyro import poutine
from torch import Tensor, nn

import pyro_vae.evaluation as evaluation
from pyro_vae.arguments import at_the_door
from pyro_vae.datasets import Data, Dataset, as_dataset
from pyro_vae.engine.callbacks import Callback
from pyro_vae.engine.data import OBSERVATION_SEED, observe_once, representative
from pyro_vae.engine.defaults import resolve_device, with_channel
from pyro_vae.engine.observations import AsFloat, Observation
from pyro_vae.engine.optimizers import Optim, adam
from pyro_vae.engine.restoring import own_random_state, seed_everything
from pyro_vae.engine.settings import Settings
from pyro_vae.evaluation.batching import batches, double
from pyro_vae.evaluation.estimates import Result
from pyro_vae.fitting import Fit, fit_as_set
from pyro_vae.inference import Probe, Program
from pyro_vae.inference.program import exclusively
from pyro_vae.inference.terms import log_densities
from pyro_vae.laboratory.priors import (
    BuildsPrior,
    CodeDensity,
    Codes,
    Place,
    alone,
    prepared,
    taken_over,
    with_prior,
)

__all__ = ["Refit", "UnderPrior", "refit", "refit_as_set"]

_BATCH, _COMPARED_ROWS, _NUM_DRAWS = 1000, 1000, 16


@dataclass(frozen=True, eq=False, repr=False)
class UnderPrior(Result):
    r"""A program under one prior, on held-out data, in nats per datum.

    Attributes:
        log_p_nats: :math:`\mathrm E_{q(z \mid x)} \log p(z)`.
        bound: The ELBO and its parts; None where the guide is a point, which has none.
        information: Mutual information and :math:`KL(q(z) \,\|\, p(z))`, estimated from up to
            1,000 of the data, each with each. That KL is too large by as much as the mutual
            information is too small, which cannot exceed ``information.ceiling``, log N; the
            difference of two priors is not touched by it. None where q has no density.
    """

    log_p_nats: evaluation.Estimate
    bound: evaluation.Bound | None
    information: evaluation.Information | None


@dataclass(frozen=True, eq=False, repr=False)
class Refit(Result):
    r"""What another prior gives a program.

    Attributes:
        program: The program with the new prior; all else has the same bits as before.
        fit: What training the prior did.
        gained_nats: :math:`\mathrm E_{q(z \mid x)} [\log p_{new}(z) - \log p_{old}(z)]`, by which
            the ELBO rises where there is one; of the same draws, so that the standard error is
            that of the difference.
        before: Under the prior that was there.
        after: Under the new one.
        num_data: How many held-out data these are.
    """

    program: Any
    fit: Fit
    gained_nats: evaluation.Estimate
    before: UnderPrior
    after: UnderPrior
    num_data: int


@at_the_door
@exclusively
def refit(
    program: nn.Module,
    data: Any,
    *,
    prior: BuildsPrior | nn.Module,
    data_weights: Any = None,
    optim: Optim = adam,
    observation: Observation | None = None,
    epochs: int = 30,
    batch_size: int | None = None,
    clip_norm: float | None = None,
    patience: int | None = None,
    weights: str = "best",
    device: str | torch.device = "auto",
    seed: int = 0,
    out: Path | str | None = None,
    resume: bool = False,
    checkpoint_seconds: float = 30.0,
    progress: bool | None = None,
    engine: str = "auto",
    callbacks: Sequence[Callback] = (),
) -> Refit:
    r"""Replace a trained program's prior and train it alone: ``refit(vae, data, prior=P)``.

    What is maximised is :math:`\mathrm E_{q(z \mid x)} \log p_{new}(z)`, by ``fit`` on the ELBO, in
    which nothing else moves: no weight of encoder and decoder, and no statistic of theirs. Where
    the guide draws points, as an autoencoder's does, there is no ELBO: the log-density of the codes
    itself is followed, and reported as ``code_log_density_nats``. The program is left as it is. The
    new prior starts in the units of the codes, the latents that the guide draws for training data.

    Args:
        program: A module with ``model`` and ``guide`` that holds its prior as ``prior``, or those
            of its layers as ``priors``, of which the topmost is replaced.
        data: As of ``fit``: those that the program was trained on.
        prior: Builds a prior from the latent's shape, such as a family's class; or a module that
            returns a distribution.
        data_weights: As of ``fit``; so for all that follow.
        optim: As of ``fit``.
        observation: As of ``fit``.
        epochs: As of ``fit``.
        batch_size: As of ``fit``.
        clip_norm: As of ``fit``.
        patience: As of ``fit``.
        weights: As of ``fit``.
        device: As of ``fit``.
        seed: As of ``fit``; and of how the new prior is drawn.
        out: As of ``fit``.
        resume: As of ``fit``.
        checkpoint_seconds: As of ``fit``.
        progress: As of ``fit``.
        engine: As of ``fit``.
        callbacks: As of ``fit``.

    Raises:
        PriorError: If the program has no prior that can be replaced, or the new one has nothing to
            learn or no density where the codes are.
        ValueError, ProgramError, TrainingError, Interrupted: As ``fit`` does.

    References:
        From Variational to Deterministic Autoencoders (Ghosh, Sajjadi, Vergari, Black & Schölkopf,
        2020)
        Neural Discrete Representation Learning (van den Oord, Vinyals & Kavukcuoglu, 2017)
    """
    settings = Settings(
        optim=optim, observation=observation or AsFloat(), epochs=epochs, batch_size=batch_size,
        clip_norm=clip_norm, patience=patience, weights=weights, device=device, seed=seed,
        out=None if out is None else Path(out), resume=resume, progress=progress, engine=engine,
        checkpoint_seconds=checkpoint_seconds, callbacks=callbacks,
    )  # fmt: skip
    data = _with_channel(program, as_dataset(data, weights=data_weights))
    place = resolve_device(device)
    with own_random_state(place):
        seed_everything(seed)
        changed = with_prior(program, prior, _probe(program.to(place), data, settings))
    return _refitted(program, changed, data, settings)


@exclusively
def refit_as_set(before: nn.Module, after: nn.Module, data: Dataset, settings: Settings) -> Refit:
    """Train the prior of a program that is like another one but for its prior.

    Args:
        before: The trained program.
        after: A new one with another prior; it takes over all other tensors.
        data: To be trained and validated on, and judged on the test rows.
        settings: Of the run.

    Raises:
        PriorError: If they differ in more than the prior, or as ``refit`` does.
        ValueError, ProgramError, TrainingError, Interrupted: As ``fit`` does.
    """
    data = _with_channel(before, data)
    place = resolve_device(settings.device)
    taken_over(before.to(place), after.to(place))
    with own_random_state(place):
        seed_everything(settings.seed)
        codes = Codes(Place(before), _probe(before, data, settings))
        prepared(Place(after), codes)
    return _refitted(before, after, data, settings)


def _refitted(before: nn.Module, after: nn.Module, data: Dataset, settings: Settings) -> Refit:
    if _probe(before, data, settings).terms.points:
        settings = replace(settings, objective=CodeDensity())
    with alone(after):
        done = fit_as_set(after, data, settings)
    seed, device = OBSERVATION_SEED + 2, resolve_device(settings.device)
    rows = observe_once(data.test, settings.observation, seed=seed, device=device)
    log_p = _log_p(before, after, rows)
    gained = evaluation.Estimate.of(log_p[1] - log_p[0])
    old, new = _under(before, rows, log_p[0]), _under(after, rows, log_p[1])
    return Refit(after, done, gained, old, new, len(rows))


def _with_channel(program: Any, data: Dataset) -> Dataset:
    return with_channel(Program(program.model, program.guide), data)


def _probe(program: Any, data: Dataset, settings: Settings) -> Probe:
    """Look at a program on training data that stand for all of them."""
    bound = Program(program.model, program.guide).on(data.train.names)
    rows = representative(data.train, settings.observation, device=resolve_device(settings.device))
    return Probe(bound, *rows.tensors(bound.fields))


def _log_p(before: Any, after: Any, rows: Data) -> tuple[Tensor, Tensor]:
    """Return E_q log p of all latents under either prior, ``[N]`` each, of the same draws."""
    program = Program(before.model, before.guide).on(rows.names)
    other = Program(after.model, after.guide).on(rows.names)
    args = rows.tensors(program.fields)
    layout = Probe(program, *args).layout
    found: list[Tensor] = []
    with program.evaluating(seed=0), other.evaluating():
        for batch in batches(args, _BATCH):
            table = [_latents(layout, batch, program, other) for _ in range(_NUM_DRAWS)]
            found.append(torch.stack(table).mean(0))
    old, new = torch.cat(found, 1)
    return old, new


def _latents(layout: Any, batch: tuple[Tensor, ...], program: Program, other: Program) -> Tensor:
    """Draw from the guide; return log p of the draws in both models, ``[2, B]``."""
    guide = poutine.trace(program.guide).get_trace(*batch)
    found = []
    for model in (program.model, other.model):
        trace = poutine.trace(poutine.replay(model, trace=guide)).get_trace(*batch)
        log_p = log_densities(trace, (1, len(batch[0])), layout.max_plate_nesting)
        found.append(torch.stack([double(log_p[name]) for name in layout.latents]).sum((0, 1)))
    return torch.stack(found)


def _under(program: Any, rows: Data, log_p: Tensor) -> UnderPrior:
    log_p_nats = evaluation.Estimate.of(log_p)
    bound_to = Program(program.model, program.guide).on(rows.names)
    if Probe(bound_to, *rows.tensors(bound_to.fields)).terms.points:
        return UnderPrior(log_p_nats, None, None)
    bound = evaluation.elbo(program, rows)
    try:
        information = evaluation.mutual_information(program, rows[:_COMPARED_ROWS])
    except ValueError:  # a flow that scores its own draws alone
        information = None
    return UnderPrior(log_p_nats, bound, information)
