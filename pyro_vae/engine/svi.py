"""Stochastic variational inference: a drop-in for ``pyro.infer.SVI`` over one ``Step``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from pyro.infer import ELBO
from pyro.optim import PyroOptim

from pyro_vae.arguments import at_the_door
from pyro_vae.arithmetic import suited_products
from pyro_vae.budget import Budget
from pyro_vae.engine.optimizers import Optim
from pyro_vae.engine.step import Step, to_float
from pyro_vae.engine.updates import Updates
from pyro_vae.inference.program import Program, exclusively

__all__ = ["SVI"]


class SVI(Step):
    """A drop-in for ``pyro.infer.SVI`` that steps one torch optimiser over all parameters.

    Parameters come from the modules that ``model`` and ``guide`` are (or are methods of) and from
    the ``pyro.param`` and ``pyro.module`` statements they run; two programs in one process never
    share any. Losses keep Pyro's convention: negative bounds, summed over the data plate.

    Args:
        model: Declares p(x, z).
        guide: Declares q(z | x).
        optim: Builds a torch optimiser from parameters, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``; or a ``pyro.optim`` object, whose
            constructor and arguments (clipping and schedules included) are taken over. Adam, AdamW
            and SGD use their fused kernels, unless which kernels to use is given.
        loss: A ``pyro.infer.ELBO`` object, or a function ``loss(model, guide, *args)``.
        clip_norm: The largest norm of the gradient over all parameters; None for no bound.
        engine: "eager" runs Pyro at every step; "recorded" replays the operations that one run
            left, to the same bits; "compiled" fuses them with Inductor, too; "auto" records after
            a few eager steps, where that can be done, and compiles where ``num_steps`` make up
            for it. A program that cannot be recorded runs eagerly, and a warning says why, unless
            the engine is "auto".
        guarded: Whether an update whose loss or gradient is not finite, and all after it, are left
            out; see ``Updates``.
        num_steps: How many steps are planned, by which "auto" decides.
        fast: Whether steps after the first, on a CPU, take the threads and the library of products
            that suit the size of theirs, see ``suited_products``. The process keeps its own.

    Raises:
        TypeError: If ``optim`` or ``loss`` is no such object.
        ValueError: If ``clip_norm`` is not positive or the engine has another name.

    References:
        Stochastic Variational Inference (Hoffman, Blei, Wang & Paisley, 2013)
        Automated Variational Inference in Probabilistic Programming (Wingate & Weber, 2013)
    """

    @at_the_door
    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Optim | PyroOptim,
        loss: ELBO | Callable[..., Any],
        *,
        clip_norm: float | None = None,
        engine: str = "eager",
        guarded: bool = False,
        num_steps: int = 0,
        fast: bool = False,
    ) -> None:
        updates = Updates(optim, clip_norm, guarded=guarded)
        super().__init__(Program(model, guide), loss, updates, engine=engine, num_steps=num_steps)
        self._fast = fast
        self._largest_product: int | None = None

    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; the loss of a recorded one stays on the device."""
        if not self._fast:
            return super().update(*args, **kwargs)
        if self._largest_product is not None:
            with suited_products(self._largest_product):
                return super().update(*args, **kwargs)
        with Budget() as first:
            loss = super().update(*args, **kwargs)
        self._largest_product = first.largest_product
        return loss

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; return the loss, negative and summed over the data plate."""
        return to_float(self.update(*args, **kwargs))  # here the host waits for the device

    @exclusively
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss without gradients; nothing is changed."""
        loss = self.loss.loss if isinstance(self.loss, ELBO) else self.loss
        with torch.no_grad(), self.program.running():
            args = self.prepare(*args)
            return to_float(loss(self.program.model, self.program.guide, *args, **kwargs))

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss and add its gradient to every parameter's ``grad``."""
        return self.add_gradients(*args, **kwargs)
