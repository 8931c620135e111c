r"""Mutual information of data and latents, and the marginal KL, KL(q(z) || p(z)).

The aggregate posterior of N data is the mixture :math:`q(z) = \frac1N \sum_j q(z \mid x_j)`. All
N^2 densities :math:`q(z_i \mid x_j)` are computed, block by block.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pyro_vae.evaluation.batching import batches, check_counts, double
from pyro_vae.evaluation.estimates import Estimate, Result
from pyro_vae.evaluation.programs import takes_program
from pyro_vae.evaluation.substitution import substituted
from pyro_vae.inference.probe import Probe
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import Layout, is_invertible
from pyro_vae.inference.terms import log_densities, no_density, rows_first, units_of

__all__ = ["Information", "LayerInformation", "mutual_information"]

_BLOCK_ELEMENTS = 2**22


@dataclass(frozen=True, eq=False, repr=False)
class LayerInformation(Result):
    r"""What one latent site tells of what the guide draws it from, in nats.

    Attributes:
        nats: :math:`I(z_l; c_l)`, where :math:`c_l` is the datum, and the sites that the guide
            draws before where the distribution depends on them.
        unit_nats: Of each unit by itself, ``[num_units]``; None where the units are not
            independent given :math:`c_l`.
    """

    nats: Estimate
    unit_nats: Tensor | None


@dataclass(frozen=True, eq=False, repr=False)
class Information(Result):
    r"""Mutual information under the guide, and the distance of its aggregate from the prior.

    Attributes:
        nats: :math:`I_q(x; z)` of all latents together.
        ceiling: :math:`\log N`, which an estimate from N data cannot exceed, however much more the
            latents tell.
        aggregate_kl: :math:`KL(q(z) \,\|\, p(z))` in nats; the average KL is the sum of this and
            ``nats``, so that it is too large by as much as that is too small.
        layers: By site.
    """

    nats: Estimate
    ceiling: float
    aggregate_kl: Estimate
    layers: dict[str, LayerInformation]


@takes_program
def mutual_information(
    probe: Probe,
    x: Tensor,
    *fields: Tensor,
    batch_size: int = 1000,
    seed: int = 0,
) -> Information:
    r"""Estimate how many nats the latents tell of the data, with one draw for each datum.

    .. math::
        I_q(x; z) = \frac1N \sum_i \Big[ \log q(z_i \mid x_i) -
            \log \frac1N \sum_j q(z_i \mid x_j) \Big], \qquad z_i \sim q(z \mid x_i)

    For these N data it is unbiased; for the population that they come from it is too low, and never
    above log N.

    Args:
        probe: The program: ``vae``, or ``model, guide``.
        x: Data, ``[N, *event_shape]``, on the device of the program.
        fields: What else the program takes, ``[N, ...]`` each.
        batch_size: How many data the guide is run on at once.
        seed: Of the draws; the random state outside is not touched.

    Raises:
        ValueError: If ``x`` is empty, the program breaks the convention, a latent of the guide is
            none of the model's, or the guide has no density at values other than its own draws.

    References:
        ELBO surgery: yet another way to carve up the variational evidence lower bound
        (Hoffman & Johnson, 2016)
        Lagging Inference Networks and Posterior Collapse in Variational Autoencoders
        (He, Spokoyny, Neubig & Berg-Kirkpatrick, 2019)
    """
    args = (x, *fields)
    check_counts(batch_size=batch_size)
    program, layout = probe.program, probe.layout
    if probe.terms.points:
        raise ValueError(no_density(probe.terms.points[0]))
    with program.evaluating(seed=seed):
        traces = [program.traces(*batch) for batch in batches(args, batch_size)]
        _check_sites(layout, *traces[0])
        sites = {name: [guide.nodes[name] for _, guide in traces] for name in layout.latents}
        draws = {name: _draws(found) for name, found in sites.items()}
        own = {name: _own(found) for name, found in sites.items()}
        layers = {name: _layer(sites[name], draws[name], own[name]) for name in sites}
        if len(sites) == 1:
            (name,) = sites
            aggregate = _aggregate([site["fn"] for site in sites[name]], draws[name])[:, 0]
        else:
            aggregate = _joint_aggregate(program, layout, args, draws, batch_size)
        log_prior = [_own([model.nodes[name] for model, _ in traces]) for name in sites]
    ratios = torch.stack([*own.values()]).sum(0) - aggregate
    return Information(
        nats=Estimate.of(ratios),
        ceiling=math.log(len(x)),
        aggregate_kl=Estimate.of(aggregate - torch.stack(log_prior).sum(0)),
        layers=layers,
    )


def _check_sites(layout: Layout, model_trace: Any, guide_trace: Any) -> None:
    for name in layout.latents:
        if name not in model_trace.nodes:
            raise ValueError(
                f"the guide's site {name!r} is none of the model's: there is no mutual information "
                "of the latents without it"
            )
        if not is_invertible(guide_trace.nodes[name]["fn"]):
            raise ValueError(
                f"the guide's site {name!r} has a flow that scores its own draws alone, and mutual "
                "information needs the density of every datum's draw under every other datum"
            )


def _draws(sites: list[Any]) -> Tensor:
    """Return a site's draws, ``[N, *plates, *event_shape]``."""
    return torch.cat([rows_first(site["value"], len(site["fn"].event_shape)) for site in sites])


