"""Mixtures: of normals with parameters of their own, and of the posteriors of pseudo-inputs."""

from __future__ import annotations

import math
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor, nn
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

from pyro_vae.budget import refuse_numbers
from pyro_vae.components.conditional import Conditional, Distribution, Family, Shape, positive
from pyro_vae.components.networks.inputs import alike

__all__ = ["DiagonalNormalMixture", "MixtureOfNormals", "VampPrior"]

# Of a pseudo-input's range, at either end.
_MARGIN = 0.05
# Numbers of pairs of a datum and a pseudo-input that are scored at once: 16 MB of float32, of which
# a flow's networks hold some twenty times as much.
_PAIRED_NUMBERS = 2**22


class DiagonalNormalMixture(TorchDistribution):
    r"""K normals with independent coordinates, in memory for B x K numbers.

    .. math:: \log p(z) = \log \sum_k \pi_k \prod_d N(z_d; \mu_{kd}, \sigma_{kd}^2)

    The square is multiplied out, so that the sums over D are matrix products and no tensor has an
    entry for every datum, component and dimension:

    .. math::
        \sum_d \frac{(z_d - \mu_{kd})^2}{\sigma_{kd}^2} = \sum_d z_d^2 \frac{1}{\sigma_{kd}^2}
        - 2 \sum_d z_d \frac{\mu_{kd}}{\sigma_{kd}^2} + \sum_d \frac{\mu_{kd}^2}{\sigma_{kd}^2}

    The terms cancel where components are narrow, so they are computed in float64, under which
    neither TF32 nor autocast rounds them; devices without it compute in float32, and are wrong by
    about :math:`10^{-7} \mu^2 / \sigma^2`.

    Args:
        logits: The weights' logits, ``[*batch, K]``.
        loc: ``[*batch, K, *event]``.
        scale: Likewise.
        event_dim: How many axes an event has.
        validate_args: As for every distribution of torch.
    """

    arg_constraints = {  # noqa: RUF012
        "logits": constraints.real_vector,
        "loc": constraints.real,
        "scale": constraints.positive,
    }

    def __init__(
        self,
        logits: Tensor,
        loc: Tensor,
        scale: Tensor,
        *,
        event_dim: int = 1,
        validate_args: bool | None = None,
    ) -> None:
        self.logits, self.loc, self.scale = logits, loc, scale
        batch_shape = torch.broadcast_shapes(logits.shape, loc.shape[: loc.dim() - event_dim])[:-1]
        event_shape = loc.shape[loc.dim() - event_dim :]
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=False)
    def support(self) -> Any:
        """All real numbers."""
        return constraints.independent(constraints.real, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> DiagonalNormalMixture:
        """Return it with another batch shape; the parameters stay as small as they are."""
        new = self._get_checked_instance(DiagonalNormalMixture, _instance)
        new.logits, new.loc, new.scale = self.logits, self.loc, self.scale
        shape = torch.Size(batch_shape)
        super(DiagonalNormalMixture, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mean(self) -> Tensor:
        """The weighted mean of the locations."""
        return self._average(self.loc)

    @property
    def variance(self) -> Tensor:
        """Of the mixture, within and between components."""
        return self._average(self.scale**2 + self.loc**2) - self.mean**2

    def _average(self, parameter: Tensor) -> Tensor:
        weights = self.logits.softmax(-1).reshape(*self.logits.shape, *[1] * self.event_dim)
        average = (weights * parameter).sum(-1 - self.event_dim)
        return average.expand(self.batch_shape + self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a component, then from it."""
        shape = torch.Size(sample_shape) + self.batch_shape
        logits = self.logits.expand(self.batch_shape + self.logits.shape[-1:])
        chosen = dist.Categorical(logits=logits).sample(torch.Size(sample_shape))
        loc, scale = (_chosen(p, chosen, self.event_dim) for p in (self.loc, self.scale))
        noise = torch.randn(shape + self.event_shape, dtype=loc.dtype, device=loc.device)
        return loc + scale * noise

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density, ``[*batch]``."""
        if self._validate_args:
            self._validate_sample(value)
        wide = value.dtype if value.device.type == "mps" else torch.float64
        z, loc, scale = (self._flat(x).to(wide) for x in (value, self.loc, self.scale))
        # A common centre takes away what all terms share; the density does not depend on it.
        centre = loc.detach().mean(-2, keepdim=True)
        z, loc, precision = z - centre.squeeze(-2), loc - centre, scale.reciprocal().square()
        weighted = loc * precision
        of_components = (
            self.logits.to(wide).log_softmax(-1) - scale.log().sum(-1)
            - 0.5 * (z.shape[-1] * math.log(2 * math.pi) + (loc * weighted).sum(-1))
        )  # fmt: skip
        of_pairs = _rows_times(
            torch.cat([-0.5 * z * z, z], -1), torch.cat([precision, weighted], -1)
        )
        narrow = torch.promote_types(value.dtype, torch.float32)
        log_p = _logsumexp(of_pairs + of_components, narrow).to(value.dtype)
        return log_p.expand(torch.broadcast_shapes(log_p.shape, self.batch_shape))

    def _flat(self, x: Tensor) -> Tensor:
        return x.flatten(x.dim() - self.event_dim)


def _logsumexp(terms: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum the exponentials of the last axis in ``dtype``, whatever the width of ``terms``."""
    largest = terms.detach().amax(-1, keepdim=True)
    # Weights below e^-80 change no digit, and would be slow to compute with as denormal numbers.
    below = (terms - largest).to(dtype).clamp(min=-80)
    return largest.squeeze(-1).to(dtype) + below.exp().sum(-1).log()


def _rows_times(rows: Tensor, columns: Tensor) -> Tensor:
    """Multiply ``[*batch, F]`` with the transpose of ``[*batch, K, F]``."""
    if columns.dim() == 2:
        return rows @ columns.mT
    return (rows.unsqueeze(-2) @ columns.mT).squeeze(-2)


def _chosen(parameter: Tensor, chosen: Tensor, event_dim: int) -> Tensor:
    """Take from ``[*batch, K, *event]`` the component of each of ``[*sample, *batch]``."""
    if parameter.dim() == 1 + event_dim:
        return parameter[chosen]
    event_shape = parameter.shape[parameter.dim() - event_dim :]
    num_components = parameter.shape[-1 - event_dim]
    every = parameter.expand(*chosen.shape, num_components, *event_shape)
    index = chosen.reshape(*chosen.shape, 1, *[1] * event_dim)
    return every.gather(chosen.dim(), index.expand(*chosen.shape, 1, *event_shape)).squeeze(
        chosen.dim()
    )


class MixtureOfNormals(Family):
    r"""A mixture of K normals with independent coordinates, all of it learned.

    .. math:: p(z) = \sum_k \pi_k \, N(z; a_k + \mu_k, \mathrm{diag}(\sigma_k^2))

    Raw numbers are ``[*batch, K, 1 + 2 D]`` for D numbers an event: logit, location, raw scale.
    The anchors :math:`a_k`, standard normal draws that stay, tell the components apart.
    As a posterior its samples carry no gradients, since a component is chosen: objectives with a
    score function train it, such as RLOO and VIMCO. (Pyro's MixtureOfDiagNormals has gradients of
    samples, but they are NaN where locations coincide or densities underflow.)

    Args:
        event_shape: The shape of one event.
        num_components: K.

    Raises:
        ValueError: If there are no components.
    """

    anchors: Tensor

    def __init__(self, event_shape: Shape, *, num_components: int = 10) -> None:
        if num_components < 1:
            raise ValueError(
                f"num_components={num_components}: a mixture has one component or more"
            )
        super().__init__(event_shape, raw_shape=(num_components, 1 + 2 * math.prod(event_shape)))
        self.register_buffer("anchors", torch.randn(num_components, *self.event_shape))

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the mixture of ``raw``, ``[*batch, K, 1 + 2 D]``."""
        if raw is None:
            raise ValueError("MixtureOfNormals needs its raw parameters")
        logits, parameters = raw[..., 0], raw[..., 1:].unflatten(-1, (2, *self.event_shape))
        loc, raw_scale = parameters.unbind(-1 - len(self.event_shape))
        return DiagonalNormalMixture(
            logits, self.anchors + loc, positive(raw_scale), event_dim=len(self.event_shape)
        )

    def extra_repr(self) -> str:
        """Show the event's shape and the number of components."""
        return f"event_shape={self.event_shape}, num_components={self.raw_shape[0]}"


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
        num_pseudo_inputs: K.

    Raises:
        ValueError: If there are no pseudo-inputs; later, if the prior has not met q(z | x), or
            their shapes do not fit.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018)
    """

    low: Tensor
    width: Tensor

    def __init__(self, event_shape: Shape, *, num_pseudo_inputs: int = 500) -> None:
        if num_pseudo_inputs < 1:
            raise ValueError(
                f"num_pseudo_inputs={num_pseudo_inputs}: a VampPrior has one pseudo-input or more"
            )
        super().__init__(event_shape, raw_shape=(0,))
        self.num_pseudo_inputs = num_pseudo_inputs
        # In a tuple, so that the encoder's parameters are registered where they belong only.
        self._posterior: tuple[Conditional, ...] = ()

    def meet(self, posterior: Conditional | None, data: Tensor | None) -> None:
        """Share the encoder and start the pseudo-inputs at rows of the data.

        Args:
            posterior: q(z | x), over events of this shape.
            data: Observations, ``[N, *context_shape]`` for contexts of the posterior's.

        Raises:
            ValueError: If either is missing or their shapes do not fit.
            OverBudgetError: If memory cannot hold the pseudo-inputs.
        """
        if posterior is None or data is None:
            missing = "posterior" if posterior is None else "data"
            raise ValueError(
                f"VampPrior is made of posteriors of data, and {missing}=None: as a prior, build "
                "the model with assemble(..., data=x), or call meet(posterior, x)"
            )
        if posterior.family.event_shape != self.event_shape:
            raise ValueError(
                f"VampPrior over event_shape={self.event_shape} meets a posterior over "
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

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the average of the K posteriors; there are no raw numbers."""
        if not self._posterior:
            raise ValueError(
                "this VampPrior has not met q(z | x): build the model with assemble(..., data=x), "
                "or call meet(posterior, x)"
            )
        (posterior,), inputs = self._posterior, self.pseudo_inputs()
        parts, event_dim = posterior(inputs), len(self.event_shape)
        if isinstance(parts, dist.Independent) and type(parts.base_dist) is dist.Normal:
            loc, scale = parts.base_dist.loc, parts.base_dist.scale
            return DiagonalNormalMixture(loc.new_zeros(len(loc)), loc, scale, event_dim=event_dim)
        return _AverageOfPosteriors(posterior, inputs, parts)

    def extra_repr(self) -> str:
        """Show the event's shape and the number of pseudo-inputs."""
        return f"event_shape={self.event_shape}, num_pseudo_inputs={self.num_pseudo_inputs}"


class _AverageOfPosteriors(TorchDistribution):
    """The even mixture of K posteriors of any family."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, posterior: Conditional, inputs: Tensor, parts: Distribution) -> None:
        self._posterior, self._inputs, self._parts = posterior, inputs, parts
        super().__init__((), self._parts.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        return self._parts.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> _AverageOfPosteriors:
        new = self._get_checked_instance(_AverageOfPosteriors, _instance)
        new._posterior, new._inputs, new._parts = self._posterior, self._inputs, self._parts
        shape = torch.Size(batch_shape)
        super(_AverageOfPosteriors, new).__init__(shape, self.event_shape, validate_args=False)
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        # Drawing from the chosen posteriors alone spares K draws for each.
        shape = torch.Size(sample_shape) + self.batch_shape
        chosen = torch.randint(len(self._inputs), shape, device=self._inputs.device)
        return self._posterior(self._inputs[chosen]).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        batch_shape = value.shape[: value.dim() - self.event_dim]
        rows = value.reshape(-1, *self.event_shape)
        at_once = max(1, _PAIRED_NUMBERS // (len(self._inputs) * rows[:1].numel()))
        if len(rows) <= at_once:
            log_p = self._average(rows)
        else:
            # What a block holds is computed again on the way back, for one block at a time.
            log_p = torch.cat(
                [
                    checkpoint(self._average, block, use_reentrant=False, preserve_rng_state=False)
                    for block in rows.split(at_once)
                ]
            )
        log_p = log_p.reshape(batch_shape)
        return log_p.expand(torch.broadcast_shapes(batch_shape, self.batch_shape))

    def _average(self, rows: Tensor) -> Tensor:
        log_q = self._parts.log_prob(rows.unsqueeze(-1 - self.event_dim))
        return log_q.logsumexp(-1) - math.log(len(self._inputs))
