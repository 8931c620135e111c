"""Transformers: between a sequence and a vector, and from each step of a sequence to the next."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door, built
from pyro_vae.components.networks.layers import (
    Build,
    Initialise,
    Rows,
    Shape,
    check_size,
    finished,
)
from pyro_vae.components.networks.sequences import Causal, Positions, Symbols

__all__ = ["CausalTransformer", "Transformer", "TransformerDecoder"]

_Read = tuple[Tensor, Tensor]  # keys and values of the places that have been read

_WIDER = 4  # the dense layers of a block, against its width
_SMALL = 0.02  # the scale of what is learned for each place, at the start


class Transformer(nn.Module):
    r"""A transformer encoder from a sequence to a vector.

    It reads ``L`` symbols (whole numbers, ``in_shape=(L,)``) if ``num_symbols`` is given, and
    ``L`` steps of real numbers (``in_shape=(L, ...)``) otherwise. A step more, learned, stands
    before them, and the output is read from it. Nothing looks at padding, wherever it stands.

    Args:
        in_shape: The shape of one sequence; its first axis is time.
        out_shape: The shape of one output.
        width: How many numbers stand for a step.
        num_heads: The number of attention heads, which share the width.
        num_layers: How many blocks of attention and dense layers there are.
        activation: The nonlinearity of the dense layers.
        num_symbols: How many symbols there are, the padding included; None: real numbers.
        padding: The symbol that fills what is left of a shorter sequence.
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If the input is no such sequence, a size is no positive integer, or the heads
            cannot share the width.

    References:
        Attention Is All You Need (Vaswani et al., 2017)
        On Layer Normalization in the Transformer Architecture (Xiong et al., 2020)
    """

    roles = ("network", "encoder")

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        width: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        activation: Build = nn.SiLU,
        num_symbols: int | None = None,
        padding: int | None = None,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        _check(width, num_heads, num_layers)
        self.rows = Rows(self, in_shape, out_shape)
        self.symbols = Symbols(self, self.rows.in_shape, num_symbols, padding, width)
        self.reads_symbols = num_symbols is not None
        self.first = nn.Identity() if self.reads_symbols else nn.Linear(self.symbols.size, width)
        self.before = nn.Parameter(_SMALL * torch.randn(width))
        self.places = nn.Parameter(_SMALL * torch.randn(self.rows.in_shape[0], width))
        self.blocks = nn.ModuleList(_Block(width, num_heads, activation) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, self.rows.out_size, bias=False)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, L]`` or ``[*batch, L, ...]`` to ``[*batch, *out_shape]``."""
        rows = self.rows.of(x, *self.rows.in_shape)
        steps = self.first(self.symbols(rows)) + self.places
        h = torch.cat([self.before.expand(len(rows), 1, -1), steps], 1)
        seen = None
        if self.symbols.padding is not None:
            is_read = rows != self.symbols.padding
            seen = torch.cat([torch.ones_like(is_read[:, :1]), is_read], 1)[:, None, None]
        for block in self.blocks:
            h = block(h, seen)
        return self.rows.back(self.last(self.norm(h[:, 0])), x)


