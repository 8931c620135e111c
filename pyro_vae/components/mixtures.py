"""Mixtures: of normals with parameters of their own, and of the posteriors of pseudo-inputs."""

from __future__ import annotations

import math
from typing import ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.budget import refuse_numbers
from pyro_vae.components.conditional import Conditional, Distribution, Family, Shape
from pyro_vae.components.networks.inputs import alike
from pyro_vae.distributions import AverageOfConditionals, DiagonalNormalMixture, positive

__all__ = ["MixtureOfNormals", "StratifiedMixture", "VampPrior"]

# Of a pseudo-input's range, at either end.
_MARGIN = 0.05


class MixtureOfNormals(Family):
    r"""A mixture of K normals with independent coordinates, all of it learned.

    .. math:: p(z) = \sum_k \pi_k \, N(z; a_k + \mu_k, \mathrm{diag}(\sigma_k^2))

    Raw numbers are ``[*batch, K, 1 + 2 D]`` for D numbers an event: logit, location, raw scale.
    The anchors :math:`a_k`, standard normal draws that stay, tell the components apart.
    As a posterior its samples carry no gradients, since a component is chosen: objectives with a
    score function train it, such as RLOO and VIMCO; ``StratifiedMixture`` has gradients. (Pyro's
    MixtureOfDiagNormals has gradients of samples, but they are NaN where locations coincide or
    densities underflow.)

    Args:
        event_shape: The shape of one event.
        num_components: The number of components, K.

    Raises:
        ValueError: If there are no components.
    """

    synonyms = ("MoG", "GMM")

    anchors: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_components: int = 10) -> None:
        if num_components < 1:
            raise ValueError(
                f"num_components={num_components}: a mixture has one component or more"
            )
        super().__init__(event_shape, raw_shape=(num_components, 1 + 2 * math.prod(event_shape)))
        self.register_buffer("anchors", torch.randn(num_components, *self.event_shape))

    def forward(self, raw: Tensor) -> Distribution:
        """Return the mixture of ``raw``, ``[*batch, K, 1 + 2 D]``."""
        logits, parameters = raw[..., 0], raw[..., 1:].unflatten(-1, (2, *self.event_shape))
        loc, raw_scale = parameters.unbind(-1 - len(self.event_shape))
        return DiagonalNormalMixture(
            logits, self.anchors + loc, positive(raw_scale), event_dim=len(self.event_shape)
        )

    def extra_repr(self) -> str:
        """Show the event's shape and the number of components."""
        return f"event_shape={self.event_shape}, num_components={self.raw_shape[0]}"


