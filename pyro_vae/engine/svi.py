"""Stochastic variational inference: one optimiser over all parameters of a program."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from pyro.optim import PyroOptim
from torch import Tensor

from pyro_vae.arguments import at_the_door
from pyro_vae.engine.failure import not_finite, rehearsing
from pyro_vae.engine.optimizers import (
    Optim,
    add_parameters,
    build,
    clip_as_pyro,
    rate_factors,
    resting,
)
from pyro_vae.engine.step import RecordedStep
from pyro_vae.engine.turns import Turns
from pyro_vae.inference.dependence import cut_off
from pyro_vae.inference.exclusive import exclusively
from pyro_vae.inference.named import Named
from pyro_vae.inference.objectives import Objective
from pyro_vae.inference.program import Program, ProgramError
from pyro_vae.inference.refusals import check_loss
from pyro_vae.recording.replaying import ENGINES
from pyro_vae.wording import warn

__all__ = ["ENGINES", "SVI", "Optim"]


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
            constructor and arguments (clipping and schedules included) are taken over. Adam, AdamW
            and SGD use their fused kernels, unless told which kernels to use.
        loss: A ``pyro.infer.ELBO`` object, or a function ``loss(model, guide, *args)``.
        clip_norm: The largest norm of the gradient over all parameters; None for no bound.
        engine: "eager" runs Pyro at every step; "recorded" replays the operations that one run
            left, to the same bits; "compiled" fuses them with Inductor, too; "auto" records after
            a few eager steps, where that can be done, and compiles where ``num_steps`` make up
            for it. A program that cannot be recorded runs eagerly, and a warning says why, unless
            the engine is "auto".
        prepare: Turns what a step is called with into the arguments of model and guide; gathering
            a batch and drawing its noise are then part of the recorded step.
        guarded: Whether an update whose loss or gradient is not finite, and all after it, are left
            out; see ``failed``, ``faults`` and ``num_made``.
        num_steps: How many steps are planned, by which "auto" decides.
        rare: Says of a step's arguments whether their like come so rarely, as the last batch of an
            epoch does, that nothing is compiled for them.

    Attributes:
        failed: 1 after a loss or gradient that was not finite, if ``guarded``; on the device.
        faults: What was not finite then, 1 or 0: the loss, and the gradient of each parameter,
            ``[1 + P]``, if ``guarded``; on the device.
        num_made: The number of updates made since then or since the start, if ``guarded``; on the
            device.
        num_updates: The number of updates asked for; a resumed run sets it.
        turns: Whose parameters a step moves; None: all. See ``part_in_turns``.
        reached: The ids of the parameters that ``meet_parameters`` gave a gradient.
        full_size: That of the data, where a loss stands for all of them, not for a batch.

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
        prepare: Callable[..., tuple[Tensor, ...]] | None = None,
        guarded: bool = False,
        num_steps: int = 0,
        rare: Callable[..., bool] | None = None,
    ) -> None:
        _check(optim, loss, clip_norm, engine)
        self.program = Program(model, guide)
        self.model = _announcing(self.program)
        self.clip_norm = clip_norm
        self.optimizer: torch.optim.Optimizer | None = None
        self.scheduler: Any = None
        self.prepare = prepare or _as_they_are
        self.num_updates = 0
        self.turns: Turns | None = None
        self.full_size: int | None = None
        self.reached: set[int] = set()
        self.failed = torch.zeros((), dtype=torch.float32) if guarded else None
        self.num_made = torch.zeros((), dtype=torch.int64) if guarded else None
        self.faults = torch.zeros(1) if guarded else None
        self._loss = loss
        self._optim = optim
        self.rare = rare
        self._engine, self._num_steps = engine, num_steps
        self._parameters: dict[str, Tensor] = {}
        self._known: set[int] = set()
        self._was_replayed = False
        self._recorded = RecordedStep(self, engine, num_steps)

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
        self._recorded = RecordedStep(self, self._engine, self._num_steps)
        self._recorded.meet(self._parameters)

    @property
    def recorded(self) -> bool:
        """Whether the last step replayed a recording."""
        return self._was_replayed

    @property
    def modules_of_loss(self) -> dict[str, torch.nn.Module]:
        """The modules that the objective holds, whose parameters are trained with the rest."""
        return self._loss.modules if isinstance(self._loss, Objective) else {}

    def step(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; return the loss, negative and summed over the data plate."""
        return _to_float(self.update(*args, **kwargs))  # here the host waits for the device

    @exclusively
    def update(self, *args: Any, **kwargs: Any) -> Any:
        """Take one gradient step; return the loss as ``step`` does, but leave it on the device."""
        loss: Any = self._recorded.whole(*args, **kwargs)
        if loss is None:
            loss = self.loss_and_grads(*args, **kwargs)
            self.guard(loss, [p.grad for p in self._parameters.values()])
            self.apply_gradients()
            self.take_note(loss, *args)
        else:
            self._was_replayed = True
            self.num_updates += 1
        return loss

    @exclusively
    def evaluate_loss(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss without gradients; nothing is changed."""
        loss = self.loss.loss if isinstance(self.loss, ELBO) else self.loss
        with torch.no_grad(), self.program.running():
            args = self.prepare(*args)
            return _to_float(loss(self.program.model, self.program.guide, *args, **kwargs))

    @exclusively
    def loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        """Return the loss and add its gradient to every parameter's ``grad``."""
        found = self._recorded.gradients(*args, **kwargs)
        self._was_replayed = found is not None
        if found is None:
            return self._eagerly(*self.prepare(*args), **kwargs)
        loss, *gradients = found
        for parameter, gradient in zip(self._parameters.values(), gradients, strict=True):
            if gradient is not None:
                old = parameter.grad
                parameter.grad = gradient if old is None else old + gradient
        return _to_float(loss)

    @exclusively
    def meet_parameters(self, *args: Any, **kwargs: Any) -> None:
        """Run once on arguments of model and guide to find the parameters, and train nothing."""
        self._eagerly(*args, **kwargs)
        self.reached = {id(p) for p in self._parameters.values() if p.grad is not None}
        for parameter in self._parameters.values():
            parameter.grad = None

    def apply_gradients(self) -> None:
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
        self.num_updates += 1

    def clip(self) -> None:
        """Bound the gradients as ``clip_norm`` and a ``pyro.optim`` object's arguments say."""
        if self.clip_norm is not None:
            trained = [p for p in self._parameters.values() if p.grad is not None]
            torch.nn.utils.clip_grad_norm_(trained, self.clip_norm)
        clip_as_pyro(self._optim, self._parameters)

    def guard(self, loss: Any, gradients: Sequence[Tensor | None]) -> None:
        """Note on the device what of a loss and its gradients is not finite; count until then."""
        if self.failed is None or self.num_made is None or self.faults is None:
            return
        value = loss[0] if isinstance(loss, tuple) else loss
        value = torch.as_tensor(value, device=self.failed.device)
        found = not_finite([value, *gradients], self.failed)
        self.faults.copy_(torch.maximum(self.faults, found * (1 - self.failed)))
        self.failed.copy_(torch.maximum(self.failed, found.amax()))
        self.num_made.add_((1 - self.failed).long())

    def take_note(self, loss: Any, *args: Any) -> None:
        """Let whose turn the next step is depend on the loss of this one, taken with ``args``."""
        if self.turns is not None:
            value = loss[0] if isinstance(loss, tuple) else loss
            self.turns.observe(torch.as_tensor(value) / (self.full_size or len(args[0])))

    def forget(self) -> None:
        """Drop all recordings; to be called after state was replaced, not changed in place."""
        self._recorded.forget()

    def _eagerly(self, *args: Any, **kwargs: Any) -> Any:
        if self.optimizer is None:
            check_loss(self.loss, self.program, *args, **kwargs)
        first = self.optimizer is None
        named = Named(self.program.reachable) if first else nullcontext()
        with self.program.running(), named, poutine.trace(param_only=True) as capture:
            loss = self._loss_and_grads(*args, **kwargs)
        found: dict[str, Tensor] = dict(self.program.parameters())
        for place, module in self.modules_of_loss.items():
            found |= {f"{place}.{name}": p for name, p in module.named_parameters()}
        for name, site in capture.trace.nodes.items():
            value = site["value"]
            leaf = value.unconstrained() if hasattr(value, "unconstrained") else value
            if leaf.requires_grad:
                found.setdefault(name, leaf)
        self._adopt(found)
        if first:
            self._warn_of_unregistered()
            self._warn_of_cut_off(args, kwargs)
        return _to_float(loss)

    def _loss_and_grads(self, *args: Any, **kwargs: Any) -> Any:
        model, guide = self.program.model, self.program.guide
        if isinstance(self.loss, ELBO):
            return self.loss.loss_and_grads(self.model, guide, *args, **kwargs)
        loss = self.loss(model, guide, *args, **kwargs)
        loss.backward()
        return loss

    def _warn_of_unregistered(self) -> None:
        for name, parameter in self.program.unregistered_parameters().items():
            if parameter.grad is not None and id(parameter) not in self._known:
                warn(
                    f"the parameter {name!r} takes part in the loss but is not trained: register "
                    'its module, as in pyro.module("decoder", decoder), or freeze it with '
                    "requires_grad_(False)"
                )
                return

    def _warn_of_cut_off(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # A program may count its runs: it is run once more where something looks cut off, alone.
        if all(p.grad is not None and bool(p.grad.any()) for p in self._parameters.values()):
            return
        rows = tuple(a[:3] if isinstance(a, Tensor) and a.dim() else a for a in args)
        try:
            with rehearsing(self.program):
                found = {} if kwargs else cut_off(self.program, self._parameters, *rows)
        except Exception:  # a program that does not run on other rows than its own
            return
        if found:
            name, site = next(iter(found.items()))
            more = f" (and {len(found) - 1} more)" if len(found) > 1 else ""
            warn(
                f"the parameter {name!r}{more} takes part in site {site!r}, but no gradient "
                "reaches it, so that it is never trained: detach, torch.no_grad, .item(), rounding "
                "or a comparison cuts it off; freeze it with requires_grad_(False) if that is meant"
            )

    def _adopt(self, found: dict[str, Tensor]) -> None:
        new = {n: p for n, p in _once(found).items() if id(p) not in self._known}
        held = self._parameters
        changed = {n: p for n, p in found.items() if n in held and held[n] is not p} | new
        if not changed:
            return
        self._known.update(map(id, new.values()))
        self._parameters.update(changed)
        self._recorded.meet(changed)
        if not new:
            return
        if self.optimizer is None:
            self.optimizer, self.scheduler = build(self._optim, new, self._rate_factors())
            self._guard_on_device()
        else:
            add_parameters(self.optimizer, self._optim, new, self._rate_factors())
        if self.failed is not None:
            self.faults = self.failed.new_zeros(1 + len(self._parameters))

    def _rate_factors(self) -> dict[int, float]:
        return rate_factors([*self.program.reachable, *self.modules_of_loss.values()])

    def _guard_on_device(self) -> None:
        if self.failed is not None and self.num_made is not None:
            device = next(iter(self._parameters.values())).device
            self.failed, self.num_made = self.failed.to(device), self.num_made.to(device)


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

    @functools.wraps(program.model, updated=())
    def model(*args: Any, **kwargs: Any) -> Any:
        statement(name, parameter, name=name)
        return program.model(*args, **kwargs)

    return model


def _as_they_are(*args: Any) -> tuple[Any, ...]:
    return args


def _to_float(loss: Any) -> Any:
    if isinstance(loss, tuple):
        return type(loss)(_to_float(part) for part in loss)
    return loss.item() if isinstance(loss, Tensor) else loss


def _check(optim: Any, loss: Any, clip_norm: float | None, engine: str) -> None:
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
