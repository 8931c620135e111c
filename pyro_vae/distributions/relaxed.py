"""Relaxed and straight-through draws of bits and categories, exact where float32 is not."""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.utils import clamp_probs

__all__ = [
    "RelaxedBernoulli",
    "RelaxedOneHotCategorical",
    "StraightThroughBernoulli",
    "StraightThroughCategorical",
]


class RelaxedBernoulli(dist.RelaxedBernoulli):
    """Pyro's, but a sample keeps its logit: in float32 a number near 1 has lost it.

    Torch draws through the probability, which has lost large logits, and whose place in the
    backward pass depends on whether arguments are validated.
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        logit = (self.logits + _logistic(shape, self.logits)) / self.temperature
        slope = (logit.sigmoid() * (-logit).sigmoid()).detach()
        return _keeping(logit, logit.sigmoid(), slope)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density or log-probability, ``[*batch]``."""
        logit = _kept(value)
        if logit is None:
            return super().log_prob(value)
        jacobian = nn.functional.logsigmoid(logit) + nn.functional.logsigmoid(-logit)
        return self.base_dist.log_prob(logit) - jacobian


class RelaxedOneHotCategorical(dist.RelaxedOneHotCategorical):
    """Pyro's, but a sample keeps its logarithm: a number near 0 has lost it."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with gradients."""
        logits = self.base_dist.rsample(torch.Size(sample_shape))
        return _keeping(logits, logits.exp(), logits.exp().detach())

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density or log-probability, ``[*batch]``."""
        logits = _kept(value)
        if logits is None:
            return super().log_prob(value)
        return self.base_dist.log_prob(logits) - logits.sum(-1)


class StraightThroughBernoulli(dist.Bernoulli):
    """Bits whose gradient is that of a binary Concrete sample."""

    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor) -> None:
        super().__init__(logits=logits)
        self.temperature = temperature

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        return type(self)(self.temperature, self.logits.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        logit = self.logits + _logistic(shape, self.logits)
        soft = (logit / self.temperature).sigmoid()
        return (logit > 0).to(soft.dtype) + (soft - soft.detach())


class StraightThroughCategorical(dist.OneHotCategorical):
    """One-hot vectors whose gradient is that of a Concrete sample."""

    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor) -> None:
        super().__init__(logits=logits)
        self.temperature = temperature

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        shape = (*batch_shape, self.logits.shape[-1])
        return type(self)(self.temperature, self.logits.expand(shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        """Draw, with gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        perturbed = self.logits - (-_uniform(shape, self.logits).log()).log()
        soft = (perturbed / self.temperature).softmax(-1)
        hard = nn.functional.one_hot(perturbed.argmax(-1), shape[-1])
        return hard.to(soft.dtype) + (soft - soft.detach())

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density or log-probability, ``[*batch]``."""
        if self._validate_args:
            self._validate_sample(value)
        return (value * self.logits).sum(-1)


def _uniform(shape: torch.Size, like: Tensor) -> Tensor:
    return clamp_probs(torch.rand(shape, dtype=like.dtype, device=like.device))


def _logistic(shape: torch.Size, like: Tensor) -> Tensor:
    uniform = _uniform(shape, like)
    return uniform.log() - (-uniform).log1p()


_SMALLEST_SLOPE = 1e-30


def _keeping(logits: Tensor, value: Tensor, slope: Tensor) -> Tensor:
    """Return ``value``, a function of ``logits`` with this derivative, that remembers them."""
    slope = slope.clamp(min=_SMALLEST_SLOPE)
    kept = value.detach() + slope * (logits - logits.detach())
    kept._logits = (logits.detach(), slope)  # type: ignore[attr-defined]
    return kept


def _kept(value: Tensor) -> Tensor | None:
    """Return the logits that ``value`` remembers, if any, as a function of it.

    Gradients thus pass through the value, where hooks and handlers look for them.
    """
    if not hasattr(value, "_logits"):
        return None
    logits, slope = value._logits
    return logits + (value - value.detach()) / slope
