"""Likelihoods of tables: columns of different kinds, and entries that were not observed."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.components.likelihoods import Bernoulli, Normal
from pyro_vae.components.scales import OptimalScale

__all__ = ["Columns", "Incomplete"]


class Columns(Family):
    """A row whose columns are of different kinds, independent given the latents.

    For tables of real numbers, bits, categories and counts: each column has a family of its own
    over a single number, ``Columns((4,), columns=[Normal, Bernoulli, Automatic.of(dist.Poisson),
    partial(Categorical, num_categories=5)])``. Raw numbers are those of all columns, one after the
    other.

    Args:
        event_shape: The shape of one datum, ``(D,)``.
        columns: D builders of families from the shape ``(1,)``. The command line takes them from
            the data unless they are given.

    Raises:
        ValueError: If there are not as many columns as the datum has numbers, or one's family is
            not over single numbers.
    """

    roles = ("likelihood",)
    data = "tables"
    example: ClassVar = {"columns": (Normal, Bernoulli, Bernoulli, Normal)}

    @at_the_door
    def __init__(
        self, event_shape: Shape, *, columns: Sequence[Callable[[Shape], Family]] = ()
    ) -> None:
        if len(event_shape) != 1 or event_shape[0] != len(columns):
            raise ValueError(
                f"Columns over event_shape={tuple(event_shape)}: {len(columns)} columns were given;"
                " give one for each number of a row"
            )
        families = [build((1,)) for build in columns]
        for place, family in enumerate(families):
            _entries(family(torch.zeros(family.raw_shape)), f"columns[{place}]", family)
        sizes = [math.prod(family.raw_shape) for family in families]
        super().__init__(event_shape, raw_shape=(sum(sizes),))
        self.columns = nn.ModuleList(families)
        self._sizes = sizes

    @property
    def _families(self) -> list[Any]:
        return list(self.columns)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution of rows from ``raw``, ``[*batch, all columns' raw numbers]``."""
        entries = [
            family(part.unflatten(-1, family.raw_shape)).base_dist
            for family, part in zip(self._families, raw.split(self._sizes, -1), strict=True)
        ]
        return distributions.Columns(entries).to_event(1)

    def raw_from(self, data: Tensor) -> Tensor:
        """Return each column's raw numbers at its data, zeros where it knows none."""
        parts = []
        for family, column in zip(self._families, data.split(1, dim=1), strict=True):
            raw = family.raw_from(column)
            parts.append(data.new_zeros(family.raw_shape) if raw is None else raw)
        return torch.cat([part.flatten() for part in parts])

    def measured(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Let each column's family take the units of its column."""
        pairs = zip(loc.split(1), scale.split(1), strict=True)
        taken = [f.measured(*pair) for f, pair in zip(self._families, pairs, strict=True)]
        locs, scales = zip(*taken, strict=True)
        return torch.cat(locs), torch.cat(scales)


class Incomplete(Family):
    """Any family over independent numbers, of which some have not been observed.

    A number that is NaN in a datum is missing: the log-density is that of the others, so a bound
    is one of the observed numbers. ``assemble`` gives the encoder zeros in the places of missing
    numbers, and a mask beside them.

    Args:
        event_shape: The shape of one datum.
        family: Builds the family of complete data, such as ``Normal`` or ``partial(Columns, ...)``.

    Raises:
        ValueError: If that family is not one over independent numbers.

    References:
        MIWAE: Deep Generative Modelling and Imputation of Incomplete Data Sets
        (Mattei & Frellsen, 2019)
    """

    roles = ("likelihood",)
    data = "tables"

    fill: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape, *, family: Callable[[Shape], Family] = Normal) -> None:
        complete = built("family", family, Family, event_shape)
        super().__init__(event_shape, raw_shape=complete.raw_shape)
        if any(isinstance(module, OptimalScale) for module in complete.modules()):
            raise ValueError(
                "Incomplete with an OptimalScale: its closed form is that of complete data; "
                "give the Normal a SharedScale"
            )
        entries = _entries(complete(torch.zeros(complete.raw_shape)), "family", complete)
        self.complete: Family = complete
        self.register_buffer("fill", _inside(entries.support, self.event_shape))

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution of complete and incomplete data, from ``raw`` of the family's."""
        entries = self.complete(raw).base_dist
        incomplete = distributions.Incomplete(entries, self.fill)
        return incomplete.to_event(len(self.event_shape))

    def raw_from(self, data: Tensor) -> Tensor | None:
        """Return the complete family's raw numbers of what has been observed."""
        return self.complete.raw_from(data)

    def measured(self, loc: Tensor, scale: Tensor) -> tuple[Tensor, Tensor]:
        """Let the complete family take the units of the data."""
        return self.complete.measured(loc, scale)


def _entries(distribution: Any, name: str, family: Family) -> Any:
    """Return the distribution of single numbers that an event consists of."""
    entries = getattr(distribution, "base_dist", None)
    axes = getattr(distribution, "reinterpreted_batch_ndims", 0)
    if axes != len(family.event_shape) or entries is None or len(entries.event_shape):
        raise ValueError(
            f"{name} is {type(family).__name__}, whose numbers depend on each other within a "
            "datum: take a family over independent numbers, such as Normal or Categorical"
        )
    return entries


def _inside(support: Any, shape: Shape) -> Tensor:
    """Return numbers that lie inside the support of each entry."""
    found, fill = torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)
    for candidate in (0.5, 1.0, 0.0):
        inside = support.check(torch.full(shape, candidate)) & ~found
        fill, found = torch.where(inside, candidate, fill), found | inside
    if not bool(found.all()):
        raise ValueError(f"Incomplete: no number to stand for a missing one lies in {support}")
    return fill
