"""The uniform distribution on a sphere: the prior of directions."""

from __future__ import annotations

import math
from typing import Any

import torch
from pyro.distributions import constraints
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn

from pyro_vae.components.conditional import Distribution, Family, Shape

__all__ = ["HypersphericalUniform", "UniformSphere"]


class HypersphericalUniform(TorchDistribution):
    r"""All directions alike: the uniform distribution on the unit sphere of D dimensions.

    .. math:: p(z) = \frac{\Gamma(D / 2)}{2 \pi^{D / 2}}, \qquad \|z\| = 1

    a density with respect to the sphere's own area, as that of von Mises and Fisher.

    Args:
        zeros: D zeros, ``[*batch, D]``: shape, type and device of an event.
        validate_args: As for every distribution of torch.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012
    support = constraints.sphere
    has_rsample = True

    def __init__(self, zeros: Tensor, validate_args: bool | None = None) -> None:
        self._zeros = zeros
        super().__init__(zeros.shape[:-1], zeros.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> HypersphericalUniform:
        """Return it with another batch shape."""
        zeros = self._zeros.expand(*batch_shape, self._zeros.shape[-1])
        return HypersphericalUniform(zeros, validate_args=self._validate_args)

    @property
    def mean(self) -> Tensor:
        """The centre of the sphere."""
        return self._zeros

    @property
    def variance(self) -> Tensor:
        """That of each coordinate, 1 / D."""
        return self._zeros + 1 / self._zeros.shape[-1]

    def entropy(self) -> Tensor:
        """Return the logarithm of the sphere's area, ``[*batch]``."""
        half = self._zeros.shape[-1] / 2
        log_area = math.log(2) + half * math.log(math.pi) - math.lgamma(half)
        return self._zeros[..., 0] + log_area

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw normals and scale them to length one."""
        shape = self._extended_shape(torch.Size(sample_shape))
        noise = torch.randn(shape, dtype=self._zeros.dtype, device=self._zeros.device)
        return nn.functional.normalize(noise, dim=-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return minus the logarithm of the sphere's area, the same for every direction."""
        if self._validate_args:
            self._validate_sample(value)
        return 0.0 * value.sum(-1) - self.entropy()


class UniformSphere(Family):
    r"""All directions alike, :math:`p(z) = \mathrm{Uniform}(S^{D-1})`, on the last axis.

    The prior of a von Mises-Fisher posterior; there are no raw numbers.

    Args:
        event_shape: The shape of one event; its last size is D, further axes hold independent
            directions.

    Raises:
        ValueError: If D is less than 2.

    References:
        Hyperspherical Variational Auto-Encoders (Davidson, Falorsi, De Cao, Kipf & Tomczak, 2018)
    """

    zeros: Tensor

    def __init__(self, event_shape: Shape) -> None:
        super().__init__(event_shape, raw_shape=(0,))
        if event_shape[-1] < 2:
            raise ValueError(
                f"UniformSphere over event_shape={tuple(event_shape)}: a sphere has two or more "
                "dimensions on the last axis"
            )
        self.register_buffer("zeros", torch.zeros(self.event_shape), persistent=False)

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the uniform distribution; there are no raw numbers."""
        return HypersphericalUniform(self.zeros).to_event(len(self.event_shape) - 1)
