"""Compare a checkpoint with the run that loads it, before any of it is loaded.

Every tensor has the shape, type and range of the program's own, every other field a type and a
range, and what follows from something else in the state agrees with it. The kernels of an optimiser
do not look at the size of what they write to: a state that passes here corrupts no memory.
"""

from __future__ import annotations

import math
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Container, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pyro_vae.engine import schema
from pyro_vae.engine.checkpoint import CheckpointError
from pyro_vae.engine.restoring import RANDOM
from pyro_vae.engine.schema import Check
from pyro_vae.files import show
from pyro_vae.inference.quantities import validated_value

__all__ = ["Steps", "check_progress", "check_state"]

_ELBO = "validation_elbo_nats"
_OF_BOUNDS = (_ELBO, "validation_rate_nats", "validation_distortion_nats")
_RECORD: dict[str, Check] = {
    "epoch": schema.number(int, 1),
    "step": schema.number(int, 1),
    "learning_rate": schema.number(float),
}
_PROGRESS: dict[str, Check] = {
    **dict.fromkeys(("epoch", "position", "step", "waited", "best_epoch"), schema.number(int, 0)),
    "seconds": schema.number(float, 0),
    "best_nats": schema.anything,  # follows from the history
    "init_from": schema.nullable(schema.text),
}
# Moments of squares and of absolute values, which optimisers take roots of.
_NOT_NEGATIVE = {
    "exp_avg_sq", "max_exp_avg_sq", "exp_inf", "square_avg", "acc_delta", "sum", "row_var",
    "col_var", "variance",
}  # fmt: skip
_KERNELS = {"fused", "foreach", "capturable", "differentiable"}  # how a step is computed


@dataclass(frozen=True)
class Steps:
    """How a run goes through its data.

    Attributes:
        num_batches: In an epoch.
        rows_before: How many rows the batches of an epoch before one hold.
    """

    num_batches: int
    rows_before: Callable[[int], int]


def check_state(
    state: Any,
    own: Mapping[str, Any],
    steps: Steps,
    optimizer: torch.optim.Optimizer,
    reached: Container[int],
    path: Path,
) -> None:
    """Refuse a state that is none of this run's; nothing is changed.

    Args:
        state: As it was read.
        own: What the run would save at its start.
        steps: How it goes through its data.
        optimizer: Its optimiser, which has made no step.
        reached: The ids of the parameters that get gradients.
        path: Where the state was read.

    Raises:
        CheckpointError: If a part is missing, unexpected, of another shape, type or range, or does
            not agree with the rest; names it.
    """
    _refuse(_faults(state, own, steps, optimizer, reached), path)


def check_progress(state: Any, path: Path) -> None:
    """Refuse a state without weights, or whose progress cannot be used.

    Raises:
        CheckpointError: If a part is missing or malformed; names it.
    """
    checks = {"weights": schema.anything, "progress": _progress}
    faults = list(schema.record(checks, others=schema.anything)("", state))
    _refuse(faults or _misplaced(state["progress"], None), path)


def _faults(
    state: Any,
    own: Mapping[str, Any],
    steps: Steps,
    optimizer: torch.optim.Optimizer,
    reached: Container[int],
) -> Iterator[str]:
    groups = schema.listed([_group(group) for group in optimizer.state_dict()["param_groups"]])
    checks = {name: schema.like(value) for name, value in own.items()}
    checks |= {
        "weights": schema.anything,  # held against the program by themselves
        "best": schema.anything,
        "environment": schema.record(dict.fromkeys(own["environment"], schema.plain)),
        "optimizer": schema.record({"state": schema.anything, "param_groups": groups}),
        "progress": _progress,
        "random": RANDOM,
        "settings": schema.anything,  # compared by themselves
    }
    faults = list(schema.record(checks)("", state))
    yield from faults
    if not faults:
        yield from _misplaced(state["progress"], steps)
        yield from _miscounted(state, steps)
        step = state["progress"]["step"]
        yield from _moments(state["optimizer"]["state"], optimizer, reached, step)


def _progress(place: str, progress: Any) -> Iterator[str]:
    """Check how far a run is, and that its records are all of the quantity that it began with."""
    start = progress.get("start") if isinstance(progress, dict) else None
    keys = [key for key in start or () if str(key).startswith("validation_")]
    of_bounds = len(keys) != 1 or _ELBO in keys
    validated = dict.fromkeys(_OF_BOUNDS if of_bounds else keys, schema.number(float))
    trained = "train_nats" if of_bounds else keys[0].replace("validation_", "train_", 1)
    record = {**_RECORD, trained: schema.number(float), **validated}
    checks = {
        **_PROGRESS,
        "start": schema.record(validated, others=schema.plain),
        "history": schema.each(schema.record(record, others=schema.plain)),
    }
    yield from schema.record(checks)(place, progress)


# What follows from the rest -----------------------------------------------------------------------


