"""Find the sites of traced programs, what they observe, and where in the arguments that is."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from pyro import poutine
from pyro.distributions import Delta, MaskedDistribution
from pyro.poutine.trace_struct import Trace
from torch import Tensor

from pyro_vae.inference.explaining import ProgramError

__all__ = [
    "Layout",
    "Strata",
    "Stratum",
    "View",
    "base_of",
    "data_frame",
    "dreamt",
    "is_invertible",
    "is_masked_out",
    "latent_sites",
    "line_of",
    "observed_places",
    "observed_sites",
    "points_of",
    "view_of",
]

# What Pyro calls the parts of a site that is sampled with ``obs_mask``.
_OBSERVED, _UNOBSERVED = "_observed", "_unobserved"


@dataclass(frozen=True)
class Stratum:
    """A site of the guide whose values or components are run through.

    Attributes:
        name: Of the site.
        num: How many there are.
        dtype: Of the values.
        of_components: Whether they are components of a mixture, not values of the site.
    """

    name: str
    num: int
    dtype: torch.dtype
    of_components: bool = False


@dataclass(frozen=True)
class Strata:
    """The sites of a guide that are run through, each value of one with each of the others.

    Attributes:
        sites: In the order of the guide; none where all are sampled.
        obstacle: Why they cannot be run through; None if they can.
    """

    sites: tuple[Stratum, ...] = ()
    obstacle: str | None = None

    @property
    def num(self) -> int:
        """How many particles one sample of the other latents takes."""
        return math.prod(stratum.num for stratum in self.sites)


@dataclass(frozen=True)
class Layout:
    """What one run of a program showed.

    Attributes:
        latents: The latent sites, in the order of the guide.
        observed: The sites that observe data, in the order of the model.
        max_plate_nesting: The depth of the innermost plate, 1 where "data" is the only one.
        vectorizes: Whether an extra dimension of particles on the left leaves every log-density
            what it is one particle at a time.
        full_size: How many data the plate stands for, where a batch is a subsample of them;
            Pyro's losses are then sums over all of those. None: of the batch alone.
        sampled_plate: A plate inside a datum that takes some of its elements at random; None: none.
        strata: The sites that are not sampled but run through, see ``pyro_vae.inference.strata``.
        points: The latents that the guide draws from a point, which has no density.
    """

    latents: tuple[str, ...]
    observed: tuple[str, ...]
    max_plate_nesting: int
    vectorizes: bool
    full_size: int | None = None
    sampled_plate: str | None = None
    strata: Strata = Strata()
    points: tuple[str, ...] = ()

    @property
    def generated(self) -> tuple[str, ...]:
        """The observed sites that are data to the program, to be reconstructed and sampled.

        What ``obs_mask`` observes of a latent in part is none: it is given, as a label is.
        """
        latents = {name for name in self.latents if name.endswith(_UNOBSERVED)}
        given = {name.removesuffix(_UNOBSERVED) + _OBSERVED for name in latents}
        return tuple(name for name in self.observed if name not in given)

    def sampled_weights(self, what: str) -> str | None:
        """Say why a power of the density would not have the mean of all elements; None if it has.

        Args:
            what: What takes the density to a power, such as "IWAE".
        """
        if self.sampled_plate is None:
            return None
        return (
            f"the plate {self.sampled_plate!r} inside a datum takes some elements at random: "
            f"log p(x, z) then has the mean of all of them, but not p(x, z), of which {what} is "
            "made; take the plate whole (leave subsample_size out), or use ELBO"
        )


def latent_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Yield the sites that a run sampled, by name."""
    for name, site in trace.nodes.items():
        if site["type"] == "sample" and not site["is_observed"] and not _is_subsample(site):
            yield name, site


def observed_sites(trace: Trace) -> Iterator[tuple[str, Any]]:
    """Yield the sites that a run observed, by name."""
    for name, site in trace.nodes.items():
        if site["type"] != "sample" or not site["is_observed"] or _is_subsample(site):
            continue
        if not site["infer"].get("_deterministic"):  # a record of a value, of density one
            yield name, site


def _is_subsample(site: Any) -> bool:
    return bool(poutine.util.site_is_subsample(site))


def data_frame(site: Any) -> Any:
    """Return the plate of the data that a site is in; None if it is in none."""
    frames = [f for f in site["cond_indep_stack"] if f.name == "data" and f.dim == -1]
    return frames[0] if frames else None


def points_of(model_trace: Trace, guide_trace: Trace) -> tuple[str, ...]:
    """Return the latents of continuous density that the guide draws from a point without one.

    A ``Delta`` with a ``log_density`` says the density of its value. One without may pass on the
    value of an auxiliary site, whose density is then that of the latent.
    """
    latents = dict(latent_sites(guide_trace))
    passes_on = any(site["infer"].get("is_auxiliary") for site in latents.values())
    return tuple(
        name
        for name, site in latents.items()
        if not getattr(base_of(site["fn"]), "has_density", True)
        or (
            not passes_on
            and _is_bare_delta(site["fn"])
            and _has_continuous_density(model_trace.nodes.get(name))
        )
    )


def base_of(fn: Any) -> Any:
    """Return the distribution that others only reshape, mask or transform."""
    while hasattr(fn, "base_dist"):
        fn = fn.base_dist
    return fn


