"""Probabilities over categories: levels, and bags of words."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions.drawing import Drawn

__all__ = ["Categorical", "Multinomial"]


class Categorical(Drawn, dist.Categorical):
    """A Categorical over the integers 0..K-1 that has their mean, as levels of grey do.

    Args:
        logits: ``[*batch, K]``.
    """

    def __init__(self, logits: Tensor, *, validate_args: bool | None = None) -> None:
        super().__init__(logits=logits, validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        shape = (*batch_shape, self.logits.shape[-1])
        return type(self)(self.logits.expand(shape), validate_args=False).drawn_with(self.rule)

    @property
    def mean(self) -> Tensor:
        """Return the mean of the integers."""
        probs = self.probs
        values = torch.arange(probs.shape[-1], dtype=probs.dtype, device=probs.device)
        return probs @ values

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw integers, in the type of the logits as networks take them."""
        with torch.no_grad():
            drawn = dist.Categorical(logits=self.rule(self.logits), validate_args=False)
            return drawn.sample(torch.Size(sample_shape)).to(self.logits.dtype)


class _Counts(constraints.Constraint):
    """Vectors of counts, with any total."""

    is_discrete = True
    event_dim = 1

    def check(self, value: Tensor) -> Tensor:
        return ((value >= 0) & (value == value.round())).all(-1)

    def __str__(self) -> str:
        return "rows of counts 0, 1, 2, ..."


class Multinomial(dist.TorchDistribution):
    r"""How often each of V words occurs among n, where n is the row's own total.

    .. math:: P(x \mid n) = \frac{n!}{\prod_v x_v!} \prod_v \theta_v^{x_v}, \qquad n = \sum_v x_v

    It sums to one over the rows of each total n: the probability of the words of a document given
    its length. Rows of different lengths go together, as Pyro's ``Multinomial`` does not allow; and
    a length has no probability of its own.

    Args:
        logits: Of the words, ``[*batch, V]``.
        total_count: The total of rows that are drawn, and of the mean.
    """

    arg_constraints: ClassVar[Any] = {"logits": constraints.independent(constraints.real, 1)}
    support = _Counts()

    def __init__(
        self, logits: Tensor, *, total_count: int, validate_args: bool | None = None
    ) -> None:
        self.logits = logits
        self.total_count = total_count
        super().__init__(logits.shape[:-1], logits.shape[-1:], validate_args=validate_args)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        logits = self.logits.expand(*batch_shape, self.logits.shape[-1])
        return type(self)(logits, total_count=self.total_count, validate_args=False)

    @property
    def mean(self) -> Tensor:
        """Return the mean of a row of ``total_count`` words."""
        return self.total_count * self.logits.softmax(-1)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of rows of counts given their totals."""
        if self._validate_args:
            self._validate_sample(value)
        orders = (value.sum(-1) + 1).lgamma() - (value + 1).lgamma().sum(-1)
        return orders + (value * self.logits.log_softmax(-1)).sum(-1)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw rows of ``total_count`` words."""
        with torch.no_grad():
            words = dist.Multinomial(self.total_count, logits=self.logits, validate_args=False)
            return words.sample(torch.Size(sample_shape))
