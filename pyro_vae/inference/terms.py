"""The table of site terms: log p and log q of every site, one number per particle and datum.

Every bound of the field, the rate and the distortion, and the importance weights of log p(x) are
reductions of this one table.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import torch
from pyro.distributions import Delta
from pyro.poutine.trace_struct import Trace
from torch import Tensor
from torch.distributions import Independent

from pyro_vae.inference.auxiliary import AuxiliaryLosses
from pyro_vae.inference.program import Program
from pyro_vae.inference.sites import (
    Layout,
    base_of,
    data_frame,
    latent_sites,
    observed_sites,
)
from pyro_vae.inference.strata import Stratified, average, log_share_of
from pyro_vae.inference.weights import Weighing, num_stood_for, site_weights
from pyro_vae.wording import part

__all__ = [
    "LatentSite",
    "SiteTerms",
    "log_densities",
    "losses_of",
    "mean_of",
    "no_density",
    "rows_first",
    "site_terms",
    "terms_of",
    "units_of",
]


@dataclass(frozen=True)
class SiteTerms:
    """Log-densities in nats by site, each ``[S, B]`` (particles, data), without handlers' weights.

    Plates inside a datum are summed over; one that is subsampled stands for all of its elements.

    Attributes:
        log_p: Of every site of the model.
        log_q: Of every latent site of the guide.
        values: The latents, ``[S, B, *event_shape]``; ``[S, B, K, *event_shape]`` for a site in a
            plate of K inside the datum.
        scale_p: What handlers multiply each ``log_p`` with, ``weight`` aside; a number or ``[B]``.
        scale_q: Likewise for each ``log_q``.
        weight: What handlers multiply the bound of each datum with; a number or ``[B]``.
        num_data: How many data each datum of a subsampled plate stands for.
        pathwise: Of each latent site, whether samples carry gradients, or are run through.
        latents: The distributions at each latent site; one entry per run of the program.
        layout: Of the program; None of a table that is none of a program's.
        auxiliary: The losses that components declare beside the bound, by name.
        points: The latents that the guide draws from a point, which has no density: their log q is
            0 by convention, and no sum with it bounds log p(x).
        log_share: What each particle counts in a mean, in nats, ``[S, B]``, with gradients; None
            where all count alike. Of a program with strata, S counts the particles of all.
    """

    log_p: dict[str, Tensor]
    log_q: dict[str, Tensor]
    values: dict[str, Tensor]
    scale_p: dict[str, Any] = field(default_factory=dict)
    scale_q: dict[str, Any] = field(default_factory=dict)
    weight: Any = 1.0
    num_data: float = 1.0
    pathwise: dict[str, bool] = field(default_factory=dict)
    latents: dict[str, tuple[LatentSite, ...]] = field(default_factory=dict)
    layout: Layout | None = None
    auxiliary: dict[str, Tensor] = field(default_factory=dict)
    points: tuple[str, ...] = ()
    log_share: Tensor | None = None

    def average(self, values: Tensor) -> Tensor:
        """Return the mean over the particles of what each has, ``[S, B, ...]`` to ``[B, ...]``."""
        return average(values, self.log_share)

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

    def kl(self, name: str) -> Tensor:
        r"""Return what has the mean :math:`KL(q(z \mid \cdot) \,\|\, p(z \mid \cdot))`, ``[S, B]``.

        The closed form where there is one, and :math:`\log q - \log p` elsewhere.
        """
        closed = self.closed_kl(name)
        return self.log_q[name] - self.log_p.get(name, 0.0) if closed is None else closed

    def closed_kl(self, name: str) -> Tensor | None:
        """Return the closed form of a latent's KL in nats, ``[S, B]``; None if there is none.

        None, too, where the model declares before this site another one that the guide declares
        after it: given that one, the latent no longer follows the distribution in the guide.
        """
        if not self._in_order(name):
            return None
        found = [kl for site in self.latents[name] if (kl := site.kl()) is not None]
        return torch.cat(found) if found else None

    def unit_kl(self, name: str) -> Tensor | None:
        """Return what has the KL of each unit as its mean, in nats, ``[S, B, *units]``.

        Closed as in ``kl``; None if guide or model do not factorise over the units of an event.
        """
        of_units = LatentSite.unit_kl if self._in_order(name) else LatentSite.unit_log_ratio
        found = [kl for site in self.latents[name] if (kl := of_units(site)) is not None]
        return torch.cat(found) if found else None

    def _in_order(self, name: str) -> bool:
        in_model = [other for other in self.log_p if other in self.log_q]
        in_guide = list(self.log_q)
        if name not in in_model or name not in self.latents:
            return False
        return not {*in_model[: in_model.index(name)]} & {*in_guide[in_guide.index(name) :]}


@dataclass(frozen=True)
class LatentSite:
    """A latent in guide and model, for what needs more than its log-densities.

    Attributes:
        guide: The site in the guide's trace.
        model: The site in the model's trace; None where the model has none.
        shape: The number of particles S and of data B.
        nesting: The depth of the program's innermost plate.
    """

    guide: Any
    model: Any
    shape: tuple[int, int]
    nesting: int

    def kl(self) -> Tensor | None:
        """Return the closed form of the KL in nats, ``[S, B]``; None if there is none."""
        mask = self.guide["mask"]
        if self.model is None or mask is not self.model["mask"]:
            return None
        kl = _closed_kl(self.guide["fn"], self._prior())
        if kl is None:
            return None
        kl = kl if mask is None or mask is True else torch.where(torch.as_tensor(mask), kl, 0.0)
        _, num_elements = num_stood_for(self.guide)
        kl = kl if num_elements == 1 else kl * num_elements
        return _per_datum(kl, self.shape, self.nesting)

    def unit_kl(self) -> Tensor | None:
        """Return each unit's KL in nats, ``[S, B, *units]``, or what has it as its mean.

        None if the units are not independent in guide and model.
        """
        units = self._units()
        kl = None if units is None else _closed_kl(*units)
        if kl is None:
            return self.unit_log_ratio()
        return _data_first(self.guide, kl, self.shape, self.nesting)

    def unit_log_ratio(self) -> Tensor | None:
        """Return log q - log p of each unit in nats, ``[S, B, *units]``; None as for the KL."""
        units = self._units()
        if units is None:
            return None
        log_q, log_p = (unit.log_prob(self.guide["value"]) for unit in units)
        return _data_first(self.guide, log_q - log_p, self.shape, self.nesting)

    def _units(self) -> tuple[Any, Any] | None:
        if self.model is None or self.guide["mask"] is not None or self.model["mask"] is not None:
            return None
        if not getattr(base_of(self.guide["fn"]), "has_density", True):
            return None
        guide, model = units_of(self.guide["fn"]), units_of(self._prior())
        return None if guide is None or model is None else (guide, model)

    def value(self) -> Tensor:
        """Return the latent, ``[S, B, *event_shape]``."""
        return _data_first(self.guide, self.guide["value"], self.shape, self.nesting)

    def prior_sample(self) -> Tensor:
        """Draw the latent from its distribution in the model, ``[S, B, *event_shape]``."""
        prior = self._prior()
        value = prior.rsample() if prior.has_rsample else prior.sample()
        return _data_first(self.guide, value, self.shape, self.nesting)

    def _prior(self) -> Any:
        # A replayed site is not broadcast over the particles: its distribution has no axis of them.
        prior, batch_shape = self.model["fn"], self.guide["fn"].batch_shape
        shape = torch.broadcast_shapes(prior.batch_shape, batch_shape)
        return prior if shape == prior.batch_shape else prior.expand(shape)

    def moments(self) -> tuple[Tensor, Tensor]:
        """Return mean and variance of each unit in the guide, ``[S, B, *event_shape]``.

        Raises:
            NotImplementedError: If the units are not independent, or one of the two is not known.
        """
        units = self.posterior_units()
        if units is None:
            raise NotImplementedError
        mean = _data_first(self.guide, units.mean, self.shape, self.nesting)
        return mean, _data_first(self.guide, units.variance, self.shape, self.nesting)

    @property
    def full_size(self) -> int | None:
        """How many data the batch is taken from; None if the plate stands for the batch alone."""
        frame = data_frame(self.guide)
        return None if frame.full_size == frame.size else int(frame.full_size)

    def mean(self) -> Tensor | None:
        """Return the mean in the guide, ``[S, B, *event_shape]``; None if it is not known."""
        mean = mean_of(self.guide["fn"])
        return None if mean is None else _data_first(self.guide, mean, self.shape, self.nesting)

    def has_exact_units(self) -> bool:
        """Whether each unit's KL is closed, or there is none of a unit by itself."""
        units = self._units()
        return units is None or _closed_kl(*units) is not None

    def posterior_units(self) -> Any:
        """Return the guide's distribution over each unit; None if the units are not independent."""
        return units_of(self.guide["fn"])


