"""Relaxed and straight-through families: discrete latents with a reparameterised gradient.

A *relaxed* one has a density, over numbers between the discrete values; a bound then needs a prior
with the same values, another relaxed family with a temperature of its own (a probability mass over
a density is a number, but no bound, and is refused). A *straight-through* one has discrete values
and their probabilities, so its prior is discrete; only its gradient is biased.
"""

from __future__ import annotations

from typing import Any

import pyro.distributions as dist
import torch
from torch import Tensor, nn
from torch.distributions.utils import clamp_probs

from pyro_vae.components.conditional import Distribution, Family, Shape

__all__ = [
    "Concrete",
    "RelaxedBernoulli",
    "StraightThroughBernoulli",
    "StraightThroughCategorical",
]


class _Relaxed(Family):
    """Logits, and a temperature of the relaxation; a leaf defines ``forward``."""

    temperature: Tensor

    def __init__(self, event_shape: Shape, *, temperature: float = 2 / 3) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))
        if not temperature > 0:
            raise ValueError(
                f"temperature={temperature}: the temperature of a relaxation is positive"
            )
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def _logits(self, raw: Tensor | None) -> Tensor:
        if raw is None:
            raise ValueError(f"{type(self).__name__} needs its raw parameters")
        return raw.squeeze(-1 - len(self.event_shape))


class RelaxedBernoulli(_Relaxed):
    r"""Independent numbers in (0, 1), near 0 and 1 at low temperature: binary Concrete.

    .. math:: z = \sigma\Big(\frac{\alpha + \log u - \log(1 - u)}{T}\Big), \qquad u \sim U(0, 1)

    Raw numbers are the logits :math:`\alpha`, and :math:`P(z > 1/2) = \sigma(\alpha)`. As a prior,
    with learned logits, it fits a posterior of this family only.

    Args:
        event_shape: The shape of one event.
        temperature: T, positive. A buffer: fill it in place to move it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables
        (Maddison, Mnih & Teh, 2017)
    """

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        logits = self._logits(raw)
        relaxed = _RelaxedBernoulli(self.temperature, logits=logits)
        return relaxed.to_event(len(self.event_shape))


class Concrete(_Relaxed):
    r"""Points of a simplex, near its corners at low temperature; categories on the last axis.

    .. math:: z = \mathrm{softmax}\Big(\frac{\alpha + g}{T}\Big), \qquad g_k \sim \mathrm{Gumbel}

    Raw numbers are the logits :math:`\alpha`, and category k is the largest with probability
    :math:`\mathrm{softmax}(\alpha)_k`. As a prior, with learned logits, it fits a posterior of
    this family only.

    Args:
        event_shape: The shape of one event; its last size is the number of categories.
        temperature: T, positive. A buffer: fill it in place to move it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables
        (Maddison, Mnih & Teh, 2017)
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017)
    """

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        logits = self._logits(raw)
        relaxed = _RelaxedCategorical(self.temperature, logits=logits)
        return relaxed.to_event(len(self.event_shape) - 1)


class StraightThroughBernoulli(_Relaxed):
    r"""Independent binary values whose gradient is that of a relaxed sample.

    .. math:: b = [z > 1/2], \qquad \nabla b := \nabla z, \qquad z = \sigma((\alpha + l) / T)

    with logistic noise l. Values and probabilities are those of a Bernoulli, so a bound is one;
    its gradient is biased. The prior is a Bernoulli. Raw numbers are the logits :math:`\alpha`.

    Args:
        event_shape: The shape of one event.
        temperature: T, positive. A buffer: fill it in place to move it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation
        (Bengio, Leonard & Courville, 2013)
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017)
    """

    def __init__(self, event_shape: Shape, *, temperature: float = 1.0) -> None:
        super().__init__(event_shape, temperature=temperature)

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        logits = self._logits(raw)
        return _StraightThroughBernoulli(self.temperature, logits).to_event(len(self.event_shape))


class StraightThroughCategorical(_Relaxed):
    r"""One-hot vectors whose gradient is that of a relaxed sample; categories on the last axis.

    .. math:: h = \mathrm{onehot}(\arg\max_k z_k), \qquad \nabla h := \nabla z

    with z as in :class:`Concrete`. Values and probabilities are those of a categorical, so a
    bound is one; its gradient is biased. As a prior take this family, too, with learned logits:
    the log-mass of other one-hot distributions hands no gradient on to its value.

    Args:
        event_shape: The shape of one event; its last size is the number of categories.
        temperature: T, positive. A buffer: fill it in place to move it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017)
    """

    def __init__(self, event_shape: Shape, *, temperature: float = 1.0) -> None:
        super().__init__(event_shape, temperature=temperature)

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        one_hot = _StraightThroughCategorical(self.temperature, self._logits(raw))
        return one_hot.to_event(len(self.event_shape) - 1)


class _RelaxedBernoulli(dist.RelaxedBernoulli):
    """Pyro's, but a sample keeps its logit: in float32 a number near 1 has lost it.

    Torch draws through the probability, which has lost large logits, and whose place in the
    backward pass depends on whether arguments are validated.
    """

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        logit = (self.logits + _logistic(shape, self.logits)) / self.temperature
        slope = (logit.sigmoid() * (-logit).sigmoid()).detach()
        return _keeping(logit, logit.sigmoid(), slope)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        logit = _kept(value)
        if logit is None:
            return super().log_prob(value)
        jacobian = nn.functional.logsigmoid(logit) + nn.functional.logsigmoid(-logit)
        return self.base_dist.log_prob(logit) - jacobian


class _RelaxedCategorical(dist.RelaxedOneHotCategorical):
    """Pyro's, but a sample keeps its logarithm: a number near 0 has lost it."""

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        logits = self.base_dist.rsample(torch.Size(sample_shape))
        return _keeping(logits, logits.exp(), logits.exp().detach())

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        return self.rsample(sample_shape)

    def log_prob(self, value: Tensor) -> Tensor:
        logits = _kept(value)
        if logits is None:
            return super().log_prob(value)
        return self.base_dist.log_prob(logits) - logits.sum(-1)


class _StraightThroughBernoulli(dist.Bernoulli):
    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor) -> None:
        super().__init__(logits=logits)
        self.temperature = temperature

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        return type(self)(self.temperature, self.logits.expand(batch_shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        logit = self.logits + _logistic(shape, self.logits)
        soft = (logit / self.temperature).sigmoid()
        return (logit > 0).to(soft.dtype) + (soft - soft.detach())


class _StraightThroughCategorical(dist.OneHotCategorical):
    has_rsample = True

    def __init__(self, temperature: Tensor, logits: Tensor) -> None:
        super().__init__(logits=logits)
        self.temperature = temperature

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        shape = (*batch_shape, self.logits.shape[-1])
        return type(self)(self.temperature, self.logits.expand(shape))

    def rsample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        perturbed = self.logits - (-_uniform(shape, self.logits).log()).log()
        soft = (perturbed / self.temperature).softmax(-1)
        hard = nn.functional.one_hot(perturbed.argmax(-1), shape[-1])
        return hard.to(soft.dtype) + (soft - soft.detach())

    def log_prob(self, value: Tensor) -> Tensor:
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
