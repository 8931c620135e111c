"""Copy a program's weights, restore them, and load them from a run folder."""

from __future__ import annotations

import copy
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import torch
from pyro.infer import Trace_ELBO
from torch import Tensor

from pyro_vae.engine import checkpoint, restoring, schema
from pyro_vae.engine.agreement import check_progress
from pyro_vae.engine.description import constant_settings, program_settings
from pyro_vae.engine.optimizers import adam
from pyro_vae.engine.resume_checks import check_program
from pyro_vae.engine.step import Step
from pyro_vae.engine.svi import SVI
from pyro_vae.files import show

__all__ = [
    "WEIGHTS",
    "check_weights",
    "cloned",
    "load_weights",
    "meeting_all",
    "put_weights",
    "refuse_foreign",
    "start_from",
    "weights_of",
]

WEIGHTS = ("best", "last")
"""The weights that a checkpoint holds: of the epoch with the largest validation ELBO, and now."""


def check_weights(weights: str) -> None:
    """Refuse a name that is none of weights."""
    if weights not in WEIGHTS:
        raise ValueError(f"weights={weights!r}: choose from {', '.join(map(repr, WEIGHTS))}")


def weights_of(step: Step) -> dict[str, Any]:
    """Return the tensors of a program's modules, and its parameters outside of them by name."""
    return {
        "modules": [module.state_dict() for module in step.program.modules],
        "parameters": {name: p.detach() for name, p in _outside(step).items()},
    }


def meeting_all(model: Any, guide: Any, *args: Any) -> Tensor:
    """Return a loss that every parameter of a program has a part in, to find them all by."""
    with warnings.catch_warnings():
        # Sites that are marked to be enumerated are sampled here: nothing is trained by it.
        warnings.filterwarnings("ignore", message=r"(?s).*you need to use TraceEnum_ELBO")
        loss: Tensor = Trace_ELBO().differentiable_loss(model, guide, *args)
    return loss


def load_weights(
    model: Any, guide: Any, run: Path | str, *args: Tensor, weights: str = "best"
) -> dict[str, Any]:
    """Load the newest checkpoint's weights of a run folder into a program.

    Args:
        model: The model that was trained.
        guide: The guide that was trained.
        run: The run folder.
        args: A batch; one gradient is taken on it to find parameters that appear late.
        weights: The "best" by validation, or the "last".

    Returns:
        The checkpoint's progress: epoch, step, seconds and history; and under "weights" which were
        loaded: a run without an epoch has the last alone.

    Raises:
        ValueError: If there are no weights of that name.
        FileNotFoundError: If the run has no checkpoint.
        CheckpointError: If it is damaged or of another model.
    """
    path, state = _newest(Path(run))
    svi = SVI(model, guide, adam, meeting_all)
    built = program_settings(svi.program)
    with torch.random.fork_rng():
        svi.find_parameters(*args)
    refuse_foreign(svi, state["weights"])
    check_program(state.get("settings"), constant_settings(svi.program, built), path)
    chosen = _put_chosen(svi, state, weights)
    return {**state["progress"], "weights": chosen}


def start_from(model: Any, guide: Any, run: Path | str, *args: Tensor) -> str:
    """Give a program the best weights of another run, whose tensors must all fit; say which.

    Args:
        model: The model that is to be trained.
        guide: The guide that is to be trained.
        run: The run folder.
        args: A batch.

    Raises:
        FileNotFoundError: If the run has no checkpoint.
        CheckpointError: If it is damaged, or a tensor is missing, left over or of another shape.
    """
    _, state = _newest(Path(run))
    svi = SVI(model, guide, adam, meeting_all)
    with torch.random.fork_rng():
        svi.find_parameters(*args)
    try:
        chosen = _put_chosen(svi, state, "best")
    except checkpoint.CheckpointError as error:
        raise checkpoint.CheckpointError(f"cannot start from {show(Path(run))}: {error}") from error
    progress = state["progress"]
    epoch = progress["best_epoch"] if chosen == "best" else progress["epoch"]
    return f"the {chosen} weights of {Path(run).resolve()}, of epoch {epoch}"


def _newest(run: Path) -> tuple[Path, dict[str, Any]]:
    found = checkpoint.load_latest(run / "checkpoints")
    if found is None:
        raise FileNotFoundError(f"{run} has no checkpoint: was it trained with pyro-vae train?")
    path, state = found
    check_progress(state, path)
    return path, state


def _put_chosen(step: Step, state: dict[str, Any], weights: str) -> str:
    check_weights(weights)
    chosen = "last" if state.get("best") is None else weights
    put_weights(step, state["best" if chosen == "best" else "weights"])
    return chosen


def cloned(weights: Any) -> Any:
    """Return the weights in memory of their own."""
    # A deep copy would hold all of the memory that a tensor is a part of.
    if isinstance(weights, dict):
        return {name: cloned(value) for name, value in weights.items()}
    if isinstance(weights, list):
        return [cloned(value) for value in weights]
    return weights.clone() if isinstance(weights, Tensor) else copy.deepcopy(weights)


def refuse_foreign(step: Step, weights: Any) -> None:
    """Refuse what is not such as ``weights_of`` returns of this program; nothing is changed.

    Raises:
        CheckpointError: If they are of another program, or malformed.
    """
    kinds = {"modules": schema.each(schema.anything), "parameters": schema.anything}
    if faults := schema.summary(schema.record(kinds)("weights", weights)):
        raise checkpoint.CheckpointError(f"{faults}: resume from another checkpoint")
    modules = step.program.modules
    if len(modules) != len(weights["modules"]):
        raise checkpoint.CheckpointError(
            f"the checkpoint holds {len(weights['modules'])} module(s), the program {len(modules)}"
        )
    for module, state in zip(modules, weights["modules"], strict=True):
        restoring.check_strictly(module, state)
    check = schema.record({name: schema.tensor(p) for name, p in _outside(step).items()})
    if faults := schema.summary(check("the parameters", weights["parameters"])):
        raise checkpoint.CheckpointError(
            f"the checkpoint does not fit this program: {faults}; build it with the options of "
            "the run that wrote it"
        )


def put_weights(step: Step, weights: dict[str, Any]) -> None:
    """Put back what ``weights_of`` returned, all of it or nothing.

    Raises:
        CheckpointError: If they are of another program, or malformed.
    """
    refuse_foreign(step, weights)
    for module, state in zip(step.program.modules, weights["modules"], strict=True):
        module.load_state_dict(state)
    with torch.no_grad():
        for name, parameter in _outside(step).items():
            parameter.copy_(weights["parameters"][name])


def _outside(step: Step) -> dict[str, Tensor]:
    """Return the parameters that neither the program's modules nor the objective's hold."""
    inside = {id(p) for p in step.program.parameters().values()}
    inside |= {id(p) for module in step.modules_of_loss.values() for p in module.parameters()}
    outside = {name: p for name, p in step.parameters.items() if id(p) not in inside}
    return dict(zip(_without_others(outside), outside.values(), strict=True))


def _without_others(names: Iterable[str]) -> Iterator[str]:
    """Number equal names as if the program were the only one of the process."""
    counts: Counter[str] = Counter()
    for name in names:
        stated = name.partition("#")[0]
        counts[stated] += 1
        yield stated if counts[stated] == 1 else f"{stated}#{counts[stated]}"
