"""Stochastic variational inference: one optimiser over all parameters of a program."""

from __future__ import annotations

import copy
import inspect
import time
import warnings
from collections.abc import Callable, Iterable
from typing import Any

import pyro
import torch
from pyro import poutine
from pyro.infer import ELBO, Trace_ELBO, TraceMeanField_ELBO
from pyro.optim import PyroOptim
from pyro.optim.lr_scheduler import PyroLRScheduler
from pyro.params.param_store import normalize_param_name
from torch import Tensor

from pyro_vae.engine.recording import NotRecordable, Recorder
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.program import Program, ProgramError

__all__ = ["ENGINES", "SVI", "Optim"]

ENGINES = ("auto", "eager", "recorded", "compiled")
_RECORDING_SECONDS = 2.0
_RECORDABLE = (Trace_ELBO, TraceMeanField_ELBO)

Optim = Callable[[Iterable[Any]], torch.optim.Optimizer]


class SVI:
    """A drop-in for ``pyro.infer.SVI`` that steps one torch optimiser over all parameters.

    Parameters come from the modules that ``model`` and ``guide`` are (or are methods of) and from
    the ``pyro.param`` and ``pyro.module`` statements they run; two programs in one process never
    share any. Losses keep Pyro's convention: negative bounds, summed over the data plate.

    Args:
        model: Declares p(x, z).
        guide: Declares q(z | x).
        optim: Builds a torch optimiser from parameters, such as
            ``functools.partial(torch.optim.Adam, lr=1e-3)``; or a ``pyro.optim`` object, whose
            constructor and arguments (clipping and schedules included) are taken over.
        loss: A ``pyro.infer.ELBO`` object, or a function ``loss(model, guide, *args)``.
        clip_norm: The largest norm of the gradient over all parameters; None for no bound.
        engine: "eager" runs Pyro at every step; "recorded" replays the operations that one run
            left, to the same bits; "compiled" fuses them with Inductor, too; "auto" records, where
            that can be done, once eager steps have cost as much as recording does. A program that
            cannot be recorded runs eagerly, and a warning says why, unless the engine is "auto".

    Raises:
        TypeError: If ``optim`` or ``loss`` is no such object.
        ValueError: If ``clip_norm`` is not positive.

    References:
        Stochastic Variational Inference (Hoffman, Blei, Wang & Paisley, 2013)
        Automated Variational Inference in Probabilistic Programming (Wingate & Weber, 2013)
    """

    def __init__(
        self,
        model: Callable[..., Any],
        guide: Callable[..., Any],
        optim: Optim | PyroOptim,
        loss: ELBO | Callable[..., Any],
        *,
        clip_norm: float | None = None,
        engine: str = "eager",
    ) -> None:
        if engine not in ENGINES:
            raise ValueError(f"engine={engine!r}: choose from {', '.join(ENGINES)}")
        if isinstance(optim, torch.optim.Optimizer) or not callable(optim):
            raise TypeError(
                f"optim={optim!r}: expected a function from parameters to a torch optimiser, such "
                "as functools.partial(torch.optim.Adam, lr=1e-3), or a pyro.optim object"
            )
        if not (isinstance(loss, ELBO) or callable(loss)):
            raise TypeError(f"loss={loss!r}: expected a pyro.infer.ELBO object or a function")
        if clip_norm is not None and not clip_norm > 0:
            raise ValueError(f"clip_norm={clip_norm}: the largest gradient norm is positive")
        self.program = Program(model, guide)
        self._announcing_model = _announcing(self.program)
        self._loss = loss
        self.clip_norm = clip_norm
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self._optim = optim
        self._parameters: dict[str, Tensor] = {}
        self._known: set[int] = set()
        self._in_store: dict[str, Tensor] = {}
        self._warns = engine in ("recorded", "compiled")
        self._seconds_to_wait = _RECORDING_SECONDS if engine == "auto" else 0.0
        self._compiled = engine == "compiled"
        self._was_replayed = False
        self._recorder = None if engine == "eager" else self._new_recorder()

    @property
    def parameters(self) -> dict[str, Tensor]:
        """Return the parameters found so far, unconstrained, by name."""
        return dict(self._parameters)

    @property
    def loss(self) -> Any:
        """The objective; another one may be set between steps."""
        return self._loss

    @loss.setter
    def loss(self, loss: Any) -> None:
        self._loss = loss
        if self._recorder is not None:
            self._recorder = self._new_recorder()

    @property
    def recorded(self) -> bool:
        """Whether the last step replayed a recording."""
        return self._was_replayed

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; return the loss, negative and summed over the data plate."""
        loss = self.loss_and_grads(*args, **kwargs)
        self.apply_gradients()
        return loss

    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss without gradients; nothing is changed."""
        loss = self.loss.loss if isinstance(self.loss, ELBO) else self.loss
        with torch.no_grad(), self.program.running():
            return _to_float(loss(self.program.model, self.program.guide, *args, **kwargs))

    def loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss and add its gradient to every parameter's ``grad``."""
        ready = self.optimizer is not None and self._seconds_to_wait <= 0
        self._was_replayed = False
        if self._recorder is not None and ready:
            try:
                if self._is_as_recorded():
                    loss = self._replayed(*args, **kwargs)
                    self._was_replayed = True
                    return loss
            except NotRecordable as reason:
                self._recorder = None
                if self._warns:
                    warnings.warn(f"running eagerly, since {reason}", stacklevel=3)
        start = time.monotonic()
        loss = self._eagerly(*args, **kwargs)
        self._seconds_to_wait -= time.monotonic() - start
        return loss

    def _eagerly(self, *args: Any, **kwargs: Any) -> Any:
        with self.program.running(), poutine.trace(param_only=True) as capture:
            loss = self._loss_and_grads(*args, **kwargs)
        first = self.optimizer is None
        found: dict[str, Tensor] = dict(self.program.parameters())
        for name, site in capture.trace.nodes.items():
            value = site["value"]
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
            if leaf.requires_grad:
                found.setdefault(name, leaf)
        self._adopt(found)
        if first:
            self._warn_of_unregistered()
        return _to_float(loss)

    def apply_gradients(self) -> None:
        """Clip the gradients, let the optimiser step, and clear them."""
        if self.optimizer is None:
            raise ProgramError(
                "there are no parameters to train: model and guide have no trainable parameter of "
                "a module, and no pyro.param or pyro.module statement has been run"
            )
        parameters = [p for p in self._parameters.values() if p.grad is not None]
        if self.clip_norm is not None:
            torch.nn.utils.clip_grad_norm_(parameters, self.clip_norm)
        if isinstance(self._optim, PyroOptim):
            _clip_as_pyro(self._optim, self._parameters)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)

    def _new_recorder(self) -> Recorder:
        loss = self._loss
        watched = {type(loss).__name__: type(loss), "the objective": getattr(loss, "__dict__", {})}
        return Recorder(
            self.program, self._tensors_of_step, watched=watched, compiled=self._compiled
        )

    def _is_as_recorded(self) -> bool:
        """Whether a recording still says what the program says; the step is eager if not."""
        assert self._recorder is not None
        if not (type(self.loss) in _RECORDABLE or isinstance(self.loss, Objective)):
            name = getattr(self.loss, "__name__", type(self.loss).__name__)
            raise NotRecordable(f"{name} may depend on values, not on tensors alone")
        if self._recorder.forget_if_changed():
            return False
        store = pyro.get_param_store()._params
        if any(store.get(name) is not parameter for name, parameter in self._in_store.items()):
            self._in_store = {n: p for n, p in self._in_store.items() if store.get(n) is p}
            self._recorder.forget()
            return False
        looped = self.loss.num_particles > 1 and not self.loss.vectorize_particles
        adding = looped and any(p.grad is not None for p in self._parameters.values())
        # Handlers around a step change its meaning; gradients of particles are added one by one.
        return not (adding or poutine.runtime.am_i_wrapped())

    def _replayed(self, *args: Any, **kwargs: Any) -> Any:
        assert self._recorder is not None
        if kwargs or not all(isinstance(arg, Tensor) and not arg.requires_grad for arg in args):
            raise NotRecordable("it is called with other arguments than tensors without gradients")
        loss, *gradients = self._recorder(self._parameters, *args)
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            if gradient is not None:
                old = parameter.grad
                parameter.grad = gradient if old is None else old + gradient
        return _to_float(loss)

    def _tensors_of_step(self, *args: Tensor) -> tuple[Tensor | None, ...]:
        """Return the loss and the gradients: what ``_loss_and_grads`` does, as one function."""
        assert isinstance(self.loss, ELBO)
        model, guide = self._announcing_model, self.program.guide
        parameters = [p for p in self._parameters.values() if p.requires_grad]
        objective, times = self.loss, 1
        if not objective.vectorize_particles and objective.num_particles > 1:
            objective, times = copy.copy(objective), objective.num_particles
            objective.num_particles = 1
        total: Any = 0.0
        gradients: list[Tensor | None] = [None] * len(parameters)
        with torch.enable_grad(), self.program.running():
            for _ in range(times):
                loss = objective.differentiable_loss(model, guide, *args) / times
                new = torch.autograd.grad(loss, parameters, allow_unused=True)
                gradients = [
                    b if a is None else a if b is None else a + b
                    for a, b in zip(gradients, new, strict=True)
                ]
                total = total + loss.detach()
        by_parameter = dict(zip(map(id, parameters), _laid_out(gradients, parameters), strict=True))
        return (total, *(by_parameter.get(id(p)) for p in self._parameters.values()))

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        model, guide = self.program.model, self.program.guide
        if isinstance(self.loss, ELBO):
            return self.loss.loss_and_grads(self._announcing_model, guide, *args, **kwargs)
        loss = self.loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss

    def _warn_of_unregistered(self) -> None:
        for name, parameter in self.program.unregistered_parameters().items():
            if parameter.grad is not None and id(parameter) not in self._known:
                warnings.warn(
                    f"the parameter {name!r} takes part in the loss but is not trained: register "
                    'its module, as in pyro.module("decoder", decoder), or freeze it with '
                    "requires_grad_(False)",
                    stacklevel=4,
                )
                return

    def _adopt(self, found: dict[str, Tensor]) -> None:
        new = {n: p for n, p in _once(found).items() if id(p) not in self._known}
        held = self._parameters
        changed = {n: p for n, p in found.items() if n in held and held[n] is not p} | new
        if not changed:
            return
        self._known.update(map(id, new.values()))
        self._parameters.update(changed)
        store = pyro.get_param_store()._params
        self._in_store.update({n: p for n, p in changed.items() if store.get(n) is p})
        if self._recorder is not None:
            self._recorder.forget()
        if not new:
            return
        if self.optimizer is None:
            self.optimizer, self.scheduler = _build(self._optim, new)
            return
        for group in _groups(self._optim, new):
            self.optimizer.add_param_group(group)


