"""Mixtures whose densities need no tensor of every datum, component and dimension."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import pyro.distributions as dist
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from torch import Tensor
from torch.distributions import constraints
from torch.utils.checkpoint import checkpoint

__all__ = ["AverageOfConditionals", "DiagonalNormalMixture"]

# Numbers of pairs of a datum and a component that are scored at once: 16 MB of float32, of which
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

    Attributes:
        stratified: Whether an objective draws from each component, see ``Enumerated``, wherever a
            guide has this distribution.
    """

    stratified = False

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
        new.stratified = self.stratified
        shape = torch.Size(batch_shape)
        super(DiagonalNormalMixture, new).__init__(shape, self.event_shape, validate_args=False)
        new._validate_args = self._validate_args
        return new

    @property
    def mixture_distribution(self) -> Any:
        """The weights, over the components; of as many dimensions as ``logits`` have."""
        return dist.Categorical(logits=self.logits, validate_args=False)

    @property
    def component_distribution(self) -> Any:
        """The components, the last dimension of their batch."""
        return dist.Normal(self.loc, self.scale, validate_args=False).to_event(self.event_dim)

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


class AverageOfConditionals(TorchDistribution):
    r"""The even mixture of what a function returns for each of K inputs.

    .. math:: p(z) = \frac{1}{K} \sum_k q(z \mid u_k)

    Args:
        conditional: Returns the distributions given ``[*batch, *input_shape]``.
        inputs: u, ``[K, *input_shape]``.
        components: What it returned for them, where that is known.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self, conditional: Callable[[Tensor], Any], inputs: Tensor, components: Any = None
    ) -> None:
        self._conditional, self._inputs = conditional, inputs
        self._parts = conditional(inputs) if components is None else components
        super().__init__((), self._parts.event_shape, validate_args=False)

    @property
    def support(self) -> Any:
        """The values that it may take."""
        return self._parts.support

    def expand(self, batch_shape: Any, _instance: Any = None) -> AverageOfConditionals:
        """Return the same distribution with this batch shape."""
        new = self._get_checked_instance(AverageOfConditionals, _instance)
        new._conditional, new._inputs, new._parts = self._conditional, self._inputs, self._parts
        shape = torch.Size(batch_shape)
        super(AverageOfConditionals, new).__init__(shape, self.event_shape, validate_args=False)
        return new

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        # Drawing from the chosen posteriors alone spares K draws for each.
        shape = torch.Size(sample_shape) + self.batch_shape
        chosen = torch.randint(len(self._inputs), shape, device=self._inputs.device)
        return self._conditional(self._inputs[chosen]).sample()

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density or log-probability, ``[*batch]``."""
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