class TransformerDecoder(nn.Module):
    r"""A transformer decoder from a vector to a sequence, all steps at once.

    Each place starts as what is learned for it plus a linear map of the vector; then every place
    looks at every other. Given z, the steps are independent: nothing that is drawn is looked at.
    (A decoder that is fed with the datum's own previous symbols needs x beside z: it is a program
    of its own, not a network.)

    Args:
        in_shape: The shape of one vector.
        out_shape: ``(K, L, ...)``: K numbers for each place of a sequence of L steps, as the raw
            numbers of a family over sequences are.
        width: How many numbers stand for a step.
        num_heads: The number of attention heads, which share the width.
        num_layers: How many blocks of attention and dense layers there are.
        activation: The nonlinearity of the dense layers.
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If the output is no such sequence, a size is no positive integer, or the heads
            cannot share the width.

    References:
        Attention Is All You Need (Vaswani et al., 2017)
        Non-Autoregressive Neural Machine Translation (Gu et al., 2018)
    """

    roles = ("decoder", "network")

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        width: int = 128,
        num_heads: int = 4,
        num_layers: int = 2,
        activation: Build = nn.SiLU,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        _check(width, num_heads, num_layers)
        self.rows = Rows(self, in_shape, out_shape)
        self.positions = Positions(self, self.rows.out_shape)
        self.first = nn.Linear(self.rows.in_size, width)
        self.places = nn.Parameter(_SMALL * torch.randn(self.positions.length, width))
        self.blocks = nn.ModuleList(_Block(width, num_heads, activation) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, self.positions.size, bias=False)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, K, L, ...]``."""
        h = self.first(self.rows.of(x)).unsqueeze(1) + self.places
        for block in self.blocks:
            h = block(h, None)
        steps = self.last(self.norm(h))
        return self.rows.back(self.positions.first_axis_last(steps), x)


class CausalTransformer(Causal):
    r"""A transformer that says of each place of a sequence what its symbol is, from those before.

    The input is shifted by one place, behind a first step that is learned, and no place looks at a
    later one. A linear map of the context, if there is one, is added to every step.

    Args:
        num_symbols: How many symbols there are, K.
        length: The number of places, L.
        num_context: The size of the context; 0: none.
        width: How many numbers stand for a step.
        num_heads: The number of attention heads, which share the width.
        num_layers: How many blocks of attention and dense layers there are.
        activation: The nonlinearity of the dense layers.

    Raises:
        ValueError: If a size is no positive integer, or the heads cannot share the width.

    References:
        Attention Is All You Need (Vaswani et al., 2017)
        Generating Long Sequences with Sparse Transformers (Child, Gray, Radford & Sutskever, 2019)
    """

    roles = ()

    @at_the_door
    def __init__(
        self,
        num_symbols: int,
        length: int,
        num_context: int = 0,
        *,
        width: int = 64,
        num_heads: int = 4,
        num_layers: int = 2,
        activation: Build = nn.SiLU,
    ) -> None:
        super().__init__()
        _check(width, num_heads, num_layers)
        check_size("num_symbols", num_symbols)
        check_size("length", length)
        self.embedding = nn.Embedding(num_symbols, width)
        self.before = nn.Parameter(_SMALL * torch.randn(width))
        self.places = nn.Parameter(_SMALL * torch.randn(length, width))
        self.blocks = nn.ModuleList(_Block(width, num_heads, activation) for _ in range(num_layers))
        self.norm = nn.LayerNorm(width)
        self.last = nn.Linear(width, num_symbols, bias=False)
        nn.init.normal_(self.last.weight, std=_SMALL)
        self.of_context = nn.Linear(num_context, width, bias=False) if num_context else None

    def forward(self, symbols: Tensor, context: Tensor | None = None) -> Tensor:
        """Return logits of the places 0 to T, given the first T symbols, ``[rows, T + 1, K]``."""
        steps = self.embedding(symbols)
        h = torch.cat([self.before.expand(len(symbols), 1, -1), steps], 1)
        h = h + self.places[: h.shape[1]]
        if self.of_context is not None:
            h = h + self.of_context(context).unsqueeze(1)
        seen = torch.ones(h.shape[1], h.shape[1], dtype=torch.bool, device=h.device).tril()
        for block in self.blocks:
            h = block(h, seen)
        return self.last(self.norm(h))

    def start(self, num_rows: int, context: Tensor | None = None) -> CausalState:
        """Return the state before the first place; no place has been read."""
        added = self.places.new_zeros(num_rows, 1, self.places.shape[1])
        if self.of_context is not None:
            added = self.of_context(context).unsqueeze(1)
        return CausalState(added, [None] * len(self.blocks))

    def step(self, symbol: Tensor | None, state: CausalState) -> tuple[Tensor, CausalState]:
        """Return logits of the next place, ``[rows, K]``, and the state behind it.

        Keys and values of the places before are kept, so that a step costs one place.
        """
        given = self.before if symbol is None else self.embedding(symbol[:, None])
        first = state.read[0]
        h = state.added + given + self.places[0 if first is None else first[0].shape[2]]
        read: list[_Read | None] = []
        for block, past in zip(self.blocks, state.read, strict=True):
            assert isinstance(block, _Block)
            h, now = block.step(h, past)
            read.append(now)
        return self.last(self.norm(h)).squeeze(1), CausalState(state.added, read)


class CausalState(NamedTuple):
    """What a ``CausalTransformer`` keeps of the places that it has read.

    Attributes:
        added: To every step, of the context, ``[rows, 1, width]``.
        read: Keys and values of each block; None before the first place.
    """

    added: Tensor
    read: list[_Read | None]


class _Block(nn.Module):
    """Attention, then dense layers; each is normalised before and added to what it is given."""

    def __init__(self, width: int, num_heads: int, activation: Build) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.norm = nn.LayerNorm(width)
        self.query, self.value = nn.Linear(width, width), nn.Linear(width, width)
        # To all steps alike, a bias would add the same.
        self.key = nn.Linear(width, width, bias=False)
        self.heads = nn.Linear(width, width)
        self.dense = nn.Sequential(
            nn.LayerNorm(width),
            nn.Linear(width, _WIDER * width),
            built("activation", activation, nn.Module),
            nn.Linear(_WIDER * width, width),
        )

    def forward(self, h: Tensor, seen: Tensor | None) -> Tensor:
        """Return steps ``[rows, L, width]``, which look at ``seen`` ones, ``[rows, 1, 1, L]``.

        Or ``[L, L]``: what each of them sees.
        """
        query, key, value = self._read(h)
        return self._looked(h, query, key, value, seen)

    def step(self, h: Tensor, past: _Read | None) -> tuple[Tensor, _Read]:
        """Return the next step, ``[rows, 1, width]``, which looks at itself and at what is past."""
        query, key, value = self._read(h)
        if past is not None:
            key, value = torch.cat([past[0], key], 2), torch.cat([past[1], value], 2)
        return self._looked(h, query, key, value, None), (key, value)

    def _read(self, h: Tensor) -> list[Tensor]:
        """Return query, key and value of each head, ``[rows, heads, L, width / heads]``."""
        given = self.norm(h)
        layers = self.query, self.key, self.value
        return [
            layer(given).unflatten(-1, (self.num_heads, -1)).transpose(1, 2) for layer in layers
        ]

    def _looked(
        self, h: Tensor, query: Tensor, key: Tensor, value: Tensor, seen: Tensor | None
    ) -> Tensor:
        looked = nn.functional.scaled_dot_product_attention(query, key, value, attn_mask=seen)
        h = h + self.heads(looked.transpose(1, 2).flatten(2))
        return h + self.dense(h)


def _check(width: int, num_heads: int, num_layers: int) -> None:
    check_size("width", width)
    check_size("num_heads", num_heads)
    check_size("num_layers", num_layers)
    if width % num_heads:
        raise ValueError(f"num_heads={num_heads}: as many heads cannot share width={width} equally")