def _is_bare_delta(fn: Any) -> bool:
    base = base_of(fn)
    return isinstance(base, Delta) and not bool(base.log_density.count_nonzero())


def _has_continuous_density(site: Any) -> bool:
    if site is None or isinstance(base_of(site["fn"]), Delta):
        return False
    try:
        return not site["fn"].support.is_discrete
    except (AttributeError, NotImplementedError):
        return not site["fn"].has_enumerate_support


def is_invertible(fn: Any) -> bool:
    """Whether a distribution can score values that it has not just drawn, and exactly so."""
    while not hasattr(fn, "transforms") and hasattr(fn, "base_dist"):
        fn = fn.base_dist
    if any(
        getattr(transform, "autoregressive", False) for transform in getattr(fn, "transforms", ())
    ):
        return False
    try:
        fn.log_prob(fn.sample().clone())
    except (KeyError, NotImplementedError):  # without an inverse it knows the last sample alone
        return False
    return True


def line_of(site: Any) -> str:
    """Say where a site was declared, as ``" (file.py:12)"``, if ``check`` ran the program."""
    return str(site["infer"].get("line", ""))


@dataclass(frozen=True)
class View:
    """Where in an argument of a program the value of a site lies, for any number of rows.

    Attributes:
        argument: Which of the arguments.
        size: Of the value; the rows of the data are its dimension ``dim``.
        stride: Of each dimension, in numbers of the argument.
        offset: Of the first number, likewise.
        dim: The dimension of the data.
    """

    argument: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int
    dim: int

    def of(self, arg: Tensor) -> Tensor:
        """Return the value that a contiguous argument ``[N, ...]`` gives, as a view of it."""
        size = (*self.size[: self.dim], len(arg), *self.size[self.dim + 1 :])
        return arg.as_strided(size, self.stride, arg.storage_offset() + self.offset)

    @property
    def repeats(self) -> bool:
        """Whether a number of the argument stands at several places of the value."""
        return any(step == 0 and n > 1 for n, step in zip(self.size, self.stride, strict=True))


def view_of(site: Any, args: tuple[Tensor, ...]) -> View | None:
    """Return where in the arguments the value of a site lies; None where it is computed.

    Args:
        site: Of a trace.
        args: What the program was called with, contiguous.
    """
    value = site["infer"].get("obs", site["value"])
    for number, arg in enumerate(args):
        if value.dtype != arg.dtype or not _share(value, arg):
            continue
        dim = value.dim() - 1 - len(site["fn"].event_shape)
        offset = value.storage_offset() - arg.storage_offset()
        by_rows = value.shape[dim] == len(arg) and value.stride(dim) == arg.stride(0)
        inside = 0 <= offset < max(1, math.prod(arg.shape[1:]))
        if by_rows and inside:
            return View(number, tuple(value.shape), value.stride(), offset, dim)
    return None


def _share(value: Tensor, arg: Tensor) -> bool:
    return value is arg or value.untyped_storage()._cdata == arg.untyped_storage()._cdata


def is_masked_out(site: Any) -> bool:
    """Say whether nothing that a site observes counts."""
    return any(mask is False for mask, _ in _masks(site))


def observed_places(site: Any) -> Tensor | None:
    """Return where a site's value counts, to be broadcast against it; None: everywhere.

    Elsewhere it is masked, by ``poutine.mask``, ``obs_mask`` or ``fn.mask``.
    """
    places = None
    for mask, num_event_dims in _masks(site):
        if isinstance(mask, Tensor):
            wide = mask.bool().reshape(*mask.shape, *[1] * num_event_dims)
            places = wide if places is None else places & wide
    return places


def _masks(site: Any) -> Iterator[tuple[Any, int]]:
    """Yield the masks of a site, and how many dimensions of its value each does not have."""
    fn = site["fn"]
    yield site["mask"], len(fn.event_shape)
    while hasattr(fn, "base_dist"):
        if isinstance(fn, MaskedDistribution):
            yield fn._mask, len(fn.event_shape)
        fn = fn.base_dist


def dreamt(dream: Any, layout: Layout, args: tuple[Any, ...], *, what: str, mend: str) -> Any:
    """Return the arguments with what a model has sampled in the place of what it observes.

    Args:
        dream: The trace of a model whose observed sites were sampled, with what they observe at
            ``site["infer"]["obs"]``, as ``poutine.uncondition`` leaves it.
        layout: Of the program.
        args: What the model was called with.
        what: Who needs the data, for the message.
        mend: What does without.

    Raises:
        ProgramError: If what a site observes is computed from the arguments.
    """
    found = list(args)
    for name in layout.observed:
        site = dream.nodes[name]
        whole = [number for number, arg in enumerate(args) if site["infer"]["obs"] is arg]
        if whole:
            found[whole[0]] = site["value"]
            continue
        view = view_of(site, args)
        if view is None or view.repeats:
            raise ProgramError(
                f"{what}, but what the model observes at {name!r}{line_of(site)} is made of its "
                f"argument, not the argument itself: write obs=x, or a part of it such as "
                f"obs=x[:, :2], or {mend}"
            )
        if found[view.argument] is args[view.argument]:
            found[view.argument] = args[view.argument].clone()
        view.of(found[view.argument]).copy_(site["value"])
    return tuple(found)
