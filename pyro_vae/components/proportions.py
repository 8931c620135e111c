"""Proportions that sum to one, such as those of topics: the Dirichlet, and what approximates it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pyro.distributions as dist
import torch
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.distributions import positive

__all__ = ["Dirichlet", "LaplaceDirichlet"]

# Below, float32 has no room for the smallest of the proportions that are drawn.
_SMALLEST = 0.01


class Dirichlet(Family):
    r"""Proportions that sum to one, :math:`p(z) \propto \prod_k z_k^{a_k - 1}`.

    Reparameterised by implicit gradients. As the prior of topic models its concentration is given;
    as a posterior it is predicted, 0.01 or more.

    Args:
        event_shape: The shape of one event, ``(K,)``.
        concentration: a, one number for all or one for each; None: predicted, or learned as a
            prior's. Below 1 most proportions are near zero.

    Raises:
        ValueError: If there are fewer than two proportions, or a concentration is not positive.

    References:
        Latent Dirichlet Allocation (Blei, Ng & Jordan, 2003)
        Implicit Reparameterization Gradients (Figurnov, Mohamed & Mnih, 2018)
    """

    roles = ("posterior", "prior")

    concentration: Tensor | None

    @at_the_door
    def __init__(
        self, event_shape: Shape, *, concentration: float | Sequence[float] | None = None
    ) -> None:
        size = _num_proportions("Dirichlet", event_shape)
        super().__init__(event_shape, raw_shape=(size if concentration is None else 0,))
        given = None if concentration is None else _concentrations(size, concentration)
        self.register_buffer("concentration", given, persistent=False)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the Dirichlet of ``raw``, ``[*batch, K]``; of none, where it is given."""
        given = self.concentration
        return dist.Dirichlet(positive(raw, floor=_SMALLEST) if given is None else given)


class LaplaceDirichlet(Family):
    r"""The Laplace approximation of a Dirichlet: a normal whose softmax is about Dir(a).

    .. math:: \mathrm{loc}_k = \log a_k - \frac1K \sum_i \log a_i, \qquad
        \mathrm{scale}_k^2 = \frac1{a_k} \Bigl(1 - \frac2K\Bigr) + \frac1{K^2} \sum_i \frac1{a_i}

    The prior of ProdLDA. A normal posterior goes with it, whose KL from it has a closed form.

    Args:
        event_shape: The shape of one latent, ``(K,)``.
        concentration: a, one number for all or one for each.

    Raises:
        ValueError: If there are fewer than two proportions, or a concentration is not positive.

    References:
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
        Choice of Basis for Laplace Approximation (MacKay, 1998)
    """

    roles = ("prior",)

    loc: Tensor
    scale: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape, *, concentration: float | Sequence[float] = 1.0) -> None:
        size = _num_proportions("LaplaceDirichlet", event_shape)
        super().__init__(event_shape, raw_shape=(0,))
        a = _concentrations(size, concentration)
        variance = (1 - 2 / size) / a + (1 / a).mean() / size
        self.register_buffer("loc", a.log() - a.log().mean(), persistent=False)
        self.register_buffer("scale", variance.sqrt(), persistent=False)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the normal; there are no raw numbers."""
        return dist.Normal(self.loc, self.scale).to_event(1)


def _num_proportions(name: str, event_shape: Shape) -> int:
    if len(event_shape) != 1 or event_shape[0] < 2:
        raise ValueError(
            f"{name} over event_shape={tuple(event_shape)}: it is over the proportions of 2 topics "
            "or more, one vector, such as (50,)"
        )
    return event_shape[0]


def _concentrations(size: int, given: float | Sequence[float]) -> Tensor:
    """Return one concentration for each proportion, ``[K]``."""
    values = list(given) if isinstance(given, Sequence) else [given] * size
    wrong = next((each for each in values if not 0 < each < math.inf), None)
    if wrong is not None:
        raise ValueError(f"concentration={wrong:g}: give a finite number above 0, such as 0.02")
    if len(values) != size:
        raise ValueError(
            f"concentration has {len(values)} numbers for {size} proportions: give one for each, "
            "or one number for all"
        )
    return torch.tensor(values, dtype=torch.get_default_dtype())
