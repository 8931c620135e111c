"""A gradient step of several replicas as one graph, with one optimiser over stacked parameters.

The replicas' own parameters and the states of their optimisers are slices of the stacks, so that
validation, checkpoints and a step by itself find an ordinary run.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from pyro_vae.engine.gradients import laid_out
from pyro_vae.engine.optimizers import TensorRates
from pyro_vae.engine.step import Step
from pyro_vae.recording.recorder import NotRecordable, Recorder
from pyro_vae.replicas.noise import RandomState
from pyro_vae.replicas.vectorizing import Form, Stacks

__all__ = ["JointStep"]

_Batch = tuple[Tensor, ...]


class JointStep:
    """The steps of several inferences of one structure, taken together.

    Args:
        steps: The inferences; each has made one update by itself.
        states: Their random states.
        engine: Whether the step is compiled, see ``SVI``.
        num_steps: How many steps are planned.
    """

    def __init__(
        self, steps: Sequence[Step], states: Sequence[RandomState], engine: str, num_steps: int
    ) -> None:
        self._steps, self._states = steps, states
        self._changing: dict[str, Any] = {}
        watched: dict[str, Any] = {"what a step changes": self._changing}
        for place, step in enumerate(steps):
            program = (*step.program.reachable, step.program.model, step.program.guide)
            objective = (type(step.loss), getattr(step.loss, "__dict__", {}))
            observation = getattr(step.prepare, "watched", None)
            watched[f"replica {place}"] = (*program, *objective, observation)
        self._recorder = Recorder(
            steps[0].program, self._step, watched=watched, engine=engine, num_calls=num_steps
        )
        self._start_anew()

    def __call__(self, batches: Sequence[_Batch]) -> list[Tensor] | None:
        """Take one step each; return the losses, or None: each has to take it by itself.

        Args:
            batches: What each inference's step is called with, alike in shape.

        Raises:
            NotRecordable: If there is no such graph; nothing has been changed.
            ValueError: If the replicas share what a step changes.
        """
        if not all(step.ready for step in self._steps):
            if self._steps[0].obstacle:
                raise NotRecordable(self._steps[0].obstacle)
            self.separate()
            return None
        if self._recorder.forget_if_changed() or not self._stacks.are_whole():
            self.separate()
            return None
        args = [torch.stack(parts) for parts in zip(*batches, strict=True)]
        key = tuple(arg.shape for arg in args)
        if key in self._forms:
            losses = self._replay(self._forms[key], args)
        else:
            losses = self._first(key, batches, args)
        for step in self._steps:
            step.num_updates += 1
        return list(losses.unbind(0))

    def settle(self) -> None:
        """Write into each replica's optimiser how many steps it has made."""
        for stack, members in self._counts:
            for member in members:
                member.copy_(stack)

    def separate(self) -> None:
        """Give each replica memory of its own again."""
        self.settle()
        self._stacks.separate()
        self._recorder.forget()
        for step in self._steps:
            step.forget()
        self._start_anew()

    def _start_anew(self) -> None:
        self._forms: dict[Any, Form] = {}
        self._stacks = Stacks()
        self._counts: list[tuple[Tensor, list[Tensor]]] = []
        self._optimizer: torch.optim.Optimizer | None = None
        self._trained: tuple[int, ...] = ()
        self._changing.clear()

    def _first(self, key: Any, batches: Sequence[_Batch], args: list[Tensor]) -> Tensor:
        with torch.no_grad():
            form = Form(self._steps, self._states, batches, self._stacks)
            if self._optimizer is None:
                self._build_optimizer(form)
            if form.trained != self._trained:
                raise NotRecordable("batches of different sizes train different parameters")
            form.check(args)
        self._forms[key] = form
        rewinders = [state.rewinder() for state in self._states]
        try:
            return self._replay(form, args)
        except BaseException:
            for rewind in rewinders:
                rewind()
            raise

    def _replay(self, form: Form, args: list[Tensor]) -> Tensor:
        assert self._optimizer is not None
        own = self._steps[0].optimizer
        assert own is not None
        for group, its in zip(self._optimizer.param_groups, own.param_groups, strict=True):
            group["lr"] = its["lr"]
        self._rates.update()
        (losses,) = self._recorder({}, *args, *form.draw())
        assert losses is not None
        return losses

    def _step(self, *args: Tensor) -> tuple[Tensor]:
        form = next(f for f in self._forms.values() if f.fits(args))
        losses, *gradients = form(*args)
        parameters = [self._parameters[place] for place in form.trained]
        gradients = [g for g in laid_out([*gradients], parameters) if g is not None]
        failed = self._guard(losses, dict(zip(form.trained, gradients, strict=True)))
        self._clip(gradients)
        assert self._optimizer is not None
        try:
            for parameter, gradient in zip(parameters, gradients, strict=True):
                parameter.grad = gradient
            with torch.no_grad(), self._rates.read_by_kernels(failed):
                self._optimizer.step()
        finally:
            for parameter in parameters:
                parameter.grad = None
        return (losses if losses.device.type == "mps" else losses.double(),)

    def _guard(self, losses: Tensor, gradients: dict[int, Tensor]) -> Tensor:
        """Note whose loss or gradient is not finite; return 1 if one is: then no replica steps."""
        none = torch.zeros_like(self._failed)
        found = [(~losses.isfinite()).to(none.dtype)]
        for place in range(self._faults.shape[1] - 1):
            sums = gradients[place].flatten(1).sum(1) if place in gradients else none
            found.append((~sums.isfinite()).to(none.dtype))
        faults = torch.stack(found, 1)
        self._faults.copy_(torch.maximum(self._faults, faults * (1 - self._failed[:, None])))
        self._failed.copy_(torch.maximum(self._failed, faults.amax(1)))
        failed = self._failed.amax()
        self._num_made.add_((1 - failed).long())
        return failed.float()  # as the kernels want it

    def _clip(self, gradients: Sequence[Tensor]) -> None:
        # The arithmetic of torch.nn.utils.clip_grad_norm_, for each replica.
        largest = self._steps[0].updates.clip_norm
        if largest is None:
            return
        norms = [torch.linalg.vector_norm(gradient.flatten(1), dim=1) for gradient in gradients]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)
        factor = (largest / (norm + 1e-6)).clamp(max=1.0)
        for gradient in gradients:
            gradient.mul_(factor.view(-1, *[1] * (gradient.dim() - 1)).to(gradient.dtype))

    def _build_optimizer(self, form: Form) -> None:
        optimizers = _optimizers(self._steps)
        first: Any = optimizers[0]
        members = list(zip(*(step.parameters.values() for step in self._steps), strict=True))
        self._trained = form.trained
        self._parameters = {place: self._stacks.of(members[place]) for place in form.trained}
        stacks = {id(members[place][0]): stack for place, stack in self._parameters.items()}
        groups = [
            {**group, "params": [stacks[id(p)] for p in group["params"] if id(p) in stacks]}
            for group in first.param_groups
        ]
        self._optimizer = type(first)(groups)
        for place, stack in self._parameters.items():
            its = [
                optimizer.state[parameter]
                for optimizer, parameter in zip(optimizers, members[place], strict=True)
            ]
            self._optimizer.state[stack] = self._joined(its)
        self._rates = TensorRates(self._optimizer, next(iter(self._parameters.values())).device)
        self._failed = self._stacks.of(tuple(step.updates.failed for step in self._steps))  # type: ignore[misc]
        self._num_made = self._stacks.of(tuple(step.updates.num_made for step in self._steps))  # type: ignore[misc]
        self._faults = self._stacks.of(tuple(step.updates.faults for step in self._steps))  # type: ignore[misc]
        self._changing["tensors"] = [*self._stacks.all(), *self._rates.states]

    def _joined(self, its: Sequence[dict[str, Any]]) -> dict[str, Any]:
        """Join one parameter's entries in the replicas' optimisers."""
        joined: dict[str, Any] = {}
        for name, value in its[0].items():
            values = [entries[name] for entries in its]
            if not isinstance(value, Tensor):
                joined[name] = value
            elif name == "step":  # one kernel steps all replicas: they have made as many steps
                joined[name] = value.clone()
                self._counts.append((joined[name], values))
            else:
                joined[name] = self._stacks.of(tuple(values))
        return joined


def _optimizers(steps: Sequence[Step]) -> list[torch.optim.Optimizer]:
    """Return the optimisers, if one kernel can step for all of them."""
    found = [step.optimizer for step in steps if TensorRates.readable(step.optimizer)]
    optimizers = [optimizer for optimizer in found if optimizer is not None]
    if len(optimizers) < len(steps):
        raise NotRecordable(f"{type(steps[0].optimizer).__name__} has no kernel for a joint step")
    if steps[0].updates.turns is not None:
        raise NotRecordable("guide and model of each take turns of their own")
    if getattr(steps[0].updates.optim, "pt_clip_args", None):
        raise NotRecordable("the optimiser clips each parameter by itself")
    settings = [
        [{n: v for n, v in group.items() if n != "params"} for group in optimizer.param_groups]
        for optimizer in optimizers
    ]
    if any(other != settings[0] for other in settings):
        raise NotRecordable("the replicas' optimisers differ in their settings")
    return optimizers
