"""Discrete vectors drawn one entry after the other, each given the entries before it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from pyro.distributions.torch_distribution import TorchDistribution
from pyro.nn import ConditionalAutoRegressiveNN
from torch import Tensor, nn
from torch.distributions import constraints

from pyro_vae.components.conditional import Distribution, Family, Shape

__all__ = ["AutoregressiveBernoulli"]


class AutoregressiveBernoulli(Family):
    r"""Binary values, each given those before it by one masked network.

    .. math:: p(z) = \prod_d \mathrm{Bernoulli}\big(z_d; \sigma(\alpha_d + f_d(z_{<d}, h))\big)

    The discrete sibling of one step of ``MaskedAutoregressive``: a probability costs one pass of
    the network, a sample D passes in turn. Raw numbers are ``[*batch, D + num_context]`` for D
    entries: the logits :math:`\alpha` and the context h. Samples carry no gradient.

    Args:
        event_shape: The shape of one event, of D >= 2 entries in the order of memory.
        hidden_dims: The widths of the network's hidden layers, D or more each; None: one layer of
            3 D, but 64 at least.
        num_context: How many numbers h has, functions of the data where this is a posterior.

    Raises:
        ValueError: If there are fewer than two entries, a layer is too narrow, or ``num_context``
            is negative.

    References:
        The Neural Autoregressive Distribution Estimator (Larochelle & Murray, 2011)
        MADE: Masked Autoencoder for Distribution Estimation (Germain, Gregor, Murray &
        Larochelle, 2015)
    """

    def __init__(
        self,
        event_shape: Shape,
        *,
        hidden_dims: Sequence[int] | None = None,
        num_context: int = 16,
    ) -> None:
        num_dims = math.prod(event_shape)
        if num_dims < 2:
            raise ValueError(
                f"AutoregressiveBernoulli over event_shape={tuple(event_shape)}: its entries "
                "depend on each other, so it needs two or more; take Bernoulli for one"
            )
        if num_context < 0:
            raise ValueError(f"num_context={num_context}: give the size of the context, 0 or more")
        hidden = [max(64, 3 * num_dims)] if hidden_dims is None else list(hidden_dims)
        if not hidden or min(hidden) < num_dims:
            raise ValueError(
                f"hidden_dims={tuple(hidden)}: AutoregressiveBernoulli over {num_dims} entries has "
                f"one hidden layer or more, each at least {num_dims} wide"
            )
        super().__init__(event_shape, raw_shape=(num_dims + num_context,))
        self.network = ConditionalAutoRegressiveNN(
            num_dims, num_context, hidden, param_dims=[1], permutation=torch.arange(num_dims),
            nonlinearity=nn.SiLU(),
        )  # fmt: skip

    def forward(self, raw: Tensor | None = None) -> Distribution:
        """Return the distribution of ``raw``, ``[*batch, D + num_context]``."""
        if raw is None:
            raise ValueError("AutoregressiveBernoulli needs its raw parameters")
        num_dims = math.prod(self.event_shape)
        logits, context = raw[..., :num_dims], raw[..., num_dims:]
        return _OneAfterTheOther(self.network, logits, context, self.event_shape)


class _OneAfterTheOther(TorchDistribution):
    """Bernoullis whose logits are ``logits`` and what a network makes of the entries before."""

    arg_constraints: dict[str, Any] = {}  # noqa: RUF012

    def __init__(self, network: Any, logits: Tensor, context: Tensor, event_shape: Shape) -> None:
        self._network, self._logits, self._context = network, logits, context
        super().__init__(logits.shape[:-1], torch.Size(event_shape), validate_args=False)

    @constraints.dependent_property(is_discrete=True)
    def support(self) -> Any:
        return constraints.independent(constraints.boolean, self.event_dim)

    def expand(self, batch_shape: Any, _instance: Any = None) -> _OneAfterTheOther:
        logits, context = (x.expand(*batch_shape, -1) for x in (self._logits, self._context))
        return _OneAfterTheOther(self._network, logits, context, self.event_shape)

    @torch.no_grad()
    def sample(self, sample_shape: Any = ()) -> Tensor:
        shape = self._extended_shape(torch.Size(sample_shape))
        uniform = torch.rand(shape, dtype=self._logits.dtype, device=self._logits.device)
        uniform = uniform.flatten(len(shape) - self.event_dim)
        value = torch.zeros_like(uniform)
        for _ in range(uniform.shape[-1]):
            # Entry d is right from pass d + 1 on.
            value = (uniform < self._all_logits(value).sigmoid()).to(uniform.dtype)
        return value.reshape(shape)

    def log_prob(self, value: Tensor) -> Tensor:
        flat = value.flatten(value.dim() - self.event_dim)
        logits = self._all_logits(flat)
        flat, logits = torch.broadcast_tensors(flat, logits)
        loss = nn.functional.binary_cross_entropy_with_logits(logits, flat, reduction="none")
        return -loss.sum(-1)

    def _all_logits(self, flat: Tensor) -> Tensor:
        shape = torch.broadcast_shapes(flat.shape, self._logits.shape)
        learned = self._network(flat.expand(shape), context=self._context)
        return self._logits + learned.to(self._logits.dtype)
