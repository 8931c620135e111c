"""Shared by networks of sequences: the contract of causal ones, symbols, and positions."""

from __future__ import annotations

import math
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.components.networks.layers import Shape, check_size
from pyro_vae.wording import option

__all__ = ["Causal", "Positions", "Symbols"]


class Causal(nn.Module):
    """A network that says of each symbol what it is, from those before it and a context.

    A leaf is built from (number of symbols K, number of places L, size of the context), and writes
    the same logits all at once and place by place.
    """

    roles: ClassVar[tuple[str, ...]] = ()

    def forward(self, symbols: Tensor, context: Tensor | None = None) -> Tensor:
        """Return logits of the places 0 to T, given the first T symbols, ``[rows, T + 1, K]``.

        Args:
            symbols: Whole numbers, ``[rows, T]``; T is less than L.
            context: ``[rows, num_context]``, of a network that has one.
        """
        raise NotImplementedError

    def start_at(self, logits: Tensor) -> None:
        """Start near these logits of the symbols, ``[K]``; unless a leaf does, nothing."""

    def start(self, num_rows: int, context: Tensor | None = None) -> Any:
        """Return the state before the first place."""
        raise NotImplementedError

    def step(self, symbol: Tensor | None, state: Any) -> tuple[Tensor, Any]:
        """Return logits of the next place, ``[rows, K]``, and the state behind it.

        Args:
            symbol: That of the place before, ``[rows]``; None at the first place.
            state: That of the place before.
        """
        raise NotImplementedError


class Symbols(nn.Module):
    """The steps of a sequence, ``[rows, L]`` or ``[rows, L, ...]``, as vectors.

    Args:
        network: Whose input it is; its name is in the errors.
        in_shape: The shape of one sequence.
        num_symbols: How many symbols there are; None: the steps are real numbers.
        padding: The symbol that fills what is left of a shorter sequence.
        embedding: How many numbers stand for a symbol.

    Attributes:
        size: How many numbers a step has.

    Raises:
        ValueError: If the input is no such sequence, or a size is no positive integer.
    """

    def __init__(
        self,
        network: nn.Module,
        in_shape: Shape,
        num_symbols: int | None,
        padding: int | None,
        embedding: int,
    ) -> None:
        super().__init__()
        name = type(network).__name__
        self.padding = padding
        self.embedding = None
        if num_symbols is None:
            if len(in_shape) < 2:
                raise ValueError(
                    f"{name} reads a sequence (length, ...) of real numbers; got {in_shape}: give "
                    "num_symbols if these are symbols, use MLP, or name both sides, "
                    f"{option('encoder', 'Recurrent')} with {option('decoder', 'RecurrentDecoder')}"
                )
            if padding is not None:
                raise ValueError(f"padding={padding}: only symbols are padded; give num_symbols")
            self.size = math.prod(in_shape[1:])
            return
        check_size("num_symbols", num_symbols)
        check_size("embedding", embedding)
        if len(in_shape) != 1:
            raise ValueError(f"{name} reads num_symbols={num_symbols} in a row; got {in_shape}")
        if padding is not None and not 0 <= padding < num_symbols:
            raise ValueError(f"padding={padding}: it is one of the symbols 0 to {num_symbols - 1}")
        self.embedding = nn.Embedding(num_symbols, embedding)
        self.size = embedding

    def forward(self, rows: Tensor) -> Tensor:
        """Return the vectors of the steps, ``[rows, L, size]``."""
        return rows.flatten(2) if self.embedding is None else self.embedding(rows.long())

    def lengths(self, rows: Tensor) -> Tensor | None:
        """Return how many steps come before the padding at the end, ``[rows]``; None if all do."""
        if self.padding is None:
            return None
        places = torch.arange(1, rows.shape[1] + 1, device=rows.device)
        return ((rows != self.padding) * places).amax(1)


class Positions:
    """The places of a sequence that is written, ``(K, L, ...)``: K numbers for each of L steps.

    Args:
        network: Whose output it is; its name is in the errors.
        out_shape: The shape of one output.

    Attributes:
        length: L.
        size: How many numbers a step has, K among them.

    Raises:
        ValueError: If it is no such shape.
    """

    def __init__(self, network: nn.Module, out_shape: Shape) -> None:
        if len(out_shape) < 2:
            raise ValueError(
                f"{type(network).__name__} writes a sequence, (numbers per step, length, ...); got "
                f"{out_shape}: it is a decoder for likelihoods such as CategoricalSequence; "
                "encoders, and decoders that give AutoregressiveSequence its context, are such as "
                "MLP"
            )
        self.length = out_shape[1]
        self.size = out_shape[0] * math.prod(out_shape[2:])
        self._of_step = (out_shape[0], math.prod(out_shape[2:]))

    def first_axis_last(self, steps: Tensor) -> Tensor:
        """Return steps ``[rows, L, size]`` in the order of the output, ``[rows, K, L, ...]``."""
        return steps.unflatten(-1, self._of_step).movedim(2, 1)
