"""The table of site terms: log p and log q of every site, one number per particle and datum.

Every bound of the field, the rate and the distortion, and the importance weights of log p(x) are
reductions of this one table.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.inference.program import Layout, Program, _latent_sites, _observed_sites

__all__ = ["SiteTerms", "site_terms"]


@dataclass(frozen=True)
class SiteTerms:
    """Log-densities in nats by site, each ``[S, B]`` (particles, data), never scaled.

    Attributes:
        log_p: Of every site of the model.
        log_q: Of every latent site of the guide.
        values: The latents, ``[S, B, *event_shape]``; ``[S, B, K, *event_shape]`` for a site in a
            plate of K inside the datum.
        scale_p: What handlers and subsampling plates would multiply each ``log_p`` with.
        scale_q: Likewise for each ``log_q``.
        pathwise: Of each latent site, whether samples carry gradients.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    values: dict[str, Tensor]
    scale_p: dict[str, Any] = field(default_factory=dict)
    scale_q: dict[str, Any] = field(default_factory=dict)
    pathwise: dict[str, bool] = field(default_factory=dict)

    @property
    def log_w(self) -> Tensor:
        r"""Return the log-weights :math:`\log p(x, z) - \log q(z \mid x)`, ``[S, B]``."""
        return sum(self.log_p.values(), torch.zeros(())) - sum(self.log_q.values(), torch.zeros(()))

    @property
    def distortion(self) -> Tensor:
        r"""Return :math:`-\log p(x \mid z)` over all observed sites, ``[S, B]``."""
        observed = [log_p for name, log_p in self.log_p.items() if name not in self.log_q]
        return -sum(observed, torch.zeros(()))

    @property
    def rate(self) -> Tensor:
        r"""Return :math:`\log q(z \mid x) - \log p(z)`, ``[S, B]``; its mean is the KL."""
        return -self.log_w - self.distortion


def site_terms(program: Program, layout: Layout, *args: Any, num_particles: int = 1) -> SiteTerms:
    """Run guide and model and return the table; call inside ``program.running()``.

    Args:
        program: The model and the guide.
        layout: What ``program.check`` found.
        args: A batch of B data (and labels where the program takes them).
        num_particles: S, the number of samples of the latents for each datum; drawn at once
            where the program vectorizes, one after the other otherwise.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles={num_particles}: at least one sample is needed")
    if num_particles == 1 or layout.vectorizes:
        return _table(program, layout, args, None if num_particles == 1 else num_particles)
    tables = [_table(program, layout, args, None) for _ in range(num_particles)]
    stacked: Any = {
        part: {
            name: torch.cat([getattr(table, part)[name] for table in tables])
            for name in getattr(tables[0], part)
        }
        for part in ("log_p", "log_q", "values")
    }
    return replace(tables[0], **stacked)


def _table(
    program: Program, layout: Layout, args: tuple[Any, ...], num_particles: int | None
) -> SiteTerms:
    nesting = layout.max_plate_nesting
    model_trace, guide_trace = program.traces(
        *args, num_particles=num_particles, max_plate_nesting=nesting
    )
    shape = (num_particles or 1, len(args[0]))
    log_q = _log_densities(guide_trace, shape, nesting)
    log_p = _log_densities(model_trace, shape, nesting)
    values = {name: _values(site, shape, nesting) for name, site in _latent_sites(guide_trace)}
    return SiteTerms(
        log_p,
        log_q,
        values,
        scale_p={name: model_trace.nodes[name]["scale"] for name in log_p},
        scale_q={name: guide_trace.nodes[name]["scale"] for name in log_q},
        pathwise={name: guide_trace.nodes[name]["fn"].has_rsample for name in log_q},
    )


def _log_densities(trace: Trace, shape: tuple[int, int], nesting: int) -> dict[str, Tensor]:
    sites = [*_latent_sites(trace), *_observed_sites(trace)]
    return {name: _per_datum(_log_density(site), shape, nesting) for name, site in sites}


def _log_density(site: Any) -> Tensor:
    log_density = site["fn"].log_prob(site["value"])
    mask = site["mask"]
    if mask is None or mask is True:
        return log_density
    return torch.where(torch.as_tensor(mask), log_density, 0.0)


def _per_datum(log_density: Tensor, shape: tuple[int, int], nesting: int) -> Tensor:
    """Sum over the plates inside a datum: ``[(S,) ..., B]`` to ``[S, B]``."""
    if log_density.dim() <= nesting:
        log_density = log_density.unsqueeze(0)
    while log_density.dim() > 2:
        log_density = log_density.sum(1)
    return log_density.expand(shape)


def _values(site: Any, shape: tuple[int, int], nesting: int) -> Tensor:
    """Bring the data axis, the last of the batch, to the front: ``[S, B, ..., *event_shape]``."""
    value = site["value"]
    batch_dims = value.dim() - len(site["fn"].event_shape)
    if batch_dims <= nesting:
        value, batch_dims = value.unsqueeze(0), batch_dims + 1
    value = value.movedim(batch_dims - 1, 1)
    inner = {f.dim for f in site["cond_indep_stack"] if f.vectorized} - {-1, -1 - nesting}
    absent = [1 + batch_dims + dim for dim in range(1 - batch_dims, -1) if dim not in inner]
    return value.squeeze(absent) if absent else value