def _closed_kl(posterior: Any, prior: Any) -> Tensor | None:
    # Pyro registers one that leaves the log-density of a Delta out.
    if isinstance(base_of(posterior), Delta):
        return None
    try:
        return torch.distributions.kl_divergence(posterior, prior)
    except NotImplementedError:
        return None


def units_of(fn: Any) -> Any:
    """Return the distribution of the single numbers; None where they are not independent."""
    while isinstance(fn, Independent):
        fn = fn.base_dist
    return None if fn.event_shape else fn


def mean_of(fn: Any) -> Tensor | None:
    """Return the mean of a distribution; None where it has none or the mean is not finite."""
    try:
        mean = fn.mean
    except (NotImplementedError, AttributeError):
        return None
    return mean if bool(torch.isfinite(mean).all()) else None


def rows_first(value: Tensor, event_dim: int, *, leading: int = 0) -> Tensor:
    """Move the dimension of the data, last before the event, behind ``leading`` others."""
    return value.movedim(-1 - event_dim, leading)


def site_terms(
    program: Program,
    layout: Layout,
    *args: Any,
    num_particles: int = 1,
    bounded: bool = True,
    in_strata: bool = False,
) -> SiteTerms:
    """Run guide and model and return the table; call inside ``program.running()``.

    Args:
        program: The model and the guide.
        layout: Of the program.
        args: A batch of B data (and what else the program takes).
        num_particles: S, the number of samples of the latents for each datum; drawn at once
            where the program vectorizes, one after the other otherwise.
        bounded: Whether the log-weights are to bound log p(x).
        in_strata: Whether marked sites are run through; all are sampled otherwise. The table then
            says in ``log_share`` what its particles count, so many for each stratum.

    Raises:
        ValueError: If there is no particle, or the guide draws a latent from a point, of which
            there is no bound.
    """
    if num_particles < 1:
        raise ValueError(f"num_particles={num_particles}: at least one sample is needed")
    if in_strata and layout.strata.sites:
        with Stratified(layout.strata, num_particles):
            num = num_particles * layout.strata.num
            return _table(program, layout, args, num, bounded, in_strata=True)
    if num_particles == 1 or layout.vectorizes:
        at_once = None if num_particles == 1 else num_particles
        return _table(program, layout, args, at_once, bounded)
    tables = [_table(program, layout, args, None, bounded) for _ in range(num_particles)]
    stacked: Any = {
        part: {
            name: torch.cat([getattr(table, part)[name] for table in tables])
            for name in getattr(tables[0], part)
        }
        for part in ("log_p", "log_q", "values", "auxiliary")
    }
    latents = {
        name: tuple(site for table in tables for site in table.latents[name])
        for name in tables[0].latents
    }
    return replace(tables[0], **stacked, latents=latents)


