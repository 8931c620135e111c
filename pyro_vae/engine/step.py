"""A gradient step as functions of tensors alone, which can be recorded."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, fx

from pyro_vae.engine.optimizers import TensorRates
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.program import Program
from pyro_vae.recording.recorder import NotRecordable, Recorder
from pyro_vae.recording.replaying import Replayed

__all__ = ["RecordedStep", "laid_out"]

_RECORDABLE = (Trace_ELBO, TraceMeanField_ELBO)


class Inference(Protocol):
    """What a step is made of; ``SVI``."""

    program: Program
    model: Callable[..., Any]
    optimizer: torch.optim.Optimizer | None
    prepare: Callable[..., tuple[Tensor, ...]]
    failed: Tensor | None
    num_made: Tensor | None
    faults: Tensor | None
    num_updates: int
    turns: Any
    rare: Callable[..., bool] | None

    @property
    def loss(self) -> Any:
        """The objective."""

    @property
    def parameters(self) -> dict[str, Tensor]:
        """The parameters found so far."""

    def clip(self) -> None:
        """Bound the gradients."""

    def guard(self, loss: Any, gradients: Sequence[Tensor | None]) -> None:
        """Note on the device what of a loss and its gradients is not finite."""

    def take_note(self, loss: Tensor, *args: Any) -> None:
        """Let whose turn it is depend on a loss."""


class RecordedStep:
    """The recordings of an inference's steps, up to the gradients and as a whole.

    Args:
        svi: Whose steps they are.
        engine: When to record, see ``SVI``.
        num_steps: How many steps are planned.

    Attributes:
        paused: Whether every step is run as it is written, for the time being.
    """

    def __init__(self, svi: Inference, engine: str, num_steps: int) -> None:
        self.svi = svi
        self.paused = False
        self._in_store: dict[str, Tensor] = {}
        self._rates: TensorRates | None = None
        self._state: dict[str, Any] = {}
        self._num_gradients = 0
        loss = svi.loss
        watched = {
            type(loss).__name__: type(loss),
            "the objective": getattr(loss, "__dict__", {}),
            "the observation": getattr(svi.prepare, "watched", None),
        }
        self._recorder = Recorder(svi.program, self._up_to_gradients, watched=watched)
        self._gradients = self._new(self._up_to_gradients, engine, watched, num_steps)
        watched = {**watched, "the optimizer's state": self._state}
        self._whole = self._new(self._whole_step, engine, watched, num_steps)

    def gradients(self, *args: Any, **kwargs: Any) -> tuple[Tensor | None, ...] | None:
        """Return the loss and a gradient for each parameter, or None: it has to be run.

        Args:
            args: What the step is called with.
            kwargs: Further arguments.
        """
        if self.paused or not self.ready or self._adds_one_by_one():
            return None
        found = self._gradients(self._num_gradients, self.svi.parameters, *args, **kwargs)
        self._num_gradients += 1
        return found

    def whole(self, *args: Any, **kwargs: Any) -> Tensor | None:
        """Take the step and return its loss on the device; or None: it has to be run.

        Args:
            args: What the step is called with.
            kwargs: Further arguments.
        """
        svi = self.svi
        if self.paused or svi.num_updates == 0:
            return None
        if self._whole.gave_up or not self.ready:
            return None
        if any(parameter.grad is not None for parameter in svi.parameters.values()):
            return None
        rates = self._current_rates()
        if rates is None:
            return None
        rates.update()
        found = self._whole(svi.num_updates, svi.parameters, *args, **kwargs)
        if self._whole.gave_up:
            self._gradients.give_up()
        return None if found is None else found[0]

    def graph(self, *args: Tensor) -> fx.GraphModule:
        """Return the operations of a step up to the gradients, held against the step itself.

        Args:
            args: What the step is called with.

        Raises:
            NotRecordable: If the step cannot be said in operations alone.
        """
        if not self.ready:
            raise NotRecordable(self.obstacle or "handlers around a step change its meaning")
        with torch.no_grad():
            return self._recorder.graph(self.svi.parameters, args)

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that the step may read or change, as of the last ``graph``."""
        return self._recorder.tensors

    def forget(self) -> None:
        """Drop all recordings."""
        self._recorder.forget()
        self._gradients.forget()
        self._whole.forget()
        self._rates = None

    def meet(self, parameters: dict[str, Tensor]) -> None:
        """Take note of new parameters, and of which of them are Pyro's store's."""
        store = pyro.get_param_store()._params
        self._in_store.update({n: p for n, p in parameters.items() if store.get(n) is p})
        self.forget()

    def _new(
        self, function: Callable[..., Any], engine: str, watched: dict[str, Any], num_steps: int
    ) -> Replayed:
        return Replayed(
            self.svi.program, function,
            engine=engine, watched=watched, num_calls=num_steps, rare=self.svi.rare,
        )  # fmt: skip

    @property
    def ready(self) -> bool:
        """Whether a recording could say what the program says; the step is eager if not."""
        svi = self.svi
        # Handlers around a step change its meaning.
        if svi.optimizer is None or self._gradients.gave_up or poutine.runtime.am_i_wrapped():
            return False
        if self.obstacle:
            self._gradients.give_up(self.obstacle)
            self._whole.give_up()
            return False
        store = pyro.get_param_store()._params
        if any(store.get(name) is not parameter for name, parameter in self._in_store.items()):
            self._in_store = {n: p for n, p in self._in_store.items() if store.get(n) is p}
            self.forget()
            return False
        return True

    @property
    def obstacle(self) -> str:
        """What about the objective forbids a recording; empty if nothing."""
        loss = self.svi.loss
        if type(loss) in _RECORDABLE or isinstance(loss, Objective):
            return ""
        name = getattr(loss, "__name__", type(loss).__name__)
        return f"{name} may depend on values, not on tensors alone"

    def _adds_one_by_one(self) -> bool:
        """Whether gradients of particles would be added one by one to those that are there."""
        looped = self.svi.loss.num_particles > 1 and not self.svi.loss.vectorize_particles
        return looped and any(p.grad is not None for p in self.svi.parameters.values())

    def _current_rates(self) -> TensorRates | None:
        optimizer = self.svi.optimizer
        if self._rates is not None and (
            self._rates.optimizer is not optimizer or self._rates.changed()
        ):
            self._whole.forget()
            self._rates = None
        if self._rates is None and optimizer is not None and TensorRates.readable(optimizer):
            device = next(iter(self.svi.parameters.values())).device
            self._rates = TensorRates(optimizer, device)
            self._state.clear()
            self._state["what it changes"] = [
                *self.svi.parameters.values(),
                *self._rates.states,
                self.svi.failed,
                self.svi.num_made,
                self.svi.faults,
                *(self.svi.turns.buffers() if self.svi.turns is not None else ()),
            ]
        return self._rates

    def _whole_step(self, *args: Tensor) -> tuple[Tensor]:
        svi, rates = self.svi, self._rates
        assert rates is not None
        loss, *gradients = self._up_to_gradients(*args)
        assert loss is not None
        svi.guard(loss, gradients)
        try:
            for parameter, gradient in zip(svi.parameters.values(), gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad(), rates.read_by_kernels(svi.failed, svi.turns):
                svi.clip()
                assert svi.optimizer is not None
                svi.optimizer.step()
            svi.take_note(loss, *args)
        finally:
            for parameter in svi.parameters.values():
                parameter.grad = None
        return (loss if loss.device.type == "mps" else loss.double(),)  # as a Python float is

    def _up_to_gradients(self, *args: Tensor) -> tuple[Tensor | None, ...]:
        """Return the loss and the gradients: what an eager step does, as one function."""
        svi = self.svi
        assert isinstance(svi.loss, ELBO)
        trained = [p for p in svi.parameters.values() if p.requires_grad]
        objective, times = svi.loss, 1
        if not objective.vectorize_particles and objective.num_particles > 1:
            objective, times = copy.copy(objective), objective.num_particles
            objective.num_particles = 1
        total: Any = 0.0
        gradients: list[Tensor | None] = [None] * len(trained)
        with torch.enable_grad(), svi.program.running():
            args = svi.prepare(*args)
            for _ in range(times):
                loss = objective.differentiable_loss(svi.model, svi.program.guide, *args) / times
                new = torch.autograd.grad(loss, trained, allow_unused=True)
                gradients = [
                    b if a is None else a if b is None else a + b
                    for a, b in zip(gradients, new, strict=True)
                ]
                total = total + loss.detach()
        by_parameter = dict(zip(map(id, trained), laid_out(gradients, trained), strict=True))
        return (total, *(by_parameter.get(id(p)) for p in svi.parameters.values()))


def laid_out(gradients: list[Tensor | None], parameters: list[Tensor]) -> list[Tensor | None]:
    """Lay gradients out as ``backward`` does: like their parameters, no two in one memory."""
    taken: set[int] = set()
    found: list[Tensor | None] = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None:
            shared = gradient.untyped_storage()._cdata in taken
            if shared or gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            taken.add(gradient.untyped_storage()._cdata)
        found.append(gradient)
    return found