def _misplaced(progress: Mapping[str, Any], steps: Steps | None) -> Iterator[str]:
    """Hold a run's place and its best epoch against its history."""
    history = progress["history"]
    num_batches = steps.num_batches if steps else history[0]["step"] if history else None
    if len(history) != progress["epoch"]:
        yield f"progress.epoch is {progress['epoch']}, and the history has {len(history)} epochs"
    if num_batches is not None:
        expected = progress["epoch"] * num_batches + progress["position"]
        if progress["position"] > num_batches or progress["step"] != expected:
            yield (
                f"progress.step is {progress['step']}, which is not batch {progress['position']} "
                f"of {num_batches} in epoch {progress['epoch'] + 1}"
            )
    yield from _mismatched("progress.start", progress["start"])
    for number, record in enumerate(history):
        yield from _misplaced_record(f"progress.history.{number}", record, number + 1, num_batches)
    for name, value in _best(history).items():
        yield from schema.exactly(value)(f"progress.{name}", progress[name])


def _misplaced_record(
    place: str, record: Mapping[str, Any], epoch: int, num_batches: int | None
) -> Iterator[str]:
    yield from schema.exactly(epoch)(f"{place}.epoch", record["epoch"])
    yield from schema.exactly(epoch * (num_batches or 0))(f"{place}.step", record["step"])
    yield from _mismatched(place, record)


def _mismatched(place: str, record: Mapping[str, Any]) -> Iterator[str]:
    if _ELBO in record:
        elbo = -record["validation_rate_nats"] - record["validation_distortion_nats"]
        yield from schema.exactly(elbo)(f"{place}.{_ELBO}", record[_ELBO])


def _best(history: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    found: dict[str, Any] = {"best_nats": -math.inf, "best_epoch": 0, "waited": 0}
    for record in history:
        found["waited"] += 1
        value = validated_value(record)
        if value > found["best_nats"]:
            found = {"best_nats": value, "best_epoch": record["epoch"], "waited": 0}
    return found


def _miscounted(state: Mapping[str, Any], steps: Steps) -> Iterator[str]:
    """Hold the running mean and the best weights against the run's place."""
    progress, mean = state["progress"], state["train_nats"]
    rows = steps.rows_before(progress["position"])
    yield from schema.exactly(float(rows))("train_nats.weight", mean["weight"])
    if rows == 0 and bool(mean["total"] != 0):
        yield "train_nats.total is a sum of nothing, and not 0"
    wanted = bool(progress["history"])
    if (state["best"] is not None) != wanted:
        yield f"best is {'missing' if wanted else 'unexpected'}"


# The optimiser ------------------------------------------------------------------------------------


def _group(own: Mapping[str, Any]) -> Check:
    checks = {
        name: schema.anything if name in _KERNELS else schema.exactly(value)
        for name, value in own.items()
    }
    rate = own["lr"]
    return schema.record(checks | {"lr": schema.like(rate if torch.is_tensor(rate) else 0.0)})


def _moments(
    saved: Any, optimizer: torch.optim.Optimizer, reached: Container[int], step: int
) -> Iterator[str]:
    """Hold an optimiser's state against what it would keep of each parameter."""
    if not isinstance(saved, dict):
        yield "optimizer.state is no dictionary"
        return
    places = [(p, group) for group in optimizer.param_groups for p in group["params"]]
    known: dict[Any, Mapping[str, Any]] = {}
    for number, (parameter, group) in enumerate(places):
        kind = (id(group), tuple(parameter.shape), parameter.dtype, parameter.device)
        if kind not in known:
            known[kind] = _kept(optimizer, parameter, group)
        own = known[kind]
        place = f"optimizer.state.{number}"
        if number in saved:
            moments = {name: _moment(name, value, step) for name, value in own.items()}
            yield from schema.record(moments)(place, saved[number])
        elif own and step > 0 and id(parameter) in reached:
            yield f"{place} is missing"
    yield from (
        f"optimizer.state.{str(key)[:60]} is of no parameter"
        for key in saved
        if key not in range(len(places))
    )


def _moment(name: str, own: Any, step: int) -> Check:
    if name == "step":
        return schema.count(own, 1, step)
    if isinstance(own, Tensor):
        return schema.tensor(own, 0.0 if name in _NOT_NEGATIVE else -math.inf)
    return schema.like(own)


def _kept(
    optimizer: torch.optim.Optimizer, parameter: Tensor, group: Mapping[str, Any]
) -> Mapping[str, Any]:
    """Return what an optimiser keeps of a parameter after a step: its own word for it.

    A twin of the optimiser takes a step on a copy, whose gradient is zero.
    """
    copy = torch.zeros_like(parameter, requires_grad=True)
    copy.grad = torch.zeros_like(copy)
    twin = object.__new__(type(optimizer))
    state: dict[Any, Any] = defaultdict(dict)
    hooks: dict[str, Any] = {
        name: OrderedDict() for name in vars(optimizer) if name.endswith("_hooks")
    }
    vars(twin).update(vars(optimizer), **hooks, state=state)
    twin.param_groups = [{**group, "params": [copy]}]
    type(optimizer).step(twin)
    return state[copy]


def _refuse(faults: Iterable[str], path: Path) -> None:
    if found := schema.summary(faults):
        raise CheckpointError(
            f"checkpoint {show(path)} does not fit this run: {found}; repeat the options of the "
            "run that wrote it, or resume from another checkpoint"
        )