def _table(
    program: Program,
    layout: Layout,
    args: tuple[Any, ...],
    num_particles: int | None,
    bounded: bool,
    *,
    in_strata: bool = False,
) -> SiteTerms:
    nesting = layout.max_plate_nesting
    with Weighing(), AuxiliaryLosses() as losses:
        traces = program.traces(*args, num_particles=num_particles, max_plate_nesting=nesting)
    shape = (num_particles or 1, len(args[0]))
    terms = terms_of(*traces, shape, layout, losses.declared, in_strata=in_strata)
    if bounded and terms.points:
        raise ValueError(no_density(terms.points[0]))
    return terms


def terms_of(
    model_trace: Trace,
    guide_trace: Trace,
    shape: tuple[int, int],
    layout: Layout,
    auxiliary: Mapping[str, Sequence[Tensor]] | None = None,
    *,
    in_strata: bool = False,
) -> SiteTerms:
    """Return the table of a run.

    Args:
        model_trace: Of the model, run under ``Weighing``.
        guide_trace: Of the guide, likewise.
        shape: S and B: particles, 1 where there is no dimension of them, and data.
        layout: Of the program.
        auxiliary: The losses that its components declared.
        in_strata: Whether marked sites were run through.
    """
    nesting = layout.max_plate_nesting
    log_q = log_densities(guide_trace, shape, nesting)
    log_p = log_densities(model_trace, shape, nesting)
    latents = {
        name: LatentSite(site, model_trace.nodes.get(name), shape, nesting)
        for name, site in latent_sites(guide_trace)
    }
    values = {name: site.value() for name, site in latents.items()}
    sites = {name: model_trace.nodes[name] for name in log_p}
    run_through = {stratum.name for stratum in layout.strata.sites} if in_strata else set()
    log_share = None
    if run_through:
        per_datum = partial(_per_datum, shape=shape, nesting=nesting)
        log_share = log_share_of(guide_trace, log_q, layout.strata, per_datum)
    weights = site_weights(sites, {n: guide_trace.nodes[n] for n in log_q}, shape[1])
    return SiteTerms(
        log_p,
        log_q,
        values,
        scale_p=weights.of_model,
        scale_q=weights.of_guide,
        weight=weights.of_data,
        num_data=num_stood_for(next(iter(sites.values())))[0],
        pathwise={n: n in run_through or guide_trace.nodes[n]["fn"].has_rsample for n in log_q},
        latents={name: (site,) for name, site in latents.items()},
        layout=layout,
        auxiliary=losses_of(auxiliary or {}, shape, nesting),
        points=layout.points,
        log_share=log_share,
    )


