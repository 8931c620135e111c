"""The gradients of a batch: as a pure function, and by a run of Pyro that finds parameters."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import nullcontext
from typing import Any

import torch
from pyro import poutine
from pyro.infer import ELBO
from torch import Tensor, nn

from pyro_vae.engine.failure import rehearsing
from pyro_vae.inference.auxiliary import AuxiliaryLosses
from pyro_vae.inference.corrupted import check_corruption
from pyro_vae.inference.dependence import cut_off
from pyro_vae.inference.handlers import Named
from pyro_vae.inference.program import Program
from pyro_vae.inference.refusals import check_loss, unfollowed
from pyro_vae.wording import warn

__all__ = [
    "announcing",
    "gradients",
    "laid_out",
    "run_and_find",
    "warn_of_cut_off",
    "warn_of_unregistered",
]

_Gradients = list[Tensor | None]


def gradients(
    program: Program,
    model: Callable[..., Any],
    objective: ELBO,
    parameters: Sequence[Tensor],
    args: tuple[Any, ...],
) -> tuple[Tensor | None, ...]:
    """Return the loss and a gradient for each parameter, as a run of Pyro finds them, bit for bit.

    Args:
        program: The model and the guide.
        model: That of the program, or what runs it.
        objective: What is minimised.
        parameters: All, whether trained or not.
        args: Of model and guide.
    """
    trained = [p for p in parameters if p.requires_grad]
    times = 1
    if not objective.vectorize_particles and objective.num_particles > 1:
        objective, times = copy.copy(objective), objective.num_particles
        objective.num_particles = 1
    total: Any = 0.0
    found: _Gradients = [None] * len(trained)
    for _ in range(times):
        loss = objective.differentiable_loss(model, program.guide, *args) / times
        new = torch.autograd.grad(loss, trained, allow_unused=True)
        found = [
            b if a is None else a if b is None else a + b for a, b in zip(found, new, strict=True)
        ]
        total = total + loss.detach()
    by_parameter = dict(zip(map(id, trained), laid_out(found, trained), strict=True))
    return (total, *(by_parameter.get(id(p)) for p in parameters))


def laid_out(gradients: _Gradients, parameters: list[Tensor]) -> _Gradients:
    """Lay gradients out as ``backward`` does: like their parameters, no two in one memory."""
    taken: set[int] = set()
    found: _Gradients = []
    for gradient, parameter in zip(gradients, parameters, strict=True):
        if gradient is not None:
            shared = gradient.untyped_storage()._cdata in taken
            if shared or gradient.stride() != parameter.stride():
                gradient = torch.empty_like(parameter).copy_(gradient)
            taken.add(gradient.untyped_storage()._cdata)
        found.append(gradient)
    return found


def announcing(program: Program) -> Callable[..., Any]:
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


def run_and_find(
    program: Program,
    model: Callable[..., Any],
    loss: Any,
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
    *,
    is_first: bool,
    beside: Mapping[str, nn.Module],
) -> tuple[Any, dict[str, Tensor]]:
    """Add the gradient to every parameter's ``grad``; return the loss, and the parameters by name.

    Args:
        program: The model and the guide.
        model: That of the program, or what runs it.
        loss: An objective of Pyro's kind, or a function of model, guide and arguments.
        args: Of model and guide.
        kwargs: Further arguments.
        is_first: Whether the loss has to be held against the program.
        beside: Further modules whose parameters are trained, by their place.
    """
    if is_first:
        check_loss(loss, program, *args, **kwargs)
        check_corruption(program, *args, **kwargs)
    named = Named(program.reachable) if is_first else nullcontext()
    losses = AuxiliaryLosses()
    with program.running(), named, losses, poutine.trace(param_only=True) as capture:
        if isinstance(loss, ELBO):
            value = loss.loss_and_grads(model, program.guide, *args, **kwargs)
        else:
            value = loss(program.model, program.guide, *args, **kwargs)
            value.backward()
    if isinstance(loss, ELBO) and (reason := unfollowed(loss, losses.declared)) is not None:
        raise ValueError(reason)
    found: dict[str, Tensor] = dict(program.parameters())
    for place, module in beside.items():
        found |= {f"{place}.{name}": p for name, p in module.named_parameters()}
    for name, site in capture.trace.nodes.items():
        stated = site["value"]
        leaf = stated.unconstrained() if hasattr(stated, "unconstrained") else stated
        if leaf.requires_grad:
            found.setdefault(name, leaf)
    return value, found


def warn_of_unregistered(program: Program, known: Collection[int]) -> None:
    """Warn of a parameter that has a gradient, but is none of those whose ids are known."""
    for name, parameter in program.unregistered_parameters().items():
        if parameter.grad is not None and id(parameter) not in known:
            warn(
                f"the parameter {name!r} takes part in the loss but is not trained: register "
                'its module, as in pyro.module("decoder", decoder), or freeze it with '
                "requires_grad_(False)"
            )
            return


def warn_of_cut_off(
    program: Program,
    parameters: Mapping[str, Tensor],
    args: tuple[Any, ...],
    kwargs: dict[str, Any],
) -> None:
    """Warn of parameters that take part in a site, but get no gradient."""
    # A program may count its runs: it is run once more where something looks cut off, alone.
    if all(p.grad is not None and bool(p.grad.any()) for p in parameters.values()):
        return
    rows = tuple(a[:3] if isinstance(a, Tensor) and a.dim() else a for a in args)
    try:
        with rehearsing(program):
            found = {} if kwargs else cut_off(program, dict(parameters), *rows)
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
