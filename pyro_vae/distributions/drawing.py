"""How discrete values are drawn: at a temperature, greedily, or from a nucleus."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

__all__ = ["DrawingRule", "Drawn", "drawn_with"]

_Self = TypeVar("_Self", bound="Drawn")


@dataclass(frozen=True)
class DrawingRule:
    r"""From logits of K categories to those of the distribution that is drawn from.

    .. math:: p_t(k) \propto p(k)^{1 / t}, \qquad k \in \text{nucleus}

    The nucleus is the smallest set of likeliest categories that has the probability asked for. A
    probability that is reported is always that of the model, by no rule.

    Args:
        temperature: t; below 1, draws are more typical and less varied; 0 is greedy: the likeliest
            category.
        nucleus: The probability of the nucleus, in (0, 1]; 1: all categories. It is that of the
            distribution at the temperature.

    Raises:
        ValueError: If the temperature is negative or not finite, or the probability is outside
            (0, 1].

    References:
        The Curious Case of Neural Text Degeneration (Holtzman, Buys, Du, Forbes & Choi, 2020)
    """

    temperature: float = 1.0
    nucleus: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < float("inf"):
            raise ValueError(
                f"temperature={self.temperature}: give 0 (greedy), 1 (the model as it is), or "
                "another finite number that is not negative"
            )
        if not 0 < self.nucleus <= 1:
            raise ValueError(
                f"nucleus={self.nucleus}: it is the probability of the categories that are drawn "
                "from, above 0 and at most 1"
            )

    def __call__(self, logits: Tensor) -> Tensor:
        """Return the logits to draw with, ``[..., K]`` as given; those left out are minus infinity.

        Of categories that are equally likely, a greedy draw takes the first.
        """
        if self.temperature == 0:
            first = torch.zeros_like(logits, dtype=torch.bool)
            first = first.scatter(-1, logits.argmax(-1, keepdim=True), True)
            return logits.masked_fill(~first, -torch.inf)
        if self.temperature != 1:
            logits = logits / self.temperature
        if self.nucleus == 1:
            return logits
        sorted_logits, order = logits.sort(stable=True, dim=-1, descending=True)
        shares = sorted_logits.softmax(-1)
        likelier = shares.cumsum(-1) - shares
        outside = torch.zeros_like(order, dtype=torch.bool)
        outside = outside.scatter(-1, order, likelier >= self.nucleus)
        return logits.masked_fill(outside, -torch.inf)


class Drawn:
    """A discrete distribution whose draws follow a rule; a leaf draws with ``self.rule(logits)``.

    Attributes:
        rule: How it draws; as the model says, unless ``drawn_with`` gives another.
    """

    rule = DrawingRule()

    def drawn_with(self: _Self, rule: DrawingRule) -> _Self:
        """Return the same distribution, drawn by another rule; its probabilities stay."""
        other = copy.copy(self)
        other.rule = rule
        return other


def drawn_with(distribution: Any, rule: DrawingRule) -> Any:
    """Return a distribution, as it is or inside Pyro's wrappers, drawn by a rule.

    Args:
        distribution: Any of Pyro's.
        rule: How to draw.

    Raises:
        ValueError: If it is none that is drawn category by category.
    """
    if isinstance(distribution, Drawn):
        return distribution.drawn_with(rule)
    if hasattr(distribution, "base_dist"):
        other = copy.copy(distribution)
        other.base_dist = drawn_with(distribution.base_dist, rule)
        return other
    raise ValueError(
        f"{type(distribution).__name__} is not drawn category by category, so that "
        f"temperature={rule.temperature:g}, nucleus={rule.nucleus:g} have no meaning for it: leave "
        "them out, or take a likelihood of symbols, bits or levels such as AutoregressiveSequence"
    )