class StratifiedMixture(MixtureOfNormals):
    r"""A mixture of K normals as a posterior with gradients: a particle for each component.

    .. math:: E_q[f] = \sum_k \pi_k \, E_{\epsilon}[f(\mu_k + \sigma_k \epsilon)]

    The density is that of the whole mixture, and the weights have exact gradients. A step costs as
    much as one with K times the particles. Objectives that take means over particles train it, such
    as ELBO, IWAE and BetaVAE; elsewhere it is ``MixtureOfNormals``.

    Args:
        event_shape: The shape of one event.
        num_components: The number of components, K.

    Raises:
        ValueError: If there are no components.

    References:
        Automatic Differentiation Variational Inference with Mixtures (Morningstar, Vikram, Ham,
        Gallagher & Dillon, 2021)
    """

    roles = ("posterior",)
    example: ClassVar = {"num_components": 2}

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_components: int = 4) -> None:
        super().__init__(event_shape, num_components=num_components)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the mixture of ``raw``, ``[*batch, K, 1 + 2 D]``."""
        mixture = super().forward(raw)
        mixture.stratified = True
        return mixture


class VampPrior(Family):
    r"""The average of the posteriors of K learned pseudo-inputs, each like a datum.

    .. math:: p(z) = \frac{1}{K} \sum_{k=1}^K q(z \mid u_k), \qquad u_k = a + (b - a) \sigma(r_k)

    a and b are the smallest and largest of the data: in each column of vectors, in each channel
    of images. The pseudo-inputs start at rows of the data, drawn in to a twentieth of the range
    from its ends, where they would not move; what is missing (NaN) starts in the middle. The prior
    takes part in the training of q: its parameters are the encoder's, which is run on the
    pseudo-inputs once for every call. With normal posteriors of independent coordinates no tensor
    has an entry for every datum, pseudo-input and dimension.

    Args:
        event_shape: The shape of one latent.
        num_pseudo_inputs: The number of pseudo-inputs, K.

    Raises:
        ValueError: If there are no pseudo-inputs; later, if the prior has not met q(z | x), or
            their shapes do not fit.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018)
    """

    roles = ("prior",)
    example: ClassVar = {"num_pseudo_inputs": 3}

    low: Tensor
    width: Tensor

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_pseudo_inputs: int = 500) -> None:
        if num_pseudo_inputs < 1:
            raise ValueError(
                f"num_pseudo_inputs={num_pseudo_inputs}: a VampPrior has one pseudo-input or more"
            )
        super().__init__(event_shape, raw_shape=(0,))
        self.num_pseudo_inputs = num_pseudo_inputs
        # In a tuple, so that the encoder's parameters are registered where they belong only.
        self._posterior: tuple[Conditional, ...] = ()

    def start_from_posterior(self, posterior: Conditional, data: Tensor | None) -> None:
        """Share the encoder and start the pseudo-inputs at rows of the data.

        Args:
            posterior: q(z | x), over events of this shape.
            data: Observations, ``[N, *context_shape]`` for contexts of the posterior's.

        Raises:
            ValueError: If there are no data or the shapes do not fit.
            OverBudgetError: If memory cannot hold the pseudo-inputs.
        """
        if data is None:
            raise ValueError(
                "VampPrior is made of posteriors of data, and data=None: build the model with "
                "assemble(..., data=x), or call start_from_posterior(posterior, x)"
            )
        if posterior.family.event_shape != self.event_shape:
            raise ValueError(
                f"VampPrior over event_shape={self.event_shape} is given a posterior over "
                f"{posterior.family.event_shape}: give both the shape of the latent"
            )
        if len(data) == 0 or tuple(data.shape[1:]) != posterior.context_shape:
            raise ValueError(
                f"pseudo-inputs of shape {tuple(data.shape[1:])} from {len(data)} rows, and the "
                f"posterior takes {posterior.context_shape}: give the prior the encoder's data"
            )
        # With their gradients and the two moments of an optimiser.
        shape = (self.num_pseudo_inputs, *data.shape[1:])
        refuse_numbers(4, shape, "pseudo-inputs", "give fewer")
        self._posterior = (posterior,)
        self._start_at(data)

    @torch.no_grad()
    def _start_at(self, data: Tensor) -> None:
        known = data.isfinite()
        axes = alike(data)
        low = torch.where(known, data, math.inf).amin(axes, keepdim=True)[0]
        high = torch.where(known, data, -math.inf).amax(axes, keepdim=True)[0]
        self.register_buffer("low", torch.where(low <= high, low, 0.0))
        self.register_buffer("width", (high - low).clamp(min=0))
        rows = torch.randperm(len(data))
        times = -(-self.num_pseudo_inputs // len(data))
        chosen = data[rows.repeat(times)[: self.num_pseudo_inputs].to(data.device)]
        place = (chosen - self.low) / torch.where(self.width > 0, self.width, 1.0)
        logits = torch.logit(_MARGIN + (1 - 2 * _MARGIN) * place.nan_to_num(0.5))
        # Rows that are there twice come apart.
        self.raw_inputs = nn.Parameter(logits + _MARGIN * torch.randn_like(logits))

    def pseudo_inputs(self) -> Tensor:
        """Return the pseudo-inputs, ``[K, *data_shape]``, in the range of the data."""
        return self.low + self.width * self.raw_inputs.sigmoid()

    def forward(self, raw: Tensor) -> Distribution:
        """Return the average of the K posteriors; there are no raw numbers."""
        if not self._posterior:
            raise ValueError(
                "this VampPrior has not met q(z | x): build the model with assemble(..., data=x), "
                "or call start_from_posterior(posterior, x)"
            )
        (posterior,), inputs = self._posterior, self.pseudo_inputs()
        parts, event_dim = posterior(inputs), len(self.event_shape)
        if isinstance(parts, dist.Independent) and type(parts.base_dist) is dist.Normal:
            loc, scale = parts.base_dist.loc, parts.base_dist.scale
            return DiagonalNormalMixture(loc.new_zeros(len(loc)), loc, scale, event_dim=event_dim)
        return AverageOfConditionals(posterior, inputs, parts)

    def extra_repr(self) -> str:
        """Show the event's shape and the number of pseudo-inputs."""
        return f"event_shape={self.event_shape}, num_pseudo_inputs={self.num_pseudo_inputs}"
