"""What is drawn one entry after the other: an affine bijection with a fast inverse, bits, codes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

import pyro.distributions.transforms as transforms
import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.distributions.transforms.utils import clamp_preserve_gradients
from pyro.nn import ConditionalAutoRegressiveNN
from pyro.nn.auto_reg_nn import sample_mask_indices
from torch import Tensor, nn
from torch.distributions import constraints
from torch.nn.functional import linear

from pyro_vae.distributions.drawing import DrawingRule, Drawn

__all__ = [
    "FAR",
    "AutoregressiveBernoulli",
    "AutoregressiveCategorical",
    "AutoregressiveStep",
    "Masked",
]

FAR = 100.0
"""What a network sees of a value: beyond a hundred scales, that it is far."""


class Masked(ConditionalAutoRegressiveNN):
    """Pyro's network, in the precision of its context.

    Args:
        input_dim: D.
        context_dim: How many numbers the context has.
        hidden_dims: The widths of the hidden layers.
        options: Of Pyro's network.
    """

    def __init__(
        self, input_dim: int, context_dim: int, hidden_dims: list[int], **options: Any
    ) -> None:
        super().__init__(input_dim, context_dim, hidden_dims, **options)
        num_kinds = input_dim if context_dim else input_dim - 1
        kinds = [sample_mask_indices(num_kinds, h) - int(context_dim > 0) for h in hidden_dims]
        ranks = torch.arange(-1, input_dim).to(kinds[0])
        # Of each layer, how many units see no more than the first r dimensions, r = -1 .. D - 1.
        self.num_seeing = [torch.searchsorted(kind, ranks, right=True).tolist() for kind in kinds]

    def forward(self, x: Tensor, context: Tensor) -> Any:
        """Return location and log-scale of each dimension, ``[*batch, D]``."""
        seen = x.to(context.dtype).clamp(-FAR, FAR)
        return tuple(out.to(context.dtype) for out in super().forward(seen, context))

    def weights(self) -> list[Tensor]:
        """Return the matrix of each layer, zero where it is masked."""
        return [layer.weight * layer.mask for layer in self.layers]


class AutoregressiveStep(transforms.AffineAutoregressive):
    r"""Pyro's step :math:`y_d = x_d \sigma_d(x_{<d}, h) + \mu_d(x_{<d}, h)` with a faster inverse.

    Pyro's inverse runs the network D times. Here each unit is computed when the last dimension
    that it sees is known, and added to the sums of the units that see it: one pass in all, and the
    activations of one in memory.

    Args:
        network: Gives location and log-scale of each dimension.
        order: The dimensions in the order in which they depend on each other.
        context: h, ``[*batch, num_context]``.
        bounds: Of the log-scales, as Pyro's.
    """

    def __init__(
        self, network: Masked, order: Sequence[int], context: Tensor, **bounds: float
    ) -> None:
        module: Any = network
        super().__init__(partial(module, context=context), **bounds)
        self._network = (network,)  # in a tuple: its parameters are registered where they belong
        self._order, self._context = order, context

    def _inverse(self, y: Tensor) -> Tensor:
        (network,), context = self._network, self._context
        batch_shape = torch.broadcast_shapes(y.shape[:-1], context.shape[:-1])
        rows = y.expand(*batch_shape, y.shape[-1]).flatten(0, -2) if batch_shape else y[None]
        weights, sums = self._start(batch_shape)
        x: list[Tensor] = [y.new_empty(0)] * y.shape[-1]
        log_scales = list(x)
        for rank, place in enumerate(self._order):
            sums = self._passed(rank, sums, weights)
            # A copy, here and below: what autograd keeps of a view is all of the sums.
            location, raw = sums[-1][:, 0].to(y.dtype, copy=True)
            sums[-1] = sums[-1][:, 1:]
            log_scales[place] = clamp_preserve_gradients(
                raw, self.log_scale_min_clip, self.log_scale_max_clip
            )
            x[place] = (rows[:, place] - location) * (-log_scales[place]).exp()
            later = weights[0][network.num_seeing[0][rank + 1] :, context.shape[-1] + place]
            seen = x[place].to(context.dtype).clamp(-FAR, FAR)
            sums[0] = torch.addmm(sums[0], later[:, None], seen[None])
        self._cached_log_scale = torch.stack(log_scales, -1).reshape(*batch_shape, y.shape[-1])
        return torch.stack(x, -1).reshape(*batch_shape, y.shape[-1])

    def _start(self, batch_shape: torch.Size) -> tuple[list[Tensor], list[Tensor]]:
        """Return each layer's matrix and sums without dimensions of x, ``[units, rows]``.

        Those of the last are ``[2, D, ...]``, in the order of dependence.
        """
        (network,), context = self._network, self._context
        layers, weights, num_rows = network.layers, network.weights(), batch_shape.numel()
        of_context = weights[0][:, : context.shape[-1]]
        first = linear(context, of_context, layers[0].bias).to(context.dtype)
        first = first.expand(*batch_shape, first.shape[-1]).reshape(num_rows, -1).mT
        num_dims = len(self._order)
        places = [*self._order, *(num_dims + place for place in self._order)]
        weights[-1] = weights[-1][places].unflatten(0, (2, num_dims))
        last = layers[-1].bias[places].unflatten(0, (2, num_dims))
        biases = [*(layer.bias for layer in layers[1:-1]), last]
        return weights, [first, *(b.unsqueeze(-1).expand(*b.shape, num_rows) for b in biases)]

    def _passed(self, rank: int, sums: list[Tensor], weights: list[Tensor]) -> list[Tensor]:
        """Compute the units that see no more than ``rank`` dimensions, layer by layer."""
        (network,), sums = self._network, list(sums)
        for number, counts in enumerate(network.num_seeing):
            begin, end = counts[rank], counts[rank + 1]
            if begin == end:
                continue
            units = network.f(sums[number][: end - begin].clone())
            sums[number] = sums[number][end - begin :]
            if number + 1 < len(network.num_seeing):
                later = weights[number + 1][network.num_seeing[number + 1][rank] :, begin:end]
            else:
                later = weights[-1][:, rank:, begin:end]
            sums[number + 1] = sums[number + 1] + (later @ units).to(units.dtype)
        return sums


class AutoregressiveBernoulli(Drawn, TorchDistribution):
    """Bits whose logits are ``logits`` plus what a network makes of the bits before them.

    Args:
        network: A masked network, of the bits and a context.
        logits: ``[*batch, D]``.
        context: ``[*batch, num_context]``.
        event_shape: Of D bits.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(
        self, network: Any, logits: Tensor, context: Tensor, event_shape: tuple[int, ...]
    ) -> None:
        self._network, self._logits, self._context = network, logits, context
        super().__init__(logits.shape[:-1], torch.Size(event_shape), validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        """The values that it may take."""
        return constraints.independent(constraints.boolean, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveBernoulli:
        """Return the same distribution with this batch shape."""
        logits, context = (x.expand(*batch_shape, -1) for x in (self._logits, self._context))
        other = AutoregressiveBernoulli(self._network, logits, context, self.event_shape)
        return other.drawn_with(self.rule)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients."""
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self._logits.dtype, device=self._logits.device)
        uniform = uniform.flatten(len(shape) - self.event_dim)
        value = torch.zeros_like(uniform)
        for _ in range(uniform.shape[-1]):
            # Entry d is right from pass d + 1 on.
            logits = self._all_logits(value)
            if self.rule != DrawingRule():
                zero, one = self.rule(torch.stack([torch.zeros_like(logits), logits], -1)).unbind(
                    -1
                )
                logits = one - zero
            value = (uniform < logits.sigmoid()).to(uniform.dtype)
        return value.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-density or log-probability, ``[*batch]``."""
        flat = value.flatten(value.dim() - self.event_dim)
        logits = self._all_logits(flat)
        flat, logits = torch.broadcast_tensors(flat, logits)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, flat, reduction="none")
        return -loss.sum(-1)

    def _all_logits(self, flat: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(flat.shape, self._logits.shape)
        learned = self._network(flat.expand(shape), context=self._context)
        return self._logits + learned.to(self._logits.dtype)


class AutoregressiveCategorical(Drawn, TorchDistribution):
    """Integers 0..K-1 whose logits are ``logits`` plus what a network makes of those before them.

    Args:
        network: From the first T of M integers, ``[rows, T]``, to logits of the first T + 1,
            ``[rows, T + 1, K]``.
        logits: ``[*batch, M, K]``.
        event_shape: Of M integers.
    """

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, network: Any, logits: Tensor, event_shape: tuple[int, ...]) -> None:
        self._network, self._logits = network, logits
        super().__init__(logits.shape[:-2], torch.Size(event_shape), validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        """The values that it may take."""
        integers = constraints.integer_interval(0, self._logits.shape[-1] - 1)
        return constraints.independent(integers, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> AutoregressiveCategorical:
        """Return the same distribution with this batch shape."""
        logits = self._logits.expand(*batch_shape, *self._logits.shape[-2:])
        other = AutoregressiveCategorical(self._network, logits, self.event_shape)
        return other.drawn_with(self.rule)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        """Draw without gradients, place by place: integers, in the type of the logits."""
        shape = self._extended_shape(torch.Size(sample_shape))
        batch = shape[: len(shape) - self.event_dim]
        places = self._logits.expand(*batch, *self._logits.shape[-2:]).flatten(0, -3).unbind(-2)
        drawn = self._logits.new_empty((batch.numel(), 0), dtype=torch.long)
        for logits in places:
            logits = self.rule(logits + self._network(drawn)[:, -1].to(logits.dtype))
            code = torch.distributions.Categorical(logits=logits, validate_args=False).sample()
            drawn = torch.cat([drawn, code.unsqueeze(-1)], -1)
        return drawn.to(self._logits.dtype).reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        """Return the log-probability, ``[*batch]``, all places at once; minus infinity outside."""
        given = value.flatten(value.dim() - self.event_dim)
        flat = given.nan_to_num(-1.0).long().clamp(0, self._logits.shape[-1] - 1)
        learned = self._network(flat.reshape(-1, flat.shape[-1])[:, :-1])
        learned = learned.reshape(*flat.shape, -1).to(self._logits.dtype)
        log_p = (self._logits + learned).log_softmax(-1)
        index = flat.unsqueeze(-1).expand(*log_p.shape[:-1], 1)
        total = log_p.gather(-1, index).squeeze(-1).sum(-1)
        return torch.where((flat == given).all(-1), total, -torch.inf)
