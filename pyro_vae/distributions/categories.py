"""Probabilities over categories: levels, bags of words, and sequences that end."""

from __future__ import annotations

from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions.drawing import Drawn

__all__ = ["Categorical", "CategoricalSequence", "Multinomial"]


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


class _Sequences(constraints.Constraint):
    """Integers 0..K-1, and after the first that is the padding nothing else."""

    is_discrete = True
    event_dim = 1

    def __init__(self, num_categories: int, padding: int) -> None:
        self.num_categories = num_categories
        self.padding = padding
        super().__init__()

    def check(self, value: Tensor) -> Tensor:
        known = (value >= 0) & (value < self.num_categories) & (value == value.round())
        return known.all(-1) & _is_padded(value, self.padding)

    def __str__(self) -> str:
        return (
            f"sequences of the integers 0 to {self.num_categories - 1}, with nothing but "
            f"{self.padding} after the first {self.padding}"
        )


class CategoricalSequence(Drawn, dist.TorchDistribution):
    r"""Sequences of at most L symbols, independent of each other, with an end and padding.

    One of the K categories is the padding. Its first occurrence ends the sequence, which is an
    event like any symbol; the rest is padding with probability one, and costs nothing:

    .. math:: P(x) = \prod_{t=1}^{\min(T + 1, L)} \theta_{t, x_t}

    for T symbols. It sums to one over all sequences of 0 to L symbols.

    Args:
        logits: Of the categories at each place, ``[*batch, L, K]``.
        padding: The category that ends and pads a sequence.
    """

    arg_constraints: ClassVar[Any] = {"logits": constraints.independent(constraints.real, 2)}

    def __init__(
        self, logits: Tensor, *, padding: int = 0, validate_args: bool | None = None
    ) -> None:
        self.logits = logits
        self.padding = padding
        super().__init__(logits.shape[:-2], logits.shape[-2:-1], validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Sequences with nothing but padding after the first padding."""
        return _Sequences(self.logits.shape[-1], self.padding)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        logits = self.logits.expand(*batch_shape, *self.logits.shape[-2:])
        other = type(self)(logits, padding=self.padding, validate_args=False)
        return other.drawn_with(self.rule)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of padded sequences; minus infinity of what goes on."""
        if self._validate_args:
            self._validate_sample(value)
        index = value.long().unsqueeze(-1)
        log_p = self.logits.log_softmax(-1)
        shape = torch.broadcast_shapes(index.shape[:-1], log_p.shape[:-1])
        found = log_p.expand(*shape, -1).gather(-1, index.expand(*shape, 1)).squeeze(-1)
        total = torch.where(_is_open(value, self.padding), found, 0.0).sum(-1)
        return torch.where(_is_padded(value, self.padding), total, -torch.inf)

    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw a category at each place, and pad what comes after the first padding.

        Integers, in the type of the logits as networks take them.
        """
        with torch.no_grad():
            symbols = dist.Categorical(logits=self.rule(self.logits), validate_args=False)
            draw = symbols.sample(torch.Size(sample_shape))
            padded = torch.where(_is_open(draw, self.padding), draw, self.padding)
            return padded.to(self.logits.dtype)


def _is_open(value: Tensor, padding: int) -> Tensor:
    """Return at which places no padding has come before."""
    padded = (value == padding).long()
    return (padded.cumsum(-1) - padded) == 0


def _is_padded(value: Tensor, padding: int) -> Tensor:
    """Return which sequences hold nothing but padding after the first padding."""
    return (_is_open(value, padding) | (value == padding)).all(-1)
