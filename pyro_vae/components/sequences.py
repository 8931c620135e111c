"""Likelihoods of text: bags of words, and sequences of symbols, independent or in memory."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import ClassVar

import torch
from torch import Tensor

from pyro_vae import distributions
from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.conditional import Distribution, Family, Shape
from pyro_vae.components.networks import Causal, CausalRecurrent
from pyro_vae.components.networks.layers import check_size
from pyro_vae.components.scales import mean_of

__all__ = ["AutoregressiveSequence", "CategoricalSequence", "Multinomial"]


class Multinomial(Family):
    r"""Word counts of a row given their total: bags of words.

    .. math:: P(x \mid n) = \frac{n!}{\prod_v x_v!} \prod_v \theta_v^{x_v}, \qquad n = \sum_v x_v

    Rows may have different totals: each is scored given its own. Raw numbers are logits.

    Args:
        event_shape: The shape of one datum, ``(V,)``.
        num_words: The total of rows that are drawn; None: 100, or the mean total of the data that
            the model meets when it is assembled.

    Raises:
        ValueError: If the event has several axes, or ``num_words`` is less than one.

    References:
        Autoencoding Variational Inference for Topic Models (Srivastava & Sutton, 2017)
    """

    roles = ("likelihood",)
    data = "words and sequences"

    of_data = ("num_words",)

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_words: int | None = None) -> None:
        super().__init__(event_shape, raw_shape=(1, *event_shape))
        _check_vector("Multinomial", event_shape)
        if num_words is not None and num_words < 1:
            raise ValueError(f"num_words={num_words}: a row that is drawn has 1 or more")
        self._is_given = num_words is not None
        self.num_words = num_words or 100

    def forward(self, raw: Tensor) -> Distribution:
        """Return the probabilities of the words with logits ``raw``, ``[*batch, 1, V]``."""
        return distributions.Multinomial(raw.squeeze(-2), total_count=self.num_words)

    def raw_from(self, data: Tensor) -> Tensor:
        """Return the logarithms of the words' shares; one that never occurs has a small share.

        Rows that are drawn are as long as those of the data, unless a length is given.
        """
        if not self._is_given:
            self.num_words = max(1, round(float(data.nansum(-1).mean())))
        mean = mean_of(data)
        share = mean / mean.sum().clamp(min=1e-6)
        return share.clamp(min=1e-2 / len(share)).log().unsqueeze(0)


class CategoricalSequence(Family):
    r"""Sequences of at most L symbols, independent given z, with an end symbol and padding.

    The category ``padding`` ends a sequence and fills what is left of it; its first occurrence has
    a probability like any symbol, the rest costs nothing. The probabilities of all sequences of 0
    to L symbols sum to one:

    .. math:: P(x) = \prod_{t=1}^{\min(T + 1, L)} \theta_{t, x_t}

    Raw numbers are logits.

    Args:
        event_shape: The shape of one datum, ``(L,)``.
        num_categories: K, the padding included.
        padding: The category that ends and pads a sequence.

    Raises:
        ValueError: If the event has several axes, there are fewer than two categories, or the
            padding is none of them.
    """

    roles = ("likelihood",)
    data = "words and sequences"

    @at_the_door
    def __init__(self, event_shape: Shape, *, num_categories: int = 256, padding: int = 0) -> None:
        super().__init__(event_shape, raw_shape=(num_categories, *event_shape))
        _check_vector("CategoricalSequence", event_shape)
        _check_categories(num_categories, padding)
        self.num_categories = num_categories
        self.padding = padding

    def forward(self, raw: Tensor) -> Distribution:
        """Return the probabilities of sequences with logits ``raw``, ``[*batch, K, L]``."""
        return distributions.CategoricalSequence(raw.movedim(-2, -1), padding=self.padding)

    def extra_repr(self) -> str:
        """Show the event's shape, the number of categories and the padding."""
        return (
            f"event_shape={self.event_shape}, num_categories={self.num_categories}, "
            f"padding={self.padding}"
        )


