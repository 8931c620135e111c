"""Families of directions: the uniform prior on a sphere, and the von Mises-Fisher posterior."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.distributions import positive

__all__ = ["UniformSphere", "VonMisesFisher"]


class UniformSphere(Family):
    r"""The uniform distribution on the unit sphere :math:`S^{D-1}` of the last axis.

    The prior of a von Mises-Fisher posterior; there are no raw numbers.

    Args:
        event_shape: The shape of one event; its last size is D, further axes hold independent
            directions.

    Raises:
        ValueError: If D is less than 2.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson, Falorsi, De Cao, Kipf & Tomczak, 2018)
    """

    roles = ("prior",)

    zeros: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(0,))
        if event_shape[-1] < 2:
            raise ValueError(
                f"UniformSphere over event_shape={tuple(event_shape)}: a sphere has two or more "
                "dimensions on the last axis"
            )
        self.register_buffer("zeros", torch.zeros(self.event_shape), persistent=False)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the uniform distribution; there are no raw numbers."""
        return distributions.HypersphericalUniform(self.zeros).to_event(len(self.event_shape) - 1)


class VonMisesFisher(Family):
    r"""Von Mises-Fisher on the unit sphere: :math:`q(z) = C_D(\kappa) \exp(\kappa \mu^\top z)`.

    For the prior ``UniformSphere``, to which the KL is in closed form. The D + 1 raw numbers of a
    direction are a vector, whose direction :math:`\mu` is, and the raw concentration.

    Args:
        event_shape: The shape of one event; its last size is D, further axes hold independent
            directions.

    Raises:
        ValueError: If D is less than 2.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson, Falorsi, De Cao, Kipf & Tomczak, 2018)
    """

    data = "directions"
    synonyms = ("vMF",)

    axis: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape) -> None:
        *others, size = event_shape
        if size < 2:
            raise ValueError(
                f"VonMisesFisher over event_shape={tuple(event_shape)}: a sphere has two or more "
                "dimensions on the last axis"
            )
        super().__init__(event_shape, raw_shape=(*others, size + 1))
        # Keeps the vector from zero, where it has no direction.
        self.register_buffer("axis", 0.1 * torch.eye(size)[0], persistent=False)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution of ``raw``, ``[*batch, ..., D + 1]``."""
        loc = nn.functional.normalize(raw[..., :-1] + self.axis, dim=-1)
        sphere = distributions.VonMisesFisher(loc, positive(raw[..., -1]))
        return sphere.to_event(len(self.event_shape) - 1)
