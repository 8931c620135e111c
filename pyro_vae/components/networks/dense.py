"""Networks of dense layers: from any shape to any other."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from pyro_vae.arguments import at_the_door
from pyro_vae.components.networks.layers import (
    Build,
    Initialise,
    Normalise,
    Rows,
    Shape,
    activated,
    check_size,
    check_sizes,
    dense,
    finished,
)

__all__ = ["MLP", "Dictionary", "GatedMLP", "Residual", "SkipMLP"]


class MLP(nn.Module):
    """A multilayer perceptron from ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape of one output.
        hidden: The widths of the hidden layers, from input to output; none for a linear map.
        activation: The nonlinearity after each hidden layer.
        normalise: What stands before each nonlinearity, such as ``nn.BatchNorm1d`` (of which the
            statistics are those of all rows, particles included; a batch then has two or more).
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If a size is no positive integer.
    """

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: Sequence[int] = (500, 500),
        activation: Build = nn.SiLU,
        normalise: Normalise | None = None,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        check_sizes("hidden", hidden, empty=True)
        self.rows = Rows(self, in_shape, out_shape)
        sizes = [self.rows.in_size, *hidden]
        layers: list[nn.Module] = []
        for before, after in itertools.pairwise(sizes):
            layers += dense(before, after, activation, normalise)
        layers.append(nn.Linear(sizes[-1], self.rows.out_size, bias=False))
        self.layers = nn.Sequential(*layers)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.layers(self.rows.of(x)), x)


class Dictionary(nn.Module):
    r"""A linear map whose columns have norm 1, the decoder of sparse codes.

    .. math:: x = \sum_j z_j \, d_j, \qquad \|d_j\| = 1

    A code cannot shrink while the column grows, so that what is charged for codes is charged.

    Args:
        in_shape: The shape of one code, of J numbers.
        out_shape: The shape of one output.

    References:
        Emergence of Simple-Cell Receptive Field Properties by Learning a Sparse Code for Natural
        Images (Olshausen & Field, 1996)
    """

    @at_the_door
    def __init__(self, in_shape: Shape, out_shape: Shape) -> None:
        super().__init__()
        self.rows = Rows(self, in_shape, out_shape)
        # Short columns turn sooner: a step of Adam moves each number by the learning rate.
        start = torch.randn(self.rows.out_size, self.rows.in_size)
        self.weight = nn.Parameter(start / self.rows.out_size**0.5)

    @property
    def columns(self) -> Tensor:
        """The columns, ``[out_size, J]``, each of norm 1."""
        return nn.functional.normalize(self.weight, dim=0)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.rows.of(x) @ self.columns.T, x)


class GatedMLP(nn.Module):
    r"""A multilayer perceptron with gated layers.

    .. math:: h = (W x + b) \odot \sigma(V x + c)

    The gate is the only nonlinearity.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape of one output.
        hidden: The widths of the gated layers, from input to output; (300, 300) in the paper.
        initialise: Sets the weights; torch's own unless given. The paper's authors took ``he``.

    Raises:
        ValueError: If a size is no positive integer.

    References:
        VAE with a VampPrior (Tomczak & Welling, 2018), section 5
        Language Modeling with Gated Convolutional Networks (Dauphin et al., 2017)
    """

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: Sequence[int] = (500, 500),
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        check_sizes("hidden", hidden)
        self.rows = Rows(self, in_shape, out_shape)
        sizes = [self.rows.in_size, *hidden]
        gated = (_Gated(before, after) for before, after in itertools.pairwise(sizes))
        last = nn.Linear(sizes[-1], self.rows.out_size, bias=False)
        self.layers = nn.Sequential(*gated, last)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.layers(self.rows.of(x)), x)


class Residual(nn.Module):
    r"""A deep network of dense residual blocks.

    .. math:: h \leftarrow h + W_2\, a(W_1\, a(h))

    between a linear layer into ``width`` numbers and a nonlinear one out of them.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape of one output.
        width: The width of h, the state between blocks.
        num_blocks: The number of residual blocks.
        activation: The nonlinearity a.
        normalise: What stands before each nonlinearity, such as ``nn.BatchNorm1d``.
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If a size is no positive integer.

    References:
        Identity Mappings in Deep Residual Networks (He, Zhang, Ren & Sun, 2016)
    """

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        width: int = 256,
        num_blocks: int = 3,
        activation: Build = nn.SiLU,
        normalise: Normalise | None = None,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        check_size("width", width)
        check_size("num_blocks", num_blocks)
        self.rows = Rows(self, in_shape, out_shape)
        blocks = (_Block(width, activation, normalise) for _ in range(num_blocks))
        self.layers = nn.Sequential(
            nn.Linear(self.rows.in_size, width, bias=normalise is None),
            *blocks,
            *activated(width, activation, normalise),
            nn.Linear(width, self.rows.out_size, bias=False),
        )
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        return self.rows.back(self.layers(self.rows.of(x)), x)


class SkipMLP(nn.Module):
    r"""A multilayer perceptron with skip connections from its input to every layer.

    .. math:: h_{l + 1} = a(W_l h_l + V_l z + b_l), \qquad y = W h_L + V z

    As a decoder, it keeps p(x | z) from forgetting z: latents then collapse less.

    Args:
        in_shape: The shape of one input.
        out_shape: The shape of one output.
        hidden: The widths of the hidden layers, from input to output.
        activation: The nonlinearity a.
        normalise: What stands before each nonlinearity, such as ``nn.BatchNorm1d``.
        initialise: Sets the weights, such as ``glorot``; torch's own unless given.

    Raises:
        ValueError: If a size is no positive integer.

    References:
        Avoiding Latent Variable Collapse with Generative Skip Models
        (Dieng, Kim, Rush & Blei, 2019)
    """

    @at_the_door
    def __init__(
        self,
        in_shape: Shape,
        out_shape: Shape,
        *,
        hidden: Sequence[int] = (500, 500),
        activation: Build = nn.SiLU,
        normalise: Normalise | None = None,
        initialise: Initialise | None = None,
    ) -> None:
        super().__init__()
        check_sizes("hidden", hidden)
        self.rows = Rows(self, in_shape, out_shape)
        size = self.rows.in_size
        # W and V stand beside each other in one matrix.
        before = [size, *(width + size for width in hidden)]
        self.layers = nn.ModuleList(
            nn.Sequential(*dense(wide, narrow, activation, normalise))
            for wide, narrow in zip(before[:-1], hidden, strict=True)
        )
        self.last = nn.Linear(before[-1], self.rows.out_size, bias=False)
        finished(self, initialise)

    def forward(self, x: Tensor) -> Tensor:
        """Map ``[*batch, *in_shape]`` to ``[*batch, *out_shape]``."""
        z = h = self.rows.of(x)
        for layer in self.layers:
            h = torch.cat([layer(h), z], -1)
        return self.rows.back(self.last(h), x)


class _Gated(nn.Module):
    def __init__(self, before: int, after: int) -> None:
        super().__init__()
        self.value = nn.Linear(before, after)
        self.gate = nn.Linear(before, after)

    def forward(self, x: Tensor) -> Tensor:
        return self.value(x) * self.gate(x).sigmoid()


class _Block(nn.Module):
    def __init__(self, width: int, activation: Build, normalise: Normalise | None) -> None:
        super().__init__()
        before = activated(width, activation, normalise)
        inner = dense(width, width, activation, normalise)
        last = nn.Linear(width, width, bias=normalise is None)
        self.layers = nn.Sequential(*before, *inner, last)

    def forward(self, h: Tensor) -> Tensor:
        return h + self.layers(h)
