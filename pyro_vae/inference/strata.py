r"""Particles in strata: one for each value of a discrete latent, or each component of a mixture.

A guide's site that is marked by Pyro's ``infer={"enumerate": "parallel"}``, or whose distribution
says ``stratified = True``, is not sampled: its values or components are run through,

.. math:: E_q[f] = \sum_k q(k) \, E_q[f \mid k],

exactly, and with gradients in q. The particles of K strata and S samples have the order
``[*K, S]``, the first marked site first. What the guide samples before a marked site is the same in
all strata of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from pyro.distributions import Independent
from pyro.distributions.torch_distribution import ExpandedDistribution, MaskedDistribution
from pyro.poutine.messenger import Messenger
from pyro.poutine.trace_struct import Trace
from pyro.poutine.util import site_is_subsample
from torch import Tensor

from pyro_vae import memory
from pyro_vae.inference.sites import Strata, Stratum, data_frame, latent_sites, line_of

__all__ = ["Stratified", "average", "log_average_exp", "log_share_of", "strata_of"]

_WEIGHTS = "log-weights of the components"
_LISTED = 10**15


# --------------------------------------------------------------------------- which strata there are


def strata_of(guide_trace: Trace, numbers_per_datum: int) -> Strata:
    """Return the strata of the marked sites of a guide, or why they cannot be run through.

    Args:
        guide_trace: Of the guide, run under ``Lines``.
        numbers_per_datum: How many numbers all sites of the program have for one datum.
    """
    found = []
    for name, site in latent_sites(guide_trace):
        if not _is_marked(site):
            continue
        number = _num_strata(site["fn"])
        obstacle = _unlisted(name, site) if number is None else _in_plate(name, site)
        if obstacle is not None or number is None:
            return Strata((Stratum(name, 1, site["value"].dtype),), obstacle)
        mixed = _is_mixture(_bare(site["fn"]))
        found.append(Stratum(name, number, site["value"].dtype, of_components=mixed))
    strata = Strata(tuple(found))
    return Strata(strata.sites, _too_many(strata, numbers_per_datum) if found else None)


def _is_marked(site: Any) -> bool:
    return bool(site["infer"].get("enumerate")) or getattr(_bare(site["fn"]), "stratified", False)


def _bare(fn: Any) -> Any:
    """Return the distribution under declared events, masks and expansions."""
    while isinstance(fn, Independent | MaskedDistribution | ExpandedDistribution):
        fn = fn.base_dist
    return fn


def _is_mixture(fn: Any) -> bool:
    return hasattr(fn, "mixture_distribution") and hasattr(fn, "component_distribution")


def _num_strata(fn: Any) -> int | None:
    """Return how many values or components a distribution has; None where there is no list."""
    bare = _bare(fn)
    if _is_mixture(bare):
        whole = bare.event_shape == fn.event_shape and bare.component_distribution.has_rsample
        return int(bare.mixture_distribution.logits.shape[-1]) if whole else None
    if not getattr(bare, "has_enumerate_support", False):
        return None
    try:
        return len(bare.enumerate_support(expand=False)) ** _num_places(fn, bare)
    except NotImplementedError:  # values that differ between the entries of a batch
        return None


def _num_places(fn: Any, bare: Any) -> int:
    """Return how many independent discrete numbers, or one-hot vectors, an event has."""
    return math.prod(fn.event_shape[: len(fn.event_shape) - len(bare.event_shape)])


def _unlisted(name: str, site: Any) -> str:
    family = type(_bare(site["fn"])).__name__.lstrip("_")
    return (
        f"site {name!r}{line_of(site)} is marked to be enumerated, but a {family} is neither "
        "discrete with a list of values nor a mixture of reparameterised components: mark such "
        "sites alone"
    )


def _in_plate(name: str, site: Any) -> str | None:
    inner = [f for f in site["cond_indep_stack"] if f.vectorized and f is not data_frame(site)]
    if not inner:
        return None
    return (
        f"site {name!r}{line_of(site)} is marked to be enumerated, but stands in the plate "
        f"{inner[0].name!r} inside a datum: declare its elements as one event with .to_event"
    )


def _too_many(strata: Strata, numbers_per_datum: int) -> str | None:
    needed, free = 4 * strata.num * numbers_per_datum, memory.available()
    if free is None or needed <= free:
        return None
    names = ", ".join(repr(stratum.name) for stratum in strata.sites)
    return (
        f"enumerating {names} takes {_shown(strata.num)} particles, {_shown(needed)} bytes for a "
        f"single datum, and {memory.shown(free)} are free; give fewer values or units, or leave "
        "the mark out and take RLOO"
    )


def _shown(number: int) -> str:
    # Of a number of thousands of digits Python makes neither text nor a float.
    return f"{number:,}" if number < _LISTED else f"10^{math.log10(number):.1f}"


# ------------------------------------------------------------------------- particles in the strata


class Stratified(Messenger):
    """Give every particle of a guide its own values of the marked sites.

    Args:
        strata: Of the program.
        num_samples: S, the number of particles of each stratum.
    """

    def __init__(self, strata: Strata, num_samples: int) -> None:
        super().__init__()
        self._places = {stratum.name: n for n, stratum in enumerate(strata.sites)}
        self._dtypes = [stratum.dtype for stratum in strata.sites]
        self._axes = (*(stratum.num for stratum in strata.sites), num_samples)
        self._num_met = 0

    def _pyro_sample(self, msg: Any) -> None:
        place = self._places.get(msg["name"])
        if place is None or msg["done"] or msg["is_observed"]:
            return
        self._num_met = place + 1
        fn, bare = msg["fn"], _bare(msg["fn"])
        if _is_mixture(bare):
            msg["value"], weights = self._components(fn, bare, place)
            msg["infer"] = {**msg["infer"], _WEIGHTS: weights}
        else:
            values = _values(fn, bare).to(self._dtypes[place])
            shape = (fn.batch_shape[1:], fn.event_shape)
            wide = values.reshape(-1, *[1] * len(shape[0]), *shape[1])
            placed = self._placed(wide, place)
            msg["value"] = placed.expand(-1, *shape[0], *shape[1])
        msg["done"] = True

    def _pyro_post_sample(self, msg: Any) -> None:
        is_latent = not msg["is_observed"] and not site_is_subsample(msg)
        if not is_latent or msg["name"] in self._places or self._num_met == len(self._axes) - 1:
            return
        if hasattr(_bare(msg["fn"]), "transforms"):
            return  # a flow may know the density of the very tensor alone that it has drawn
        value = msg["value"].unflatten(0, self._axes)
        for axis in range(self._num_met, len(self._axes) - 1):
            value = value.narrow(axis, 0, 1)
        rest = value.shape[len(self._axes) :]
        msg["value"] = value.expand(*self._axes, *rest).reshape(-1, *rest)

    def _components(self, fn: Any, bare: Any, place: int) -> tuple[Tensor, Tensor]:
        """Draw from the component of each particle; return also its log-weight, ``[P, ..., B]``."""
        rows = (*fn.batch_shape[1:], self._axes[place])
        of_particles = (fn.batch_shape[0], *rows)
        components, event_dim = bare.component_distribution, len(fn.event_shape)
        log_weights = bare.mixture_distribution.logits.log_softmax(-1)
        if log_weights.dim() == len(of_particles):
            weights = self._diagonal(log_weights.expand(of_particles), place, 0)
        else:
            weights = self._placed(log_weights.expand(rows).movedim(-1, 0), place)
        if len(components.batch_shape) == len(of_particles):
            drawn = components.expand(of_particles).rsample()
            return self._diagonal(drawn, place, event_dim), weights
        # The parameters are the same for all particles: none draws from another's component.
        others = [*self._axes[:place], *self._axes[place + 1 :]]
        drawn = components.expand(rows).rsample(torch.Size(others))
        drawn = drawn.movedim(drawn.dim() - 1 - event_dim, place)
        return drawn.flatten(0, len(others)), weights

    def _placed(self, values: Tensor, place: int) -> Tensor:
        """Give the particles of each stratum its own of ``[K, *rest]``: ``[P, *rest]``."""
        leading = [1] * len(self._axes)
        leading[place] = len(values)
        rest = values.shape[1:]
        return values.reshape(*leading, *rest).expand(*self._axes, *rest).reshape(-1, *rest)

    def _diagonal(self, values: Tensor, place: int, event_dim: int) -> Tensor:
        """Take of ``[P, ..., K, *event]`` the component of each particle: ``[P, ..., *event]``."""
        components = values.dim() - 1 - event_dim + len(self._axes) - 1
        taken = values.unflatten(0, self._axes).diagonal(dim1=place, dim2=components)
        return taken.movedim(-1, place).flatten(0, len(self._axes) - 1)


def _values(fn: Any, bare: Any) -> Tensor:
    """Return all values of one event, ``[K, *event_shape]``: every choice at every place."""
    each = bare.enumerate_support(expand=False)
    each = each.reshape(len(each), *bare.event_shape)
    num_places = _num_places(fn, bare)
    if num_places == 1:
        return each.reshape(len(each), *fn.event_shape)
    number = torch.arange(len(each) ** num_places, device=each.device).unsqueeze(-1)
    powers = len(each) ** torch.arange(num_places - 1, -1, -1, device=each.device)
    digits = number // powers % len(each)
    return each[digits].reshape(len(number), *fn.event_shape)


# ------------------------------------------------------------------------- means over the particles


def log_share_of(
    guide_trace: Trace,
    log_q: Mapping[str, Tensor],
    strata: Strata,
    per_datum: Callable[[Tensor], Tensor],
) -> Tensor:
    r"""Return the log of what each particle counts, ``[P, B]``; all of them count 1 together.

    .. math:: \log \frac1S \prod_i q(k_i)

    with the probability of the value, or the weight of the component, at each marked site. Where a
    mask leaves a site out, all values count alike: they are but draws of the other latents.

    Args:
        guide_trace: Run under ``Stratified``.
        log_q: Of the latents, ``[P, B]`` each.
        strata: Of the program.
        per_datum: Brings what a site has for its batch into the shape ``[P, B]``.
    """
    shares = []
    for stratum in strata.sites:
        site = guide_trace.nodes[stratum.name]
        weights, mask = site["infer"].get(_WEIGHTS), site["mask"]
        share = log_q[stratum.name] if weights is None else per_datum(weights)
        if mask is not None and mask is not True:
            left_out = per_datum(torch.where(torch.as_tensor(mask), 0.0, 1.0)) > 0
            share = torch.where(left_out, -math.log(stratum.num), share)
        shares.append(share)
    num_samples = len(shares[0]) // strata.num
    return torch.stack(shares).sum(0) - math.log(num_samples)


def average(values: Tensor, log_share: Tensor | None) -> Tensor:
    """Return the mean over the particles, ``[S, B, ...]`` to ``[B, ...]``.

    Args:
        values: ``[S, B, ...]``.
        log_share: What each of them counts, ``[S, B]``, so that all together count 1; None: alike.
    """
    if log_share is None:
        return values.mean(0)
    share = log_share.exp().reshape(*log_share.shape, *[1] * (values.dim() - 2))
    # What counts nothing may be infinite: log w of a value that q cannot have.
    return (share * torch.where(share > 0, values, 0.0)).sum(0)


def log_average_exp(log_w: Tensor, log_share: Tensor | None) -> Tensor:
    """Return the log of the mean of exponentials over the first dimension, ``[S, ...]``.

    Args:
        log_w: ``[S, ...]``.
        log_share: As for ``average``, of the shape of ``log_w``.
    """
    if log_share is None:
        return log_w.logsumexp(0) - math.log(len(log_w))
    counted = torch.where(log_share == -math.inf, -math.inf, log_w + log_share)
    return counted.logsumexp(0)
