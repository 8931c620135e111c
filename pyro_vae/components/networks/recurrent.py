"""Recurrent networks: between a sequence and a vector, and from each step to the next."""

from __future__ import annotations

from typing import ClassVar

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.networks.layers import Initialise, Rows, Shape, check_size, finished
from pyro_vae.components.networks.sequences import Causal, Positions, Symbols

__all__ = ["CausalRecurrent", "Recurrent", "RecurrentDecoder"]

Cell = type[nn.GRU] | type[nn.LSTM]


class Recurrent(nn.Module):
    """A recurrent encoder from a sequence to a vector.

    It reads ``L`` symbols (whole numbers, ``in_shape=(L,)``) if ``num_symbols`` is given, and
    ``L`` steps of real numbers (``in_shape=(L, ...)``) otherwise. What follows the last symbol that
    is no padding is not read.

    Args:
        in_shape: The shape of one sequence; its first axis is time.
        out_shape: The shape of one output.
        hidden: The width of the state.
        num_layers: How many recurrent layers lie above each other.
        cell: ``nn.GRU``, or ``nn.LSTM``, of which torch records no gradient on a processor: its
            steps are run eagerly there.
        num_symbols: How many symbols there are, the padding included; None: real numbers.
        padding: The symbol that fills what is left of a shorter sequence.
        embedding: How many numbers stand for a symbol.
        initialise: Sets the weights, such as ``orthogonal``; torch's own unless given.

    Raises:
        ValueError: If the input is no such sequence, or a size is no positive integer.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016)
        Learning Phrase Representations using RNN Encoder-Decoder for Statistical Machine
        Translation (Cho et al., 2014)
    """

    roles = ("network", "encoder")
    synonyms = ("GRU", "RNN")
    near: ClassVar = {"LSTM": "it is Recurrent(cell=torch.nn.LSTM)"}

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: int = 256,
        num_layers: int = 1,
        cell: Cell = nn.GRU,
        num_symbols: int | None = None,
        padding: int | None = None,
        embedding: int = 64,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        _check(hidden, num_layers, cell)
        self.rows = Rows(self, in_shape, out_shape)
        self.symbols = Symbols(self, self.rows.in_shape, num_symbols, padding, embedding)
        self.reads_symbols = num_symbols is not None
        size = self.symbols.size
        self.cell = cell(size, hidden, num_layers=num_layers, batch_first=True)
        self.last = nn.Linear(hidden, self.rows.out_size, bias=False)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, L]`` or ``[*batch, L, ...]`` to ``[*batch, *out_shape]``."""
        rows = self.rows.of(x, *self.rows.in_shape)
        states, _ = self.cell(self.symbols(rows))
        lengths = self.symbols.lengths(rows)
        if lengths is None:
            return self.rows.back(self.last(states[:, -1]), x)
        place = (lengths - 1).clamp(min=0).view(-1, 1, 1).expand(-1, 1, states.shape[-1])
        # A sequence of nothing but padding leaves the state as it was before the first step.
        state = states.gather(1, place).squeeze(1) * (lengths > 0).unsqueeze(-1)
        return self.rows.back(self.last(state), x)


class RecurrentDecoder(nn.Module):
    """A recurrent decoder from a vector to a sequence.

    The vector sets the first state and is the input of every step. The steps see each other only
    through the state, never what was drawn before: given z, they are independent. A decoder that is
    fed with the datum's own previous symbols is a likelihood, ``AutoregressiveSequence``.

    Args:
        in_shape: The shape of one vector.
        out_shape: ``(K, L, ...)``: K numbers for each place of a sequence of L steps, as the raw
            numbers of a family over sequences are.
        hidden: The width of the state.
        num_layers: How many recurrent layers lie above each other.
        cell: ``nn.GRU``, or ``nn.LSTM``, of which torch records no gradient on a processor: its
            steps are run eagerly there.
        initialise: Sets the weights, such as ``orthogonal``; torch's own unless given.

    Raises:
        ValueError: If the output is no such sequence, or a size is no positive integer.

    References:
        Automatic Chemical Design Using a Data-Driven Continuous Representation of Molecules
        (Gomez-Bombarelli et al., 2018)
    """

    roles = ("decoder", "network")
    synonyms = ("GRU", "RNN")
    near: ClassVar = {"LSTM": "it is RecurrentDecoder(cell=torch.nn.LSTM)"}

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: int = 256,
        num_layers: int = 1,
        cell: Cell = nn.GRU,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        _check(hidden, num_layers, cell)
        self.rows = Rows(self, in_shape, out_shape)
        self.positions = Positions(self, self.rows.out_shape)
        self.first = nn.Linear(self.rows.in_size, num_layers * hidden)
        self.cell = cell(self.rows.in_size, hidden, num_layers=num_layers, batch_first=True)
        self.last = nn.Linear(hidden, self.positions.size, bias=False)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, K, L, ...]``."""
        z = self.rows.of(x)
        state = self.first(z).tanh().unflatten(-1, (self.cell.num_layers, -1)).movedim(0, 1)
        state = state.contiguous()
        start = (state, torch.zeros_like(state)) if self.cell.mode == "LSTM" else state
        steps = z.unsqueeze(1).expand(-1, self.positions.length, -1)
        states, _ = self.cell(steps, start)
        return self.rows.back(self.positions.first_axis_last(self.last(states)), x)