def _once(parameters: dict[str, Tensor]) -> dict[str, Tensor]:
    """Keep of each parameter the first of its names."""
    names = {id(p): name for name, p in reversed(parameters.items())}
    return {name: parameters[name] for name in reversed(names.values())}


def _announcing(program: Program) -> Callable[..., Any]:
    """Let the model state one of its modules' parameters.

    Pyro's ELBOs go backward only if a trace shows a parameter; methods of modules show none.
    """
    named = next(iter(program.parameters().items()), None)
    if named is None:
        return program.model
    name, parameter = named
    statement = poutine.runtime.effectful(lambda *_, **__: parameter, type="param")

    def model(*args: Any, **kwargs: Any) -> Any:
        statement(name, parameter, name=name)
        return program.model(*args, **kwargs)

    return model


def _laid_out(gradients: list[Tensor | None], parameters: list[Tensor]) -> list[Tensor | None]:
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


def _to_float(loss: Any) -> Any:
    if isinstance(loss, tuple):
        return type(loss)(_to_float(part) for part in loss)
    return loss.item() if isinstance(loss, Tensor) else loss


def _build(optim: Any, parameters: dict[str, Tensor]) -> tuple[torch.optim.Optimizer, Any]:
    if not isinstance(optim, PyroOptim):
        return optim(_groups(optim, parameters)), None
    shared = optim.pt_optim_args if isinstance(optim.pt_optim_args, dict) else {}
    optimizer = optim.pt_optim_constructor(_groups(optim, parameters), **shared)
    if not isinstance(optim, PyroLRScheduler):
        return optimizer, None
    scheduler = optim.pt_scheduler_constructor(optimizer, **optim.kwargs)
    # Pyro scripts step the pyro.optim object, which hands on to the schedulers it holds.
    optim.optim_objs = {next(iter(parameters.values())): scheduler}
    return optimizer, scheduler


def _groups(optim: Any, parameters: dict[str, Tensor]) -> list[dict[str, Any]]:
    per_parameter = isinstance(optim, PyroOptim) and callable(optim.pt_optim_args)
    if not per_parameter:
        return [{"params": list(parameters.values())}]
    return [{"params": [p], **_arguments(optim, name)} for name, p in parameters.items()]


def _arguments(optim: PyroOptim, name: str) -> dict[str, Any]:
    if len(inspect.signature(optim.pt_optim_args).parameters) == 1:
        return optim.pt_optim_args(normalize_param_name(name))
    module, _, parameter = normalize_param_name(name).rpartition(".")
    return optim.pt_optim_args(module, parameter)


def _clip_as_pyro(optim: PyroOptim, parameters: dict[str, Tensor]) -> None:
    """Apply the object's ``clip_args``, to each parameter by itself as Pyro does."""
    for name, parameter in parameters.items():
        clip = optim.pt_clip_args
        if callable(clip):
            module, _, stripped = normalize_param_name(name).rpartition(".")
            clip = clip(module, stripped)
        if clip and parameter.grad is not None:
            optim._clip_grad(parameter, **clip)
