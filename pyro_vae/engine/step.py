"""One gradient step of a program: the gradients of a batch, a place between, and the update."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from torch import Tensor, fx, nn

from pyro_vae.engine.gradients import (
    announcing,
    gradients,
    run_and_find,
    warn_of_cut_off,
    warn_of_unregistered,
)
from pyro_vae.engine.optimizers import TensorRates, rate_factors
from pyro_vae.engine.turns import Turns
from pyro_vae.engine.updates import Updates
from pyro_vae.inference.explaining import explaining
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.program import Program, exclusively
from pyro_vae.recording.recorder import NotRecordable, Recorder
from pyro_vae.recording.replaying import ENGINES, Replayed

__all__ = ["Step"]

_RECORDABLE = (Trace_ELBO, TraceMeanField_ELBO)


class Step:
    """A pure function from a batch to gradients, the update that takes them up, and recordings.

    A step is eager, or it replays the recording of the gradients alone, or of the whole: the
    three have the same bits.

    Args:
        program: The model and the guide.
        loss: The objective, see ``SVI``.
        updates: What the gradients do.
        prepare: Turns what a step is called with into the arguments of model and guide.
        engine: When to record, see ``SVI``.
        num_steps: How many steps are planned.
        rare: Says of a step's arguments whether nothing is compiled for them.

    Attributes:
        program: The model and the guide.
        prepare: As given; the identity unless given.
        between: Called with the gradients of all parameters (None: it has none), and returns those
            that the update takes; where several processes would reduce. None: nothing is done.
        updates: What the gradients do, and the state that a step changes.
        num_updates: The number of updates asked for.
        paused: Whether every step is run as it is written, for the time being.
        reached: The ids of the parameters that ``find_parameters`` gave a gradient.

    Raises:
        TypeError: If ``loss`` is no objective.
        ValueError: If there is no engine of that name.
    """

    def __init__(
        self,
        program: Program,
        loss: ELBO | Callable[..., Any],
        updates: Updates,
        *,
        prepare: Callable[..., tuple[Tensor, ...]] | None = None,
        engine: str = "eager",
        num_steps: int = 0,
        rare: Callable[..., bool] | None = None,
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine={engine!r}: choose from {', '.join(ENGINES)}")
        if not (isinstance(loss, ELBO) or callable(loss)):
            raise TypeError(f"loss={loss!r}: expected a pyro.infer.ELBO object or a function")
        self.program, self.updates = program, updates
        self.prepare = prepare or _as_they_are
        self.between: Callable[[list[Tensor | None]], Sequence[Tensor | None]] | None = None
        self.num_updates = 0
        self.paused = False
        self.reached: set[int] = set()
        self.model = announcing(program)
        self._engine, self._num_steps, self._rare = engine, num_steps, rare
        self._was_replayed = False
        self.loss = loss

    # ------------------------------------------------------------------------ what it is made of

    @property
    def loss(self) -> Any:
        """The objective; another one may be set between steps."""
        return self._loss

    @loss.setter
    def loss(self, loss: Any) -> None:
        self._loss = loss
        self._in_store: dict[str, Tensor] = {}
        self._rates: TensorRates | None = None
        self._changing: dict[str, Any] = {}
        self._num_gradients = 0
        watched = {
            type(loss).__name__: type(loss),
            "the objective": getattr(loss, "__dict__", {}),
            "the observation": getattr(self.prepare, "watched", None),
        }
        self._recorder = Recorder(self.program, self._gradients_of, watched=watched)
        self._gradients = self._replayed(self._gradients_of, watched)
        watched = {**watched, "the optimizer's state": self._changing}
        self._whole = self._replayed(self._step_of, watched)
        self._remember_store(self.updates.parameters)

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters found so far, unconstrained, by name."""
        return dict(self.updates.parameters)

    @property
    def optimizer(self) -> torch.optim.Optimizer | None:
        """The one optimiser over all parameters; None before the first step."""
        return self.updates.optimizer

    @property
    def recorded(self) -> bool:
        """Whether the last step replayed a recording."""
        return self._was_replayed

    @property
    def modules_of_loss(self) -> dict[str, nn.Module]:
        """The modules that the objective holds, whose parameters are trained with the rest."""
        return self._loss.modules if isinstance(self._loss, Objective) else {}

    # ------------------------------------------------------------------------------- taking steps

    @exclusively
    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; return the loss, negative and summed over the data plate.

        That of a recorded step stays on the device.
        """
        loss: Any = self._replayed_step(args, kwargs)
        if loss is not None:
            self._was_replayed = True
            self.num_updates += 1
            return loss
        loss = self.add_gradients(*args, **kwargs)
        self._exchange()
        self.updates.note(loss, [p.grad for p in self.updates.parameters.values()])
        self._apply()
        self.updates.observe(loss, args)
        return loss

    @exclusively
    def add_gradients(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss and add its gradient to every parameter's ``grad``."""
        found = self._replayed_gradients(args, kwargs)
        self._was_replayed = found is not None
        if found is None:
            return self._eagerly(*self.prepare(*args), **kwargs)
        loss, *new = found
        for parameter, gradient in zip(self.updates.parameters.values(), new, strict=True):
            if gradient is not None:
                old = parameter.grad
                parameter.grad = gradient if old is None else old + gradient
        return to_float(loss)

    def apply_gradients(self) -> None:
        """Do what is done between, clip the gradients, let the optimiser step, and clear them."""
        self._exchange()
        self._apply()

    @exclusively
    def find_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Run once on arguments of model and guide to find the parameters, and train nothing."""
        self._eagerly(*args, **kwargs)
        parameters = self.updates.parameters.values()
        self.reached = {id(p) for p in parameters if p.grad is not None}
        for parameter in parameters:
            parameter.grad = None

    def take_turns(self, turns: Turns, full_size: int | None) -> None:
        """Let turns say whose parameters a step moves, see ``part_in_turns``."""
        self.updates.turns, self.updates.full_size = turns, full_size

    def go_on(self, num_updates: int) -> None:
        """Go on after so many updates; tensors may have been replaced since the last step."""
        self.num_updates = num_updates
        self.forget()

    def forget(self) -> None:
        """Drop all recordings; to be called after state was replaced, not changed in place."""
        self._recorder.forget()
        self._gradients.forget()
        self._whole.forget()
        self._rates = None

    def _exchange(self) -> None:
        if self.between is not None:
            parameters = self.updates.parameters.values()
            exchanged = self.between([p.grad for p in parameters])
            for parameter, gradient in zip(parameters, exchanged, strict=True):
                parameter.grad = gradient

    def _apply(self) -> None:
        self.updates.apply()
        self.num_updates += 1

    def _eagerly(self, *args: Any, **kwargs: Any) -> Any:
        is_first = self.optimizer is None
        with explaining("a step cannot be taken", self.program.reachable):
            loss, found = run_and_find(
                self.program, self.model, self._loss, args, kwargs,
                is_first=is_first, beside=self.modules_of_loss,
            )  # fmt: skip
        modules = [*self.program.reachable, *self.modules_of_loss.values()]
        changed = self.updates.adopt(found, lambda: rate_factors(modules))
        if changed:
            self._remember_store(changed)
            self.forget()
        if is_first:
            warn_of_unregistered(self.program, self.updates.known)
            warn_of_cut_off(self.program, self.updates.parameters, args, kwargs)
        return to_float(loss)

    # --------------------------------------------------------------------------------- recordings

    @property
    def ready(self) -> bool:
        """Whether a recording could say what the program says; the step is eager if not."""
        # Handlers around a step change its meaning.
        if self.optimizer is None or self._gradients.gave_up or poutine.runtime.am_i_wrapped():
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
        loss = self._loss
        if type(loss) in _RECORDABLE or isinstance(loss, Objective):
            return ""
        name = getattr(loss, "__name__", type(loss).__name__)
        return f"{name} may depend on values, not on tensors alone"

    @property
    def tensors(self) -> list[Tensor]:
        """All tensors that the step may read or change, as of the last ``graph``."""
        return self._recorder.tensors

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
            return self._recorder.graph(self.updates.parameters, args)

    def _gradients_of(self, *args: Tensor) -> tuple[Tensor | None, ...]:
        """Return the loss and the gradients: what an eager step does, as one function."""
        parameters = list(self.updates.parameters.values())
        with torch.enable_grad(), self.program.running():
            batch = self.prepare(*args)
            return gradients(self.program, self.model, self._loss, parameters, batch)

    def _step_of(self, *args: Tensor) -> tuple[Tensor]:
        """Return the loss, and change all that a step changes: the same as one function."""
        loss, *found = self._gradients_of(*args)
        assert loss is not None
        assert self._rates is not None
        self.updates.note(loss, found)
        self.updates.apply_recorded(found, self._rates)
        self.updates.observe(loss, args)
        return (loss if loss.device.type == "mps" else loss.double(),)  # as a Python float is

    def _replayed(self, function: Callable[..., Any], watched: dict[str, Any]) -> Replayed:
        return Replayed(
            self.program, function,
            engine=self._engine, watched=watched, num_calls=self._num_steps, rare=self._rare,
        )  # fmt: skip

    def _replayed_gradients(
        self, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[Tensor | None, ...] | None:
        if self.paused or not self.ready or self._adds_one_by_one():
            return None
        found = self._gradients(self._num_gradients, self.updates.parameters, *args, **kwargs)
        self._num_gradients += 1
        return found

    def _replayed_step(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Tensor | None:
        # What is done between gradients and update may ask other processes: it is not recorded.
        if self.paused or self.num_updates == 0 or self.between is not None:
            return None
        if self._whole.gave_up or not self.ready:
            return None
        if any(parameter.grad is not None for parameter in self.updates.parameters.values()):
            return None
        rates = self._current_rates()
        if rates is None:
            return None
        rates.update()
        found = self._whole(self.num_updates, self.updates.parameters, *args, **kwargs)
        if self._whole.gave_up:
            self._gradients.give_up()
        return None if found is None else found[0]

    def _remember_store(self, parameters: dict[str, Tensor]) -> None:
        """Note which of these parameters are Pyro's store's."""
        store = pyro.get_param_store()._params
        self._in_store.update({n: p for n, p in parameters.items() if store.get(n) is p})

    def _adds_one_by_one(self) -> bool:
        """Whether gradients of particles would be added one by one to those that are there."""
        looped = self._loss.num_particles > 1 and not self._loss.vectorize_particles
        return looped and any(p.grad is not None for p in self.updates.parameters.values())

    def _current_rates(self) -> TensorRates | None:
        optimizer = self.optimizer
        if self._rates is not None and (
            self._rates.optimizer is not optimizer or self._rates.changed()
        ):
            self._whole.forget()
            self._rates = None
        if self._rates is None and optimizer is not None and TensorRates.readable(optimizer):
            device = next(iter(self.updates.parameters.values())).device
            self._rates = TensorRates(optimizer, device)
            self._changing.clear()
            self._changing["what it changes"] = self.updates.changing(self._rates)
        return self._rates


def _as_they_are(*args: Any) -> tuple[Any, ...]:
    return args


def to_float(loss: Any) -> Any:
    """Return a loss, or each part of it, as a number; the host waits for the device."""
    if isinstance(loss, tuple):
        return type(loss)(to_float(part) for part in loss)
    return loss.item() if isinstance(loss, Tensor) else loss