class CausalRecurrent(Causal):
    """A GRU that says of each place of a sequence what its symbol is, from those before it.

    The context sets the first state, and a linear map of it is added to the input of every step.
    The first input is learned.

    Args:
        num_symbols: How many symbols there are, K.
        length: The number of places, which changes nothing.
        num_context: The size of the context; 0: none.
        hidden: The width of the state.
        num_layers: How many recurrent layers lie above each other.
        embedding: How many numbers stand for a symbol.

    Raises:
        ValueError: If a size is no positive integer.

    References:
        Generating Sentences from a Continuous Space (Bowman et al., 2016)
    """

    roles = ()

    @at_the_door
    def __init__(
        self,
        num_symbols: int,
        length: int,
        num_context: int = 0,
        *,
        hidden: int = 256,
        num_layers: int = 1,
        embedding: int = 64,
    ) -> None:
        super().__init__()
        _check(hidden, num_layers, nn.GRU)
        for name, size in (("num_symbols", num_symbols), ("embedding", embedding)):
            check_size(name, size)
        self.embedding = nn.Embedding(num_symbols, embedding)
        self.before = nn.Parameter(torch.randn(embedding))
        self.cell = nn.GRU(embedding, hidden, num_layers=num_layers, batch_first=True)
        self.last = nn.Linear(hidden, num_symbols)
        self.of_context = nn.Linear(num_context, embedding, bias=False) if num_context else None
        self.first = nn.Linear(num_context, num_layers * hidden) if num_context else None

    def forward(self, symbols: Tensor, context: Tensor | None = None) -> Tensor:
        """Return logits of the places 0 to T, given the first T symbols, ``[rows, T + 1, K]``."""
        state, added = self.start(len(symbols), context)
        steps = torch.cat([self.before.expand(len(symbols), 1, -1), self.embedding(symbols)], 1)
        states, _ = self.cell(steps + added, state)
        return self.last(states)

    @torch.no_grad()
    def start_at(self, logits: Tensor) -> None:
        """Start near these logits of the symbols, ``[K]``."""
        self.last.bias.copy_(logits)

    def start(self, num_rows: int, context: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return the state before the first place, and what the context adds to every input."""
        if self.first is None or self.of_context is None:
            shape = (self.cell.num_layers, num_rows, self.cell.hidden_size)
            return self.before.new_zeros(shape), self.before.new_zeros(num_rows, 1, 1)
        state = self.first(context).tanh().unflatten(-1, (self.cell.num_layers, -1))
        return state.movedim(0, 1).contiguous(), self.of_context(context).unsqueeze(1)

    def step(
        self, symbol: Tensor | None, state: tuple[Tensor, Tensor]
    ) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return logits of the next place, ``[rows, K]``, and the state behind it."""
        hidden, added = state
        given = self.before.expand(1, 1, -1) if symbol is None else self.embedding(symbol[:, None])
        given = (given + added).expand(hidden.shape[1], -1, -1)
        states, hidden = self.cell(given, hidden)
        return self.last(states).squeeze(1), (hidden, added)


def _check(hidden: int, num_layers: int, cell: Cell) -> None:
    check_size("hidden", hidden)
    check_size("num_layers", num_layers)
    if cell not in (nn.GRU, nn.LSTM):
        raise ValueError(f"cell={cell!r}: give torch.nn.GRU or torch.nn.LSTM")
