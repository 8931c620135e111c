"""What gradients do: they are held against infinity, clipped, and taken up by one optimiser."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.engine.failure import not_finite
from pyro_vae.engine.optimizers import (
    Optim,
    TensorRates,
    add_parameters,
    build,
    clip_as_pyro,
    resting,
)
from pyro_vae.engine.turns import Turns
from pyro_vae.inference.program import ProgramError

__all__ = ["Updates"]


class Updates:
    """One optimiser over all parameters of a program, and the state that a step changes with them.

    Args:
        optim: Builds the optimiser, see ``SVI``.
        clip_norm: The largest norm of the gradient over all parameters; None for no bound.
        guarded: Whether an update whose loss or gradient is not finite is left out, and all after.

    Attributes:
        parameters: All that are trained, by name.
        known: Their ids.
        optimizer: None until there are parameters.
        scheduler: Of a ``pyro.optim`` scheduler.
        failed: 1 after a loss or gradient that was not finite, if ``guarded``; on the device.
        faults: What was not finite then, 1 or 0: the loss, and the gradient of each parameter,
            ``[1 + P]``, if ``guarded``; on the device.
        num_made: The number of updates made since then or since the start, if ``guarded``.
        turns: Whose parameters a step moves; None: all.
        full_size: That of the data, where a loss stands for all of them, not for a batch.

    Raises:
        TypeError: If ``optim`` is no such object.
        ValueError: If ``clip_norm`` is not positive.
    """

    def __init__(self, optim: Optim | PyroOptim, clip_norm: float | None, *, guarded: bool) -> None:
        if isinstance(optim, torch.optim.Optimizer) or not callable(optim):
            raise TypeError(
                f"optim={optim!r}: expected a function from parameters to a torch optimiser, such "
                "as functools.partial(torch.optim.Adam, lr=1e-3), or a pyro.optim object"
            )
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}: the largest gradient norm is positive")
        self.optim, self.clip_norm = optim, clip_norm
        self.parameters: dict[str, Tensor] = {}
        self.known: set[int] = set()
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self.failed = torch.zeros((), dtype=torch.float32) if guarded else None
        self.num_made = torch.zeros((), dtype=torch.int64) if guarded else None
        self.faults = torch.zeros(1) if guarded else None
        self.turns: Turns | None = None
        self.full_size: int | None = None

    def adopt(
        self, found: dict[str, Tensor], factors: Callable[[], Mapping[int, float]]
    ) -> dict[str, Tensor]:
        """Train the parameters among these that are new; return those that changed by name.

        Args:
            found: By name; a parameter may have several.
            factors: Returns factors of the learning rate, by the ids of parameters.
        """
        held = self.parameters
        new = {n: p for n, p in _once(found).items() if id(p) not in self.known}
        changed = {n: p for n, p in found.items() if n in held and held[n] is not p} | new
        self.known.update(map(id, new.values()))
        held.update(changed)
        if not new:
            return changed
        if self.optimizer is None:
            self.optimizer, self.scheduler = build(self.optim, new, factors())
        else:
            add_parameters(self.optimizer, self.optim, new, factors())
        if self.failed is not None and self.num_made is not None:
            device = next(iter(held.values())).device
            self.failed, self.num_made = self.failed.to(device), self.num_made.to(device)
            self.faults = self.failed.new_zeros(1 + len(held))
        return changed

    def note(self, loss: Any, gradients: Sequence[Tensor | None]) -> None:
        """Note on the device what of a loss and its gradients is not finite; count until then."""
        if self.failed is None or self.num_made is None or self.faults is None:
            return
        value = loss[0] if isinstance(loss, tuple) else loss
        value = torch.as_tensor(value, device=self.failed.device)
        found = not_finite([value, *gradients], self.failed)
        self.faults.copy_(torch.maximum(self.faults, found * (1 - self.failed)))
        self.failed.copy_(torch.maximum(self.failed, found.amax()))
        self.num_made.add_((1 - self.failed).long())

    def clip(self) -> None:
        """Bound the gradients as ``clip_norm`` and a ``pyro.optim`` object's arguments say."""
        if self.clip_norm is not None:
            trained = [p for p in self.parameters.values() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)
        clip_as_pyro(self.optim, self.parameters)

    def apply(self) -> None:
        """Clip the gradients, let the optimiser step, and clear them."""
        if self.optimizer is None:
            raise ProgramError(
                "there are no parameters to train: model and guide have no trainable parameter of "
                "a module, and no pyro.param or pyro.module statement has been run"
            )
        if self.failed is None or not self.failed.item():
            self.clip()
            with resting(self.optimizer, self.turns):
                self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def apply_recorded(self, gradients: Sequence[Tensor | None], rates: TensorRates) -> None:
        """Do the same within a recording: nothing is asked of the device."""
        assert self.optimizer is not None
        try:
            for parameter, gradient in zip(self.parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad(), rates.read_by_kernels(self.failed, self.turns):
                self.clip()
                self.optimizer.step()
        finally:
            for parameter in self.parameters.values():
                parameter.grad = None

    def observe(self, loss: Any, args: tuple[Any, ...]) -> None:
        """Let whose turn the next step is depend on the loss of this one, taken with ``args``."""
        if self.turns is not None:
            value = loss[0] if isinstance(loss, tuple) else loss
            self.turns.observe(torch.as_tensor(value) / (self.full_size or len(args[0])))

    def changing(self, rates: TensorRates) -> list[Any]:
        """Return what a step changes in place."""
        turns = () if self.turns is None else self.turns.buffers()
        noted = (self.failed, self.num_made, self.faults)
        return [*self.parameters.values(), *rates.states, *noted, *turns]


def _once(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep of each parameter the first of its names."""
    names = {id(p): name for name, p in reversed(parameters.items())}
    return {name: parameters[name] for name in reversed(names.values())}