def _own(sites: list[Any]) -> Tensor:
    """Return the log-density of each draw under its own distribution, ``[N]``."""
    found = [rows_first(site["fn"].log_prob(site["value"]), 0) for site in sites]
    return double(torch.cat([part.reshape(len(part), -1).sum(1) for part in found]))


def _layer(sites: list[Any], draws: Tensor, own: Tensor) -> LayerInformation:
    nats = own - _aggregate([site["fn"] for site in sites], draws)[:, 0]
    units: list[Any] = [units_of(site["fn"]) for site in sites]
    if any(unit is None for unit in units):
        return LayerInformation(Estimate.of(nats), None)
    of_units = [
        rows_first(unit.log_prob(site["value"]), len(site["fn"].event_shape)).reshape(
            unit.batch_shape[-1 - len(site["fn"].event_shape)], -1
        )
        for unit, site in zip(units, sites, strict=True)
    ]
    num_events = len(sites[0]["fn"].event_shape)
    ratios = double(torch.cat(of_units)) - _aggregate(units, draws, num_unit_dims=num_events)
    return LayerInformation(Estimate.of(nats), ratios.mean(0))


def _aggregate(fns: list[Any], draws: Tensor, *, num_unit_dims: int | None = None) -> Tensor:
    r"""Return :math:`\log \frac1N \sum_j q(z_i \mid c_j)` of each draw, ``[N, U]``.

    Args:
        fns: The distributions of all data, batch by batch.
        draws: ``[N, *plates, *event_shape]``.
        num_unit_dims: How many of the last dimensions of the distributions' batch are units of one
            event, each of which is taken by itself; None takes all together, so that U is 1.
    """
    num_plates = len(fns[0].batch_shape) - 1 - (num_unit_dims or 0)
    size = max(fn.batch_shape.numel() * fn.event_shape.numel() for fn in fns)
    found = []
    for block in draws.split(max(1, _BLOCK_ELEMENTS // size)):
        total = torch.tensor(-math.inf, dtype=torch.float64)
        for fn in fns:
            log_q = fn.log_prob(block.unsqueeze(1 + num_plates)).movedim(1 + num_plates, 1)
            log_q = double(log_q.reshape(*log_q.shape[:2], -1))
            log_q = log_q if num_unit_dims is not None else log_q.sum(-1, keepdim=True)
            total = torch.logaddexp(total.to(log_q), log_q.logsumexp(1))
        found.append(total)
    return torch.cat(found) - math.log(len(draws))


def _joint_aggregate(
    program: Program, layout: Layout, args: tuple[Tensor, ...], draws: dict[str, Tensor],
    batch_size: int,
) -> Tensor:  # fmt: skip
    """Return the same of all sites together, ``[N]``; the guide is run on every pair.

    What it draws may depend on what it has drawn before, here on the other datum's draws.
    """
    num_data, found = len(args[0]), []
    num_at_once = max(1, batch_size // num_data)
    for start in range(0, num_data, num_at_once):
        own = {name: values[start : start + num_at_once] for name, values in draws.items()}
        size = len(next(iter(own.values())))
        rows = tuple(arg.repeat(size, *[1] * (arg.dim() - 1)) for arg in args)
        values = {name: part.repeat_interleave(num_data, 0) for name, part in own.items()}
        log_q = _log_q(program, layout, rows, values).unflatten(0, (size, num_data))
        found.append(double(log_q).logsumexp(1))
    return torch.cat(found) - math.log(num_data)


def _log_q(
    program: Program, layout: Layout, rows: tuple[Tensor, ...], values: dict[str, Tensor]
) -> Tensor:
    """Return the guide's log-density of given draws, one for each row, ``[R]``."""
    trace = substituted(program.guide, values, layout, rows)
    densities = log_densities(trace, (1, len(rows[0])), layout.max_plate_nesting)
    return torch.stack([densities[name][0] for name in layout.latents]).sum(0)