class AutoregressiveSequence(Family):
    r"""Sequences of at most L symbols, each given those before it, with an end symbol and padding.

    .. math:: P(x \mid h) = \prod_{t=1}^{\min(T + 1, L)} \theta_{x_t}(x_{<t}, h)

    for T symbols; padding as in ``CategoricalSequence``. Raw numbers are the context h, of which a
    causal network makes the probabilities: all at once of data, symbol by symbol of a draw. How
    draws are made (temperature, greedy, nucleus) is an option of drawing, ``evaluation.Drawing``.

    Such a decoder is able to write without z, and z may then be ignored (posterior collapse):
    anneal the KL, drop words of its input (``--word-dropout 0.3``), or give the KL
    free bits.

    Args:
        event_shape: The shape of one datum, ``(L,)``.
        num_categories: K, the padding included.
        padding: The category that ends and pads a sequence.
        num_context: The size of h.
        network: Builds the causal network from (K, L, size of h), such as ``CausalRecurrent`` or
            ``CausalTransformer``.

    Raises:
        ValueError: If the event has several axes, there are fewer than two categories, or the
            padding is none of them.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016)
    """

    roles = ("likelihood", "prior")
    data = "words and sequences"
    example: ClassVar = {
        "num_categories": 5,
        "num_context": 2,
        "network": partial(CausalRecurrent, hidden=4, embedding=2),
    }
    near: ClassVar = {
        "RNNLM": "AutoregressiveSequence is a recurrent language model, given z",
        "GPT": "it is AutoregressiveSequence(network=CausalTransformer), given z",
    }

    @at_the_door
    def __init__(
        self,
        event_shape: Shape,
        *,
        num_categories: int = 256,
        padding: int = 0,
        num_context: int = 64,
        network: Callable[[int, int, int], Causal] = CausalRecurrent,
    ) -> None:
        super().__init__(event_shape, raw_shape=(num_context,))
        check_size("num_context", num_context)
        _check_vector("AutoregressiveSequence", event_shape)
        _check_categories(num_categories, padding)
        self.num_categories = num_categories
        self.padding = padding
        self.network = built(
            "network", network, Causal, num_categories, event_shape[0], num_context
        )

    def forward(self, raw: Tensor) -> Distribution:
        """Return the probabilities of sequences given ``raw``, ``[*batch, num_context]``."""
        return distributions.AutoregressiveSequence(
            self.network, raw, length=self.event_shape[0], num_categories=self.num_categories,
            padding=self.padding,
        )  # fmt: skip

    def raw_from(self, data: Tensor) -> None:
        """Let the network start at how often each symbol occurs, the end among them."""
        ends = (data == self.padding).cumsum(-1) > 1
        symbols = data[~ends].nan_to_num(self.padding).long().clamp(0, self.num_categories - 1)
        counts = torch.bincount(symbols, minlength=self.num_categories)
        self.network.start_at((counts + 0.5).log() - (counts + 0.5).sum().log())

    def extra_repr(self) -> str:
        """Show the event's shape, the number of categories and the padding."""
        return (
            f"event_shape={self.event_shape}, num_categories={self.num_categories}, "
            f"padding={self.padding}"
        )


def _check_categories(num_categories: int, padding: int) -> None:
    if num_categories < 2:
        raise ValueError(
            f"num_categories={num_categories}: a sequence has 2 or more, one of them padding"
        )
    if not 0 <= padding < num_categories:
        raise ValueError(
            f"padding={padding}: it is one of the {num_categories} categories, "
            f"0 to {num_categories - 1}"
        )


def _check_vector(name: str, event_shape: Shape) -> None:
    if len(event_shape) != 1:
        raise ValueError(
            f"{name} over event_shape={tuple(event_shape)}: its events are rows of one axis; "
            "reshape the data to (N, length)"
        )
