"""How well a program gives its data back: log p(x | z), and the squared error of the mean."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pyro_vae.evaluation.batching import batches, double, pairs_at_once
from pyro_vae.evaluation.estimates import Estimate, Result
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.evaluation.samples import reconstruct
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.terms import mean_of, site_terms

__all__ = ["ReconstructionError", "reconstruction_error"]


@dataclass(frozen=True, repr=False)
class ReconstructionError(Result):
    """What is lost between x and its reconstruction; no bound of log p(x).

    Attributes:
        reconstruction_nats: The mean of log p(x | z), z from the guide, in nats per datum.
        squared_error: Of the mean E[x | z], per number of a datum, in squared units of x; None
            where what is observed is not x, or has no mean, as symbols have none.
        active_codes: How many numbers of a datum's code are not zero, on average.
    """

    reconstruction_nats: Estimate
    squared_error: Estimate | None
    active_codes: Estimate


@takes_program
def reconstruction_error(
    probe: Probe, x: Tensor, *fields: Tensor, seed: int = 0
) -> ReconstructionError:
    """Return how well a program gives data back, of a point or of any other posterior.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        seed: Of the samples; the random state outside is not touched.

    Raises:
        ValueError: If ``x`` is empty or the program breaks the convention.
    """
    args = (x, *fields)
    nats, active = [], []
    with probe.program.evaluating(seed=seed):
        for batch in batches(args, pairs_at_once(probe.program, probe.layout, *args)):
            terms = site_terms(probe.program, probe.layout, *batch, bounded=False)
            nats.append(double(-terms.distortion.mean(0)))
            codes = [value.flatten(2) for value in terms.values.values()]
            active.append(double((torch.cat(codes, 2) != 0).sum(2).to(x)).mean(0))
    return ReconstructionError(
        reconstruction_nats=Estimate.of(torch.cat(nats)),
        squared_error=_squared_error(probe, args),
        active_codes=Estimate.of(torch.cat(active), unit="numbers per datum"),
    )


def _squared_error(probe: Probe, args: tuple[Tensor, ...]) -> Estimate | None:
    x, *fields = args
    sites = (probe.model_trace.nodes[name]["fn"] for name in probe.layout.generated)
    if any(mean_of(fn) is None for fn in sites):
        return None
    mean = reconstruct(probe, x, *fields)
    if isinstance(mean, Mapping) or mean.numel() != x.numel():
        return None
    error = (double(mean).flatten(1).cpu() - double(x).flatten(1).cpu()).square().mean(1)
    known = error[~error.isnan()]
    return Estimate.of(known, unit="squared units of the data") if len(known) else None
