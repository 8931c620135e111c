"""Prepare programs of one structure for training side by side: copies, or a list."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

from pyro.infer import ELBO
from torch import Tensor
from torch.nn.parameter import is_lazy

from pyro_vae import memory
from pyro_vae.engine.given import Given
from pyro_vae.engine.training import Training
from pyro_vae.files import reason
from pyro_vae.inference.program import Program

__all__ = ["check_apart", "check_structure", "replicated"]

_OF_A_COPY = 2**16  # bytes of the objects of a small program


def replicated(program: Any, objective: ELBO | None, num_replicas: int) -> list[Given]:
    """Return the programs to be trained: those of a list, or one and its copies.

    Args:
        program: An object with ``model`` and ``guide``, a pair of them, or a list of such.
        objective: Copied for all but the first, as it may hold tensors that move.
        num_replicas: How many copies, the program itself included.

    Raises:
        ValueError: If there are none, too many or too few, or they cannot be copied.
        TooLargeError: If memory cannot hold the copies.
    """
    if isinstance(num_replicas, bool) or not isinstance(num_replicas, int) or num_replicas < 1:
        raise ValueError(f"num_replicas={num_replicas!r}: give an integer of 1 or more")
    if not isinstance(program, list):
        if num_replicas > 1:
            _refuse_copies(program, num_replicas)
        given = (program, objective)
        copies = [_copied(given, num_replicas) for _ in range(1, num_replicas)]
        return [Given(*each) for each in (given, *copies)]
    if num_replicas not in (1, len(program)):
        raise ValueError(
            f"num_replicas={num_replicas} with a list of {len(program)} programs: leave it out"
        )
    others = [_copied((objective,), len(program))[0] for _ in program[1:]]
    return [Given(*each) for each in zip(program, (objective, *others), strict=True)]


def _refuse_copies(program: Any, num_replicas: int) -> None:
    """Refuse more copies than memory holds with gradients and an optimiser's state."""
    given = Given(program, None)
    modules = Program(given.model, given.guide).reachable
    # A tensor that is lazy has no size yet.
    tensors = [p for m in modules for p in m.parameters() if not is_lazy(p)]
    each = _OF_A_COPY + 4 * sum(tensor.nbytes for tensor in tensors)
    what = f"num_replicas={num_replicas:,}: training so many copies"
    memory.refuse_beyond(num_replicas * each, what, "give fewer")


def _copied(given: tuple[Any, ...], num_replicas: int) -> tuple[Any, ...]:
    try:
        return copy.deepcopy(given)
    except Exception as error:  # what a class of the user's own may raise when it is copied
        raise ValueError(
            f"num_replicas={num_replicas}: the program or its objective cannot be copied "
            f"({reason(error)}); give a list of programs, each built anew"
        ) from error


def check_structure(first: Training, other: Training, number: int) -> None:
    """Refuse a program whose parameters, tensors or latents are not shaped as the first's."""
    for what, one, its in (
        (
            "parameters",
            _shapes(first.gradient_step.parameters),
            _shapes(other.gradient_step.parameters),
        ),
        ("tensors", _shapes(_state(first)), _shapes(_state(other))),
        ("sites", {"latent": str(first.layout)}, {"latent": str(other.layout)}),
    ):
        differing = [name for name in {**one, **its} if one.get(name) != its.get(name)]
        if differing:
            name = differing[0]
            raise ValueError(
                f"programs 0 and {number} differ in their {what}: {name!r} is "
                f"{one.get(name, 'missing')} in one and {its.get(name, 'missing')} in the other; "
                "replicas differ only in what their tensors hold"
            )


def _parameters(run: Training) -> dict[str, str]:
    return _shapes(run.gradient_step.parameters)


def _state(run: Training) -> dict[str, Any]:
    return {
        f"{place}.{name}": tensor
        for place, module in enumerate([*run.program.modules, *run.beside])
        for name, tensor in module.state_dict().items()
        if isinstance(tensor, Tensor)
    }


def _shapes(tensors: dict[str, Tensor]) -> dict[str, str]:
    # In Pyro's store, a name that another program has taken gets a number.
    return {
        name.partition("#")[0]: f"{list(tensor.shape)} of {tensor.dtype}"
        for name, tensor in tensors.items()
    }


def check_apart(runs: Sequence[Training]) -> None:
    """Refuse programs that share a parameter."""
    owners: dict[int, int] = {}
    for number, run in enumerate(runs):
        for name, parameter in run.gradient_step.parameters.items():
            owner = owners.setdefault(parameter.untyped_storage()._cdata, number)
            if owner != number:
                raise ValueError(
                    f"replicas {owner} and {number} share the parameter {name!r}, which the "
                    "program keeps outside of itself: make it one object with model and guide, or "
                    "give a list of programs, each built anew"
                )