def no_density(name: str) -> str:
    """Say why there is no bound of a program whose guide draws a latent from a point."""
    return (
        f"the guide of site {name!r} is a point, which has no density: log p(x, z) at it would be "
        "reported, and that is no bound of log p(x); take the objective Reconstruction, which "
        f"names what it reports, or a narrow normal ({part('posterior', 'Normal', scale=0.1)})"
    )


def log_densities(trace: Trace, shape: tuple[int, int], nesting: int) -> dict[str, Tensor]:
    """Return the log-density of every site of a run, latents first, ``[S, B]``, not weighed.

    Args:
        trace: Of a model or a guide.
        shape: S and B: particles, 1 where there is no dimension of them, and data.
        nesting: The depth of the program's innermost plate.
    """
    sites = [*latent_sites(trace), *observed_sites(trace)]
    return {name: _per_datum(_log_density(site), shape, nesting) for name, site in sites}


def losses_of(
    declared: Mapping[str, Sequence[Tensor]], shape: tuple[int, int], nesting: int
) -> dict[str, Tensor]:
    """Return the auxiliary losses that a run declared, ``[S, B]`` each; as ``log_densities``."""
    return {
        name: sum((_per_datum(loss, shape, nesting) for loss in losses), torch.zeros(()))
        for name, losses in declared.items()
    }


def _log_density(site: Any) -> Tensor:
    log_density = site["fn"].log_prob(site["value"])
    _, num_elements = num_stood_for(site)
    if num_elements != 1:
        log_density = log_density * num_elements
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


def _data_first(site: Any, value: Tensor, shape: tuple[int, int], nesting: int) -> Tensor:
    """Bring the data axis, the last of the batch, to the front: ``[S, B, ..., *event_shape]``."""
    batch_dims = value.dim() - len(site["fn"].event_shape)
    if batch_dims <= nesting:
        value, batch_dims = value.unsqueeze(0), batch_dims + 1
    value = value.movedim(batch_dims - 1, 1)
    inner = {f.dim for f in site["cond_indep_stack"] if f.vectorized} - {-1, -1 - nesting}
    absent = [1 + batch_dims + dim for dim in range(1 - batch_dims, -1) if dim not in inner]
    return value.squeeze(absent) if absent else value
