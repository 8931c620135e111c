"""Probabilities of sequences of symbols that end: independent symbols, and each given the last."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import pyro.distributions as dist
import torch
from torch import Tensor
from torch.distributions import constraints

from pyro_vae.distributions.drawing import Drawn

__all__ = ["AutoregressiveSequence", "CategoricalSequence"]


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


class AutoregressiveSequence(Drawn, dist.TorchDistribution):
    r"""Sequences of at most L symbols, each given those before it and a context, with an end.

    .. math:: P(x \mid h) = \prod_{t=1}^{\min(T + 1, L)} \theta_{x_t}(x_{<t}, h)

    for T symbols, as ``CategoricalSequence``: the first padding ends a sequence, the rest costs
    nothing. It sums to one over all sequences of 0 to L symbols. A probability costs one pass of
    the network, whatever the length; a draw L steps of it.

    Args:
        network: Says of each symbol what it is, from those before it and a context: all at once
            when it is called, and place by place from ``start`` by ``step``.
        context: h, ``[*batch, num_context]``.
        length: L.
        num_categories: K, the padding included.
        padding: The category that ends and pads a sequence.

    Attributes:
        noise: What changes the symbols that the network is given, in training mode; none of what
            is scored.
    """

    arg_constraints: ClassVar[Any] = {"context": constraints.independent(constraints.real, 1)}

    def __init__(
        self,
        network: Any,
        context: Tensor,
        *,
        length: int,
        num_categories: int,
        padding: int = 0,
        validate_args: bool | None = None,
    ) -> None:
        self.network, self.context = network, context
        self.num_categories, self.padding = num_categories, padding
        self.noise: Callable[[Tensor], Tensor] | None = None
        batch_shape, event_shape = context.shape[:-1], torch.Size([length])
        super().__init__(batch_shape, event_shape, validate_args=validate_args)

    @constraints.dependent_property(is_discrete=True, event_dim=1)
    def support(self) -> constraints.Constraint:
        """Sequences with nothing but padding after the first padding."""
        return _Sequences(self.num_categories, self.padding)

    def expand(self, batch_shape: Any, _instance: Any = None) -> Any:
        """Return the same distribution with this batch shape."""
        other = type(self)(
            self.network,
            self.context.expand(*batch_shape, self.context.shape[-1]),
            length=self.event_shape[0],
            num_categories=self.num_categories,
            padding=self.padding,
            validate_args=False,
        )
        other.noise = self.noise
        return other.drawn_with(self.rule)

    def with_input_noise(self, noise: Callable[[Tensor], Tensor]) -> AutoregressiveSequence:
        """Return the same distribution whose network sees symbols through a noise."""
        other = self.expand(self.batch_shape)
        other.noise = noise
        return other

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability of padded sequences; minus infinity of what goes on."""
        if self._validate_args:
            self._validate_sample(value)
        shape = torch.broadcast_shapes(value.shape[:-1], self.batch_shape)
        seen = value if self.noise is None else self.noise(value)
        log_p = self._logits(seen, shape).log_softmax(-1)
        index = value.expand(*shape, -1).long().clamp(0, self.num_categories - 1).unsqueeze(-1)
        found = log_p.gather(-1, index).squeeze(-1)
        total = torch.where(_is_open(value, self.padding), found, 0.0).sum(-1)
        return torch.where(_is_padded(value, self.padding), total, -torch.inf)

    def _logits(self, seen: Tensor, shape: torch.Size) -> Tensor:
        """Return the logits of all places given the symbols before them, ``[*shape, L, K]``."""
        symbols = seen[..., :-1].long().clamp(0, self.num_categories - 1)
        rows = symbols.expand(*shape, -1).reshape(-1, symbols.shape[-1])
        logits = self.network(rows, self._contexts(shape))
        return logits.view(*shape, *logits.shape[-2:]).to(self.context.dtype)

    def _contexts(self, shape: torch.Size) -> Tensor:
        return self.context.expand(*shape, -1).reshape(-1, self.context.shape[-1])

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw symbol by symbol, and pad what comes after the first padding.

        Integers, in the type of the context as networks take them.
        """
        shape = self._extended_shape(torch.Size(sample_shape))
        state = self.network.start(shape[:-1].numel(), self._contexts(shape[:-1]))
        symbol, drawn = None, []
        for _ in range(shape[-1]):
            logits, state = self.network.step(symbol, state)
            rule = self.rule(logits.to(self.context.dtype))
            following = dist.Categorical(logits=rule, validate_args=False).sample()
            if symbol is not None:
                following = torch.where(symbol == self.padding, self.padding, following)
            symbol = following
            drawn.append(symbol)
        return torch.stack(drawn, -1).to(self.context.dtype).reshape(shape)


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


def _is_open(value: Tensor, padding: int) -> Tensor:
    """Return at which places no padding has come before."""
    padded = (value == padding).long()
    return (padded.cumsum(-1) - padded) == 0


def _is_padded(value: Tensor, padding: int) -> Tensor:
    """Return which sequences hold nothing but padding after the first padding."""
    return (_is_open(value, padding) | (value == padding)).all(-1)
