"""Relaxed and straight-through families: discrete latents with a reparameterised gradient.

A *relaxed* one has a density, over numbers between the discrete values; a bound then needs a prior
with the same values, another relaxed family with a temperature of its own (a probability mass over
a density is a number, but no bound, and is refused). A *straight-through* one has discrete values
and their probabilities, so its prior is discrete; only its gradient is biased.
"""

from __future__ import annotations

import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door
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

    @at_the_door
    def __init__(self, event_shape: Shape, *, temperature: float = 2 / 3) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))
        if not temperature > 0:
            raise ValueError(
                f"temperature={temperature}: the temperature of a relaxation is positive"
            )
        self.register_buffer("temperature", torch.tensor(float(temperature)))

    def _logits(self, raw: Tensor) -> Tensor:
        return raw.squeeze(-1 - len(self.event_shape))


class RelaxedBernoulli(_Relaxed):
    r"""Binary Concrete: independent numbers in (0, 1), near 0 and 1 at low temperature.

    .. math:: z = \sigma\Big(\frac{\alpha + \log u - \log(1 - u)}{T}\Big), \qquad u \sim U(0, 1)

    Raw numbers are the logits :math:`\alpha`, and :math:`P(z > 1/2) = \sigma(\alpha)`. As a prior,
    with learned logits, it fits a posterior of this family only.

    Args:
        event_shape: The shape of one event.
        temperature: The temperature T, positive. A buffer: fill it in place to change it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables
        (Maddison, Mnih & Teh, 2017)
    """

    data = "numbers between 0 and 1"
    synonyms = ("BinaryConcrete",)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        logits = self._logits(raw)
        relaxed = distributions.RelaxedBernoulli(self.temperature, logits=logits)
        return relaxed.to_event(len(self.event_shape))


class Concrete(_Relaxed):
    r"""Concrete (Gumbel-softmax): points of a simplex; categories on the last axis.

    .. math:: z = \mathrm{softmax}\Big(\frac{\alpha + g}{T}\Big), \qquad g_k \sim \mathrm{Gumbel}

    Raw numbers are the logits :math:`\alpha`, and category k is the largest with probability
    :math:`\mathrm{softmax}(\alpha)_k`. As a prior, with learned logits, it fits a posterior of
    this family only.

    Args:
        event_shape: The shape of one event; its last size is the number of categories.
        temperature: The temperature T, positive. A buffer: fill it in place to change it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        The Concrete Distribution: A Continuous Relaxation of Discrete Random Variables
        (Maddison, Mnih & Teh, 2017)
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017)
    """

    data = "shares that sum to one"
    synonyms = ("GumbelSoftmax",)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        logits = self._logits(raw)
        relaxed = distributions.RelaxedOneHotCategorical(self.temperature, logits=logits)
        return relaxed.to_event(len(self.event_shape) - 1)


class StraightThroughBernoulli(_Relaxed):
    r"""Independent binary values whose gradient is that of a relaxed sample.

    .. math:: b = [z > 1/2], \qquad \nabla b := \nabla z, \qquad z = \sigma((\alpha + l) / T)

    with logistic noise l. Values and probabilities are those of a Bernoulli, so a bound is one;
    its gradient is biased. The prior is a Bernoulli. Raw numbers are the logits :math:`\alpha`.

    Args:
        event_shape: The shape of one event.
        temperature: The temperature T, positive. A buffer: fill it in place to change it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        Estimating or Propagating Gradients Through Stochastic Neurons for Conditional Computation
        (Bengio, Leonard & Courville, 2013)
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017)
    """

    data = "bits"

    @at_the_door
    def __init__(self, event_shape: Shape, *, temperature: float = 1.0) -> None:
        super().__init__(event_shape, temperature=temperature)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        logits = self._logits(raw)
        hard = distributions.StraightThroughBernoulli(self.temperature, logits)
        return hard.to_event(len(self.event_shape))


class StraightThroughCategorical(_Relaxed):
    r"""One-hot vectors whose gradient is that of a relaxed sample; categories on the last axis.

    .. math:: h = \mathrm{onehot}(\arg\max_k z_k), \qquad \nabla h := \nabla z

    with z as in :class:`Concrete`. Values and probabilities are those of a categorical, so a
    bound is one; its gradient is biased. As a prior take this family, too, with learned logits:
    the log-mass of other one-hot distributions hands no gradient on to its value.

    Args:
        event_shape: The shape of one event; its last size is the number of categories.
        temperature: The temperature T, positive. A buffer: fill it in place to change it.

    Raises:
        ValueError: If ``temperature`` is not positive.

    References:
        Categorical Reparameterization with Gumbel-Softmax (Jang, Gu & Poole, 2017)
    """

    data = "one-hot vectors"

    @at_the_door
    def __init__(self, event_shape: Shape, *, temperature: float = 1.0) -> None:
        super().__init__(event_shape, temperature=temperature)

    def forward(self, raw: Tensor) -> Distribution:
        """Return the distribution with logits ``raw``, ``[*batch, 1, *event_shape]``."""
        one_hot = distributions.StraightThroughCategorical(self.temperature, self._logits(raw))
        return one_hot.to_event(len(self.event_shape) - 1)
